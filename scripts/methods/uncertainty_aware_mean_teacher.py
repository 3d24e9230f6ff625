# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""UA-MT: a mean teacher that teaches only where it is certain."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..networks.single_network import SingleNetwork
from ..schedules import Weight
from .mean_teacher import MeanTeacher


class UncertaintyAwareMeanTeacher(MeanTeacher):
    r"""The mean teacher whose consistency counts the voxels alone on which the teacher is certain.

    .. math:: L_{con} = \frac{\sum_i m_i \sum_c (p_i(c) - p'_i(c))^2}{C \max(1, \sum_i m_i)}, \qquad
        m_i = \left[-\sum_c \mu_i(c) \ln \mu_i(c) < (h + r(t)) \ln C\right]

    with :math:`\mu` the mean softmax of several teacher passes, each with dropout and noise of its own; the target is
    one more such pass. "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation",
    https://arxiv.org/abs/1907.07034, with the greatest possible entropy ln C in the place of ln 2, so that it takes any
    number of classes.

    Args:
        network: the deployed network, the student.
        num_passes: number of teacher passes to tell its certainty by, at least 1.
        threshold: h, entropy below which a voxel counts as a part of the greatest possible one, from 0 to 1.
        threshold_rise: r, what is added to it over the run; the method has 0.25 with a sigmoid ramp.
        **kwargs: see :class:`scripts.methods.mean_teacher.MeanTeacher`.

    Raises:
        ValueError: when an option is outside its range.
    """

    def __init__(
        self,
        network: SingleNetwork,
        *,
        num_passes: int = 8,
        threshold: float = 0.75,
        threshold_rise: Weight | float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        if not isinstance(num_passes, int) or num_passes < 1:
            raise ValueError(f"num_passes must be a whole number of at least 1, got {num_passes!r}.")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, got {threshold!r}.")
        self.num_passes = num_passes
        self.threshold = threshold
        self.threshold_rise = Weight.of(threshold_rise, "threshold_rise")

    @torch.no_grad()
    def _mask(self, image: torch.Tensor, step: int) -> torch.Tensor:
        """True where the teacher's mean prediction has a low entropy, (B, 1, X, Y, Z)."""
        mean = self._ask_teacher(image)
        # One after the other: this holds two predictions in memory, however many passes there are.
        for _ in range(self.num_passes - 1):
            mean += self._ask_teacher(image)
        mean /= self.num_passes
        entropy = torch.special.entr(mean).sum(dim=1, keepdim=True)
        return entropy < (self.threshold + self.threshold_rise(step)) * math.log(mean.shape[1])
