# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Running the cells of a grid: here, several at a time, or by a launcher such as SLURM's."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console

from ..configuration import read_configuration
from ..console import mistakes_in_one_line
from ..data.loading import check_cases
from ..errors import BundleError
from ..files import FACTS_FILE, ROOT, check_literal_path
from ..locks import FolderInUseError, locked_folder
from .cell import Cell
from .grid import Grid
from .progress import GridProgress

_LOG_FILE, _LAUNCHER_LOG_FILE, _LOCK_FILE = "cell.log", "launcher.log", ".lock"
_POLL_SECONDS = 1.0
_BEAT_SECONDS = 30.0
#: A cell that gives no sign of life for so long is dead; generous, for file servers that show changes late.
_SILENCE_SECONDS = 300.0
#: How tracebacks are told.
_TRACEBACK, _WRAPS = (
    "Traceback (most recent call last):",
    "The above exception was the direct cause of the following exception:",
)
_ERROR = re.compile(r"[\w.]*(Error|Exception)(:|$)")
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
    # Not resolved: the folder of the cells may be a link.
    path = Path(os.path.abspath(cell_dir))
    if len(path.parents) < 3:
        raise BundleError(f"cell_dir must be GRID/cells/METHOD/SPLIT_seedN, got {cell_dir}.")
    grid_dir = path.parents[2]
    grid = Grid.read(grid_dir)
    cell = next((cell for cell in grid.cells(grid_dir) if cell.path == path), None)
    if cell is None:
        raise BundleError(f"cell_dir must be a cell of the grid in {grid_dir}, got {cell_dir}.")
    with locked_folder(path / _LOCK_FILE):
        return cell.evaluated or _train_and_evaluate(grid, cell)


def _train_and_evaluate(grid: Grid, cell: Cell) -> bool:
    earlier, started = float(cell.state().get("seconds", 0.0)), time.monotonic()
    facts = {"host": platform.node(), "threads": os.environ.get("OMP_NUM_THREADS")}
    cell.write_state(status="running", seconds=earlier, **facts)
    # What remains to be said where this process is stopped, as by a queue's time limit.
    outcome: dict[str, Any] = {"status": "failed", "error": "stopped before its end"}
    try:
        changed = grid.changed_file(cell)
        problem = f"{changed} was changed since crossval was called: call it again" if changed else _train(grid, cell)
        trained = time.monotonic()
        problem = problem or _run_bundle(cell, grid.arguments(cell, evaluate=True))
        outcome = {"status": "failed" if problem else "done", "error": problem}
        if problem is None:
            outcome["evaluation_seconds"] = round(time.monotonic() - trained, 1)
    finally:
        cell.write_state(**outcome, seconds=round(earlier + time.monotonic() - started, 1), **facts)
    return problem is None


def _train(grid: Grid, cell: Cell) -> str | None:
    if cell.trained:
        return None
    words = grid.arguments(cell, evaluate=False)
    return _run_bundle(cell, [*words, "--resume", "true"] if (cell.path / FACTS_FILE).is_file() else words)


def _run_bundle(cell: Cell, words: Sequence[str]) -> str | None:
    """Run ``python -m monai.bundle`` for a cell; gives the reason when it fails."""
    with (cell.path / _LOG_FILE).open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "monai.bundle", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
            preexec_fn=_ending_with_its_parent(),
        )
        beaten = time.monotonic()
        try:
            while process.poll() is None:
                if time.monotonic() - beaten >= _BEAT_SECONDS:
                    cell.beat()
                    beaten = time.monotonic()
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
    if process.returncode < 0 and not mistakes:
        last = f"; its last line was: {lines[-1]}" if lines else ""
        return f"ended by {signal.Signals(-process.returncode).name}, as where memory ran out{last}"
    return (mistakes or _last_error(lines) or lines or [f"exit code {process.returncode}"])[-1]


def _last_error(lines: Sequence[str]) -> list[str]:
    """Find the error that ended a run, and of errors that wrap each other the innermost; MONAI's own is the last."""
    starts = [number for number, line in enumerate(lines) if line == _TRACEBACK]
    while len(starts) > 1 and _WRAPS in lines[starts[-2] : starts[-1]]:
        starts.pop()
    found = [line for line in lines[starts[-1] :] if _ERROR.match(line)] if starts else []
    # What a worker process raised stands below, with a traceback of its own.
    return [line for line in found if " in DataLoader worker process" not in line][:1]


def _ending_with_its_parent() -> Callable[[], Any] | None:
    """Give what a new process calls so that it does not outlive its parent, even where that is killed.

    Without it the training would go on, and the next attempt would write into the same folder beside it.
    """
    if sys.platform != "linux":
        return None
    set_death_signal = 1
    return functools.partial(ctypes.CDLL(None).prctl, set_death_signal, signal.SIGKILL)


def run_grid(
    grid: Grid,
    output_dir: str | Path,
    *,
    jobs: int | None = None,
    launcher: str | None = None,
    relaunch: bool = False,
    console: Console | None = None,
) -> list[Cell]:
    """Write ``grid.json`` and run all cells that are not done yet, showing overall progress and the time left.

    A cell that fails is reported and does not stop the others. Stopping this process stops the cells that run here;
    the same call goes on with them.

    Args:
        grid: the grid.
        output_dir: its folder.
        jobs: cells at a time without a launcher, by default 1; the processor's cores are shared out among them, and so
            are its graphics cards, unless the grid sets a device.
        launcher: command that takes a cell elsewhere, such as ``sbatch --gres=gpu:1 --wrap {command}``; ``{command}``
            stands for the cell's command as one word, ``{name}`` for its name. All cells are handed over at once, and
            their progress is watched through the common folder. The launcher may return at once, as ``sbatch`` does,
            or with the end of the cell, as ``srun`` does. What it says goes to ``launcher.log`` in the cell's folder.
        relaunch: with a launcher, hand over also what was handed over before and has not begun, since it was cancelled.
            A cell that began and then gave no sign of life for five minutes is handed over again without it.
        console: where progress is shown.

    Returns:
        the cells that failed.

    Raises:
        BundleError: when the launcher is not usable or refuses a cell, or an option is for the other way to run cells,
            a test case cannot be evaluated, or the folder holds another grid, see :meth:`Grid.joined`.
    """
    if launcher is not None and jobs is not None:
        raise BundleError(f"jobs is for runs on this machine, got {jobs} with a launcher: leave out one of the two.")
    if launcher is None and relaunch:
        raise BundleError("relaunch needs the launcher to which runs are handed over again: give --launcher.")
    if launcher is not None and not any("{command}" in word for word in _words(launcher)):
        raise BundleError(f"launcher must contain {{command}}, such as 'sbatch --wrap {{command}}', got {launcher!r}.")
    splits = (("split_file", path) for path in grid.splits.values())
    for name, place in (("output_dir", output_dir), ("dataset_dir", grid.dataset_dir), *splits):
        check_literal_path(name, str(place))
    cells = list(grid.cells(output_dir))
    pending = [cell for cell in cells if not cell.evaluated]
    # What a launcher hands its cells to may have the data elsewhere.
    if launcher is None and pending:
        _require_test_files(grid)
    grid.write(output_dir)
    with GridProgress(grid, cells, console=console) as progress:
        if launcher is None:
            _run_here(pending, jobs or 1, progress, [] if "device" in grid.overrides else _graphics_cards())
        else:
            _run_elsewhere(pending, launcher, relaunch, progress)
    return [cell for cell in pending if not cell.evaluated]


def _require_test_files(grid: Grid) -> None:
    """Refuse what every cell would find out after its training."""
    files = [path for case in grid.cases.values() for path in case.values()]
    missing = [path for path in files if not Path(path).is_file()]
    if missing:
        raise BundleError(
            f"dataset_dir {grid.dataset_dir}: {len(missing)} of the {len(files)} files of the test cases are not "
            f"there, such as {missing[0]}."
        )
    config = read_configuration(grid.config_files(grid.methods[0]))
    with mistakes_in_one_line():
        options = {
            name: grid.overrides.get(name, config.get_parsed_content(name)) for name in ("num_classes", "in_channels")
        }
    check_cases(grid.cases.values(), **options)


def _graphics_cards() -> list[str]:
    """Names of the cards that this process may use, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(torch.cuda.device_count())) if visible is None else visible.split(",")
    return [name.strip() for name in names if name.strip()]


def _run_here(pending: Sequence[Cell], jobs: int, progress: GridProgress, cards: Sequence[str]) -> None:
    environment = {**_environment(), _PARENT: str(os.getpid())}
    jobs = max(1, min(jobs, len(pending)))
    # Several processes that all want all cores hinder each other badly.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // jobs)))
    waiting, running, card_of = list(pending), dict[Cell, subprocess.Popen](), dict[Cell, str]()
    # Files and no pipes, which would stop a cell that writes more than they hold.
    words_of: dict[Cell, IO[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                _forget_outcome(cell)
                if cards:
                    # Each would take the first card.
                    in_use = [card_of[other] for other in running]
                    environment["CUDA_VISIBLE_DEVICES"] = card_of[cell] = min(cards, key=in_use.count)
                words_of[cell] = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the cell has ended
                running[cell] = subprocess.Popen(
                    _cell_command(cell), env=environment, stdout=subprocess.DEVNULL, stderr=words_of[cell]
                )
                progress.started(cell)
            for cell, process in list(running.items()):
                if process.poll() is not None:
                    del running[cell]
                    with words_of.pop(cell) as words:
                        progress.finished(cell, reason=_end_of(cell, process.returncode, words))
            progress.refresh()
            progress.report()
            time.sleep(_POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _num_cores() -> int:
    """Cores that this process may use: a queue or a container may give fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forget_outcome(cell: Cell) -> None:
    """Take the end of an earlier attempt out of a cell's state, unless another process is at work on it."""
    with contextlib.suppress(FolderInUseError), locked_folder(cell.path / _LOCK_FILE):
        cell.write_state(status="starting")


def _end_of(cell: Cell, exit_code: int, words: IO[bytes]) -> str | None:
    """Make sure that the state of a cell whose process here has ended tells why; gives what it does not tell."""
    if not exit_code or cell.state().get("status") == "failed":
        return None
    words.seek(0)
    reason = _last_line(words.read()) or f"the process ended with exit code {exit_code}"
    # Whoever holds the lock is at work on the cell, and its state is theirs.
    with contextlib.suppress(FolderInUseError), locked_folder(cell.path / _LOCK_FILE):
        cell.write_state(status="failed", error=reason)
    return reason


def _run_elsewhere(pending: Sequence[Cell], launcher: str, relaunch: bool, progress: GridProgress) -> None:
    """Hand cells over, and watch the common folder until each is done or has failed."""
    kept = ("running",) if relaunch else ("running", "handed over")
    queue = [cell for cell in pending if cell.state().get("status") not in kept]
    watched = [cell for cell in pending if cell not in queue]
    launched: dict[Cell, subprocess.Popen] = {}
    silence = _Silence()
    while queue or watched:
        if queue:
            cell = queue.pop(0)
            launched[cell] = _hand_over(cell, launcher)
            watched.append(cell)
        else:
            time.sleep(_POLL_SECONDS)
        not_begun = []
        for cell in list(watched):
            # The exit code first: a state read after the end of the launcher is the last one that it leads to.
            exit_code = launched[cell].poll() if cell in launched else None
            status = cell.state().get("status")
            reason = None
            if status == "handed over" and exit_code:
                reason = f"launcher: {_last_words(cell) or exit_code}"
            elif status == "handed over" and not cell.evaluated:
                not_begun.append(cell)
            elif status == "running":
                progress.started(cell)
                if silence.seconds(cell) >= _SILENCE_SECONDS:
                    reason = f"no sign of life for {_SILENCE_SECONDS / 60:.0f} minutes: killed, or out of time"
            if reason and cell not in launched:
                progress.begins_again(cell, reason=reason)
                watched.remove(cell)
                queue.append(cell)
                continue
            if reason:
                cell.write_state(status="failed", error=reason)
            if reason or status in ("failed", "done") or (cell.evaluated and status != "running"):
                watched.remove(cell)
                progress.finished(cell)
        progress.refresh()
        if not queue:
            progress.report(not_begun)


class _Silence:
    """How long cells have given no sign of life, by this process's own clock: those of several hosts may differ."""

    def __init__(self) -> None:
        self._beats: dict[Cell, tuple[int | None, float]] = {}

    def seconds(self, cell: Cell) -> float:
        """Time since a sign of life of a cell was seen to be new; 0 when it is looked at for the first time."""
        beat, now = cell.last_beat(), time.monotonic()
        if cell not in self._beats or self._beats[cell][0] != beat:
            self._beats[cell] = beat, now
        return now - self._beats[cell][1]


def _hand_over(cell: Cell, launcher: str) -> subprocess.Popen:
    command = ["env", f"PYTHONPATH={_environment()['PYTHONPATH']}", *_cell_command(cell)]
    replacements = {"{command}": shlex.join(command), "{name}": cell.name.replace("/", "_")}
    words = _words(launcher)
    for placeholder, value in replacements.items():
        words = [word.replace(placeholder, value) for word in words]
    cell.write_state(status="handed over")
    try:
        with (cell.path / _LAUNCHER_LOG_FILE).open("wb") as log:
            # In a session of its own, a cell goes on when this process is stopped at its terminal.
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        cell.write_state(status="failed", error=f"launcher: {error}")
        raise BundleError(f"launcher {words[0]} cannot be started: {error.strerror}.") from error
    # A queue takes one cell after the other; a launcher that stays with its cell is not waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLL_SECONDS)
    return process


def _words(launcher: str) -> list[str]:
    try:
        return shlex.split(launcher)
    except ValueError as error:
        raise BundleError(f"launcher cannot be read as a command ({error}), got {launcher!r}.") from error


def _last_words(cell: Cell) -> str | None:
    return _last_line((cell.path / _LAUNCHER_LOG_FILE).read_bytes())


def _last_line(words: bytes) -> str | None:
    lines = words.decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def _environment() -> dict[str, str]:
    """Environment in which both this bundle and what the user has on the path can be imported."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _cell_command(cell: Cell) -> list[str]:
    return [sys.executable, "-m", "scripts", "cell", "--cell_dir", os.path.abspath(cell.path)]
