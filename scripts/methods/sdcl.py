# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Students' discrepancy-informed correction learning, https://arxiv.org/abs/2409.16728."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..losses.class_maps import predicted_class
from ..losses.copy_paste import DistanceCorrectionLoss, EntropyCorrectionLoss
from ..networks.dual_network import DualNetwork
from ..schedules import Weight
from .base import weighted_sum
from .copy_paste import CopyPasteMethod


class StudentDiscrepancyCorrectionLearning(CopyPasteMethod):
    r"""SDCL: bidirectional copy-paste of two students, who correct themselves where they disagree.

    .. math:: L = \sum_{k \in \{V, R\}} \sum_{x \in \{in, out\}} L_{cp}^k + w_d L_{distance}^k + w_e L_{entropy}^k

    in the second stage; in the first one :math:`L_{cp}` of two labeled crops mixed. The teacher follows the V-Net and
    labels for both. "SDCL: Students Discrepancy-Informed Correction Learning for Semi-supervised Medical Image
    Segmentation", https://arxiv.org/abs/2409.16728.

    Args:
        network: the deployed pair of networks, V-Net and ResNet34-V-Net.
        distance: the distance to the label on disputed voxels.
        distance_weight: its weight; a term of weight 0 is not computed.
        entropy: the divergence from the uniform distribution on disputed voxels that are wrong.
        entropy_weight: its weight.
        **kwargs: see :class:`scripts.methods.copy_paste.CopyPasteMethod`.

    Raises:
        ValueError: when an option is outside its range.
    """

    network: DualNetwork
    network_members = ("vnet", "resnet_vnet")

    def __init__(
        self,
        network: DualNetwork,
        *,
        distance: DistanceCorrectionLoss | None = None,
        distance_weight: Weight | float = 0.5,
        entropy: EntropyCorrectionLoss | None = None,
        entropy_weight: Weight | float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.distance = distance or DistanceCorrectionLoss()
        self.distance_weight = Weight.of(distance_weight, "distance_weight")
        self.entropy = entropy or EntropyCorrectionLoss()
        self.entropy_weight = Weight.of(entropy_weight, "entropy_weight")

    @property
    def student(self) -> nn.Module:
        """The V-Net: the teacher follows it alone."""
        return self.network.vnet

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute all terms of both students, see :meth:`scripts.methods.base.Method.forward`."""
        mixtures = self.mixtures(batch, step)
        terms: dict[str, torch.Tensor] = {}
        weights: dict[str, float] = {}
        predictions = []
        for name, (image, label, labeled) in mixtures.items():
            # One pass for each mixture, as in the public code: batch normalization sees one kind of crop at a time.
            students = {"vnet": self.network.vnet(image), "resnet_vnet": self.network.resnet_vnet(image)}
            first, second = (predicted_class(logits) for logits in students.values())
            for student, logits in students.items():
                terms[f"loss_{name}_{student}"] = self.copy_paste(logits, label, labeled)
                predictions.append((logits, label, labeled, first != second))
        if "pretrain" in mixtures:
            return weighted_sum(terms, weights)
        for name, correction, weight in (
            ("distance", self.distance, self.distance_weight),
            ("entropy", self.entropy, self.entropy_weight),
        ):
            if weight:
                terms[f"loss_{name}"] = torch.stack([correction(*prediction) for prediction in predictions]).sum()
                weights[f"weight_{name}"] = weight(step)
        return weighted_sum(terms, weights)
