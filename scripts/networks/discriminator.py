# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The discriminator of SASSNet: it looks at a predicted shape beside its image."""

from __future__ import annotations

import torch
from torch import nn

from .arguments import check_dropout

#: Each of the four convolutions on the way of a crop halves its size.
_SMALLEST = 2**4


class Discriminator(nn.Module):
    """Tells by a signed distance map and its image whether the crop is a labeled one.

    "Shape-aware Semi-supervised 3D Semantic Segmentation for Medical Images", https://arxiv.org/abs/2007.10732: one
    4x4x4 convolution of stride 2 for the map and one for the image, summed; three more with LeakyReLU and dropout;
    the mean over space; a linear layer. 11,020,290 parameters for 1 channel and 2 classes. The public code takes the
    mean over a window of 7x7x5, which is all of a crop of 112x112x80 voxels; here it is all of any crop.

    Args:
        in_channels: image channels, 1 to 16.
        num_classes: classes with the background, 2 to 128; the map has one channel for each foreground class.
        dropout: probability with which channels are switched off in training.

    Raises:
        ValueError: when an argument is outside its range.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 2, *, dropout: float = 0.5) -> None:
        super().__init__()
        for name, value, low, high in (("in_channels", in_channels, 1, 16), ("num_classes", num_classes, 2, 128)):
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, got {value!r}.")
        check_dropout(dropout)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.dropout = dropout
        self.distance_stem = _halving(num_classes - 1, 64)
        self.image_stem = _halving(in_channels, 64)
        self.stages = nn.Sequential(
            _activation(dropout), _halving(64, 128), _activation(dropout), _halving(128, 256), _activation(dropout)
        )
        self.deepest = nn.Sequential(_halving(256, 512), nn.LeakyReLU(0.2))
        self.classifier = nn.Linear(512, 2)

    def forward(self, distance: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Judge signed distance maps.

        Args:
            distance: signed distance to the surface of each foreground class, (B, num_classes - 1, X, Y, Z).
            image: (B, in_channels, X, Y, Z), every spatial size at least 16.

        Returns:
            logits: unnormalized scores of "unlabeled" (0) and "labeled" (1), (B, 2).

        Raises:
            ValueError: when the shapes do not fit or the crop is too small.
        """
        self._check(distance, image)
        features = self.stages(self.distance_stem(distance) + self.image_stem(image))
        if features.device.type == "cpu" and 2 in features.shape[3:]:
            # PyTorch 2.13 computes this convolution in bfloat16 wrongly on CPUs, often as not a number: its weight
            # gradient where the second axis shrinks to 1, its output where the third does. The map is so small there
            # that float32 costs nothing.
            with torch.autocast("cpu", enabled=False):
                features = self.deepest(features.float())
        else:
            features = self.deepest(features)
        logits: torch.Tensor = self.classifier(features.mean(dim=(2, 3, 4)))
        return logits

    def _check(self, distance: torch.Tensor, image: torch.Tensor) -> None:
        if image.dim() != 5 or image.shape[1] != self.in_channels:
            raise ValueError(f"image must have shape (B, {self.in_channels}, X, Y, Z), got {list(image.shape)}.")
        if min(image.shape[2:]) < _SMALLEST:
            raise ValueError(f"image must have spatial sizes of at least {_SMALLEST}, got {list(image.shape[2:])}.")
        if distance.shape != (image.shape[0], self.num_classes - 1, *image.shape[2:]):
            raise ValueError(
                f"distance must have {self.num_classes - 1} channels on the grid of image, "
                f"got {list(distance.shape)} beside {list(image.shape)}."
            )


def _halving(in_channels: int, out_channels: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, kernel_size=4, stride=2, padding=1)


def _activation(dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LeakyReLU(0.2), nn.Dropout3d(dropout))
