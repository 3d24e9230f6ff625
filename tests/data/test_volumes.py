# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Volumes of a folder: listed, read one by one, a bad one reported and passed over."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.transforms import Compose, EnsureChannelFirstd, Identityd, LoadImaged, SaveImaged
from nibabel.orientations import axcodes2ornt

from scripts.data.volumes import ReadableVolumes, case_name, check_volumes, segment_volumes, volume_geometry
from scripts.errors import BundleError

INFERENCE = Path(__file__).resolve().parents[2] / "configs" / "inference.json"


def save(path, array=None):
    array = np.random.default_rng(0).normal(size=(6, 5, 4)) if array is None else array
    nib.save(nib.Nifti1Image(np.asarray(array, dtype=np.float32), np.eye(4)), path)
    return path


def make_volumes(folder, *names):
    for name in names:
        save(folder / name)
    return str(folder)


def list_volumes(dataset_dir, output_dir, **options):
    """List volumes as the shipped inference configuration does, and check them."""
    config = ConfigParser(ConfigParser.load_config_file(INFERENCE))
    config["dataset_dir"] = dataset_dir
    datalist = config.get_parsed_content("datalist")
    check_volumes(datalist, dataset_dir, output_dir, **options)
    return datalist


# --- listing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "case"),
    [("la_01.nii.gz", "la_01"), ("la_01.nii", "la_01"), ("a.b.nii.gz", "a.b"), ("x.nii.nii", "x.nii"), ("x.h5", "x")],
)
def test_case_name(name, case):
    assert case_name(Path("/data") / name) == case


def test_volumes_of_a_folder(tmp_path):
    folder = tmp_path / "images"
    (folder / "more.nii").mkdir(parents=True)
    make_volumes(folder, "b.nii.gz", "a.nii", "c.nii.gz", "._a.nii")
    make_volumes(folder / "more.nii", "d.nii")
    (folder / "readme.txt").write_text("no volume")
    assert list_volumes(str(folder), str(tmp_path / "out")) == [
        str(folder / name) for name in ("a.nii", "b.nii.gz", "c.nii.gz")
    ]
    assert not (tmp_path / "out").exists()


def test_one_file(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    assert list_volumes(str(path), str(tmp_path / "out")) == [str(path)]


def test_nothing_to_segment(tmp_path):
    (tmp_path / "readme.txt").write_text("no volume")
    for place in (tmp_path, tmp_path / "readme.txt"):
        with pytest.raises(BundleError, match=rf"dataset_dir {place} holds no volume: files that end in .nii.gz or"):
            list_volumes(str(place), str(tmp_path / "out"))


def test_no_volume_is_left_out_for_its_capitals(tmp_path):
    make_volumes(tmp_path, "a.nii.gz", "b.nii.gz")
    path = (tmp_path / "b.nii.gz").rename(tmp_path / "B.NII.gz")
    (tmp_path / "._c.NII").touch()
    for place in (tmp_path, path):
        with pytest.raises(BundleError, match=rf"dataset_dir {place}: B\.NII\.gz would be left out, .*: rename it\."):
            list_volumes(str(place), str(tmp_path / "out"))


def test_missing_folder(tmp_path):
    with pytest.raises(BundleError, match=r"dataset_dir .*/none does not exist: it must be a NIfTI file or a folder"):
        list_volumes(str(tmp_path / "none"), str(tmp_path))


def test_a_list_of_other_files(tmp_path):
    with pytest.raises(BundleError, match=r"datalist must hold paths that end in \.nii\.gz or \.nii, got b\.mha"):
        check_volumes(["a.nii", "b.mha"], str(tmp_path), str(tmp_path / "out"))


def test_two_volumes_of_one_name(tmp_path):
    folder = make_volumes(tmp_path, "a.nii", "a.nii.gz")
    with pytest.raises(BundleError, match=r"a\.nii and a\.nii\.gz would both write a_seg\.nii\.gz: rename one"):
        list_volumes(folder, str(tmp_path / "out"), overwrite=True)


@pytest.mark.parametrize("overwrite", [False, "false"])
def test_label_maps_are_not_overwritten(tmp_path, overwrite):
    folder, output = make_volumes(tmp_path, "a.nii", "b.nii.gz", "c.nii"), tmp_path / "out"
    output.mkdir()
    make_volumes(output, "b_seg.nii.gz", "c_seg.nii.gz", "z_seg.nii.gz")
    with pytest.raises(BundleError) as caught:
        list_volumes(folder, str(output), overwrite=overwrite)
    assert str(caught.value) == (
        f"output_dir {output} already holds 2 of the files to write, such as b_seg.nii.gz: go on with the others by "
        "--skip_existing true, replace them by --overwrite true, or choose another --output_dir."
    )
    # Under another name nothing is lost.
    assert len(list_volumes(folder, str(output), output_postfix="new", overwrite=overwrite)) == 3


@pytest.mark.parametrize("overwrite", [True, "true", "True"])
def test_label_maps_are_overwritten_on_request(tmp_path, overwrite):
    folder, output = make_volumes(tmp_path, "a.nii"), tmp_path / "out"
    output.mkdir()
    make_volumes(output, "a_seg.nii.gz")
    assert len(list_volumes(folder, str(output), overwrite=overwrite)) == 1


def test_other_files_in_the_output_folder_do_not_matter(tmp_path):
    folder, output = make_volumes(tmp_path, "a.nii"), tmp_path / "out"
    output.mkdir()
    for name in ("b_seg.nii.gz", "a_seg.png", "a_seg.nii", "a_probabilities.nii.gz", "a_uncertainty.nii.gz"):
        (output / name).write_text("")
    assert list_volumes(folder, str(output)) == [str(tmp_path / "a.nii")]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a_seg.nii", {"output_ext": ".nii"}),
        ("a_probabilities.nii.gz", {"save_probabilities": True}),
        ("a_uncertainty.nii.gz", {"save_uncertainty": "true"}),
        ("a_uncertainty.nii", {"save_probabilities": True, "save_uncertainty": True, "output_ext": ".nii"}),
    ],
)
def test_every_file_to_write_is_looked_at(tmp_path, name, options):
    folder, output = make_volumes(tmp_path, "a.nii.gz"), tmp_path / "out"
    output.mkdir()
    (output / name).write_text("mine")
    assert len(list_volumes(folder, str(output))) == 1
    with pytest.raises(BundleError, match=f"already holds 1 of the files to write, such as {name}: go on with"):
        list_volumes(folder, str(output), **options)
    assert len(list_volumes(folder, str(output), **options, overwrite=True)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_postfix": ""}, "output_postfix must be a string of letters, digits and any of . _ + -, got ''."),
        ({"output_postfix": 0}, "output_postfix must be a string of letters, digits and any of . _ + -, got 0."),
        ({"output_postfix": None}, "output_postfix must be a string of letters, digits and any of . _ + -, got None."),
        (
            {"output_postfix": "../a"},
            "output_postfix must be a string of letters, digits and any of . _ + -, got '../a'",
        ),
        ({"output_postfix": "probabilities"}, "output_postfix must not be probabilities or uncertainty, the names of"),
        ({"output_postfix": "Uncertainty"}, "of the other maps, got 'Uncertainty'."),
        ({"output_ext": ".mha"}, "output_ext must be .nii.gz or .nii, got '.mha'."),
        ({"output_ext": ""}, "output_ext must be .nii.gz or .nii, got ''."),
        ({"output_ext": "nii"}, "output_ext must be .nii.gz or .nii, got 'nii'."),
        ({"overwrite": "maybe"}, "overwrite must be true or false, got 'maybe'."),
        ({"save_probabilities": 2}, "save_probabilities must be true or false, got 2."),
        ({"save_uncertainty": None}, "save_uncertainty must be true or false, got None."),
    ],
)
def test_options(tmp_path, options, message):
    folder = make_volumes(tmp_path, "a.nii")
    with pytest.raises(BundleError, match=re.escape(message)):
        list_volumes(folder, str(tmp_path / "out"), **{"overwrite": True, **options})


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_folder_of_the_volumes_is_no_output_folder(tmp_path, overwrite):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    make_volumes(folder, "a.nii")
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, folder / "a.nii"):
        for output in (folder, folder / "more" / "..", tmp_path / "link"):
            with pytest.raises(BundleError, match="output_dir must be another folder than that of the volumes, got"):
                list_volumes(str(place), str(output), overwrite=overwrite)
        assert len(list_volumes(str(place), str(folder / "more"), overwrite=overwrite)) == 1


def test_a_link_to_a_volume_is_not_written_through(tmp_path):
    folder, output = make_volumes(tmp_path, "a.nii.gz", "b.nii.gz"), tmp_path / "out"
    output.mkdir()
    (output / "b_seg.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    with pytest.raises(BundleError, match=r"output_dir .*: b_seg\.nii\.gz is a link to one of the volumes"):
        list_volumes(folder, str(output), overwrite=True)


def test_a_file_is_no_output_folder(tmp_path):
    folder = make_volumes(tmp_path, "a.nii")
    with pytest.raises(BundleError, match=r"output_dir must be a folder, got the file .*a\.nii\."):
        list_volumes(folder, str(tmp_path / "a.nii"))


def test_two_volumes_whose_different_maps_share_a_name(tmp_path):
    folder = make_volumes(tmp_path, "a.nii", "a_b.nii")
    options = {"output_postfix": "b_uncertainty", "overwrite": True}
    assert len(list_volumes(folder, str(tmp_path / "out"), **options)) == 2
    with pytest.raises(BundleError, match=r"a\.nii and a_b\.nii would both write a_b_uncertainty\.nii\.gz"):
        list_volumes(folder, str(tmp_path / "out"), **options, save_uncertainty=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def shipped_preprocessing():
    """The preprocessing of the shipped inference configuration."""
    config = ConfigParser({**ConfigParser.load_config_file(INFERENCE), "spacing": None})
    return config.get_parsed_content("preprocessing")


def plain_preprocessing():
    return Compose([LoadImaged("image"), EnsureChannelFirstd("image")])


def truncated(path, kept=0.8):
    save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])


def with_value(value):
    array = np.random.default_rng(0).normal(size=(6, 5, 4))
    array[1, 2, 3] = value
    return array


BAD = {
    "truncated.nii": truncated,
    "header.nii": lambda path: truncated(path, kept=0.2),
    "archive.nii.gz": truncated,
    "text.nii": lambda path: path.write_text("no volume at all\nbut two lines\n"),
    "empty.nii": lambda path: path.write_bytes(b""),
    "text.nii.gz": lambda path: path.write_text("no volume at all"),
    "slice.nii": lambda path: save(path, np.ones((6, 5))),
    "series.nii": lambda path: save(path, np.random.default_rng(0).normal(size=(6, 5, 4, 3))),
    "nan.nii": lambda path: save(path, with_value(np.nan)),
    "infinite.nii": lambda path: save(path, with_value(-np.inf)),
    "missing.nii": lambda path: None,
}


def error_lines(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("preprocessing", [plain_preprocessing, shipped_preprocessing])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_volume_costs_one_line(tmp_path, caplog, preprocessing, name):
    first, bad, last = save(tmp_path / "a.nii"), tmp_path / name, save(tmp_path / "z.nii.gz")
    BAD[name](bad)
    data = [{"image": str(path)} for path in (first, bad, last)]
    volumes = ReadableVolumes(data, preprocessing(), in_channels=1)
    read = list(volumes)
    assert [Path(volume["image"].meta["filename_or_obj"]).name for volume in read] == ["a.nii", "z.nii.gz"]
    assert [tuple(volume["image"].shape) for volume in read] == [(1, 6, 5, 4)] * 2
    (line,) = error_lines(caplog)
    assert line.startswith(f"{bad} cannot be segmented: ")
    assert len(line) > len(f"{bad} cannot be segmented: ")
    assert "\n" not in line
    with pytest.raises(BundleError, match="1 of 3 volumes could not be segmented, see the lines above"):
        volumes.finish()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("slice.nii", "it must be a 3D volume, got shape [6, 5]."),
        ("series.nii", "it must have 1 channel(s), got 3."),
        ("nan.nii", "it holds values that are not finite."),
        ("infinite.nii", "it holds values that are not finite."),
    ],
)
def test_reasons(tmp_path, caplog, name, reason):
    BAD[name](tmp_path / name)
    volumes = ReadableVolumes([{"image": str(tmp_path / name)}], plain_preprocessing(), in_channels=1)
    assert list(volumes) == []
    assert error_lines(caplog) == [f"{tmp_path / name} cannot be segmented: {reason}"]


@pytest.mark.parametrize("axes", ["RAS", "SPL"])
@pytest.mark.parametrize(("thickness", "num_warnings"), [(2.4, 0), (2.6, 1), (1.5, 1)])
def test_voxels_of_other_sizes_than_in_the_training_are_warned_of(tmp_path, caplog, axes, thickness, num_warnings):
    volume = nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 5, 4)), np.diag([1, 1, thickness, 1]))
    path = tmp_path / "a.nii"
    nib.save(volume.as_reoriented(axcodes2ornt(axes)), path)
    data = [{"image": str(path)}]
    with caplog.at_level(logging.WARNING, logger="scripts.data.volumes"):
        assert len(list(ReadableVolumes(data, shipped_preprocessing(), trained_spacing=[1, 1, 2]))) == 1
    warnings = [record.getMessage() for record in caplog.records if record.name == "scripts.data.volumes"]
    expected = f"{path} has voxels of 1x1x{thickness} mm, the weights are for 1x1x2 mm: check the result."
    assert [line for line in warnings if "voxels" in line] == [expected] * num_warnings


@pytest.mark.parametrize("axes", ["RAS", "SPL"])
@pytest.mark.parametrize(("length", "num_warnings"), [(6, 0), (7, 1)])
def test_volumes_far_larger_than_in_the_training_are_warned_of(tmp_path, caplog, axes, length, num_warnings):
    volume = nib.Nifti1Image(np.random.default_rng(0).normal(size=(2, 3, length)), np.diag([2.5, 2, 3, 1]))
    path = tmp_path / "a.nii"
    nib.save(volume.as_reoriented(axcodes2ornt(axes)), path)
    with caplog.at_level(logging.WARNING, logger="scripts.data.volumes"):
        data = [{"image": str(path)}]
        assert len(list(ReadableVolumes(data, shipped_preprocessing(), trained_extent=[4, 20, 12]))) == 1
    warnings = [record.getMessage() for record in caplog.records if record.name == "scripts.data.volumes"]
    expected = f"{path} spans 5x6x21 mm, the weights are for volumes of up to 4x20x12 mm around the organ: "
    assert [line[: len(expected)] for line in warnings if "spans" in line] == [expected] * num_warnings


@pytest.mark.parametrize("axes", ["RAS", "SPL"])
def test_the_volumes_of_a_training_are_measured(tmp_path, axes):
    data = []
    for name, shape, spacing in (("a", (6, 5, 4), [1, 1, 2]), ("b", (4, 5, 6), [1, 1.44, 2])):
        volume = nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([*spacing, 1]))
        nib.save(volume.as_reoriented(axcodes2ornt(axes)), tmp_path / f"{name}.nii")
        data.append({"image" if name == "a" else "unlabeled": str(tmp_path / f"{name}.nii")})
    expected = {"trained_spacing": [1, 1.2, 2], "trained_extent": [6, 7.2, 12]}
    assert volume_geometry([*data, {"image": str(tmp_path / "missing.nii")}]) == expected
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.diag([1, 1, 3.2, 1])), tmp_path / "c.nii")
    wide = volume_geometry([*data, {"image": str(tmp_path / "c.nii")}])
    assert wide == {"trained_spacing": None, "trained_extent": [6, 7.2, 12]}
    assert volume_geometry([]) == {"trained_spacing": None, "trained_extent": None}


def test_geometry_of_a_training_on_boxes_is_that_of_what_it_sees(tmp_path):
    # Voxel axes y, x, z with 3, 2 and 5 mm.
    affine = np.array([[0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((20, 30, 8), np.uint8), affine), tmp_path / "a.nii")
    data = [{"image": str(tmp_path / "a.nii"), "box": [[5, 10, 2], [9, 15, 6]]}]
    assert volume_geometry(data)["trained_extent"] == [60, 60, 40]
    # 5, 4 and 4 voxels of the box, and the margin on both sides, but no more than there is.
    assert volume_geometry(data, box_margin=1)["trained_extent"] == [10 + 4, 12 + 6, 20 + 10]
    assert volume_geometry(data, box_margin=4)["trained_extent"] == [10 + 16, 12 + 24, 40]
    assert volume_geometry(data, box_margin=4, spacing_mm=[1, 1, 1])["trained_extent"] == [18, 20, 28]


def test_of_a_large_pool_some_headers_are_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(nib, "load", lambda path: read.append(path) or nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)))
    assert volume_geometry([{"image": str(number)} for number in range(10000)])["trained_extent"] == [2, 2, 2]
    assert 200 < len(read) <= 250
    assert read[-1] == "9963"


def test_channels_are_checked_on_request_only(tmp_path, caplog):
    BAD["series.nii"](tmp_path / "series.nii")
    data = [{"image": str(tmp_path / "series.nii")}]
    for in_channels in (None, 3):
        (volume,) = ReadableVolumes(data, plain_preprocessing(), in_channels=in_channels)
        assert volume["image"].shape == (3, 6, 5, 4)
    assert error_lines(caplog) == []


def test_an_error_without_words_is_named_by_its_kind(caplog):
    def fail(_):
        raise MemoryError

    assert list(ReadableVolumes([{"image": "a.nii"}], fail)) == []
    assert error_lines(caplog) == ["a.nii cannot be segmented: MemoryError"]


def test_an_interruption_is_no_bad_volume():
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ReadableVolumes([{"image": "a.nii"}], interrupt))


def test_finish_resets(tmp_path):
    good, bad = save(tmp_path / "a.nii"), tmp_path / "none.nii"
    volumes = ReadableVolumes([{"image": str(bad)}, {"image": str(good)}], plain_preprocessing(), in_channels=1)
    volumes.finish()
    for _ in range(2):
        assert len(list(volumes)) == 1
        with pytest.raises(BundleError, match="1 of 2 volumes"):
            volumes.finish()
        volumes.finish()


def test_the_dictionaries_stay_and_no_transform_is_needed():
    data = [{"image": torch.zeros(1, 2, 2, 2)}]
    (volume,) = ReadableVolumes(data)
    assert volume is not data[0]
    assert volume["image"] is data[0]["image"]

    def forget(item):
        return {"image": item.pop("image")}

    list(ReadableVolumes(data, forget))
    assert set(data[0]) == {"image"}


def test_progress_tells_position_and_file(tmp_path, caplog):
    data = [{"image": str(save(tmp_path / name))} for name in ("a.nii", "b.nii")]
    with caplog.at_level(logging.INFO):
        list(ReadableVolumes(data, plain_preprocessing()))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("scripts.")]
    assert len(lines) == 2
    assert lines[0] == f"volume 1 of 2: {data[0]['image']}"
    assert lines[1].startswith(f"volume 2 of 2: {data[1]['image']} (0:00:0")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_share_the_volumes_and_the_count(tmp_path, num_workers):
    names = ["a.nii", "bad_1.nii", "b.nii", "c.nii", "bad_2.nii", "d.nii", "bad_3.nii"]
    for name in names:
        (truncated if name.startswith("bad") else save)(tmp_path / name)
    data = [{"image": str(tmp_path / name)} for name in names]
    volumes = ReadableVolumes(data, plain_preprocessing(), in_channels=1)
    loader = DataLoader(volumes, batch_size=1, num_workers=num_workers)
    read = [Path(name).name for batch in loader for name in batch["image"].meta["filename_or_obj"]]
    assert sorted(read) == ["a.nii", "b.nii", "c.nii", "d.nii"]
    with pytest.raises(BundleError, match="3 of 7 volumes could not be segmented"):
        volumes.finish()
    volumes.finish()


def test_an_inference_writes_whole_files(tmp_path):
    order = []
    evaluator = SimpleNamespace(
        data_loader=SimpleNamespace(num_workers=0),
        state=SimpleNamespace(),
        run=lambda: order.extend(type(step).__name__ for step in postprocessing.transforms),
    )
    postprocessing = Compose([Identityd("pred"), SaveImaged("pred", output_dir=str(tmp_path))])
    segment_volumes(evaluator, [{"image": "a.nii"}], Compose(), postprocessing, in_channels=1)
    assert order == ["Identityd", "WholeFiles"]
