# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What every training method offers to the trainer."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

#: The packages whose versions are written down elsewhere.
_PACKAGES = (__name__.partition(".")[0], "torch", "builtins")


def weighted_sum(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> dict[str, Any]:
    """Add up the terms of a method, each times its weight.

    Args:
        terms: 0-dimensional terms by names that begin with "loss_".
        weights: "weight_x" is the weight of "loss_x"; a term without one has weight 1.

    Returns:
        what :meth:`Method.forward` returns: "loss", the terms and the weights.

    Raises:
        ValueError: when a weight is that of no term, which would count without it.
    """
    for name in weights:
        if name.replace("weight_", "loss_", 1) not in terms:
            raise ValueError(f"weights must each be named after a term of {', '.join(terms)}, got {name!r}.")
    loss = sum(weights.get(name.replace("loss_", "weight_", 1), 1.0) * term for name, term in terms.items())
    return {"loss": loss, **terms, **weights}


class Method(nn.Module):
    """A training method: it holds the deployed network and computes one iteration's loss in its forward.

    A method receives its networks, never builds them, and touches no file, device or optimizer. Whatever else it
    trains or remembers (a teacher, a discriminator, a memory bank) is a submodule or a buffer, so that checkpoints
    and distributed training see one module.

    Args:
        network: the deployed network: one tensor in, class probabilities out.
    """

    #: Options that came later, and what they were before: :meth:`describe` tells them where they are something else, so
    #: that runs of a version without them go on.
    added_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
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
            one line without the networks; for a class from elsewhere with a hash of the files that it is written in.
        """
        added = self.added_options.items()
        parts = [f"{name}={value}" for name, value in _options(self).items() if (name, value) not in added]
        parts += [f"{name}={_description(module)}" for name, module in self.named_children() if name != "network"]
        if code := _own_code(type(self)):
            parts.append(f"code={hashlib.sha256(code).hexdigest()[:12]}")
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


def _readable(value: Any) -> Any:
    """Describe a plain object by what it holds: by itself it tells its address, another one in each process."""
    if type(value).__repr__ is not object.__repr__:
        return value
    return f"{type(value).__name__}{ {name: _readable(part) for name, part in vars(value).items()} }"


def _description(module: nn.Module) -> str:
    members = module.named_children() if isinstance(module, (nn.ModuleDict, nn.ModuleList)) else ()
    parts = {name: _description(member) for name, member in members}
    return f"{type(module).__name__}{_options(module) | parts}"


def _own_code(method: type) -> bytes:
    """Read the files of the classes of a method that are no part of this bundle, which nobody's commit need hold."""
    modules = {cls.__module__: cls for cls in method.__mro__ if cls.__module__.partition(".")[0] not in _PACKAGES}
    code = b""
    for cls in modules.values():
        # A class that was typed into a notebook has no file.
        with suppress(OSError, TypeError):
            code += Path(inspect.getfile(cls)).read_bytes()
    return code
