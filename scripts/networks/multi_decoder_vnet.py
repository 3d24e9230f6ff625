# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The deployed network of MC-Net: one V-Net encoder under decoders that upsample in different ways."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from .arguments import Normalization, Upsampling, check_channels, check_dropout, check_image
from .blocks import Decoder, initialize_kaiming
from .layers import ChannelDropout, Head
from .vnet import VNetEncoder


class MultiDecoderVNet(nn.Module):
    """V-Net with two or three decoders: one tensor in, the class probabilities of the first decoder out.

    The network of MC-Net (two decoders, https://arxiv.org/abs/2103.02911; 12,347,716 parameters for 1 channel and 2
    classes) and of MC-Net+ (three, https://arxiv.org/abs/2109.09960; 15,246,566). The first decoder is that of
    :class:`scripts.networks.vnet.VNet` with its transposed convolutions; the second interpolates trilinearly and the
    third takes the nearest voxel, each before a 3x3x3 convolution. Where they disagree, the image is ambiguous.
    Training methods get the logits of all decoders by :meth:`all_logits`.

    Args:
        in_channels: image channels, 1 to 16.
        out_channels: classes with the background, 2 to 128.
        num_decoders: 2 or 3.
        dropout: probability with which channels of the deepest map and of the last map of each decoder are switched
            off in training.
        normalization: "batch", "instance" or "group".

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        num_decoders: Literal[2, 3] = 2,
        dropout: float = 0.5,
        normalization: Normalization = "batch",
    ) -> None:
        super().__init__()
        check_channels(in_channels, out_channels)
        check_dropout(dropout)
        if num_decoders not in (2, 3):
            raise ValueError(f"num_decoders must be 2 or 3, got {num_decoders!r}.")
        self.in_channels = in_channels
        self.encoder = VNetEncoder(in_channels, dropout=dropout, normalization=normalization)
        self.decoders = nn.ModuleList(
            Decoder(normalization, upsampling) for upsampling in get_args(Upsampling)[:num_decoders]
        )
        self.dropout = ChannelDropout(dropout)
        self.classifiers = nn.ModuleList(Head(out_channels) for _ in range(num_decoders))
        initialize_kaiming(self)

    @torch.jit.export
    def all_logits(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Segment an image with every decoder.

        Args:
            image: (B, in_channels, X, Y, Z), spatial sizes divisible by 16.

        Returns:
            logits of each decoder: unnormalized scores, (B, out_channels, X, Y, Z).

        Raises:
            ValueError: when the shape does not fit.
        """
        check_image(image, self.in_channels)
        pyramid = self.encoder(image)
        logits: list[torch.Tensor] = []
        for decoder, classifier in zip(self.decoders, self.classifiers):
            features = decoder(pyramid)
            logits.append(classifier(features, self.dropout(features)))
        return logits

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Predict class probabilities with the first decoder; the others are not computed.

        Args:
            image: (B, in_channels, X, Y, Z), spatial sizes divisible by 16.

        Returns:
            probabilities in float32, (B, out_channels, X, Y, Z).

        Raises:
            ValueError: when the shape does not fit.
        """
        check_image(image, self.in_channels)
        features = self.decoders[0](self.encoder(image))
        logits = self.classifiers[0](features, self.dropout(features))
        return torch.softmax(logits.float(), dim=1)
