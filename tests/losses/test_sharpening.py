# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values, gradients and refusals of the sharpened probabilities."""

from __future__ import annotations

import pytest
import torch

from scripts.losses.sharpening import sharpen


def make_voxels(*rows):
    """Probabilities of voxels in a row, (1, C, voxels, 1, 1)."""
    return torch.tensor(rows).T[None, :, :, None, None].contiguous()


def make_random(num_classes=3):
    return torch.randn(2, num_classes, 3, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


def test_value_by_hand():
    # Squares over their sum: 0.64 / 0.68, and 0.25, 0.09, 0.04 over 0.38.
    given = sharpen(make_voxels([0.2, 0.8], [0.5, 0.5]), 0.5)
    torch.testing.assert_close(given, make_voxels([1 / 17, 16 / 17], [0.5, 0.5]))
    given = sharpen(make_voxels([0.5, 0.3, 0.2]), 0.5)
    torch.testing.assert_close(given, make_voxels([25 / 38, 9 / 38, 4 / 38]))


def test_two_classes_are_the_binary_form():
    probabilities = make_random(2)
    foreground = probabilities[:, 1]
    powers = foreground.pow(10), (1 - foreground).pow(10)
    torch.testing.assert_close(sharpen(probabilities, 0.1)[:, 1], powers[0] / (powers[0] + powers[1]))


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("num_classes", [2, 3, 128])
def test_it_is_the_softmax_of_the_divided_logits(temperature, num_classes):
    logits = torch.randn(2, num_classes, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    given = sharpen(logits.softmax(dim=1), temperature)
    torch.testing.assert_close(given, (logits / temperature).softmax(dim=1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(given.sum(dim=1), torch.ones(2, 3, 4, 5))


def test_near_zero_it_is_the_arg_max():
    probabilities = make_random()
    expected = torch.nn.functional.one_hot(probabilities.argmax(dim=1), 3).movedim(-1, 1).float()
    torch.testing.assert_close(sharpen(probabilities, 1e-4), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-3])
def test_certain_voxels_stay_and_have_a_finite_gradient(temperature):
    probabilities = make_voxels([0.0, 1.0, 0.0], [1e-30, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.6, 0.4, 0.0])
    probabilities.requires_grad_()
    sharpened = sharpen(probabilities, temperature)
    assert torch.equal(sharpened[..., :1, :, :], probabilities[..., :1, :, :])
    torch.testing.assert_close(sharpened[..., 2, :, :], probabilities[..., 2, :, :])
    sharpened[:, 0].sum().backward()
    assert probabilities.grad.isfinite().all()
    assert probabilities.grad[..., 2, 0, 0].abs().sum() > 0


def test_gradient_is_that_of_the_formula():
    probabilities = make_random().double()[:1, :, :1, :1, :2].requires_grad_()

    def formula(values):
        return values.pow(4) / values.pow(4).sum(dim=1, keepdim=True)

    weight = torch.randn(probabilities.shape, generator=torch.Generator().manual_seed(1))
    (given,) = torch.autograd.grad((sharpen(probabilities, 0.25) * weight).sum(), probabilities)
    (expected,) = torch.autograd.grad((formula(probabilities) * weight).sum(), probabilities)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(dtype):
    # In half precision 0.01 ** 10 is 0.
    sharpened = sharpen(torch.full((1, 100, 2, 2, 2), 0.01, dtype=dtype), 0.1)
    assert sharpened.dtype == torch.float32
    torch.testing.assert_close(sharpened, torch.full_like(sharpened, 0.01))


@pytest.mark.parametrize("temperature", [0, -0.1, 1.5, float("nan")])
def test_refusals(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0 and at most 1, got {temperature}"):
        sharpen(make_random(), temperature)
