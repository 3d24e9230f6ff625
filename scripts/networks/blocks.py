# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Units, decoder and common form of the networks."""

from __future__ import annotations

from collections import OrderedDict
from typing import get_args

import torch
from monai.networks.blocks import ADN, Convolution
from torch import nn

from .arguments import CHANNELS, Normalization, Upsampling, check_image, normalization_layer
from .layers import ChannelDropout, Head, TransposedConvolution
from .recompute import recompute


def convolution_stack(
    in_channels: int, out_channels: int, *, num_convolutions: int, normalization: Normalization
) -> nn.Sequential:
    """Build a stack of 3x3x3 convolutions, each followed by normalization and ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every convolution of the stack.
        num_convolutions: how many of them.
        normalization: see :func:`normalization_layer`.

    Returns:
        the stack; the spatial size stays.
    """
    return nn.Sequential(
        *(
            Convolution(
                3,
                in_channels if i == 0 else out_channels,
                out_channels,
                norm=normalization_layer(normalization),
                act=("relu", {"inplace": True}),
                adn_ordering="NA",
            )
            for i in range(num_convolutions)
        )
    )


def resampling_convolution(
    in_channels: int, out_channels: int, *, normalization: Normalization, transposed: bool
) -> nn.Sequential:
    """Build a 2x2x2 convolution of stride 2 that halves (or, transposed, doubles) the spatial size.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        normalization: see :func:`normalization_layer`.
        transposed: False halves, True doubles.

    Returns:
        the convolution with normalization and ReLU.
    """
    convolution = (
        TransposedConvolution(in_channels, out_channels)
        if transposed
        else nn.Conv3d(in_channels, out_channels, kernel_size=2, stride=2)
    )
    norm, act = normalization_layer(normalization), ("relu", {"inplace": True})
    adn = ADN("NA", out_channels, act=act, norm=norm, norm_dim=3)
    return nn.Sequential(OrderedDict(conv=convolution, adn=adn))


def upsampling_unit(
    in_channels: int, out_channels: int, *, normalization: Normalization, upsampling: Upsampling
) -> nn.Module:
    """Build a unit that doubles the spatial size.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        normalization: see :func:`normalization_layer`.
        upsampling: "transposed" (2x2x2 convolution of stride 2), or "trilinear" (the corners stay aligned) or
            "nearest" interpolation before a 3x3x3 convolution.

    Returns:
        the unit with normalization and ReLU.

    Raises:
        ValueError: when the option is none of the three.
    """
    if upsampling not in get_args(Upsampling):
        raise ValueError(f"upsampling must be one of {', '.join(get_args(Upsampling))}, got {upsampling!r}.")
    if upsampling == "transposed":
        return resampling_convolution(in_channels, out_channels, normalization=normalization, transposed=True)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=upsampling, align_corners=True if upsampling == "trilinear" else None),
        convolution_stack(in_channels, out_channels, num_convolutions=1, normalization=normalization),
    )


class DeepestStage(nn.Sequential):
    """The encoder stage at 1/16 of the size; on a CPU it computes the smallest maps in float32 also under autocast.

    PyTorch 2.13 computes two convolutions in bfloat16 wrongly on CPUs, often as infinity: the weight gradient of a
    3x3x3 one where the first spatial axis of the map has size 2, as it has for patches of 32 voxels, and the output of
    one of stride 2 where the last axis shrinks to 1, as it does for patches of 16 voxels
    (https://github.com/pytorch/pytorch/issues/169688). The map is so small there that float32 costs nothing.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the stage.

        Args:
            features: (B, 128, X/8, Y/8, Z/8).

        Returns:
            features, (B, 256, X/16, Y/16, Z/16).
        """
        if (
            not torch.jit.is_scripting()
            and features.device.type == "cpu"
            and (features.shape[2] == 4 or features.shape[4] == 2)
        ):
            with torch.autocast("cpu", enabled=False):
                return self._layers(features.float())
        return self._layers(features)

    def _layers(self, features: torch.Tensor) -> torch.Tensor:
        for layer in self:
            features = layer(features)
        return features


def initialize_kaiming(module: nn.Module) -> None:
    """Draw all convolution weights from He's normal distribution, as the dual-network releases do.

    Args:
        module: network whose (transposed) convolutions are drawn anew in place.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d, Head)):
            nn.init.kaiming_normal_(layer.weight)


class Decoder(nn.Module):
    """V-Net decoder with additive skip connections, shared in form by all networks.

    Args:
        normalization: see :func:`normalization_layer`.
        upsampling: see :func:`upsampling_unit`.
    """

    def __init__(self, normalization: Normalization = "batch", upsampling: Upsampling = "transposed") -> None:
        super().__init__()
        depths = (1, 2, 3, 3)
        self.up = nn.ModuleList(
            upsampling_unit(CHANNELS[i + 1], CHANNELS[i], normalization=normalization, upsampling=upsampling)
            for i in reversed(range(4))
        )
        self.stacks = nn.ModuleList(
            convolution_stack(CHANNELS[i], CHANNELS[i], num_convolutions=depths[i], normalization=normalization)
            for i in reversed(range(4))
        )

    def forward(self, pyramid: list[torch.Tensor]) -> torch.Tensor:
        """Decode a feature pyramid.

        Args:
            pyramid: five feature maps from full resolution to 1/16: (B, 16, X, Y, Z), (B, 32, X/2, Y/2, Z/2), ...

        Returns:
            the feature map of the last decoder stage, (B, 16, X, Y, Z), after its ReLU.
        """
        features = pyramid[4]
        for i, (up, stack) in enumerate(zip(self.up, self.stacks)):
            # The last unit makes the largest maps: computing them anew costs hardly any time, holding them much memory.
            upsampled = recompute(up, features) if i == 3 and not torch.jit.is_scripting() else up(features)
            features = stack(upsampled + pyramid[3 - i])
        return features


class SegmentationNetwork(nn.Module):
    """Encoder, V-Net decoder and a 1x1x1 head behind dropout: the common form of both networks.

    ``features`` and ``head`` are separate, since the contrastive loss works on the features before the dropout:
    a dropout that switches off other channels in each sample would push apart equal features of two samples.

    Args:
        encoder: maps (B, in_channels, X, Y, Z) to the five feature maps that :class:`Decoder` takes.
        in_channels: image channels.
        out_channels: classes with the background.
        dropout: probability with which a channel of the last feature map is switched off in training.
        normalization: see :func:`normalization_layer`.
    """

    def __init__(
        self, encoder: nn.Module, in_channels: int, out_channels: int, *, dropout: float, normalization: Normalization
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = encoder
        self.decoder = Decoder(normalization)
        self.dropout = ChannelDropout(dropout)
        self.classifier = Head(out_channels)
        initialize_kaiming(self)

    @torch.jit.export
    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the features of the last decoder stage, before dropout.

        Args:
            image: (B, in_channels, X, Y, Z), spatial sizes divisible by 16.

        Returns:
            features, (B, 16, X, Y, Z).

        Raises:
            ValueError: when the shape does not fit.
        """
        check_image(image, self.in_channels)
        return self.decoder(self.encoder(image))

    @torch.jit.export
    def head(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the logits from the features.

        Args:
            features: (B, 16, X, Y, Z) as given by :meth:`features`.

        Returns:
            logits: unnormalized scores, (B, out_channels, X, Y, Z).
        """
        return self.classifier(features, self.dropout(features))

    def head_without_dropout(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the logits from all channels of the features, in training too.

        Args:
            features: (B, 16, X, Y, Z) as given by :meth:`features`.

        Returns:
            logits: unnormalized scores, (B, out_channels, X, Y, Z).
        """
        return self.classifier(features, features.new_ones([features.shape[0], features.shape[1]]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Segment an image.

        Args:
            image: (B, in_channels, X, Y, Z), spatial sizes divisible by 16.

        Returns:
            logits: unnormalized scores, (B, out_channels, X, Y, Z).

        Raises:
            ValueError: when the shape does not fit.
        """
        return self.head(self.features(image))
