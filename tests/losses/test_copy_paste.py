# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The box, the cleaned pseudo-label and the losses of mixed crops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scripts.losses.copy_paste import (
    CopyPasteLoss,
    DistanceCorrectionLoss,
    EntropyCorrectionLoss,
    copy_paste_mask,
    keep_largest_components,
)

CORRECTIONS = [DistanceCorrectionLoss, EntropyCorrectionLoss]


def make_voxels(*rows):
    """Probabilities of voxels in a row, as logits (1, C, voxels, 1, 1)."""
    return torch.tensor(rows).log().T[None, :, :, None, None].contiguous()


def make_map(*values):
    return torch.tensor(values)[None, None, :, None, None]


def random_case(num_classes, size=(4, 3, 5)):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn((2, num_classes, *size), generator=generator)
    label = torch.randint(num_classes, (2, 1, *size), generator=generator)
    labeled = torch.rand((2, 1, *size), generator=generator) > 0.3
    return logits, label, labeled


# --- the box ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "sides"), [((112, 112, 80), (74, 74, 53)), ((96, 96, 96), (64, 64, 64)), ((7, 5, 4), (4, 3, 2))]
)
def test_box_has_two_thirds_of_each_side(size, sides):
    mask = copy_paste_mask(torch.zeros(2, 3, *size))
    assert mask.shape == (2, 1, *size)
    assert mask.dtype == torch.bool
    assert torch.equal(mask[0], mask[1])
    inside = (~mask[0, 0]).nonzero()
    assert tuple((inside.amax(dim=0) - inside.amin(dim=0) + 1).tolist()) == sides
    # As many voxels as its bounding box: it is full.
    assert len(inside) == math.prod(sides)


def test_every_position_is_drawn_and_no_other():
    image = torch.zeros(1, 1, 4, 3, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        starts = {
            tuple((~copy_paste_mask(image, fraction=0.5)[0, 0]).nonzero().amin(dim=0).tolist()) for _ in range(400)
        }
    # Sides 2, 1 and 1.
    assert starts == {(x, y, z) for x in range(3) for y in range(3) for z in range(2)}


def test_box_follows_the_global_generator():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, other = (copy_paste_mask(torch.zeros(1, 1, 32, 32, 32)) for _ in range(2))
        torch.manual_seed(3)
        again = copy_paste_mask(torch.zeros(1, 1, 32, 32, 32))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_box_of_a_crop_too_small_for_one_is_empty():
    assert copy_paste_mask(torch.zeros(1, 1, 1, 1, 1)).all()


@pytest.mark.parametrize("fraction", [0, 1, -0.5, math.nan])
def test_fraction_is_refused(fraction):
    with pytest.raises(ValueError, match=f"fraction must be above 0 and below 1, got {fraction}"):
        copy_paste_mask(torch.zeros(1, 1, 4, 4, 4), fraction=fraction)


# --- the pseudo-label -------------------------------------------------------------------------------------------------


def test_largest_component_of_each_crop_and_class():
    label = torch.zeros(2, 1, 8, 4, 4, dtype=torch.long)
    label[0, 0, :3, 0, 0] = 1
    label[0, 0, 5:7, 0, 0] = 1
    label[0, 0, 0, 3, 3] = 2
    label[0, 0, 2:4, 3, 3] = 2
    label[1, 0, 5:7, 0, 0] = 1
    expected = label.clone()
    # The smaller one of each class goes; what is smaller in one crop stays where it is alone.
    expected[0, 0, 5:7, 0, 0] = 0
    expected[0, 0, 0, 3, 3] = 0
    before = label.clone()
    kept = keep_largest_components(label)
    assert torch.equal(kept, expected)
    assert kept.dtype == label.dtype
    assert torch.equal(label, before)


def test_corners_connect():
    label = torch.zeros(1, 1, 3, 3, 3, dtype=torch.long)
    for i in range(3):
        label[0, 0, i, i, i] = 1
    assert torch.equal(keep_largest_components(label), label)


@pytest.mark.parametrize("value", [0, 2])
def test_one_class_alone_stays(value):
    label = torch.full((2, 1, 3, 3, 3), value)
    assert torch.equal(keep_largest_components(label), label)


# --- cross-entropy and Dice by region ---------------------------------------------------------------------------------


def test_copy_paste_loss_by_hand():
    # A labeled voxel of class 1 with p = 0.8, an unlabeled one of class 0 with p = 0.6.
    logits, label = make_voxels([0.2, 0.8], [0.6, 0.4]), make_map(1, 0)
    labeled = make_map(True, False)
    # Dice of the labeled region: class 0 has p = 0.2 and no voxel (loss 1), class 1 has 2 * 0.8 / (0.8 + 1).
    of_labeled = -math.log(0.8) + (1 + 1 - 1.6 / 1.8) / 2
    of_unlabeled = -math.log(0.6) + (1 - 1.2 / 1.6 + 1) / 2
    expected = (of_labeled + 0.5 * of_unlabeled) / 2
    assert CopyPasteLoss()(logits, label, labeled).item() == pytest.approx(expected, abs=1e-4)
    assert CopyPasteLoss(0.0)(logits, label, labeled).item() == pytest.approx(of_labeled / 2, abs=1e-4)
    # The regions exchanged.
    expected = (of_unlabeled + 0.5 * of_labeled) / 2
    assert CopyPasteLoss()(logits, label, ~labeled).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_copy_paste_loss_equals_numpy(num_classes):
    logits, label, labeled = random_case(num_classes)
    p = logits.double().softmax(dim=1).numpy()
    y = np.moveaxis(np.eye(num_classes)[label[:, 0].numpy()], -1, 1)
    expected = 0.0
    for region, weight in ((labeled, 1.0), (~labeled, 0.5)):
        m = region.numpy().astype(float)
        cross_entropy = -(np.log(p) * y * m).sum() / m.sum()
        dice = []
        for b in range(2):
            for c in range(num_classes):
                overlap = (p[b, c] * y[b, c] * m[b, 0]).sum()
                total = ((p[b, c] + y[b, c]) * m[b, 0]).sum()
                dice.append(1 - (2 * overlap + 1e-5) / (total + 1e-5))
        expected += weight * (cross_entropy + np.mean(dice)) / 2
    assert CopyPasteLoss()(logits, label, labeled).item() == pytest.approx(expected, rel=1e-5)


def test_each_region_trains_its_voxels_by_its_weight():
    logits, label, labeled = random_case(3)
    gradients = []
    for weight in (0.0, 0.5, 1.0):
        leaf = logits.clone().requires_grad_()
        CopyPasteLoss(weight)(leaf, label, labeled).backward()
        gradients.append(leaf.grad)
    unlabeled = ~labeled.expand_as(logits)
    assert torch.equal(gradients[0][unlabeled], torch.zeros_like(gradients[0][unlabeled]))
    torch.testing.assert_close(2 * gradients[1][unlabeled], gradients[2][unlabeled])
    assert (gradients[2] != 0).all()
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient[~unlabeled], gradients[0][~unlabeled])


@pytest.mark.parametrize("value", [True, False])
def test_region_without_voxels_adds_nothing(value):
    logits, label, _ = random_case(3)
    leaf = logits.requires_grad_()
    labeled = torch.full_like(label, value, dtype=torch.bool)
    loss = CopyPasteLoss(unlabeled_weight=0.25)(leaf, label, labeled)
    loss.backward()
    whole = CopyPasteLoss(unlabeled_weight=0.0)(logits.detach(), label, torch.ones_like(labeled))
    assert loss.item() == pytest.approx(whole.item() * (1 if value else 0.25), rel=1e-5)
    assert leaf.grad.isfinite().all()


def test_perfect_prediction_is_zero():
    _, label, labeled = random_case(3)
    logits = 100 * torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).float()
    assert CopyPasteLoss()(logits, label, labeled).item() == pytest.approx(0, abs=1e-6)


# --- corrections where two networks disagree --------------------------------------------------------------------------

# Disputed: a labeled voxel that is right, an unlabeled one that is wrong, a labeled one that is wrong.
LOGITS = make_voxels([0.2, 0.8], [0.6, 0.4], [0.9, 0.1], [0.7, 0.3])
LABEL = make_map(1, 1, 1, 1)
LABELED = make_map(True, False, True, True)
DISPUTED = make_map(True, True, True, False)


def test_distance_by_hand():
    # The mean over both classes of two equal squares is one of them.
    expected = (0.2**2 + 0.5 * 0.6**2 + 0.9**2) / 3
    assert DistanceCorrectionLoss()(LOGITS, LABEL, LABELED, DISPUTED).item() == pytest.approx(expected, rel=1e-5)
    expected = (0.2**2 + 2 * 0.6**2 + 0.9**2) / 3
    assert DistanceCorrectionLoss(2.0)(LOGITS, LABEL, LABELED, DISPUTED).item() == pytest.approx(expected, rel=1e-5)


def test_entropy_by_hand():
    unlabeled, labeled = (-math.log(2) - (math.log(p) + math.log(1 - p)) / 2 for p in (0.4, 0.1))
    expected = (0.5 * unlabeled + labeled) / 2
    assert EntropyCorrectionLoss()(LOGITS, LABEL, LABELED, DISPUTED).item() == pytest.approx(expected, rel=1e-5)


def test_three_classes_by_hand():
    logits, one = make_voxels([0.5, 0.3, 0.2]), make_map(True)
    distance = DistanceCorrectionLoss()(logits, make_map(2), one, one)
    assert distance.item() == pytest.approx((0.5**2 + 0.3**2 + 0.8**2) / 3, rel=1e-5)
    entropy = EntropyCorrectionLoss()(logits, make_map(2), one, one)
    assert entropy.item() == pytest.approx(-math.log(3) - math.log(0.5 * 0.3 * 0.2) / 3, rel=1e-5)


def test_entropy_vanishes_at_the_uniform_distribution():
    logits = torch.tensor([1e-6, 0.0, 0.0]).reshape(1, 3, 1, 1, 1)
    one = make_map(True)
    assert EntropyCorrectionLoss()(logits, make_map(2), one, one).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("correction", "moved"), [(DistanceCorrectionLoss, 3), (EntropyCorrectionLoss, 2)])
def test_corrections_train_disputed_voxels_alone(correction, moved):
    logits = LOGITS.clone().requires_grad_()
    correction()(logits, LABEL, LABELED, DISPUTED).backward()
    trained = (logits.grad.abs().sum(dim=1).flatten() > 0).tolist()
    assert trained == ([True, True, True, False] if moved == 3 else [False, True, True, False])


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_nothing_disputed_is_a_connected_zero(correction):
    logits = LOGITS.clone().requires_grad_()
    loss = correction()(logits, LABEL, LABELED, torch.zeros_like(DISPUTED))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# --- all losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CopyPasteLoss, *CORRECTIONS])
def test_label_of_any_number_type(kind):
    logits, label, labeled = random_case(3)
    masks = (labeled,) if kind is CopyPasteLoss else (labeled, torch.ones_like(labeled))
    losses = [kind()(logits, label.to(dtype), *masks).item() for dtype in (torch.long, torch.float, torch.uint8)]
    assert losses[0] > 0
    assert losses == losses[:1] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [CopyPasteLoss, *CORRECTIONS])
def test_saturated_half_precision(kind, dtype):
    logits = torch.tensor([[60000.0, -60000.0], [-60000.0, 60000.0]], dtype=dtype).T.reshape(1, 2, 2, 1, 1)
    logits = logits.contiguous().requires_grad_()
    mask = make_map(True, True)
    loss = kind()(logits, make_map(1, 1), mask, *([] if kind is CopyPasteLoss else [mask]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert loss.isfinite()
    assert loss > 0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", [CopyPasteLoss, *CORRECTIONS])
def test_refusals(kind):
    rest = () if kind is CopyPasteLoss else (DISPUTED,)
    with pytest.raises(ValueError, match=r"unlabeled_weight must be at least 0, got -0\.5"):
        kind(-0.5)
    with pytest.raises(ValueError, match=r"C >= 2, got \(1, 1, 4, 1, 1\)"):
        kind()(LOGITS[:, :1], LABEL, LABELED, *rest)
    with pytest.raises(ValueError, match=r"label .* got \(1, 1, 3, 1, 1\) beside \(1, 2, 4, 1, 1\)"):
        kind()(LOGITS, LABEL[:, :, 1:], LABELED, *rest)
    with pytest.raises(ValueError, match=r"labeled .* got \(1, 1, 3, 1, 1\) beside \(1, 2, 4, 1, 1\)"):
        kind()(LOGITS, LABEL, LABELED[:, :, 1:], *rest)
    with pytest.raises(ValueError, match=r"labeled must be bool, got torch\.float32"):
        kind()(LOGITS, LABEL, LABELED.float(), *rest)
    if rest:
        with pytest.raises(ValueError, match=r"disputed must be bool, got torch\.float32"):
            kind()(LOGITS, LABEL, LABELED, DISPUTED.float())
