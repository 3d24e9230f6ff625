# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Validation and evaluation of a segmentation network against references in their own geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.utils import CommonKeys

from .precision import Precision, ResolvedPrecision, autocast, resolve_precision


def prepare_reference_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Take the image for the network and the reference that no transform of the image has touched.

    Args:
        batch: "image" (B, C, X, Y, Z) and "reference" (B, 1, X', Y', Z'), the label map on the grid of its file.
        device: where to put both.
        non_blocking: see ``torch.Tensor.to``.
        **kwargs: of the image alone, see ``torch.Tensor.to``.

    Returns:
        the image, and the reference or None.
    """
    image = batch[CommonKeys.IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
    reference = batch.get("reference")
    # Metrics compare it with the prediction, which stays where the network is.
    return image, None if reference is None else reference.to(device=device, non_blocking=non_blocking)


class AutocastInferer(Inferer):
    """Runs another inferer under autocast, and nothing else: the transforms after the network keep their precision.

    Args:
        inferer: the inferer to run.
        precision: "float32" (no autocast), "bfloat16" or "float16".
    """

    def __init__(self, inferer: Inferer, precision: ResolvedPrecision) -> None:
        super().__init__()
        self.inferer = inferer
        self.dtype: torch.dtype = getattr(torch, precision)

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> Any:
        """Infer; see ``monai.inferers.Inferer``."""
        with autocast(inputs.device, self.dtype):
            return self.inferer(inputs, network, *args, **kwargs)


class SegmentationEvaluator(SupervisedEvaluator):
    """Evaluator whose label is the "reference" of the batch, with mixed precision on CPUs and GPUs.

    Predictions are compared after they were brought back to the grid of the reference, so that no figure depends on
    the spacing or the crop with which a network works.

    Args:
        precision: for the network alone, see :func:`scripts.precision.resolve_precision`.
        **kwargs: see ``monai.engines.SupervisedEvaluator``.
    """

    def __init__(self, *, precision: Precision = "float32", **kwargs: Any) -> None:
        super().__init__(**{"prepare_batch": prepare_reference_batch, **kwargs})
        self.inferer = AutocastInferer(self.inferer, resolve_precision(precision, self.state.device))
