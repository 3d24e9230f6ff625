# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What augmentation sees of a volume, and where the crops of labeled cases lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import RandomizableTransform

SIZE = (120, 100, 80)


class Seen(RandomizableTransform):
    """Remembers the shapes that augmentation is given."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __call__(self, data):
        self.shapes += [tuple(volume.shape) for key, volume in data.items() if key in ("image", "label", "unlabeled")]
        return data


def crops(labeled, number=40, augmented=True, **overrides):
    """Random crops of a volume with a small object of class 2, and what augmentation saw of it."""
    seen = Seen()
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.json"))
    parser.update({"num_classes": 3, "class_names": ["a", "b"], "patch_size": [32, 16, 16], **overrides})
    parser["augmentation"] = [seen] if augmented else []
    transform = parser.get_parsed_content("train#preprocessing" if labeled else "train#unlabeled_preprocessing")
    steps = [type(step).__name__ for step in transform.transforms]
    first = next(
        number for number, name in enumerate(steps) if name.startswith("Rand") or name in ("Seen", "SpatialPadd")
    )
    transform.set_random_state(0)
    label = torch.zeros(1, *SIZE)
    label[0, 60:64, 50:53, 40:42] = 2
    volumes = {"image": label.clone(), "label": label} if labeled else {"unlabeled": label}
    found = []
    for _ in range(number):
        crop = transform({key: MetaTensor(volume) for key, volume in volumes.items()}, start=first)
        found.append(crop[0] if isinstance(crop, list) else crop)
    return found, seen.shapes


@pytest.mark.parametrize("labeled", [True, False])
def test_augmentation_sees_the_surroundings_of_a_crop(labeled):
    found, shapes = crops(labeled, number=3)
    # No side is shorter than the longest one of the patch, so that it holds the patch after a quarter turn.
    assert set(shapes) == {(1, 48, 32, 32)}
    for crop in found:
        assert {tuple(volume.shape) for volume in crop.values()} == {(1, 32, 16, 16)}


def test_a_volume_smaller_than_that_is_seen_whole():
    _, shapes = crops(True, number=2, patch_size=[80, 64, 64])
    assert set(shapes) == {(1, 120, 96, 80)}


def test_without_augmentation_every_crop_of_a_volume_is_as_likely():
    found, _ = crops(True, number=300, augmented=False)
    share = np.mean([bool(crop["label"].any()) for crop in found])
    # Of the positions of a crop 35 * 18 * 17 of 89 * 85 * 65 meet the object.
    assert share < 0.06


@pytest.mark.parametrize("augmented", [True, False])
def test_a_share_of_the_labeled_crops_holds_foreground(augmented):
    found, _ = crops(True, number=200, augmented=augmented, foreground_share=0.6)
    share = np.mean([bool(crop["label"].any()) for crop in found])
    # Class 1 is not there: 0.3 of 0.7 are around class 2. The center of a region is in each crop of it.
    assert 0.33 < share < 0.6
    assert all(torch.equal(crop["image"], crop["label"]) for crop in found)


def test_unlabeled_crops_know_no_foreground():
    found, _ = crops(False, number=200, augmented=True, foreground_share=0.9)
    assert np.mean([bool(crop["unlabeled"].any()) for crop in found]) < 0.2
