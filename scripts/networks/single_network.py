# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The deployed network of the methods that end with one network."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from .arguments import Normalization
from .resnet_vnet import ResNetVNet
from .vnet import VNet

Architecture = Literal["vnet", "resnet_vnet"]


class SingleNetwork(nn.Module):
    """One segmentation network behind a softmax: one tensor in, class probabilities out.

    Training methods call the network inside by the name ``backbone`` and get its logits.

    Args:
        architecture: "vnet" or "resnet_vnet".
        in_channels: image channels, 1 to 16.
        out_channels: classes with the background, 2 to 128.
        dropout: see the networks.
        normalization: "batch", "instance" or "group".

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self,
        architecture: Architecture = "vnet",
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        dropout: float = 0.5,
        normalization: Normalization = "batch",
    ) -> None:
        super().__init__()
        if architecture not in get_args(Architecture):
            raise ValueError(f"architecture must be one of {', '.join(get_args(Architecture))}, got {architecture!r}.")
        network = VNet if architecture == "vnet" else ResNetVNet
        self.backbone: VNet | ResNetVNet = network(
            in_channels, out_channels, dropout=dropout, normalization=normalization
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Predict class probabilities.

        Args:
            image: (B, in_channels, X, Y, Z), spatial sizes divisible by 16.

        Returns:
            probabilities in float32, (B, out_channels, X, Y, Z).

        Raises:
            ValueError: when the shape does not fit.
        """
        return self.backbone(image).float().softmax(dim=1)
