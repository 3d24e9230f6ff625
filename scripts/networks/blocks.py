# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Convolution units and the checks of arguments that all networks share."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from monai.networks.blocks import ADN, Convolution
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

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


def _trains_on_cpu(training: bool, features: torch.Tensor) -> bool:
    """Whether a gradient will be computed where the ways below are the faster ones."""
    return training and features.device.type == "cpu" and not torch.compiler.is_compiling()


def _as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cast tensors on a CPU to what autocast, where it is on, would compute convolutions in."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)


class _TransposedConvolutionFunction(torch.autograd.Function):
    """Transposed convolution of stride 2 without padding whose gradient of the bias is a sum of its own."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(features, weight)
        return F.conv_transpose3d(features, weight, bias, stride=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features, weight = ctx.saved_tensors
        stride, none, ones = [2, 2, 2], [0, 0, 0], [1, 1, 1]
        of_features, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, features, weight, None, stride, none, ones, True, none, 1, [True, True, False]
        )
        return of_features, of_weight, gradient.sum(dim=(0, 2, 3, 4))


class TransposedConvolution(nn.ConvTranspose3d):
    """Transposed 2x2x2 convolution of stride 2 that trains faster on CPUs.

    There PyTorch computes the gradients of features and weights four times more slowly where it computes that of the
    bias with them. Parameters and results are those of ``torch.nn.ConvTranspose3d``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Compute the output.

        Args:
            features: (B, in_channels, X, Y, Z).

        Returns:
            features, (B, out_channels, 2X, 2Y, 2Z).
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript compiles the whole of a condition)
            if _trains_on_cpu(self.training, features):
                assert self.bias is not None
                tensors = _as_autocast(features, self.weight, self.bias)
                output: torch.Tensor = _TransposedConvolutionFunction.apply(*tensors)
                return output
        return F.conv_transpose3d(features, self.weight, self.bias, stride=2)


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


class _KeptStatistics(AbstractContextManager):
    """Let the batch normalizations of a unit leave their running statistics as they are; may be entered again."""

    def __init__(self, unit: nn.Module) -> None:
        self.layers = [layer for layer in unit.modules() if isinstance(layer, _BatchNorm)]
        counters = (layer.num_batches_tracked for layer in self.layers)
        self.counters = [counter for counter in counters if counter is not None]

    def __enter__(self) -> None:
        self.momenta = [layer.momentum for layer in self.layers]
        self.counts = [counter.clone() for counter in self.counters]
        for layer in self.layers:
            layer.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for layer, momentum in zip(self.layers, self.momenta, strict=True):
            layer.momentum = momentum
        for counter, count in zip(self.counters, self.counts, strict=True):
            counter.copy_(count)


def recompute(unit: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Compute a unit without holding its feature maps for the backward pass, which computes them anew.

    Args:
        unit: layers without dropout.
        features: their input.

    Returns:
        their output, the same as that of ``unit(features)``, as are the gradients and the running statistics.
    """
    if not unit.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        output: torch.Tensor = unit(features)
    else:
        output = checkpoint(
            unit,
            features,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _KeptStatistics(unit)),
        )
    return output


class DeepestStage(nn.Sequential):
    """The encoder stage at 1/16 of the size; on a CPU it trains maps of size 2 in float32 also under autocast.

    PyTorch 2.13 computes the weight gradient of a 3x3x3 convolution in bfloat16 wrongly, often as infinity, on CPUs
    where the first spatial axis of the map has size 2, as it has for patches of 32 voxels. The map is so small there
    that float32 costs nothing.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the stage.

        Args:
            features: (B, 128, X/8, Y/8, Z/8).

        Returns:
            features, (B, 256, X/16, Y/16, Z/16).
        """
        if not torch.jit.is_scripting() and features.device.type == "cpu" and features.shape[2] == 4:
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


class _SampleProducts(torch.autograd.Function):
    """Product of the voxels of each sample with weights of its own, one sample after the other.

    The gradient of a single product follows the layout of its factors, that of a batch of them does not: on a CPU a
    head trains twice as fast in float32, and as fast in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, voxels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(voxels, weight)
        scores = voxels.new_empty((*voxels.shape[:2], weight.shape[1]))
        for result, sample, factor in zip(scores, voxels, weight):
            torch.addmm(bias, sample, factor.t(), out=result)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        voxels, weight = ctx.saved_tensors
        of_voxels, of_weight = torch.empty_like(voxels), torch.empty_like(weight)
        for sample in range(len(voxels)):
            torch.mm(gradient[sample], weight[sample], out=of_voxels[sample])
            torch.mm(gradient[sample].t(), voxels[sample], out=of_weight[sample])
        return of_voxels, of_weight, gradient.sum(dim=(0, 1))


class _SplitCrops(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.like = features.shape, features.stride()
        ctx.number = number
        return features[:number], features[number:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            return None, None
        whole = torch.empty_strided(*ctx.like, dtype=given[0].dtype, device=given[0].device)
        for part, gradient in zip(whole.tensor_split([ctx.number]), gradients, strict=True):
            part.zero_() if gradient is None else part.copy_(gradient)
        return whole, None


def split_crops(features: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a batch of maps in two, whose gradients come back in the layout of the whole.

    The gradient of a slice has the layout of a new tensor instead, in which a map of channels last takes several times
    as long to be added.

    Args:
        features: (B, K, X, Y, Z).
        number: how many crops the first part has.

    Returns:
        the first part, (number, K, X, Y, Z), and the rest.
    """
    parts: tuple[torch.Tensor, torch.Tensor] = _SplitCrops.apply(features, number)
    return parts


class Head(nn.Module):
    """1x1x1 convolution of the last feature map with a dropout of channels, as one matrix product.

    PyTorch has no fast 1x1x1 convolution in float32 on CPUs, and the dropout alone would pass over the map, the largest
    of a network, two times more. Here it acts on the weights, of which each sample has its own. Parameters, their
    initial values and the state dict are those of ``torch.nn.Conv3d``.

    Args:
        out_channels: channels of the output.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        convolution = nn.Conv3d(CHANNELS[0], out_channels, kernel_size=1)
        assert convolution.bias is not None
        self.weight = convolution.weight
        self.bias = convolution.bias

    def forward(self, features: torch.Tensor, channel_weights: torch.Tensor) -> torch.Tensor:
        """Compute the output.

        Args:
            features: (B, 16, X, Y, Z).
            channel_weights: factors of the channels, see :class:`ChannelDropout`, (B, 16).

        Returns:
            scores, (B, out_channels, X, Y, Z), in the memory format channels_last_3d.
        """
        weight = self.weight.flatten(1) * channel_weights.unsqueeze(1)
        voxels = features.flatten(2).transpose(1, 2)
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript compiles the whole of a condition)
            if _trains_on_cpu(self.training, features):
                products: torch.Tensor = _SampleProducts.apply(*_as_autocast(voxels, weight, self.bias))
                return products.transpose(1, 2).unflatten(2, features.shape[2:])
        scores = torch.baddbmm(self.bias, voxels, weight.transpose(1, 2))
        return scores.transpose(1, 2).unflatten(2, features.shape[2:])


class ChannelDropout(nn.Dropout3d):
    """Dropout of whole channels that gives its factors instead of multiplying by them."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Draw the factors.

        Args:
            features: (B, K, X, Y, Z).

        Returns:
            what each channel is to be multiplied by: 0 or 1 / (1 - p), in evaluation 1, (B, K).
        """
        ones = features.new_ones([features.shape[0], features.shape[1], 1, 1, 1])
        return F.dropout3d(ones, self.p, self.training).flatten(1)


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
