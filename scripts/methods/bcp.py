# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Bidirectional copy-paste, https://arxiv.org/abs/2305.00673."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..networks.single_network import SingleNetwork
from .base import weighted_sum
from .copy_paste import CopyPasteMethod


class BidirectionalCopyPaste(CopyPasteMethod):
    r"""BCP: one network on crops mixed from labeled and unlabeled ones, in both directions.

    .. math:: L = L_{cp}(x^{in}, y^{in}) + L_{cp}(x^{out}, y^{out})

    in the second stage; in the first one :math:`L_{cp}` of two labeled crops mixed. "Bidirectional Copy-Paste for
    Semi-Supervised Medical Image Segmentation", https://arxiv.org/abs/2305.00673.

    Args: see :class:`scripts.methods.copy_paste.CopyPasteMethod`.
    """

    network: SingleNetwork
    network_members = ("backbone",)

    @property
    def student(self) -> nn.Module:
        """The only network."""
        return self.network.backbone

    def forward(self, batch: Mapping[str, torch.Tensor], step: int) -> dict[str, Any]:
        """Compute the loss of every mixture, see :meth:`scripts.methods.base.Method.forward`."""
        # One pass for each mixture, as in the public code: batch normalization sees one kind of crop at a time.
        terms = {
            f"loss_{name}": self.copy_paste(self.student(mixture.image), mixture.label, mixture.labeled)
            for name, mixture in self.mixtures(batch, step).items()
        }
        return weighted_sum(terms, {})
