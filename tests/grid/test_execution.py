# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Grids that run: real ones of seconds, ones that fail, ones that were killed, ones that a launcher takes."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from filelock import FileLock
from rich.console import Console

from scripts.errors import BundleError
from scripts.grid import execution
from scripts.grid.definition import define_grid
from scripts.grid.execution import run_cell, run_grid
from scripts.grid.grid import Grid

TINY = {"iterations": 2, "val_interval": 2, "patch_size": [32, 16, 16], "strides": [32, 16, 16], "num_classes": 2}


def tiny_grid(methods, phantom_dir, folder, **overrides):
    grid = define_grid(
        "hippocampus",
        methods,
        dataset_dir=str(phantom_dir),
        split_file=str(phantom_dir / "split.json"),
        overrides={**TINY, "class_names": ["organ"], "precision": "float32", **overrides},
    )
    grid.write(folder)
    return grid


@pytest.fixture
def quick(monkeypatch):
    """Waits of seconds instead of minutes, and an end to a grid that waits for ever."""

    def give_up(number, frame):
        raise TimeoutError("the grid did not end")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    monkeypatch.setattr(execution, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(execution, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(execution, "_SILENCE_SECONDS", 2.0)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a program in the place of Python, which runs cells, trainings and evaluations; an import takes too long."""

    python = sys.executable

    def make(code):
        path = tmp_path / "stand_in"
        path.write_text(f"#!{python} -IS\nimport json, os, pathlib, sys, time\n{code}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return make


@pytest.fixture
def queue(tmp_path):
    """Make a launcher that stands for a queue: it notes each cell, leaves a state in its folder and returns."""

    def make(code):
        path = tmp_path / "queue.py"
        path.write_text(
            "import json, pathlib, shlex, sys\n"
            f"with open({str(tmp_path / 'handed_over')!r}, 'a') as stream: stream.write(sys.argv[2] + '\\n')\n"
            f"cell = pathlib.Path(shlex.split(sys.argv[1])[-1])\n{code}\n"
        )
        return f"{sys.executable} -IS {path} {{command}} {{name}}"

    return make


def handed_over(tmp_path):
    return (tmp_path / "handed_over").read_text().split()


EVALUATED = "(cell / 'evaluation').mkdir(); (cell / 'evaluation' / 'metrics_cases.csv').touch()"


def finish(cell):
    (cell.path / "evaluation").mkdir()
    (cell.path / "evaluation" / "metrics_cases.csv").touch()
    cell.write_state(status="done", seconds=1.0)


def test_failed_cell_does_not_stop_the_others(phantom_dir, tmp_path):
    overlay = tmp_path / "method_broken.json"
    overlay.write_text(json.dumps({"val_overlap": 7}))
    grid = tiny_grid([str(overlay), "supervised_dual"], phantom_dir, tmp_path / "grid")
    failed = run_grid(grid, tmp_path / "grid", jobs=2)
    assert [cell.name for cell in failed] == ["broken/fixed_seed0"]
    broken, done = grid.cells(tmp_path / "grid")
    assert broken.state()["status"] == "failed"
    assert broken.state()["error"] == "error: val_overlap must be a number of at least 0 and below 1, got 7."
    assert done.evaluated
    assert done.state()["status"] == "done"
    assert done.state()["seconds"] > done.state()["evaluation_seconds"] > 0
    assert done.training_progress()[0] == 2
    assert (done.path / "evaluation" / "labels" / "phantom_005.nii.gz").is_file()
    # The same call again runs the failed cell only.
    before = (done.path / "model_final.pt").stat().st_mtime_ns
    assert [cell.name for cell in run_grid(grid, tmp_path / "grid")] == ["broken/fixed_seed0"]
    assert (done.path / "model_final.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(("jobs", "number"), [(1, 1), (2, 2), (6, 3)])
def test_so_many_cells_run_at_a_time_and_share_the_cores(
    jobs, number, phantom_dir, tmp_path, quick, stand_in, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(execution, "_num_cores", lambda: 6)
    log = tmp_path / "log"
    stand_in(
        f"def note(line):\n    with open({str(log)!r}, 'a') as stream:\n        stream.write(line + '\\n')\n"
        "note('start ' + os.environ['OMP_NUM_THREADS'])\ntime.sleep(0.5)\nnote('end')\n"
        "cell = pathlib.Path(sys.argv[-1])\n"
        "(cell / 'evaluation').mkdir(parents=True)\n(cell / 'evaluation' / 'metrics_cases.csv').touch()"
    )
    grid = tiny_grid(["luseg", "mcf", "cps"], phantom_dir, tmp_path / "grid")
    assert run_grid(grid, tmp_path / "grid", jobs=jobs) == []
    lines = log.read_text().split("\n")[:-1]
    assert sorted(lines) == ["end"] * 3 + [f"start {6 // number}"] * 3
    at_a_time = np.cumsum([1 if line.startswith("start") else -1 for line in lines])
    assert at_a_time.max() == number


def test_a_cell_may_write_more_than_a_pipe_holds(phantom_dir, tmp_path, quick, stand_in):
    stand_in("sys.stderr.write('word ' * 100_000 + '\\nthe reason\\n\\n')\nsys.exit(3)")
    (failed,) = run_grid(tiny_grid(["luseg"], phantom_dir, tmp_path / "grid"), tmp_path / "grid")
    assert failed.state()["error"] == "the reason"


def test_killed_grid_takes_its_runs_with_it_and_goes_on(phantom_dir, tmp_path):
    grid = tiny_grid(
        ["supervised_dual"], phantom_dir, tmp_path / "grid", iterations=14, checkpoint_interval=2, val_interval=14
    )
    (cell,) = grid.cells(tmp_path / "grid")
    code = (
        "from scripts.grid.grid import Grid; from scripts.grid.execution import run_grid; "
        f"run_grid(Grid.read({str(tmp_path / 'grid')!r}), {str(tmp_path / 'grid')!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while cell.training_progress()[0] < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cell.training_progress()[0] >= 3
    # The lock is free as soon as the cell's process has seen the end of the grid.
    with FileLock(cell.path / ".lock", timeout=30):
        reached = cell.training_progress()[0]
    time.sleep(1)
    assert cell.training_progress()[0] == reached
    assert not cell.evaluated
    assert run_grid(grid, tmp_path / "grid") == []
    assert cell.training_progress()[0] == 14
    assert "resumed at iteration" in (cell.path / "cell.log").read_text()


def test_launcher_gets_each_cell_once(phantom_dir, tmp_path):
    # It stands for a queue: it takes the command and returns at once.
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import pathlib, shlex, sys\n"
        "command = shlex.split(sys.argv[2])\n"
        "cell = pathlib.Path(command[-1])\n"
        "with open(sys.argv[1], 'a') as stream: stream.write(' '.join(sys.argv[2:]) + '\\n')\n"
        "(cell / 'evaluation').mkdir(parents=True)\n"
        "(cell / 'evaluation' / 'metrics_cases.csv').touch()\n"
    )
    grid = tiny_grid(["supervised_dual", "luseg"], phantom_dir, tmp_path / "grid")
    template = f"{sys.executable} {launcher} {tmp_path / 'log'} {{command}} {{name}}"
    assert run_grid(grid, tmp_path / "grid", launcher=template) == []
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(" luseg_fixed_seed0")
    assert "-m scripts cell --cell_dir" in lines[0]
    assert f"PYTHONPATH={ROOT}" in lines[0]
    assert run_grid(grid, tmp_path / "grid", launcher=template) == []
    assert len((tmp_path / "log").read_text().splitlines()) == 2


@pytest.mark.parametrize("relaunch", [False, True])
def test_dead_cells_are_handed_over_again_and_those_at_work_are_not(relaunch, phantom_dir, tmp_path, quick, queue):
    grid = tiny_grid(["luseg", "supervised_dual", "mcf"], phantom_dir, tmp_path / "grid")
    dead, alive, waiting = grid.cells(tmp_path / "grid")
    # As a time limit, kill -9 or the end of a local grid leaves it.
    dead.write_state(status="running", seconds=5.0)
    alive.write_state(status="running")
    waiting.write_state(status="handed over")

    def work():
        for _ in range(40):
            time.sleep(0.1)
            alive.beat()
        finish(alive)
        if not relaunch:
            finish(waiting)

    worker = threading.Thread(target=work)
    worker.start()
    output = io.StringIO()
    console = Console(file=output, width=500)
    failed = run_grid(grid, tmp_path / "grid", launcher=queue(EVALUATED), relaunch=relaunch, console=console)
    worker.join()
    assert failed == []
    again = ["luseg_fixed_seed0"]
    assert handed_over(tmp_path) == (["mcf_fixed_seed0", *again] if relaunch else again)
    assert "again   luseg/fixed_seed0: no sign of life for" in output.getvalue()
    if not relaunch:
        words = "waiting for mcf/fixed_seed0: handed over and not begun. --relaunch true hands over again"
        assert words in output.getvalue()


def test_cell_that_dies_in_the_queue_fails_and_is_handed_over_by_the_next_call(phantom_dir, tmp_path, quick, queue):
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    launcher = queue("(cell / 'cell.json').write_text(json.dumps({'status': 'running'}))")
    (failed,) = run_grid(grid, tmp_path / "grid", launcher=launcher)
    assert failed.state()["status"] == "failed"
    assert failed.state()["error"].startswith("no sign of life for")
    assert run_grid(grid, tmp_path / "grid", launcher=queue(EVALUATED)) == []
    assert len(handed_over(tmp_path)) == 2


def test_launcher_that_stays_with_its_cell(phantom_dir, tmp_path, quick, stand_in):
    # Each cell waits for the other one to begin, and fails with a reason of its own.
    stand_in(
        "cell = pathlib.Path(sys.argv[-1])\n"
        "(cell / 'cell.json').write_text(json.dumps({'status': 'running'}))\n"
        "(cell / 'begun').write_text(str(os.getsid(0)))\n"
        "deadline = time.monotonic() + 20\n"
        "while len(list(cell.parents[1].glob('*/*/begun'))) < 2 and time.monotonic() < deadline: time.sleep(0.05)\n"
        "error = 'my own reason' if time.monotonic() < deadline else 'alone'\n"
        "(cell / 'cell.json').write_text(json.dumps({'status': 'failed', 'error': error}))\n"
        "sys.exit('another reason')"
    )
    grid = tiny_grid(["luseg", "supervised_dual"], phantom_dir, tmp_path / "grid")
    failed = run_grid(grid, tmp_path / "grid", launcher="bash -c {command}")
    assert [cell.state()["error"] for cell in failed] == ["my own reason"] * 2
    assert (failed[0].path / "launcher.log").read_text() == "another reason\n"
    # Whoever stops the grid at its terminal does not stop the cells.
    assert (failed[0].path / "begun").read_text() != str(os.getsid(0))


def test_launcher_that_fails_late_before_the_cell_begins(phantom_dir, tmp_path, quick):
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    (failed,) = run_grid(grid, tmp_path / "grid", launcher='bash -c "sleep 1; echo no such host; exit 255" {command}')
    assert failed.state() == {"status": "failed", "error": "launcher: no such host"}


def test_cell_gives_signs_of_life_and_tells_how_long_its_evaluation_took(phantom_dir, tmp_path, quick, stand_in):
    stand_in("time.sleep(2)")
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    (cell,) = grid.cells(tmp_path / "grid")
    beats, over = set(), threading.Event()

    def listen():
        while not over.wait(0.05):
            if cell.state().get("status") == "running":
                beats.add(cell.last_beat())

    listener = threading.Thread(target=listen)
    listener.start()
    assert run_cell(cell.path)
    over.set()
    listener.join()
    assert len(beats) >= 5
    assert cell.state()["status"] == "done"
    evaluation, both = (cell.state()[name] for name in ("evaluation_seconds", "seconds"))
    assert evaluation >= 2
    # Rounded to a tenth, both of them.
    assert both - evaluation >= 1.85


WRAPPED = "raise RuntimeError('Failed to evaluate: \\n\"$trainer.run()\"') from error"
UNPACKING = "ValueError: not enough values to unpack (expected 3, got 2)"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (f"try: a, b, c = (1, 2)\nexcept ValueError as error: {WRAPPED}", UNPACKING),
        # What was passed over before is not what ended the run.
        (
            "try: 1 / 0\nexcept ZeroDivisionError: traceback.print_exc()\n"
            f"try: a, b, c = (1, 2)\nexcept ValueError as error: {WRAPPED}",
            UNPACKING,
        ),
        (
            "try: {}['image']\nexcept KeyError: raise ValueError('batch must have image')",
            "ValueError: batch must have image",
        ),
        (f"try: raise Exception('mine')\nexcept Exception as error: {WRAPPED}", "Exception: mine"),
        (
            "try: a, b, c = (1, 2)\nexcept ValueError:\n"
            "    text = 'Caught ValueError in DataLoader worker process 0.\\nOriginal ' + traceback.format_exc()\n"
            f"try: raise ValueError(text) from None\nexcept ValueError as error: {WRAPPED}",
            UNPACKING,
        ),
    ],
)
def test_error_in_the_code_of_a_method_is_told_and_not_what_wraps_it(
    code, told, phantom_dir, tmp_path, quick, stand_in
):
    stand_in(f"import traceback\nprint('11:00:00 INFO iteration 1/6', flush=True)\n{code}")
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    (cell,) = grid.cells(tmp_path / "grid")
    assert not run_cell(cell.path)
    assert cell.state()["error"] == told


def test_training_that_the_system_ends_says_so_instead_of_its_last_line(phantom_dir, tmp_path, quick, stand_in):
    stand_in("print('iteration 3/6 loss=0.4', flush=True)\nos.kill(os.getpid(), 9)")
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    (cell,) = grid.cells(tmp_path / "grid")
    assert not run_cell(cell.path)
    expected = "ended by SIGKILL, as where memory ran out; its last line was: iteration 3/6 loss=0.4"
    assert cell.state()["error"] == expected


def test_cells_may_lie_behind_a_link(phantom_dir, tmp_path, quick, stand_in):
    stand_in("sys.exit('error: begun')")
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "grid" / "cells").symlink_to(tmp_path / "scratch")
    (cell,) = grid.cells(tmp_path / "grid")
    assert not run_cell(cell.path)
    assert cell.state()["error"] == "error: begun"


@pytest.mark.parametrize(
    ("visible", "overrides", "expected"),
    [
        (None, {}, ["0", "0", "1"]),
        ("4,GPU-b", {}, ["4", "4", "GPU-b"]),
        (None, {"device": "cpu"}, ["none", "none", "none"]),
    ],
)
def test_cells_at_a_time_share_the_graphics_cards(
    visible, overrides, expected, phantom_dir, tmp_path, quick, stand_in, monkeypatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(execution.torch.cuda, "device_count", lambda: 2)
    log = tmp_path / "log"
    # The third cell begins when the first one ends, on its card.
    stand_in(
        f"with open({str(log)!r}, 'a') as stream:\n"
        "    stream.write(os.environ.get('CUDA_VISIBLE_DEVICES', 'none') + '\\n')\n"
        "time.sleep(1 if 'mcf' in sys.argv[-1] else 0.3)"
    )
    grid = tiny_grid(["luseg", "mcf", "cps"], phantom_dir, tmp_path / "grid", **overrides)
    run_grid(grid, tmp_path / "grid", jobs=2)
    assert sorted(log.read_text().split()) == expected


def test_cell_that_is_stopped_says_so(phantom_dir, tmp_path, quick, stand_in):
    stand_in("time.sleep(60)")
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    (cell,) = grid.cells(tmp_path / "grid")

    def stop(number, frame):
        raise SystemExit(143)

    def stop_when_it_runs():
        while cell.state().get("status") != "running":
            time.sleep(0.05)
        # While a process is being started, Python may lose what a handler of signals raises.
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGALRM)

    signal.signal(signal.SIGALRM, stop)
    threading.Thread(target=stop_when_it_runs, daemon=True).start()
    with pytest.raises(SystemExit):
        run_cell(cell.path)
    assert cell.state()["status"] == "failed"
    assert cell.state()["error"] == "stopped before its end"
    assert cell.state()["seconds"] < 30


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_training_does_not_outlive_its_killed_cell(phantom_dir, tmp_path, quick, stand_in):
    count = tmp_path / "count"
    stand_in(
        f"for number in range(600):\n    pathlib.Path({str(count)!r}).write_text(str(number))\n    time.sleep(0.1)"
    )
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    (cell,) = grid.cells(tmp_path / "grid")
    process = multiprocessing.get_context("fork").Process(target=run_cell, args=(cell.path,))
    process.start()
    while not count.is_file():
        time.sleep(0.05)
    process.kill()
    process.join()
    time.sleep(0.5)
    reached = count.read_text()
    time.sleep(1)
    assert count.read_text() == reached


def test_local_cell_that_is_killed_or_at_work_elsewhere(phantom_dir, tmp_path, quick, stand_in):
    stand_in("os.kill(os.getpid(), 9)")
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    (cell,) = run_grid(grid, tmp_path / "grid")
    assert cell.state() == {"status": "failed", "error": "the process ended with exit code -9"}
    cell.write_state(status="failed", error="that of last week", seconds=5.0)
    stand_in("sys.exit('error: a new one')")
    run_grid(grid, tmp_path / "grid")
    assert cell.state() == {"status": "failed", "error": "error: a new one", "seconds": 5.0}
    stand_in("sys.exit('error: another process is at work')")
    cell.write_state(status="running", host="elsewhere")
    output = io.StringIO()
    with FileLock(cell.path / ".lock"):
        assert run_grid(grid, tmp_path / "grid", console=Console(file=output, width=500)) == [cell]
    assert cell.state() == {"status": "running", "host": "elsewhere", "seconds": 5.0}
    assert "failed  luseg/fixed_seed0: error: another process is at work" in output.getvalue()


def test_launcher_that_refuses(phantom_dir, tmp_path):
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    refusing = f"{sys.executable} -c \"import sys; sys.exit('queue is closed')\" {{command}}"
    (failed,) = run_grid(grid, tmp_path / "grid", launcher=refusing)
    assert failed.state() == {"status": "failed", "error": "launcher: queue is closed"}
    with pytest.raises(BundleError, match=r"launcher must contain \{command\}"):
        run_grid(grid, tmp_path / "grid", launcher="sbatch")
    with pytest.raises(BundleError, match=r"launcher cannot be read as a command \(No closing quotation\)"):
        run_grid(grid, tmp_path / "grid", launcher="sbatch --wrap '{command}")
    with pytest.raises(BundleError, match=r"launcher no-such-program cannot be started"):
        run_grid(grid, tmp_path / "grid", launcher="no-such-program {command}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launcher": "sbatch"}, "launcher must contain"),
        ({"launcher": "bash -c {command}", "jobs": 2}, "jobs is for runs on this machine, got 2 with a launcher"),
        ({"relaunch": True}, "relaunch needs the launcher"),
    ],
)
def test_a_refused_call_leaves_the_grid_as_it_was(options, message, phantom_dir, tmp_path):
    tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    before = (tmp_path / "grid" / "grid.json").read_text()
    more = dataclasses.replace(Grid.read(tmp_path / "grid"), seeds=(11,))
    with pytest.raises(BundleError, match=f"^{message}"):
        run_grid(more, tmp_path / "grid", **options)
    assert (tmp_path / "grid" / "grid.json").read_text() == before


def test_cell_of_no_grid_and_cell_at_work(phantom_dir, tmp_path):
    with pytest.raises(BundleError, match="cell_dir must be GRID/cells/METHOD/SPLIT_seedN, got /tmp"):
        run_cell("/tmp")
    with pytest.raises(BundleError, match="holds no grid"):
        run_cell(tmp_path / "grid" / "cells" / "luseg" / "fixed_seed0")
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    with pytest.raises(BundleError, match="must be a cell of the grid"):
        run_cell(tmp_path / "grid" / "cells" / "luseg" / "fixed_seed7")
    (cell,) = grid.cells(tmp_path / "grid")
    cell.path.mkdir(parents=True)
    with FileLock(cell.path / ".lock"), pytest.raises(BundleError, match="another process is at work"):
        run_cell(cell.path)


def test_grid_is_read_where_it_was_written(phantom_dir, tmp_path):
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    assert Grid.read(tmp_path / "grid") == grid
    assert os.path.isabs(grid.splits["fixed"])


def test_test_files_that_are_missing_or_damaged_are_found_before_a_cell_begins(phantom_dir, tmp_path):
    data = shutil.copytree(phantom_dir, tmp_path / "data")
    grid = define_grid(
        "hippocampus",
        ["supervised_vnet"],
        dataset_dir=str(data),
        split_file=str(data / "split.json"),
        overrides={**TINY, "class_names": ["organ"]},
    )
    missing = Path(next(iter(grid.cases.values()))["label"])
    content = missing.read_bytes()
    missing.unlink()
    with pytest.raises(BundleError, match=rf"1 of the \d+ files of the test cases are not there, such as {missing}"):
        run_grid(grid, tmp_path / "grid")
    missing.write_bytes(content[:-40])
    with pytest.raises(BundleError, match=rf"{missing} cannot be read"):
        run_grid(grid, tmp_path / "grid")
    assert not (tmp_path / "grid").exists()
