# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Weights that an evaluation reads, and which ones these were."""

from __future__ import annotations

from ignite.engine import Engine
from monai.handlers import CheckpointLoader

from ..files import file_hash


class RecordedCheckpointLoader(CheckpointLoader):
    """Loads weights as ``monai.handlers.CheckpointLoader``, and leaves their hash in the engine's state.

    Where MONAI's federated client brings weights of its own, it switches off every handler of such a name, and no hash
    is left.
    """

    def __call__(self, engine: Engine) -> None:
        """Load the weights; their SHA-256 is in ``engine.state.weights_sha256`` from then on.

        Args:
            engine: the evaluator.
        """
        super().__call__(engine)
        engine.state.weights_sha256 = file_hash(self.load_path)  # type: ignore[attr-defined]
