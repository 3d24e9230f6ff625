# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The model of a bundle for NVIDIA's Triton inference server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

#: Windows that a server may put into one batch.
_MAX_BATCH_SIZE = 4


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
