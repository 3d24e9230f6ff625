# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Squared distance between class probabilities and a target."""

from __future__ import annotations

import torch
from torch import nn

from ..parallel import sum_over_processes
from .checks import check_logits, check_mask


class SoftmaxMSELoss(nn.Module):
    r"""Mean squared distance between the softmax of a network and the class probabilities that it should give.

    .. math:: L = \frac{\sum_i m_i \sum_c (p_i(c) - q_i(c))^2}{C \, \max(1, \sum_i m_i)}

    The consistency term of "Mean teachers are better role models", https://arxiv.org/abs/1703.01780, and with the mask
    m that of UA-MT, https://arxiv.org/abs/1907.07034; its sums go over the batch of all processes. Without a mask it is
    the mean over classes and voxels.
    """

    def forward(
        self, logits: torch.Tensor, target_probabilities: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compare scores with target probabilities.

        Args:
            logits: unnormalized scores of the network to train, (B, C, X, Y, Z), C >= 2.
            target_probabilities: what the softmax should be, q, same shape; used as given, so a target that takes no
                gradient is handed over without one.
            mask: True where a voxel counts, bool, (B, 1, X, Y, Z); without it, all count.

        Returns:
            The loss, a float32 scalar; a zero connected to the logits where no voxel counts.

        Raises:
            ValueError: when the shapes do not fit, or the mask is not bool.
        """
        check_logits(logits)
        if target_probabilities.shape != logits.shape:
            raise ValueError(
                "target_probabilities must have the shape of logits, "
                f"got {tuple(target_probabilities.shape)} beside {tuple(logits.shape)}."
            )
        error = (logits.float().softmax(dim=1) - target_probabilities.float()).square().sum(dim=1, keepdim=True)
        if mask is None:
            return error.sum() / max(1, logits.numel())
        check_mask(mask, "mask", logits)
        total, count = sum_over_processes((mask * error).sum()), sum_over_processes(mask.sum())
        return total / (logits.shape[1] * count.clamp(min=1))
