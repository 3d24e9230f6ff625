# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Both networks on crops mixed by copy and paste, taught by the moving average of the pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..losses.consistency import ConsistencyLoss
from ..losses.copy_paste import copy_paste_mask
from ..networks.dual_network import DualNetwork
from ..schedules import Weight
from .base import weighted_sum
from .copy_paste import CopyPasteMethod, Mixture
from .teacher import TeacherMode


class DualCopyPaste(CopyPasteMethod):
    r"""Copy and paste between labeled and unlabeled crops for both networks, which also learn to agree.

    .. math:: L = \sum_{x \in \{in, out\}} \left( L_{cp}^S(x) + L_{cp}^T(x) \right) + w_{reg} L_{reg}

    The crops are mixed as in "Bidirectional Copy-Paste", https://arxiv.org/abs/2305.00673, and :math:`L_{reg}` is
    Equations 5 and 6 of https://arxiv.org/abs/2505.17690 on the mixed crops. Three things are ours: the pseudo-label
    comes from what is deployed, the mean of both networks in evaluation mode, here of their moving averages; all
    mixtures go through a network in one pass, so that batch normalization sees both kinds; and in the first stage each
    labeled crop of a pair takes a box of the other.

    Args:
        network: the deployed pair of networks.
        consistency: :math:`L_{reg}`.
        consistency_weight: :math:`w_{reg}`; a term of weight 0 is not computed.
        teacher_mode: see :class:`scripts.methods.copy_paste.CopyPasteMethod`, as for all others.
        **kwargs: see there.

    Raises:
        ValueError: when an option is outside its range.
    """

    network: DualNetwork
    network_members = ("vnet", "resnet_vnet")

    def __init__(
        self,
        network: DualNetwork,
        *,
        consistency: ConsistencyLoss | None = None,
        consistency_weight: Weight | float = 1.0,
        teacher_mode: TeacherMode = "evaluation",
        **kwargs: Any,
    ) -> None:
        super().__init__(network, teacher_mode=teacher_mode, **kwargs)
        self.consistency = consistency or ConsistencyLoss()
        self.consistency_weight = Weight.of(consistency_weight, "consistency_weight")

    @property
    def student(self) -> nn.Module:
        """The whole pair: the teacher follows both networks."""
        return self.network

    def _pretrain_mixture(self, image: torch.Tensor, label: torch.Tensor) -> Mixture:
        """Mix every labeled crop with the other one of its pair, so that each is in two mixtures."""
        outside = copy_paste_mask(image, fraction=self.box_fraction)
        half = len(image) // 2
        other_image, other_label = image.roll(half, dims=0), label.roll(half, dims=0)
        mixture = torch.where(outside, image, other_image), torch.where(outside, label, other_label)
        return Mixture(*mixture, torch.ones_like(outside))

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute all terms of both networks, see :meth:`scripts.methods.base.Method.forward`."""
        mixtures = self.mixtures(batch, step)
        image = torch.cat([mixture.image for mixture in mixtures.values()])
        vnet, resnet_vnet = self.network.vnet(image), self.network.resnet_vnet(image)
        terms = {
            f"loss_copy_paste_{name}": self._copy_paste(logits, mixtures)
            for name, logits in (("vnet", vnet), ("resnet_vnet", resnet_vnet))
        }
        weights: dict[str, float] = {}
        if self.consistency_weight:
            terms["loss_consistency"] = self.consistency(resnet_vnet, vnet)
            weights["weight_consistency"] = self.consistency_weight(step)
        return weighted_sum(terms, weights)

    def _copy_paste(self, logits: torch.Tensor, mixtures: Mapping[str, Mixture]) -> torch.Tensor:
        """Sum the loss over the mixtures: each has regions of its own size, and so a mean of its own."""
        parts = logits.chunk(len(mixtures))
        terms = [
            self.copy_paste(part, mixture.label, mixture.labeled)
            for part, mixture in zip(parts, mixtures.values(), strict=True)
        ]
        return torch.stack(terms).sum()
