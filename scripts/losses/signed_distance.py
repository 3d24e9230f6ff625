# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Signed distances to the surface of each foreground class, as targets and as predictions."""

from __future__ import annotations

import math

import torch
from monai.transforms.utils import distance_transform_edt
from torch import nn

from .checks import check_logits, check_voxel_map
from .class_maps import foreground


@torch.no_grad()
def signed_distance_map(label: torch.Tensor, num_classes: int) -> torch.Tensor:
    r"""Compute how far each voxel of a crop is from the surface of each foreground class, negative inside.

    .. math:: s_c(i) = \begin{cases} -d(i) / \max_{j \in c} d(j) & i \in c \text{, and 0 on its inner boundary} \\
        +d(i) / \max_{j \notin c} d(j) & i \notin c \end{cases}

    with d the Euclidean distance in voxels to the nearest voxel on the other side: the target of SASSNet
    (https://arxiv.org/abs/2007.10732) and DTC (https://arxiv.org/abs/2009.04448). The inner boundary is the voxels of
    the class with one of their six neighbors outside of it. A crop without the class is outside everywhere, 1 (the
    public code says 0: boundary everywhere); one that is nothing else is inside everywhere, -1.

    Args:
        label: class indices 0 to num_classes - 1 of any number type, (B, 1, X, Y, Z).
        num_classes: number of classes with the background, at least 2.

    Returns:
        The signed distances, from -1 to 1, float32 without gradient, (B, num_classes - 1, X, Y, Z).

    Raises:
        ValueError: when the shape or the number of classes does not fit.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")
    if label.ndim != 5 or label.shape[1] != 1:
        raise ValueError(f"label must be of shape (B, 1, X, Y, Z), got {tuple(label.shape)}.")
    masks = foreground(label, num_classes)
    # One channel a crop and class: MONAI transforms each on its own, on a GPU where cuCIM is installed.
    channels = masks.flatten(0, 1)
    inside, outside = (torch.as_tensor(distance_transform_edt(kind)) for kind in (channels, ~channels))
    # At least 1: a crop of one kind alone has no distance of the other, and is overwritten below.
    distance = (outside / _largest(outside) - inside / _largest(inside)).float()
    # A face neighbor on the other side is at distance 1, every other voxel farther away.
    distance[channels & (inside <= 1)] = 0
    axes = (1, 2, 3)
    distance[~channels.any(dim=axes)] = 1
    distance[channels.all(dim=axes)] = -1
    return distance.reshape(masks.shape)


def _largest(distance: torch.Tensor) -> torch.Tensor:
    return distance.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)


class SignedDistanceLoss(nn.Module):
    r"""Mean squared error of predicted signed distances on labeled voxels.

    .. math:: L_{sdf} = \frac{1}{C - 1} \sum_{c \ge 1} \mathrm{mean}_i \left( (\hat s_c(i) - s_c(i))^2 \right)

    with the target s of :func:`signed_distance_map`; of SASSNet, https://arxiv.org/abs/2007.10732.
    """

    def forward(self, distance: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Compare predicted signed distances with those of the ground truth.

        Args:
            distance: predicted signed distances, (B, C - 1, X, Y, Z), C >= 2.
            label: class indices 0 to C - 1 of any number type, (B, 1, X, Y, Z).

        Returns:
            The loss, a float32 scalar connected to the prediction.

        Raises:
            ValueError: when the shapes do not fit.
        """
        check_voxel_map(label, "label", distance, "distance")
        target = signed_distance_map(label, num_classes=distance.shape[1] + 1)
        return (distance.float() - target).square().sum() / max(1, distance.numel())


class TaskConsistencyLoss(nn.Module):
    r"""Squared difference between both tasks of a network: its segmentation and the one in its signed distances.

    .. math:: L_{dtc} = \frac{1}{C - 1} \sum_{c \ge 1} \mathrm{mean}_i
        \left( (\sigma(-k \hat s_c(i)) - p_i(c))^2 \right)

    "Semi-supervised Medical Image Segmentation through Dual-task Consistency", https://arxiv.org/abs/2009.04448. The
    gradient reaches both tasks. That of the signed distance lives in a thin shell: with a steepness of 1500 the sigmoid
    is 0 or 1 to eight digits wherever the distance is above 0.013.

    Args:
        steepness: k, above 0.

    Raises:
        ValueError: when the steepness is outside its range.
    """

    def __init__(self, steepness: float = 1500.0) -> None:
        super().__init__()
        if not 0 < steepness < math.inf:
            raise ValueError(f"steepness must be above 0 and finite, got {steepness!r}.")
        self.steepness = steepness

    def forward(self, logits: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        """Measure the disagreement of both tasks.

        Args:
            logits: unnormalized scores, (B, C, X, Y, Z), C >= 2.
            distance: predicted signed distances from -1 to 1, (B, C - 1, X, Y, Z).

        Returns:
            The loss, a float32 scalar connected to both inputs.

        Raises:
            ValueError: when the shapes do not fit.
        """
        check_logits(logits)
        if distance.shape != (logits.shape[0], logits.shape[1] - 1, *logits.shape[2:]):
            raise ValueError(
                "distance must have one channel for each foreground class on the grid of logits, "
                f"got {tuple(distance.shape)} beside {tuple(logits.shape)}."
            )
        probabilities = logits.float().softmax(dim=1)[:, 1:]
        difference = (-self.steepness * distance.float()).sigmoid() - probabilities
        return difference.square().sum() / max(1, difference.numel())
