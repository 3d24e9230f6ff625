# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Both networks on unlabeled crops mixed with each other, taught by the moving average of the pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..losses.class_maps import predicted_class
from ..losses.copy_paste import copy_paste_mask
from ..losses.supervised import SupervisedLoss
from ..networks.dual_network import DualNetwork
from ..schedules import Weight
from .base import Method, weighted_sum
from .teacher import MovingAverageTeacher


class DualMeanTeacher(Method):
    r"""Both networks learn what the moving average of their mean says of unlabeled crops, from mixtures of these.

    .. math:: L = L_s^S + L_s^T + w(t) \left( L_p^S(\tilde x, \tilde y) + L_p^T(\tilde x, \tilde y) \right), \qquad
        \tilde x_i = M x_i + (1 - M) x_{i-1}, \qquad \tilde y_i = M \hat y_i + (1 - M) \hat y_{i-1}

    The label of a voxel is the arg-max of what is deployed, the mean of both softmaxes, here of the moving averages of
    both networks ("Mean teachers are better role models", https://arxiv.org/abs/1703.01780) in evaluation mode. The
    teacher sees whole crops, the networks see crops in which a box shows the crop before it in the batch ("CutMix",
    https://arxiv.org/abs/1905.04899): a task that the teacher does not have. Labeled crops stay as they are.

    Args:
        network: the deployed pair of networks.
        supervised: L_s.
        pseudo_label: L_p, by default L_s.
        pseudo_label_weight: w; unlabeled crops are left out where it is 0.
        box_fraction: side of the box over the side of the crop, above 0 and below 1.
        decay: how slowly the teacher follows, at least 0 and below 1.

    Raises:
        ValueError: when an option is outside its range.
    """

    network: DualNetwork
    network_members = ("vnet", "resnet_vnet")

    def __init__(
        self,
        network: DualNetwork,
        *,
        supervised: SupervisedLoss,
        pseudo_label: SupervisedLoss | None = None,
        pseudo_label_weight: Weight | float = 1.0,
        box_fraction: float = 2 / 3,
        decay: float = 0.99,
    ) -> None:
        super().__init__(network)
        if not 0 < box_fraction < 1:
            raise ValueError(f"box_fraction must be above 0 and below 1, got {box_fraction!r}.")
        self.supervised = supervised
        self.pseudo_label = pseudo_label or supervised
        self.pseudo_label_weight = Weight.of(pseudo_label_weight, "pseudo_label_weight")
        self.box_fraction = box_fraction
        self.teacher = MovingAverageTeacher(network, decay=decay, mode="evaluation")

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute all terms of one batch, see :meth:`scripts.methods.base.Method.forward`."""
        images, label = batch["image"], batch["label"]
        has_unlabeled = "unlabeled" in batch and bool(self.pseudo_label_weight)
        if has_unlabeled:
            mixture, mixed_label = self._mix(batch["unlabeled"])
            images = self.all_crops({"image": images, "unlabeled": mixture})
        (vnet, unlabeled_vnet), (resnet_vnet, unlabeled_resnet_vnet) = (
            subnetwork(images).tensor_split([len(label)])
            for subnetwork in (self.network.vnet, self.network.resnet_vnet)
        )
        terms = {
            "loss_supervised_vnet": self.supervised(vnet, label),
            "loss_supervised_resnet_vnet": self.supervised(resnet_vnet, label),
        }
        weights: dict[str, float] = {}
        if has_unlabeled:
            terms["loss_pseudo_label"] = self.pseudo_label(unlabeled_vnet, mixed_label) + self.pseudo_label(
                unlabeled_resnet_vnet, mixed_label
            )
            weights["weight_pseudo_label"] = self.pseudo_label_weight(step)
        return weighted_sum(terms, weights)

    def check_batch_sizes(self, num_labeled: int, num_unlabeled: int) -> None:
        """Refuse a crop that has none to be mixed with, see :meth:`scripts.methods.base.Method.check_batch_sizes`."""
        super().check_batch_sizes(num_labeled, num_unlabeled)
        if num_unlabeled == 1 and self.pseudo_label_weight:
            raise ValueError("unlabeled_batch_size must be at least 2, as crops are mixed, got 1.")

    def after_step(self, step: int) -> None:
        """Let the teacher follow both networks."""
        self.teacher.follow(self.network, step)

    @torch.no_grad()
    def _mix(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a box of each crop into the next one, and likewise what the teacher says of them."""
        pseudo_label = predicted_class(self.teacher(image))
        outside = copy_paste_mask(image, fraction=self.box_fraction)
        mixed_image, mixed_label = (torch.where(outside, part, part.roll(1, dims=0)) for part in (image, pseudo_label))
        return mixed_image, mixed_label
