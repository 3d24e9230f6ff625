# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Crops mixed from a labeled and an unlabeled one: the box, the pseudo-label and the losses by region."""

from __future__ import annotations

import math

import torch
from monai.networks.utils import one_hot
from monai.transforms import KeepLargestConnectedComponent
from monai.utils import convert_to_tensor
from torch import nn

from ..parallel import sum_over_processes
from .checks import check_logits, check_mask, check_voxel_map
from .class_maps import predicted_class

_SMOOTH = 1e-5


def copy_paste_mask(image: torch.Tensor, *, fraction: float = 2 / 3) -> torch.Tensor:
    """Draw the box in which one crop replaces another.

    Every position inside of the crop is equally likely. The numbers come from torch's global generator of the CPU,
    three a call, whatever device the image is on.

    Args:
        image: the crops to mix, (B, C, X, Y, Z); they share one box.
        fraction: side of the box over the side of the crop along each axis, above 0 and below 1; rounded down to
            voxels.

    Returns:
        True outside of the box, False inside, bool, (B, 1, X, Y, Z).

    Raises:
        ValueError: when the fraction is outside its range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction!r}.")
    mask = torch.ones((image.shape[0], 1, *image.shape[2:]), dtype=torch.bool, device=image.device)
    box = mask
    for axis, size in enumerate(image.shape[2:], start=2):
        side = int(size * fraction)
        start = int(torch.randint(size - side + 1, ()))
        box = box.narrow(axis, start, side)
    box.fill_(False)
    return mask


def keep_largest_components(label: torch.Tensor) -> torch.Tensor:
    """Turn everything but the largest connected component of each crop and class into background.

    Voxels that touch in a face, an edge or a corner are connected.

    Args:
        label: class indices, (B, 1, X, Y, Z).

    Returns:
        the cleaned label, same shape and type.
    """
    keep_largest = KeepLargestConnectedComponent(is_onehot=False)
    # It writes into what it is given.
    return torch.stack([convert_to_tensor(keep_largest(crop.clone())) for crop in label])


class CopyPasteLoss(nn.Module):
    r"""Cross-entropy and Dice of a mixed crop, separately on what came from a labeled and from an unlabeled crop.

    .. math:: L = \frac{1}{2} \sum_{r} w_r \left( \frac{\sum_i m_{r,i} (-\log p_i(y_i))}{\max(1, \sum_i m_{r,i})}
        + \mathrm{mean}_{b,c} \left( 1 - \frac{2 \sum_i m_{r,i} \, p_i(c) [y_i = c] + 10^{-5}}
        {\sum_i m_{r,i} (p_i(c) + [y_i = c]) + 10^{-5}} \right) \right)

    with :math:`w` = 1 on the labeled region and ``unlabeled_weight`` on the unlabeled one. The sums of the Dice term go
    over the voxels of one crop, its mean over crops and all classes with the background. "Bidirectional Copy-Paste for
    Semi-Supervised Medical Image Segmentation", https://arxiv.org/abs/2305.00673.

    Args:
        unlabeled_weight: weight of the region with a pseudo-label, at least 0.

    Raises:
        ValueError: when the weight is negative.
    """

    def __init__(self, unlabeled_weight: float = 0.5) -> None:
        super().__init__()
        self.unlabeled_weight = _check_weight(unlabeled_weight)

    def forward(self, logits: torch.Tensor, label: torch.Tensor, labeled: torch.Tensor) -> torch.Tensor:
        """Compare scores with the mixed label.

        Args:
            logits: unnormalized scores of the mixed crops, (B, C, X, Y, Z), C >= 2.
            label: class indices mixed from label and pseudo-label, (B, 1, X, Y, Z).
            labeled: True where a voxel comes from a labeled crop, bool, (B, 1, X, Y, Z).

        Returns:
            The loss, a float32 scalar; a region without voxels adds nothing.

        Raises:
            ValueError: when the shapes do not fit or the mask is not bool.
        """
        _check_mixture(logits, label, labeled, "labeled")
        log_probabilities = logits.float().log_softmax(dim=1)
        probabilities = log_probabilities.exp()
        cross_entropy = -log_probabilities.gather(1, label.long())
        target = one_hot(label, logits.shape[1])
        axes = tuple(range(2, logits.ndim))
        loss = probabilities.new_zeros(())
        for region, weight in ((labeled, 1.0), (~labeled, self.unlabeled_weight)):
            overlap = (probabilities * target * region).sum(dim=axes)
            total = ((probabilities + target) * region).sum(dim=axes)
            dice = (1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)).mean()
            loss = loss + weight / 2 * (dice + _mean_over(cross_entropy, region))
        return loss


class DistanceCorrectionLoss(nn.Module):
    r"""Squared distance to the mixed label where two networks disagree.

    .. math:: L = \frac{\sum_i d_i \, w_i \frac{1}{C} \sum_c (p_i(c) - [y_i = c])^2}{\max(1, \sum_i d_i)}

    with :math:`d` = 1 on disputed voxels and :math:`w` as in :class:`CopyPasteLoss`. The first correction of "SDCL:
    Students Discrepancy-Informed Correction Learning", https://arxiv.org/abs/2409.16728.

    Args:
        unlabeled_weight: weight of voxels with a pseudo-label, at least 0.

    Raises:
        ValueError: when the weight is negative.
    """

    def __init__(self, unlabeled_weight: float = 0.5) -> None:
        super().__init__()
        self.unlabeled_weight = _check_weight(unlabeled_weight)

    def forward(
        self, logits: torch.Tensor, label: torch.Tensor, labeled: torch.Tensor, disputed: torch.Tensor
    ) -> torch.Tensor:
        """Pull disputed voxels to the label.

        Args:
            logits: unnormalized scores of the mixed crops, (B, C, X, Y, Z), C >= 2.
            label: class indices mixed from label and pseudo-label, (B, 1, X, Y, Z).
            labeled: True where a voxel comes from a labeled crop, bool, (B, 1, X, Y, Z).
            disputed: True where the networks predict different classes, bool, (B, 1, X, Y, Z).

        Returns:
            The loss, a float32 scalar; a zero connected to the logits where nothing is disputed.

        Raises:
            ValueError: when the shapes do not fit or a mask is not bool.
        """
        _check_mixture(logits, label, labeled, "labeled")
        _check_mixture(logits, label, disputed, "disputed")
        error = logits.float().softmax(dim=1) - one_hot(label, logits.shape[1])
        distance = error.square().mean(dim=1, keepdim=True)
        return _mean_over(distance * _region_weight(labeled, self.unlabeled_weight), disputed)


class EntropyCorrectionLoss(nn.Module):
    r"""Divergence from the uniform distribution where two networks disagree and this one is wrong.

    .. math:: L = \frac{\sum_i e_i \, w_i \, \mathrm{KL}(u \,\|\, p_i)}{\max(1, \sum_i e_i)}, \qquad
        \mathrm{KL}(u \,\|\, p_i) = -\log C - \frac{1}{C} \sum_c \log p_i(c)

    with :math:`e` = 1 on disputed voxels whose largest score is not that of the mixed label, and :math:`w` as in
    :class:`CopyPasteLoss`. It makes the network doubt its errors. The second correction of "SDCL: Students
    Discrepancy-Informed Correction Learning", https://arxiv.org/abs/2409.16728.

    Args:
        unlabeled_weight: weight of voxels with a pseudo-label, at least 0.

    Raises:
        ValueError: when the weight is negative.
    """

    def __init__(self, unlabeled_weight: float = 0.5) -> None:
        super().__init__()
        self.unlabeled_weight = _check_weight(unlabeled_weight)

    def forward(
        self, logits: torch.Tensor, label: torch.Tensor, labeled: torch.Tensor, disputed: torch.Tensor
    ) -> torch.Tensor:
        """Flatten the prediction on disputed voxels that are wrong.

        Args:
            logits: unnormalized scores of the mixed crops, (B, C, X, Y, Z), C >= 2.
            label: class indices mixed from label and pseudo-label, (B, 1, X, Y, Z).
            labeled: True where a voxel comes from a labeled crop, bool, (B, 1, X, Y, Z).
            disputed: True where the networks predict different classes, bool, (B, 1, X, Y, Z).

        Returns:
            The loss, a float32 scalar; a zero connected to the logits where no disputed voxel is wrong.

        Raises:
            ValueError: when the shapes do not fit or a mask is not bool.
        """
        _check_mixture(logits, label, labeled, "labeled")
        _check_mixture(logits, label, disputed, "disputed")
        log_probabilities = logits.float().log_softmax(dim=1)
        wrong = disputed & (predicted_class(logits) != label)
        divergence = -math.log(logits.shape[1]) - log_probabilities.mean(dim=1, keepdim=True)
        return _mean_over(divergence * _region_weight(labeled, self.unlabeled_weight), wrong)


def _mean_over(voxel_map: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Mean over the voxels of a region, of all processes; a connected zero where it has none."""
    return sum_over_processes((voxel_map * region).sum()) / sum_over_processes(region.sum()).clamp(min=1)


def _region_weight(labeled: torch.Tensor, unlabeled_weight: float) -> torch.Tensor:
    """Weight of each voxel: 1 where it comes from a labeled crop."""
    return labeled + unlabeled_weight * ~labeled


def _check_weight(unlabeled_weight: float) -> float:
    if not unlabeled_weight >= 0:
        raise ValueError(f"unlabeled_weight must be at least 0, got {unlabeled_weight!r}.")
    return unlabeled_weight


def _check_mixture(logits: torch.Tensor, label: torch.Tensor, mask: torch.Tensor, name: str) -> None:
    check_logits(logits)
    check_voxel_map(label, "label", logits)
    check_mask(mask, name, logits)
