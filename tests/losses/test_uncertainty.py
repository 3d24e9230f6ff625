# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values, direction, gradients and refusals of the uncertainty loss."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.uncertainty import UncertaintyLoss


def make_voxels(*rows):
    """Probabilities of voxels in a row, as logits (1, C, voxels, 1, 1)."""
    return torch.tensor(rows).log().T[None, :, :, None, None].contiguous()


STUDENT = make_voxels([0.25, 0.75])
TEACHER = make_voxels([2 / 3, 1 / 3])
DIVERGENCE = 2 / 3 * math.log((2 / 3) / 0.25) + 1 / 3 * math.log((1 / 3) / 0.75)


def test_value_by_hand():
    # Temperature 1/2 squares the odds of the teacher: 2 to 1 becomes 4 to 1.
    cross_entropy = -(0.8 * math.log(0.25) + 0.2 * math.log(0.75))
    expected = math.exp(-DIVERGENCE) * cross_entropy + DIVERGENCE
    assert UncertaintyLoss()(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)
    assert UncertaintyLoss(detach_weight=True)(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)
    expected = math.exp(-DIVERGENCE) * -math.log(0.25) + DIVERGENCE
    assert UncertaintyLoss(target="hard")(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)


def test_value_of_three_classes_and_mean_over_voxels():
    student = make_voxels([0.5, 0.25, 0.25], [0.2, 0.3, 0.5])
    teacher = make_voxels([0.5, 0.25, 0.25], [0.5, 0.3, 0.2])
    # The first voxel agrees: its divergence is 0 and its weight is 1.
    first = -math.log(0.5)
    divergence = 0.5 * math.log(2.5) + 0.2 * math.log(0.4)
    second = math.exp(-divergence) * -math.log(0.2) + divergence
    loss = UncertaintyLoss(target="hard")(student, teacher)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize("target", ["soft", "hard"])
def test_zero_for_certain_agreement_and_asymmetry(target):
    certain = torch.tensor([100.0, -100.0]).reshape(1, 2, 1, 1, 1)
    loss = UncertaintyLoss(target)
    assert loss(certain, certain).item() == 0
    assert loss(STUDENT, TEACHER).item() != pytest.approx(loss(TEACHER, STUDENT).item(), rel=1e-3)


def test_temperature_acts_on_the_soft_target_alone():
    student, teacher = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    soft = [UncertaintyLoss("soft", temperature=t)(student, teacher).item() for t in (0.5, 5.0)]
    hard = [UncertaintyLoss("hard", temperature=t)(student, teacher).item() for t in (0.5, 5.0)]
    assert abs(soft[0] - soft[1]) > 1e-2
    assert hard[0] == hard[1]
    # A very small temperature turns the soft target into the hard one.
    assert UncertaintyLoss("soft", temperature=1e-5)(student, teacher).item() == pytest.approx(hard[0], rel=1e-3)


@pytest.mark.parametrize("target", ["soft", "hard"])
@pytest.mark.parametrize("detach_weight", [False, True])
def test_gradient_to_the_student_alone(target, detach_weight):
    student, teacher = torch.randn(2, 3, 4, 4, 4).requires_grad_(), torch.randn(2, 3, 4, 4, 4).requires_grad_()
    UncertaintyLoss(target, detach_weight=detach_weight)(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_detached_weight_changes_only_the_gradient():
    gradients = []
    for detach_weight in (False, True):
        student = STUDENT.clone().requires_grad_()
        UncertaintyLoss(detach_weight=detach_weight)(student, TEACHER).backward()
        gradients.append(student.grad.flatten())
    # d KL / dz = p - p_teacher, and d CE / dz = p - q; the free weight adds -exp(-KL) * CE * d KL / dz.
    p, teacher, q = torch.tensor([0.25, 0.75]), torch.tensor([2 / 3, 1 / 3]), torch.tensor([0.8, 0.2])
    weight = math.exp(-DIVERGENCE)
    cross_entropy = -(0.8 * math.log(0.25) + 0.2 * math.log(0.75))
    held = weight * (p - q) + (p - teacher)
    assert torch.allclose(gradients[1], held, atol=1e-6)
    assert torch.allclose(gradients[0], held - weight * cross_entropy * (p - teacher), atol=1e-6)


@pytest.mark.parametrize("target", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_half_precision(target, dtype):
    logits = torch.tensor([60000.0, -60000.0, -60000.0], dtype=dtype).reshape(1, 3, 1, 1, 1)
    student = logits.flip(1).requires_grad_()
    loss = UncertaintyLoss(target)(student, logits)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    # The weight is exp(-120000) = 0: the divergence alone is left.
    assert loss.item() == pytest.approx(120000, rel=1e-2)
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0


def test_batch_without_voxels_is_a_connected_zero():
    student = torch.zeros(0, 2, 4, 4, 4, requires_grad=True)
    loss = UncertaintyLoss()(student, torch.zeros(0, 2, 4, 4, 4))
    loss.backward()
    assert loss.item() == 0


def test_refusals():
    with pytest.raises(ValueError, match=r"got \(1, 2, 4, 4, 4\) and \(1, 3, 4, 4, 4\)"):
        UncertaintyLoss()(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(ValueError, match=r"logits_student must be of shape .* got \(1, 1, 4, 4, 4\)"):
        UncertaintyLoss()(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="target must be 'soft' or 'hard', got 'sharp'"):
        UncertaintyLoss("sharp")
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        UncertaintyLoss(temperature=0)
