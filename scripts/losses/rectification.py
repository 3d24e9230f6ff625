# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Extra supervision of the labeled voxels on which two networks disagree."""

from __future__ import annotations

import torch
from torch import nn

from ..parallel import sum_over_processes
from .checks import check_pair, check_voxel_map
from .class_maps import foreground, predicted_class
from .voxels import sum_over_voxels


class RectificationLoss(nn.Module):
    r"""Squared error on the labeled voxels that exactly one of two networks gives confidently to a foreground class.

    .. math:: L_{rect} = \sum_{k \in \{a, b\}} \frac{\sum_{c \ge 1} \sum_i m_{i,c} \, (p^k_i(c) - y_i(c))^2}
        {\max(1, \sum_{c \ge 1} \sum_i m_{i,c})}

    where :math:`m_{i,c}` is true if "arg-max is c and the largest probability is at least ``threshold``" holds for
    exactly one of the networks; the sums go over the batch of all processes. Not an equation of
    https://arxiv.org/abs/2505.17690 but part of its public code (weight 0.5, threshold 0.6); threshold 0 is the rule of
    the public MCF code.

    Args:
        threshold: least probability of a confident prediction, from 0 to 1.

    Raises:
        ValueError: when the threshold is outside 0 to 1.
    """

    def __init__(self, threshold: float = 0.6) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, got {threshold!r}.")
        self.threshold = threshold

    def forward(self, logits_a: torch.Tensor, logits_b: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Correct two networks where they see something different.

        Args:
            logits_a: unnormalized scores of one network, (B, C, X, Y, Z), C >= 2.
            logits_b: unnormalized scores of the other network, same shape.
            label: class indices, (B, 1, X, Y, Z).

        Returns:
            The sum of the losses of both networks, a float32 scalar; a connected zero where the networks agree.

        Raises:
            ValueError: when the shapes do not fit.
        """
        check_pair(logits_a, logits_b, "logits_a", "logits_b")
        check_voxel_map(label, "label", logits_a, "logits_a")
        with torch.no_grad():
            disputed = self._confident(logits_a) ^ self._confident(logits_b)
            disputed_count = sum_over_processes(disputed.sum())
        squared_error = sum_over_processes(sum_over_voxels(self._squared_error, logits_a, logits_b, label, disputed))
        return squared_error / disputed_count.clamp(min=1)

    def _confident(self, logits: torch.Tensor) -> torch.Tensor:
        """Where the network is confident of which foreground class, (B, C - 1, X, Y, Z)."""
        probabilities = logits.float().softmax(dim=1)
        confident = probabilities.amax(dim=1, keepdim=True) >= self.threshold
        return foreground(predicted_class(probabilities), logits.shape[1]) & confident

    @staticmethod
    def _squared_error(
        logits_a: torch.Tensor, logits_b: torch.Tensor, label: torch.Tensor, disputed: torch.Tensor
    ) -> torch.Tensor:
        target = foreground(label, logits_a.shape[1]).float()
        errors = [(logits.softmax(dim=1)[:, 1:] - target).square() for logits in (logits_a, logits_b)]
        return ((errors[0] + errors[1]) * disputed).sum()
