# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Feature maps that are computed anew in the backward pass instead of held."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


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
