# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The deployed network of the shape-aware methods: a V-Net that also tells how far away a surface is."""

from __future__ import annotations

import torch
from torch import nn

from .arguments import Normalization
from .blocks import initialize_kaiming
from .layers import Head
from .vnet import VNet


class DualTaskVNet(nn.Module):
    """V-Net with two 1x1x1 heads on the same features: one tensor in, class probabilities out.

    The network of SASSNet (https://arxiv.org/abs/2007.10732) and DTC (https://arxiv.org/abs/2009.04448). One head
    gives the logits of the classes, the other behind a tanh a signed distance to the surface of each foreground class,
    see :func:`scripts.losses.signed_distance.signed_distance_map`. The second serves training alone: methods get both
    by :meth:`logits_and_distance`.

    The public code has one logit behind a sigmoid, for one foreground class. A softmax over two classes is the sigmoid
    of the difference of both logits, so both say the same up to parametrization; this form takes any number of classes.
    9,448,883 parameters for 1 channel and 2 classes: the V-Net and 17 of the second head.

    Args:
        in_channels: image channels, 1 to 16.
        out_channels: classes with the background, 2 to 128.
        dropout: probability with which channels of the deepest and of the last map are switched off in training; both
            heads see the same channels.
        normalization: "batch", "instance" or "group".

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        dropout: float = 0.5,
        normalization: Normalization = "batch",
    ) -> None:
        super().__init__()
        self.backbone = VNet(in_channels, out_channels, dropout=dropout, normalization=normalization)
        self.distance_head = Head(out_channels - 1)
        initialize_kaiming(self.distance_head)

    def logits_and_distance(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Segment an image in both ways.

        Args:
            image: (B, in_channels, X, Y, Z), spatial sizes divisible by 16.

        Returns:
            logits: unnormalized scores, (B, out_channels, X, Y, Z).
            distance: signed distance to the surface of each foreground class in float32, from -1 (inside) to 1,
            (B, out_channels - 1, X, Y, Z).

        Raises:
            ValueError: when the shape does not fit.
        """
        features = self.backbone.features(image)
        channel_weights = self.backbone.dropout(features)
        # DTC takes a sigmoid of steepness 1500 of it: rounded to 16 bits, it would train on the rounding.
        with torch.autocast(features.device.type, enabled=False):
            distance = self.distance_head(features.float(), channel_weights.float()).tanh()
        return self.backbone.classifier(features, channel_weights), distance

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Predict class probabilities; the signed distance is not computed.

        Args:
            image: (B, in_channels, X, Y, Z), spatial sizes divisible by 16.

        Returns:
            probabilities in float32, (B, out_channels, X, Y, Z).

        Raises:
            ValueError: when the shape does not fit.
        """
        return self.backbone(image).float().softmax(dim=1)
