# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The deployed network: both networks in one module, one tensor in, one tensor out."""

from __future__ import annotations

import torch
from torch import nn

from .arguments import Normalization
from .resnet_vnet import ResNetVNet
from .vnet import VNet


class DualNetwork(nn.Module):
    """V-Net and ResNet34-V-Net side by side; the prediction is the mean of both softmaxes.

    The test-time ensemble of "Semi-Supervised Medical Image Segmentation via Dual Networks"
    (https://arxiv.org/abs/2505.17690): its Teacher is the V-Net, its Student the ResNet34-V-Net. Training methods
    call the two networks by name; everything else sees one network.

    Args:
        in_channels: image channels, 1 to 16.
        out_channels: classes with the background, 2 to 128.
        dropout: see the networks; both get the same.
        normalization: "batch", "instance" or "group".
        with_disagreement: append one channel, the total variation distance between both softmaxes (0 where the
            networks agree, 1 where each is certain of another class), as a map of uncertainty.

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
        with_disagreement: bool = False,
    ) -> None:
        super().__init__()
        self.normalization = normalization
        self.with_disagreement = with_disagreement
        self.vnet = VNet(in_channels, out_channels, dropout=dropout, normalization=normalization)
        self.resnet_vnet = ResNetVNet(in_channels, out_channels, dropout=dropout, normalization=normalization)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Predict class probabilities.

        Args:
            image: (B, in_channels, X, Y, Z), spatial sizes divisible by 16.

        Returns:
            probabilities: mean of both softmaxes in float32, (B, out_channels, X, Y, Z), and one more channel with
            ``with_disagreement``.

        Raises:
            ValueError: when the shape does not fit.
        """
        vnet = self.vnet(image).float().softmax(dim=1)
        resnet_vnet = self.resnet_vnet(image).float().softmax(dim=1)
        mean = (vnet + resnet_vnet) / 2
        if not self.with_disagreement:
            return mean
        disagreement = (vnet - resnet_vnet).abs().sum(dim=1, keepdim=True) / 2
        return torch.cat((mean, disagreement), dim=1)
