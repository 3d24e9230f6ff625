# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""CPS: two networks that label the unlabeled crops for each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..losses.class_maps import predicted_class
from ..losses.supervised import SupervisedLoss
from ..networks.dual_network import DualNetwork
from ..schedules import Weight
from .base import Method, weighted_sum


class CrossPseudoSupervision(Method):
    r"""Each network learns the labels and, on unlabeled crops, the arg-max of the other network.

    .. math:: L = L_s^V + L_s^R + w(t) \left(\mathrm{CE}(z^V, \hat y^R) + \mathrm{CE}(z^R, \hat y^V)\right)

    "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", https://arxiv.org/abs/2106.01226, with the
    V-Net V and the ResNet34-V-Net R as its two networks. Every voxel counts: there is no filter.

    Args:
        network: the deployed pair of networks.
        supervised: L_s, of each network on the labeled crops.
        pseudo_label_weight: w.
    """

    network: DualNetwork
    network_members = ("vnet", "resnet_vnet")

    def __init__(
        self, network: DualNetwork, *, supervised: SupervisedLoss, pseudo_label_weight: Weight | float = 0.1
    ) -> None:
        super().__init__(network)
        self.supervised = supervised
        self.pseudo_label_weight = Weight.of(pseudo_label_weight, "pseudo_label_weight")

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute all terms of one batch, see :meth:`scripts.methods.base.Method.forward`."""
        label, num_labeled = batch["label"], batch["image"].shape[0]
        has_unlabeled = "unlabeled" in batch
        images = self.all_crops(batch)
        vnet, resnet_vnet = self.network.vnet(images), self.network.resnet_vnet(images)
        terms = {
            "loss_supervised_vnet": self.supervised(vnet[:num_labeled], label),
            "loss_supervised_resnet_vnet": self.supervised(resnet_vnet[:num_labeled], label),
        }
        weights: dict[str, float] = {}
        if has_unlabeled and self.pseudo_label_weight:
            vnet, resnet_vnet = vnet[num_labeled:].float(), resnet_vnet[num_labeled:].float()
            # A class carries no gradient: each network is a constant where it teaches.
            of_vnet, of_resnet_vnet = (predicted_class(scores.detach()).squeeze(1) for scores in (vnet, resnet_vnet))
            terms["loss_pseudo_label"] = F.cross_entropy(vnet, of_resnet_vnet) + F.cross_entropy(resnet_vnet, of_vnet)
            weights["weight_pseudo_label"] = self.pseudo_label_weight(step)
        return weighted_sum(terms, weights)
