# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the report finds in the folder of a grid, and what it refuses."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from conftest import ROOT
from report_grid import change_facts, write_cells

from scripts.errors import BundleError
from scripts.evaluation.report.grid import _ORDER, read_grid
from scripts.evaluation.report.report import _reference, write_report
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
        ({"methods": []}, r"methods must be a list with an entry, each a str, got \[\]"),
        ({"splits": ["f"]}, r"splits must be a dict with an entry, each a str, got \['f'\]"),
        ({"splits": {"f": 1}}, "splits must be a dict with an entry, each a str, got {'f': 1}"),
        ({"seeds": ["0"]}, r"seeds must be a list with an entry, each a int, got \['0'\]"),
        ({"class_names": None}, "class_names must be a list with an entry, each a str, got None"),
    ],
)
def test_a_broken_grid_file_is_refused(make_cells, change, message):
    folder = make_cells({"a": CELL})
    facts = json.loads((folder / "grid.json").read_text())
    (folder / "grid.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(BundleError, match=message):
        read_grid(folder)


def test_what_a_run_tells_in_another_form_is_passed_over(make_cells):
    folder = make_cells({"a": CELL})
    facts = json.loads((folder / "grid.json").read_text())
    (folder / "grid.json").write_text(json.dumps({**facts, "overrides": ["a"], "cases": 3}))
    broken = {"settings": "none", "versions": [1], "split": "f", "resumed": [{"settings": 3}, "yes"]}
    (folder / "cells/a/f_seed0/run.json").write_text(json.dumps(broken))
    torch.save([1, 2], folder / "cells/a/f_seed0/model_final.pt")
    write_report(folder)
    assert (folder / "report/report.md").is_file()


def test_a_grid_file_that_is_no_json_is_refused(make_cells):
    folder = make_cells({"a": CELL})
    (folder / "grid.json").write_text("{")
    with pytest.raises(BundleError, match="it is damaged"):
        read_grid(folder)


def test_a_grid_without_an_evaluated_cell_is_refused(make_cells):
    folder = make_cells({"a": CELL})
    metrics = folder / "cells/a/f_seed0/evaluation/metrics_cases.csv"
    metrics.write_text("case\n")
    with pytest.raises(BundleError, match=r"no evaluated cell \(1 damaged\).*; a, f, seed 0: metrics_cases.csv: "):
        write_report(folder)
    metrics.unlink()
    with pytest.raises(BundleError, match=r"no evaluated cell \(1 not evaluated\), .* yet\.$"):
        write_report(folder)
    assert not (folder / "report").exists()


def test_a_reference_without_a_run_costs_a_remark_and_an_unknown_one_the_report(make_cells, caplog):
    folder = make_cells({"a": CELL, "b": CELL, "c": {}})
    remark = "The reference c has no evaluated run yet: a takes its place."
    text = write_report(folder, reference="c").with_name("report.md").read_text(encoding="utf-8")
    assert "- tested against: a\n" in text
    assert f"- remark: {remark}\n" in text
    assert caplog.messages == [remark]
    with pytest.raises(BundleError, match=r"reference must be a method of the grid, one of \['a', 'b', 'c'\], got 'd'"):
        write_report(folder, reference="d")


@pytest.mark.parametrize(
    ("methods", "given", "reference"),
    [
        (["a", "dual_network"], None, "dual_network"),
        (["b", "a"], None, "b"),
        (["a", "dual_network"], "a", "a"),
        # An upper bound is the reference on request only.
        (["top", "a"], None, "a"),
        (["top", "a"], "top", "top"),
    ],
)
def test_default_reference(make_cells, methods, given, reference):
    folder = make_cells(dict.fromkeys(methods, CELL))
    for method in methods:
        change_facts(folder, method, settings={"cases": f"{9 if method == 'top' else 4} labeled, 0 unlabeled, abc"})
    assert _reference(read_grid(folder), given) == (reference, [])


def test_methods_stand_in_the_order_of_the_tables_and_upper_bounds_last(make_cells):
    methods = ["mine", "upper_bound_vnet", "dual_network", "all_labels", "mcf", "yours", "dtc", "supervised_vnet"]
    folder = make_cells(dict.fromkeys(methods, CELL))
    for method in methods:
        cases = "16 labeled, 132 unlabeled, abc"
        if method in ("upper_bound_vnet", "all_labels"):
            cases = "148 labeled, 0 unlabeled, def"
        change_facts(folder, method, settings={"cases": cases})
    # Without any label nothing is learned from labels: the others do not become upper bounds by it.
    change_facts(folder, "yours", settings={"cases": "0 labeled, 148 unlabeled, abc"})
    grid = read_grid(folder)
    assert grid.methods[:6] == ["supervised_vnet", "dtc", "mcf", "dual_network", "mine", "yours"]
    assert grid.methods[6:] == grid.upper_bounds == ["upper_bound_vnet", "all_labels"]
    assert [cell.method for cell in grid.cells] == grid.methods
    assert grid.competing_methods == grid.methods[:6]


def test_unlabeled_cases_from_elsewhere_make_no_competitor_of_an_upper_bound(make_cells):
    folder = make_cells(dict.fromkeys("abc", CELL))
    # Of the 148 cases of the data set all have a label, of the 868 of unlabeled_dir none.
    for method, cases in (("a", "16 labeled, 1000 unlabeled, x"), ("b", "17 labeled, 1000 unlabeled, y")):
        change_facts(folder, method, settings={"cases": cases})
    change_facts(folder, "c", settings={"cases": "148 labeled, 1000 unlabeled, z", "unlabeled_batch_size": 0})
    assert read_grid(folder).upper_bounds == []
    configuration = folder / "cells" / "c" / "f_seed0" / "run_config.json"
    configuration.write_text(json.dumps({"cases": {"all_labeled": True}}))
    assert read_grid(folder).upper_bounds == ["c"]


def test_a_missing_labeled_case_makes_no_upper_bound(make_cells):
    folder = make_cells(dict.fromkeys("abc", CELL))
    for method, cases in (("a", "16 labeled, 132 unlabeled, x"), ("b", "15 labeled, 132 unlabeled, y")):
        change_facts(folder, method, settings={"cases": cases})
    change_facts(folder, "c", settings={"cases": "148 labeled, 0 unlabeled, z"})
    assert read_grid(folder).upper_bounds == ["c"]


def test_cases_that_no_crop_was_drawn_of_are_not_counted(make_cells):
    folder = make_cells(dict.fromkeys("ab", CELL))
    for method, size in (("a", 0), ("b", 2)):
        change_facts(folder, method, settings={"cases": "16 labeled, 132 unlabeled, x", "unlabeled_batch_size": size})
    assert [cell.training_cases for cell in read_grid(folder).cells] == [(16, 0), (16, 132)]


def test_the_order_names_the_methods_of_the_bundle():
    overlays = {path.stem.removeprefix("method_") for path in (ROOT / "configs").glob("method_*.json")}
    assert set(_ORDER) == {"dual_network", *overlays}


def test_other_lists_of_cases_in_one_split_are_remarked(make_cells):
    folder = make_cells(dict.fromkeys("abc", CELL))
    for method, digest in (("a", "123"), ("b", "456"), ("c", "123")):
        change_facts(folder, method, split={"cases_hash": digest})
    text = write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    assert "split f (cases_hash of run.json) are not the same in all runs: 123 in a seed 0, c seed 0; 456 in b" in text


def test_evaluations_on_other_splits_are_remarked(make_cells):
    folder = make_cells(dict.fromkeys("ab", CELL))
    for method in "ab":
        change_facts(folder, method, split={"cases_hash": "123"})
        measured = folder / f"cells/{method}/f_seed0/evaluation/metrics_weights.json"
        measured.write_text(json.dumps({"split": {"cases_hash": "123"}, "settings": {}}))
    assert "lists of cases" not in write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    measured.write_text(json.dumps({"split": {"cases_hash": "456"}, "settings": {}}))
    text = write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    assert "are not the same in all runs: 123 in a seed 0, b seed 0; 456 in the evaluation of b seed 0" in text


def test_other_code_is_remarked(make_cells):
    folder = make_cells(dict.fromkeys("ab", CELL))
    for method, commit in (("a", "0123456"), ("b", "0123456-dirty-89ab")):
        path = folder / f"cells/{method}/f_seed0/run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "commit": commit}))
    text = write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    assert (
        "one commit, which alone can change a result: 0123456 in a f seed 0; 0123456-dirty-89ab in b f seed 0" in text
    )


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"settings": {"cases": "8 labeled, 40 unlabeled, 123"}}, "cases"),
        ({"volumes": {"trained_spacing": [2.0, 2.0, 2.0]}}, "volumes#trained_spacing"),
        ({"initial_weights_sha256": "89ab"}, "initial_weights_sha256"),
    ],
)
def test_runs_of_a_split_on_other_data_or_from_other_weights_are_remarked(make_cells, facts, named):
    dice = next(iter(CELL.values()))
    folder = make_cells({"a": {("f", 0): dice, ("f", 1): dice, ("g", 0): dice}})
    of_split = {
        "settings": {"cases": "8 labeled, 4 unlabeled, 123"},
        "volumes": {"trained_spacing": [1.0, 1.0, 1.0]},
        "initial_weights_sha256": "0123",
    }
    # Other folds have other cases and volumes.
    of_other_fold = {
        "settings": {"cases": "8 labeled, 5 unlabeled, 456"},
        "volumes": {"trained_spacing": [3.0, 3.0, 3.0]},
    }
    for run, changes in (("f_seed0", {}), ("f_seed1", {}), ("g_seed0", of_other_fold)):
        path = folder / f"cells/a/{run}/run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **of_split, **changes}))
    assert "The runs of a are" not in write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    path = folder / "cells/a/f_seed1/run.json"
    content = json.loads(path.read_text())
    # As an older version left it.
    older = {name: value for name, value in content.items() if name not in ("volumes", "initial_weights_sha256")}
    path.write_text(json.dumps(older))
    assert "The runs of a are" not in write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    path.write_text(json.dumps({**content, **facts}))
    text = write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    assert f"The runs of a are averaged, but differ in their settings: {named}." in text


def test_other_precisions_are_remarked(make_cells):
    folder = make_cells(dict.fromkeys("abc", CELL))
    for method, precision in (("a", "bfloat16"), ("b", "float32"), ("c", "bfloat16")):
        change_facts(folder, method, settings={"precision": precision})
    text = write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    assert "bfloat16 in a f seed 0, c f seed 0; float32 in b f seed 0" in text
    change_facts(folder, "b", settings={"precision": "bfloat16"})
    assert "Not all runs" not in write_report(folder).with_name("report.md").read_text(encoding="utf-8")


def test_runs_of_a_method_with_other_settings_are_remarked(make_cells):
    dice = next(iter(CELL.values()))
    folder = make_cells({key: {("f", 0): dice, ("f", 1): dice} for key in "ab"})
    for run, seed, method in (("f_seed0", 0, "MCF()"), ("f_seed1", 1, "MCF(weight=2)")):
        for name in "ab":
            change_facts(folder, name, run, settings={"seed": seed, "method": method if name == "b" else "CPS()"})
    text = write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    assert "The runs of b are averaged, but differ in their settings: method." in text
    change_facts(folder, "a", "f_seed0", settings={"cases": "8 labeled, 72 unlabeled, 123"})
    change_facts(folder, "a", "f_seed1", settings={"cases": "8 labeled, 72 unlabeled, 123"})
    assert "The runs of a are" not in write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    measured = folder / "cells/a/f_seed0/evaluation/metrics_weights.json"
    measured.write_text(json.dumps({"settings": {"strides": [16, 16, 16]}}))
    other = folder / "cells/a/f_seed1/evaluation/metrics_weights.json"
    other.write_text(json.dumps({"settings": {"strides": [48, 48, 48]}}))
    text = write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    assert "The runs of a are averaged, but differ in their settings: strides of the evaluation." in text
    # As the command line and a grid write the same.
    measured.write_text(json.dumps({"settings": {"largest_component": True}}))
    other.write_text(json.dumps({"settings": {"largest_component": "true"}}))
    assert "The runs of a are" not in write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    change_facts(folder, "a", "f_seed0", settings={"cases": "16 labeled, 64 unlabeled, 456"})
    text = write_report(folder).with_name("report.md").read_text(encoding="utf-8")
    assert "The runs of a are averaged, but differ in their settings: cases." in text
