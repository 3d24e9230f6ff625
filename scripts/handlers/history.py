# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it goes: a progress bar, lines of the log, CSV files and TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from ignite.engine import Events
from monai.engines import Evaluator
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from ..errors import BundleError
from ..evaluation.curves import learning_curves
from ..files import FACTS_FILE, replacing
from ..parallel import is_main_process


class TrainingHistory:
    """Writes every term and weight by name to ``history.csv``, TensorBoard and the log, with a progress bar.

    TensorBoard shows them as ``loss/...``, ``weight/...`` and ``training/...`` (learning rate, gradient norm, seconds),
    the Dice of each class as ``validation/...``, and the text of ``run.json``. Validation results go to
    ``validation.csv`` too, and at the end (and at each validation) the curves are drawn to ``learning_curves.png``. A
    resumed run goes on in the same files; rows after the iteration at which it resumes, from steps that the stop had
    lost, are dropped.

    Args:
        output_dir: folder of the run.
        optimizer: its first learning rate is logged.
        evaluator: the validation engine.
        log_interval: iterations between two lines of the log.
        class_names: names of the foreground classes, for the validation metric of each.

    Raises:
        ValueError: when log_interval is not positive.
    """

    def __init__(
        self,
        output_dir: str,
        optimizer: Optimizer,
        *,
        evaluator: Evaluator,
        log_interval: int = 50,
        class_names: list[str] | None = None,
    ) -> None:
        if log_interval < 1:
            raise ValueError(f"log_interval must be at least 1 iteration, got {log_interval}.")
        self.output_dir = Path(output_dir)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.log_interval = log_interval
        self.class_names = class_names or []
        self._trainer: Any = None
        self._bar: tqdm | None = None
        self._writer: SummaryWriter | None = None
        self._logger = logging.getLogger(__name__)
        self._first_iteration, self._start_time, self._seconds_before = 0, 0.0, 0.0
        self._drawn_iteration = 0

    def attach(self, engine: Any) -> None:
        """Register with the trainer, after the handler that resumes a run.

        Args:
            engine: a :class:`scripts.trainer.SemiSupervisedTrainer`.
        """
        self._trainer = engine
        if not is_main_process():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._record)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._abort)
        self.evaluator.add_event_handler(Events.COMPLETED, self._record_validation)

    def _start(self, engine: Any) -> None:
        self._writer = None
        self._first_iteration, self._start_time = engine.state.iteration, time.monotonic()
        total = engine.state.max_epochs * engine.state.epoch_length
        # disable=None: a bar on a terminal, only the lines of the log in a file.
        self._bar = tqdm(total=total, initial=engine.state.iteration, desc="training", unit="it", disable=None)

    def _open(self) -> SummaryWriter:
        """Open the files after the first iteration: until then they may be those of a run that is to be replaced."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for name in ("history.csv", "validation.csv"):
            _drop_rows_after(self.output_dir / name, self._first_iteration)
        self._seconds_before = _last_seconds(self.output_dir / "history.csv")
        writer = SummaryWriter(str(self.output_dir / "tensorboard"), purge_step=self._first_iteration + 1)
        facts = self.output_dir / FACTS_FILE
        if facts.is_file():
            text = facts.read_text(encoding="utf-8")
            writer.add_text("run", f"```json\n{text}```", self._first_iteration)
        return writer

    def _begin(self, engine: Any) -> None:
        # At the end of the iteration it may be that of the next one.
        self._learning_rate = self.optimizer.param_groups[0]["lr"]

    def _record(self, engine: Any) -> None:
        self._writer = self._writer or self._open()
        iteration = engine.state.iteration
        row = {
            "iteration": iteration,
            "seconds": round(self._seconds_before + time.monotonic() - self._start_time, 3),
            "learning_rate": self._learning_rate,
            **engine.state.terms,
        }
        _append_row(self.output_dir / "history.csv", row)
        assert self._bar is not None
        for name, value in row.items():
            if name != "iteration":
                self._writer.add_scalar(_tag(name), value, iteration)
        self._bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        self._bar.update()
        if iteration % self.log_interval == 0:
            total = engine.state.max_epochs * engine.state.epoch_length
            pace = (time.monotonic() - self._start_time) / (iteration - self._first_iteration)
            left = timedelta(seconds=round(pace * (total - iteration)))
            terms = " ".join(f"{name}={value:.4g}" for name, value in engine.state.terms.items())
            self._say(f"iteration {iteration}/{total} ({pace:.2f} s each, {left} left) {terms}")

    def _record_validation(self, evaluator: Any) -> None:
        assert self._trainer is not None
        iteration = self._trainer.state.iteration
        mean = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        row: dict[str, Any] = {"iteration": iteration, "mean_dice": mean}
        details = evaluator.state.metric_details.get(evaluator.state.key_metric_name)
        if details is not None:
            for index, value in enumerate(details.nanmean(dim=0).tolist()):
                name = self.class_names[index] if index < len(self.class_names) else str(index + 1)
                row[f"dice_{name}"] = value
        _append_row(self.output_dir / "validation.csv", row)
        if self._writer is not None:
            for name, value in row.items():
                if name != "iteration":
                    self._writer.add_scalar(f"validation/{name}", value, iteration)
        self._say(f"validation at iteration {iteration}: " + " ".join(f"{k}={v:.4f}" for k, v in list(row.items())[1:]))
        self._draw(iteration)

    def _finish(self, engine: Any) -> None:
        self._close()
        # The validation of the last iteration has drawn the same.
        if self._drawn_iteration != engine.state.iteration:
            self._draw(engine.state.iteration)

    def _abort(self, engine: Any, error: BaseException) -> None:
        self._close()
        raise error

    def _say(self, line: str) -> None:
        with tqdm.external_write_mode():
            self._logger.info(line)

    def _draw(self, iteration: int) -> None:
        history, validation = self.output_dir / "history.csv", self.output_dir / "validation.csv"
        if history.is_file():
            learning_curves(
                history, self.output_dir / "learning_curves.png", validation if validation.is_file() else None
            )
            self._drawn_iteration = iteration

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _tag(name: str) -> str:
    """Return the TensorBoard tag of a column, which puts like columns on one card."""
    group, _, term = name.partition("_")
    if group in ("loss", "weight"):
        return f"{group}/{term or 'total'}"
    return f"training/{name}"


def _last_seconds(path: Path) -> float:
    """Time that the run had taken when its last row was written, so that a resumed run counts on."""
    return float(pd.read_csv(path, usecols=["seconds"])["seconds"].iloc[-1]) if path.is_file() else 0.0


def last_iteration(path: Path) -> int:
    """Tell how far a table of a run goes.

    Args:
        path: ``history.csv`` or ``validation.csv`` of the run.

    Returns:
        the last iteration in it; 0 where there is none.

    Raises:
        BundleError: when the file is a table of something else.
    """
    numbers = pd.to_numeric(_read_rows(path, math.inf)["iteration"]) if path.is_file() else ()
    return int(max(numbers, default=0))


def _append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row; a column that the file does not have yet is added to the rows before it as empty."""
    columns = list(row)
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as stream:
            known = next(csv.reader(stream), [])
        new = [name for name in columns if name not in known]
        columns = known + new
        if new:
            # As texts, so that the numbers of the rows before stay as they are, digit by digit.
            table = pd.read_csv(path, dtype=str, keep_default_na=False).reindex(columns=columns, fill_value="")
            with replacing(path) as temporary:
                table.to_csv(temporary, index=False)
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
        if stream.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def _drop_rows_after(path: Path, iteration: int) -> None:
    """Keep the rows up to an iteration; a file with none of them is removed."""
    if not path.is_file():
        return
    table = _read_rows(path, iteration)
    if table.empty:
        path.unlink()
        return
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def _read_rows(path: Path, last: float) -> pd.DataFrame:
    """Read the whole rows of a table up to an iteration, as texts; their iterations ascend.

    Raises:
        BundleError: when the file is a table of something else.
    """
    content = path.read_bytes()
    # A process killed while writing leaves half a line, and half of "151,..." may read as iteration 1.
    whole = content[: content.rfind(b"\n") + 1]
    try:
        # As texts, so that the numbers of the rows that stay are written back digit by digit.
        table = pd.read_csv(
            io.BytesIO(whole), dtype=str, keep_default_na=False, on_bad_lines="skip", encoding_errors="replace"
        )
    except pd.errors.EmptyDataError:
        return pd.DataFrame({"iteration": []})
    if "iteration" not in table:
        raise BundleError(f"{path} must have the column iteration to be resumed, got {list(table)}.")
    numbers = pd.to_numeric(table["iteration"], errors="coerce")
    table, numbers = table[numbers <= last], numbers[numbers <= last]
    return table[numbers > numbers.cummax().shift(fill_value=0)]
