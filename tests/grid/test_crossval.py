# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The command crossval around its runs: what it refuses first, and what it tells at the end."""

from __future__ import annotations

import contextlib

import pytest

from scripts import __main__ as command
from scripts.errors import BundleError
from scripts.grid.grid import Grid


@pytest.fixture
def crossval(tmp_path, monkeypatch, capsys):
    """Call crossval with runs that are done at once, but for those of luseg, which fail."""
    references = []

    def run(grid, folder, **kwargs):
        grid.write(folder)
        cells = list(grid.cells(folder))
        for cell in cells:
            if cell.method != "luseg":
                (cell.path / "evaluation").mkdir(parents=True, exist_ok=True)
                (cell.path / "evaluation" / "metrics_cases.csv").touch()
        return [cell for cell in cells if not cell.evaluated]

    def write(folder, *, reference):
        references.append(reference)
        if reference == "mcf":
            raise BundleError("there is nothing to write on.")
        return folder

    monkeypatch.setattr(command, "run_grid", run)
    monkeypatch.setattr(command, "write_report", write)

    def call(*words):
        given = ["crossval", "--data", "hippocampus", "--output_dir", str(tmp_path / "grid"), *words]
        with contextlib.suppress(SystemExit):
            command.main(given)
        return capsys.readouterr().err.strip().removeprefix("error: "), references

    return call


def test_reference_may_be_a_method_of_an_earlier_call(crossval, tmp_path):
    assert crossval("--methods", "dual_network") == ("", [None])
    error, references = crossval("--methods", "supervised_dual", "--reference", "dual_network")
    assert (error, references) == ("", [None, "dual_network"])
    before = (tmp_path / "grid" / "grid.json").read_text()
    error, _ = crossval("--methods", "luseg", "--reference", "mcf")
    assert error == "reference must be one of dual_network, supervised_dual, luseg, got 'mcf'."
    assert (tmp_path / "grid" / "grid.json").read_text() == before


def test_reference_may_have_its_short_name(crossval):
    error, references = crossval("--methods", "supervised,luseg", "--reference", "supervised")
    assert references == ["supervised_vnet"]
    error, _ = crossval("--methods", "supervised,luseg", "--reference", "[supervised]")
    assert error.startswith("reference must be")


def test_failures_are_told_although_there_is_no_report(crossval):
    error, references = crossval("--methods", "mcf,luseg", "--reference", "mcf")
    assert references == ["mcf"]
    assert error == "1 of the runs failed: luseg/fixed_seed0. No report: there is nothing to write on."


def test_report_is_made_where_only_earlier_runs_are_evaluated(crossval, tmp_path):
    crossval("--methods", "dual_network")
    error, references = crossval("--methods", "luseg")
    assert error == "1 of the runs failed: luseg/fixed_seed0."
    assert references == [None, None]
    assert Grid.read(tmp_path / "grid").methods == ("dual_network", "luseg")
