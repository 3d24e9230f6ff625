# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What leaves the bundle beside MONAI's own exports: one of the two networks, and a model for Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from .errors import BundleError
from .weights import read_tensors, write_tensors

Member = Literal["vnet", "resnet_vnet"]
#: Windows that a server may put into one batch.
_MAX_BATCH_SIZE = 4


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
    if Path(output).resolve() == Path(ckpt_path).resolve():
        raise BundleError(f"output must be another file than ckpt_path, got {output} for both.")
    if Path(output).exists() and not overwrite:
        raise BundleError(f"output {output} exists: replace it by --overwrite true, or choose another file.")
    state = read_tensors(ckpt_path)
    if not isinstance(state, dict) or {str(key).split(".")[0] for key in state} != set(get_args(Member)):
        raise BundleError(f"ckpt_path {ckpt_path} does not hold the weights of the dual network.")
    prefix = f"{network}."
    chosen = {f"backbone.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    write_tensors(output, chosen)


def write_triton_model(
    folder: Path, network: nn.Module, *, in_channels: int, num_classes: int, patch_size: Sequence[int]
) -> Path:
    """Write a model as NVIDIA's Triton inference server takes it: windows in, their class probabilities out.

    Args:
        folder: folder of the model in the model repository; its name becomes that of the model.
        network: the deployed network with its weights.
        in_channels: channels of a window.
        num_classes: channels of the answer.
        patch_size: voxels of a window, X, Y, Z.

    Returns:
        the folder, with ``config.pbtxt`` and the TorchScript file ``1/model.pt``.
    """
    (folder / "1").mkdir(parents=True)
    torch.jit.script(network.eval()).save(str(folder / "1/model.pt"))
    # The names are those by which Triton counts the tensors of a TorchScript file.
    tensors = (("input", "INPUT__0", in_channels), ("output", "OUTPUT__0", num_classes))
    lines = [f'name: "{folder.name}"', 'platform: "pytorch_libtorch"', f"max_batch_size: {_MAX_BATCH_SIZE}"]
    for kind, name, channels in tensors:
        shape = ", ".join(map(str, (channels, *patch_size)))
        lines += [
            f"{kind} [",
            "  {",
            f'    name: "{name}"',
            "    data_type: TYPE_FP32",
            f"    dims: [{shape}]",
            "  }",
            "]",
        ]
    (folder / "config.pbtxt").write_text("\n".join([*lines, "dynamic_batching {}"]) + "\n", encoding="utf-8")
    return folder
