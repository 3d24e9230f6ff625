# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Make the report on a grid of runs: one page, its tables and its pictures."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from pathlib import Path

import pandas as pd

from ...errors import BundleError
from ...files import write_text
from ..metrics import METRIC_NAMES
from ..wording import plural
from .documents import latex, markdown
from .figures import boxes_picture, curves_pictures
from .gallery import gallery
from .grid import GridResults, read_grid
from .page import page
from .summary import SETTINGS_KEYS, settings_by_method
from .tables import Table, make_tables

_LOGGER = logging.getLogger("scripts.evaluation")
_TRAINING_TABLES = ("history.csv", "validation.csv")
#: What an earlier report may have written and this one not; other files are the user's.
_OF_A_REPORT = re.compile(
    rf"table_(metrics|(class|terms)_\d+|test_({'|'.join(METRIC_NAMES)})|cost|settings|runs)\.csv"
    r"|figure_(dice|hd95_voxel|validation|loss|case_(best|median|worst))\.png"
)
_DEFAULT_REFERENCE = "dual_network"


def write_report(output_dir: str | Path, *, reference: str | None = None) -> Path:
    """Write the report on a grid of runs into its folder ``report/``.

    The files are ``report.html`` (all in one file), ``report.md``, ``report.tex`` (the tables with booktabs), one
    ``table_*.csv`` a table, ``tables.csv`` (all of them, a row a number) and ``figure_*.png``. Those of an earlier
    report are replaced or removed; the same grid makes the same report.

    Args:
        output_dir: folder of the grid, with ``grid.json`` and ``cells/``.
        reference: the method that the others are tested against; by default, and with a remark in place of a method
            that is not evaluated yet, ``dual_network``, or the first one that was evaluated and is no upper bound.

    Returns:
        Path of ``report.html``.

    Raises:
        BundleError: when there is no grid, no evaluated cell, or the reference is no method of the grid.
    """
    grid = read_grid(output_dir)
    reference, doubts = _reference(grid, reference)
    doubts += [*_different_splits(grid), *_different_conditions(grid), *_different_settings(grid)]
    for doubt in doubts:
        _LOGGER.warning(doubt)
    folder = grid.folder / "report"
    tables = make_tables(grid, reference)
    texts = {f"{table.name}.csv": table.numbers.to_csv(index=False) for table in tables}
    texts["tables.csv"] = _long_form(tables).to_csv(index=False)

    cases, remarks = gallery(grid, reference, folder)
    curves = curves_pictures(grid, reference, folder)
    if not curves:
        remarks.append("Curves are missing: no run has left its history.csv or validation.csv.")
    for cell in grid.cells:
        remarks += [f"Not in the curves: {error}" for name in _TRAINING_TABLES if (error := cell.table_error(name))]
    boxes = [
        boxes_picture(grid, reference, metric, folder / f"figure_{metric}.png") for metric in ("dice", "hd95_voxel")
    ]
    pictures = [*boxes, *cases, *curves]

    facts = [*_facts(grid, reference), *(("remark", doubt) for doubt in doubts)]
    texts["report.tex"] = latex(tables)
    title = f"Methods on {grid.facts.get('data', 'a data set')}"
    texts["report.md"] = markdown(title, facts, tables, pictures, remarks)
    texts["report.html"] = page(title, facts, tables, pictures, remarks)
    for name, text in texts.items():
        write_text(folder / name, text)
    written = {*texts, *(picture.path.name for picture in pictures)}
    for path in folder.iterdir():
        # What an earlier report showed would pass for a part of this one.
        if path.name not in written and _OF_A_REPORT.fullmatch(path.name):
            path.unlink()
    return folder / "report.html"


def _reference(grid: GridResults, name: str | None) -> tuple[str, list[str]]:
    """The reference method, and why it is not the one that was asked for."""
    methods = grid.competing_methods or grid.evaluated_methods
    default = _DEFAULT_REFERENCE if _DEFAULT_REFERENCE in methods else methods[0]
    if name is None:
        return default, []
    if name not in grid.methods:
        raise BundleError(f"reference must be a method of the grid, one of {grid.methods}, got {name!r}.")
    if name not in grid.evaluated_methods:
        return default, [f"The reference {name} has no evaluated run yet: {default} takes its place."]
    return name, []


def _different_splits(grid: GridResults) -> list[str]:
    """What to say of splits whose file had other cases in some of the runs."""
    methods: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in grid.cells:
        trained, measured = ((facts.get("split") or {}).get("cases_hash") for facts in (cell.facts, cell.measured_with))
        run = f"{cell.method} seed {cell.seed}"
        if cell.status == "evaluated" and trained is not None:
            methods[cell.split][trained].append(run)
        if cell.status == "evaluated" and measured not in (None, trained):
            methods[cell.split][measured].append(f"the evaluation of {run}")
    return [
        f"The lists of cases of the split {split} (cases_hash of run.json) are not the same in all runs: "
        + "; ".join(f"{digest} in {', '.join(runs)}" for digest, runs in found.items())
        for split, found in methods.items()
        if len(found) > 1
    ]


def _different_conditions(grid: GridResults) -> list[str]:
    """What to say of runs that were not all trained in one precision, as on other machines, or by one commit."""
    methods: dict[str, dict[str, list[str]]] = {"precision": defaultdict(list), "commit": defaultdict(list)}
    for cell in grid.cells:
        # A run may have been resumed by another version.
        commits = [facts.get("commit") for facts in (cell.facts, *cell.facts["resumed"])]
        found = {"precision": [(cell.facts.get("settings") or {}).get("precision")], "commit": commits}
        for name, values in found.items():
            for value in dict.fromkeys(values):
                if cell.status == "evaluated" and value is not None:
                    methods[name][value].append(f"{cell.method} {cell.split} seed {cell.seed}")
    return [
        f"Not all runs were trained in one {name}, which alone can change a result: "
        + "; ".join(f"{value} in {', '.join(of_value)}" for value, of_value in runs.items())
        for name, runs in methods.items()
        if len(runs) > 1
    ]


def _different_settings(grid: GridResults) -> list[str]:
    """What to say of methods whose runs, which make up one row, were not trained with the same settings."""
    doubts = []
    for method in grid.methods:
        values: dict[tuple[str, str], set[str]] = defaultdict(set)
        for cell in grid.evaluated(method).values():
            settings = cell.facts.get("settings") or {}
            # Of the cases of different splits only the number that is that of the labels has to be the same.
            labeled = str(settings.get("cases", "")).partition(",")[0]
            begun_with = {"initial_weights": cell.facts.get("initial_weights")}
            measured = cell.measured_with.get("settings") or {}
            of_evaluation = {f"{name} of the evaluation": value for name, value in measured.items()}
            everywhere = {**settings, "cases": labeled, **begun_with, **of_evaluation}
            # An older version did not write down all of these.
            volumes = {f"volumes#{name}": value for name, value in (cell.facts.get("volumes") or {}).items()}
            written = {name: cell.facts[name] for name in ("initial_weights_sha256",) if name in cell.facts}
            of_split = {"cases": settings.get("cases"), **volumes, **written}
            for split, facts in (("", everywhere), (cell.split, of_split)):
                for name, value in facts.items():
                    # true of a command line is a text in some of the files.
                    values[split, name].add(str(value).lower())
        # Precisions are told on their own.
        names = dict.fromkeys(name for (_, name), found in values.items() if len(found) > 1)
        different = [name for name in names if name not in ("seed", "precision")]
        if different:
            doubts.append(f"The runs of {method} are averaged, but differ in their settings: {', '.join(different)}.")
    return doubts


def _long_form(tables: list[Table]) -> pd.DataFrame:
    parts = [
        table.numbers.melt(id_vars=table.keys, var_name="quantity", value_name="value").assign(table=table.name)
        for table in tables
    ]
    keys = list(dict.fromkeys(key for table in tables for key in table.keys))
    return pd.concat([part.astype(object) for part in parts])[["table", *keys, "quantity", "value"]]


def _facts(grid: GridResults, reference: str) -> list[tuple[str, str]]:
    """What was compared, and on what: also the settings that all methods share."""
    evaluated = [cell for method in grid.methods for cell in grid.evaluated(method).values()]
    cases = {case for cell in evaluated for case in cell.case_means.index}
    overrides = grid.facts.get("overrides") or {}
    facts = [
        ("data", str(grid.facts.get("data", ""))),
        ("recipe", str(grid.facts.get("recipe", ""))),
        ("overrides", ", ".join(f"{name} {value}" for name, value in overrides.items())),
        ("methods", f"{len(grid.evaluated_methods)} of {len(grid.methods)} evaluated"),
        ("upper bounds", ", ".join(method for method in grid.upper_bounds if method in grid.evaluated_methods)),
        ("splits", ", ".join(f"{name} ({Path(path).name})" for name, path in grid.facts["splits"].items())),
        ("seeds", ", ".join(map(str, grid.facts["seeds"]))),
        ("test", f"{len(cases)} {plural('case', len(cases))}, {len(evaluated)} of {len(grid.cells)} runs evaluated"),
        ("tested against", reference),
    ]
    for key in SETTINGS_KEYS:
        settings = settings_by_method(grid, key)
        shared = settings.loc[:, settings.nunique() == 1]
        facts.append((key, ", ".join(f"{name} {values.iloc[0]}" for name, values in shared.items())))
    return [(name, value) for name, value in facts if value]
