# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sliding windows: by the strides of a protocol, and without time for windows that have nothing in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer


def window_overlap(patch_size: Sequence[int], strides: Sequence[int]) -> list[float]:
    """Express the strides of a protocol as the overlap that MONAI takes.

    Args:
        patch_size: voxels of a window, X, Y, Z.
        strides: voxels from one window to the next, X, Y, Z; at most those of a window.

    Returns:
        the shares of a window that the next one covers; half a voxel less, as MONAI would round a stride down.
    """
    return [max(0.0, 1 - (stride + 0.5) / size) for stride, size in zip(strides, patch_size, strict=True)]


class FilledWindowInferer(SlidingWindowInferer):
    """Sliding-window inference where windows of one gray value alone are background, without the network.

    Such windows are the air that a window of intensities has clipped, or the zeros around a volume that was cropped or
    turned. One window at least is computed, as the network alone knows its number of channels.

    Args:
        *args: see ``monai.inferers.SlidingWindowInferer``.
        **kwargs: see ``monai.inferers.SlidingWindowInferer``.
    """

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Predict a volume.

        Args:
            inputs: (B, C, X, Y, Z).
            network: predicts probabilities, the background first, (B, C', X, Y, Z).
            *args: handed to the network.
            **kwargs: handed to the network.

        Returns:
            probabilities, (B, C', X, Y, Z); where every window was empty, 1 for the background and 0 for the rest.
        """
        empty: torch.Tensor | None = None

        def predict(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal empty
            values = windows.flatten(2)
            filled = (values.amax(dim=2) > values.amin(dim=2)).any(dim=1)
            computed = network(windows[filled], *args, **kwargs) if filled.any() else None
            if empty is None:
                known = network(windows[:1], *args, **kwargs) if computed is None else computed[:1]
                empty = torch.zeros_like(known)
                empty[:, 0] = 1
            probabilities = empty.repeat(len(windows), 1, 1, 1, 1)
            if computed is not None:
                probabilities[filled] = computed
            return probabilities

        return super().__call__(inputs, predict, *args, **kwargs)
