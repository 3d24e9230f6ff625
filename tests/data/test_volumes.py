# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Volumes are read one by one, a bad one is reported and passed over."""

from __future__ import annotations

import logging
from contextlib import nullcontext
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
from nifti_files import save

from scripts.data.volumes import ReadableVolumes, segment_volumes
from scripts.errors import BundleError

INFERENCE = Path(__file__).resolve().parents[2] / "configs" / "inference.json"


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


COLORS = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
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
    "folder.nii": lambda path: path.mkdir(),
    "colors.nii": lambda path: nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), COLORS), np.eye(4)), path),
    "constant.nii": lambda path: save(path, np.full((6, 5, 4), 7.0)),
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
        ("colors.nii", f"it must hold numbers, got {COLORS}."),
    ],
)
def test_reasons(tmp_path, caplog, name, reason):
    BAD[name](tmp_path / name)
    volumes = ReadableVolumes([{"image": str(tmp_path / name)}], plain_preprocessing(), in_channels=1)
    assert list(volumes) == []
    assert error_lines(caplog) == [f"{tmp_path / name} cannot be segmented: {reason}"]


def test_a_wrong_checksum_is_told_as_damage(tmp_path, caplog):
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(40, 40, 40)))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert list(ReadableVolumes([{"image": str(path)}], plain_preprocessing(), in_channels=1)) == []
    (line,) = error_lines(caplog)
    assert line.startswith(f"{path} cannot be segmented: it cannot be read to its end, the file is damaged: CRC check")


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


def test_channels_are_checked_on_request_only(tmp_path, caplog):
    BAD["series.nii"](tmp_path / "series.nii")
    data = [{"image": str(tmp_path / "series.nii")}]
    for in_channels in (None, 3):
        (volume,) = ReadableVolumes(data, plain_preprocessing(), in_channels=in_channels)
        assert volume["image"].shape == (3, 6, 5, 4)
    assert error_lines(caplog) == []


def test_an_error_without_words_is_named_by_its_kind(tmp_path, caplog):
    def fail(_):
        raise MemoryError

    path = save(tmp_path / "a.nii")
    assert list(ReadableVolumes([{"image": str(path)}], fail)) == []
    assert error_lines(caplog) == [f"{path} cannot be segmented: MemoryError"]


def test_an_interruption_is_no_bad_volume(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ReadableVolumes([{"image": str(save(tmp_path / "a.nii"))}], interrupt))


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
    data = [{"image": torch.arange(8.0).reshape(1, 2, 2, 2)}]
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
        add_event_handler=lambda *_: nullcontext(),
        run=lambda: order.extend(type(step).__name__ for step in postprocessing.transforms),
    )
    postprocessing = Compose([Identityd("pred"), SaveImaged("pred", output_dir=str(tmp_path))])
    segment_volumes(evaluator, [{"image": "a.nii"}], Compose(), postprocessing, in_channels=1, num_classes=2)
    assert order == ["Identityd", "WholeFiles"]
