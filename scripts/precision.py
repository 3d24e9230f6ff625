# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The number format in which networks compute, chosen by what the hardware is fast at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from .errors import BundleError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
ResolvedPrecision = Literal["float32", "bfloat16", "float16"]
#: Names under which ``torch.cpu.get_capabilities`` tells of bfloat16 instructions, of x86 and of ARM processors.
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def resolve_precision(precision: Precision, device: str | torch.device) -> ResolvedPrecision:
    """Choose the type in which autocast computes.

    A processor without bfloat16 instructions computes convolutions in that type some hundred times more slowly than
    in float32, so that a run would seem to hang: that is refused, as is a GPU that emulates the type.

    Args:
        precision: "float32" (no autocast), "bfloat16", "float16" (with gradient scaling, GPUs alone), or "auto" for
            the fastest of the three that the device has instructions for: on a GPU bfloat16 or else float16, on a CPU
            bfloat16 or else float32, float32 on any other device.
        device: where the networks compute.

    Returns:
        the name of the type in ``torch``.

    Raises:
        BundleError: when the precision is none of the four, or the device cannot compute in it.
    """
    device = torch.device(device)
    if precision not in get_args(Precision):
        raise BundleError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}.")
    if precision == "auto":
        if device.type == "cuda":
            return "bfloat16" if _gpu_has_bfloat16(device) else "float16"
        return "bfloat16" if device.type == "cpu" and _cpu_has_bfloat16() else "float32"
    if device.type == "cpu" and precision == "float16":
        raise BundleError("precision 'float16' needs a GPU; on a CPU choose 'auto', 'bfloat16' or 'float32'.")
    if device.type == "cpu" and precision == "bfloat16" and not _cpu_has_bfloat16():
        raise BundleError(
            "precision 'bfloat16' needs a processor with bfloat16 instructions, which "
            f"{torch.cpu.get_capabilities().get('cpu_name', 'this one')} lacks; choose 'auto' or 'float32'."
        )
    if device.type == "cuda" and precision == "bfloat16" and not _gpu_has_bfloat16(device):
        raise BundleError(
            f"precision 'bfloat16' needs a GPU of the Ampere generation or later, which {device} is not; choose "
            "'auto', 'float16' or 'float32'."
        )
    return precision


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Compute in a precision where that is safe, and in float32 where it is not.

    Args:
        device: where to compute.
        dtype: that of the precision; with float32 nothing changes.

    Returns:
        the context.
    """
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def check_patch_size(patch_size: Sequence[int], precision: ResolvedPrecision, device: str | torch.device) -> None:
    """Refuse crops on which the networks would train on wrong gradients.

    Args:
        patch_size: size of a crop along its three axes.
        precision: what :func:`resolve_precision` gives.
        device: where the networks compute.

    Raises:
        BundleError: for a CPU and bfloat16, when the first axis is too short.
    """
    if precision == "bfloat16" and torch.device(device).type == "cpu" and patch_size[0] < 32:
        # See scripts.networks.blocks.DeepestStage: no other map may have size 2 along its first axis.
        raise BundleError(
            f"patch_size must start with at least 32 for precision 'bfloat16' on a CPU, got {list(patch_size)}."
        )


def _gpu_has_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)
