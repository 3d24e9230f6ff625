# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""One step of training: the bundle's against the same mathematics in float32 and contiguous tensors."""

from __future__ import annotations

import ctypes.util
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from ..configuration import read_configuration
from ..methods.dual_network import DualNetworkMethod
from ..precision import autocast
from ..trainer import SemiSupervisedTrainer
from .measuring import measure_alone, now

#: Settings of the mode that others are compared with, of the bundle's own, and of the bundle's with less memory.
MODES: dict[str, dict[str, Any]] = {
    "baseline": {"precision": "float32", "channels_last": False, "keep_memory": False},
    "bundle": {"precision": "auto", "channels_last": True, "keep_memory": True},
    "memory handed back": {"precision": "auto", "channels_last": True, "keep_memory": False},
}
#: The mode of the bundle under other memory management, by what a process must be started with: that of the GNU C
#: library without its lists of small blocks, which stay as gaps between large ones, and TCMalloc.
_FEWER_GAPS = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}
_ALLOCATOR = "tcmalloc_minimal"


class StepMeasurement(NamedTuple):
    """Fastest step in seconds, the share of it that the losses take (None where unknown), and the peak in MiB."""

    mode: str
    precision: str
    seconds: float
    loss_share: float | None
    peak_mebibytes: float


def measure_steps(
    config_file: Sequence[str], *, num_steps: int = 3, overrides: Mapping[str, Any] | None = None
) -> list[StepMeasurement]:
    """Measure a step of training in each of :data:`MODES` and with less memory, each in a process of its own.

    A step is all that the trainer does with a batch of noise: forward passes of all networks, losses, backward pass,
    optimizer. The fastest of several counts, as another process on the machine can only slow a step down.

    Args:
        config_file: training configurations, a later one overriding an earlier one.
        num_steps: steps of each mode after one that warms up.
        overrides: values by key of the configuration, such as patch_size and the batch sizes.

    Returns:
        the modes in their order; then that of the bundle with fewer gaps between its blocks of memory, with the GNU C
        library, and with TCMalloc, where the machine has it.
    """
    modes: dict[str, tuple[dict[str, Any], dict[str, str]]] = {name: (mode, {}) for name, mode in MODES.items()}
    if platform.libc_ver()[0] == "glibc":
        modes["bundle with fewer gaps"] = (MODES["bundle"], _FEWER_GAPS)
    library = ctypes.util.find_library(_ALLOCATOR)
    if library:
        modes["bundle with TCMalloc"] = ({**MODES["bundle"], "keep_memory": False}, {"LD_PRELOAD": library})
    measurements = []
    for mode, (settings, environment) in modes.items():
        with mock.patch.dict(os.environ, environment):
            measured = measure_alone(_time_steps, config_file, num_steps, {**(overrides or {}), **settings})
        precision, seconds, loss_share = measured.value
        measurements.append(StepMeasurement(mode, precision, seconds, loss_share, measured.peak_mebibytes))
    return measurements


class _RepeatedBatch:
    """Loader of the trainer that hands out one batch over and over."""

    def __init__(self, batch: dict[str, torch.Tensor], length: int) -> None:
        self.batch = batch
        self.length = length

    def start_at(self, iteration: int) -> None:
        """Begin wherever: all batches are the same."""

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(self.length):
            yield self.batch


def _time_steps(
    config_file: Sequence[str], num_steps: int, overrides: Mapping[str, Any]
) -> tuple[str, float, float | None]:
    parser = read_configuration(config_file, overrides)
    batch = _noise(parser)
    parser.get_parsed_content("kept_memory")
    trainer = SemiSupervisedTrainer(
        device=parser.get_parsed_content("device"),
        max_epochs=1,
        train_data_loader=_RepeatedBatch(batch, num_steps + 1),
        network=parser.get_parsed_content("network"),
        method=parser.get_parsed_content("method"),
        optimizer=parser.get_parsed_content("optimizer"),
        auxiliary_optimizer=parser.get_parsed_content("auxiliary_optimizer"),
        precision=parser.get_parsed_content("precision"),
        channels_last=parser.get_parsed_content("channels_last"),
    )
    seconds: list[float] = []
    device = trainer.state.device
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: seconds.append(-now(device)))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seconds.append(seconds.pop() + now(device)))
    trainer.run()
    fastest = min(seconds[1:])
    share = _time_losses(trainer, batch) / fastest if isinstance(trainer.method, DualNetworkMethod) else None
    return str(trainer.dtype).removeprefix("torch."), fastest, share


def _noise(parser: ConfigParser) -> dict[str, torch.Tensor]:
    size = parser.get_parsed_content("patch_size")
    channels, num_classes = (parser.get_parsed_content(name) for name in ("in_channels", "num_classes"))
    labeled, unlabeled = (parser.get_parsed_content(f"{name}_batch_size") for name in ("labeled", "unlabeled"))
    batch = {}
    if labeled:
        batch["image"] = torch.randn(labeled, channels, *size)
        batch["label"] = torch.randint(num_classes, (labeled, 1, *size)).float()
    if unlabeled:
        batch["unlabeled"] = torch.randn(unlabeled, channels, *size)
    return batch


def _time_losses(trainer: SemiSupervisedTrainer, batch: Mapping[str, torch.Tensor]) -> float:
    """Time the method forward and backward with feature maps and scores that are there already."""
    method: Any = trainer.method
    networks = (method.network.vnet, method.network.resnet_vnet)
    images = method.all_crops(batch).to(trainer.state.device, memory_format=trainer.memory_format)
    batch = {key: value.to(trainer.state.device) for key, value in batch.items()}
    fastest = float("inf")
    with autocast(images.device, trainer.dtype), ExitStack() as stack:
        maps: list[torch.Tensor] = []
        for network in networks:
            with torch.no_grad():
                features = network.features(images)
                scores = network.head(features)
            for name, value in (("features", features), ("head", scores)):
                stack.enter_context(mock.patch.object(network, name, lambda _, value=value: value.requires_grad_()))
                maps.append(value)
        for _ in range(3):
            for value in maps:
                value.grad = None
            start = now(trainer.state.device)
            method(batch, trainer.state.iteration)["loss"].backward()
            fastest = min(fastest, now(trainer.state.device) - start)
    return fastest
