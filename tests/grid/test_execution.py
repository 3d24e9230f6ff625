# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Grids that run: real ones of seconds, ones that fail, ones that were killed, ones that a launcher takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from filelock import FileLock

from scripts.errors import BundleError
from scripts.grid.definition import Grid, define_grid
from scripts.grid.execution import run_cell, run_grid

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
    assert done.state()["seconds"] > 0
    assert done.iterations_done() == 2
    assert (done.path / "evaluation" / "labels" / "phantom_005.nii.gz").is_file()
    # The same call again runs the failed cell only.
    before = (done.path / "model_final.pt").stat().st_mtime_ns
    assert [cell.name for cell in run_grid(grid, tmp_path / "grid")] == ["broken/fixed_seed0"]
    assert (done.path / "model_final.pt").stat().st_mtime_ns == before


def test_killed_grid_takes_its_runs_with_it_and_goes_on(phantom_dir, tmp_path):
    grid = tiny_grid(["supervised_dual"], phantom_dir, tmp_path / "grid", iterations=14, checkpoint_interval=2)
    (cell,) = grid.cells(tmp_path / "grid")
    code = (
        "from scripts.grid.definition import Grid; from scripts.grid.execution import run_grid; "
        f"run_grid(Grid.read({str(tmp_path / 'grid')!r}), {str(tmp_path / 'grid')!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while cell.iterations_done() < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cell.iterations_done() >= 3
    # The lock is free as soon as the cell's process has seen the end of the grid.
    with FileLock(cell.path / ".lock", timeout=30):
        reached = cell.iterations_done()
    time.sleep(1)
    assert cell.iterations_done() == reached
    assert not cell.evaluated
    assert run_grid(grid, tmp_path / "grid") == []
    assert cell.iterations_done() == 14
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


def test_launcher_that_refuses(phantom_dir, tmp_path):
    grid = tiny_grid(["luseg"], phantom_dir, tmp_path / "grid")
    refusing = f"{sys.executable} -c \"import sys; sys.exit('queue is closed')\" {{command}}"
    (failed,) = run_grid(grid, tmp_path / "grid", launcher=refusing)
    assert failed.state() == {"status": "failed", "error": "launcher: queue is closed"}
    with pytest.raises(BundleError, match=r"launcher must contain \{command\}"):
        run_grid(grid, tmp_path / "grid", launcher="sbatch")
    with pytest.raises(BundleError, match=r"launcher no-such-program cannot be started"):
        run_grid(grid, tmp_path / "grid", launcher="no-such-program {command}")


def test_cell_of_no_grid_and_cell_at_work(phantom_dir, tmp_path):
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
