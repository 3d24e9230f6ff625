# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""SASSNet: a discriminator asks for shapes on unlabeled crops like those on labeled ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.utils import eval_mode
from torch import nn

from ..losses.signed_distance import SignedDistanceLoss
from ..losses.supervised import SupervisedLoss
from ..networks.discriminator import Discriminator
from ..networks.dual_task_vnet import DualTaskVNet
from ..schedules import Weight
from .base import Method, weighted_sum

_UNLABELED, _LABELED = 0, 1


class SASSNet(Method):
    r"""A network segments and predicts signed distances, which a discriminator judges on unlabeled crops.

    .. math:: L = L_s(z_l) + w_{sdf} L_{sdf}(\hat s_l) + w(t) \, CE(D(\hat s_u, x_u), \text{labeled})

    "Shape-aware Semi-supervised 3D Semantic Segmentation for Medical Images", https://arxiv.org/abs/2007.10732. The
    discriminator D learns to tell both kinds of crops apart after each step of the network: that is the auxiliary part
    of this method, and needs an ``auxiliary_optimizer``. A term of weight 0 is not computed; without the
    adversarial one the discriminator still learns unless ``auxiliary_optimizer`` is None.

    Args:
        network: the deployed network.
        discriminator: D.
        supervised: L_s on the logits.
        distance_weight: w_sdf, of the signed distance on labeled crops.
        adversarial_weight: w.
    """

    network: DualTaskVNet
    network_members = ("logits_and_distance",)

    def __init__(
        self,
        network: DualTaskVNet,
        *,
        discriminator: Discriminator,
        supervised: SupervisedLoss,
        distance_weight: Weight | float = 0.3,
        adversarial_weight: Weight | float = 0.01,
    ) -> None:
        super().__init__(network)
        self.discriminator = discriminator
        self.supervised = supervised
        self.distance = SignedDistanceLoss()
        self.distance_weight = Weight.of(distance_weight, "distance_weight")
        self.adversarial_weight = Weight.of(adversarial_weight, "adversarial_weight")

    def trainable_parameters(self) -> list[nn.Parameter]:
        """List what the optimizer moves, see :meth:`scripts.methods.base.Method.trainable_parameters`."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """List the discriminator's, see :meth:`scripts.methods.base.Method.auxiliary_parameters`."""
        return list(self.discriminator.parameters()) if self.adversarial_weight else []

    def forward(self, batch: Mapping[str, torch.Tensor], step: int, auxiliary: bool = False) -> dict[str, Any]:
        """Compute all terms of one batch, see :meth:`scripts.methods.base.Method.forward`."""
        label, num_labeled = batch["label"], batch["image"].shape[0]
        images = self.all_crops(batch)
        if auxiliary:
            return self._discriminate(images, num_labeled)
        logits, distance = self.network.logits_and_distance(images)
        terms = {"loss_supervised": self.supervised(logits[:num_labeled], label)}
        weights: dict[str, float] = {}
        if self.distance_weight:
            terms["loss_distance"] = self.distance(distance[:num_labeled], label)
            weights["weight_distance"] = self.distance_weight(step)
        if self.adversarial_weight and "unlabeled" in batch:
            terms["loss_adversarial"] = self._deceive(distance[num_labeled:], batch["unlabeled"])
            weights["weight_adversarial"] = self.adversarial_weight(step)
        return weighted_sum(terms, weights)

    def _deceive(self, distance: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        # The discriminator is the judge here and learns nothing: it has no dropout and its weights are constants.
        weights = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        with eval_mode(self.discriminator), torch.enable_grad():
            scores = torch.func.functional_call(self.discriminator, weights, (distance, images))
        return F.cross_entropy(scores.float(), torch.full_like(scores[:, 0], _LABELED, dtype=torch.long))

    def _discriminate(self, images: torch.Tensor, num_labeled: int) -> dict[str, torch.Tensor]:
        # As it is deployed, and without gradient: the network is what is judged, and learns nothing.
        with eval_mode(self.network):
            _, distance = self.network.logits_and_distance(images)
        scores = self.discriminator(distance, images)
        target = torch.full_like(scores[:, 0], _UNLABELED, dtype=torch.long)
        target[:num_labeled] = _LABELED
        loss = F.cross_entropy(scores.float(), target)
        return {"loss": loss, "loss_discriminator": loss}
