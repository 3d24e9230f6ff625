# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the methods that train on crops mixed by copy and paste share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from ..losses.class_maps import predicted_class
from ..losses.copy_paste import CopyPasteLoss, copy_paste_mask, keep_largest_components
from .base import Method
from .teacher import MovingAverageTeacher, TeacherMode


class Mixture(NamedTuple):
    """Crops put together from two each, (B, C, X, Y, Z).

    ``label`` has their class indices, and ``labeled`` (bool) is True where they come from a labeled crop, both
    (B, 1, X, Y, Z).
    """

    image: torch.Tensor
    label: torch.Tensor
    labeled: torch.Tensor


class CopyPasteMethod(Method):
    """Two stages of training on mixed crops, the second with the pseudo-labels of a moving-average teacher.

    The first and the second half of the labeled crops, a and b, and those of the unlabeled ones are paired. In the
    first stage one half is pasted into a box of the other. At its end the teacher takes over the student's weights and
    buffers. In the second stage a box of the first unlabeled half is pasted into a ("inward") and a box of b into the
    second unlabeled half ("outward"). Without unlabeled crops the first stage goes on.

    The stage follows from the step alone. The warm-up of the teacher's decay counts from the first step of the run:
    in a second stage that begins after 99 iterations or more a decay of 0.99 is constant, as in the public code of
    both methods.

    Args:
        network: the deployed network, which holds :attr:`student`.
        copy_paste: the loss of a mixed crop.
        pretrain_iterations: length of the first stage, at least 0.
        box_fraction: side of the box over the side of the crop, above 0 and below 1.
        decay: how slowly the teacher follows, at least 0 and below 1.
        teacher_mode: see :class:`scripts.methods.teacher.MovingAverageTeacher`.

    Raises:
        ValueError: when an option is outside its range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        copy_paste: CopyPasteLoss,
        pretrain_iterations: int,
        box_fraction: float = 2 / 3,
        decay: float = 0.99,
        teacher_mode: TeacherMode = "training",
    ) -> None:
        super().__init__(network)
        # The teacher starts at the end of the step with this number, which no fraction is.
        if not isinstance(pretrain_iterations, int) or pretrain_iterations < 0:
            raise ValueError(f"pretrain_iterations must be a whole number of at least 0, got {pretrain_iterations!r}.")
        if not 0 < box_fraction < 1:
            raise ValueError(f"box_fraction must be above 0 and below 1, got {box_fraction!r}.")
        self.copy_paste = copy_paste
        self.pretrain_iterations = pretrain_iterations
        self.box_fraction = box_fraction
        self.teacher = MovingAverageTeacher(self.student, decay=decay, mode=teacher_mode)

    @property
    def student(self) -> nn.Module:
        """The network inside of the deployed one that the teacher follows: image to logits."""
        raise NotImplementedError(f"{type(self).__name__} must implement student.")

    def mixtures(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Mixture]:
        """Mix the crops of a batch as the stage asks.

        Args:
            batch: see :meth:`scripts.methods.base.Method.forward`.
            step: number of iterations done before this one, from 0.

        Returns:
            one mixture, "pretrain", in the first stage; two, "inward" and "outward", in the second.

        """
        if "unlabeled" not in batch or step < self.pretrain_iterations:
            return {"pretrain": self._pretrain_mixture(batch["image"], batch["label"])}
        (image_a, image_b), (label_a, label_b) = batch["image"].chunk(2), batch["label"].chunk(2)
        outside = copy_paste_mask(image_a, fraction=self.box_fraction)
        unlabeled_a, unlabeled_b = batch["unlabeled"].chunk(2)
        pseudo_label_a, pseudo_label_b = self._pseudo_label(unlabeled_a), self._pseudo_label(unlabeled_b)
        return {
            "inward": Mixture(
                torch.where(outside, image_a, unlabeled_a), torch.where(outside, label_a, pseudo_label_a), outside
            ),
            "outward": Mixture(
                torch.where(outside, unlabeled_b, image_b), torch.where(outside, pseudo_label_b, label_b), ~outside
            ),
        }

    def check_batch_sizes(self, num_labeled: int, num_unlabeled: int) -> None:
        """Refuse crops that cannot be paired, see :meth:`scripts.methods.base.Method.check_batch_sizes`."""
        super().check_batch_sizes(num_labeled, num_unlabeled)
        if num_labeled % 2:
            raise ValueError(f"labeled_batch_size must be even, as crops are mixed in pairs, got {num_labeled}.")
        if num_unlabeled not in (0, num_labeled):
            raise ValueError(
                "unlabeled_batch_size must be that of the labeled crops, as each is mixed with one of them, "
                f"got {num_unlabeled} beside labeled_batch_size {num_labeled}."
            )

    def check_iterations(self, iterations: int) -> None:
        """Refuse a training without a second stage, see :meth:`scripts.methods.base.Method.check_iterations`."""
        if self.pretrain_iterations >= iterations:
            raise ValueError(
                f"pretrain_iterations must be below the {iterations} iterations of the training, as unlabeled crops "
                f"are trained on behind them alone, got {self.pretrain_iterations}."
            )

    def after_step(self, step: int) -> None:
        """Start the teacher at the end of the first stage and move it in the second.

        Args:
            step: number of iterations done before the one that has just ended, from 0.
        """
        if step + 1 == self.pretrain_iterations:
            self.teacher.copy_from(self.student)
        elif step >= self.pretrain_iterations:
            self.teacher.follow(self.student, step)

    def _pretrain_mixture(self, image: torch.Tensor, label: torch.Tensor) -> Mixture:
        """Mix the first half of the labeled crops with the second: each crop is in one mixture alone."""
        (image_a, image_b), (label_a, label_b) = image.chunk(2), label.chunk(2)
        outside = copy_paste_mask(image_a, fraction=self.box_fraction)
        mixture = torch.where(outside, image_a, image_b), torch.where(outside, label_a, label_b)
        return Mixture(*mixture, torch.ones_like(outside))

    @torch.no_grad()
    def _pseudo_label(self, unlabeled: torch.Tensor) -> torch.Tensor:
        return keep_largest_components(predicted_class(self.teacher(unlabeled)))
