# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Pseudo-supervision of a student by a teacher, weighted by how much the two agree."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from monai.utils.misc import str2bool
from torch import nn

from .checks import check_pair
from .class_maps import predicted_class
from .voxels import sum_over_voxels

Target = Literal["soft", "hard"]


class UncertaintyLoss(nn.Module):
    r"""Cross-entropy with the sharpened teacher, weighted down where teacher and student diverge, plus the divergence.

    .. math:: L_{une} = \mathrm{mean}_i(e^{-D_i} \, L_{p,i}) + \mathrm{mean}_i(D_i), \quad
        D_i = \sum_c p^T_i(c) \log \frac{p^T_i(c)}{p^S_i(c)}, \quad L_{p,i} = -\sum_c q_i(c) \log p^S_i(c)

    with :math:`q = \mathrm{softmax}(z^T / T_p)`. Equations 7 to 9 of https://arxiv.org/abs/2505.17690. It trains only
    the student.

    Args:
        target: "soft" is q above; "hard" is the class of the highest teacher score, for which the temperature has no
            effect (the form of the authors' public code).
        temperature: T_p, above 0; below 1 sharpens the teacher.
        detach_weight: hold the factor exp(-D) constant in the gradient. Otherwise the student may also lower the first
            term by disagreeing more, where a soft teacher is uncertain.

    Raises:
        ValueError: when an option is not one of these.
    """

    def __init__(self, target: Target = "soft", temperature: float = 0.5, detach_weight: bool | str = False) -> None:
        super().__init__()
        if target not in get_args(Target):
            raise ValueError(f"target must be 'soft' or 'hard', got {target!r}.")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature!r}.")
        self.target = target
        self.temperature = temperature
        self.detach_weight = str2bool(detach_weight)

    def forward(self, logits_student: torch.Tensor, logits_teacher: torch.Tensor) -> torch.Tensor:
        """Pull the student to the teacher.

        Args:
            logits_student: unnormalized scores of the network to train, (B, C, X, Y, Z), C >= 2.
            logits_teacher: unnormalized scores of the other network, same shape; detached here.

        Returns:
            The loss, a float32 scalar connected to the student alone.

        Raises:
            ValueError: when the shapes do not fit.
        """
        check_pair(logits_student, logits_teacher, "logits_student", "logits_teacher")
        total = sum_over_voxels(self._sum, logits_student, logits_teacher.detach())
        return total / max(1, logits_student.numel() // logits_student.shape[1])

    def _sum(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        log_student = student.log_softmax(dim=1)
        log_teacher = teacher.log_softmax(dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
        if self.target == "soft":
            sharpened = (teacher / self.temperature).softmax(dim=1)
            cross_entropy = -(sharpened * log_student).sum(dim=1)
        else:
            cross_entropy = -log_student.gather(1, predicted_class(teacher)).squeeze(1)
        weight = torch.exp(-(divergence.detach() if self.detach_weight else divergence))
        return (weight * cross_entropy + divergence).sum()
