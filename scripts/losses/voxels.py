# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sums over the voxels of a batch, and their gradients, from a part of the voxels at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

# Scores of a piece. Smaller ones cost more calls than they save memory.
_ELEMENTS_AT_ONCE = 2**21


def _pieces(maps: Sequence[torch.Tensor]) -> Iterator[tuple[int, slice, list[torch.Tensor]]]:
    """Number of the sample, range of the voxels, and these of each map, (1, channels, voxels)."""
    flat = [values.flatten(2) for values in maps]
    size = max(1, _ELEMENTS_AT_ONCE // max(values.shape[1] for values in flat))
    for sample in range(flat[0].shape[0]):
        for start in range(0, flat[0].shape[2], size):
            voxels = slice(start, start + size)
            yield sample, voxels, [_piece(values[sample : sample + 1, :, voxels]) for values in flat]


def _piece(values: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if values.is_floating_point() else values.dtype
    return values.detach().to(dtype, memory_format=torch.contiguous_format)


class _SumOverVoxels(torch.autograd.Function):
    """A sum whose gradient is computed with it, piece by piece, and only multiplied later."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], *maps: torch.Tensor) -> torch.Tensor:
        learning = [index for index, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        gradients = [torch.empty_like(maps[index].flatten(2), dtype=torch.float32) for index in learning]
        total = torch.zeros((), device=maps[0].device)
        with torch.autocast(maps[0].device.type, enabled=False):
            for sample, voxels, piece in _pieces(maps):
                inputs = [piece[index].requires_grad_() for index in learning]
                with torch.set_grad_enabled(bool(learning)):
                    value = function(*piece)
                if learning:
                    for gradient, part in zip(gradients, torch.autograd.grad(value, inputs), strict=True):
                        gradient[sample, :, voxels] = part[0]
                total += value.detach()
        ctx.save_for_backward(*gradients)
        ctx.forms = {index: (maps[index].shape, maps[index].dtype) for index in learning}
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_maps: list[torch.Tensor | None] = [None] * len(ctx.needs_input_grad)
        for (index, (shape, dtype)), values in zip(ctx.forms.items(), ctx.saved_tensors, strict=True):
            of_maps[index + 1] = (values * gradient).to(dtype).view(shape)
        return tuple(of_maps)


def sum_over_voxels(function: Callable[..., torch.Tensor], *maps: torch.Tensor) -> torch.Tensor:
    """Sum a function of single voxels over a batch.

    The value and the gradient are those of ``function(*maps)``, but the intermediate values, several times as large as
    the maps, never exist for the whole batch at once.

    Args:
        function: takes some voxels of each map, (1, channels, voxels), those of floating point in float32, and returns
            the sum over them, a scalar connected to all maps that have a gradient.
        maps: tensors of (B, channels of its own, X, Y, Z), or another number of spatial axes, all of one grid.

    Returns:
        The sum over all voxels, a float32 scalar; a zero connected to the maps for a batch without voxels.
    """
    if not torch.is_grad_enabled():
        maps = tuple(values.detach() for values in maps)
    total: torch.Tensor = _SumOverVoxels.apply(function, *maps)
    return total
