# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Means and standard deviations of each method over its runs, and what its training cost."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ...weights import DamagedFileError, read_tensors
from ..case_report import MEAN_OVER_CLASSES
from ..metrics import METRIC_NAMES
from .grid import Cell, Grid

_COUNTS = ["cases", "found", "missed", "false_positive", "absent"]


def spread_is_over_runs(grid: Grid) -> bool:
    """Whether deviations are taken over runs, or over the cases of a run since no method has two of them.

    Args:
        grid: the grid of runs.

    Returns:
        True when a method has at least two evaluated runs.
    """
    return any(len(grid.evaluated(method)) > 1 for method in grid.methods)


def summarize(grid: Grid) -> pd.DataFrame:
    """Means and standard deviations of each method and class.

    The mean over the cases of each run comes first, then mean and standard deviation (``n - 1``) over the runs, as in
    the tables of the literature over folds. Where no method has two runs, the deviation is that over the cases.

    Args:
        grid: the grid of runs.

    Returns:
        A row for each evaluated method and class, and one for the mean over classes, with the columns ``method``,
        ``class``, ``runs``, ``complete`` (evaluated on all the splits and seeds that any method was), ``cases`` and the
        counts of each status (sums over the runs), and ``<metric>_mean`` and ``<metric>_sd`` (overlaps from 0 to 1).
    """
    over_runs = spread_is_over_runs(grid)
    rows = []
    for method in grid.evaluated_methods:
        cells = grid.evaluated(method)
        of_runs = pd.concat([_summary_of(cell) for cell in cells.values()])
        for name in [*grid.class_names, MEAN_OVER_CLASSES]:
            runs = of_runs[of_runs["class"] == name]
            row: dict[str, Any] = {
                "method": method,
                "class": name,
                "runs": len(cells),
                "complete": list(cells) == grid.evaluated_runs,
                **runs[_COUNTS].sum().to_dict(),
            }
            for metric in METRIC_NAMES:
                means = runs[f"{metric}_mean"]
                row[f"{metric}_mean"] = means.mean()
                row[f"{metric}_sd"] = means.std(ddof=1) if over_runs else runs[f"{metric}_sd"].iloc[0]
            rows.append(row)
    return pd.DataFrame(rows)


def costs(grid: Grid) -> pd.DataFrame:
    """What training took, for each method with a training run.

    Args:
        grid: the grid of runs.

    Returns:
        A row for each method with the columns ``method``, ``runs``, ``iterations`` and ``seconds_training`` (means over
        its runs), ``seconds_iteration`` (median, without validation) and ``parameters`` of the deployed network (NaN
        without ``model_final.pt``).
    """
    rows = []
    for method in grid.methods:
        timings = [timing for cell in grid.cells if cell.method == method if (timing := _timing(cell)) is not None]
        if timings:
            means = pd.DataFrame(timings).mean()
            rows.append({"method": method, "runs": len(timings), **means, "parameters": _parameters(grid, method)})
    names = ["method", "runs", "iterations", "seconds_training", "seconds_iteration", "parameters"]
    return pd.DataFrame(rows, columns=names)


def _summary_of(cell: Cell) -> pd.DataFrame:
    assert cell.report is not None
    return cell.report.summary()


def _timing(cell: Cell) -> dict[str, float] | None:
    history = cell.table("history.csv")
    if history is None or "seconds" not in history:
        return None
    return {
        "iterations": len(history),
        # A resumed run counts on.
        "seconds_training": float(history["seconds"].iloc[-1]),
        # The median leaves out what now and then comes between two iterations, such as a validation.
        "seconds_iteration": float(history["seconds"].diff().median()),
    }


def _parameters(grid: Grid, method: str) -> float:
    """Parameters of the deployed network, NaN where no run has left its weights."""
    for cell in grid.cells:
        path = cell.folder / "model_final.pt"
        if cell.method == method and path.is_file():
            try:
                state = read_tensors(path)
            except DamagedFileError:
                continue
            # No optimizer moves the running statistics of a normalization.
            statistics = ("running_mean", "running_var", "num_batches_tracked")
            return sum(value.numel() for name, value in state.items() if not name.endswith(statistics))
    return float("nan")
