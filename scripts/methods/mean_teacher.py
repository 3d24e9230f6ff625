# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Mean teacher: a network that agrees with the moving average of its own past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..losses.mean_squared_error import SoftmaxMSELoss
from ..losses.supervised import SupervisedLoss
from ..networks.single_network import SingleNetwork
from ..schedules import Weight
from .base import Method, weighted_sum
from .teacher import MovingAverageTeacher


class MeanTeacher(Method):
    r"""On unlabeled crops the network is pulled to what its own moving average says of a noisy view.

    .. math:: L = L_s + w(t) \, \mathrm{mean}_{i,c} \left(p_i(c; x) - p'_i(c; x + \xi)\right)^2, \qquad
        \xi = \min(\max(\sigma n, -b), b), \quad n \sim N(0, 1)

    "Mean teachers are better role models", https://arxiv.org/abs/1703.01780, in the form for volumes in which the
    literature compares with it. The teacher p' stays in training mode: its dropout is on, and its batch normalization
    uses the statistics of the batch. The network is deployed, not the teacher.

    Args:
        network: the deployed network, the student.
        supervised: L_s, on the labeled crops.
        consistency_weight: w.
        decay: of the teacher, see :class:`scripts.methods.teacher.MovingAverageTeacher`.
        noise_std: sigma, at least 0, in units of the normalized intensity.
        noise_limit: b, at least 0, in the same units.

    Raises:
        ValueError: when an option is outside its range.
    """

    network: SingleNetwork
    network_members = ("backbone",)

    def __init__(
        self,
        network: SingleNetwork,
        *,
        supervised: SupervisedLoss,
        consistency_weight: Weight | float = 0.1,
        decay: float = 0.99,
        noise_std: float = 0.1,
        noise_limit: float = 0.2,
    ) -> None:
        super().__init__(network)
        for name, value in (("noise_std", noise_std), ("noise_limit", noise_limit)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value!r}.")
        self.supervised = supervised
        self.consistency = SoftmaxMSELoss()
        self.consistency_weight = Weight.of(consistency_weight, "consistency_weight")
        self.teacher = MovingAverageTeacher(network, decay=decay)
        self.noise_std = noise_std
        self.noise_limit = noise_limit

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute both terms of one batch, see :meth:`scripts.methods.base.Method.forward`."""
        num_labeled = batch["image"].shape[0]
        has_unlabeled = "unlabeled" in batch
        images = self.all_crops(batch)
        labeled, unlabeled = self.network.backbone(images).tensor_split([num_labeled])
        terms = {"loss_supervised": self.supervised(labeled, batch["label"])}
        weights: dict[str, float] = {}
        if has_unlabeled and self.consistency_weight:
            target, mask = self._ask_teacher(batch["unlabeled"]), self._mask(batch["unlabeled"], step)
            terms["loss_consistency"] = self.consistency(unlabeled, target, mask)
            weights["weight_consistency"] = self.consistency_weight(step)
        return weighted_sum(terms, weights)

    def after_step(self, step: int) -> None:
        """Let the teacher follow the network."""
        self.teacher.follow(self.network, step)

    def _ask_teacher(self, image: torch.Tensor) -> torch.Tensor:
        """Class probabilities of one noisy view, without gradient."""
        # The teacher sees noise so that its target differs from the student's own answer.
        noise = (self.noise_std * torch.randn_like(image)).clamp(-self.noise_limit, self.noise_limit)
        probabilities: torch.Tensor = self.teacher(image + noise)
        return probabilities

    def _mask(self, image: torch.Tensor, step: int) -> torch.Tensor | None:
        """Return which voxels of the unlabeled crops count; None where all do."""
        return None
