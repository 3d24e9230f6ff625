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
            least, most = values.aminmax(dim=2)
            # Resampling leaves rounding errors.
            filled = (most - least > 1e-5 * torch.maximum(most.abs(), least.abs())).any(dim=1)
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
    """Test-time augmentation: the mean over a volume as it is and turned, larger and smaller views of it.

    The views are given; those of ``monai.data.TestTimeAugmentation`` are drawn at random. Each is resampled, predicted,
    and its prediction resampled back. Beyond the border of the volume a view shows its outermost voxels again; where a
    view shows nothing of the volume, the mean is without it. Turns and sizes are those of the grid of voxels, as in
    ``RandAffined``.

    Args:
        inferer: predicts a view.
        views: of each its "turn" about X, Y and Z in radians and its "size", the number of voxels along an axis over
            that of the volume; what is left out stays. Without views the other inferer alone predicts.
    """

    def __init__(self, inferer: Inferer, views: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        self.inferer = inferer
        self.views = list(views)

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
        predicted = self.inferer(inputs, network, *args, **kwargs)
        if not self.views:
            return predicted
        total = _with_ones(predicted)
        del predicted
        # Where the windows are put together: a GPU may have no room for more than these.
        volume = inputs.to(total.device)
        for view in self.views:
            total += _predict_view(
                lambda seen: self.inferer(seen, network, *args, **kwargs), volume, view, inputs.device
            )
        # How often each voxel was seen is the last channel.
        return total[:, :-1] / total[:, -1:]


def _predict_view(
    predict: Callable[[torch.Tensor], torch.Tensor], volume: torch.Tensor, view: Mapping[str, Any], device: torch.device
) -> torch.Tensor:
    """Predict a view, and bring it back to the grid of the volume; its last channel tells what it shows."""
    size = volume.shape[2:]
    view_size = [max(1, round(length * view.get("size", 1))) for length in size]
    matrix = _view_matrix(size, view_size, view.get("turn", (0, 0, 0)))
    seen = _resample(volume, matrix, view_size, padding_mode="border").to(device)
    predicted = _with_ones(predict(seen))
    # As large as the volume, which counts while the prediction is brought back.
    del seen
    return _resample(predicted, np.linalg.inv(matrix), size, padding_mode="zeros")


def _with_ones(predicted: torch.Tensor) -> torch.Tensor:
    return torch.cat((predicted, torch.ones_like(predicted[:, :1])), dim=1).float()


def _resample(volume: torch.Tensor, matrix: np.ndarray, size: Sequence[int], *, padding_mode: str) -> torch.Tensor:
    theta = torch.as_tensor(matrix, dtype=torch.float32, device=volume.device)
    resample = AffineTransform(mode="bilinear", padding_mode=padding_mode, align_corners=False)
    # Half a precision would move voxels.
    with torch.autocast(volume.device.type, enabled=False):
        return resample(volume.float(), theta, spatial_size=size)


def _view_matrix(size: Sequence[int], view_size: Sequence[int], turn: Sequence[float]) -> np.ndarray:
    """Map voxels of a view to those of the volume, about the centers of both."""
    center, view_center = ([(length - 1) / 2 for length in lengths] for lengths in (size, view_size))
    scale = [length / of_view for length, of_view in zip(size, view_size, strict=True)]
    to_center = create_translate(3, [-value for value in view_center])
    return np.linalg.multi_dot([create_translate(3, center), create_rotate(3, turn), create_scale(3, scale), to_center])
