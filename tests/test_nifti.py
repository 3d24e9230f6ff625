# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Volumes are written whole or not at all, in the geometry of their files, and read with one clear error."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import assert_refused
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from scripts.errors import BundleError
from scripts.nifti import WholeFiles, check_file, check_finite, make_nifti, read_nifti, volume_name, write_nifti

AFFINE = np.diag([-2.0, 3.0, 4.0, 1.0])


def make_item(shape, channels=1):
    meta = {"filename_or_obj": "/data/scan.nii.gz", "original_affine": AFFINE, "spatial_shape": np.asarray(shape)}
    voxels = torch.arange(float(channels * np.prod(shape))).reshape(channels, *shape)
    return {"pred": MetaTensor(voxels, affine=torch.tensor(AFFINE), meta=meta)}


def make_transform(folder, **options):
    return WholeFiles(
        SaveImaged(
            "pred", output_dir=str(folder), output_postfix="seg", separate_folder=False, resample=False, **options
        )
    )


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 1), (1, 1, 1)])
def test_a_map_has_the_shape_and_the_geometry_of_its_file(tmp_path, shape, suffix):
    item = make_item(shape)
    assert make_transform(tmp_path, output_ext=suffix, output_dtype=np.uint8)(item).keys() == item.keys()
    (path,) = tmp_path.iterdir()
    assert path.name == f"scan_seg{suffix}"
    volume = nib.load(path)
    assert volume.shape == shape
    assert volume.get_data_dtype() == np.uint8
    assert np.array_equal(volume.affine, AFFINE)
    assert volume.header.get_xyzt_units()[0] == "mm"
    assert [int(volume.header[code]) for code in ("qform_code", "sform_code")] == [1, 1]
    assert np.array_equal(np.asarray(volume.dataobj).ravel(), np.arange(np.prod(shape)))


def test_channels_are_the_last_axis(tmp_path):
    item = make_item((3, 4, 1), channels=2)
    make_transform(tmp_path, output_ext=".nii.gz", output_dtype=np.float32)(item)
    voxels = np.asarray(nib.load(tmp_path / "scan_seg.nii.gz").dataobj)
    assert np.array_equal(np.moveaxis(voxels, -1, 0), item["pred"].numpy())


def test_a_map_that_cannot_be_written_costs_one_line_and_no_file(tmp_path, monkeypatch):
    def fail(volume):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_bytes", fail)
    with assert_refused(r"^a map cannot be written: .*No space left on device: '.*scan_seg\.nii\.gz'$"):
        make_transform(tmp_path, output_ext=".nii.gz")(make_item((3, 4, 5)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "scan_seg.nii.gz").mkdir()
    with assert_refused(r"^a map cannot be written: .*scan_seg\.nii\.gz"):
        make_transform(tmp_path, output_ext=".nii.gz")(make_item((3, 4, 5)))


def test_what_is_written_is_read(tmp_path):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for name in ("a.nii.gz", "folder/a.nii"):
        write_nifti(make_nifti(voxels, AFFINE), tmp_path / name)
        volume = read_nifti(tmp_path / name)
        assert np.array_equal(np.asanyarray(volume.dataobj), voxels)
        assert np.array_equal(volume.affine, AFFINE)
        assert [volume.header[code] for code in ("qform_code", "sform_code", "xyzt_units")] == [1, 1, 2]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_voxels_keep_their_type(dtype, tmp_path):
    write_nifti(make_nifti(np.ones((2, 3, 4), dtype), AFFINE), tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == dtype


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colors_and_complex_numbers_are_refused(tmp_path, dtype):
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), dtype=np.dtype(dtype)), AFFINE), tmp_path / "a.nii.gz")
    with assert_refused(r"^image .*a\.nii\.gz cannot be read as NIfTI: its voxels must be numbers, got "):
        read_nifti(tmp_path / "a.nii.gz", "image")


def test_a_fourth_axis_of_length_one_is_left_out(tmp_path):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1)
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii.gz")
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert (volume.shape, volume.get_data_dtype()) == ((2, 3, 4), np.int16)
    assert np.array_equal(volume.dataobj, voxels[..., 0])
    assert np.array_equal(volume.affine, AFFINE)


@pytest.mark.parametrize(
    ("name", "case"),
    [("la_01.nii.gz", "la_01"), ("la_01.nii", "la_01"), ("a.b.nii.gz", "a.b"), ("x.nii.nii", "x.nii"), ("x.h5", "x")],
)
def test_volume_name(name, case):
    assert volume_name(f"/data/{name}") == case


def flipped(path, folder):
    """Copies of a compressed file, each with one bit flipped."""
    content = bytearray(path.read_bytes())
    for number, position in enumerate(range(12, len(content), max(1, len(content) // 40))):
        content[position] ^= 1
        (folder / f"{number}.nii.gz").write_bytes(content)
        content[position] ^= 1
        yield folder / f"{number}.nii.gz"


def test_a_flipped_bit_is_found(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 1000, size=(8, 7, 6)).astype(np.int16)
    good = tmp_path / "good.nii.gz"
    write_nifti(make_nifti(voxels, AFFINE), good)
    check_file(good, "it")
    read = 0
    for path in flipped(good, tmp_path):
        with pytest.raises(BundleError, match=r"it cannot be read|it must|it holds"):
            check_file(path, "it")
        try:
            read += np.asanyarray(nib.load(path).dataobj).shape == voxels.shape
        except Exception:
            continue
    assert read > 0, "no flip that readers pass over was tried"


def test_a_name_in_capitals_is_checked_too(tmp_path):
    for name in ("A.NII", "A.NII.GZ"):
        path = tmp_path / name
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.complex64), AFFINE), path)
        with pytest.raises(BundleError, match=r"^it must hold numbers, got complex64\.$"):
            check_file(path, "it")


def test_a_file_without_directions_is_warned_of_once(tmp_path, caplog):
    for name in ("lost.nii", "lost.nii", "second.nii"):
        nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.int16), None), tmp_path / name)
        check_file(tmp_path / name, "it")
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.int16), AFFINE), tmp_path / "known.nii")
    check_file(tmp_path / "known.nii", "known")
    first, second = caplog.messages
    assert second.startswith(str(tmp_path / "second.nii"))
    assert first == (
        f"{tmp_path / 'lost.nii'} does not tell the directions of its axes (sform and qform are 0): left and right may "
        "be exchanged, also in pictures."
    )


@pytest.mark.parametrize(
    ("changed", "is_warned"),
    [
        ({}, False),
        ({"quatern_b": 0, "quatern_c": 0}, True),
        ({"quatern_b": 0, "quatern_c": 0, "qform_code": 0}, False),
        ({"qoffset_x": 0.1}, False),
        ({"qoffset_x": 0.3}, True),
        ({"quatern_b": np.nan}, True),
        ({"quatern_b": 2}, True),
    ],
)
def test_a_file_of_which_sform_and_qform_disagree_is_warned_of_once(changed, is_warned, tmp_path, caplog):
    # Voxels of 2 mm and more.
    volume = make_nifti(np.ones((6, 7, 8), np.int16), AFFINE)
    for key, value in changed.items():
        volume.header[key] = value
    for _ in range(2):
        nib.save(volume, tmp_path / "two.nii")
        check_file(tmp_path / "two.nii", "it")
    start = f"{tmp_path / 'two.nii'} has a sform and a qform that place its voxels differently: the sform is taken here"
    assert [message[: len(start)] for message in caplog.messages] == [start] * is_warned


def test_a_fourth_axis_with_which_the_affine_would_be_lost(tmp_path):
    # MONAI compares the origin with the size along the fourth axis, and takes the empty qform instead.
    header = nib.Nifti1Header()
    header.set_data_shape((3, 3, 3, 1))
    header.set_sform([[-1, 0, 0, 30], [0, -1, 0, 40], [0, 0, 1, 5], [0, 0, 0, 1]], code=1)
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3, 1), np.int16), None, header), tmp_path / "a.nii")
    with pytest.raises(BundleError, match=r"^it must have one geometry: "):
        check_file(tmp_path / "a.nii", "it")


def test_values_that_readers_would_change(tmp_path):
    paths = {name: tmp_path / f"{name}.nii" for name in ("complex", "infinite", "whole")}
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.complex64), AFFINE), paths["complex"])
    nib.save(nib.Nifti1Image(np.full((3, 3, 3), np.inf, np.float32), AFFINE), paths["infinite"])
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.int16), AFFINE), paths["whole"])
    with pytest.raises(BundleError, match=r"^it must hold numbers, got complex64\.$"):
        check_file(paths["complex"], "it")
    with pytest.raises(BundleError, match=r"^it holds values that are not finite\.$"):
        check_finite(paths["infinite"], "it")
    for check in (check_file, check_finite):
        check(paths["whole"], "it")
    check_file(tmp_path / "another.mha", "it")
