# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The folder of one training run: who may write there, and what was run."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ignite
import monai
import numpy as np
import torch
from monai.utils.misc import str2bool

from ..errors import BundleError
from ..files import replacing

#: Everything that a run writes; ``overwrite`` removes these and nothing else.
_RUN_FILES = ("run.json", "history.csv", "validation.csv", "model.pt", "model_final.pt", "learning_curves.png")
_RUN_FOLDERS = ("checkpoints", "tensorboard", "pictures")


def is_main_process() -> bool:
    """Tell whether this process writes the files of the run: the only one, or that of rank 0."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


class RunDirectory:
    """Guards the folder of a run, so that no run is overwritten or continued by accident.

    Args:
        output_dir: folder of the run.
        resume: go on with the run that the folder holds; a text like "true" is understood.
        overwrite: remove the run that the folder holds and start anew; files that no run writes stay.
        facts: what belongs into ``run.json`` besides versions and command line: seed, split file, ...
    """

    def __init__(
        self,
        output_dir: str,
        *,
        resume: bool | str = False,
        overwrite: bool | str = False,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(output_dir)
        self.resume = str2bool(resume)
        self.overwrite = str2bool(overwrite)
        self.facts = facts or {}
        self._claimed = False

    def checkpoints(self) -> list[Path]:
        """List the checkpoints of the run, newest first."""
        return sorted((self.path / "checkpoints").glob("checkpoint_*.pt"), reverse=True)

    def claim(self) -> None:
        """Make sure that this run may write into the folder; called before anything slow happens.

        Raises:
            BundleError: when the folder holds a run and neither resume nor overwrite is set, when both are, or when
                there is no run to resume.
        """
        if self._claimed or not is_main_process():
            return
        if self.resume and self.overwrite:
            raise BundleError("resume and overwrite exclude each other: give one of them.")
        if self.path.exists() and not self.path.is_dir():
            raise BundleError(f"output_dir must be a folder, but {self.path} is a file.")
        holds_run = any((self.path / name).exists() for name in (*_RUN_FILES, *_RUN_FOLDERS))
        if holds_run and not self.resume and not self.overwrite:
            raise BundleError(
                f"output_dir {self.path} already holds a run: go on with it by --resume true, "
                "replace it by --overwrite true, or choose another --output_dir."
            )
        if self.resume and not holds_run:
            raise BundleError(f"resume is true, but output_dir {self.path} holds no run: drop --resume.")
        if self.overwrite:
            self._remove_run()
        if not self.resume:
            self._write_facts()
        self._claimed = True

    def _remove_run(self) -> None:
        for name in _RUN_FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _RUN_FOLDERS:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)

    def _write_facts(self) -> None:
        facts = {
            **self.facts,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": sys.argv,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "monai": monai.__version__,
                "ignite": ignite.__version__,
                "numpy": np.__version__,
            },
        }
        with replacing(self.path / "run.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=4, default=str) + "\n")


def claim_report_directory(path: str, *, overwrite: bool | str = False) -> None:
    """Make sure that an evaluation does not replace the tables of another.

    Args:
        path: folder of the tables and pictures.
        overwrite: replace those that are there.

    Raises:
        BundleError: when the folder holds tables and overwrite is not set.
    """
    if (Path(path) / "metrics_cases.csv").exists() and not str2bool(overwrite):
        raise BundleError(
            f"evaluation_dir {path} already holds an evaluation: replace it by --overwrite true, "
            "or choose another --evaluation_dir."
        )
