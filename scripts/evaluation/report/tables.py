# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The tables of the report: what each cell says, which of them are marked, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pandas as pd

from ..case_report import DISTANCES, HEADINGS, MEAN_OVER_CLASSES
from ..wording import mean_and_deviation, plural
from .comparison import HIGHER_IS_BETTER, compare
from .grid import GridResults
from .summary import SETTINGS_KEYS, costs, settings_by_method, spread_is_over_runs, summarize, terms_by_method

Mark = Literal["best", "second"]
#: Metrics that are tested: one of the overlaps, which tell the same, and both distances.
TESTED_METRICS = ("dice", "hd95_voxel", "asd_voxel")
#: Stands behind a mean distance that leaves out cases which those of other methods count.
FEWER_FOUND = "\N{DAGGER}"
_PROSE_LETTERS = 40
_UPPER_BOUNDS = "upper bounds: labels of all training cases"


@dataclass(frozen=True)
class Table:
    """A table to read and the same to compute with.

    Attributes:
        name: file name without its ending.
        title: heading.
        heading: names of the columns.
        rows: texts, a list a row; the first column names the row.
        numbers: the values behind the texts, unrounded.
        keys: columns of ``numbers`` that name a row.
        note: what a reader must know.
        marks: (row, column) of the best values and the second best ones.
        groups: numbers of the rows that begin a group, and what to say above them.
        prose: columns with long texts.
    """

    name: str
    title: str
    heading: list[str]
    rows: list[list[str]]
    numbers: pd.DataFrame
    keys: list[str]
    note: str
    marks: dict[tuple[int, int], Mark] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    prose: frozenset[int] = frozenset()


def make_tables(grid: GridResults, reference: str) -> list[Table]:
    """All tables of the report in order.

    Args:
        grid: the grid of runs.
        reference: name of the method that the others are tested against.

    Returns:
        Metrics, metrics of each class (where there are several), metrics by the terms of the loss (where methods leave
        some out), tests (where there are several methods), cost, the settings in which methods differ, and the state of
        each cell.
    """
    summary = summarize(grid)
    note = _summary_note(grid)
    overall = summary[summary["class"] == MEAN_OVER_CLASSES]
    several = len(grid.class_names) > 1
    title = "Test metrics, mean over the classes" if several else f"Test metrics: {grid.class_names[0]}"
    tables = [_metrics_table("table_metrics", title, overall, grid, note)]
    if several:
        for number, name in enumerate(grid.class_names, start=1):
            of_class = summary[summary["class"] == name]
            tables.append(_metrics_table(f"table_class_{number}", f"Test metrics: {name}", of_class, grid, note))
    tables += [
        _terms_table(f"table_terms_{number}", name, terms, overall)
        for number, (name, terms) in enumerate(terms_by_method(grid), start=1)
    ]
    if len(grid.evaluated_methods) > 1:
        tables += [_comparison_table(grid, reference, metric) for metric in TESTED_METRICS]
    cost = costs(grid)
    if not cost.empty:
        tables.append(_cost_table(cost, reference))
    settings = pd.concat([settings_by_method(grid, key) for key in SETTINGS_KEYS], axis=1)
    different = settings.loc[:, settings.nunique() > 1]
    if not different.empty:
        tables.append(_settings_table(different.reset_index()))
    return [*tables, _cells_table(grid)]


def rank_marks(values: Sequence[float], *, higher_is_better: bool) -> list[Mark | None]:
    """Which of the values are the best and the second best.

    Equal values share their rank, and the next one is counted after all of them: behind two best ones nothing is second
    best. A value is only marked when another one is worse.

    Args:
        values: numbers as they are shown; NaN takes no part.
        higher_is_better: whether the largest is the best.

    Returns:
        A mark or None for each value.
    """
    ranks = pd.Series(values, dtype=float).rank(method="min", ascending=not higher_is_better)
    marks: dict[float, Mark] = {1.0: "best", 2.0: "second"}
    return [marks.get(rank) if rank < ranks.max() else None for rank in ranks]


def _metrics_table(name: str, title: str, summary: pd.DataFrame, grid: GridResults, note: str) -> Table:
    heading = [
        "method",
        "labeled",
        "unlabeled",
        *HEADINGS.values(),
        "cases",
        "missed",
        "false positive",
        "absent",
        "runs",
    ]
    planned = len(grid.cells) // len(grid.methods)
    metrics = _metrics(summary, first_column=heading.index("unlabeled") + 1)
    rows = [
        [
            row["method"],
            _count(row["labeled"]),
            _count(row["unlabeled"]),
            *texts,
            str(row["cases"]),
            str(row["missed"]),
            str(row["false_positive"]),
            str(row["absent"]),
            f"{row['runs']} of {planned}",
        ]
        for row, texts in zip(summary.to_dict("records"), metrics.texts, strict=True)
    ]
    groups = _groups(summary)
    return Table(name, title, heading, rows, summary, ["method", "class"], note + metrics.note, metrics.marks, groups)


def _terms_table(name: str, method_class: str, terms: pd.DataFrame, summary: pd.DataFrame) -> Table:
    # The prefix of history.csv: a term may be called as a column of the summary is.
    of_methods = terms.add_prefix("loss_")
    numbers = summary[summary["method"].isin(terms.index)].merge(of_methods, left_on="method", right_index=True)
    heading = ["method", *(term.replace("_", " ") for term in terms), *HEADINGS.values()]
    metrics = _metrics(numbers, first_column=1 + len(terms.columns))
    rows = [
        [row["method"], *("yes" if row[term] else "-" for term in of_methods), *texts]
        for row, texts in zip(numbers.to_dict("records"), metrics.texts, strict=True)
    ]
    title = f"Terms of the loss that some methods leave out: {method_class}"
    note = "A term is there where the table of losses of a run has it; metrics as in the first table." + metrics.note
    return Table(name, title, heading, rows, numbers, ["method"], note, metrics.marks, _groups(numbers))


class _Metrics(NamedTuple):
    """Columns of means: a list of texts for each row, which of them are marked, and what to say of them."""

    texts: list[list[str]]
    marks: dict[tuple[int, int], Mark]
    note: str


def _metrics(summary: pd.DataFrame, *, first_column: int) -> _Metrics:
    ranked = summary["complete"] & ~summary["upper_bound"]
    # Who misses the difficult cases has the smaller mean distance.
    fewer_found = summary["complete"] & (summary["found"] < summary.loc[ranked, "found"].max())
    texts = [
        [_mean_text(row, metric, fewer_found=fewer) for metric in HEADINGS]
        for row, fewer in zip(summary.to_dict("records"), fewer_found, strict=True)
    ]
    marks = {}
    for column, metric in enumerate(HEADINGS, start=first_column):
        eligible = ranked if _percent(metric) else ranked & ~fewer_found
        # What looks equal is equal: the means are ranked as they are shown.
        shown = (summary[f"{metric}_mean"] * (100 if _percent(metric) else 1)).round(2).where(eligible)
        for row_number, mark in enumerate(rank_marks(shown.tolist(), higher_is_better=_percent(metric))):
            if mark is not None:
                marks[row_number, column] = mark
    note = (
        f" {FEWER_FOUND} Distances not ranked: they leave out cases and classes that were missed here and found by "
        "others; see the tests, which pair them."
    )
    return _Metrics(texts, marks, note if fewer_found.any() else "")


def _groups(numbers: pd.DataFrame) -> dict[int, str]:
    """Where the upper bounds begin, which are the last rows."""
    first = int((~numbers["upper_bound"].astype(bool)).sum())
    return {first: _UPPER_BOUNDS} if first < len(numbers) else {}


def _mean_text(row: dict[str, Any], metric: str, *, fewer_found: bool) -> str:
    text = mean_and_deviation(row[f"{metric}_mean"], row[f"{metric}_sd"], percent=_percent(metric))
    return f"{text} {FEWER_FOUND}" if fewer_found and not _percent(metric) and row["found"] > 0 else text


def _comparison_table(grid: GridResults, reference: str, metric: str) -> Table:
    numbers = compare(grid, reference, metric).assign(metric=metric)
    factor = 100 if _percent(metric) else 1
    heading = ["method", "mean difference", "median difference", "better", "worse", "cases", "pairs", "p", "p (Holm)"]
    rows = [
        [
            row["method"],
            _signed(factor * row["mean_difference"]),
            _signed(factor * row["median_difference"]),
            str(row["better"]),
            str(row["worse"]),
            str(row["cases"]),
            str(row["pairs"]),
            _p_text(row["p"]),
            _p_text(row["p_holm"]),
        ]
        for row in numbers.to_dict("records")
    ]
    higher = metric in HIGHER_IS_BETTER
    found = "" if higher else " where both methods found the class"
    note = (
        f"Method minus {reference}, by pairs of the same case, class, split and seed{found}, averaged over the classes "
        f"and seeds of each case. {'More' if higher else 'Less'} is better; better and worse count cases. p: two-sided "
        "Wilcoxon signed-rank test over the cases; p (Holm): corrected for the number of methods in this table, those "
        "of the upper bounds apart. Both speak of these cases and runs, not of what other splits or seeds would give."
    )
    title = f"{HEADINGS[metric]}: difference to {reference}"
    groups = _groups(numbers)
    return Table(f"table_test_{metric}", title, heading, rows, numbers, ["method", "metric"], note, groups=groups)


def _cost_table(cost: pd.DataFrame, reference: str) -> Table:
    of_reference = cost.loc[cost["method"] == reference, "seconds_iteration"]
    relative = cost["seconds_iteration"] / (of_reference.iloc[0] if len(of_reference) else float("nan"))
    numbers = cost.assign(relative_to_reference=relative)
    heading = ["method", "iterations", "training", "seconds an iteration", f"relative to {reference}", "parameters [M]"]
    rows = [
        [
            row["method"],
            f"{row['iterations']:.0f}",
            _duration(row["seconds_training"]),
            _number(row["seconds_iteration"], digits=3),
            _number(row["relative_to_reference"], digits=2),
            _number(row["parameters"] / 1e6, digits=2),
        ]
        for row in numbers.to_dict("records")
    ]
    note = (
        "Means over the runs, finished or not; h:min:s of training with its validations, and the median time of an "
        "iteration without them. Times hold for the machine and what else ran on it. Parameters: of the weights that "
        "are deployed, without teachers and discriminators, with the further decoders and heads of their network."
    )
    return Table("table_cost", "Cost of training", heading, rows, numbers, ["method"], note)


def _settings_table(different: pd.DataFrame) -> Table:
    rows = different.to_numpy().tolist()
    note = "What run.json tells of the evaluated runs where methods differ; several values are those of several runs."
    prose = frozenset(
        column for column in range(1, len(different.columns)) if max(len(row[column]) for row in rows) > _PROSE_LETTERS
    )
    title = "Settings that differ"
    return Table("table_settings", title, list(different), rows, different, ["method"], note, prose=prose)


def _cells_table(grid: GridResults) -> Table:
    numbers = pd.DataFrame(
        [
            {
                "method": cell.method,
                "split": cell.split,
                "seed": cell.seed,
                "status": cell.status,
                "dice": cell.case_means["dice"].mean() if cell.report is not None else float("nan"),
                "error": cell.error,
            }
            for cell in grid.cells
        ]
    )
    heading = ["method", "split", "seed", "status", "Dice [%]", "error"]
    rows = [
        [
            row["method"],
            row["split"],
            str(row["seed"]),
            row["status"],
            _number(100 * row["dice"], digits=2),
            row["error"],
        ]
        for row in numbers.to_dict("records")
    ]
    evaluated = int((numbers["status"] == "evaluated").sum())
    note = f"{evaluated} of {len(rows)} {plural('run', len(rows))} evaluated. Metrics and tests are about these."
    keys = ["method", "split", "seed"]
    return Table("table_runs", "Runs", heading, rows, numbers, keys, note, prose=frozenset({heading.index("error")}))


def _summary_note(grid: GridResults) -> str:
    if spread_is_over_runs(grid):
        spread = "Mean ± standard deviation over the runs (splits and seeds) of the mean over the test cases of each"
    else:
        spread = "One run a method: mean ± standard deviation over its test cases"
    sums = "runs and classes" if len(grid.class_names) > 1 else "runs"
    note = (
        f"{spread} (n - 1 in the denominator). Labeled, unlabeled: training cases. Distances are averaged over the "
        f"cases where the class was found; {DISTANCES}. Missed: in the reference, not in the prediction (Dice 0, no "
        "distance); false positive: the other way round; absent: in neither (Dice 100, no distance); these three are "
        f"sums over {sums}, cases over runs. The best two values of a column are bold, the second underlined too."
    )
    incomplete = [method for method in grid.competing_methods if method not in grid.complete_methods]
    if incomplete:
        note += f" Not ranked, since runs or test cases that others have are missing: {', '.join(incomplete)}."
    if len(grid.competing_methods) < len(grid.evaluated_methods):
        note += " Upper bounds are not ranked."
    return note


def _percent(metric: str) -> bool:
    return metric in HIGHER_IS_BETTER


def _number(value: float, *, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _count(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(value, 1):.12g}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _p_text(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
