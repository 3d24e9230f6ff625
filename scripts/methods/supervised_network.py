# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""One network trained on the labeled cases alone: the lower bound of the methods that deploy one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..losses.supervised import SupervisedLoss
from ..networks.single_network import SingleNetwork
from .base import Method, weighted_sum


class SupervisedNetwork(Method):
    """The V-Net or the ResNet34-V-Net on the labeled crops.

    The "supervised only" row of the tables since UA-MT (https://arxiv.org/abs/1907.07034); with the labels of all
    training cases it is their upper bound. Unlabeled crops of a batch are not looked at.

    Args:
        network: the deployed network.
        supervised: cross-entropy and Dice.
    """

    network: SingleNetwork
    network_members = ("backbone",)

    def __init__(self, network: SingleNetwork, *, supervised: SupervisedLoss) -> None:
        super().__init__(network)
        self.supervised = supervised

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute the supervised loss, see :meth:`scripts.methods.base.Method.forward`."""
        return weighted_sum(
            {"loss_supervised": self.supervised(self.network.backbone(batch["image"]), batch["label"])}, {}
        )
