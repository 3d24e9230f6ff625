# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the report finds in the folder of a grid, and what it refuses."""

from __future__ import annotations

import json
from functools import partial

import pytest
from report_grid import write_cells

from scripts.errors import BundleError
from scripts.evaluation.report.grid import read_grid
from scripts.evaluation.report.report import write_report
from scripts.evaluation.report.tables import make_tables

CELL = {("f", 0): {"x": 0.5, "y": 0.7}}


@pytest.fixture
def make_cells(tmp_path):
    return partial(write_cells, tmp_path / "grid")


def test_cells_that_are_missing_or_failed_are_told_and_left_out(make_cells):
    methods = ["good", "failed", "absent", "trained", "damaged", "another_class"]
    folder = make_cells(dict.fromkeys(methods, CELL) | {"absent": {}}, methods=methods)
    cells = folder / "cells"
    outcome = {"status": "failed", "error": "out of\nmemory", "seconds": 3}
    for name in ("good", "failed"):
        # An evaluated run is one, even if an earlier attempt at it failed.
        (cells / name / "f_seed0/cell.json").write_text(json.dumps(outcome))
    for name in ("failed", "trained"):
        (cells / name / "f_seed0/evaluation/metrics_cases.csv").unlink()
    (cells / "damaged/f_seed0/evaluation/metrics_cases.csv").write_text("case,class\nx,organ\n")
    other = cells / "another_class/f_seed0/evaluation/metrics_cases.csv"
    other.write_text(other.read_text().replace("organ", "heart"))

    grid = read_grid(folder)
    assert grid.evaluated_methods == ["good"]
    runs = make_tables(grid, "good")[-1]
    assert [row[3] for row in runs.rows] == ["evaluated", "failed", "not run", "not evaluated", "damaged", "damaged"]
    assert runs.rows[0][4:] == ["60.00", ""]
    assert runs.rows[1][4:] == ["-", "out of memory"]
    assert "must have rows and the columns" in runs.rows[4][5]
    assert "classes ['organ'], got ['heart']" in runs.rows[5][5]
    assert "1 of 6 runs evaluated" in runs.note
    page = write_report(folder).read_text(encoding="utf-8")
    assert "out of memory" in page


def test_names_are_taken_as_they_are(make_cells):
    grid = read_grid(make_cells({"a": {("f", 0): {"NA": 0.5, "007": 0.7, "null": 0.9}}}))
    assert list(grid.evaluated("a")["f", 0].case_means.index) == ["NA", "007", "null"]


def test_a_folder_without_a_grid_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"with grid\.json, got"):
        read_grid(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "JSON object of version 1"),
        ({"methods": []}, r"methods must be a list with an entry, got \[\]"),
        ({"splits": ["f"]}, r"splits must be a dict with an entry, got \['f'\]"),
        ({"class_names": None}, "class_names must be a list with an entry, got None"),
    ],
)
def test_a_broken_grid_file_is_refused(make_cells, change, message):
    folder = make_cells({"a": CELL})
    facts = json.loads((folder / "grid.json").read_text())
    (folder / "grid.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(BundleError, match=message):
        read_grid(folder)


def test_a_grid_file_that_is_no_json_is_refused(make_cells):
    folder = make_cells({"a": CELL})
    (folder / "grid.json").write_text("{")
    with pytest.raises(BundleError, match="it is damaged"):
        read_grid(folder)


def test_a_grid_without_an_evaluated_cell_is_refused(make_cells):
    folder = make_cells({"a": CELL})
    (folder / "cells/a/f_seed0/evaluation/metrics_cases.csv").unlink()
    with pytest.raises(BundleError, match=r"no evaluated cell \(of 1\)"):
        write_report(folder)
    assert not (folder / "report").exists()


def test_the_reference_must_be_an_evaluated_method(make_cells):
    folder = make_cells({"a": CELL, "b": CELL, "c": {}})
    with pytest.raises(BundleError, match=r"reference must be an evaluated method, one of \['a', 'b'\], got 'c'"):
        write_report(folder, reference="c")


@pytest.mark.parametrize(
    ("methods", "given", "reference"),
    [(["a", "dual_network"], None, "dual_network"), (["a", "b"], None, "a"), (["a", "dual_network"], "a", "a")],
)
def test_default_reference(make_cells, methods, given, reference):
    folder = make_cells(dict.fromkeys(methods, CELL))
    text = write_report(folder, reference=given).with_name("report.md").read_text(encoding="utf-8")
    assert f"- tested against: {reference}\n" in text
