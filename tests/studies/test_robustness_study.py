# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the study of robustness changes, how it measures, resumes and refuses."""

from __future__ import annotations

import functools
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_refused
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing

from scripts.__main__ import main
from scripts.data.splits import hash_cases
from scripts.inference_configuration import inference_configs
from scripts.networks.dual_network import DualNetwork
from scripts.studies.cases import carried_to_grid, claimed_study, label_array, measure_on_reference, study_cases
from scripts.studies.robustness import CHANGES, study_robustness

QUICK = {"patch_size": [32, 32, 32], "overlap": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.manual_seed(0)
    torch.save(DualNetwork().state_dict(), path)
    return path


@pytest.fixture
def volume():
    """Noise on a grid whose axes differ in size and spacing, oblique to nothing."""
    voxels = np.random.RandomState(0).normal(100, 20, (12, 10, 8)).astype(np.float32)
    affine = np.diag([-0.5, 1.0, 2.0, 1.0])
    affine[:3, 3] = (3, -4, 5)
    return nib.Nifti1Image(voxels, affine)


def changed(name, volume):
    return CHANGES[name][1](volume, np.random.RandomState(0))


def test_noise_has_the_strength_of_its_name(volume):
    for share in (10, 30):
        difference = changed(f"noise_{share}", volume).get_fdata() - volume.get_fdata()
        assert difference.std() == pytest.approx(share / 100 * volume.get_fdata().std(), rel=0.1)


def test_blur_and_bias_field_change_values_and_keep_the_grid(volume):
    # The field multiplies what is left of the values above the smallest.
    plain = {"bias_field": volume.get_fdata() - volume.get_fdata().min()}
    for name in ("blur_1mm", "blur_2mm", "bias_field"):
        other = changed(name, volume)
        assert other.shape == volume.shape
        assert np.array_equal(other.affine, volume.affine)
        assert not np.allclose(other.get_fdata(), plain.get(name, volume.get_fdata()), rtol=0.01)
    spreads = [each.get_fdata().std() for each in (volume, changed("blur_1mm", volume), changed("blur_2mm", volume))]
    assert spreads == sorted(spreads, reverse=True)


def test_bias_field_leaves_the_smallest_value_where_it_is(volume):
    # Gray values of CT mean something: air must not be moved.
    of_ct = nib.Nifti1Image(100 * volume.get_fdata() - 1000, volume.affine)
    other = changed("bias_field", of_ct).get_fdata()
    assert other.min() == pytest.approx(of_ct.get_fdata().min(), rel=1e-5)
    assert np.abs(other - of_ct.get_fdata()).mean() > 1


def test_larger_voxels_of_an_oblique_volume_stay_oblique(volume):
    turned = np.array([[np.cos(0.35), -np.sin(0.35), 0], [np.sin(0.35), np.cos(0.35), 0], [0, 0, 1]])
    affine = volume.affine.copy()
    affine[:3, :3] = turned @ affine[:3, :3]
    other = changed("spacing_150", nib.Nifti1Image(np.full(volume.shape, 7.0, dtype=np.float32), affine))
    assert np.allclose(other.affine[:3, :3], 1.5 * affine[:3, :3])
    # Nothing is filled in where the volume has no voxels.
    assert np.allclose(other.get_fdata(), 7.0)


def test_inverted_by_hand(volume):
    before, after = volume.get_fdata(), changed("inverted", volume).get_fdata()
    assert np.allclose(after, before.max() + before.min() - before, rtol=1e-4)
    assert (after.argmax(), after.argmin()) == (before.argmin(), before.argmax())


def test_intensity_by_hand(volume):
    assert np.allclose(changed("intensity_10", volume).get_fdata(), 10 * volume.get_fdata() + 100, rtol=1e-5)


def test_surroundings_are_tissue_or_air(volume):
    before = volume.get_fdata()
    margins = [(size // 2, size // 2) for size in before.shape]
    around = np.pad(np.zeros_like(before), margins, constant_values=1) == 1
    tissue, air = (changed(name, volume).get_fdata() for name in ("field_of_view", "field_of_air"))
    assert np.array_equal(tissue[~around], before.ravel())
    assert np.array_equal(air[~around], before.ravel())
    assert (air[around] == before.min()).all()
    assert tissue[around].std() == pytest.approx(before.std(), rel=0.3)


@pytest.mark.parametrize(("name", "codes"), [("axes_lpi", "LPI"), ("axes_sar", "SAR")])
def test_axes_are_stored_in_another_order(volume, name, codes):
    other = changed(name, volume)
    assert "".join(nib.aff2axcodes(other.affine)) == codes
    assert not np.array_equal(other.affine, volume.affine)


@pytest.mark.parametrize("name", ["none", "axes_lpi", "axes_sar", "field_of_view", "field_of_air"])
def test_label_maps_come_back_to_the_grid_of_the_reference(name):
    # The same change of a label map, measured against the map itself, loses nothing.
    voxels = np.zeros((12, 10, 8), dtype=np.uint8)
    voxels[2:7, 3:9, 1:5] = 1
    label = nib.Nifti1Image(voxels, np.diag([-0.5, 1.0, 2.0, 1.0]))
    other = changed(name, label)
    if name.startswith("field"):
        assert other.shape == (24, 20, 16)
    assert measure_on_reference(other, label, 2)[0]["dice"] == 1.0
    shifted = nib.Nifti1Image(np.roll(voxels, 3, axis=0), label.affine)
    assert measure_on_reference(changed(name, shifted), label, 2)[0]["dice"] == pytest.approx(0.4)


@pytest.mark.parametrize("codes", ["LAS", "PIR"])
def test_larger_voxels_along_each_axis_of_the_patient(volume, codes):
    stored = volume.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(codes))
    )
    other = nib.as_closest_canonical(changed("spacing_150", stored))
    assert np.allclose(other.header.get_zooms(), [0.75, 1.5, 3.0])


#: By these numbers rounding moves voxels on the border outside of another grid.
UNROUND = [[-0.976562, 0, 0, 101.3], [0, -0.7, 0, 87.7], [0, 0, 0.625, -33.1], [0, 0, 0, 1]]


def test_labels_on_the_border_stay_on_another_grid():
    voxels = np.ones((10, 11, 12), dtype=np.uint8)
    label = nib.Nifti1Image(voxels, UNROUND)
    other = Orientation("RAS", labels=None)(MetaTensor(torch.from_numpy(voxels)[None].float(), affine=label.affine))
    larger = Spacing((1.25, 1.25, 1.25))(other)
    for grid in (other, larger):
        assert label_array(carried_to_grid(label, grid.shape[1:], grid.affine.numpy())).all()


def test_an_organ_on_the_border_keeps_its_last_slice_on_larger_voxels():
    # 10 and 16 voxels end where 7 and 11 larger ones do.
    label = nib.Nifti1Image(np.ones((10, 10, 16), dtype=np.uint8), UNROUND)
    larger = changed("spacing_150", label)
    larger = nib.Nifti1Image(np.ones(larger.shape, dtype=np.uint8), larger.affine)
    assert measure_on_reference(larger, label, 2)[0]["dice"] == 1.0


def test_study_measures_draws_and_goes_on(weights, phantom_dir, tmp_path):
    arguments = (str(phantom_dir), str(phantom_dir / "split.json"), str(tmp_path / "study"), inference_configs())
    overrides = {**QUICK, "ckpt_path": str(weights), "trained_spacing": None, "trained_extent": None}
    summary = study_robustness(*arguments, overrides=overrides, changes=["axes_sar", "intensity_10"])
    text = summary.read_text()
    assert [line.split(" | ")[0] for line in text.splitlines()[4:]] == [
        f"| {CHANGES[name][0]}" for name in ("none", "axes_sar", "intensity_10")
    ]
    assert (tmp_path / "study" / "robustness.png").stat().st_size > 1000
    dice = {
        name: pd.read_csv(tmp_path / "study" / f"{name}.csv")["dice"].item()
        for name in ("none", "axes_sar", "intensity_10")
    }
    assert 0 < dice["none"] < 1
    # Inference reorients and standardizes each volume, so neither may matter.
    assert dice["axes_sar"] == pytest.approx(dice["none"], abs=1e-6)
    assert dice["intensity_10"] == pytest.approx(dice["none"], abs=1e-3)

    # A training on other organs, of which inference would warn.
    assert [line.split(" | ")[-1] for line in text.splitlines()[4:]] == ["0 of 1 |"] * 3
    elsewhere = {**overrides, "trained_class_volumes": [[1e6, 2e6]]}
    summary = study_robustness(*arguments[:2], str(tmp_path / "warned"), arguments[3], overrides=elsewhere, changes=[])
    assert summary.read_text().splitlines()[-1].endswith(" | 1 of 1 |")

    # Far larger than the training has it: also where the organ is found first, its user is told to check it.
    larger = {**overrides, "trained_extent": [1, 1, 1], "trained_margin": [100, 100, 100]}
    for number in (0, 1):
        summary = study_robustness(
            *arguments[:2],
            str(tmp_path / f"crop_{number}"),
            arguments[3],
            overrides={**larger, "crop_to_organs": number},
            changes=[],
        )
        assert summary.read_text().splitlines()[-1].endswith(" | 1 of 1 |")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").glob("*.csv")}
    summary = study_robustness(*arguments, overrides=overrides, changes=["axes_sar"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "study").glob("*.csv")} == before
    # What an earlier call has measured stays in the table.
    assert summary.read_text() == text
    # What a device with less memory needs.
    less_memory = {**overrides, "sw_batch_size": 1, "stitching_device": "cpu"}
    study_robustness(*arguments, overrides=less_memory, changes=["none"])
    with assert_refused("holds a study of other seed: choose another"):
        study_robustness(*arguments, overrides=overrides, seed=1)
    with assert_refused("holds a study of other configuration: choose another"):
        study_robustness(*arguments, overrides={**overrides, "overlap": 0.25})
    # Cases of the same names, prepared in another way.
    shutil.copytree(phantom_dir, tmp_path / "again")
    elsewhere = (str(tmp_path / "again"), str(tmp_path / "again" / "split.json"), *arguments[2:])
    with assert_refused("holds a study of other cases: choose another"):
        study_robustness(*elsewhere, overrides=overrides)
    # The same files, written anew.
    image = study_cases(*arguments[:2])[0].image
    times = image.stat()
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with assert_refused("holds a study of other cases: choose another"):
        study_robustness(*arguments, overrides=overrides)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    with assert_refused("^seed must be a whole number from 0 to 4294967295, got 4294967296"):
        study_robustness(*arguments[:2], str(tmp_path / "seed"), arguments[3], overrides=overrides, seed=2**32)
    assert not (tmp_path / "seed").exists()
    other_weights = tmp_path / "other.pt"
    torch.save(DualNetwork().state_dict(), other_weights)
    with assert_refused("holds a study of other weights: choose another"):
        study_robustness(*arguments, overrides={**overrides, "ckpt_path": str(other_weights)})
    table = pd.read_csv(tmp_path / "study" / "none.csv")
    table["case"] = "another"
    table.to_csv(tmp_path / "study" / "none.csv", index=False)
    with assert_refused("none.csv is of other cases"):
        study_robustness(*arguments, overrides=overrides, changes=["axes_sar"])


def test_cases_may_be_called_by_numbers_and_lie_in_folders(weights, phantom_dir, tmp_path):
    split = json.loads((phantom_dir / "split.json").read_text())
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind / "a").mkdir(parents=True)
        for name in ("001", "a/001"):
            shutil.copy(phantom_dir / kind / f"{split['test'][0]}.nii.gz", tmp_path / "data" / kind / f"{name}.nii.gz")
    lists = {"labeled": [], "unlabeled": [], "validation": [], "test": ["001", "a/001"]}
    (tmp_path / "split.json").write_text(json.dumps({**split, **lists, "cases_hash": hash_cases(lists)}))
    arguments = (str(tmp_path / "data"), str(tmp_path / "split.json"), str(tmp_path / "study"), inference_configs())
    for _ in range(2):
        study_robustness(*arguments, overrides={**QUICK, "ckpt_path": str(weights)}, changes=["none"])
    table = pd.read_csv(tmp_path / "study" / "none.csv", dtype=str)
    assert table["case"].tolist() == ["001", "a/001"]
    assert table["dice"].nunique() == 1


@pytest.mark.parametrize("name", ["bias_field", "spacing_150"])
def test_a_stopped_study_segments_what_is_left(name, weights, phantom_dir, tmp_path):
    split = json.loads((phantom_dir / "split.json").read_text())
    lists = {"labeled": [], "unlabeled": [], "validation": [], "test": ["phantom_000", "phantom_001"]}
    (tmp_path / "split.json").write_text(json.dumps({**split, **lists, "cases_hash": hash_cases(lists)}))
    arguments = (str(phantom_dir), str(tmp_path / "split.json"), str(tmp_path / "study"), inference_configs())
    overrides = {**QUICK, "ckpt_path": str(weights)}
    study_robustness(*arguments, overrides=overrides, changes=[name])
    folder = tmp_path / "study" / name
    table = (tmp_path / "study" / f"{name}.csv").read_bytes()
    kept, cut = (folder / f"maps/phantom_{number}_seg.nii.gz" for number in ("000", "001"))
    before, whole = kept.stat().st_mtime_ns, cut.read_bytes()
    volumes = [nib.load(path).get_fdata() for path in sorted((folder / "volumes").iterdir())]
    # Stopped while it wrote a map.
    cut.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "study" / f"{name}.csv").unlink()
    study_robustness(*arguments, overrides=overrides, changes=[name])
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "study" / f"{name}.csv").read_bytes() == table
    for path, expected in zip(sorted((folder / "volumes").iterdir()), volumes, strict=True):
        assert np.array_equal(nib.load(path).get_fdata(), expected)


def test_two_studies_in_one_folder_are_kept_apart(weights, phantom_dir, tmp_path):
    cases = study_cases(str(phantom_dir), str(phantom_dir / "split.json"))
    overrides = {**QUICK, "ckpt_path": str(weights)}
    given = {"cases": cases, "config_file": inference_configs(), "overrides": overrides, "arguments": ()}
    claim = functools.partial(claimed_study, **given)
    with claim(tmp_path / "study", seed=1):
        with assert_refused("another process is at work on"), claim(tmp_path / "study", seed=2):
            pass
        assert json.loads((tmp_path / "study/study.json").read_text())["seed"] == 1
    # Nothing was made of it.
    with claim(tmp_path / "study", seed=2) as study:
        assert json.loads((study.folder / "study.json").read_text())["seed"] == 2
    # No trace in a folder of something else.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with assert_refused("holds files that are not of this study"), claim(tmp_path / "mine", seed=1):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("overwrite", "--overwrite must not be given: a study sets"),
        ("dataset_dir", "--dataset_dir must not be given"),
        ("skip_existing", "--skip_existing must not be given"),
        ("save_uncertainty", "--save_uncertainty must not be given"),
    ],
)
def test_what_a_study_sets_itself_is_refused(option, message, phantom_dir, tmp_path):
    arguments = (str(phantom_dir), str(phantom_dir / "split.json"), str(tmp_path / "study"), inference_configs())
    with assert_refused(message):
        study_robustness(*arguments, overrides={option: True})
    assert not (tmp_path / "study").exists()


def test_files_of_the_user_are_left_alone(phantom_dir, tmp_path):
    (tmp_path / "none.csv").write_text("mine")
    arguments = (str(phantom_dir), str(phantom_dir / "split.json"), str(tmp_path), inference_configs())
    with assert_refused("holds files that are not of this study"):
        study_robustness(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["none.csv"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch_sizee": 5}, "--patch_sizee is no key .*Did you mean --patch_size"),
        ({"num_case": 5}, "--num_case is no key .*Did you mean --num_cases"),
        ({"dat": "left_atrium"}, "--dat is no key .*Did you mean --data"),
        ({"dicom_segg": True}, r"--dicom_segg is no key of the configuration \[[^\]]*\]\.$"),
        ({"ckpt_path": "none.pt"}, "ckpt_path none.pt does not exist"),
        ({"overlap": 2}, "overlap must be a number of at least 0 and below 1, got 2"),
        ({"num_classes": 3}, r"ckpt_path .*model\.pt does not fit: .*; check num_classes and in_channels"),
    ],
)
def test_a_mistake_claims_no_folder(overrides, message, weights, phantom_dir, tmp_path):
    arguments = (str(phantom_dir), str(phantom_dir / "split.json"), str(tmp_path / "study"), inference_configs())
    with assert_refused(message):
        study_robustness(*arguments, overrides={"ckpt_path": str(weights), **overrides})
    assert not (tmp_path / "study").exists()


def test_volumes_of_several_channels_are_refused(phantom_dir, tmp_path):
    torch.save(DualNetwork(in_channels=2).state_dict(), tmp_path / "model.pt")
    with assert_refused("in_channels must be 1, as the changes are of volumes with one channel, got 2"):
        study_robustness(
            str(phantom_dir),
            str(phantom_dir / "split.json"),
            str(tmp_path / "study"),
            inference_configs(),
            overrides={**QUICK, "ckpt_path": str(tmp_path / "model.pt"), "in_channels": 2},
        )


def test_references_are_checked_before_the_networks_and_a_refused_study_is_begun_anew(weights, phantom_dir, tmp_path):
    data = shutil.copytree(phantom_dir, tmp_path / "data")
    label = study_cases(str(data), str(data / "split.json"))[-1].label
    right = label.read_bytes()
    other = nib.load(label)
    nib.save(nib.Nifti1Image(np.full(other.shape, 255, dtype=np.uint8), other.affine), label)
    arguments = (str(data), str(data / "split.json"), str(tmp_path / "study"), inference_configs())
    with assert_refused(label.name):
        study_robustness(*arguments, overrides={**QUICK, "ckpt_path": str(weights)}, changes=["none"])
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == [".study.lock", "study.json"]
    label.write_bytes(right)
    # Of a study that has made nothing, nothing stands in the way of another.
    with assert_refused("is no key"):
        study_robustness(*arguments, overrides={"patch_sizee": 1})
    study_robustness(*arguments, overrides={**QUICK, "ckpt_path": str(weights)}, changes=["none"], seed=3)


def test_weights_of_a_run_are_studied_by_its_file(weights, phantom_dir, tmp_path):
    own = {"_desc_": "a run", "network_def#dropout": 0.1, "ckpt_path": str(weights), "spacing": None}
    (tmp_path / "inference.json").write_text(json.dumps({**own, "patch_size": [32, 32, 32], "overlap": 0}))
    words = f"--dataset_dir {phantom_dir} --split_file {phantom_dir / 'split.json'} --num_cases 1 --device cpu"
    words += f" --config_file {inference_configs()[0]},{tmp_path / 'inference.json'}"
    main(f"robustness {words} --changes none --output_dir {tmp_path / 'r'}".split())
    assert len(pd.read_csv(tmp_path / "r" / "none.csv")) == 1
    main(f"uncertainty {words} --output_dir {tmp_path / 'u'}".split())
    assert (tmp_path / "u" / "uncertainty.md").is_file()


def test_mistakes_cost_one_line(phantom_dir, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            f"robustness --dataset_dir {phantom_dir} --split_file {phantom_dir / 'split.json'} "
            f"--output_dir {tmp_path / 'study'} --changes nois".split()
        )
    assert capsys.readouterr().err.startswith("error: changes must be of none, noise_10, ")
    assert not (tmp_path / "study").exists()
