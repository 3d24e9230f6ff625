# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Signed distance maps against brute force, and the two losses on signed distances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from scripts.losses.signed_distance import SignedDistanceLoss, TaskConsistencyLoss, signed_distance_map


def random_label(shape, num_classes, seed=0):
    return torch.randint(num_classes, shape, generator=torch.Generator().manual_seed(seed))


def by_brute_force(mask):
    """Signed distances of one boolean mask by all pairs of voxels."""
    voxels = list(itertools.product(*map(range, mask.shape)))
    distance = torch.zeros(mask.shape, dtype=torch.float64)
    for voxel in voxels:
        distance[voxel] = min(math.dist(voxel, other) for other in voxels if mask[other] != mask[voxel])
    result = torch.where(mask, -distance / distance[mask].max(), distance / distance[~mask].max())
    for voxel in voxels:
        for axis, shift in itertools.product(range(3), (-1, 1)):
            neighbor = list(voxel)
            neighbor[axis] += shift
            if 0 <= neighbor[axis] < mask.shape[axis] and mask[voxel] and not mask[tuple(neighbor)]:
                result[voxel] = 0
    return result


def test_map_of_a_line_by_hand():
    label = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0]).reshape(1, 1, 1, 1, 8)
    expected = torch.tensor([2 / 3, 1 / 3, 0, -1, 0, 1 / 3, 2 / 3, 1])
    torch.testing.assert_close(signed_distance_map(label, 2).flatten(), expected)


def test_each_class_is_measured_on_its_own():
    label = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2]).reshape(1, 1, 1, 1, 8)
    first, second = signed_distance_map(label, 3)[0].flatten(1)
    torch.testing.assert_close(first, torch.tensor([1 / 4, 0, -1, 0, 1 / 4, 2 / 4, 3 / 4, 1]))
    # The border of the crop is no surface: the deepest voxel of class 2 is the last one.
    torch.testing.assert_close(second, torch.tensor([1, 3 / 4, 2 / 4, 1 / 4, 0, -2 / 4, -3 / 4, -1]))


def test_map_is_that_of_brute_force():
    label = (random_label((2, 1, 5, 4, 6), 6) // 2).clamp(max=2)
    # A solid block beside the noise, for voxels that are not on the boundary.
    label[0, 0, :4, :3, :4] = 1
    found = signed_distance_map(label, 3)
    assert found.shape == (2, 2, 5, 4, 6)
    assert found.dtype == torch.float32
    for crop, foreground in itertools.product(range(2), (1, 2)):
        expected = by_brute_force(label[crop, 0] == foreground)
        torch.testing.assert_close(found[crop, foreground - 1], expected.float())
    assert found[0, 0].min() == -1


def test_crop_of_one_kind_alone():
    label = random_label((4, 1, 4, 4, 4), 2)
    label[1], label[2] = 0, 1
    distance = signed_distance_map(label, 3)
    assert (distance[1] == 1).all(), "no foreground: far outside, not on a boundary"
    assert (distance[2, 0] == -1).all()
    # Class 2 is in no crop; crops with both kinds are not touched by their neighbors in the batch.
    assert (distance[:, 1] == 1).all()
    for crop in (0, 3):
        torch.testing.assert_close(distance[crop, 0], by_brute_force(label[crop, 0] == 1).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_label_of_any_number_type_and_no_gradient(dtype):
    label = random_label((1, 1, 4, 4, 4), 3)
    distance = signed_distance_map(label.to(dtype), 3)
    assert torch.equal(distance, signed_distance_map(label, 3))
    assert not distance.requires_grad


@pytest.mark.parametrize(
    ("shape", "num_classes", "message"),
    [
        ((1, 1, 4, 4, 4), 1, "num_classes must be at least 2, got 1"),
        ((1, 2, 4, 4, 4), 2, r"label must be of shape \(B, 1, X, Y, Z\), got \(1, 2, 4, 4, 4\)"),
        ((1, 4, 4, 4), 2, r"label must be of shape .*, got \(1, 4, 4, 4\)"),
    ],
)
def test_map_refuses(shape, num_classes, message):
    with pytest.raises(ValueError, match=message):
        signed_distance_map(torch.zeros(shape), num_classes)


# --- loss of the signed distances -------------------------------------------------------------------------------------


def test_distance_loss_by_hand():
    label = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0]).reshape(1, 1, 1, 1, 8)
    distance = torch.full((1, 1, 1, 1, 8), 0.5, requires_grad=True)
    loss = SignedDistanceLoss()(distance, label)
    # Errors of 1/6, 1/6, 1/2, 3/2, 1/2, 1/6, 1/6 and 1/2.
    assert loss.item() == pytest.approx((4 / 36 + 3 / 4 + 9 / 4) / 8)
    loss.backward()
    expected = 2 * (0.5 - signed_distance_map(label, 2)) / 8
    torch.testing.assert_close(distance.grad, expected)


def test_distance_loss_is_zero_at_the_target_and_takes_the_mean_over_classes():
    label = random_label((2, 1, 4, 4, 4), 3)
    distance = signed_distance_map(label, 3).requires_grad_()
    loss = SignedDistanceLoss()(distance, label)
    assert loss.item() == 0
    assert loss.requires_grad
    shifted = distance.detach().clone()
    shifted[:, 1] += 0.5
    assert SignedDistanceLoss()(shifted, label).item() == pytest.approx(0.25 / 2)


def test_distance_loss_of_bfloat16_is_that_of_its_float32_value():
    label = random_label((1, 1, 4, 4, 4), 2)
    distance = torch.rand(1, 1, 4, 4, 4).bfloat16()
    loss = SignedDistanceLoss()(distance, label)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, SignedDistanceLoss()(distance.float(), label))


def test_distance_loss_without_crops_is_connected():
    distance = torch.zeros(0, 2, 4, 4, 4, requires_grad=True)
    loss = SignedDistanceLoss()(distance, torch.zeros(0, 1, 4, 4, 4))
    assert loss.item() == 0
    assert loss.requires_grad


def test_distance_loss_refuses_another_grid():
    with pytest.raises(ValueError, match="label must have one channel on the grid of distance"):
        SignedDistanceLoss()(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 5))


# --- consistency of both tasks ----------------------------------------------------------------------------------------


def test_consistency_by_hand():
    # Probabilities of class 1: 3/4 and 1/4; sigmoid(-2 d): 1/2 and sigmoid(1).
    logits = torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)]]).reshape(1, 2, 1, 1, 2)
    distance = torch.tensor([0.0, -0.5]).reshape(1, 1, 1, 1, 2)
    expected = (0.25**2 + (1 / (1 + math.exp(-1)) - 0.25) ** 2) / 2
    assert TaskConsistencyLoss(steepness=2.0)(logits, distance).item() == pytest.approx(expected)


def test_consistency_of_three_classes_is_the_mean_over_the_foreground():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, 2, generator=generator)
    distance = torch.rand(2, 2, 2, 2, 2, generator=generator) - 0.5
    probabilities = logits.softmax(dim=1)
    errors = [((-3 * distance[:, c - 1]).sigmoid() - probabilities[:, c]).square().mean() for c in (1, 2)]
    assert TaskConsistencyLoss(3.0)(logits, distance).item() == pytest.approx(torch.stack(errors).mean().item())


def test_consistency_is_zero_where_both_tasks_agree():
    inside = random_label((1, 1, 4, 4, 4), 2).bool()
    logits = torch.cat((~inside, inside), dim=1) * 100.0
    distance = torch.where(inside, -0.5, 0.5)
    assert TaskConsistencyLoss()(logits, distance).item() == 0
    assert TaskConsistencyLoss()(logits, -distance).item() == pytest.approx(1)


def test_consistency_trains_both_tasks():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 4, 4, generator=generator, requires_grad=True)
    distance = (torch.rand(1, 2, 4, 4, 4, generator=generator) / 1000).requires_grad_()
    TaskConsistencyLoss()(logits, distance).backward()
    assert logits.grad.norm() > 0
    assert distance.grad.norm() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_consistency_is_finite(dtype):
    logits = (torch.tensor([1e6, -1e6]).reshape(1, 2, 1, 1, 1)).to(dtype).requires_grad_()
    for value in (-1.0, 0.0, 1.0):
        distance = torch.full((1, 1, 1, 1, 1), value, dtype=dtype, requires_grad=True)
        loss = TaskConsistencyLoss()(logits, distance)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == {-1.0: 1.0, 0.0: 0.25, 1.0: 0.0}[value]
        assert distance.grad.isfinite().all()
        assert (distance.grad != 0).all() == (value == 0.0)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("steepness", [0.0, -1500.0, math.inf, math.nan])
def test_steepness_is_refused(steepness):
    with pytest.raises(ValueError, match="steepness must be above 0 and finite, got"):
        TaskConsistencyLoss(steepness)


def test_consistency_refuses_other_shapes():
    with pytest.raises(ValueError, match="distance must have one channel for each foreground class"):
        TaskConsistencyLoss()(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="logits must be of shape"):
        TaskConsistencyLoss()(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 0, 4, 4, 4))
