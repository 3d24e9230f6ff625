# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of the contrast between tissues."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from scripts.data.contrast import RandContrastCurved


def image(seed: int = 0) -> MetaTensor:
    return MetaTensor(torch.randn(1, 12, 10, 8, generator=torch.Generator().manual_seed(seed)), affine=torch.eye(4))


def curved(seed: int, **options: object) -> RandContrastCurved:
    return RandContrastCurved("image", **{"prob": 1.0, **options}).set_random_state(seed)


def test_equal_gray_values_stay_equal_and_the_order_of_others_changes():
    before = image().round(decimals=1)
    after = [curved(seed)({"image": before})["image"] for seed in range(20)]
    for result in after:
        assert all(result[before == value].unique().numel() == 1 for value in before.unique())
    correlations = [torch.corrcoef(torch.stack([before.flatten(), result.flatten()]))[0, 1] for result in after]
    assert min(correlations) < -0.5
    assert max(correlations) > 0.5


def test_mean_deviation_and_place_stay():
    before = 40 + 15 * image()
    after = curved(1)({"image": before})["image"]
    assert not torch.equal(after, before)
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=1e-4)
    assert after.std().item() == pytest.approx(before.std().item(), rel=1e-4)
    assert isinstance(after, MetaTensor)
    assert torch.equal(after.affine, before.affine)
    assert after.dtype == before.dtype
    assert before.equal(40 + 15 * image())


def test_each_channel_keeps_its_own_mean_and_deviation():
    before = torch.cat([image(0), 50 + 9 * image(1).exp()])
    after = curved(2)({"image": before})["image"]
    for channel in range(2):
        assert after[channel].mean().item() == pytest.approx(before[channel].mean().item(), rel=1e-3, abs=1e-3)
        assert after[channel].std().item() == pytest.approx(before[channel].std().item(), rel=1e-3)
    assert torch.equal(after[:1], curved(2)({"image": before[:1]})["image"])


def test_curve_is_linear_between_its_points():
    before = MetaTensor(torch.linspace(0, 1, 1001).reshape(1, 1, 7, 143))
    after = curved(3, num_points=3)({"image": before})["image"].flatten()
    bends = after.diff().diff().abs() > 1e-4 * after.std()
    # The ends of the curve, at the percentiles 0.5 and 99.5, and its point in the middle; each may lie between values.
    assert {round(index / 100) for index in bends.nonzero().flatten().tolist()} == {0, 5, 10}


def test_a_part_of_the_images_is_mapped():
    transform = curved(0, prob=0.4)
    mapped = [not transform({"image": image()})["image"].equal(image()) for _ in range(200)]
    assert sum(mapped) / 200 == pytest.approx(0.4, abs=0.1)


def test_the_seed_decides():
    first, second, other = (curved(seed)({"image": image()})["image"] for seed in (5, 5, 6))
    assert first.equal(second)
    assert not first.equal(other)


def test_an_image_of_one_gray_value_stays():
    assert curved(0)({"image": torch.full((1, 4, 4, 4), 3.0)})["image"].unique().tolist() == [3.0]


def test_missing_keys():
    data = {"label": torch.ones(1, 4, 4, 4)}
    assert curved(0, allow_missing_keys=True)(data)["label"] is data["label"]
    with pytest.raises(KeyError, match="image"):
        curved(0)(data)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="num_points must be at least 2, got 1"):
        RandContrastCurved("image", num_points=1)
