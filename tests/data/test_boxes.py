# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Boxes in voxels of the file, after the axes, the direction and the spacing of the volume have changed."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

from scripts.data.boxes import CropToBoxd

SHAPE = (12, 20, 15)
#: Exclusive ends: an object of 4 x 5 x 3 voxels of the file.
BOX = [[3, 9, 6], [7, 14, 9]]
OBJECT_SIZE = np.array([4, 5, 3])
RIGHT, ANTERIOR, SUPERIOR = np.eye(3)
DIRECTIONS = {"R": RIGHT, "L": -RIGHT, "A": ANTERIOR, "P": -ANTERIOR, "S": SUPERIOR, "I": -SUPERIOR}


def make_case(folder, axes="RAS", spacing_mm=(1.0, 1.0, 1.0), box=BOX):
    """A file whose voxel axes point where ``axes`` says, with an object that fills its box; every voxel is unlike."""
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[tuple(slice(start, stop) for start, stop in zip(*box, strict=True))] = 1
    affine = np.eye(4)
    for i, letter in enumerate(axes):
        affine[:3, i] = spacing_mm[i] * DIRECTIONS[letter]
    affine[:3, 3] = [-31.0, 8.5, 120.0]
    assert nib.aff2axcodes(affine) == tuple(axes)
    paths = {key: str(folder / f"{key}.nii") for key in ("image", "label")}
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    nib.save(nib.Nifti1Image(image, affine), paths["image"])
    nib.save(nib.Nifti1Image(label, affine), paths["label"])
    return {**paths, "box": box}


def load(case, *transforms):
    return Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"]), *transforms])(case)


def crop(margin):
    return CropToBoxd(["image", "label"], margin=margin)


ORIENTATION = Orientationd(["image", "label"], axcodes="RAS", labels=None)


def resampling(*spacing_mm):
    return Spacingd(["image", "label"], pixdim=spacing_mm, mode=["bilinear", "nearest"])


def test_crop_in_the_axes_of_the_file(tmp_path):
    case = load(make_case(tmp_path), crop(0))
    assert case["label"].shape == (1, *OBJECT_SIZE)
    assert case["label"].min() == 1
    whole = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    assert np.array_equal(case["image"][0].numpy(), whole[3:7, 9:14, 6:9])


@pytest.mark.parametrize("difference_mm", [0.0, 1e-6, 5e-4])
@pytest.mark.parametrize("number", range(10))
def test_image_and_label_stay_on_one_grid(tmp_path, number, difference_mm):
    generator = np.random.default_rng(number)
    case = make_case(tmp_path, "PIR", spacing_mm=generator.uniform(0.3, 2.0, size=3))
    label = nib.load(case["label"])
    affine = label.affine.copy()
    affine[:3, 3] += generator.uniform(-difference_mm, difference_mm, size=3)
    nib.save(nib.Nifti1Image(np.array(label.dataobj), affine), case["label"])
    cropped = load(case, ORIENTATION, crop(0))
    # To the voxel, and the same voxels of both.
    assert cropped["label"].shape == cropped["image"].shape == (1, *OBJECT_SIZE[[2, 0, 1]])
    assert cropped["label"].min() == 1


def test_margin_on_each_side(tmp_path):
    case = load(make_case(tmp_path), crop(2))
    assert case["label"].shape == (1, *(OBJECT_SIZE + 4))
    assert case["label"].sum() == OBJECT_SIZE.prod()
    assert case["label"][:, 2:-2, 2:-2, 2:-2].min() == 1


def test_the_border_ends_the_box(tmp_path):
    case = load(make_case(tmp_path), crop(4))
    # The object begins at 3, 9, 6 and ends at 7, 14, 9 of 12, 20, 15.
    assert case["label"].shape == (1, 11, 13, 11)
    case = load(make_case(tmp_path), crop(100))
    assert case["label"].shape == (1, *SHAPE)


def test_a_box_at_the_corner(tmp_path):
    box = [[0, 17, 0], [2, 20, 15]]
    case = load(make_case(tmp_path, "LPI", box=box), ORIENTATION, crop(1))
    assert case["label"].shape == (1, 3, 4, 15)
    assert case["label"].sum() == 2 * 3 * 15


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SAL", "ILP"])
@pytest.mark.parametrize("margin", [0, 2])
def test_other_directions_and_orders_of_axes(tmp_path, axes, margin):
    case = load(make_case(tmp_path, axes), ORIENTATION, crop(margin))
    # Axis 0 of the volume is the axis of the file that points to R or L, and so on.
    order = [next(i for i, letter in enumerate(axes) if letter in pair) for pair in ("RL", "AP", "SI")]
    assert case["label"].shape == (1, *(OBJECT_SIZE[order] + 2 * margin))
    assert case["label"].sum() == OBJECT_SIZE.prod()
    inner = slice(margin, -margin or None)
    assert case["label"][:, inner, inner, inner].min() == 1


@pytest.mark.parametrize("axes", ["RAS", "PIR", "SAL", "ILP"])
@pytest.mark.parametrize("pixdim", [(1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (2.0, 2.0, 2.0), (0.5, 1.3, 2.0)])
def test_the_object_stays_inside_after_resampling(tmp_path, axes, pixdim):
    case = make_case(tmp_path, axes, spacing_mm=(0.8, 1.0, 2.5))
    transforms = [ORIENTATION, resampling(*pixdim)]
    whole, cropped = load(case, *transforms), load(case, *transforms, crop(0))
    assert cropped["label"].sum() == whole["label"].sum() > 0
    # It is no larger than the object and the parts of voxels at both of its ends.
    order = [next(i for i, letter in enumerate(axes) if letter in pair) for pair in ("RL", "AP", "SI")]
    object_mm = (OBJECT_SIZE * np.array([0.8, 1.0, 2.5]))[order]
    assert (np.array(cropped["label"].shape[1:]) <= np.ceil(object_mm / np.array(pixdim)) + 1).all()


def test_margin_counts_voxels_of_the_resampled_volume(tmp_path):
    case = make_case(tmp_path, spacing_mm=(2.0, 2.0, 2.0))
    tight = load(case, resampling(1.0, 1.0, 1.0), crop(0))
    wide = load(case, resampling(1.0, 1.0, 1.0), crop(3))
    assert np.array_equal(np.array(wide["label"].shape[1:]), np.array(tight["label"].shape[1:]) + 6)


def test_positions_in_space_stay(tmp_path):
    cropped = load(make_case(tmp_path, "PIR"), ORIENTATION, crop(1))
    whole = load(make_case(tmp_path, "PIR"), ORIENTATION)
    value = cropped["image"][0, 0, 0, 0].item()
    there = (whole["image"][0] == value).nonzero()[0].numpy()
    expected = whole["image"].affine.numpy() @ [*there, 1]
    np.testing.assert_allclose(cropped["image"].affine.numpy()[:3, 3], expected[:3])


@pytest.mark.parametrize("transforms", [[], [ORIENTATION], [ORIENTATION, resampling(1.5, 1.5, 1.5)]])
def test_inverse_restores_the_shape(tmp_path, transforms):
    case = make_case(tmp_path, "PIR", spacing_mm=(1.0, 2.0, 1.5))
    transform = crop(1)
    whole, cropped = load(case, *transforms), load(case, *transforms, transform)
    restored = transform.inverse(cropped)
    assert tuple(cropped["image"].shape) != tuple(restored["image"].shape) == tuple(whole["image"].shape)
    torch.testing.assert_close(torch.as_tensor(restored["label"]), torch.as_tensor(whole["label"]))
    np.testing.assert_allclose(restored["image"].affine.numpy(), whole["image"].affine.numpy())


def test_the_whole_pipeline_is_inverted_to_the_grid_of_the_file(tmp_path):
    case = make_case(tmp_path, "SAL")
    transforms = Compose([ORIENTATION, crop(2)])
    restored = transforms.inverse(transforms(load(case)))
    assert restored["label"].shape == (1, *SHAPE)
    assert np.array_equal(restored["label"][0].numpy(), nib.load(case["label"]).get_fdata())


def test_the_given_dictionary_stays(tmp_path):
    whole = load(make_case(tmp_path))
    crop(0)(whole)
    assert whole["image"].shape == (1, *SHAPE)


def test_missing_keys_are_left_out(tmp_path):
    whole = load(make_case(tmp_path))
    del whole["label"]
    assert set(crop(0)(whole)) == {"image", "box"}
    with pytest.raises(KeyError, match="label"):
        CropToBoxd(["image", "label"], allow_missing_keys=False)(whole)


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="margin must be at least 0 voxels, got -1"):
        crop(-1)


@pytest.mark.parametrize("axis", range(3))
def test_a_box_that_leaves_the_volume_is_refused(tmp_path, axis):
    box = [list(corner) for corner in BOX]
    box[1][axis] = SHAPE[axis] + 1
    case = {**make_case(tmp_path), "box": box, "case": "a_case"}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        load(case, crop(25))
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert str(error).startswith(f"the box of a_case ends at voxel {box[1]}, but its volume has {list(SHAPE)}: ")
