# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import NibabelReader
from monai.transforms import Orientationd

from scripts.data.loading import LoadCased, check_cases, check_grids
from scripts.errors import BundleError, innermost, is_out_of_memory


@pytest.fixture
def case(tmp_path):
    """Paths of an image and its label of two classes."""
    random = np.random.default_rng(0)
    label = np.zeros((6, 7, 8), np.uint8)
    label[2:4, 3:5, 1:6] = 1
    nib.save(nib.Nifti1Image(random.normal(size=label.shape).astype(np.float32), np.eye(4)), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
    return {"image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz"), "case": "a"}


def replace(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def load(case, **options):
    return LoadCased(keys=["image", "label", "unlabeled"], num_classes=2, **options)(case)


def test_volumes_are_channel_first(case):
    result = load(case)
    assert result["image"].shape == result["label"].shape == (1, 6, 7, 8)
    assert result["label"].unique().tolist() == [0, 1]
    assert result["case"] == "a"


def test_labels_that_are_stored_with_a_scale_are_whole_numbers(case):
    label = nib.load(case["label"]).get_fdata()
    replace(case["label"], label.astype(np.float32) * np.float32(0.9999999))
    assert load(case)["label"].unique().tolist() == [0, 1]


def test_grids_are_compared_by_headers_before_any_volume_is_read(case, tmp_path):
    image, label = Path(case["image"]), Path(case["label"])
    check_grids(image, label)
    # A fourth dimension of one is none; one that is damaged or missing is left to its loading.
    replace(tmp_path / "image.nii.gz", np.zeros((6, 7, 8, 1), np.float32))
    (tmp_path / "other.nii.gz").write_bytes(b"damaged")
    for path in (label, tmp_path / "other.nii.gz", tmp_path / "none.nii"):
        check_grids(image, path)
    moved = np.eye(4)
    moved[2, 3] = 3
    replace(tmp_path / "moved.nii.gz", np.zeros((6, 7, 8), np.uint8), moved)
    with pytest.raises(
        BundleError, match=r"moved\.nii\.gz has another affine than its image \(they differ by up to 3\)"
    ):
        check_grids(image, tmp_path / "moved.nii.gz")
    replace(tmp_path / "cut.nii.gz", np.zeros((6, 7, 9), np.uint8))
    with pytest.raises(BundleError, match=r"cut\.nii\.gz has shape \[6, 7, 9\], but its image has \[6, 7, 8\]"):
        check_grids(image, tmp_path / "cut.nii.gz")


def test_a_damaged_case_is_refused_before_the_others_take_hours(case, tmp_path):
    check_cases([case], num_classes=2)
    content = Path(case["image"]).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[:-40])
    with pytest.raises(BundleError, match=r"cut\.nii\.gz cannot be read"):
        check_cases([case, {**case, "image": str(tmp_path / "cut.nii.gz")}], num_classes=2)
    with pytest.raises(BundleError, match=r"must hold whole numbers from 0 to 0 \(num_classes 1\), got 1"):
        check_cases([case], num_classes=1)


def test_unlabeled_case(case):
    assert load({"unlabeled": case["image"]})["unlabeled"].shape == (1, 6, 7, 8)


@pytest.mark.parametrize("value", [2, 255, -1])
def test_label_values_out_of_range(value, case):
    array = np.zeros((6, 7, 8), np.int16)
    array[1] = value
    replace(case["label"], array)
    with pytest.raises(BundleError, match=rf"label\.nii\.gz must hold whole numbers from 0 to 1 .*got .*{value}"):
        load(case)


def test_fractional_label(case):
    replace(case["label"], np.full((6, 7, 8), 0.9, np.float32))
    with pytest.raises(BundleError, match=r"label\.nii\.gz must hold whole numbers .* got 0\.9"):
        load(case)


def test_label_of_another_shape(case):
    replace(case["label"], np.zeros((6, 7, 9), np.uint8))
    with pytest.raises(BundleError, match=r"has shape \[6, 7, 9\], but its image has \[6, 7, 8\]"):
        load(case)


def test_label_on_another_grid(case):
    replace(case["label"], np.zeros((6, 7, 8), np.uint8), np.diag([1, 1, 2, 1]))
    with pytest.raises(BundleError, match="another affine than its image"):
        load(case)


@pytest.mark.parametrize(("difference_mm", "is_refused"), [(5e-4, False), (3e-3, True)])
def test_a_rounding_of_the_affine_is_the_same_far_from_the_origin(case, difference_mm, is_refused):
    image = nib.load(case["image"])
    far, beside = image.affine.copy(), image.affine.copy()
    far[:3, 3] = beside[:3, 3] = -300
    beside[0, 3] += difference_mm
    replace(case["image"], np.array(image.dataobj), far)
    replace(case["label"], np.zeros(image.shape, np.uint8), beside)
    if not is_refused:
        load(case)
        return
    with pytest.raises(BundleError, match=r"another affine than its image \(they differ by up to 0\.00[23]"):
        load(case)


def in_plane(degrees):
    """An affine turned in its plane."""
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


def test_a_rounding_of_the_affine_near_45_degrees_does_not_turn_the_label(case):
    label = nib.load(case["label"]).get_fdata().astype(np.uint8)
    replace(case["image"], label.astype(np.float32), in_plane(44.99))
    replace(case["label"], label, in_plane(45.01))
    result = Orientationd(["image", "label"], axcodes="RAS", labels=None)(load(case))
    np.testing.assert_array_equal(result["image"].numpy(), result["label"].numpy())


def test_truncated_file_is_named(case):
    with open(case["image"], "r+b") as file:
        file.truncate(200)
    with pytest.raises(BundleError, match=r"image\.nii\.gz cannot be read to its end, the file is damaged: "):
        load(case)


def test_another_format_is_refused(case, tmp_path):
    (tmp_path / "image.nrrd").touch()
    with pytest.raises(BundleError, match=r"image\.nrrd must end in \.nii\.gz or \.nii: `prepare folder` makes NIfTI"):
        load({**case, "image": str(tmp_path / "image.nrrd")})


def test_colors_are_refused(case):
    replace(case["image"], np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(BundleError, match=r"^\S*image\.nii\.gz must hold numbers, got \[\('R', 'u1'\)"):
        load(case)


@pytest.mark.parametrize(
    ("shape", "message"), [((6, 7), "must be a 3D volume"), ((6, 7, 8, 3), r"must have 1 channel")]
)
def test_other_dimensions(shape, message, case):
    replace(case["image"], np.zeros(shape, np.float32))
    with pytest.raises(BundleError, match=rf"image\.nii\.gz {message}"):
        load(case)


@pytest.mark.parametrize("affine", [np.diag([-2, 3, 2.5, 1]), np.diag([1, 1, 0, 1])])
def test_geometry_that_is_not_certain(case, affine):
    volume = nib.Nifti1Image(np.ones((6, 7, 8), np.float32), None)
    volume.header["sform_code"] = 1
    volume.header["srow_x"], volume.header["srow_y"], volume.header["srow_z"] = affine[:3]
    nib.save(volume, case["image"])
    with pytest.raises(BundleError, match=r"image\.nii\.gz (must have|cannot be read)"):
        load(case)


def test_image_with_channels(case):
    replace(case["image"], np.zeros((6, 7, 8, 3), np.float32))
    assert load(case, in_channels=3)["image"].shape == (3, 6, 7, 8)


def test_values_that_are_not_finite(case):
    array = np.ones((6, 7, 8), np.float32)
    array[1, 2, 3] = np.inf
    replace(case["image"], array)
    with pytest.raises(BundleError, match=r"image\.nii\.gz holds values that are not finite"):
        load(case)


def test_no_case_is_damaged_where_memory_is_not_enough(case, monkeypatch):
    def fail(*arguments):
        raise MemoryError("Unable to allocate 8.0 GiB")

    monkeypatch.setattr(NibabelReader, "get_data", fail)
    with pytest.raises(RuntimeError) as caught:
        load(case)
    assert is_out_of_memory(caught.value)
    assert not isinstance(innermost(caught.value), BundleError)
