# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The dual-network method of https://arxiv.org/abs/2505.17690 with its readings and variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from monai.utils.misc import str2bool

from ..losses.class_maps import predicted_class
from ..losses.consistency import ConsistencyLoss
from ..losses.contrastive import PrototypeContrastiveLoss
from ..losses.pseudo_label import PseudoLabelLoss
from ..losses.rectification import RectificationLoss
from ..losses.reliability import Combination, ReliabilityFilter, combine_reliability
from ..losses.supervised import SupervisedLoss
from ..losses.uncertainty import UncertaintyLoss
from ..networks.blocks import SegmentationNetwork
from ..networks.dual_network import DualNetwork
from ..networks.layers import split_crops
from ..schedules import Weight
from .base import Method, weighted_sum

Roles = Literal["fixed", "winner", "symmetric"]
Source = Literal["cross", "self", "winner", "union"]
Region = Literal["all", "unlabeled"]
Learner = Literal["student", "loser", "both"]
Passes = Literal["joint", "separate"]


#: Pseudo-labels, (B, 1, X, Y, Z), and the mask of those that count.
_Target = tuple[torch.Tensor, torch.Tensor]


class _View(NamedTuple):
    """What one of the two networks says of the batch; labeled crops come first."""

    labeled_features: torch.Tensor
    unlabeled_features: torch.Tensor
    #: In float32 and class by class in memory, as the losses compute.
    logits: torch.Tensor
    labeled: torch.Tensor
    unlabeled: torch.Tensor
    #: What teaches on the unlabeled crops, (B_u, C, X, Y, Z); no gradient is taken of it.
    teaching: torch.Tensor

    def region(self, region: Region) -> torch.Tensor:
        return self.logits if region == "all" else self.unlabeled


class DualNetworkMethod(Method):
    r"""Two networks that teach each other on unlabeled crops (Equations 1 to 11).

    .. math:: L = L_s^S + L_s^T + w_r L_{rect} + w_{reg} L_{reg} + w_{une} L_{une} + w_u(t) (L_u^S + L_u^T) + w_c(t) L_c

    with the V-Net as Teacher T and the ResNet34-V-Net as Student S. The defaults of the arguments are the reading of
    the paper that docs/methods.md calls "paper"; configurations set the weights. A term of weight 0 is not computed.

    Args:
        network: the deployed pair of networks.
        supervised: L_s, Equation 2.
        rectification: the releases' term on labeled voxels where one network alone is confident of a class.
        rectification_weight: its weight.
        reliability: which voxels are certain enough to teach, by Equation 3 and the percentile rule under it.
        reliability_combination: whether a network's pseudo-label is reliable by its "own" entropy, by that of both
            ("and") or by that of either ("or").
        pseudo_label: L_u, Equation 4.
        pseudo_label_source: whose prediction teaches: that of the other network ("cross"), its own ("self"), that of
            the network with the lower supervised loss for both ("winner"), or the union of both foregrounds for both
            ("union", two classes only).
        pseudo_label_dropout: whether the predictions that teach on unlabeled crops, that is pseudo-labels and whether
            they are reliable, are made with the dropout of the training; without it, of the same features.
        pseudo_label_weight: w_u.
        consistency: L_reg, Equations 5 and 6.
        consistency_region: on "all" crops or on the "unlabeled" ones.
        consistency_weight: w_reg.
        uncertainty: L_une, Equations 7 to 9.
        uncertainty_region: on "all" crops or on the "unlabeled" ones.
        uncertainty_weight: w_une.
        contrastive: L_c, Equations 10 and 11; None where its weight is 0.
        contrastive_network: who learns by it: the "student", the network with the higher supervised loss ("loser"),
            or "both" (the mean of their terms).
        contrastive_weight: w_c.
        roles: who is Teacher in L_une: the V-Net ("fixed"), the network with the lower supervised loss of this
            iteration ("winner"), or each in turn ("symmetric", the mean of both directions).
        passes: whether labeled and unlabeled crops go through a network in one "joint" batch or in "separate" ones, so
            that batch normalization takes the statistics of each kind of crops for itself (ours). What it remembers for
            the deployed networks is of both.

    Raises:
        ValueError: when an option is none of its allowed values or two of them contradict each other.
    """

    network: DualNetwork
    network_members = ("vnet", "resnet_vnet")

    def __init__(
        self,
        network: DualNetwork,
        *,
        supervised: SupervisedLoss,
        rectification: RectificationLoss | None = None,
        rectification_weight: Weight | float = 0.5,
        reliability: ReliabilityFilter | None = None,
        reliability_combination: Combination = "own",
        pseudo_label: PseudoLabelLoss | None = None,
        pseudo_label_source: Source = "cross",
        pseudo_label_dropout: bool | str = True,
        pseudo_label_weight: Weight | float = 1.0,
        consistency: ConsistencyLoss | None = None,
        consistency_region: Region = "all",
        consistency_weight: Weight | float = 1.0,
        uncertainty: UncertaintyLoss | None = None,
        uncertainty_region: Region = "all",
        uncertainty_weight: Weight | float = 1.0,
        contrastive: PrototypeContrastiveLoss | None = None,
        contrastive_network: Learner = "student",
        contrastive_weight: Weight | float = 0.1,
        roles: Roles = "fixed",
        passes: Passes = "joint",
    ) -> None:
        super().__init__(network)
        for name, value, allowed in (
            ("roles", roles, Roles),
            ("pseudo_label_source", pseudo_label_source, Source),
            ("reliability_combination", reliability_combination, Combination),
            ("consistency_region", consistency_region, Region),
            ("uncertainty_region", uncertainty_region, Region),
            ("contrastive_network", contrastive_network, Learner),
            ("passes", passes, Passes),
        ):
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}.")
        if pseudo_label_source == "union" and reliability_combination == "own":
            raise ValueError("pseudo_label_source 'union' needs reliability_combination 'and' or 'or', got 'own'.")
        if pseudo_label_source == "union" and contrastive is not None and contrastive.num_classes != 2:
            raise ValueError(f"pseudo_label_source 'union' needs two classes, got {contrastive.num_classes}.")
        self.supervised = supervised
        self.rectification = rectification or RectificationLoss()
        self.rectification_weight = Weight.of(rectification_weight, "rectification_weight")
        self.reliability = reliability or ReliabilityFilter()
        self.reliability_combination: Combination = reliability_combination
        self.pseudo_label = pseudo_label or PseudoLabelLoss()
        self.pseudo_label_source: Source = pseudo_label_source
        self.pseudo_label_dropout = str2bool(pseudo_label_dropout)
        self.pseudo_label_weight = Weight.of(pseudo_label_weight, "pseudo_label_weight")
        self.consistency = consistency or ConsistencyLoss()
        self.consistency_region: Region = consistency_region
        self.consistency_weight = Weight.of(consistency_weight, "consistency_weight")
        self.uncertainty = uncertainty or UncertaintyLoss()
        self.uncertainty_region: Region = uncertainty_region
        self.uncertainty_weight = Weight.of(uncertainty_weight, "uncertainty_weight")
        self.contrastive = contrastive
        self.contrastive_network: Learner = contrastive_network
        self.contrastive_weight = Weight.of(contrastive_weight, "contrastive_weight")
        if self.contrastive_weight and contrastive is None:
            raise ValueError("contrastive must be given unless contrastive_weight is 0.")
        self.roles: Roles = roles
        self.passes: Passes = passes

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute all terms of one batch, see :meth:`scripts.methods.base.Method.forward`."""
        has_labels, has_unlabeled = "label" in batch, "unlabeled" in batch
        num_labeled = len(batch["label"]) if has_labels else 0
        images = self.all_crops(batch)
        teacher, student = (
            self._view(subnetwork, images, num_labeled) for subnetwork in (self.network.vnet, self.network.resnet_vnet)
        )
        terms: dict[str, torch.Tensor] = {}
        weights: dict[str, float] = {}
        if has_labels:
            label = batch["label"]
            terms["loss_supervised_vnet"] = self.supervised(teacher.labeled, label)
            terms["loss_supervised_resnet_vnet"] = self.supervised(student.labeled, label)
        student_wins = self._student_wins(terms)
        if has_labels and self.rectification_weight:
            terms["loss_rectification"] = self.rectification(teacher.labeled, student.labeled, label)
            weights["weight_rectification"] = self.rectification_weight(step)
        if self.consistency_weight and (has_unlabeled or self.consistency_region == "all"):
            terms["loss_consistency"] = self.consistency(
                student.region(self.consistency_region), teacher.region(self.consistency_region)
            )
            weights["weight_consistency"] = self.consistency_weight(step)
        if self.uncertainty_weight and (has_unlabeled or self.uncertainty_region == "all"):
            terms["loss_uncertainty"] = self._uncertainty(teacher, student, student_wins)
            weights["weight_uncertainty"] = self.uncertainty_weight(step)
        if has_unlabeled and (self.pseudo_label_weight or self.contrastive_weight):
            reliable = combine_reliability(
                self.reliability(teacher.teaching), self.reliability(student.teaching), self.reliability_combination
            )
            classes = (predicted_class(teacher.teaching.detach()), predicted_class(student.teaching.detach()))
            targets = self._targets(classes, reliable, student_wins, num_classes=teacher.logits.shape[1])
            if self.pseudo_label_weight:
                terms["loss_pseudo_label"] = self.pseudo_label(teacher.unlabeled, *targets[0]) + self.pseudo_label(
                    student.unlabeled, *targets[1]
                )
                weights["weight_pseudo_label"] = self.pseudo_label_weight(step)
            if self.contrastive_weight:
                terms["loss_contrastive"] = self._contrastive(
                    (teacher, student), classes, reliable, targets, student_wins, batch.get("label")
                )
                weights["weight_contrastive"] = self.contrastive_weight(step)
        return weighted_sum(terms, weights)

    def check_batch_sizes(self, num_labeled: int, num_unlabeled: int) -> None:
        """Refuse batches without labels where something needs them, see :class:`scripts.methods.base.Method`."""
        if num_labeled:
            return
        if self._knows_winner:
            raise ValueError("the network with the lower supervised loss leads, but labeled_batch_size is 0.")
        if not num_unlabeled:
            raise ValueError("unlabeled_batch_size must be at least 1 where labeled_batch_size is 0, got 0.")
        weights = (self.consistency_weight, self.uncertainty_weight, self.pseudo_label_weight, self.contrastive_weight)
        if not any(weights):
            raise ValueError("labeled_batch_size 0 needs a term that trains without labels, but all have weight 0.")

    @property
    def _knows_winner(self) -> bool:
        return self.roles == "winner" or self.pseudo_label_source == "winner" or self.contrastive_network == "loser"

    def _view(self, subnetwork: SegmentationNetwork, images: torch.Tensor, num_labeled: int) -> _View:
        features = self._features(subnetwork, images, num_labeled)
        logits = subnetwork.head(features).contiguous().float()
        labeled, unlabeled = split_crops(logits, num_labeled)
        labeled_features, unlabeled_features = split_crops(features, num_labeled)
        teaching = unlabeled
        if not self.pseudo_label_dropout:
            with torch.no_grad():
                teaching = subnetwork.head_without_dropout(unlabeled_features)
        return _View(labeled_features, unlabeled_features, logits, labeled, unlabeled, teaching)

    def _features(self, subnetwork: SegmentationNetwork, images: torch.Tensor, num_labeled: int) -> torch.Tensor:
        if self.passes == "joint" or not 0 < num_labeled < len(images):
            return subnetwork.features(images)
        # Labeled crops last, so that their statistics weigh a little more in what batch normalization remembers.
        unlabeled = subnetwork.features(images[num_labeled:])
        return torch.cat([subnetwork.features(images[:num_labeled]), unlabeled])

    def _student_wins(self, terms: Mapping[str, torch.Tensor]) -> bool:
        return self._knows_winner and bool(terms["loss_supervised_resnet_vnet"] < terms["loss_supervised_vnet"])

    def _uncertainty(self, teacher: _View, student: _View, student_wins: bool) -> torch.Tensor:
        teacher_logits, student_logits = (view.region(self.uncertainty_region) for view in (teacher, student))
        if self.roles == "symmetric":
            return (
                self.uncertainty(student_logits, teacher_logits) + self.uncertainty(teacher_logits, student_logits)
            ) / 2
        if self.roles == "winner" and student_wins:
            return self.uncertainty(teacher_logits, student_logits)
        return self.uncertainty(student_logits, teacher_logits)

    @torch.no_grad()
    def _targets(
        self,
        classes: tuple[torch.Tensor, torch.Tensor],
        reliable: tuple[torch.Tensor, torch.Tensor],
        student_wins: bool,
        *,
        num_classes: int,
    ) -> tuple[_Target, _Target]:
        """What the Teacher and the Student learn on the unlabeled crops: pseudo-labels, and where they count."""
        of_teacher, of_student = zip(classes, reliable, strict=True)
        if self.pseudo_label_source == "cross":
            return of_student, of_teacher
        if self.pseudo_label_source == "self":
            return of_teacher, of_student
        if self.pseudo_label_source == "winner":
            shared = of_student if student_wins else of_teacher
        else:
            if num_classes != 2:
                raise ValueError(f"pseudo_label_source 'union' needs two classes, got logits of {num_classes}.")
            shared = (torch.maximum(of_teacher[0], of_student[0]), reliable[0])
        return shared, shared

    def _contrastive(
        self,
        views: tuple[_View, _View],
        classes: tuple[torch.Tensor, torch.Tensor],
        reliable: tuple[torch.Tensor, torch.Tensor],
        targets: tuple[_Target, _Target],
        student_wins: bool,
        label: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self.contrastive is not None
        learners = {"student": (1,), "both": (0, 1), "loser": (0 if student_wins else 1,)}[self.contrastive_network]
        terms = []
        for learner in learners:
            view = views[learner]
            class_map = classes[learner]
            mask = reliable[learner]
            # What both learn is also what the prototypes are made of; an uncertain voxel has the class it is seen in.
            if self.pseudo_label_source in ("winner", "union"):
                labels, mask = targets[learner]
                class_map = torch.where(mask, labels, class_map)
            terms.append(
                self.contrastive(
                    view.unlabeled_features,
                    class_map,
                    mask,
                    labeled_features=None if label is None else view.labeled_features,
                    label=label,
                )
            )
        return torch.stack(terms).mean()
