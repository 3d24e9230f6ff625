# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sliding windows: by the strides of a protocol, without time for empty ones, and over several views of a volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SlidingWindowInferer
from monai.networks.layers import AffineTransform
from monai.transforms.utils import create_rotate, create_scale, create_translate


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


class AugmentedInferer(Inferer):
    """Mean of what another inferer says of a volume as it is, and of turned, larger and smaller views of it.

    Each view is resampled, predicted, and its prediction resampled back; what a view lacks at the border of the volume
    is continued by its outermost voxels. Turns and sizes are those of a grid of voxels, as ``RandAffined`` learns them.

    Args:
        inferer: predicts a view.
        views: of each its "turn" about X, Y and Z in radians and its "size", the number of voxels along an axis over
            that of the volume; what is left out stays. Without views the other inferer alone predicts.
    """

    def __init__(self, inferer: Inferer, views: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        self.inferer = inferer
        self.views = list(views)
        self._resample = AffineTransform(mode="bilinear", padding_mode="border", align_corners=False)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Predict a volume.

        Args:
            inputs: (B, C, X, Y, Z).
            network: predicts one tensor, (B, C', X, Y, Z).
            *args: handed to the network.
            **kwargs: handed to the network.

        Returns:
            the mean of the predictions, (B, C', X, Y, Z).
        """
        total = self.inferer(inputs, network, *args, **kwargs)
        if not self.views:
            return total
        for view in self.views:
            size = [max(1, round(length * view.get("size", 1))) for length in inputs.shape[2:]]
            matrix = _view_matrix(inputs.shape[2:], size, view.get("turn", (0, 0, 0)))
            predicted = self.inferer(self._to_grid(inputs, matrix, size), network, *args, **kwargs)
            total = total + self._to_grid(predicted, np.linalg.inv(matrix), inputs.shape[2:])
        return total / (1 + len(self.views))

    def _to_grid(self, volume: torch.Tensor, matrix: np.ndarray, size: Sequence[int]) -> torch.Tensor:
        # Half a precision would move voxels.
        with torch.autocast(volume.device.type, enabled=False):
            theta = torch.as_tensor(matrix, dtype=torch.float32, device=volume.device)
            return self._resample(volume.float(), theta, spatial_size=size)


def _view_matrix(size: Sequence[int], view_size: Sequence[int], turn: Sequence[float]) -> np.ndarray:
    """Map voxels of a view to those of the volume, about the centers of both."""
    center, view_center = ([(length - 1) / 2 for length in lengths] for lengths in (size, view_size))
    scale = [length / of_view for length, of_view in zip(size, view_size, strict=True)]
    to_center = create_translate(3, [-value for value in view_center])
    return np.linalg.multi_dot([create_translate(3, center), create_rotate(3, turn), create_scale(3, scale), to_center])
