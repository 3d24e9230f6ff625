# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The teacher of the mean-teacher family: a copy of a network that follows it slowly."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from torch import nn

TeacherMode = Literal["training", "evaluation"]


class MovingAverageTeacher(nn.Module):
    r"""A copy of a network whose weights are a moving average of that network's.

    .. math:: \theta' \leftarrow \alpha_t \theta' + (1 - \alpha_t) \theta, \qquad
        \alpha_t = \min(1 - 1 / (t + 1), \alpha)

    "Mean teachers are better role models", https://arxiv.org/abs/1703.01780. The first update copies the network. It
    takes no gradient.

    Args:
        network: the network to follow.
        decay: :math:`\alpha`, at least 0 and below 1.
        mode: "training", as in the public code: dropout is on, and batch normalization uses the statistics of the
            batch; its running statistics are the teacher's own and come from its own passes. Or "evaluation": as a
            deployed network, without dropout; the running statistics are averaged like the weights.

    Raises:
        ValueError: when an option is outside its range.
    """

    def __init__(self, network: nn.Module, *, decay: float = 0.99, mode: TeacherMode = "training") -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}.")
        if mode not in get_args(TeacherMode):
            raise ValueError(f"teacher_mode must be 'training' or 'evaluation', got {mode!r}.")
        self.decay = decay
        self.mode: TeacherMode = mode
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.train(self.training)

    @torch.no_grad()
    def follow(self, network: nn.Module, step: int) -> None:
        """Move the average by one step.

        Args:
            network: the network that was copied, after its optimization step.
            step: number of iterations done before that optimization step, from 0.
        """
        decay = min(1 - 1 / (step + 1), self.decay)
        for average, parameter in zip(self.network.parameters(), network.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - decay)
        if self.mode == "evaluation":
            for own, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
                own.copy_(torch.lerp(own, buffer, 1 - decay) if buffer.is_floating_point() else buffer)

    def train(self, mode: bool = True) -> MovingAverageTeacher:
        """Switch as every module, but stay in the mode of evaluation where that was chosen."""
        return super().train(mode and self.mode == "training")

    @torch.no_grad()
    def copy_from(self, network: nn.Module) -> None:
        """Take over all parameters and buffers, as a second stage of training does at its start.

        Args:
            network: the network that was copied.
        """
        self.network.load_state_dict(network.state_dict())

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> Any:
        """Let the teacher see images.

        Args:
            image: (B, C, X, Y, Z).

        Returns:
            whatever the copied network gives, without gradient.
        """
        return self.network(image)
