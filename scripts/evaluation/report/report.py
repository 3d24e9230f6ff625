# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Make the report on a grid of runs: one page, its tables and its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import BundleError
from ..case_report import plural, write_text
from .documents import latex, markdown
from .figures import boxes_picture, curves_picture
from .gallery import gallery
from .grid import Grid, read_grid
from .page import page
from .tables import Table, make_tables

_DEFAULT_REFERENCE = "dual_network"


def write_report(output_dir: str | Path, *, reference: str | None = None) -> Path:
    """Write the report on a grid of runs into its folder ``report/``.

    The files are ``report.html`` (all in one file), ``report.md``, ``report.tex`` (the tables with booktabs), one
    ``table_*.csv`` a table, ``tables.csv`` (all of them, a row a number) and ``figure_*.png``. Those of an earlier
    report are replaced or removed; the same grid makes the same report.

    Args:
        output_dir: folder of the grid, with ``grid.json`` and ``cells/``.
        reference: the method that the others are tested against; by default ``dual_network``, or the first one
            where that was not evaluated.

    Returns:
        Path of ``report.html``.

    Raises:
        BundleError: when there is no grid, no evaluated cell, or the reference is no evaluated method.
    """
    grid = read_grid(output_dir)
    reference = _reference(grid, reference)
    folder = grid.folder / "report"
    tables = make_tables(grid, reference)
    texts = {f"{table.name}.csv": table.numbers.to_csv(index=False) for table in tables}
    texts["tables.csv"] = _long_form(tables).to_csv(index=False)

    cases, remarks = gallery(grid, reference, folder)
    curves = curves_picture(grid, reference, folder / "figure_curves.png")
    if curves is None:
        remarks.append("Curves are missing: no run has left its history.csv or validation.csv.")
    boxes = [
        boxes_picture(grid, reference, metric, folder / f"figure_{metric}.png") for metric in ("dice", "hd95_voxel")
    ]
    pictures = [*boxes, *cases, *([curves] if curves else [])]

    facts = _facts(grid, reference)
    texts["report.tex"] = latex(tables)
    title = f"Methods on {grid.facts.get('data', 'a data set')}"
    texts["report.md"] = markdown(title, facts, tables, pictures, remarks)
    texts["report.html"] = page(title, facts, tables, pictures, remarks)
    for name, text in texts.items():
        write_text(folder / name, text)
    written = {*texts, *(picture.path.name for picture in pictures)}
    for pattern in ("table_*.csv", "figure_*.png"):
        for path in folder.glob(pattern):
            # What an earlier report showed would pass for a part of this one.
            if path.name not in written:
                path.unlink()
    return folder / "report.html"


def _reference(grid: Grid, name: str | None) -> str:
    if name is None:
        return _DEFAULT_REFERENCE if _DEFAULT_REFERENCE in grid.evaluated_methods else grid.evaluated_methods[0]
    if name not in grid.evaluated_methods:
        raise BundleError(f"reference must be an evaluated method, one of {grid.evaluated_methods}, got {name!r}.")
    return name


def _long_form(tables: list[Table]) -> pd.DataFrame:
    parts = [
        table.numbers.melt(id_vars=table.keys, var_name="quantity", value_name="value").assign(table=table.name)
        for table in tables
    ]
    keys = list(dict.fromkeys(key for table in tables for key in table.keys))
    return pd.concat([part.astype(object) for part in parts])[["table", *keys, "quantity", "value"]]


def _facts(grid: Grid, reference: str) -> list[tuple[str, str]]:
    """What was compared, and on what: also the settings that all trainings share, and the names of the others."""
    evaluated = [cell for method in grid.methods for cell in grid.evaluated(method).values()]
    cases = {case for cell in evaluated for case in cell.case_means.index}
    overrides = grid.facts.get("overrides") or {}
    facts = [
        ("data", str(grid.facts.get("data", ""))),
        ("recipe", str(grid.facts.get("recipe", ""))),
        ("overrides", ", ".join(f"{name} {value}" for name, value in overrides.items())),
        ("methods", f"{len(grid.evaluated_methods)} of {len(grid.methods)} evaluated"),
        ("splits", ", ".join(f"{name} ({Path(path).name})" for name, path in grid.facts["splits"].items())),
        ("seeds", ", ".join(map(str, grid.facts["seeds"]))),
        ("test", f"{len(cases)} {plural('case', len(cases))}, {len(evaluated)} of {len(grid.cells)} runs evaluated"),
        ("tested against", reference),
    ]
    for heading, key in (("settings", "settings"), ("versions", "versions")):
        shared, different = _shared([cell.facts.get(key) or {} for cell in evaluated])
        if shared:
            facts.append((heading, ", ".join(f"{name} {value}" for name, value in shared.items())))
        if different:
            facts.append((f"{heading} that differ between runs", ", ".join(different)))
    return [(name, value) for name, value in facts if value]


def _shared(groups: list[Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Values that are the same in all groups, and the names of those that are not."""
    names = list(dict.fromkeys(name for group in groups for name in group))
    values = {name: {json.dumps(group.get(name)) for group in groups} for name in names}
    shared = {name: next(iter(found)).strip('" ') for name, found in values.items() if len(found) == 1}
    return shared, [name for name in names if name not in shared]
