# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""An exported network that ONNX Runtime computes."""

from __future__ import annotations

import torch
from monai.utils import optional_import
from torch import nn

onnxruntime, _ = optional_import("onnxruntime")


class OnnxNetwork(nn.Module):
    """Runs an ONNX file with one input and one output in the place of the network that was exported.

    It needs the package onnxruntime, which is none of the bundle's requirements, and uses the GPU where
    onnxruntime-gpu is installed.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        self.input_name = self.session.get_inputs()[0].name

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Predict class probabilities.

        Args:
            image: (B, in_channels, X, Y, Z).

        Returns:
            probabilities in float32, (B, out_channels, X, Y, Z), on the device of the image.
        """
        (probabilities,) = self.session.run(None, {self.input_name: image.float().cpu().numpy()})
        return torch.from_numpy(probabilities).to(image.device)
