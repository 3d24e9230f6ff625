# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The V-Net of the semi-supervised segmentation literature."""

from __future__ import annotations

import torch
from torch import nn

from .arguments import CHANNELS, Normalization, check_channels, check_dropout
from .blocks import DeepestStage, SegmentationNetwork, convolution_stack, resampling_convolution
from .recompute import recompute


class VNetEncoder(nn.Module):
    """Five stages of plain 3x3x3 convolutions (1, 2, 3, 3, 3 of them) with strided convolutions between them.

    Args:
        in_channels: image channels.
        dropout: probability with which a channel of the deepest map is switched off in training.
        normalization: "batch", "instance" or "group".
    """

    def __init__(self, in_channels: int = 1, *, dropout: float = 0.5, normalization: Normalization = "batch") -> None:
        super().__init__()
        depths = (1, 2, 3, 3, 3)
        stages: list[nn.Module] = [
            convolution_stack(in_channels, CHANNELS[0], num_convolutions=depths[0], normalization=normalization)
        ]
        for i in range(1, 5):
            down = resampling_convolution(CHANNELS[i - 1], CHANNELS[i], normalization=normalization, transposed=False)
            stack = convolution_stack(CHANNELS[i], CHANNELS[i], num_convolutions=depths[i], normalization=normalization)
            stages.append(nn.Sequential(down, stack) if i < 4 else DeepestStage(down, stack, nn.Dropout3d(dropout)))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Compute the feature pyramid.

        Args:
            image: (B, in_channels, X, Y, Z).

        Returns:
            five feature maps of 16, 32, 64, 128 and 256 channels at 1, 1/2, 1/4, 1/8 and 1/16 of the size.
        """
        features = image
        pyramid: list[torch.Tensor] = []
        for i, stage in enumerate(self.stages):
            # The first stage is one convolution of the image, the cheapest at full resolution.
            features = recompute(stage, features) if i == 0 and not torch.jit.is_scripting() else stage(features)
            pyramid.append(features)
        return pyramid


class VNet(SegmentationNetwork):
    """V-Net with additive skip connections and batch normalization, 9,448,866 parameters for 1 channel and 2 classes.

    Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation"
    (https://arxiv.org/abs/1606.04797), in the lighter form that UA-MT introduced: 3x3x3 kernels, no residual sums
    inside a stage, skips added instead of concatenated. ``monai.networks.nets.VNet`` is another network
    (5x5x5 kernels, 45.6 million parameters).

    Args:
        in_channels: image channels, 1 to 16.
        out_channels: classes with the background, 2 to 128.
        dropout: probability with which channels of the deepest and of the last map are switched off in training.
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
        # Before any layer is built: those refuse in other words, or not at all.
        check_channels(in_channels, out_channels)
        check_dropout(dropout)
        encoder = VNetEncoder(in_channels, dropout=dropout, normalization=normalization)
        super().__init__(encoder, in_channels, out_channels, dropout=dropout, normalization=normalization)
