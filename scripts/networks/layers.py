# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Layers that train faster on CPUs than those of PyTorch, with their parameters and results."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .arguments import CHANNELS


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
