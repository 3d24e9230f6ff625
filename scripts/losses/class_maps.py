# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Maps of classes: made of scores, and taken apart."""

from __future__ import annotations

import torch


def predicted_class(logits: torch.Tensor) -> torch.Tensor:
    """Find the class of the highest score of each voxel; of equal scores, the first; where one is NaN, class 0.

    Args:
        logits: scores, (B, C, X, Y, Z).

    Returns:
        class indices, int64, (B, 1, X, Y, Z).
    """
    # On a CPU Tensor.max and Tensor.argmax take many times as long as comparisons with the highest score.
    highest = logits.amax(dim=1, keepdim=True)
    # So does filling by masks; a byte holds the classes of any network here, at most 128.
    classes = torch.zeros_like(highest, dtype=torch.uint8)
    free = torch.ones_like(highest, dtype=torch.bool)
    for index in range(logits.shape[1]):
        first = (logits[:, index : index + 1] == highest) & free
        free ^= first
        classes.add_(first, alpha=index)
    return classes.long()


def foreground(class_map: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Tell where each foreground class is.

    Args:
        class_map: class indices, (B, 1, X, Y, Z).
        num_classes: C, with the background.

    Returns:
        bool, (B, C - 1, X, Y, Z).
    """
    return torch.cat([class_map == index for index in range(1, num_classes)], dim=1)
