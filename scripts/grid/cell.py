# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""One run of a grid, and the files that tell how far it is."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files import read_json_object, write_json

_CELL_FILE = "cell.json"


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        method: name of the method.
        split: "fixed", or "fold0", "fold1", ...
        seed: seed of the run.
        path: folder of the run.
    """

    method: str
    split: str
    seed: int
    path: Path

    @property
    def name(self) -> str:
        """Name of the cell, for example ``mean_teacher/fold0_seed1``."""
        return f"{self.method}/{self.split}_seed{self.seed}"

    @property
    def evaluated(self) -> bool:
        """Whether the cell is done: trained and evaluated."""
        return (self.path / "evaluation" / "metrics_cases.csv").is_file()

    @property
    def trained(self) -> bool:
        """Whether the training has come to its end."""
        return (self.path / "model_final.pt").is_file()

    def state(self) -> dict[str, Any]:
        """Read what the last attempt at this cell left.

        Returns:
            content of ``cell.json``; empty without a readable one.
        """
        try:
            return read_json_object(self.path / _CELL_FILE)
        except (OSError, BundleError):
            return {}

    def write_state(self, **state: Any) -> None:
        """Write ``cell.json``; the seconds that earlier attempts took stay where none are given.

        Args:
            **state: its content.
        """
        earlier = self.state()
        if "seconds" in earlier:
            state = {"seconds": earlier["seconds"], **state}
        write_json(self.path / _CELL_FILE, state)

    def beat(self) -> None:
        """Give a sign of life: a new time of change of ``cell.json``, whose content stays."""
        # A sign that cannot be given, as on a file server that is away for a moment, must not end a training.
        with contextlib.suppress(OSError):
            os.utime(self.path / _CELL_FILE)

    def last_beat(self) -> int | None:
        """Read when the last sign of life was given.

        Returns:
            time of change of ``cell.json`` in ns, by the clock of whoever made it; None without that file.
        """
        try:
            return (self.path / _CELL_FILE).stat().st_mtime_ns
        except OSError:
            return None

    def training_progress(self) -> tuple[int, float]:
        """Read how far the training is from the last whole line of its history.

        Returns:
            number of iterations, 0 before the first, and the seconds that they took with their validations.
        """
        try:
            with (self.path / "history.csv").open("rb") as stream:
                stream.seek(0, 2)
                stream.seek(max(0, stream.tell() - 4096))
                lines = stream.read().split(b"\n")[:-1]
            iterations, seconds = lines[-1].split(b",")[:2]
            return int(iterations), float(seconds)
        except (OSError, ValueError, IndexError):
            return 0, 0.0
