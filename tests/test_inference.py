# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, needs_bfloat16
from monai.bundle import ConfigParser
from scipy import ndimage

from scripts.networks.dual_network import DualNetwork


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of an untrained network: they segment something, which is enough here."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(DualNetwork().state_dict(), path)
    return path


def segment(make_workflow, weights, dataset_dir, output_dir, **overrides):
    arguments = {
        "dataset_dir": str(dataset_dir),
        "output_dir": str(output_dir),
        "ckpt_path": str(weights),
        "patch_size": [32, 32, 32],
        "overlap": 0.25,
        **overrides,
    }
    workflow = make_workflow("inference", workflow_type="infer", **arguments)
    workflow.initialize()
    workflow.run()


@pytest.mark.parametrize("spacing", [None, [1.7, 1.3, 1.5]], ids=["own spacing", "resampled"])
def test_label_maps_have_the_geometry_of_their_files(spacing, weights, phantom_dir, tmp_path, make_workflow):
    segment(make_workflow, weights, phantom_dir / "images", tmp_path, spacing=spacing)
    files = sorted((phantom_dir / "images").iterdir())
    assert len(files) == 6
    for file in files:
        image = nib.load(file)
        label = nib.load(tmp_path / f"{file.name.removesuffix('.nii.gz')}_seg.nii.gz")
        assert label.get_data_dtype() == np.uint8
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
        assert set(np.unique(np.asanyarray(label.dataobj))) <= {0, 1}


def test_orientation_of_a_file_does_not_move_its_label(weights, phantom_dir, tmp_path, make_workflow):
    image = nib.load(phantom_dir / "images/phantom_000.nii.gz")
    (tmp_path / "in").mkdir()
    nib.save(nib.as_closest_canonical(image), tmp_path / "in/ras.nii.gz")
    turned = nib.orientations.axcodes2ornt("PIL")
    canonical = nib.as_closest_canonical(image)
    nib.save(
        canonical.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(canonical.affine), turned)),
        tmp_path / "in/pil.nii.gz",
    )
    segment(make_workflow, weights, tmp_path / "in", tmp_path / "out")
    ras = nib.load(tmp_path / "out/ras_seg.nii.gz")
    pil = nib.as_closest_canonical(nib.load(tmp_path / "out/pil_seg.nii.gz"))
    np.testing.assert_array_equal(np.asanyarray(ras.dataobj), np.asanyarray(pil.dataobj))
    assert 0 < np.asanyarray(ras.dataobj).mean() < 1


def test_what_is_seen_at_another_spacing_comes_back_to_its_place(tmp_path, make_workflow):
    # A network that sees foreground where the intensity is above 0, and a ball whose intensity falls with the radius.
    torch.save({"weight": torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1), "bias": torch.zeros(2)}, tmp_path / "model.pt")
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    affine = np.array([[0, 0, 2.5, 7], [-0.8, 0, 0, -3], [0, -1, 0, 40], [0, 0, 0, 1]], dtype=float)
    assert "".join(nib.aff2axcodes(affine)) == "PIR"
    places = np.stack(np.meshgrid(*map(np.arange, (50, 44, 20)), indexing="ij"), axis=-1)
    distance = np.linalg.norm((places - (22, 25, 8)) * (0.8, 1.0, 2.5), axis=-1)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image((14 - distance).astype(np.float32), affine), tmp_path / "in" / "ball.nii.gz")
    segment(
        make_workflow,
        tmp_path / "model.pt",
        tmp_path / "in",
        tmp_path / "out",
        **{"network_def": network, "normalize#_disabled_": True, "spacing": [1.7, 1.3, 1.5]},
    )
    label = nib.load(tmp_path / "out" / "ball_seg.nii.gz")
    found, expected = np.asanyarray(label.dataobj) == 1, distance < 14
    np.testing.assert_allclose(label.affine, affine, atol=1e-4)
    dice = 2 * (found & expected).sum() / (found.sum() + expected.sum())
    # The nearest voxel of the coarser grid would give less.
    assert dice > 0.99


def test_a_segmentation_unlike_those_of_the_training_is_warned_of(
    weights, phantom_dir, tmp_path, make_workflow, caplog
):
    volume = phantom_dir / "images/phantom_000.nii.gz"

    def warned(output_dir, **overrides):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="scripts.data.volumes"):
            segment(make_workflow, weights, volume, tmp_path / output_dir, trained_extent=None, **overrides)
        return [record.getMessage() for record in caplog.records if record.name == "scripts.data.volumes"]

    # Other weights than those of the bundle: nothing is known of their training.
    assert warned("unknown", spacing=None, trained_spacing=None) == []
    label = nib.load(tmp_path / "unknown/phantom_000_seg.nii.gz")
    found = float(np.count_nonzero(np.asanyarray(label.dataobj)) * np.prod(label.header.get_zooms()) / 1000)
    options = {"spacing": None, "trained_spacing": None}
    assert warned("within", trained_class_volumes=[[0.9 * found, 1.1 * found]], **options) == []
    assert warned("outside", trained_class_volumes=[[2 * found, 3 * found]], **options) == [
        f"{volume}: class 1 fills {found:.4g} ml, in the labels of the training {2 * found:.4g} to {3 * found:.4g} ml: "
        "check the result."
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[33.5, 126.2]]),
        ({"ckpt_path": str(ROOT / "configs/../models/model.pt")}, [[33.5, 126.2]]),
        ({"ckpt_path": str(ROOT / "output/model.pt")}, None),
        # An exported model, or none.
        ({"load_pretrain": "false", "ckpt_path": None}, None),
        ({"num_classes": 3}, None),
    ],
)
def test_class_volumes_of_the_shipped_training_are_for_its_weights_alone(options, expected):
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/inference.json"))
    parser.update({"bundle_root": str(ROOT), **options})
    assert parser.get_parsed_content("trained_class_volumes") == expected


def test_the_margin_of_the_shipped_training_is_for_its_weights_alone():
    for options, expected in (
        ({}, [10, 16, 8.75]),
        ({"num_classes": 3, "ckpt_path": str(ROOT / "output/model.pt")}, None),
        ({"load_pretrain": "false", "ckpt_path": None}, None),
    ):
        parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/inference.json"))
        parser.update({"bundle_root": str(ROOT), **options})
        assert parser.get_parsed_content("trained_margin") == expected


def test_one_network_has_no_map_of_uncertainty(weights, phantom_dir, tmp_path, make_workflow):
    network = {"_target_": "scripts.networks.single_network.SingleNetwork", "architecture": "vnet"}
    with assert_refused("save_uncertainty needs the two networks of DualNetwork"):
        segment(
            make_workflow,
            weights,
            phantom_dir / "images",
            tmp_path / "out",
            network_def={**network, "in_channels": 1, "out_channels": 2},
            save_uncertainty=True,
        )
    assert not (tmp_path / "out").exists()


def test_largest_component_is_kept_by_option(weights, phantom_dir, tmp_path, make_workflow):
    file = phantom_dir / "images/phantom_001.nii.gz"
    segment(make_workflow, weights, file, tmp_path / "all")
    segment(make_workflow, weights, file, tmp_path / "one", largest_component="true")
    before, after = (
        np.asanyarray(nib.load(tmp_path / name / "phantom_001_seg.nii.gz").dataobj) for name in ("all", "one")
    )
    whole = ndimage.generate_binary_structure(3, 3)
    assert ndimage.label(before, whole)[1] > 1
    assert ndimage.label(after, whole)[1] == 1
    sizes = np.bincount(ndimage.label(before, whole)[0].ravel())[1:]
    assert np.count_nonzero(after) == sizes.max()


def test_views_of_a_volume_are_averaged_by_option(weights, phantom_dir, tmp_path, make_workflow):
    file = phantom_dir / "images/phantom_001.nii.gz"
    views = {"none": [], "same": [{"turn": [0, 0, 0]}], "turned": [{"turn": [0, 0, 0.25]}, {"size": 1.25}]}
    for name, value in views.items():
        options = {"test_time_views": value, "save_probabilities": True, "save_uncertainty": True}
        segment(make_workflow, weights, file, tmp_path / name, **options)
    for kind in ("probabilities", "uncertainty"):
        none, same, turned = (
            np.asanyarray(nib.load(tmp_path / name / f"phantom_001_{kind}.nii.gz").dataobj) for name in views
        )
        np.testing.assert_allclose(same, none, atol=1e-4)
        assert 0.001 < np.abs(turned - none).max() < 1
        assert turned.shape == none.shape


def test_the_organ_of_a_large_scan_is_cropped_to_by_option(tmp_path, make_workflow, caplog):
    # A network that sees foreground far above the mean of what was normalized together.
    state = {"weight": torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1), "bias": torch.tensor([2.2, -2.2])}
    torch.save(state, tmp_path / "w.pt")
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    affine = np.array([[0, 0, 2.5, 7], [-0.8, 0, 0, -3], [0, -1, 0, 40], [0, 0, 0, 1]], dtype=float)
    places = np.stack(np.meshgrid(*map(np.arange, (110, 84, 40)), indexing="ij"), axis=-1)
    expected = np.linalg.norm((places - (32, 25, 9)) * (0.8, 1.0, 2.5), axis=-1) < 10
    image = np.random.RandomState(0).normal(0, 1, expected.shape).astype(np.float32) + 100 * expected
    # So bright that the ball is not above the mean of the whole scan.
    image[70:] += 5000
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "ball.nii.gz")
    options = {"network_def": network, "spacing": None, "trained_margin": [6, 6, 6], "trained_spacing": None}

    def dice(name, **overrides):
        segment(make_workflow, tmp_path / "w.pt", tmp_path / "ball.nii.gz", tmp_path / name, **{**options, **overrides})
        found = np.asanyarray(nib.load(tmp_path / name / "ball_seg.nii.gz").dataobj) > 0
        return 2 * (found & expected).sum() / (found.sum() + expected.sum())

    assert dice("as_it_is", trained_extent=[60, 60, 60]) == 0
    assert "have the organ found first by crop_to_organs 1" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scripts.organ_inferer"):
        # 100 mm along x are as large as in the training.
        assert dice("as_large", crop_to_organs=1, trained_extent=[100, 100, 100]) == 0
        assert "cropped to" not in caplog.text
        assert dice("cropped", crop_to_organs=1, trained_extent=[60, 60, 60]) > 0.99
        # Gray values that nothing normalizes by the volume: the block is the largest that is far above.
        for name, normalize in (("off", {"_disabled_": True}), ("given", {"subtrahend": [0.0], "divisor": [1.0]})):
            options_of = {f"normalize#{key}": value for key, value in normalize.items()}
            assert dice(name, crop_to_organs=1, trained_extent=[60, 60, 60], **options_of) == 0
            label = nib.load(tmp_path / name / "ball_seg.nii.gz")
            np.testing.assert_allclose(label.affine, affine, atol=1e-4)
            assert np.asanyarray(label.dataobj)[70:].all()
        # It is not told to do what it does.
        assert "crop_to_organs 1" not in caplog.text
    assert "of 40x110x84" in caplog.text
    with assert_refused("crop_to_organs needs trained_margin in mm"):
        dice("refused", crop_to_organs=1, trained_extent=[60, 60, 60], trained_margin=None)


def test_views_in_other_sizes_and_whole_volumes_are_refused(weights, phantom_dir, tmp_path, make_workflow):
    options = {"whole_volume": True, "test_time_views": [{"size": 0.9}]}
    with assert_refused("test_time_views must have no size where whole_volume is true, got"):
        segment(make_workflow, weights, phantom_dir / "images", tmp_path / "out", **options)


def test_whole_volume_is_one_pass_of_the_network(weights, phantom_dir, tmp_path, make_workflow):
    image = nib.load(phantom_dir / "images/phantom_001.nii.gz")
    volume = np.asanyarray(nib.as_closest_canonical(image).dataobj)[:29, :, :27].copy()
    file = tmp_path / "odd.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.eye(4)), file)
    segment(make_workflow, weights, file, tmp_path / "out", spacing=None, whole_volume="true", save_probabilities=True)
    network = DualNetwork().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    values = torch.as_tensor(volume).float()
    image = (values - values.mean()) / values.std(correction=0)
    # Sizes that are not divisible by 16 are padded with zeros on both sides.
    sizes = [-(-size // 16) * 16 for size in image.shape]
    before = [(size - length) // 2 for size, length in zip(sizes, image.shape, strict=True)]
    inside = tuple(slice(start, start + length) for start, length in zip(before, image.shape, strict=True))
    padded = torch.zeros(1, 1, *sizes)
    padded[(0, 0, *inside)] = image
    with torch.inference_mode():
        expected = network(padded)[0][(slice(None), *inside)].permute(1, 2, 3, 0)
    found = np.asanyarray(nib.load(tmp_path / "out/odd_probabilities.nii.gz").dataobj)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_empty_windows_are_skipped_by_option(weights, tmp_path, make_workflow):
    volume = np.zeros((64, 32, 32), np.float32)
    volume[32:] = np.random.default_rng(0).normal(size=(32, 32, 32))
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "half.nii.gz")
    options = {"spacing": None, "overlap": 0.0}
    for name in ("false", "true"):
        segment(make_workflow, weights, tmp_path / "half.nii.gz", tmp_path / name, skip_empty_windows=name, **options)
    computed, skipped = (
        np.asanyarray(nib.load(tmp_path / name / "half_seg.nii.gz").dataobj) for name in ("false", "true")
    )
    np.testing.assert_array_equal(skipped[32:], computed[32:])
    assert computed[:32].any()
    assert not skipped[:32].any()


def test_options_that_save_memory_do_not_change_the_label_map(weights, phantom_dir, tmp_path, make_workflow):
    maps = {}
    for name, options in {"default": {}, "batch": {"sw_batch_size": 3}, "cpu": {"stitching_device": "cpu"}}.items():
        options = {**options, "device": "cpu", "spacing": None, "save_probabilities": True}
        segment(make_workflow, weights, phantom_dir / "images/phantom_001.nii.gz", tmp_path / name, **options)
        maps[name] = [
            np.asanyarray(nib.load(tmp_path / name / f"phantom_001_{kind}.nii.gz").dataobj)
            for kind in ("seg", "probabilities")
        ]
    label, probabilities = maps["default"]
    assert set(np.unique(label)) == {0, 1}
    np.testing.assert_array_equal(maps["cpu"][0], label)
    # Kernels round in another order for another number of windows, which an untrained network near one half may show.
    np.testing.assert_allclose(maps["batch"][1], probabilities, rtol=0, atol=1e-5)
    clear = np.abs(probabilities[..., 1] - 0.5) > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(maps["batch"][0][clear], label[clear])


@needs_bfloat16
def test_precision_is_that_of_the_network_by_option(weights, phantom_dir, tmp_path, make_workflow):
    maps = {}
    for name, options in {"default": {}, "float32": {"precision": "float32"}, "auto": {"precision": "auto"}}.items():
        options = {**options, "device": "cpu", "spacing": None, "save_probabilities": True}
        segment(make_workflow, weights, phantom_dir / "images/phantom_001.nii.gz", tmp_path / name, **options)
        maps[name] = np.asanyarray(nib.load(tmp_path / name / "phantom_001_probabilities.nii.gz").dataobj)
    np.testing.assert_array_equal(maps["default"], maps["float32"])
    assert 0 < np.abs(maps["auto"] - maps["float32"]).max() < 0.1


@pytest.mark.parametrize(("options", "kept"), [({}, 1), ({"keep_memory": "false"}, 0)])
def test_freed_memory_is_kept_by_option(weights, phantom_dir, tmp_path, make_workflow, monkeypatch, options, kept):
    calls = []
    monkeypatch.setattr("scripts.memory.keep_freed_memory", lambda: calls.append(1))
    options = {**options, "device": "cpu"}
    segment(make_workflow, weights, phantom_dir / "images/phantom_001.nii.gz", tmp_path / "out", **options)
    assert len(calls) == kept


def test_probabilities_and_uncertainty_are_written_by_option(weights, phantom_dir, tmp_path, make_workflow):
    file = phantom_dir / "images/phantom_001.nii.gz"
    segment(make_workflow, weights, file, tmp_path, save_probabilities=True, save_uncertainty=True)
    label, probabilities, uncertainty = (
        np.asanyarray(nib.load(tmp_path / f"phantom_001_{name}.nii.gz").dataobj)
        for name in ("seg", "probabilities", "uncertainty")
    )
    assert probabilities.shape == (*label.shape, 2)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-4)
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), label)
    assert uncertainty.shape == label.shape
    assert uncertainty.min() >= 0
    assert 0 < uncertainty.max() <= 1


def test_label_maps_alone_are_written_by_default(weights, phantom_dir, tmp_path, make_workflow):
    segment(make_workflow, weights, phantom_dir / "images/phantom_001.nii.gz", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["phantom_001_seg.nii.gz"]
    with assert_refused("already holds 1 of the files to write, such as phantom_001_seg"):
        segment(make_workflow, weights, phantom_dir / "images", tmp_path)
    segment(make_workflow, weights, phantom_dir / "images/phantom_001.nii.gz", tmp_path, overwrite="true")


def test_options_of_the_command_line_may_be_texts(weights, phantom_dir, tmp_path, make_workflow):
    file = phantom_dir / "images/phantom_001.nii.gz"
    options = {"save_probabilities": "false", "save_uncertainty": "true", "precision": "float32", "output_ext": ".nii"}
    segment(make_workflow, weights, file, tmp_path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phantom_001_seg.nii", "phantom_001_uncertainty.nii"]
    (tmp_path / "phantom_001_seg.nii").unlink()
    with assert_refused("already holds 1 of the files to write, such as phantom_001_uncertainty.nii:"):
        segment(make_workflow, weights, file, tmp_path, **options)


def test_a_stopped_inference_goes_on_with_what_is_not_finished(weights, phantom_dir, tmp_path, make_workflow):
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes((phantom_dir / "images/phantom_001.nii.gz").read_bytes())
    out = tmp_path / "out"
    segment(make_workflow, weights, tmp_path / "in", out)
    maps = [out / f"{name}_seg.nii.gz" for name in "abc"]
    whole = maps[1].read_bytes()
    # One is missing, one was being written.
    maps[0].unlink()
    maps[1].write_bytes(whole[: len(whole) // 2])
    before = maps[2].stat().st_mtime_ns
    with assert_refused("go on with the others by --skip_existing true"):
        segment(make_workflow, weights, tmp_path / "in", out)
    with assert_refused("overwrite and skip_existing exclude each other"):
        segment(make_workflow, weights, tmp_path / "in", out, overwrite=True, skip_existing=True)
    segment(make_workflow, weights, tmp_path / "in", out, skip_existing="true")
    expected = np.asanyarray(nib.load(maps[2]).dataobj)
    for path in maps[:2]:
        assert np.array_equal(np.asanyarray(nib.load(path).dataobj), expected)
    assert maps[2].stat().st_mtime_ns == before
    # All are there: nothing is left to do.
    segment(make_workflow, weights, tmp_path / "in", out, skip_existing=True)
    assert maps[2].stat().st_mtime_ns == before


@pytest.mark.parametrize("load_pretrain", [False, "false"])
def test_without_weights_no_file_of_them_is_asked_for(load_pretrain, phantom_dir, tmp_path, make_workflow):
    file = phantom_dir / "images/phantom_001.nii.gz"
    segment(make_workflow, tmp_path / "none.pt", file, tmp_path, load_pretrain=load_pretrain)
    assert (tmp_path / "phantom_001_seg.nii.gz").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_postfix": ""}, "output_postfix must be a string"),
        ({"output_postfix": "uncertainty"}, "output_postfix must not be probabilities or uncertainty"),
        ({"output_ext": ".png"}, "output_ext must be .nii.gz or .nii, got '.png'"),
        ({"save_uncertainty": "perhaps"}, "save_uncertainty must be true or false, got 'perhaps'"),
        ({}, "output_dir must be another folder than that of the volumes"),
    ],
)
def test_volumes_are_never_replaced(options, message, phantom_dir, tmp_path, make_workflow):
    volume = tmp_path / "a.nii.gz"
    volume.write_bytes((phantom_dir / "images/phantom_000.nii.gz").read_bytes())
    before = volume.read_bytes()
    # The weights do not exist: the options are looked at first.
    with assert_refused(message):
        segment(make_workflow, "none.pt", tmp_path, tmp_path, overwrite=True, **options)
    assert volume.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_weights_of_another_number_of_classes_are_refused(weights, phantom_dir, tmp_path, make_workflow):
    with assert_refused("check num_classes and in_channels"):
        segment(make_workflow, weights, phantom_dir / "images", tmp_path, num_classes=3)


def test_bad_files_cost_a_line_each_and_the_exit_code(weights, phantom_dir, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = (phantom_dir / "images/phantom_000.nii.gz").read_bytes()
    (folder / "good ä.nii.gz").write_bytes(good)
    (folder / "truncated.nii.gz").write_bytes(good[: len(good) // 2])
    (folder / "text.nii").write_text("no image")
    nib.save(nib.Nifti1Image(np.zeros((8, 8), np.float32), np.eye(4)), folder / "flat.nii.gz")
    hollow = np.ones((32, 32, 32), np.float32)
    hollow[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(hollow, np.eye(4)), folder / "hollow.nii.gz")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(ROOT / "configs/inference.json")]
    command += ["--dataset_dir", str(folder), "--output_dir", str(tmp_path / "out"), "--ckpt_path", str(weights)]
    command += ["--patch_size", "[32,32,32]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in output
    for name in ("truncated.nii.gz", "text.nii", "flat.nii.gz", "hollow.nii.gz"):
        lines = [line for line in output.splitlines() if name in line and "cannot be segmented" in line]
        assert len(lines) == 1, output
    assert "error: 4 of 5 volumes could not be segmented" in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good ä_seg.nii.gz"]


def test_mistakes_of_the_command_line_cost_one_line(phantom_dir, tmp_path):
    def call(*words):
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(ROOT / "configs/inference.json")]
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        return done.stderr.strip().splitlines()[-1]

    assert call("--dataset_dri", "x").endswith("Did you mean --dataset_dir?")
    places = ("--dataset_dir", str(phantom_dir / "images"), "--output_dir", "out")
    assert call(*places, "--ckpt_path", "nothing.pt").startswith("error: ckpt_path nothing.pt does not exist")
    assert call(*places, "--output_postfix", "''").startswith("error: output_postfix must be a string of letters")
    assert call(*places, "--save_uncertainty", "perhaps").endswith("must be true or false, got 'perhaps'.")
