# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""MC-Net and MC-Net+: decoders of one encoder that agree with each other's sharpened predictions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import torch

from ..losses.mean_squared_error import SoftmaxMSELoss
from ..losses.sharpening import check_temperature, sharpen
from ..losses.supervised import SupervisedLoss
from ..networks.multi_decoder_vnet import MultiDecoderVNet
from ..schedules import Weight
from .base import Method, weighted_sum


class MutualConsistency(Method):
    r"""Every decoder learns the labels, and the sharpened prediction of every other decoder.

    .. math:: L = \sum_d L_s(z^d) + w(t) \sum_{d \ne e} \mathrm{mean}\left((p^d - \hat p^e)^2\right)

    with :math:`\hat p^e` the probabilities of decoder e, sharpened. MC-Net (two decoders,
    https://arxiv.org/abs/2103.02911) and MC-Net+ (three, https://arxiv.org/abs/2109.09960): the network decides. The
    consistency is taken on labeled and unlabeled crops, and its gradient reaches both sides of each pair.

    Args:
        network: the deployed network with its decoders.
        supervised: L_s, of each decoder on the labeled crops.
        consistency_weight: w.
        temperature: of the sharpening, above 0 and at most 1.

    Raises:
        ValueError: when the temperature is outside its range.
    """

    network: MultiDecoderVNet
    network_members = ("all_logits",)

    def __init__(
        self,
        network: MultiDecoderVNet,
        *,
        supervised: SupervisedLoss,
        consistency_weight: Weight | float = 1.0,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(network)
        check_temperature(temperature)
        self.supervised = supervised
        self.consistency = SoftmaxMSELoss()
        self.consistency_weight = Weight.of(consistency_weight, "consistency_weight")
        self.temperature = temperature

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute all terms of one batch, see :meth:`scripts.methods.base.Method.forward`."""
        label, num_labeled = batch["label"], batch["image"].shape[0]
        images = self.all_crops(batch)
        logits = self.network.all_logits(images)
        terms = {
            f"loss_supervised_decoder_{number}": self.supervised(scores[:num_labeled], label)
            for number, scores in enumerate(logits, start=1)
        }
        weights: dict[str, float] = {}
        if self.consistency_weight:
            terms["loss_consistency"] = self._consistency(logits)
            weights["weight_consistency"] = self.consistency_weight(step)
        return weighted_sum(terms, weights)

    def _consistency(self, logits: list[torch.Tensor]) -> torch.Tensor:
        # The targets keep their gradient, as in the public code: both sides of a pair move towards each other.
        targets = [sharpen(scores.float().softmax(dim=1), self.temperature) for scores in logits]
        pairs = permutations(range(len(logits)), 2)
        return torch.stack([self.consistency(logits[own], targets[other]) for own, other in pairs]).sum()
