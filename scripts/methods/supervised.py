# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Both networks trained on the labeled cases alone: the control of every semi-supervised row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..losses.rectification import RectificationLoss
from ..losses.supervised import SupervisedLoss
from ..networks.dual_network import DualNetwork
from ..schedules import Weight
from .base import Method, weighted_sum


class SupervisedDualNetwork(Method):
    """V-Net and ResNet34-V-Net on the labeled crops; the deployed prediction is the mean of both.

    Whatever a semi-supervised dual-network method gains over this row, it gains from the unlabeled cases. Unlabeled
    crops of a batch are not looked at, so that both rows see the same labeled crops in the same order.

    Args:
        network: the deployed pair of networks.
        supervised: cross-entropy and Dice, Equation 2 of https://arxiv.org/abs/2505.17690.
        rectification: the term on labeled voxels where one network alone is confident of a class.
        rectification_weight: its weight; 0 leaves the two networks without any tie.
    """

    network: DualNetwork
    network_members = ("vnet", "resnet_vnet")

    def __init__(
        self,
        network: DualNetwork,
        *,
        supervised: SupervisedLoss,
        rectification: RectificationLoss | None = None,
        rectification_weight: Weight | float = 0.0,
    ) -> None:
        super().__init__(network)
        self.supervised = supervised
        self.rectification = rectification or RectificationLoss()
        self.rectification_weight = Weight.of(rectification_weight, "rectification_weight")

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute both supervised losses, see :meth:`scripts.methods.base.Method.forward`."""
        image, label = batch["image"], batch["label"]
        vnet, resnet_vnet = self.network.vnet(image), self.network.resnet_vnet(image)
        terms = {
            "loss_supervised_vnet": self.supervised(vnet, label),
            "loss_supervised_resnet_vnet": self.supervised(resnet_vnet, label),
        }
        weights: dict[str, float] = {}
        if self.rectification_weight:
            terms["loss_rectification"] = self.rectification(vnet, resnet_vnet, label)
            weights["weight_rectification"] = self.rectification_weight(step)
        return weighted_sum(terms, weights)
