# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a grid of runs has left in its folder: which cells were evaluated, and what became of the others."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ...errors import BundleError
from ...files import CONFIGURATION_FILE, FACTS_FILE, read_json_object
from ..case_report import CaseReport, read_metrics
from ..curves import read_table
from ..metrics import METRIC_NAMES

CellStatus = Literal["evaluated", "failed", "damaged", "not evaluated", "not run"]
#: Split and seed: what the cells of two methods must share to be compared.
Run = tuple[str, int]

_COLUMNS = ["case", "class", "status", *METRIC_NAMES]
#: The methods of the bundle as a reader expects them: labels alone, the literature by year, both networks, all labels.
_ORDER = (
    "supervised_vnet",
    "supervised_resnet_vnet",
    "supervised_dual",
    "supervised_dual_rectified",
    "mean_teacher",
    "uncertainty_aware_mean_teacher",
    "sassnet",
    "dtc",
    "cps",
    "mc_net",
    "mc_net_plus",
    "mcf",
    "bcp",
    "sdcl",
    "dual_network",
    "dual_network_without_consistency",
    "dual_network_without_uncertainty",
    "dual_network_without_both",
    "dual_network_literal",
    "dual_network_released",
    "luseg",
    "luseg_released",
    "dual_network_improved",
    "dual_copy_paste",
    "dual_mean_teacher",
    "upper_bound_vnet",
    "upper_bound_dual",
)


@dataclass(frozen=True)
class CellResult:
    """One run of the grid.

    Attributes:
        method: name of the method.
        split: name of the split.
        seed: seed of the training.
        folder: folder of the run.
        status: how far it came.
        error: why it failed or cannot be read, in one line; empty otherwise.
        report: the metrics of its test cases, for an evaluated cell.
    """

    method: str
    split: str
    seed: int
    folder: Path
    status: CellStatus
    error: str = ""
    report: CaseReport | None = None

    @property
    def run(self) -> Run:
        """Split and seed."""
        return self.split, self.seed

    @cached_property
    def values(self) -> pd.DataFrame:
        """Metrics of each case and class, which are the index; distances are NaN where the class was not found."""
        assert self.report is not None
        return self.report.cases().set_index(["case", "class"])[list(METRIC_NAMES)]

    @cached_property
    def case_means(self) -> pd.DataFrame:
        """Metrics of each case, averaged over its classes (distances: over those found); the index is the case."""
        return self.values.groupby(level="case", sort=False).mean()

    def table(self, name: str) -> pd.DataFrame | None:
        """A table that the training wrote, by iteration.

        Args:
            name: file name, such as ``"history.csv"``.

        Returns:
            The table, or None where there is none that can be read: see :meth:`table_error`.
        """
        try:
            return read_table(self.folder / name)
        except BundleError:
            return None

    def table_error(self, name: str) -> str:
        """Why a table that is there has nothing to show.

        Args:
            name: see :meth:`table`.

        Returns:
            The reason in one line; empty where the table can be read, or is not there.
        """
        if (self.folder / name).is_file():
            try:
                read_table(self.folder / name)
            except BundleError as error:
                return str(error)
        return ""

    @cached_property
    def measured_with(self) -> Mapping[str, Any]:
        """What ``metrics_weights.json`` tells of the evaluation; empty without that file."""
        facts = _read_json(self.folder / "evaluation" / "metrics_weights.json") or {}
        return _known(facts, settings=dict, split=dict)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What ``run.json`` tells of the training; empty without that file."""
        begun = _read_json(self.folder / FACTS_FILE) or {}
        resumed = begun.get("resumed")
        facts = [begun, *(each for each in (resumed if isinstance(resumed, list) else ()) if isinstance(each, dict))]
        first, *others = (_known(each, settings=dict, versions=dict, split=dict) for each in facts)
        return {**first, "resumed": others}

    @cached_property
    def training_cases(self) -> tuple[int, int] | None:
        """Numbers of labeled and unlabeled cases that it was trained on, None where ``run.json`` does not tell them."""
        settings = self.facts.get("settings") or {}
        found = re.match(r"(\d+) labeled, (\d+) unlabeled\b", str(settings.get("cases")))
        if found is None:
            return None
        # The data set has unlabeled cases also for a method that takes none of them.
        return int(found[1]), 0 if settings.get("unlabeled_batch_size") == 0 else int(found[2])

    @cached_property
    def has_all_labels(self) -> bool:
        """Whether its configuration gave it the labels of all training cases."""
        cases = (_read_json(self.folder / CONFIGURATION_FILE) or {}).get("cases")
        return isinstance(cases, dict) and str(cases.get("all_labeled")).lower() == "true"


@dataclass(frozen=True)
class GridResults:
    """All cells of a grid of runs.

    Attributes:
        folder: folder of the grid.
        facts: the content of ``grid.json``.
        methods: names of the methods in the order of the report.
        class_names: names of the foreground classes in the order of their labels.
        cells: a cell for each method, split and seed, in this order.
        upper_bounds: the methods that trained with the labels of all cases where others had fewer, the last ones of
            ``methods``.
    """

    folder: Path
    facts: Mapping[str, Any]
    methods: list[str]
    class_names: list[str]
    cells: list[CellResult]
    upper_bounds: list[str]

    def evaluated(self, method: str) -> dict[Run, CellResult]:
        """The evaluated cells of a method by split and seed.

        Args:
            method: name of the method.

        Returns:
            The cells in the order of the grid.
        """
        return {cell.run: cell for cell in self.cells if cell.method == method and cell.status == "evaluated"}

    @cached_property
    def evaluated_methods(self) -> list[str]:
        """Methods with an evaluated cell, in order."""
        return [method for method in self.methods if self.evaluated(method)]

    @cached_property
    def competing_methods(self) -> list[str]:
        """Methods with an evaluated cell that are no upper bounds, in order."""
        return [method for method in self.evaluated_methods if method not in self.upper_bounds]

    @cached_property
    def complete_methods(self) -> list[str]:
        """Methods evaluated on all the splits, seeds and test cases that any competing method was, in order."""
        test_cases: dict[Run, set[str]] = defaultdict(set)
        for method in self.competing_methods:
            for run, cell in self.evaluated(method).items():
                test_cases[run] |= set(cell.case_means.index)

        def is_complete(method: str) -> bool:
            cells = self.evaluated(method)
            return all(run in cells and cases <= set(cells[run].case_means.index) for run, cases in test_cases.items())

        return [method for method in self.evaluated_methods if is_complete(method)]


def read_grid(output_dir: str | Path) -> GridResults:
    """Read the folder of a grid of runs.

    Args:
        output_dir: folder with ``grid.json`` and ``cells/<method>/<split>_seed<seed>/``.

    Returns:
        The grid. Cells that are missing, failed or unreadable are in it, with their status.

    Raises:
        BundleError: when there is no readable ``grid.json``, or no cell was evaluated.
    """
    folder = Path(output_dir)
    path = folder / "grid.json"
    if not path.is_file():
        raise BundleError(f"output_dir must be the folder of a grid of runs with grid.json, got {folder}.")
    facts = _read_json(path)
    if facts is None or facts.get("version") != 1:
        raise BundleError(f"{path} must be a JSON object of version 1: it is damaged, or of another release.")
    kinds = (("methods", list, str), ("splits", dict, str), ("seeds", list, int), ("class_names", list, str))
    for name, kind, entry in kinds:
        value = facts.get(name)
        entries = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        if not isinstance(value, kind) or not entries or not all(isinstance(each, entry) for each in entries):
            raise BundleError(
                f"{path}: {name} must be a {kind.__name__} with an entry, each a {entry.__name__}, got {value!r}."
            )
    facts = _known(facts, overrides=dict, cases=dict)
    cells = [
        _read_cell(folder / "cells" / method / f"{split}_seed{seed}", method, split, seed, facts["class_names"])
        for method in facts["methods"]
        for split in facts["splits"]
        for seed in facts["seeds"]
    ]
    if not any(cell.status == "evaluated" for cell in cells):
        states = ", ".join(f"{count} {status}" for status, count in Counter(cell.status for cell in cells).items())
        reasons = [f"{cell.method}, {cell.split}, seed {cell.seed}: {cell.error}" for cell in cells if cell.error]
        raise BundleError(
            f"{folder} has no evaluated cell ({states}), so that there is nothing to report on yet"
            + (f"; {reasons[0]}" if reasons else ".")
        )
    upper_bounds = _upper_bounds(cells)
    methods = sorted(facts["methods"], key=lambda method: (method in upper_bounds, _rank(method)))
    cells.sort(key=lambda cell: methods.index(cell.method))
    upper_bounds = [method for method in methods if method in upper_bounds]
    return GridResults(folder, facts, methods, facts["class_names"], cells, upper_bounds)


def _upper_bounds(cells: Sequence[CellResult]) -> list[str]:
    """Methods with a run that had labels of all training cases of its split, where other runs had fewer."""
    of_split: dict[str, list[tuple[CellResult, int, int]]] = defaultdict(list)
    for cell in cells:
        if cell.training_cases is not None and cell.training_cases[0] > 0:
            of_split[cell.split].append((cell, *cell.training_cases))
    upper_bounds = []
    for runs in of_split.values():
        fewest = min(labeled for _, labeled, _ in runs)
        all_cases = max(labeled + unlabeled for _, labeled, unlabeled in runs)
        # The count alone would not do: unlabeled_dir adds cases that nobody has a label of.
        upper_bounds += [
            cell.method
            for cell, labeled, _ in runs
            if labeled > fewest and (labeled == all_cases or cell.has_all_labels)
        ]
    return upper_bounds


def _rank(method: str) -> int:
    """Place of a method in the report; all that are not of the bundle share the last one."""
    return _ORDER.index(method) if method in _ORDER else len(_ORDER)


def _read_cell(folder: Path, method: str, split: str, seed: int, class_names: list[str]) -> CellResult:
    if not folder.is_dir():
        return CellResult(method, split, seed, folder, "not run")
    path = folder / "evaluation" / "metrics_cases.csv"
    if not path.is_file():
        outcome = _read_json(folder / "cell.json") or {}
        if outcome.get("status") != "failed":
            return CellResult(method, split, seed, folder, "not evaluated")
        return CellResult(method, split, seed, folder, "failed", " ".join(str(outcome.get("error")).split()))
    try:
        report = _read_cases(path, class_names)
    except (BundleError, ValueError) as error:
        return CellResult(method, split, seed, folder, "damaged", " ".join(f"{path.name}: {error}".split()))
    return CellResult(method, split, seed, folder, "evaluated", report=report)


def _read_cases(path: Path, class_names: list[str]) -> CaseReport:
    table = read_metrics(path)
    if list(table) != _COLUMNS or table.empty:
        raise BundleError(f"it must have rows and the columns {_COLUMNS}, got {len(table)} rows of {list(table)}.")
    report = CaseReport(path.parent, class_names)
    for case, rows in table.groupby("case", sort=False):
        report.add(str(case), rows.astype(dict.fromkeys(METRIC_NAMES, float)).to_dict("records"))
    return report


def _known(facts: Mapping[str, Any], **kinds: type) -> dict[str, Any]:
    """Leave out what is not of the kind that this bundle writes."""
    return {name: value for name, value in facts.items() if name not in kinds or isinstance(value, kinds[name])}


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no such file or no object in it."""
    try:
        return read_json_object(path)
    except (FileNotFoundError, BundleError):
        return None
