# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sums over voxels in pieces: the value and the gradient of the whole, in any layout."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from scripts.losses import voxels
from scripts.losses.voxels import sum_over_voxels


def squared_cross_entropy(logits, label):
    log_probabilities = logits.log_softmax(dim=1)
    return (log_probabilities.gather(1, label.long()) * log_probabilities.square().sum(dim=1, keepdim=True)).sum()


@pytest.mark.parametrize("size", [1, 7, 24, 10**6])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "slice"])
def test_value_and_gradient_of_the_whole(size, layout):
    logits, label = torch.randn(3, 3, 2, 3, 4), torch.randint(3, (3, 1, 2, 3, 4))
    whole = logits.clone().requires_grad_()
    expected = squared_cross_entropy(whole.flatten(2), label.flatten(2))
    (5 * expected).backward()

    laid = {
        "contiguous": logits.clone(),
        "channels_last": logits.contiguous(memory_format=torch.channels_last_3d),
        "transposed": logits.transpose(2, 4).contiguous().transpose(2, 4),
        "slice": torch.cat([logits, logits], dim=1)[:, :3],
    }[layout].requires_grad_()
    pieces = []
    with mock.patch.object(voxels, "_ELEMENTS_AT_ONCE", size):
        found = sum_over_voxels(
            lambda part, of_label: pieces.append(part.shape) or squared_cross_entropy(part, of_label), laid, label
        )
    (5 * found).backward()
    assert max(shape[2] for shape in pieces) == min(24, max(1, size // 3))
    assert sum(shape[2] for shape in pieces) == 3 * 24
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(laid.grad, whole.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    # Neither format holds this number of voxels, nor half a thousandth more than 1.
    values = torch.ones(1, 1, 65, 63, 5, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = sum_over_voxels(lambda part: (1.0005 * part).sum(), values)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(1.0005 * 65 * 63 * 5, rel=1e-6)
    # The gradient is rounded once, after it was multiplied.
    (2000 * total).backward()
    assert values.grad.dtype == dtype
    assert (values.grad == torch.tensor(2001.0).to(dtype)).all()


def test_pieces_of_two_maps_that_learn():
    values = [torch.randn(2, 2, 3, 3, 3) for _ in range(2)]
    found, expected = ([value.clone().requires_grad_() for value in values] for _ in range(2))

    def function(a, b):
        return (a.softmax(dim=1) * b.square()).sum()

    with mock.patch.object(voxels, "_ELEMENTS_AT_ONCE", 8):
        sum_over_voxels(function, *found).backward()
    function(*(value.flatten(2) for value in expected)).backward()
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.grad, other.grad)


def test_only_what_learns_has_a_gradient():
    one, other = torch.randn(1, 2, 3, 3, 3).requires_grad_(), torch.randn(1, 2, 3, 3, 3).requires_grad_()
    sum_over_voxels(lambda a, b: (a * b).sum(), one, other.detach()).backward()
    assert other.grad is None
    torch.testing.assert_close(one.grad, other.detach())
    modes = []
    with torch.no_grad():
        total = sum_over_voxels(lambda a, b: modes.append(torch.is_grad_enabled()) or (a * b).sum(), one, other)
    assert not total.requires_grad
    assert modes == [False]


@pytest.mark.parametrize("shape", [(0, 2, 3, 3, 3), (1, 2, 0, 3, 3)])
def test_no_voxels_are_a_connected_zero(shape):
    values = torch.zeros(shape).requires_grad_()
    total = sum_over_voxels(lambda part: part.sum(), values)
    total.backward()
    assert total.item() == 0
    assert values.grad.shape == shape
