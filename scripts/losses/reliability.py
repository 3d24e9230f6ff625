# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Which voxels of a prediction can be trusted: entropy, its percentile filter, and what two networks say together."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import nn

from ..parallel import gather_over_processes, num_processes, process_rank
from .checks import check_logits
from .class_maps import predicted_class

Scope = Literal["batch", "per_class"]
Combination = Literal["own", "and", "or"]


def entropy_bits(logits: torch.Tensor) -> torch.Tensor:
    r"""Compute the entropy of the class probabilities of each voxel in bits.

    .. math:: H_i = -\sum_c p_i(c) \log_2 p_i(c)

    Equation 3 of https://arxiv.org/abs/2505.17690. The logarithm comes from log-softmax, which is finite where a
    probability underflows to 0, so that no epsilon is needed.

    Args:
        logits: unnormalized scores, (B, C, X, Y, Z), C >= 2.

    Returns:
        Entropy from 0 to log2(C) bits, float32, (B, 1, X, Y, Z).

    Raises:
        ValueError: when the shape does not fit.
    """
    check_logits(logits)
    log_probabilities = logits.float().log_softmax(dim=1)
    entropy_nats = -(log_probabilities.exp() * log_probabilities).sum(dim=1, keepdim=True)
    return entropy_nats / math.log(2)


def _order_statistic(values: torch.Tensor, rank: int) -> torch.Tensor:
    """Value of one rank of a flat tensor, counted from 0 for the smallest.

    torch.kthvalue would say the same, but on a CPU it takes quadratic time on values that fall smoothly along the
    memory, as those of a volume can.
    """
    count = values.numel()
    if rank < count // 2:
        return values.topk(rank + 1, largest=False, sorted=False).values.amax()
    return values.topk(count - rank, largest=True, sorted=False).values.amin()


def _percentile(values: torch.Tensor, percent: float) -> torch.Tensor:
    """Percentile of a flat tensor, linear between two ranks as in NumPy; torch.quantile ends at 2**24 elements."""
    position = (values.numel() - 1) * percent / 100
    rank = math.floor(position)
    lower = _order_statistic(values, rank)
    if position == rank:
        return lower
    # The next rank is the smallest larger value unless the lower one is repeated: cheaper than a second selection.
    not_larger = values <= lower
    next_larger = values.masked_fill(not_larger, math.inf).amin()
    upper = torch.where(not_larger.sum() > rank + 1, lower, next_larger)
    return torch.lerp(lower, upper, position - rank)


class ReliabilityFilter(nn.Module):
    r"""Mark the voxels whose prediction is certain enough to serve as a pseudo-label.

    Scope "batch" is the filter of https://arxiv.org/abs/2505.17690 (the rule between Equations 3 and 4): a voxel is
    reliable if and only if :math:`H_i < \tau`, with :math:`\tau` the ``keep_percent``-th percentile of the entropies
    of all given voxels, linear between ranks. Voxels that tie with the threshold are not reliable; a batch of one
    constant entropy therefore has no reliable voxel, even where all are certain. ``keep_percent`` 100 keeps all voxels.

    Scope "per_class" keeps, among the voxels predicted as class c, exactly the
    :math:`\lceil n_c \cdot` ``keep_percent`` :math:`/ 100 \rceil` of lowest entropy, ties in the order of memory:
    at least one voxel of each predicted class, so that a small foreground does not vanish beside a certain background.

    Several processes share the threshold and the ranks: percentile and number of voxels are those of all processes.

    Args:
        keep_percent: share of voxels to keep in percent, above 0 and at most 100.
        scope: one threshold for the batch, or one rank for each predicted class.

    Raises:
        ValueError: when an option is not one of these.
    """

    def __init__(self, keep_percent: float = 80.0, scope: Scope = "batch") -> None:
        super().__init__()
        if not isinstance(keep_percent, (int, float)) or not 0 < keep_percent <= 100:
            raise ValueError(f"keep_percent must be above 0 and at most 100, got {keep_percent!r}.")
        if scope not in get_args(Scope):
            raise ValueError(f"scope must be 'batch' or 'per_class', got {scope!r}.")
        self.keep_percent = float(keep_percent)
        self.scope = scope

    @torch.no_grad()
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Tell reliable voxels from unreliable ones; without gradient.

        Args:
            logits: unnormalized scores, (B, C, X, Y, Z), C >= 2; the whole batch shares the threshold. Of the same
                shape in every process.

        Returns:
            True where reliable, bool, (B, 1, X, Y, Z).

        Raises:
            ValueError: when the shape does not fit.
        """
        entropy = entropy_bits(logits)
        if self.keep_percent == 100 or entropy.numel() == 0:
            return torch.ones_like(entropy, dtype=torch.bool)
        if self.scope == "batch":
            return entropy < _percentile(gather_over_processes(entropy.flatten()), self.keep_percent)
        reliable = self._keep_by_rank(
            gather_over_processes(entropy.flatten()),
            gather_over_processes(predicted_class(logits).flatten()),
            logits.shape[1],
        )
        return reliable.chunk(num_processes())[process_rank()].reshape(entropy.shape)

    def _keep_by_rank(self, entropy: torch.Tensor, classes: torch.Tensor, num_classes: int) -> torch.Tensor:
        reliable = torch.zeros_like(entropy, dtype=torch.bool)
        for index in range(num_classes):
            members = (classes == index).nonzero().squeeze(1)
            if members.numel() == 0:
                continue
            # Rounded first, as the product may lie a hair above the whole number that it stands for.
            keep = math.ceil(round(self.keep_percent * members.numel() / 100, 6))
            keep = min(max(keep, 1), members.numel())
            values = entropy[members]
            threshold = _order_statistic(values, keep - 1)
            below = values < threshold
            tied = values == threshold
            reliable[members] = below | (tied & (tied.cumsum(dim=0) <= keep - below.sum()))
        return reliable


def combine_reliability(
    mask_a: torch.Tensor, mask_b: torch.Tensor, combine: Combination
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let two networks decide together which voxels are reliable.

    The names speak of RELIABLE voxels. "or" is the rule of the public LUSEG code, which says the same of the
    unreliable ones with "and": a voxel is unreliable only if both networks say so.

    Args:
        mask_a: True where network a is reliable, bool, any shape, usually (B, 1, X, Y, Z).
        mask_b: True where network b is reliable, bool, same shape.
        combine: "own" leaves each network its mask; "and": reliable only if both networks are;
            "or": reliable if at least one of them is.

    Returns:
        The masks to use with the pseudo-labels of network a and of network b, both bool.

    Raises:
        ValueError: when the option is unknown, the shapes differ, or a mask is not bool.
    """
    if combine not in get_args(Combination):
        raise ValueError(f"combine must be 'own', 'and' or 'or', got {combine!r}.")
    if mask_a.shape != mask_b.shape:
        raise ValueError(
            f"mask_a and mask_b must have the same shape, got {tuple(mask_a.shape)} and {tuple(mask_b.shape)}."
        )
    if mask_a.dtype != torch.bool or mask_b.dtype != torch.bool:
        raise ValueError(f"mask_a and mask_b must be bool, got {mask_a.dtype} and {mask_b.dtype}.")
    if combine == "own":
        return mask_a, mask_b
    both = mask_a & mask_b if combine == "and" else mask_a | mask_b
    return both, both
