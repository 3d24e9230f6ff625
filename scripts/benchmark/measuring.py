# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A measurement in a process of its own, so that its peak of memory is its own."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import monai
import torch

from ..console import describe_mistake
from ..errors import BundleError


def now(device: torch.device) -> float:
    """Return the time in seconds, when all that a device was asked to compute is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Measured(NamedTuple):
    """What a function returned, and the peak of memory of the process that ran it, in MiB."""

    value: Any
    peak_mebibytes: float


def measure_alone(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Measured:
    """Run a function in a new process and measure the peak of its memory.

    Args:
        function: a function of a module, with arguments and a result that can be sent between processes.
        *args: arguments of the function.
        **kwargs: arguments of the function.

    Returns:
        its result and the peak of memory: that of the tensors on the GPU where the function used one, otherwise the
        resident memory of the process, that of PyTorch itself included.

    Raises:
        BundleError: when the process was killed, or for a mistake that costs one line elsewhere; other errors of the
            function stay as they are.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            measured = pool.submit(_run, partial(function, *args, **kwargs)).result()
        except BrokenProcessPool:
            raise BundleError("a measurement was killed, most likely because memory ran out.") from None
    if isinstance(measured, str):
        raise BundleError(measured)
    return measured


def describe_machine(device: str | torch.device) -> dict[str, Any]:
    """Name the hardware and the versions that a figure belongs to.

    Args:
        device: where it is measured.

    Returns:
        texts and numbers by name.
    """
    device = torch.device(device)
    capabilities = torch.cpu.get_capabilities()
    return {
        "processor": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
    }


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, though that be killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _run(function: Callable[[], Any]) -> Measured | str:
    try:
        return Measured(function(), _peak_mebibytes())
    except Exception as error:
        # What MONAI wraps around a mistake does not survive the way to the other process.
        mistake = describe_mistake(error)
        if mistake is None:
            raise
        return mistake


def _peak_mebibytes() -> float:
    if torch.cuda.is_initialized():
        peak = max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
        # A training on the CPU asks a GPU for the state of its generator, and for nothing else.
        if peak:
            return peak / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux hands the peak of the process that started this one on to getrusage.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) / 2**10
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
