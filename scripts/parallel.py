# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What several processes compute as if they were one: sums over all of them, and batch normalization by such sums.

Every process holds an equal part of the batch. DistributedDataParallel averages the gradients of the processes, which
is right as it is for a loss that is a plain mean over its batch. A loss that is a ratio of sums over the batch, or that
decides by the whole batch, asks the functions of this module. In a single process they change nothing.

All processes must call the same functions in the same order, whatever is in their crops: a call in a branch that only
some of them take would wait forever.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import evenly_divisible_all_gather
from torch import nn


def num_processes() -> int:
    """Return how many processes train together."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_distributed else 1


def process_rank() -> int:
    """Return the number of this process, from 0."""
    return torch.distributed.get_rank() if num_processes() > 1 else 0


def is_main_process() -> bool:
    """Return whether this process writes the files of the run: the only one, or that of rank 0."""
    return process_rank() == 0


def global_batch_size(batch_size: int) -> int:
    """Count the crops of a batch over all processes.

    Args:
        batch_size: crops of a batch and process.

    Returns:
        crops of one optimization step.
    """
    return batch_size * num_processes()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # Every process computes a loss from the total, and the mean of these losses is what is minimized.
        return _Sum.forward(ctx, *gradients)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes; the gradient passes through.

    Where every process computes its loss from such totals, the average of their gradients is the gradient of that loss
    of the whole batch.

    Args:
        tensor: of the same shape and type in every process.

    Returns:
        the total, the same in every process.
    """
    return _Sum.apply(tensor) if num_processes() > 1 else tensor


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Average a tensor over all processes; the gradient passes through.

    Args:
        tensor: of the same shape and type in every process.

    Returns:
        the mean, the same in every process.
    """
    return sum_over_processes(tensor) / num_processes()


def gather_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Put the tensors of all processes one behind the other, in the order of their ranks.

    Args:
        tensor: at least one axis, of which the first may have another length in each process; without gradient.

    Returns:
        the tensors along their first axis, the same in every process.
    """
    return evenly_divisible_all_gather(tensor, concat=True)


def from_first_process(tensor: torch.Tensor) -> torch.Tensor:
    """Take over what the process of rank 0 has, such as random numbers.

    Args:
        tensor: of the same shape and type in every process, without gradient.

    Returns:
        the tensor of rank 0.
    """
    if num_processes() > 1:
        tensor = tensor.clone()
        torch.distributed.broadcast(tensor, src=0)
    return tensor


def wait_for_processes() -> None:
    """Wait until every process has come here."""
    if num_processes() > 1:
        torch.distributed.barrier()


class SynchronizedBatchNorm3d(nn.BatchNorm3d):
    """Batch normalization by the mean and variance of the batches of all processes, on any device.

    ``torch.nn.SyncBatchNorm`` is faster, but refuses CPUs. Arguments and state dict are those of
    ``torch.nn.BatchNorm3d``, whose options ``affine`` and ``track_running_stats`` must be on.
    """

    momentum: float
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalize each channel.

        Args:
            features: (B, num_features, X, Y, Z), of the same shape in every process.

        Returns:
            normalized features, same shape and type.

        Raises:
            ValueError: when there is no more than one value for each channel in training.
        """
        if not self.training:
            return super().forward(features)
        # In the precision of the weights, as mixed precision would hand over a half.
        values, axes = features.to(self.weight.dtype), (0, 2, 3, 4)
        mean = mean_over_processes(values.mean(dim=axes))
        centered = values - _per_channel(mean)
        variance = mean_over_processes(centered.square().mean(dim=axes))
        self._follow(mean, variance, count=num_processes() * features.numel() // self.num_features)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * _per_channel(scale) + _per_channel(self.bias)).to(features.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, *, count: int) -> None:
        """Move the running statistics, of which the variance is the unbiased one."""
        if count < 2:
            raise ValueError(f"features must have more than one value for each channel in training, got {count}.")
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(1, -1, 1, 1, 1)


def synchronize_batch_norm(network: nn.Module, *, device: str | torch.device) -> nn.Module:
    """Let all batch normalizations of a network see the batches of all processes.

    Args:
        network: the network; its layers are replaced.
        device: where it will be trained. On GPUs ``torch.nn.SyncBatchNorm`` is used, elsewhere
            :class:`SynchronizedBatchNorm3d`.

    Returns:
        the network, with the same state dict as before.
    """
    if torch.device(device).type == "cuda":
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return synchronized
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.BatchNorm3d):
            replacement = SynchronizedBatchNorm3d(layer.num_features, layer.eps, layer.momentum).to(layer.weight)
            replacement.load_state_dict(layer.state_dict())
            network.set_submodule(name, replacement)
    return network
