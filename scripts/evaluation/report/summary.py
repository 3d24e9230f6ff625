# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Means and standard deviations of each method over its runs, what its training cost, and by which settings it ran."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, Literal

import pandas as pd
import torch

from ...weights import DamagedFileError, read_tensors
from ..case_report import MEAN_OVER_CLASSES
from ..metrics import METRIC_NAMES
from .grid import CellResult, GridResults

SettingsKey = Literal["settings", "versions"]
SETTINGS_KEYS: tuple[SettingsKey, ...] = ("settings", "versions")
_BESIDE_SETTINGS = ("initial_weights", "device", "commit")
_COUNTS = ["cases", "found", "missed", "false_positive", "absent"]


def spread_is_over_runs(grid: GridResults) -> bool:
    """Whether deviations are taken over runs, or over the cases of a run since no method has two of them.

    Args:
        grid: the grid of runs.

    Returns:
        True when a method has at least two evaluated runs.
    """
    return any(len(grid.evaluated(method)) > 1 for method in grid.methods)


def summarize(grid: GridResults) -> pd.DataFrame:
    """Means and standard deviations of each method and class.

    The mean over the cases of each run comes first, then mean and standard deviation (``n - 1``) over the runs, as in
    the tables of the literature over folds. Where no method has two runs, the deviation is that over the cases.

    Args:
        grid: the grid of runs.

    Returns:
        A row for each evaluated method and class, and one for the mean over classes, with the columns ``method``,
        ``class``, ``upper_bound``, ``labeled`` and ``unlabeled`` (training cases, mean over the runs; NaN where no run
        tells them), ``runs``, ``complete`` (see :attr:`GridResults.complete_methods`), ``cases`` and the counts of each
        status (sums over the runs), and ``<metric>_mean`` and ``<metric>_sd`` (overlaps from 0 to 1).
    """
    over_runs = spread_is_over_runs(grid)
    rows = []
    for method in grid.evaluated_methods:
        cells = grid.evaluated(method)
        of_runs = pd.concat([_summary_of(cell) for cell in cells.values()])
        counts = [cell.training_cases for cell in cells.values() if cell.training_cases is not None]
        labeled, unlabeled = pd.DataFrame(counts, columns=["labeled", "unlabeled"]).mean()
        for name in [*grid.class_names, MEAN_OVER_CLASSES]:
            runs = of_runs[of_runs["class"] == name]
            row: dict[str, Any] = {
                "method": method,
                "class": name,
                "upper_bound": method in grid.upper_bounds,
                "labeled": labeled,
                "unlabeled": unlabeled,
                "runs": len(cells),
                "complete": method in grid.complete_methods,
                **runs[_COUNTS].sum().to_dict(),
            }
            for metric in METRIC_NAMES:
                means = runs[f"{metric}_mean"]
                row[f"{metric}_mean"] = means.mean()
                row[f"{metric}_sd"] = means.std(ddof=1) if over_runs else runs[f"{metric}_sd"].iloc[0]
            rows.append(row)
    return pd.DataFrame(rows)


def costs(grid: GridResults) -> pd.DataFrame:
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


def settings_by_method(grid: GridResults, key: SettingsKey) -> pd.DataFrame:
    """What ``run.json`` tells of the evaluated runs of each method.

    Args:
        grid: the grid of runs.
        key: which part of ``run.json``; to the settings belong initial weights, device and commit, which stand beside
            them.

    Returns:
        A row for each evaluated method, which is the index, and a column for each name: the value, or those of several
        runs joined by semicolons; "-" where a run does not tell it.
    """
    table = {}
    for method in grid.evaluated_methods:
        runs = [_settings_of(cell, key) for cell in grid.evaluated(method).values()]
        table[method] = {
            name: "; ".join(dict.fromkeys(run.get(name, "-") for run in runs)) for run in runs for name in run
        }
    methods = pd.Index(list(table), name="method")
    return pd.DataFrame(list(table.values()), index=methods).fillna("-")


def terms_by_method(grid: GridResults) -> list[tuple[str, pd.DataFrame]]:
    """Which terms of its loss each method has, where some methods of one class and network leave terms out.

    Args:
        grid: the grid of runs.

    Returns:
        The name of each such class, and a table with a row for each evaluated method, which is the index, and a column
        for each term that some of them have and others have not: whether ``history.csv`` of a run tells of it.
    """
    terms: dict[tuple[str, str], dict[str, dict[str, bool]]] = {}
    for method in grid.evaluated_methods:
        cell = next(iter(grid.evaluated(method).values()))
        settings = cell.facts.get("settings") or {}
        history = cell.table("history.csv")
        if "method" in settings and history is not None:
            # Class(option=value, ...)
            key = str(settings["method"]).partition("(")[0], str(settings.get("network"))
            names = [column.removeprefix("loss_") for column in history if column.startswith("loss_")]
            terms.setdefault(key, {})[method] = dict.fromkeys(names, True)
    tables = []
    for (method_class, _), of_methods in terms.items():
        table = pd.DataFrame.from_dict(of_methods, orient="index").notna().rename_axis("method")
        table = table.loc[:, table.nunique() > 1]
        if not table.empty:
            tables.append((method_class, table))
    return tables


def _settings_of(cell: CellResult, key: SettingsKey) -> dict[str, str]:
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    # A run may have been resumed by another version.
    for facts in (cell.facts, *cell.facts["resumed"]):
        values = dict(facts.get(key) or {})
        if key == "settings":
            values.update({name: facts[name] for name in _BESIDE_SETTINGS if name in facts})
        for name, value in values.items():
            # What run.json calls the method is the object that the key method_def makes.
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            texts["method_def" if name == "method" else name][text] = None
    return {name: "; ".join(of_name) for name, of_name in texts.items()}


def _summary_of(cell: CellResult) -> pd.DataFrame:
    assert cell.report is not None
    return cell.report.summary()


def _timing(cell: CellResult) -> dict[str, float] | None:
    history = cell.table("history.csv")
    if history is None or "seconds" not in history:
        return None
    # A process killed while writing leaves half a line.
    history = history.dropna(subset="seconds")
    if history.empty:
        return None
    return {
        "iterations": len(history),
        # A resumed run counts on.
        "seconds_training": float(history["seconds"].iloc[-1]),
        # The median leaves out what now and then comes between two iterations, such as a validation.
        "seconds_iteration": float(history["seconds"].diff().median()),
    }


def _parameters(grid: GridResults, method: str) -> float:
    """Parameters of the deployed network, NaN where no run has left its weights."""
    for cell in grid.cells:
        path = cell.folder / "model_final.pt"
        if cell.method == method and path.is_file():
            try:
                state = read_tensors(path)
            except (DamagedFileError, OSError):
                continue
            if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
                continue
            # No optimizer moves the running statistics of a normalization.
            statistics = ("running_mean", "running_var", "num_batches_tracked")
            return sum(value.numel() for name, value in state.items() if not name.endswith(statistics))
    return float("nan")
