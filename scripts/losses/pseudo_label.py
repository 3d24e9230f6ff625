# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy against the pseudo-labels of reliable voxels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from ..parallel import num_processes, sum_over_processes
from .checks import check_logits, check_mask, check_voxel_map
from .voxels import sum_over_voxels

Renormalization = Literal["none", "total_over_valid"]

_IGNORED_CLASS = -100


class PseudoLabelLoss(nn.Module):
    r"""Mean cross-entropy over the voxels, of all processes, whose pseudo-label is reliable.

    .. math:: L_u = \frac{\sum_i m_i \, (-\log p_i(\hat y_i))}{\max(1, \sum_i m_i)}

    Equation 4 of https://arxiv.org/abs/2505.17690. As printed, the target there is the indicator "not ignored";
    here the indicator is the mask m and the target is the pseudo-label, which is what the text describes.

    Args:
        renormalize: "none" is the formula above; "total_over_valid" multiplies it by (number of voxels) / (number of
            reliable voxels), as some public code does: 1.25 where 80 % are reliable.

    Raises:
        ValueError: when the option is not one of these.
    """

    def __init__(self, renormalize: Renormalization = "none") -> None:
        super().__init__()
        if renormalize not in get_args(Renormalization):
            raise ValueError(f"renormalize must be 'none' or 'total_over_valid', got {renormalize!r}.")
        self.renormalize = renormalize

    def forward(self, logits: torch.Tensor, pseudo_label: torch.Tensor, reliable: torch.Tensor) -> torch.Tensor:
        """Compare scores with pseudo-labels where these are reliable.

        Args:
            logits: unnormalized scores of the network to train, (B, C, X, Y, Z), C >= 2.
            pseudo_label: class indices, (B, 1, X, Y, Z); their values do not matter where not reliable.
            reliable: True where the pseudo-label counts, bool, (B, 1, X, Y, Z).

        Returns:
            The loss, a float32 scalar; a zero connected to the logits where no voxel is reliable.

        Raises:
            ValueError: when the shapes do not fit or the mask is not bool.
        """
        check_logits(logits)
        check_voxel_map(pseudo_label, "pseudo_label", logits)
        check_mask(reliable, "reliable", logits)
        # The floor of 1 keeps an empty mask at 0 / 1 without asking the device for the count.
        valid_count = sum_over_processes(reliable.sum().float()).clamp(min=1)
        total = sum_over_voxels(self._sum, logits, pseudo_label, reliable)
        loss = sum_over_processes(total) / valid_count
        if self.renormalize == "total_over_valid":
            loss = loss * (num_processes() * reliable.numel() / valid_count)
        return loss

    @staticmethod
    def _sum(logits: torch.Tensor, pseudo_label: torch.Tensor, reliable: torch.Tensor) -> torch.Tensor:
        target = pseudo_label.long().masked_fill(~reliable, _IGNORED_CLASS).squeeze(1)
        return F.cross_entropy(logits, target, ignore_index=_IGNORED_CLASS, reduction="sum")
