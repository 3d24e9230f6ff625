# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A 3D ResNet34 as encoder under the V-Net decoder."""

from __future__ import annotations

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets.resnet import ResNetBlock
from torch import nn

from .arguments import CHANNELS, Normalization, check_channels, check_dropout
from .blocks import DeepestStage, SegmentationNetwork


class ResNet34Encoder(nn.Module):
    """3D ResNet34 with a stem at full resolution, so that its maps have the sizes of the V-Net encoder's.

    A 7x7x7 stem of stride 1 without pooling, then 3, 4, 6 and 3 basic blocks of 32, 64, 128 and 256 channels, each
    stage halving the size. It keeps batch normalization whatever the decoder uses, as SDCL does.

    Args:
        in_channels: image channels.
    """

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = Convolution(
            3,
            in_channels,
            CHANNELS[0],
            kernel_size=7,
            bias=False,
            norm="batch",
            act=("relu", {"inplace": True}),
            adn_ordering="NA",
        )
        blocks = (3, 4, 6, 3)
        self.stages = nn.ModuleList(self._stage(CHANNELS[i], CHANNELS[i + 1], num_blocks=blocks[i]) for i in range(4))

    @staticmethod
    def _stage(in_channels: int, out_channels: int, *, num_blocks: int) -> nn.Sequential:
        shortcut = Convolution(
            3, in_channels, out_channels, strides=2, kernel_size=1, bias=False, norm="batch", adn_ordering="N"
        )
        first = ResNetBlock(in_channels, out_channels, spatial_dims=3, stride=2, downsample=shortcut)
        others = (ResNetBlock(out_channels, out_channels, spatial_dims=3) for _ in range(num_blocks - 1))
        # The widest stage is the one at 1/16 of the size.
        return (DeepestStage if out_channels == CHANNELS[4] else nn.Sequential)(first, *others)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Compute the feature pyramid.

        Args:
            image: (B, in_channels, X, Y, Z).

        Returns:
            five feature maps of 16, 32, 64, 128 and 256 channels at 1, 1/2, 1/4, 1/8 and 1/16 of the size.
        """
        features = self.stem(image)
        pyramid: list[torch.Tensor] = [features]
        for stage in self.stages:
            features = stage(features)
            pyramid.append(features)
        return pyramid


class ResNetVNet(SegmentationNetwork):
    """ResNet34 encoder with the V-Net decoder, 17,930,354 parameters for 1 channel and 2 classes.

    He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385) under the decoder of
    :class:`scripts.networks.vnet.VNet`: the second network of MCF, LUSEG, SDCL and of the dual-network paper
    (https://arxiv.org/abs/2505.17690).

    Args:
        in_channels: image channels, 1 to 16.
        out_channels: classes with the background, 2 to 128.
        dropout: probability with which a channel of the last map is switched off in training.
        normalization: of the decoder: "batch", "instance" or "group".

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
        # Before any layer is built: those refuse in other words, or not at all.
        check_channels(in_channels, out_channels)
        check_dropout(dropout)
        encoder = ResNet34Encoder(in_channels)
        super().__init__(encoder, in_channels, out_channels, dropout=dropout, normalization=normalization)
