# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values, gradients, sampling, degenerate batches and refusals of the contrastive loss."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.losses.contrastive import PrototypeContrastiveLoss, _SumsAndSample, _unit

FORMS = ["hinge", "infonce", "literal", "own_class_minimized"]
ROOT_2 = math.sqrt(2)


def make_case(*voxels):
    """(feature vector, class, reliable) of each voxel -> features, pseudo_label, reliable on a grid of a row."""
    vectors, classes, reliable = zip(*voxels, strict=True)
    features = torch.tensor(vectors).T[None, :, :, None, None].contiguous()
    return features, *(torch.tensor(values)[None, None, :, None, None] for values in (classes, reliable))


def make_loss(form="hinge", num_classes=2, **options):
    return PrototypeContrastiveLoss(num_classes, form, **{"min_reliable": 1, "sample_fraction": 1.0, **options})


def gradient_per_voxel(loss, features, *maps):
    features = features.clone().requires_grad_()
    loss(features, *maps).backward()
    return features.grad.abs().sum(dim=1).flatten()


# Prototypes (2, 0) and (0, 3); the uncertain voxel of class 0 points along (1, 1), the one of class 1 along (0, 1).
CASE = make_case(
    ([1.0, 0.0], 0, True), ([3.0, 0.0], 0, True), ([0.0, 3.0], 1, True), ([0.5, 0.5], 0, False), ([0.0, 7.0], 1, False)
)
DIAGONAL = math.sqrt(2 - ROOT_2)  # distance of unit vectors 45 degrees apart


def test_values_by_hand():
    assert make_loss("hinge")(*CASE).item() == pytest.approx(DIAGONAL / 2, abs=1e-5)
    assert make_loss("hinge", margin=1.5)(*CASE).item() == pytest.approx(DIAGONAL / 2 + 1.5 - ROOT_2, abs=1e-5)
    assert make_loss("own_class_minimized")(*CASE).item() == pytest.approx(DIAGONAL + ROOT_2, abs=1e-5)
    # Both voxels to both prototypes: (DIAGONAL + DIAGONAL) and (sqrt 2 + 0).
    assert make_loss("literal")(*CASE).item() == pytest.approx((2 * DIAGONAL + ROOT_2) / 2 + ROOT_2, abs=1e-5)
    # Cosines 1/sqrt 2 and 1/sqrt 2 for the first, 0 and 1 for the second voxel; temperature 1.
    expected = (math.log(2) + math.log(1 + math.exp(-1))) / 2
    assert make_loss("infonce", temperature=1.0)(*CASE).item() == pytest.approx(expected, abs=1e-5)


def test_three_classes_by_hand():
    features, pseudo_label, reliable = make_case(
        ([1.0, 0.0, 0.0], 0, True),
        ([0.0, 1.0, 0.0], 1, True),
        ([0.0, 0.0, 1.0], 2, True),
        ([0.0, 1.0, 0.0], 0, False),
        ([0.0, 1.0, 0.0], 1, False),
        ([0.0, 1.0, 0.0], 2, False),
    )
    case = features, pseudo_label, reliable
    assert make_loss("hinge", 3, margin=1.5)(*case).item() == pytest.approx(2 * ROOT_2 / 3 + 1.5 - ROOT_2, abs=1e-5)
    assert make_loss("literal", 3)(*case).item() == pytest.approx(2 * ROOT_2 + 3 * ROOT_2, abs=1e-5)
    assert make_loss("own_class_minimized", 3)(*case).item() == pytest.approx(2 * ROOT_2 + 3 * ROOT_2, abs=1e-5)
    certain, rest = math.e / (math.e + 2), 1 / (math.e + 2)
    expected = -(math.log(certain) + 2 * math.log(rest)) / 3
    assert make_loss("infonce", 3, temperature=1.0)(*case).item() == pytest.approx(expected, abs=1e-5)


def test_zero_where_aligned_and_apart_and_only_for_the_right_class():
    aligned = make_case(([1.0, 0.0], 0, True), ([0.0, 1.0], 1, True), ([4.0, 0.0], 0, False), ([0.0, 9.0], 1, False))
    swapped = aligned[0], torch.where(aligned[2], aligned[1], 1 - aligned[1]), aligned[2]
    assert make_loss("hinge")(*aligned).item() == pytest.approx(0, abs=1e-5)
    assert make_loss("hinge")(*swapped).item() == pytest.approx(ROOT_2, abs=1e-5)
    assert make_loss("infonce")(*aligned).item() < 1e-4 < 9 < make_loss("infonce")(*swapped).item()
    # The literal form cannot tell the classes apart.
    assert make_loss("literal")(*aligned).item() == pytest.approx(make_loss("literal")(*swapped).item(), abs=1e-6)


def test_hinge_parts_prototypes_that_the_minimized_form_joins():
    case = make_case(([1.0, 0.2], 0, True), ([0.2, 1.0], 1, True))
    for form, farther in (("hinge", True), ("own_class_minimized", False), ("literal", False)):
        features = case[0].clone().requires_grad_()
        uncertain = make_case(([1.0, 0.2], 0, False))
        joined = [torch.cat([x, y], dim=2) for x, y in zip((features, *case[1:]), uncertain, strict=True)]
        make_loss(form, margin=1.9)(*joined).backward()
        moved = (features - 0.01 * features.grad).detach().flatten(2)[0].T
        before, after = (
            torch.nn.functional.cosine_similarity(x[0], x[1], dim=0) for x in (case[0].flatten(2)[0].T, moved)
        )
        assert (after < before) == farther, form


def test_gradient_where_claimed_and_nowhere_else():
    reliable = CASE[2].flatten()
    # The voxel that lies on its prototype is at its minimum, hence the fourth voxel only.
    assert (gradient_per_voxel(make_loss("hinge"), *CASE) > 1e-4).tolist() == [False] * 3 + [True, False]
    apart = gradient_per_voxel(make_loss("hinge", margin=1.5), *CASE)
    assert (apart[:4] > 1e-4).all()
    contrast = gradient_per_voxel(make_loss("infonce", temperature=1.0), *CASE)
    assert torch.equal(contrast > 1e-4, ~reliable)
    assert (gradient_per_voxel(make_loss("literal"), *CASE)[:3] > 1e-4).all()
    assert (gradient_per_voxel(make_loss("own_class_minimized"), *CASE)[:4] > 1e-4).all()


def test_fallback_to_labeled_voxels():
    features, pseudo_label, reliable = make_case(([1.0, 0.0], 0, True), ([1.0, 1.0], 1, False), ([1.0, 0.0], 0, False))
    labeled = torch.tensor([[0.0, 2.0], [0.0, 4.0], [5.0, 5.0]]).T[None, :, :, None, None].clone().requires_grad_()
    label = torch.tensor([1, 1, 0])[None, None, :, None, None]
    loss = make_loss("hinge", margin=1.5)
    # Class 0 keeps its reliable prototype (1, 0); class 1 takes (0, 3) from the ground truth.
    value = loss(features, pseudo_label, reliable, labeled_features=labeled, label=label)
    assert value.item() == pytest.approx((0 + DIAGONAL) / 2 + 1.5 - ROOT_2, abs=1e-5)
    value.backward()
    assert (labeled.grad.abs().sum(dim=1).flatten() > 0).tolist() == [True, True, False]
    # Without labeled voxels, or without one of that class, class 1 takes no part.
    assert loss(features, pseudo_label, reliable).item() == pytest.approx(0, abs=1e-5)
    assert loss(features, pseudo_label, reliable, labeled, label * 0).item() == pytest.approx(0, abs=1e-5)


def test_a_class_with_too_few_reliable_voxels_takes_its_labeled_ones():
    # Class 1 has one reliable voxel along (1, 0), and two are asked for.
    features, pseudo_label, reliable = make_case(
        ([2.0, 0.0], 0, True), ([4.0, 0.0], 0, True), ([1.0, 0.0], 1, True), ([1.0, 1.0], 1, False)
    )
    labeled = torch.tensor([[0.0, 2.0]]).T[None, :, :, None, None]
    label = torch.ones(1, 1, 1, 1, 1, dtype=torch.long)
    loss = make_loss("hinge", margin=1.5, min_reliable=2)
    # The prototype of class 1 is (0, 2); that of its reliable voxel would be the one of class 0.
    value = loss(features, pseudo_label, reliable, labeled_features=labeled, label=label)
    assert value.item() == pytest.approx(DIAGONAL + 1.5 - ROOT_2, abs=1e-5)
    # Without a label of it, the class takes no part.
    assert loss(features, pseudo_label, reliable).item() == pytest.approx(0, abs=1e-5)


def test_literal_form_never_asks_for_the_class_of_a_voxel():
    # The uncertain voxel along (0, 1) is of class 2, which has no prototype.
    features, pseudo_label, reliable = make_case(([1.0, 0.0], 0, True), ([0.0, 1.0], 1, True), ([0.0, 5.0], 2, False))
    value = make_loss("literal", num_classes=3)(features, pseudo_label, reliable)
    assert value.item() == pytest.approx((ROOT_2 + 0) + ROOT_2, abs=1e-5)
    for form in ("hinge", "own_class_minimized"):
        lone = make_loss(form, num_classes=3)(features, pseudo_label, reliable).item()
        assert lone == pytest.approx(ROOT_2 if form == "own_class_minimized" else 0, abs=1e-5)


def test_sums_and_sample_have_the_gradient_of_autograd():
    values, masks = torch.randn(2, 6, 4), torch.rand(2, 3, 6) < 0.5
    # One voxel twice, and one that is in the sums too.
    position = torch.tensor([0, 1, 1, 0]), torch.tensor([5, 2, 2, 0])
    masks[0, :, 0] = True
    found, expected = values.clone().requires_grad_(), values.clone().requires_grad_()
    sums, sample = _SumsAndSample.apply(found, masks, *position)
    expected_sums = torch.einsum("bcv,bvk->ck", masks.float(), expected)
    torch.testing.assert_close(sums, expected_sums)
    torch.testing.assert_close(sample, expected[position])
    (sums.square().sum() + sample.pow(3).sum()).backward()
    (expected_sums.square().sum() + expected[position].pow(3).sum()).backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_sums_in_parts_are_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    values, classes = (
        torch.rand(2, 4, 3, 4, 5, generator=generator),
        torch.randint(2, (2, 1, 3, 4, 5), generator=generator),
    )
    reliable = torch.rand(2, 1, 3, 4, 5, generator=generator) < 0.7
    loss = PrototypeContrastiveLoss(2, sample_fraction=1.0, margin=2.0)
    results = []
    for voxels_at_once in (7, 60, 2**16):
        monkeypatch.setattr("scripts.losses.contrastive._VOXELS_AT_ONCE", voxels_at_once)
        features = values.clone().requires_grad_()
        value = loss(features, classes, reliable)
        value.backward()
        results.append((value, features.grad))
    # By the way of autograd, of the separation alone: the one term that goes through the sums.
    features = values.clone().requires_grad_()
    units = [
        _unit((features * mask).sum((0, 2, 3, 4)) / mask.sum()) for mask in (reliable & (classes == k) for k in (0, 1))
    ]
    (2 - (units[0] - units[1]).square().sum().sqrt()).backward()
    alone = features.grad
    for value, gradient in results:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])
        reliable_voxels = reliable.expand_as(gradient)
        torch.testing.assert_close(gradient[reliable_voxels], alone[reliable_voxels], rtol=1e-3, atol=1e-6)


def test_min_reliable_is_the_smallest_allowed_count():
    for min_reliable, expected in ((1, DIAGONAL / 2), (2, DIAGONAL), (3, 0.0)):
        assert make_loss(min_reliable=min_reliable)(*CASE).item() == pytest.approx(expected, abs=1e-5)


def random_case(num_classes=2, shape=(2, 4, 6, 6, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(shape, generator=generator)
    pseudo_label = torch.randint(0, num_classes, (shape[0], 1, *shape[2:]), generator=generator)
    return features, pseudo_label, torch.rand(pseudo_label.shape, generator=generator) < 0.8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("fraction", "max_samples", "expected"), [(0.01, 4096, 1), (0.2, 4096, 20), (1.0, 7, 7), (1.0, 4096, 100)]
)
def test_sample_sizes_without_replacement(form, fraction, max_samples, expected):
    # Each class has 100 uncertain voxels; prototypes are off the sampled directions, so that each sampled one is seen.
    features = torch.rand(2, 4, 5, 5, 12, generator=torch.Generator().manual_seed(0)) + 0.1
    pseudo_label = (torch.arange(600) % 2).reshape(2, 1, 5, 5, 12)
    reliable = (torch.arange(600) >= 200).reshape(2, 1, 5, 5, 12)
    loss = make_loss(form, margin=0.0, sample_fraction=fraction, max_samples=max_samples)
    reached = gradient_per_voxel(loss, features, pseudo_label, reliable) > 0
    reached = reached[~reliable.flatten()]
    assert reached[0::2].sum() == reached[1::2].sum() == expected


@pytest.mark.parametrize("form", FORMS)
def test_sample_repeats_with_the_random_state(form):
    case, loss = random_case(), PrototypeContrastiveLoss(2, form, sample_fraction=0.1)
    values = []
    for seed in (1, 1, 2):
        values.append(loss(*case, generator=torch.Generator().manual_seed(seed)).item())
    assert values[0] == values[1] != values[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = torch.get_rng_state()
        first, second = loss(*case).item(), loss(*case).item()
        torch.set_rng_state(state)
        assert loss(*case).item() == first != second


def degenerate_cases():
    features, pseudo_label, reliable = random_case(num_classes=3)
    nothing, everything = torch.zeros_like(reliable), torch.ones_like(reliable)
    yield "no reliable voxel", (features, pseudo_label, nothing)
    yield "no uncertain voxel", (features, pseudo_label, everything)
    yield "empty reliable class", (features, pseudo_label, reliable & (pseudo_label != 1))
    yield "few candidates", (features, pseudo_label, reliable | (torch.rand(reliable.shape) < 0.9))
    yield "all background", (features, pseudo_label * 0, reliable)
    yield "unknown class", (features, pseudo_label * 0 + 255, reliable)
    yield "zero features", (features * 0, pseudo_label, reliable)
    yield "equal features", (features * 0 + 1, pseudo_label, reliable)
    yield "no voxel", (features[:0], pseudo_label[:0], reliable[:0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "case"), degenerate_cases(), ids=lambda value: value if type(value) is str else "")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_batches_are_finite_and_connected(form, name, case, dtype):
    features = case[0].to(dtype).clone().requires_grad_()
    loss = PrototypeContrastiveLoss(3, form)(features, *case[1:])
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()
    if name in ("no reliable voxel", "unknown class", "no voxel"):
        assert loss.item() == 0


def test_connected_zero_survives_infinite_features():
    features, pseudo_label, reliable = random_case()
    features = torch.full_like(features, math.inf).requires_grad_()
    loss = PrototypeContrastiveLoss(2)(features, pseudo_label, torch.zeros_like(reliable))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saturated_half_precision(form, dtype):
    features, pseudo_label, reliable = random_case()
    features = (features > 0.5).to(dtype) * 60000
    features.requires_grad_()
    loss = PrototypeContrastiveLoss(2, form, margin=1.9)(features, pseudo_label, reliable)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()
    # A sum of the features would overflow here in float16.
    assert 0 < loss < 100


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_lower_the_precision(form):
    case, loss = random_case(), make_loss(form, margin=1.5)
    expected = loss(*case, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*case, generator=torch.Generator().manual_seed(0))
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def test_voxel_order_and_batch_do_not_matter():
    features, pseudo_label, reliable = random_case()
    moved = [x.movedim(0, 2).reshape(1, x.shape[1], -1, 6, 6) for x in (features, pseudo_label, reliable)]
    for form in FORMS:
        loss = make_loss(form)
        assert torch.allclose(loss(*moved), loss(features, pseudo_label, reliable), atol=1e-6)


def test_refused_shapes():
    features, pseudo_label, reliable = random_case()
    loss = PrototypeContrastiveLoss(2)
    with pytest.raises(ValueError, match=r"features must be of shape \(B, K, X, Y, Z\), got \(2, 4\)"):
        loss(features[..., 0, 0, 0], pseudo_label, reliable)
    with pytest.raises(
        ValueError, match=r"pseudo_label .* of features, got \(2, 4, 6, 6, 6\) beside \(2, 4, 6, 6, 6\)"
    ):
        loss(features, features, reliable)
    with pytest.raises(ValueError, match=r"reliable .* of features, got \(1, 1, 6, 6, 6\) beside \(2, 4, 6, 6, 6\)"):
        loss(features, pseudo_label, reliable[:1])
    with pytest.raises(ValueError, match=r"reliable must be bool, got torch\.float32"):
        loss(features, pseudo_label, reliable.float())
    with pytest.raises(ValueError, match="must be given together, got None for label"):
        loss(features, pseudo_label, reliable, labeled_features=features)
    with pytest.raises(ValueError, match="must be given together, got None for labeled_features"):
        loss(features, pseudo_label, reliable, label=pseudo_label)
    with pytest.raises(ValueError, match=r"labeled_features .* got \(2, 3, 6, 6, 6\) beside \(2, 4, 6, 6, 6\)"):
        loss(features, pseudo_label, reliable, labeled_features=features[:, :3], label=pseudo_label)
    with pytest.raises(
        ValueError, match=r"label .* of labeled_features, got \(1, 1, 6, 6, 6\) beside \(2, 4, 6, 6, 6\)"
    ):
        loss(features, pseudo_label, reliable, labeled_features=features, label=pseudo_label[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2, got 1"),
        ({"form": "triplet"}, "form must be 'hinge', .* got 'triplet'"),
        ({"margin": -1.0}, "margin must be at least 0, got -1.0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"sample_fraction": 0.0}, "sample_fraction must be above 0 and at most 1, got 0.0"),
        ({"sample_fraction": 2.0}, "sample_fraction must be above 0 and at most 1, got 2.0"),
        ({"max_samples": 0}, "max_samples must be a whole number of at least 1, got 0"),
        ({"max_samples": 1e4}, "max_samples must be a whole number of at least 1, got 10000.0"),
        ({"min_reliable": 0}, "min_reliable must be a whole number of at least 1, got 0"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        PrototypeContrastiveLoss(**{"num_classes": 2, **options})
