# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Extra supervision of the labeled voxels on which two networks disagree."""

from __future__ import annotations

import torch
from torch import nn

from ..parallel import sum_over_processes
from .supervised import check_logits, check_voxel_map


class RectificationLoss(nn.Module):
    r"""Squared error on the labeled voxels that exactly one of two networks gives confidently to a foreground class.

    .. math:: L_{rect} = \frac{\sum_{c \ge 1} \sum_i m_{i,c} \, (p_i(c) - y_i(c))^2}
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

    def forward(self, logits: torch.Tensor, other_logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Correct one network where the other sees something else.

        Args:
            logits: unnormalized scores of the network to train, (B, C, X, Y, Z), C >= 2.
            other_logits: unnormalized scores of the other network, same shape; detached here.
            label: class indices, (B, 1, X, Y, Z).

        Returns:
            The loss, a float32 scalar connected to ``logits`` alone; a connected zero where the networks agree.

        Raises:
            ValueError: when the shapes do not fit.
        """
        check_logits(logits)
        if logits.shape != other_logits.shape:
            raise ValueError(
                "logits and other_logits must have the same shape, "
                f"got {tuple(logits.shape)} and {tuple(other_logits.shape)}."
            )
        check_voxel_map(label, "label", logits)
        probabilities = logits.float().softmax(dim=1)
        with torch.no_grad():
            own_class = self._confident_class(probabilities)
            other_class = self._confident_class(other_logits.float().softmax(dim=1))
            target = label.squeeze(1)
        squared_error = probabilities.new_zeros(())
        disputed_count = torch.zeros((), dtype=torch.long, device=logits.device)
        for index in range(1, logits.shape[1]):
            disputed = (own_class == index) ^ (other_class == index)
            error = (probabilities[:, index] - (target == index).float()).square()
            squared_error = squared_error + (error * disputed).sum()
            disputed_count = disputed_count + disputed.sum()
        return sum_over_processes(squared_error) / sum_over_processes(disputed_count).clamp(min=1)

    def _confident_class(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Class index where confident, (B, X, Y, Z); the background 0 stands for "no confident foreground"."""
        largest, index = probabilities.max(dim=1)
        return index.masked_fill(largest < self.threshold, 0)
