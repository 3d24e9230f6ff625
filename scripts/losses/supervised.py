# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Supervised loss of the labeled voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.utils.misc import str2bool
from torch import nn

from ..parallel import mean_over_processes, sum_over_processes
from .checks import check_logits, check_voxel_map
from .class_maps import foreground
from .voxels import sum_over_voxels

_SMOOTH = 1e-5
#: In the place of PyTorch's -100, which would be passed over in silence: no label has it.
_NO_CLASS = torch.iinfo(torch.long).min


class SupervisedLoss(nn.Module):
    r"""Cross-entropy plus foreground Dice of the labeled voxels.

    .. math:: L_s = w_{ce} \, \mathrm{mean}_i(-\log p_i(y_i)) + w_{dice} \, \frac{1}{C - 1} \sum_{c \ge 1}
        \left(1 - \frac{2 \sum_i p_i(c) y_i(c) + 10^{-5}}{\sum_i p_i(c)^2 + \sum_i y_i(c) + 10^{-5}}\right)

    The sums of the Dice term go over all voxels of the batch of all processes; without ``squared`` its denominator has
    :math:`p_i(c)` in the place of :math:`p_i(c)^2`. Equation 2 of "Semi-Supervised Medical Image
    Segmentation via Dual Networks", https://arxiv.org/abs/2505.17690, with both weights 1.

    Args:
        dice_weight: factor of the Dice term, at least 0.
        cross_entropy_weight: factor of the cross-entropy term, at least 0.
        squared: square the probabilities in the denominator of the Dice term.

    Raises:
        ValueError: when a weight is negative.
    """

    def __init__(
        self, dice_weight: float = 1.0, cross_entropy_weight: float = 1.0, *, squared: bool | str = True
    ) -> None:
        super().__init__()
        for name, weight in (("dice_weight", dice_weight), ("cross_entropy_weight", cross_entropy_weight)):
            if not weight >= 0:
                raise ValueError(f"{name} must be at least 0, got {weight!r}.")
        self.dice_weight, self.cross_entropy_weight = dice_weight, cross_entropy_weight
        self.squared = str2bool(squared)

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Compare scores with the ground truth.

        Args:
            logits: unnormalized scores, (B, C, X, Y, Z), C >= 2.
            label: class indices 0 to C - 1 of any number type, (B, 1, X, Y, Z).

        Returns:
            The loss, a float32 scalar that is the same in every process; a zero connected to the logits for a batch
            without voxels.

        Raises:
            ValueError: when the shapes do not fit.
            IndexError: for a class that is not there, on a CPU; a GPU fails later.
        """
        check_logits(logits)
        check_voxel_map(label, "label", logits)
        if logits.numel() == 0:
            return logits.float().sum()
        cross_entropy = mean_over_processes(sum_over_voxels(self._cross_entropy, logits, label) / label.numel())
        return self.dice_weight * self._dice(logits.float(), label) + self.cross_entropy_weight * cross_entropy

    @staticmethod
    def _cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, label.squeeze(1).long(), ignore_index=_NO_CLASS, reduction="sum")

    def _dice(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        # MONAI's Dice loss is the same in one process, but its sums cannot be taken over several.
        probabilities = logits.softmax(dim=1)[:, 1:]
        target = foreground(label, logits.shape[1]).float()
        axes = (0, *range(2, logits.ndim))
        overlap = sum_over_processes((probabilities * target).sum(dim=axes))
        total = sum_over_processes(((probabilities.square() if self.squared else probabilities) + target).sum(dim=axes))
        return (1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)).mean()
