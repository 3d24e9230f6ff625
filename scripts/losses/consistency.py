# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Cosine distance between the predictions of two networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from .checks import check_pair
from .voxels import sum_over_voxels

Mode = Literal["voxel", "volume"]


class ConsistencyLoss(nn.Module):
    r"""Cosine distance between the class probabilities of two networks; it trains both.

    .. math:: L_{reg} = \mathrm{mean}\left(1 - \frac{p^a \cdot p^b}{\lVert p^a \rVert \, \lVert p^b \rVert}\right)

    Equations 5 and 6 of https://arxiv.org/abs/2505.17690. Symmetric; 0 for equal predictions and at most 1.

    Args:
        mode: "voxel" takes the cosine over the classes of each voxel and the mean over voxels; "volume" takes the
            cosine of the whole flattened probability volume of each sample and the mean over samples.

    Raises:
        ValueError: when the option is not one of these.
    """

    def __init__(self, mode: Mode = "voxel") -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be 'voxel' or 'volume', got {mode!r}.")
        self.mode = mode

    def forward(self, logits_a: torch.Tensor, logits_b: torch.Tensor) -> torch.Tensor:
        """Measure the disagreement of two predictions.

        Args:
            logits_a: unnormalized scores of one network, (B, C, X, Y, Z), C >= 2.
            logits_b: unnormalized scores of the other network, same shape.

        Returns:
            The loss, a float32 scalar connected to both inputs.

        Raises:
            ValueError: when the shapes do not fit.
        """
        check_pair(logits_a, logits_b, "logits_a", "logits_b")
        if self.mode == "voxel":
            total = sum_over_voxels(self._sum, logits_a, logits_b)
            return total / max(1, logits_a.numel() // logits_a.shape[1])
        axes = list(range(1, logits_a.ndim))
        return self._sum(logits_a.float(), logits_b.float(), axes) / max(1, len(logits_a))

    @classmethod
    def _sum(cls, logits_a: torch.Tensor, logits_b: torch.Tensor, axes: Sequence[int] = (1,)) -> torch.Tensor:
        # 1 - cos is half the squared distance of the unit vectors; this form does not cancel where the networks agree.
        difference = cls._unit_probabilities(logits_a, axes) - cls._unit_probabilities(logits_b, axes)
        return difference.square().sum() / 2

    @staticmethod
    def _unit_probabilities(logits: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        probabilities = logits.softmax(dim=1)
        # Probabilities sum to 1, so that this norm is never 0.
        return probabilities * probabilities.square().sum(dim=tuple(axes), keepdim=True).rsqrt()
