# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a grid tells while it runs: bars on a terminal, otherwise a line every few minutes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from statistics import fmean

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .cell import Cell
from .grid import Grid

#: Time between two lines of the log.
_LINE_SECONDS = 300.0
#: Cells that a line names at most.
_MOST_NAMES = 10


class GridProgress:
    """Shows how far a grid is, and what became of each cell.

    The time left comes from the seconds an iteration of each cell's own history, and the measured time of evaluations.
    Where a cell has none yet, the mean over its method's cells counts, otherwise that over all cells.

    Args:
        grid: the grid.
        cells: its cells.
        console: where to print; bars are shown on a terminal only.
    """

    def __init__(self, grid: Grid, cells: Sequence[Cell], *, console: Console | None = None) -> None:
        self.cells = cells
        self._console = console or Console(emoji=False)
        self._iterations = {method: grid.iterations(method) for method in grid.methods}
        self._trained: dict[Cell, int] = {}
        self._paces: dict[Cell, float] = {}
        self._evaluations: dict[Cell, float] = {}
        self._done: set[Cell] = set()
        self._failed: set[Cell] = set()
        self._next_line = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bars: dict[Cell, TaskID] = {}
        for cell in cells:
            self._look_at(cell)
        self._whole = self._progress.add_task("all cells", left="")

    def __enter__(self) -> GridProgress:
        """Show the bars."""
        self.refresh()
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the bars as they are."""
        self._progress.stop()

    def started(self, cell: Cell) -> None:
        """Take notice of a cell that runs.

        Args:
            cell: the cell.
        """
        if cell not in self._bars:
            self._bars[cell] = self._progress.add_task(escape(cell.name), total=self._iterations[cell.method], left="")

    def finished(self, cell: Cell, *, reason: str | None = None) -> None:
        """Take notice of a cell that is done or has failed, and say so.

        Args:
            cell: the cell.
            reason: why it failed, where its own state does not tell.
        """
        self._remove_bar(cell)
        self._look_at(cell)
        state = cell.state()
        if cell.evaluated:
            self._print(f"done    {cell.name} in {state.get('seconds', 0) / 60:.1f} min")
        else:
            self._failed.add(cell)
            self._print(f"failed  {cell.name}: {reason or state.get('error') or 'the process ended without a word'}")

    def begins_again(self, cell: Cell, *, reason: str) -> None:
        """Take notice of a cell that does not run any more and will run again, and say so.

        Args:
            cell: the cell.
            reason: why.
        """
        self._remove_bar(cell)
        self._print(f"again   {cell.name}: {reason}")

    def refresh(self) -> None:
        """Read anew how far the running cells are, and move the bars."""
        for cell, bar in self._bars.items():
            self._look_at(cell)
            trained = self._trained[cell]
            left = "evaluation" if trained >= self._iterations[cell.method] else _left(self._seconds_left_of(cell))
            self._progress.update(bar, completed=trained, left=left)
        total = sum(
            self._trained[cell] if cell in self._failed else self._iterations[cell.method] for cell in self.cells
        )
        self._progress.update(
            self._whole, total=total, completed=sum(self._trained.values()), left=_left(self.seconds_left())
        )

    def report(self, not_begun: Sequence[Cell] = ()) -> None:
        """Print a line every few minutes: on a terminal, which has the bars, only of cells that are waited for.

        Args:
            not_begun: cells that were handed over and have not begun.
        """
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + _LINE_SECONDS
        if not self._console.is_terminal:
            running = [f"{cell.name} {self._trained[cell]}/{self._iterations[cell.method]}" for cell in self._bars]
            self._print(
                f"{time.strftime('%H:%M')}   {len(self._done)} of {len(self.cells)} done, {len(self._failed)} failed, "
                f"{_left(self.seconds_left())}; running: {_names(running)}"
            )
        if not_begun:
            self._print(
                f"waiting for {_names(cell.name for cell in not_begun)}: handed over and not begun. "
                "--relaunch true hands over again what was cancelled."
            )

    def seconds_left(self) -> float | None:
        """Estimate the time until the last cell is done, with as many cells at a time as there are now.

        Returns:
            seconds; None before the first iteration of any cell.
        """
        rests = [self._seconds_left_of(cell) for cell in self.cells if cell not in self._done | self._failed]
        known = [rest for rest in rests if rest is not None]
        if len(known) < len(rests):
            return None
        return max(sum(known) / max(1, len(self._bars)), max(known, default=0.0))

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _remove_bar(self, cell: Cell) -> None:
        if cell in self._bars:
            self._progress.remove_task(self._bars.pop(cell))

    def _seconds_left_of(self, cell: Cell) -> float | None:
        iterations = self._iterations[cell.method] - self._trained[cell]
        pace = _own_or_mean(self._paces, cell)
        if pace is None:
            return None
        return iterations * pace + (_own_or_mean(self._evaluations, cell) or 0.0)

    def _look_at(self, cell: Cell) -> None:
        iterations, seconds = cell.training_progress()
        if iterations:
            self._paces[cell] = seconds / iterations
        self._trained[cell] = iterations
        if cell.evaluated:
            self._done.add(cell)
            self._trained[cell] = self._iterations[cell.method]
            if "evaluation_seconds" in (state := cell.state()):
                self._evaluations[cell] = state["evaluation_seconds"]


def _own_or_mean(values: Mapping[Cell, float], cell: Cell) -> float | None:
    if cell in values:
        return values[cell]
    alike = [value for other, value in values.items() if other.method == cell.method] or list(values.values())
    return fmean(alike) if alike else None


def _left(seconds: float | None) -> str:
    return "time left not known yet" if seconds is None else f"{timedelta(seconds=round(seconds))} left"


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return ", ".join([*names[:_MOST_NAMES], *more]) or "none"
