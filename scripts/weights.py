# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Read files of tensors, and check weights before a run relies on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import nn

from .errors import BundleError


class DamagedFileError(BundleError):
    """A file of tensors that cannot be read, or whose content is not what was written."""


def read_tensors(path: str | Path) -> Any:
    """Read what ``torch.save`` wrote, without running code of the file.

    Args:
        path: the file.

    Returns:
        its content, on the CPU.

    Raises:
        DamagedFileError: when it cannot be read or a checksum is wrong, which ``torch.load`` alone does not notice.
    """
    try:
        with ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedFileError(f"the checksum of {broken} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes zip and unpickling fail in a dozen unrelated ways.
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise DamagedFileError(f"{path} is damaged ({lines[0] if lines else type(error).__name__})") from error


def check_weights(path: str, network: nn.Module, *, argument: str = "ckpt_path") -> None:
    """Make sure that a file holds the weights of a network.

    Args:
        path: file of a bare state dict, as training writes it to ``model_final.pt`` and ``model.pt``.
        network: the network that will load it.
        argument: name of the argument that gave the file, for the error.

    Raises:
        BundleError: when the file is missing, damaged, or of a network with other layers, channels or classes.
    """
    file = Path(path)
    if not file.is_file():
        raise BundleError(f"{argument} {path} does not exist: train first, or name a file of weights by --{argument}.")
    try:
        state = read_tensors(file)
    except DamagedFileError as error:
        raise BundleError(f"{argument} {path} cannot be read as a file of weights; it may be damaged.") from error
    expected = network.state_dict()
    is_state = isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not is_state or state.keys() != expected.keys():
        raise BundleError(f"{argument} {path} holds the weights of another network than the configured one.")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise BundleError(
                f"{argument} {path} does not fit: {name} has shape {list(state[name].shape)}, the configured network "
                f"needs {list(value.shape)}; check num_classes and in_channels."
            )
