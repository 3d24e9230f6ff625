# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What leaves the bundle beside MONAI's own exports: the weights of one of the two networks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from .errors import BundleError
from .weights import check_output, read_tensors, write_tensors

Member = Literal["vnet", "resnet_vnet"]


def extract_network(ckpt_path: str | Path, network: str, output: str | Path, *, overwrite: bool = False) -> None:
    """Take the weights of one network out of those of the dual network.

    Args:
        ckpt_path: bare state dict of ``DualNetwork``.
        network: "vnet" or "resnet_vnet".
        output: file to write, the bare state dict of ``SingleNetwork``.
        overwrite: replace a file that is there.

    Raises:
        BundleError: when an argument is not allowed, or ckpt_path holds other weights.
    """
    if network not in get_args(Member):
        raise BundleError(f"network must be {' or '.join(get_args(Member))}, got {network!r}.")
    if not Path(ckpt_path).is_file():
        raise BundleError(f"ckpt_path {ckpt_path} does not exist: train first, or name a file of weights.")
    check_output(output, ckpt_path, overwrite=overwrite)
    state = read_tensors(ckpt_path)
    if not isinstance(state, dict) or {str(key).split(".")[0] for key in state} != set(get_args(Member)):
        raise BundleError(f"ckpt_path {ckpt_path} does not hold the weights of the dual network.")
    prefix = f"{network}."
    chosen = {f"backbone.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    write_tensors(output, chosen)
