# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values, gradients and refusals of the supervised loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scripts.losses.supervised import SupervisedLoss


def numpy_reference(logits, label):
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    cross_entropy = -np.log(np.take_along_axis(probabilities, label, axis=1)).mean()
    dice = []
    for index in range(1, logits.shape[1]):
        p, y = probabilities[:, index], (label[:, 0] == index).astype(float)
        dice.append(1 - (2 * (p * y).sum() + 1e-5) / ((p**2).sum() + (y**2).sum() + 1e-5))
    return cross_entropy, np.mean(dice)


def test_value_by_hand():
    # Two voxels at p = 1/2, one of them foreground: CE = ln 2, Dice = 1 - 2 * 0.5 / (2 * 0.25 + 1) = 1/3.
    logits = torch.zeros(1, 2, 2, 1, 1)
    label = torch.tensor([1, 0]).reshape(1, 1, 2, 1, 1)
    assert SupervisedLoss()(logits, label).item() == pytest.approx(math.log(2) + 1 / 3, abs=1e-5)
    assert SupervisedLoss(dice_weight=0)(logits, label).item() == pytest.approx(math.log(2), abs=1e-6)
    assert SupervisedLoss(cross_entropy_weight=0)(logits, label).item() == pytest.approx(1 / 3, abs=1e-5)


def test_value_by_hand_without_squares():
    # The two voxels from above: 1 - 2 * 0.5 / (2 * 0.5 + 1) = 1/2.
    logits = torch.zeros(1, 2, 2, 1, 1)
    label = torch.tensor([1, 0]).reshape(1, 1, 2, 1, 1)
    assert SupervisedLoss(squared=False)(logits, label).item() == pytest.approx(math.log(2) + 1 / 2, abs=1e-5)
    loss = SupervisedLoss(dice_weight=0.5, cross_entropy_weight=0, squared=False)
    assert loss(logits, label).item() == pytest.approx(1 / 4, abs=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_equals_numpy(num_classes):
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, num_classes, 4, 3, 5)) * 3
    label = random.integers(0, num_classes, size=(2, 1, 4, 3, 5))
    cross_entropy, dice = numpy_reference(logits, label)
    loss = SupervisedLoss(dice_weight=0.5, cross_entropy_weight=2.0)(torch.tensor(logits), torch.tensor(label))
    assert loss.item() == pytest.approx(2 * cross_entropy + 0.5 * dice, rel=1e-5)


def test_three_classes_without_squares():
    # Classes 1 and 2 of two voxels at p = 1/3, one of them class 1: 1 - 2/3 / (2/3 + 1) and, without a voxel, 1.
    label = torch.tensor([1, 0]).reshape(1, 1, 2, 1, 1)
    loss = SupervisedLoss(cross_entropy_weight=0, squared=False)(torch.zeros(1, 3, 2, 1, 1), label)
    assert loss.item() == pytest.approx((3 / 5 + 1) / 2, abs=1e-4)


def test_zero_for_a_perfect_prediction_and_label_of_any_number_type():
    label = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = 100 * torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).float()
    assert SupervisedLoss()(logits, label).item() == pytest.approx(0, abs=1e-6)
    assert SupervisedLoss()(logits, label.float()) == SupervisedLoss()(logits, label.byte())


@pytest.mark.parametrize("squared", [True, False])
def test_all_background_is_finite_with_gradient(squared):
    logits = torch.randn(2, 3, 4, 4, 4).requires_grad_()
    loss = SupervisedLoss(squared=squared)(logits, torch.zeros(2, 1, 4, 4, 4))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_saturated_half_precision(dtype, num_classes):
    logits = torch.full((1, num_classes, 4, 4, 4), -60000.0, dtype=dtype)
    logits[:, 1] = 60000.0
    logits.requires_grad_()
    loss = SupervisedLoss()(logits, torch.zeros(1, 1, 4, 4, 4))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_batch_without_voxels_is_a_connected_zero():
    logits = torch.zeros(0, 2, 4, 4, 4, requires_grad=True)
    loss = SupervisedLoss()(logits, torch.zeros(0, 1, 4, 4, 4))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("value", [-100, -1, 3])
def test_a_class_that_is_not_there_is_refused(value):
    label = torch.zeros(1, 1, 4, 4, 4)
    label[0, 0, 1, 2, 3] = value
    with pytest.raises(IndexError):
        SupervisedLoss()(torch.zeros(1, 3, 4, 4, 4), label)


def test_refusals():
    loss = SupervisedLoss()
    with pytest.raises(ValueError, match=r"label .* got \(1, 2, 4, 4, 4\) beside \(1, 2, 4, 4, 4\)"):
        loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(ValueError, match=r"label .* got \(1, 1, 4, 4, 3\) beside \(1, 2, 4, 4, 4\)"):
        loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"C >= 2, got \(1, 1, 4, 4, 4\)"):
        loss(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="dice_weight must be at least 0, got -1"):
        SupervisedLoss(dice_weight=-1)
    with pytest.raises(ValueError, match="cross_entropy_weight must be at least 0, got nan"):
        SupervisedLoss(cross_entropy_weight=math.nan)
