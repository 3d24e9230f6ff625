# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""MCF: two networks of which the better one teaches the other, and which correct each other where they disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..losses.mean_squared_error import SoftmaxMSELoss
from ..losses.rectification import RectificationLoss
from ..losses.sharpening import check_temperature, sharpen
from ..losses.supervised import SupervisedLoss
from ..networks.dual_network import DualNetwork
from ..schedules import Weight
from .base import Method, weighted_sum


class MutualCorrection(Method):
    r"""The network that is better on the labeled crops of the batch teaches the other on the unlabeled ones.

    .. math:: L = L_s^V + L_s^R + w_r \left(L_{rect}^V + L_{rect}^R\right) +
        w(t) \, \mathrm{mean}\left((p^{loser} - \hat p^{winner})^2\right)

    for the V-Net V and the ResNet34-V-Net R, with :math:`\hat p` the sharpened probabilities. "MCF: Mutual Correction
    Framework for Semi-Supervised Medical Image Segmentation" (Wang et al., CVPR 2023, https://github.com/WYC-321/MCF).
    The winner has the lower foreground Dice loss on the labeled crops of this very batch, in training mode; it is a
    constant in the last term.

    Args:
        network: the deployed pair of networks.
        supervised: L_s, of each network on the labeled crops.
        rectification: L_rect, on the labeled voxels where one network alone sees a foreground class; by default with
            threshold 0, so that every such voxel counts.
        rectification_weight: w_r.
        pseudo_label_weight: w.
        temperature: of the sharpening, above 0 and at most 1.

    Raises:
        ValueError: when the temperature is outside its range.
    """

    network: DualNetwork
    network_members = ("vnet", "resnet_vnet")

    def __init__(
        self,
        network: DualNetwork,
        *,
        supervised: SupervisedLoss,
        rectification: RectificationLoss | None = None,
        rectification_weight: Weight | float = 0.5,
        pseudo_label_weight: Weight | float = 0.1,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(network)
        check_temperature(temperature)
        self.supervised = supervised
        self.rectification = rectification or RectificationLoss(threshold=0.0)
        self.rectification_weight = Weight.of(rectification_weight, "rectification_weight")
        self.pseudo_label = SoftmaxMSELoss()
        self.pseudo_label_weight = Weight.of(pseudo_label_weight, "pseudo_label_weight")
        self.temperature = temperature
        self.dice = SupervisedLoss(cross_entropy_weight=0.0)

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute all terms of one batch, see :meth:`scripts.methods.base.Method.forward`."""
        label, num_labeled = batch["label"], batch["image"].shape[0]
        has_unlabeled = "unlabeled" in batch
        images = self.all_crops(batch)
        (vnet, unlabeled_vnet), (resnet_vnet, unlabeled_resnet_vnet) = (
            logits.tensor_split([num_labeled])
            for logits in (self.network.vnet(images), self.network.resnet_vnet(images))
        )
        terms = {
            "loss_supervised_vnet": self.supervised(vnet, label),
            "loss_supervised_resnet_vnet": self.supervised(resnet_vnet, label),
        }
        weights: dict[str, float] = {}
        if self.rectification_weight:
            terms["loss_rectification"] = self.rectification(vnet, resnet_vnet, label)
            weights["weight_rectification"] = self.rectification_weight(step)
        if has_unlabeled and self.pseudo_label_weight:
            with torch.no_grad():
                resnet_vnet_wins = bool(self.dice(resnet_vnet, label) <= self.dice(vnet, label))
                winner, loser = unlabeled_vnet, unlabeled_resnet_vnet
                if resnet_vnet_wins:
                    winner, loser = loser, winner
                target = sharpen(winner.float().softmax(dim=1), self.temperature)
            terms["loss_pseudo_label"] = self.pseudo_label(loser, target)
            weights["weight_pseudo_label"] = self.pseudo_label_weight(step)
        return weighted_sum(terms, weights)
