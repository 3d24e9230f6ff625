# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What every training method offers to the trainer."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import nn

#: How Python tells where an object lies in memory.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def weighted_sum(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> dict[str, Any]:
    """Add up the terms of a method, each times its weight.

    Args:
        terms: 0-dimensional terms by names that begin with "loss_".
        weights: "weight_x" is the weight of "loss_x"; a term without one has weight 1.

    Returns:
        what :meth:`Method.forward` returns: "loss", the terms and the weights.
    """
    for name in weights:
        if name.replace("weight_", "loss_", 1) not in terms:
            warnings.warn(f"{name} is the weight of none of the terms {', '.join(terms)}.", stacklevel=2)
    loss = sum(weights.get(name.replace("loss_", "weight_", 1), 1.0) * term for name, term in terms.items())
    return {"loss": loss, **terms, **weights}


class Method(nn.Module):
    """A training method: it holds the deployed network and computes one iteration's loss in its forward.

    A method receives its networks, never builds them, and touches no file, device or optimizer. Whatever else it
    trains or remembers (a teacher, a discriminator, a memory bank) is a submodule or a buffer, so that checkpoints
    and distributed training see one module.

    Args:
        network: the deployed network: one tensor in, class probabilities out.

    Raises:
        ValueError: when it lacks one of ``network_members``.
    """

    #: What a method calls of its network beside the network itself.
    network_members: ClassVar[tuple[str, ...]] = ()

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        missing = [name for name in self.network_members if not hasattr(network, name)]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs a network with {' and '.join(self.network_members)}, got "
                f"{type(network).__name__}: name the file of one method alone, or the network_def of this one."
            )
        self.network = network

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute the loss of one batch.

        A method that trains something beside its networks, such as a discriminator, takes a third argument
        ``auxiliary``: with True it gives the loss of that part instead. The trainer asks for it after the step of the
        networks where the configuration has an ``auxiliary_optimizer``.

        Args:
            batch: "image" (B_l, C, X, Y, Z), "label" (B_l, 1, X, Y, Z) class indices and, unless only labeled cases
                are there, "unlabeled" (B_u, C, X, Y, Z). The first two are missing where no case is labeled. Their
                numbers have passed :meth:`check_batch_sizes`.
            step: number of iterations done before this one, from 0.

        Returns:
            "loss", the 0-dimensional sum to minimize, and every term ("loss_...") and weight ("weight_...") by name.

        Raises:
            NotImplementedError: always here; each method implements it.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward.")

    def check_batch_sizes(self, num_labeled: int, num_unlabeled: int) -> None:
        """Refuse batches that this method cannot train on; by default those without labels.

        Asked before a training replaces anything, and again with the crops of each iteration.

        Args:
            num_labeled: labeled crops of a batch, 0 where it has none.
            num_unlabeled: unlabeled crops of a batch, 0 where it has none.

        Raises:
            ValueError: when there are too few, or their numbers do not fit each other.
        """
        if num_labeled == 0:
            raise ValueError(f"labeled_batch_size must be at least 1 for {type(self).__name__}, got 0.")

    def check_iterations(self, iterations: int) -> None:
        """Refuse a training too short for this method to do what its name says; by default none.

        Asked before a training replaces anything.

        Args:
            iterations: length of the whole training.

        Raises:
            ValueError: when a stage of the method would never begin.
        """

    @staticmethod
    def all_crops(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Join the labeled and the unlabeled crops of a batch, labeled ones first.

        One pass of both lets batch normalization see labeled and unlabeled crops alike.

        Args:
            batch: see :meth:`forward`.

        Returns:
            (B_l + B_u, C, X, Y, Z).
        """
        return torch.cat([batch[key] for key in ("image", "unlabeled") if key in batch])

    def after_step(self, step: int) -> None:
        """React to an optimization step, for example by moving a teacher's weights; by default nothing.

        Args:
            step: number of iterations done before the one that has just ended, from 0.
        """

    def describe(self) -> str:
        """Return the class of this method and all its options, to see whether two runs used the same.

        Returns:
            one line without the networks.
        """
        parts = [f"{name}={value}" for name, value in _options(self).items()]
        parts += [f"{name}={_description(module)}" for name, module in self.named_children() if name != "network"]
        return f"{type(self).__name__}({', '.join(parts)})"

    def trainable_parameters(self) -> list[nn.Parameter]:
        """List what the optimizer moves.

        Returns:
            all parameters of the method that take a gradient; a method with an auxiliary part leaves that part out.
        """
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """List what only an auxiliary optimizer moves, and without which a term of the loss would mean nothing.

        Returns:
            by default no parameter.
        """
        return []


def _options(module: nn.Module) -> dict[str, Any]:
    return {name: _readable(value) for name, value in vars(module).items() if name[0] != "_" and name != "training"}


def _readable(value: Any, *, within: bool = False) -> Any:
    """Describe what tells its address, another one in each process: functions by name, objects by what they hold."""
    if within and isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, str) or not _ADDRESS.search(repr(value)):
        return value
    if isinstance(value, functools.partial):
        return f"partial{_readable([value.func, *value.args, value.keywords], within=within)}"
    if isinstance(value, MethodType):
        return f"{_readable(value.__self__, within=within)}.{value.__name__}"
    if isinstance(value, (list, tuple)):
        return [_readable(part, within=within) for part in value]
    if isinstance(value, dict):
        return {_readable(key, within=within): _readable(part, within=within) for key, part in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    # What is held at the second level may hold the first one.
    if within or isinstance(value, nn.Module):
        return type(value).__name__
    held = {name: _readable(part, within=True) for name, part in getattr(value, "__dict__", {}).items()}
    return f"{type(value).__name__}{held}"


def _description(module: nn.Module) -> str:
    members = module.named_children() if isinstance(module, (nn.ModuleDict, nn.ModuleList)) else ()
    parts = {name: _description(member) for name, member in members}
    return f"{type(module).__name__}{_options(module) | parts}"
