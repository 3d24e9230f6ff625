# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values, gradients and refusals of the squared distance of probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.mean_squared_error import SoftmaxMSELoss


def make_voxels(*rows):
    """Probabilities of voxels in a row, (1, C, voxels, 1, 1)."""
    return torch.tensor(rows).T[None, :, :, None, None].contiguous()


def make_mask(*values):
    return torch.tensor(values).view(1, 1, -1, 1, 1)


LOGITS = make_voxels([0.5, 0.3, 0.2], [0.1, 0.2, 0.7]).log()
TARGET = make_voxels([0.2, 0.3, 0.5], [0.1, 0.4, 0.5])
FIRST, SECOND = 0.3**2 + 0.3**2, 0.2**2 + 0.2**2


def test_value_by_hand():
    loss = SoftmaxMSELoss()
    assert loss(LOGITS, TARGET).item() == pytest.approx((FIRST + SECOND) / 6, rel=1e-5)
    assert loss(LOGITS, TARGET, make_mask(True, True)).item() == pytest.approx((FIRST + SECOND) / 6, rel=1e-5)
    # The mean goes over the voxels that count alone, and over the classes.
    assert loss(LOGITS, TARGET, make_mask(True, False)).item() == pytest.approx(FIRST / 3, rel=1e-5)
    assert loss(LOGITS, TARGET, make_mask(False, True)).item() == pytest.approx(SECOND / 3, rel=1e-5)


def test_zero_for_agreement_and_largest_value():
    certain = make_voxels([100.0, -100.0])
    assert SoftmaxMSELoss()(certain, certain.softmax(dim=1)).item() == 0
    assert SoftmaxMSELoss()(certain, certain.flip(1).softmax(dim=1)).item() == 1


def test_gradient_reaches_what_counts_alone():
    logits = LOGITS.clone().requires_grad_()
    SoftmaxMSELoss()(logits, TARGET, make_mask(False, True)).backward()
    assert (logits.grad[:, :, 0] == 0).all()
    # d/dz_k of sum_c (p_c - q_c)^2 / 3 = 2/3 p_k ((p_k - q_k) - sum_c p_c (p_c - q_c))
    p, difference = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.0, -0.2, 0.2])
    expected = 2 / 3 * p * (difference - (p * difference).sum())
    torch.testing.assert_close(logits.grad[0, :, 1, 0, 0], expected)


@pytest.mark.parametrize("mask", [None, make_mask(True, False)])
def test_target_is_used_as_given(mask):
    logits, target = LOGITS.clone().requires_grad_(), TARGET.clone().requires_grad_()
    SoftmaxMSELoss()(logits, target, mask).backward()
    assert target.grad.abs().sum() > 0
    assert logits.grad.abs().sum() > 0
    logits.grad = None
    SoftmaxMSELoss()(logits, TARGET, mask).backward()
    assert logits.grad.abs().sum() > 0


def test_empty_mask_is_a_connected_zero():
    logits = LOGITS.clone().requires_grad_()
    loss = SoftmaxMSELoss()(logits, TARGET, make_mask(False, False))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_half_precision(dtype):
    logits = make_voxels([60000.0, -60000.0], [1.0, 0.0]).to(dtype).requires_grad_()
    loss = SoftmaxMSELoss()(logits, make_voxels([0.0, 1.0], [0.0, 1.0]).to(dtype))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    foreground = 1 / (1 + math.exp(-1))
    assert loss.item() == pytest.approx((1 + foreground**2) / 2, rel=1e-5)
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("mask", [None, torch.ones(0, 1, 4, 4, 4, dtype=torch.bool)])
def test_batch_without_voxels_is_a_connected_zero(mask):
    logits = torch.zeros(0, 2, 4, 4, 4, requires_grad=True)
    loss = SoftmaxMSELoss()(logits, torch.zeros(0, 2, 4, 4, 4), mask)
    loss.backward()
    assert loss.item() == 0


def test_refusals():
    loss, logits = SoftmaxMSELoss(), torch.zeros(1, 2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"shape of logits, got \(1, 1, 4, 4, 4\) beside \(1, 2, 4, 4, 4\)"):
        loss(logits, torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"C >= 2, got \(1, 1, 4, 4, 4\)"):
        loss(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"mask must have one channel .* got \(1, 2, 4, 4, 4\)"):
        loss(logits, logits, torch.ones(1, 2, 4, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be bool, got torch\.float32"):
        loss(logits, logits, torch.ones(1, 1, 4, 4, 4))
