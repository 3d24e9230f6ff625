# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values, direction, gradients and refusals of the rectification loss."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.rectification import RectificationLoss


def make_voxels(*rows):
    """Probabilities of voxels in a row, as logits (1, C, voxels, 1, 1)."""
    return torch.tensor(rows).log().T[None, :, :, None, None].contiguous()


def make_map(*values):
    return torch.tensor(values)[None, None, :, None, None]


# Foreground probabilities: sure against background, unsure against sure, both sure.
LOGITS = make_voxels([0.2, 0.8], [0.45, 0.55], [0.1, 0.9])
OTHER = make_voxels([0.9, 0.1], [0.1, 0.9], [0.2, 0.8])
LABEL = make_map(1, 0, 0)


def test_value_by_hand():
    # Disputed: the first voxel and, as 0.55 < 0.6, the second one. Each network has its squared error there.
    expected = (0.2**2 + 0.55**2) / 2 + (0.9**2 + 0.9**2) / 2
    assert RectificationLoss()(LOGITS, OTHER, LABEL).item() == pytest.approx(expected, rel=1e-5)
    assert RectificationLoss()(OTHER, LOGITS, LABEL).item() == pytest.approx(expected, rel=1e-5)
    # Without a threshold both call the second voxel foreground.
    assert RectificationLoss(0)(LOGITS, OTHER, LABEL).item() == pytest.approx(0.2**2 + 0.9**2, rel=1e-5)


def test_the_threshold_itself_is_confident():
    certain = torch.tensor([-200.0, 200.0]).reshape(1, 2, 1, 1, 1)
    assert RectificationLoss(1)(certain, -certain, make_map(0)).item() == 1
    # A tie is the class that comes first, here the background.
    assert RectificationLoss(0.5)(0 * certain, certain, make_map(0)).item() == pytest.approx(0.5**2 + 1)
    assert RectificationLoss(0.5)(0 * certain, -certain, make_map(0)).item() == 0


def test_value_of_three_classes():
    # Class 1 against class 2: the voxel is disputed in both channels.
    logits, other = make_voxels([0.1, 0.7, 0.2]), make_voxels([0.1, 0.1, 0.8])
    loss = RectificationLoss()(logits, other, make_map(2))
    assert loss.item() == pytest.approx((0.7**2 + 0.8**2 + 0.1**2 + 0.2**2) / 2, rel=1e-5)
    # Against the background only the channel of class 1 is.
    loss = RectificationLoss()(logits, make_voxels([0.8, 0.1, 0.1]), make_map(2))
    assert loss.item() == pytest.approx(0.7**2 + 0.1**2, rel=1e-5)


def test_each_network_learns_by_its_own_error_on_the_disputed_voxels():
    logits, other = LOGITS.clone().requires_grad_(), OTHER.clone().requires_grad_()
    RectificationLoss()(logits, other, LABEL).backward()
    disputed = torch.tensor([1.0, 1.0, 0.0])
    for found, values in ((logits.grad, LOGITS), (other.grad, OTHER)):
        values = values.clone().requires_grad_()
        errors = (values.softmax(dim=1)[:, 1] - LABEL[:, 0]).square().flatten()
        ((errors * disputed).sum() / 2).backward()
        torch.testing.assert_close(found, values.grad)
        assert (found.abs().sum(dim=1).flatten() > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_agreement_is_a_connected_zero(threshold):
    logits = torch.randn(2, 3, 4, 4, 4).requires_grad_()
    loss = RectificationLoss(threshold)(logits, logits.detach(), torch.ones(2, 1, 4, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("batch", [0, 1])
def test_all_background_and_no_voxels(batch):
    logits = torch.zeros(batch, 2, 4, 4, 4)
    logits[:, 0] = 5
    logits.requires_grad_()
    loss = RectificationLoss()(logits, logits.detach(), torch.zeros(batch, 1, 4, 4, 4))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_half_precision(dtype):
    logits = torch.tensor([60000.0, -60000.0, -60000.0], dtype=dtype).reshape(1, 3, 1, 1, 1)
    own = logits.flip(1).requires_grad_()
    # The network that is wrong has a squared error of 1, the other one none.
    loss = RectificationLoss()(own, logits, make_map(0))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(1)
    assert torch.isfinite(own.grad).all()


def test_label_of_any_number_type():
    assert RectificationLoss()(LOGITS, OTHER, LABEL.float()) == RectificationLoss()(LOGITS, OTHER, LABEL.byte())


def test_refusals():
    with pytest.raises(ValueError, match=r"got \(1, 2, 3, 1, 1\) and \(1, 2, 2, 1, 1\)"):
        RectificationLoss()(LOGITS, OTHER[:, :, :2], LABEL)
    with pytest.raises(ValueError, match=r"label .* got \(1, 2, 3, 1, 1\) beside \(1, 2, 3, 1, 1\)"):
        RectificationLoss()(LOGITS, OTHER, LABEL.expand(1, 2, 3, 1, 1))
    with pytest.raises(ValueError, match=r"C >= 2, got \(1, 1, 3, 1, 1\)"):
        RectificationLoss()(LOGITS[:, :1], OTHER[:, :1], LABEL)
    with pytest.raises(ValueError, match=r"threshold must be from 0 to 1, got 1\.5"):
        RectificationLoss(1.5)
