# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values, symmetry, gradients and refusals of the consistency loss."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.consistency import ConsistencyLoss

MODES = ["voxel", "volume"]


def make_voxels(*rows):
    """Probabilities of voxels in a row, as logits (1, C, voxels, 1, 1)."""
    return torch.tensor(rows).log().T[None, :, :, None, None].contiguous()


def test_value_by_hand():
    a = make_voxels([0.8, 0.2], [0.5, 0.5])
    b = make_voxels([0.2, 0.8], [0.5, 0.5])
    # First voxel: cos = 0.32 / 0.68; second voxel: cos = 1. Flattened: (0.32 + 0.5) / (0.68 + 0.5).
    assert ConsistencyLoss()(a, b).item() == pytest.approx((1 - 0.32 / 0.68) / 2, rel=1e-5)
    assert ConsistencyLoss("volume")(a, b).item() == pytest.approx(1 - 0.82 / 1.18, rel=1e-5)


def test_value_of_three_classes():
    a, b = make_voxels([0.6, 0.2, 0.2]), make_voxels([0.2, 0.2, 0.6])
    assert ConsistencyLoss()(a, b).item() == pytest.approx(1 - 0.28 / 0.44, rel=1e-5)


def test_volume_is_the_mean_over_samples():
    a, b = torch.randn(3, 2, 4, 4, 4), torch.randn(3, 2, 4, 4, 4)
    single = [ConsistencyLoss("volume")(a[i : i + 1], b[i : i + 1]) for i in range(3)]
    assert torch.allclose(ConsistencyLoss("volume")(a, b), torch.stack(single).mean())


@pytest.mark.parametrize("mode", MODES)
def test_zero_symmetry_and_range(mode):
    loss = ConsistencyLoss(mode)
    a, b = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    assert loss(a, a).item() == 0
    # A constant added to the logits of a voxel changes no probability.
    assert loss(a, a + 7).item() == pytest.approx(0, abs=1e-9)
    assert loss(a, b) == loss(b, a)
    assert 0 < loss(a, b) < 1


@pytest.mark.parametrize("mode", MODES)
def test_opposite_certainty_is_one(mode):
    a = torch.tensor([50.0, -50.0]).reshape(1, 2, 1, 1, 1).expand(2, 2, 3, 3, 3)
    assert ConsistencyLoss(mode)(a, -a).item() == pytest.approx(1)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_to_both(mode):
    a, b = torch.randn(2, 2, 4, 4, 4).requires_grad_(), torch.randn(2, 2, 4, 4, 4).requires_grad_()
    ConsistencyLoss(mode)(a, b).backward()
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0


def test_small_disagreement_is_not_lost_to_rounding():
    # tan of the angle is about 1e-4 here: 1 - cos = 5e-9, below the resolution of float32 next to 1.
    a, b = torch.zeros(1, 2, 1, 1, 1), torch.tensor([1e-4, -1e-4]).reshape(1, 2, 1, 1, 1)
    assert ConsistencyLoss()(a, b).item() == pytest.approx(5e-9, rel=1e-2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_half_precision(mode, dtype):
    logits = torch.tensor([60000.0, -60000.0, -60000.0], dtype=dtype).reshape(1, 3, 1, 1, 1)
    a, b = logits.clone().requires_grad_(), logits.flip(1).requires_grad_()
    loss = ConsistencyLoss(mode)(a, b)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(1)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


@pytest.mark.parametrize("mode", MODES)
def test_batch_without_voxels_is_a_connected_zero(mode):
    a, b = torch.zeros(0, 2, 4, 4, 4, requires_grad=True), torch.zeros(0, 2, 4, 4, 4, requires_grad=True)
    loss = ConsistencyLoss(mode)(a, b)
    loss.backward()
    assert loss.item() == 0
    assert math.prod(a.grad.shape) == math.prod(b.grad.shape) == 0


def test_refusals():
    with pytest.raises(ValueError, match=r"got \(1, 2, 4, 4, 4\) and \(1, 2, 4, 4, 3\)"):
        ConsistencyLoss()(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"logits_a must be of shape .* got \(1, 1, 4, 4, 4\)"):
        ConsistencyLoss()(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="mode must be 'voxel' or 'volume', got 'batch'"):
        ConsistencyLoss("batch")
