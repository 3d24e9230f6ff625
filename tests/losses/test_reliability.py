# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Entropy, the percentile filter with its ties, and the combination of two masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scripts.losses.reliability import ReliabilityFilter, combine_reliability, entropy_bits


def logits_from_differences(differences, shape):
    """Two-class logits whose entropy falls with the size of the given differences."""
    values = torch.as_tensor(differences, dtype=torch.float32).reshape(shape)
    return torch.stack([values, torch.zeros_like(values)], dim=1)


def test_entropy_by_hand():
    # p = 1/2, 1/2 -> 1 bit; 3/4, 1/4 -> 2 - 0.75 log2 3 bits; one certain class -> 0; four equal classes -> 2 bits.
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [200.0, 0.0]]).T.reshape(1, 2, 3, 1, 1)
    expected = torch.tensor([1.0, 2 - 0.75 * math.log2(3), 0.0])
    assert torch.allclose(entropy_bits(logits).flatten(), expected, atol=1e-6)
    assert entropy_bits(torch.zeros(1, 4, 2, 2, 2)).flatten().tolist() == pytest.approx([2.0] * 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_entropy_of_saturated_half_precision(dtype):
    logits = torch.tensor([60000.0, -60000.0, -60000.0], dtype=dtype).reshape(1, 3, 1, 1, 1)
    entropy = entropy_bits(logits)
    assert entropy.shape == (1, 1, 1, 1, 1)
    assert entropy.dtype == torch.float32
    assert entropy.item() == 0


def test_entropy_tells_apart_what_half_precision_cannot():
    # The probability of the second class underflows in float16 for all of these.
    logits = logits_from_differences([20.0, 30.0, 40.0], (1, 3, 1, 1)).half()
    entropy = entropy_bits(logits).flatten()
    assert entropy[0] > entropy[1] > entropy[2] > 0


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11, 1000, 1001])
@pytest.mark.parametrize("keep_percent", [0.5, 20.0, 33.3, 80.0, 99.9])
def test_batch_threshold_equals_numpy_percentile(count, keep_percent):
    differences = torch.rand(count, generator=torch.Generator().manual_seed(count)) * 5
    logits = logits_from_differences(differences, (1, count, 1, 1))
    entropy = entropy_bits(logits)
    threshold = np.percentile(entropy.numpy().astype(np.float64), keep_percent)
    assert torch.equal(ReliabilityFilter(keep_percent)(logits), entropy < threshold)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_keep_80_percent_keeps_80_percent(num_classes):
    logits = torch.randn(2, num_classes, 10, 10, 10, generator=torch.Generator().manual_seed(0))
    for scope in ("batch", "per_class"):
        mask = ReliabilityFilter(80.0, scope=scope)(logits)
        assert mask.shape == (2, 1, 10, 10, 10)
        assert mask.dtype == torch.bool
        assert 1599 <= mask.sum() <= 1600 + num_classes
    entropy, mask = entropy_bits(logits), ReliabilityFilter(80.0)(logits)
    assert entropy[mask].max() < entropy[~mask].min()


def test_ties_at_the_threshold_are_not_reliable_in_a_batch():
    # Ten voxels, three equal ones at rank 7 to 9: the 80th percentile is their value, and only the seven below stay.
    logits = logits_from_differences([9, 8, 7, 6, 5, 4, 3, 1, 1, 1], (1, 10, 1, 1))
    assert ReliabilityFilter(80.0)(logits).flatten().tolist() == [True] * 7 + [False] * 3


def test_constant_entropy():
    logits = torch.zeros(2, 3, 4, 4, 4)
    assert not ReliabilityFilter(80.0)(logits).any()
    # Rank decides: ceil(0.8 * 128) = 103 of the voxels, all of which are predicted as class 0.
    assert ReliabilityFilter(80.0, scope="per_class")(logits).sum() == 103


def test_per_class_counts_by_hand():
    # Seven voxels of class 0 with |difference| 1..7 and three tied ones of class 1: ceil(5.6) = 6 and ceil(2.4) = 3.
    differences = [1, 2, 3, 4, 5, 6, 7, -0.1, -0.1, -0.1]
    logits = logits_from_differences(differences, (1, 10, 1, 1))
    mask = ReliabilityFilter(80.0, scope="per_class")(logits).flatten().tolist()
    assert mask == [False] + [True] * 9
    # 50 %: ceil(3.5) = 4 most certain ones of class 0 and ceil(1.5) = 2 of the tied ones of class 1.
    mask = ReliabilityFilter(50.0, scope="per_class")(logits).flatten().tolist()
    assert mask == [False] * 3 + [True] * 4 + [True, True, False]
    # 60 % of five: the one voxel above the tie, and two of the four tied ones.
    tied = logits_from_differences([1, 1, 3, 1, 1], (1, 5, 1, 1))
    mask = ReliabilityFilter(60.0, scope="per_class")(tied).flatten().tolist()
    assert mask == [True, True, True, False, False]
    # The global threshold loses class 1 altogether.
    assert not ReliabilityFilter(50.0)(logits).flatten()[7:].any()


def test_per_class_keeps_a_voxel_of_every_predicted_class():
    logits = torch.zeros(2, 3, 5, 5, 5)
    logits[:, 0] = 50.0
    logits[1, 1, 2, 2, 2] = 50.01
    logits[0, 2, 1, 1, 1] = 50.5
    mask = ReliabilityFilter(1.0, scope="per_class")(logits)
    assert mask[1, 0, 2, 2, 2]
    assert mask[0, 0, 1, 1, 1]
    assert mask.sum() == 3 + 2  # ceil(248 / 100) of class 0


def test_whole_percentages_are_not_rounded_up():
    differences = torch.arange(1, 1001)
    for percent in (0.1, 7.0, 14.0, 28.0, 29.0, 33.3, 55.0, 57.0, 58.0, 99.9):
        mask = ReliabilityFilter(percent, scope="per_class")(logits_from_differences(differences, (1, 10, 10, 10)))
        assert mask.sum() == round(10 * percent), percent


@pytest.mark.parametrize("scope", ["batch", "per_class"])
def test_100_percent_keeps_all(scope):
    assert ReliabilityFilter(100, scope=scope)(torch.randn(2, 3, 4, 4, 4)).all()
    assert ReliabilityFilter(100, scope=scope)(torch.zeros(2, 3, 4, 4, 4)).all()


@pytest.mark.parametrize("scope", ["batch", "per_class"])
def test_no_gradient_and_no_voxels(scope):
    keep = ReliabilityFilter(scope=scope)
    assert not keep(torch.randn(1, 2, 4, 4, 4, requires_grad=True)).requires_grad
    assert keep(torch.zeros(0, 2, 4, 4, 4)).shape == (0, 1, 4, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_half_precision(dtype):
    logits = torch.linspace(1000, 60000, 64).reshape(1, 1, 4, 4, 4).to(dtype)
    logits = torch.cat([logits, -logits], dim=1)
    # Every entropy is exactly 0, and so is the threshold: a tie, hence not below it.
    assert not ReliabilityFilter(80.0)(logits).any()
    assert ReliabilityFilter(80.0, scope="per_class")(logits).sum() == 52


def test_more_voxels_than_torch_quantile_takes():
    count = 2**24 + 256
    logits = torch.zeros(1, 2, 2**16 + 1, 16, 16)
    torch.linspace(0.01, 4.0, count, out=logits[0, 0].view(-1))
    kept = ReliabilityFilter(80.0)(logits).flatten()
    # Falling along the memory, which torch.kthvalue would take hours for; neighbors may tie at this density.
    assert abs(int(kept.sum()) - 0.8 * count) < 100
    assert kept[-1]
    assert not kept[0]


def test_combine_reliability():
    a = torch.tensor([True, True, False, False])
    b = torch.tensor([True, False, True, False])
    assert combine_reliability(a, b, combine="own") == (a, b)
    for combine, expected in (("and", [True, False, False, False]), ("or", [True, True, True, False])):
        for mask in combine_reliability(a, b, combine=combine):
            assert mask.tolist() == expected


def test_refusals():
    with pytest.raises(ValueError, match="keep_percent must be above 0 and at most 100, got 0"):
        ReliabilityFilter(0)
    with pytest.raises(ValueError, match=r"keep_percent .* got 100\.5"):
        ReliabilityFilter(100.5)
    with pytest.raises(ValueError, match=r"keep_percent .* got '80%'"):
        ReliabilityFilter("80%")
    with pytest.raises(ValueError, match="scope must be 'batch' or 'per_class', got 'sample'"):
        ReliabilityFilter(scope="sample")
    with pytest.raises(ValueError, match=r"C >= 2, got \(1, 1, 4, 4, 4\)"):
        ReliabilityFilter()(torch.zeros(1, 1, 4, 4, 4))
    mask = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="combine must be 'own', 'and' or 'or', got 'xor'"):
        combine_reliability(mask, mask, combine="xor")
    with pytest.raises(ValueError, match=r"got \(1, 1, 2, 2, 2\) and \(1, 2, 2, 2\)"):
        combine_reliability(mask, mask[0], combine="and")
    with pytest.raises(ValueError, match="must be bool, got"):
        combine_reliability(mask, mask.float(), combine="and")
