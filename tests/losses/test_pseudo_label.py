# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values, gradients and refusals of the pseudo-label loss."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.pseudo_label import PseudoLabelLoss


def make_voxels(*rows):
    """Probabilities of voxels in a row, as logits (1, C, voxels, 1, 1)."""
    return torch.tensor(rows).log().T[None, :, :, None, None].contiguous()


def make_map(*values):
    return torch.tensor(values)[None, None, :, None, None]


LOGITS = make_voxels([0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.5, 0.5])
PSEUDO_LABEL = make_map(0, 1, 0, 1)
RELIABLE = make_map(True, True, False, False)
EXPECTED = -(math.log(0.8) + math.log(0.6)) / 2


def test_value_by_hand():
    assert PseudoLabelLoss()(LOGITS, PSEUDO_LABEL, RELIABLE).item() == pytest.approx(EXPECTED, rel=1e-5)
    # Two of four voxels are reliable: the factor is 2.
    renormalized = PseudoLabelLoss("total_over_valid")(LOGITS, PSEUDO_LABEL, RELIABLE)
    assert renormalized.item() == pytest.approx(2 * EXPECTED, rel=1e-5)


def test_value_of_three_classes():
    logits = make_voxels([0.7, 0.2, 0.1], [0.25, 0.25, 0.5])
    loss = PseudoLabelLoss()(logits, make_map(1, 2), make_map(True, True))
    assert loss.item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2, rel=1e-5)


def test_all_reliable_is_plain_cross_entropy_for_both_options():
    logits, label = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 1, 4, 4, 4))
    expected = torch.nn.functional.cross_entropy(logits, label[:, 0])
    for renormalize in ("none", "total_over_valid"):
        loss = PseudoLabelLoss(renormalize)(logits, label, torch.ones_like(label, dtype=torch.bool))
        assert torch.allclose(loss, expected)


def test_zero_for_a_certain_right_prediction():
    logits = torch.tensor([100.0, -100.0]).reshape(1, 2, 1, 1, 1)
    assert PseudoLabelLoss()(logits, make_map(0), make_map(True)).item() == 0


def test_gradient_only_at_reliable_voxels():
    logits = LOGITS.clone().requires_grad_()
    PseudoLabelLoss()(logits, PSEUDO_LABEL, RELIABLE).backward()
    reached = logits.grad.abs().sum(dim=1).flatten() > 0
    assert reached.tolist() == [True, True, False, False]


def test_value_of_the_label_does_not_matter_where_unreliable():
    other = make_map(0, 1, 255, -7)
    assert PseudoLabelLoss()(LOGITS, other, RELIABLE) == PseudoLabelLoss()(LOGITS, PSEUDO_LABEL, RELIABLE)


@pytest.mark.parametrize("renormalize", ["none", "total_over_valid"])
@pytest.mark.parametrize("batch", [0, 2])
def test_no_reliable_voxel_is_a_connected_zero(renormalize, batch):
    logits = (torch.randn(batch, 2, 4, 4, 4) * 1e4).requires_grad_()
    label = torch.zeros(batch, 1, 4, 4, 4, dtype=torch.long)
    loss = PseudoLabelLoss(renormalize)(logits, label, torch.zeros_like(label, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_half_precision(dtype):
    logits = torch.tensor([60000.0, -60000.0, -60000.0], dtype=dtype).reshape(1, 3, 1, 1, 1).requires_grad_()
    loss = PseudoLabelLoss()(logits, make_map(2), make_map(True))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(120000, rel=1e-2)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


def test_refusals():
    loss = PseudoLabelLoss()
    with pytest.raises(ValueError, match=r"pseudo_label .* got \(1, 1, 3, 1, 1\) beside \(1, 2, 4, 1, 1\)"):
        loss(LOGITS, make_map(0, 1, 0), RELIABLE)
    with pytest.raises(ValueError, match=r"reliable .* got \(4, 1, 1\) beside \(1, 2, 4, 1, 1\)"):
        loss(LOGITS, PSEUDO_LABEL, RELIABLE[0, 0])
    with pytest.raises(ValueError, match=r"reliable must be bool, got torch\.int64"):
        loss(LOGITS, PSEUDO_LABEL, RELIABLE.long())
    with pytest.raises(ValueError, match=r"C >= 2, got \(1, 1, 4, 1, 1\)"):
        loss(LOGITS[:, :1], PSEUDO_LABEL, RELIABLE)
    with pytest.raises(ValueError, match="renormalize must be 'none' or 'total_over_valid', got 'mean'"):
        PseudoLabelLoss("mean")
