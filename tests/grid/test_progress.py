# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a grid tells while it runs: the time left, the bars of a terminal, the lines of a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scripts.grid import progress
from scripts.grid.definition import define_grid
from scripts.grid.progress import GridProgress


@pytest.fixture
def grid():
    return define_grid("hippocampus", ["luseg", "mcf"], seeds=[0, 1], overrides={"iterations": 100})


def train(cell, iterations, seconds):
    cell.path.mkdir(parents=True, exist_ok=True)
    (cell.path / "history.csv").write_text(f"iteration,seconds,loss\n{iterations},{seconds},0.5\n")


def evaluate(cell, seconds):
    (cell.path / "evaluation").mkdir(parents=True)
    (cell.path / "evaluation" / "metrics_cases.csv").touch()
    cell.write_state(status="done", seconds=60.0, evaluation_seconds=seconds)


def shown(grid, cells, **kwargs):
    output = io.StringIO()
    return GridProgress(grid, cells, console=Console(file=output, width=400, **kwargs)), output


def test_time_left_comes_from_each_cells_own_pace(grid, tmp_path):
    luseg, mcf, other_luseg, other_mcf = cells = list(grid.cells(tmp_path))
    overall, _ = shown(grid, cells)
    assert overall.seconds_left() is None
    overall.started(luseg)
    train(luseg, 10, 20.0)
    overall.refresh()
    # One method alone is known: 2 s an iteration for all.
    assert overall.seconds_left() == pytest.approx(2 * 390)
    overall.started(mcf)
    train(mcf, 20, 120.0)
    overall.refresh()
    # 2 s and 6 s an iteration, two cells at a time.
    assert overall.seconds_left() == pytest.approx((2 * 90 + 6 * 80 + 2 * 100 + 6 * 100) / 2)
    train(luseg, 100, 200.0)
    evaluate(luseg, seconds=30.0)
    overall.finished(luseg)
    # The evaluation of the one that is done counts for the others, one cell at a time from now on.
    assert overall.seconds_left() == pytest.approx(6 * 80 + 2 * 100 + 6 * 100 + 3 * 30)
    overall.started(other_luseg)
    overall.started(other_mcf)
    # The last cell cannot be shared out.
    assert overall.seconds_left() == pytest.approx(6 * 100 + 30)
    for cell in (mcf, other_luseg, other_mcf):
        overall.finished(cell)
    assert overall.seconds_left() == 0


def test_rest_of_a_failed_cell_leaves_the_total(grid, tmp_path):
    luseg, mcf, *others = cells = list(grid.cells(tmp_path))
    overall, output = shown(grid, cells, force_terminal=True)
    with overall:
        for cell in cells:
            overall.started(cell)
        train(mcf, 20, 120.0)
        mcf.write_state(status="failed", error="broken")
        for cell in (luseg, *others):
            evaluate(cell, seconds=1.0)
        for cell in cells:
            overall.finished(cell)
        overall.refresh()
    # The last picture of the bars, between the codes that move the cursor.
    last = [line for line in output.getvalue().splitlines() if "all cells" in line][-1]
    assert "320/320" in last
    assert "0:00:00 left" in last
    assert "failed  mcf/fixed_seed0: broken" in output.getvalue()


def test_line_of_a_log(grid, tmp_path, monkeypatch):
    luseg, mcf, *_ = cells = list(grid.cells(tmp_path))
    overall, output = shown(grid, cells)
    with overall:
        overall.started(luseg)
        overall.report()
        overall.report([mcf])
        # The second one comes only after some minutes.
        (first,) = output.getvalue().splitlines()
        assert first.endswith("0 of 4 done, 0 failed, time left not known yet; running: luseg/fixed_seed0 0/100")
        train(luseg, 10, 20.0)
        overall.refresh()
        monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
        overall._next_line = 0.0
        overall.report([mcf])
    _, second, third = output.getvalue().splitlines()
    assert second.endswith("0 of 4 done, 0 failed, 0:13:00 left; running: luseg/fixed_seed0 10/100")
    assert third.startswith("waiting for mcf/fixed_seed0: handed over and not begun. --relaunch true")


def test_cell_that_begins_again_runs_no_more(grid, tmp_path):
    luseg, mcf, *_ = cells = list(grid.cells(tmp_path))
    overall, output = shown(grid, cells)
    with overall:
        overall.started(luseg)
        overall.started(mcf)
        overall.begins_again(luseg, reason="no sign of life")
        overall.report()
    again, line = output.getvalue().splitlines()
    assert again == "again   luseg/fixed_seed0: no sign of life"
    assert line.endswith("running: mcf/fixed_seed0 0/100")


def test_terminal_gets_bars_and_only_the_line_of_what_is_waited_for(grid, tmp_path):
    luseg, mcf, *_ = cells = list(grid.cells(tmp_path))
    overall, output = shown(grid, cells, force_terminal=True)
    with overall:
        overall.started(luseg)
        overall.report([mcf])
        overall.refresh()
    assert "waiting for mcf/fixed_seed0" in output.getvalue()
    assert "running:" not in output.getvalue()
    assert "luseg/fixed_seed0" in output.getvalue()
