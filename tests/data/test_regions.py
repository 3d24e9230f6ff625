# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Where random crops lie, what augmentation sees of a volume, and that a crop follows what augmentation does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    RandAffined,
    RandFlipd,
    RandRotate90d,
    RandSpatialCropd,
    SpatialPadd,
)

from scripts.data.regions import CropRegiond, RandRegiond
from scripts.errors import BundleError

AFFINE = np.array([[-0.7, 0, 0, 12.0], [0, 0, 1.5, -40.0], [0, 0.9, 0, 300.0], [0, 0, 0, 1]])


def numbered(shape):
    """A volume in which every voxel is unlike, on a grid of unlike axes."""
    return MetaTensor(torch.arange(float(np.prod(shape))).reshape(1, *shape), affine=torch.tensor(AFFINE))


def crops_of(volume, steps, number=200, keys=("image",)):
    steps = Compose(steps)
    steps.set_random_state(0)
    found = []
    for _ in range(number):
        crop = steps({key: MetaTensor(volume.as_tensor().clone(), affine=volume.affine) for key in keys})
        assert set(crop) == set(keys)
        found.append(crop["image"])
    return found


@pytest.mark.parametrize(("shape", "patch"), [((20, 17, 9), (8, 16, 4)), ((20, 6, 9), (8, 8, 12))])
def test_without_augmentation_the_crops_are_those_of_monai(shape, patch):
    keys = ["image"]
    ours = [RandRegiond(keys, patch_size=patch, region_size=patch), CropRegiond(keys, patch_size=patch)]
    theirs = [RandSpatialCropd(keys, roi_size=patch, random_size=False)]
    pad = SpatialPadd(keys, spatial_size=patch)
    for crop, expected in zip(crops_of(numbered(shape), [*ours, pad]), crops_of(numbered(shape), [pad, *theirs])):
        assert crop.shape == (1, *patch)
        assert torch.equal(crop, expected)
        torch.testing.assert_close(crop.affine, expected.affine)


@pytest.mark.parametrize(
    ("shape", "patch"), [((20, 17, 9), (8, 16, 4)), ((21, 6, 9), (8, 8, 12)), ((9, 9, 9), (4, 5, 9))]
)
@pytest.mark.parametrize("region", [0, 6])
def test_without_a_random_center_the_crop_is_the_middle_as_that_of_monai(shape, patch, region):
    region_size = [size + region for size in patch]
    steps = [
        # As a command line gives it.
        RandRegiond(["image"], patch_size=patch, region_size=region_size, random_center="false"),
        CropRegiond(["image"], patch_size=patch),
    ]
    expected = CenterSpatialCropd(["image"], roi_size=patch)({"image": numbered(shape)})["image"]
    for crop in crops_of(numbered(shape), steps, number=3):
        assert torch.equal(crop, expected)
        torch.testing.assert_close(crop.affine, expected.affine)


def test_a_share_of_crops_that_are_all_the_same_is_refused():
    with pytest.raises(ValueError, match=r"foreground_share must be 0 without a random center, got 0\.5"):
        RandRegiond(["image"], patch_size=[4] * 3, region_size=[4] * 3, foreground_share=0.5, random_center=False)


def test_every_place_is_as_likely_in_a_region():
    patch, shape = (8, 8, 8), (30, 12, 9)
    steps = [
        RandRegiond(["image"], patch_size=patch, region_size=(12, 12, 12)),
        CropRegiond(["image"], patch_size=patch),
    ]
    starts = [np.unravel_index(int(crop.min()), shape) for crop in crops_of(numbered(shape), steps, number=4600)]
    for axis, places in enumerate((23, 5, 2)):
        counts = np.bincount([start[axis] for start in starts], minlength=places)
        assert len(counts) == places
        # Five standard deviations.
        assert np.abs(counts - 4600 / places).max() < 5 * np.sqrt(4600 / places)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_crop_follows_a_flip(axis):
    patch, shape = (8, 8, 8), (30, 14, 12)
    steps = [
        RandRegiond(["image"], patch_size=patch, region_size=(12, 12, 12)),
        RandFlipd(["image"], prob=1, spatial_axis=axis),
        CropRegiond(["image"], patch_size=patch),
    ]
    straight = crops_of(numbered(shape), [steps[0], steps[2]], number=40)
    # The flip draws numbers of its own, after the place.
    for crop, expected in zip(crops_of(numbered(shape), steps, number=40), straight, strict=True):
        assert torch.equal(crop.flip(axis + 1), expected)


def test_a_crop_follows_a_quarter_turn():
    patch, shape = (8, 12, 8), (40, 40, 12)
    region = RandRegiond(["image"], patch_size=patch, region_size=(18, 18, 12))
    turn = RandRotate90d(["image"], prob=1, max_k=1, spatial_axes=(0, 1))
    found = crops_of(numbered(shape), [region, turn, CropRegiond(["image"], patch_size=patch)], number=40)
    straight = crops_of(numbered(shape), [region, CropRegiond(["image"], patch_size=patch)], number=40)
    for crop, expected in zip(found, straight, strict=True):
        assert crop.shape == (1, *patch)
        middles = [sorted(np.unravel_index(values.flatten().long(), shape)[0].tolist()) for values in (crop, expected)]
        # 12 voxels along the first axis of the volume where it was 8, around the same middle.
        assert abs(np.mean(middles[0]) - np.mean(middles[1])) <= 2


def test_a_quarter_turn_at_the_border_fills_nothing_in():
    patch, shape = (8, 12, 8), (20, 20, 12)
    region = RandRegiond(["image"], patch_size=patch, region_size=(12, 12, 8))
    turn = RandRotate90d(["image"], prob=1, max_k=1, spatial_axes=(0, 1))
    crops = crops_of(numbered(shape) + 1, [region, turn, CropRegiond(["image"], patch_size=patch)], number=60)
    # What is filled in is 0.
    assert all(bool(crop.all()) for crop in crops)


def test_a_crop_follows_turns_sizes_and_shifts():
    # One voxel of foreground, which every crop holds before it is moved.
    label = torch.zeros(1, 60, 60, 60)
    label[0, 29:32, 29:32, 29:32] = 1
    keys, turns = ["image", "label"], {"rotate_range": [0.3, 0.3, 0.5], "scale_range": 0.15, "translate_range": 12}
    region = RandRegiond(keys, patch_size=(12,) * 3, region_size=(48,) * 3, foreground_share=0.99)
    turn = RandAffined(keys, prob=1, mode="nearest", padding_mode="border", **turns)
    found = crops_of(MetaTensor(label), [region, turn, CropRegiond(keys, patch_size=(12,) * 3)], keys=keys, number=60)
    # Shifted by up to 12 voxels, it would be in few of the crops that stayed where they were.
    assert np.mean([bool(crop.any()) for crop in found]) > 0.85


@pytest.mark.parametrize("place", [(50, 40, 30), (0, 0, 0), (99, 79, 59)])
@pytest.mark.parametrize(("patch", "region"), [((16, 16, 16), (16, 16, 16)), ((48, 32, 16), (72, 48, 48))])
def test_a_share_of_the_crops_holds_foreground_wherever_it_is(place, patch, region):
    label = torch.zeros(1, 100, 80, 60)
    label[(0, *place)] = 2
    steps = [
        RandRegiond(["image", "label"], patch_size=patch, region_size=region, foreground_share=0.6),
        CropRegiond(["image", "label"], patch_size=patch),
    ]
    found = crops_of(MetaTensor(label), steps, keys=("image", "label"), number=300)
    # By chance at most one of ten crops of the others meets it.
    assert 0.5 < np.mean([bool(crop.any()) for crop in found]) < 0.76


def test_foreground_is_as_likely_at_every_place_of_a_crop():
    label, patch = torch.zeros(1, 60, 50, 40), (8, 5, 2)
    label[0, 30, 25, 20] = 1
    steps = [
        RandRegiond(["image", "label"], patch_size=patch, region_size=patch, foreground_share=0.999),
        CropRegiond(["image", "label"], patch_size=patch),
    ]
    found = crops_of(MetaTensor(label), steps, keys=("image", "label"), number=2400)
    places = np.array([crop[0].nonzero()[0].tolist() for crop in found if crop.any()])
    assert len(places) > 2380
    for axis, size in enumerate(patch):
        counts = np.bincount(places[:, axis], minlength=size)
        assert len(counts) == size
        # Five standard deviations.
        assert np.abs(counts - len(places) / size).max() < 5 * np.sqrt(len(places) / size)


def test_each_foreground_class_is_as_likely():
    label = torch.zeros(1, 60, 60, 60)
    label[0, 5:25, 5:25, 5:25] = 1
    label[0, 55, 55, 55] = 3
    steps = [RandRegiond(["image", "label"], patch_size=(8,) * 3, region_size=(8,) * 3, foreground_share=0.99)]
    found = crops_of(
        MetaTensor(label), [*steps, CropRegiond(["image", "label"], patch_size=(8,) * 3)], keys=("image", "label")
    )
    assert 0.35 < np.mean([bool((crop == 3).any()) for crop in found]) < 0.65


def test_a_case_without_foreground_has_crops_all_the_same():
    steps = [
        RandRegiond(["image", "label"], patch_size=(8,) * 3, region_size=(8,) * 3, foreground_share=0.9),
        CropRegiond(["image", "label"], patch_size=(8,) * 3),
    ]
    found = crops_of(MetaTensor(torch.zeros(1, 12, 12, 12)), steps, number=5, keys=("image", "label"))
    assert {crop.shape for crop in found} == {(1, 8, 8, 8)}


def test_a_region_smaller_than_the_crop_is_refused():
    with pytest.raises(ValueError, match=r"region_size must be at least patch_size \[8, 8, 8\], got \[8, 7, 8\]"):
        RandRegiond(["image"], patch_size=(8, 8, 8), region_size=(8, 7, 8))


# --- the configuration ------------------------------------------------------------------------------------------------


class Seen:
    """Remembers the shapes that augmentation is given."""

    def __init__(self):
        self.shapes = set()

    def __call__(self, data):
        self.shapes |= {tuple(volume.shape) for volume in data.values() if isinstance(volume, MetaTensor)}
        return data


@pytest.mark.parametrize("keys", [("image", "label"), ("unlabeled",)])
def test_augmentation_sees_the_surroundings_of_a_crop(keys):
    seen = Seen()
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.json"))
    parser.update({"patch_size": [32, 16, 16], "augmentation": [seen], "foreground_share": 0.5})
    steps = parser.get_parsed_content(f"train#{'' if 'label' in keys else 'unlabeled_'}preprocessing")
    first = next(number for number, step in enumerate(steps.transforms) if isinstance(step, RandRegiond))
    steps.set_random_state(0)
    label = torch.zeros(1, 120, 100, 80)
    label[0, 60, 50, 40] = 1
    for _ in range(3):
        crop = steps({key: MetaTensor(label.clone()) for key in keys}, start=first)
        assert {name: volume.shape for name, volume in crop.items()} == dict.fromkeys(keys, (1, 32, 16, 16))
    # No side is shorter than the longest one of the patch, so that it holds the patch after a quarter turn.
    assert all(np.all(np.array(shape[1:]) <= (48, 32, 32)) for shape in seen.shapes)
    assert (1, 48, 32, 32) in seen.shapes


@pytest.mark.parametrize("augmentation", [[], [lambda data: data]])
def test_without_augmentation_the_region_is_the_crop(augmentation):
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.json"))
    parser.update({"patch_size": [32, 16, 16], "augmentation": augmentation})
    assert parser.get_parsed_content("region_size") == ([48, 32, 32] if augmentation else [32, 16, 16])


def test_a_crop_without_its_place_is_refused():
    with pytest.raises(BundleError, match="CropRegiond needs a RandRegiond before it: train#preprocessing must"):
        CropRegiond(["image"], patch_size=(8,) * 3)({"image": MetaTensor(torch.zeros(1, 9, 9, 9))})
