# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Running the cells of a grid: here, several at a time, or by a launcher such as SLURM's."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..errors import BundleError
from .definition import ROOT, Cell, Grid

_LOG_FILE = "cell.log"
_POLL_SECONDS = 1.0
#: Environment variable with the process of the grid, with which its local cells end.
_PARENT = "BUNDLE_GRID_PROCESS"


def run_cell(cell_dir: str | Path) -> bool:
    """Train and evaluate one cell of a grid, going on where an earlier attempt stopped.

    Writes ``cell.json`` (status, time, reason of a failure) and ``cell.log`` into its folder.

    Args:
        cell_dir: folder of the cell, ``<grid>/cells/<method>/<split>_seed<seed>``.

    Returns:
        whether the cell is done.

    Raises:
        BundleError: when the folder is no cell of a grid, or another process is at work on it.
    """
    path = Path(cell_dir).resolve()
    grid_dir = path.parents[2]
    grid = Grid.read(grid_dir)
    cell = next((cell for cell in grid.cells(grid_dir) if cell.path == path), None)
    if cell is None:
        raise BundleError(f"cell_dir must be a cell of the grid in {grid_dir}, got {cell_dir}.")
    path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path / ".lock", timeout=0):
            return cell.evaluated or _train_and_evaluate(grid, cell)
    except Timeout:
        raise BundleError(f"another process is at work on {path}.") from None


def _train_and_evaluate(grid: Grid, cell: Cell) -> bool:
    earlier, started = float(cell.state().get("seconds", 0.0)), time.monotonic()
    facts = {"host": platform.node(), "threads": os.environ.get("OMP_NUM_THREADS")}
    cell.write_state(status="running", seconds=earlier, **facts)
    problem = None
    if not (cell.path / "model_final.pt").is_file():
        words = grid.arguments(cell, evaluate=False)
        problem = _run_bundle(cell, [*words, "--resume", "true"] if (cell.path / "run.json").is_file() else words)
    if problem is None:
        problem = _run_bundle(cell, grid.arguments(cell, evaluate=True))
    seconds = round(earlier + time.monotonic() - started, 1)
    cell.write_state(status="failed" if problem else "done", error=problem, seconds=seconds, **facts)
    return problem is None


def _run_bundle(cell: Cell, words: Sequence[str]) -> str | None:
    """Run ``python -m monai.bundle`` for a cell; gives the reason when it fails."""
    with (cell.path / _LOG_FILE).open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "monai.bundle", *words], stdout=log, stderr=subprocess.STDOUT, env=_environment()
        )
        try:
            while process.poll() is None:
                if os.environ.get(_PARENT, str(os.getppid())) != str(os.getppid()):
                    raise BundleError("the grid has ended: stopping with it.")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode == 0:
        return None
    with (cell.path / _LOG_FILE).open("rb") as log:
        log.seek(begin)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    mistakes = [line for line in lines if line.startswith("error:")]
    return (mistakes or lines or [f"exit code {process.returncode}"])[-1]


def run_grid(
    grid: Grid,
    output_dir: str | Path,
    *,
    jobs: int = 1,
    launcher: str | None = None,
    relaunch: bool = False,
    console: Console | None = None,
) -> list[Cell]:
    """Run all cells that are not done yet, showing overall progress and the time left.

    A cell that fails is reported and does not stop the others. Stopping this process stops the cells that run here;
    the same call goes on with them.

    Args:
        grid: the grid.
        output_dir: its folder.
        jobs: cells at a time; the processor's cores are shared out among them.
        launcher: command that takes a cell elsewhere, such as ``sbatch --gres=gpu:1 --wrap {command}``; ``{command}``
            stands for the cell's command as one word, ``{name}`` for its name. All cells are handed over at once, and
            their progress is watched through the common folder.
        relaunch: hand over also what was handed over before and has neither ended nor failed, since it was cancelled.
        console: where progress is shown.

    Returns:
        the cells that failed.

    Raises:
        BundleError: when the launcher is not usable or refuses a cell.
    """
    if launcher is not None and not any("{command}" in word for word in shlex.split(launcher)):
        raise BundleError(f"launcher must contain {{command}}, such as 'sbatch --wrap {{command}}', got {launcher!r}.")
    cells = list(grid.cells(output_dir))
    pending = [cell for cell in cells if not cell.evaluated]
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    with progress:
        watch = _Watch(progress, grid, cells)
        if launcher is not None:
            for cell in pending:
                if relaunch or cell.state().get("status") not in ("handed over", "running"):
                    _hand_over(cell, launcher)
            watch.until_finished(pending)
        else:
            _run_here(pending, jobs, watch)
    return [cell for cell in pending if not cell.evaluated]


class _Watch:
    """Progress bars: one for the whole grid, counted in iterations, and one for each cell that runs."""

    def __init__(self, progress: Progress, grid: Grid, cells: Sequence[Cell]) -> None:
        self.progress = progress
        self.cells = cells
        self.iterations = {method: grid.iterations(method) for method in grid.methods}
        self.bars: dict[Cell, TaskID] = {}
        total = sum(self.iterations[cell.method] for cell in cells)
        self.whole = progress.add_task("all cells", total=total, completed=self._done())

    def _done(self) -> int:
        return sum(self.iterations[cell.method] if cell.evaluated else cell.iterations_done() for cell in self.cells)

    def started(self, cell: Cell) -> None:
        self.bars[cell] = self.progress.add_task(escape(cell.name), total=self.iterations[cell.method])

    def finished(self, cell: Cell) -> None:
        if cell in self.bars:
            self.progress.remove_task(self.bars.pop(cell))
        state = cell.state()
        if cell.evaluated:
            self.progress.console.print(f"done    {escape(cell.name)} in {state.get('seconds', 0) / 60:.1f} min")
        else:
            reason = state.get("error") or "the process ended without a word"
            self.progress.console.print(f"failed  {escape(cell.name)}: {escape(str(reason))}", soft_wrap=True)

    def refresh(self) -> None:
        self.progress.update(self.whole, completed=self._done())
        for cell, bar in self.bars.items():
            self.progress.update(bar, completed=cell.iterations_done())

    def until_finished(self, cells: Sequence[Cell]) -> None:
        """Watch cells that run elsewhere until each is done or failed."""
        waiting = list(cells)
        while waiting:
            for cell in list(waiting):
                status = cell.state().get("status")
                if status == "running" and cell not in self.bars:
                    self.started(cell)
                if cell.evaluated or status == "failed":
                    self.finished(cell)
                    waiting.remove(cell)
            self.refresh()
            time.sleep(_POLL_SECONDS)


def _run_here(pending: Sequence[Cell], jobs: int, watch: _Watch) -> None:
    environment = {**_environment(), _PARENT: str(os.getpid())}
    # Several processes that all want all cores hinder each other badly.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    waiting, running = list(pending), dict[Cell, subprocess.Popen]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell] = subprocess.Popen(
                    _cell_command(cell), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
                watch.started(cell)
            for cell, process in list(running.items()):
                if process.poll() is not None:
                    assert process.stderr is not None
                    words = process.stderr.read().strip()
                    if process.returncode and cell.state().get("status") != "failed":
                        cell.write_state(status="failed", error=words.splitlines()[-1] if words else None)
                    del running[cell]
                    watch.finished(cell)
            watch.refresh()
            time.sleep(_POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _hand_over(cell: Cell, launcher: str) -> None:
    command = ["env", f"PYTHONPATH={_environment()['PYTHONPATH']}", *_cell_command(cell)]
    replacements = {"{command}": shlex.join(command), "{name}": cell.name.replace("/", "_")}
    words = shlex.split(launcher)
    for placeholder, value in replacements.items():
        words = [word.replace(placeholder, value) for word in words]
    cell.write_state(status="handed over")
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        cell.write_state(status="failed", error=f"launcher: {error}")
        raise BundleError(f"launcher {words[0]} cannot be started: {error.strerror}.") from error
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        cell.write_state(status="failed", error=f"launcher: {reason[-1] if reason else done.returncode}")


def _environment() -> dict[str, str]:
    """Environment in which both this bundle and what the user has on the path can be imported."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _cell_command(cell: Cell) -> list[str]:
    return [sys.executable, "-m", "scripts", "cell", "--cell_dir", str(cell.path.resolve())]
