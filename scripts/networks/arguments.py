# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Arguments that all networks share, and their checks."""

from __future__ import annotations

from typing import Literal

import torch

Normalization = Literal["batch", "instance", "group"]
Upsampling = Literal["transposed", "trilinear", "nearest"]
#: Width of the feature maps from full resolution down to 1/16 of it (V-Net column of the reference implementations).
CHANNELS = (16, 32, 64, 128, 256)


def normalization_layer(normalization: Normalization) -> str | tuple[str, dict[str, int]]:
    """Translate the option into MONAI's ``norm`` argument.

    Args:
        normalization: "batch", "instance" (without affine parameters) or "group" (eight groups).

    Returns:
        what ``monai.networks.blocks.Convolution`` takes as ``norm``.

    Raises:
        ValueError: when the option is none of the three.
    """
    if normalization == "group":
        return ("group", {"num_groups": 8})
    if normalization not in ("batch", "instance"):
        raise ValueError(f"normalization must be 'batch', 'instance' or 'group', got {normalization!r}.")
    return normalization


def check_channels(in_channels: int, out_channels: int) -> None:
    """Refuse channel numbers that cannot segment.

    Args:
        in_channels: number of image channels, 1 to 16.
        out_channels: number of classes with the background, 2 to 128.

    Raises:
        ValueError: when one of them is outside its range.
    """
    if not 1 <= in_channels <= 16:
        raise ValueError(f"in_channels must be from 1 to 16, got {in_channels}.")
    if not 2 <= out_channels <= 128:
        raise ValueError(f"out_channels must be from 2 (background and one class) to 128, got {out_channels}.")


def check_dropout(dropout: float) -> None:
    """Refuse a dropout that is no probability below 1.

    Args:
        dropout: probability of switching off a channel.

    Raises:
        ValueError: when it is negative, 1 or above.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}.")


def check_image(image: torch.Tensor, in_channels: int) -> None:
    """Refuse an input that the five resolutions of the networks cannot hold.

    Args:
        image: network input, (B, in_channels, X, Y, Z).
        in_channels: expected number of channels.

    Raises:
        ValueError: when the tensor is not of that shape or a spatial size is not divisible by 16.
    """
    if image.dim() != 5 or image.shape[1] != in_channels:
        raise ValueError(f"image must have shape (B, {in_channels}, X, Y, Z), got {list(image.shape)}.")
    if image.shape[2] % 16 != 0 or image.shape[3] % 16 != 0 or image.shape[4] % 16 != 0:
        raise ValueError(f"image must have spatial sizes divisible by 16, got {list(image.shape[2:])}.")
