# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Check a file of network weights before a run relies on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .errors import BundleError


def check_weights(path: str, network: nn.Module) -> None:
    """Make sure that a file holds the weights of a network.

    Args:
        path: file of a bare state dict, as training writes it to ``model_final.pt`` and ``model.pt``.
        network: the network that will load it.

    Raises:
        BundleError: when the file is missing, damaged, or of a network with other layers, channels or classes.
    """
    file = Path(path)
    if not file.is_file():
        raise BundleError(f"ckpt_path {path} does not exist: train first, or name a file of weights by --ckpt_path.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    # What is no file of weights fails in as many ways as its first bytes have meanings to the reader.
    except Exception as error:
        raise BundleError(f"ckpt_path {path} cannot be read as a file of weights; it may be damaged.") from error
    expected = network.state_dict()
    is_state = isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
    if not is_state or state.keys() != expected.keys():
        raise BundleError(f"ckpt_path {path} holds the weights of another network than the configured one.")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise BundleError(
                f"ckpt_path {path} does not fit: {name} has shape {list(state[name].shape)}, the configured network "
                f"needs {list(value.shape)}; check num_classes and in_channels."
            )
