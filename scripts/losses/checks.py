# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the losses refuse: scores and maps whose shapes do not fit."""

from __future__ import annotations

import torch


def check_logits(logits: torch.Tensor, name: str = "logits") -> None:
    """Refuse a tensor that cannot hold the scores of at least two classes.

    Args:
        logits: the tensor to look at; allowed is (B, C, X, Y, Z) or another number of spatial axes, C >= 2.
        name: what to call it in the message.

    Raises:
        ValueError: when there is no spatial axis, or fewer than two classes.
    """
    if logits.ndim < 3 or logits.shape[1] < 2:
        raise ValueError(f"{name} must be of shape (B, C, X, Y, Z) with C >= 2, got {tuple(logits.shape)}.")


def check_pair(first: torch.Tensor, second: torch.Tensor, first_name: str, second_name: str) -> None:
    """Refuse the scores of two networks that are not of one shape, (B, C, X, Y, Z), C >= 2.

    Args:
        first: scores of one network.
        second: scores of the other.
        first_name: what to call the first in the message.
        second_name: what to call the second in the message.

    Raises:
        ValueError: when the shapes differ, or are not those of scores.
    """
    check_logits(first, first_name)
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} and {second_name} must have the same shape, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}."
        )


def check_voxel_map(
    voxel_map: torch.Tensor, name: str, reference: torch.Tensor, reference_name: str = "logits"
) -> None:
    """Refuse a map that does not have exactly one channel on the grid of another tensor.

    Args:
        voxel_map: the tensor to look at; allowed is (B, 1, X, Y, Z).
        name: what to call it in the message.
        reference: the tensor whose batch and grid it must have, (B, any, X, Y, Z).
        reference_name: what to call the reference in the message.

    Raises:
        ValueError: when the shapes do not fit; the message holds both.
    """
    if voxel_map.shape != (reference.shape[0], 1, *reference.shape[2:]):
        raise ValueError(
            f"{name} must have one channel on the grid of {reference_name}, "
            f"got {tuple(voxel_map.shape)} beside {tuple(reference.shape)}."
        )


def check_mask(mask: torch.Tensor, name: str, reference: torch.Tensor, reference_name: str = "logits") -> None:
    """Refuse a mask that is not bool, or that :func:`check_voxel_map` refuses.

    Args:
        mask: the tensor to look at; allowed is bool, (B, 1, X, Y, Z).
        name: what to call it in the message.
        reference: the tensor whose batch and grid it must have, (B, any, X, Y, Z).
        reference_name: what to call the reference in the message.

    Raises:
        ValueError: when the shapes do not fit, or it is not bool.
    """
    check_voxel_map(mask, name, reference, reference_name)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool, got {mask.dtype}.")
