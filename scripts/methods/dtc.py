# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""DTC: the two tasks of one network must agree on every crop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..losses.signed_distance import SignedDistanceLoss, TaskConsistencyLoss
from ..losses.supervised import SupervisedLoss
from ..networks.dual_task_vnet import DualTaskVNet
from ..schedules import Weight
from .base import Method, weighted_sum


class DualTaskConsistency(Method):
    r"""A network segments and predicts signed distances; both must describe the same shape.

    .. math:: L = L_s(z_l) + w_{sdf} L_{sdf}(\hat s_l) + w(t) L_{dtc}(z, \hat s)

    "Semi-supervised Medical Image Segmentation through Dual-task Consistency", https://arxiv.org/abs/2009.04448. The
    consistency is taken on labeled and unlabeled crops. A term of weight 0 is not computed.

    Args:
        network: the deployed network.
        supervised: L_s on the logits.
        distance_weight: w_sdf, of the signed distance on labeled crops.
        consistency: L_dtc.
        consistency_weight: w.
    """

    network: DualTaskVNet
    network_members = ("logits_and_distance",)

    def __init__(
        self,
        network: DualTaskVNet,
        *,
        supervised: SupervisedLoss,
        distance_weight: Weight | float = 0.3,
        consistency: TaskConsistencyLoss | None = None,
        consistency_weight: Weight | float = 1.0,
    ) -> None:
        super().__init__(network)
        self.supervised = supervised
        self.distance = SignedDistanceLoss()
        self.distance_weight = Weight.of(distance_weight, "distance_weight")
        self.consistency = consistency or TaskConsistencyLoss()
        self.consistency_weight = Weight.of(consistency_weight, "consistency_weight")

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute all terms of one batch, see :meth:`scripts.methods.base.Method.forward`."""
        label, num_labeled = batch["label"], batch["image"].shape[0]
        images = self.all_crops(batch)
        logits, distance = self.network.logits_and_distance(images)
        terms = {"loss_supervised": self.supervised(logits[:num_labeled], label)}
        weights: dict[str, float] = {}
        if self.distance_weight:
            terms["loss_distance"] = self.distance(distance[:num_labeled], label)
            weights["weight_distance"] = self.distance_weight(step)
        if self.consistency_weight:
            terms["loss_consistency"] = self.consistency(logits, distance)
            weights["weight_consistency"] = self.consistency_weight(step)
        return weighted_sum(terms, weights)
