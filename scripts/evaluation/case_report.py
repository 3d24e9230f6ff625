# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation: a table of all cases and its summary."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import BundleError
from ..files import write_text
from .metrics import METRIC_NAMES, foreground_names
from .wording import markdown_table, markdown_text, mean_and_deviation, plural

#: What an evaluation writes into its folder, and removes there of one before it, label maps apart.
REPORT_FILE = re.compile(r"metrics_(cases|summary|weights)\.(csv|md|json)|worst_\d+_.*\.png")
STATUSES = ("found", "missed", "false_positive", "absent")
MEAN_OVER_CLASSES = "mean over classes"
HEADINGS = {
    "dice": "Dice [%]",
    "jaccard": "Jaccard [%]",
    "hd95_voxel": "95HD [voxel]",
    "asd_voxel": "ASD [voxel]",
    "hd95_mm": "95HD [mm]",
    "asd_mm": "ASD [mm]",
}
#: What the distances measure, as medpy does.
DISTANCES = (
    "95HD is the 95th percentile of the distances of both directions together, ASD the mean distance from the surface "
    "of the prediction to that of the reference, in which what is left out does not count"
)
_NOTE = (
    "Mean ± standard deviation over the cases (n - 1 in the denominator). Distances are averaged over the cases where "
    f"the class was found: the column found says how many; {DISTANCES}. "
    "A class which is in the reference but not in the prediction is missed (Dice 0, no distance); one which is only in "
    "the prediction is a false positive (Dice 0, no distance); one which is in neither is absent (Dice 100, no "
    "distance). The mean over classes is taken within each case first, and its counts are sums."
)


def read_metrics(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table of :class:`CaseReport`, or one with its columns.

    Args:
        path: the CSV file.

    Returns:
        the table; names are texts as they are, whether NA or 1, and metrics that are not there NaN.
    """
    metrics = [name + ending for name in METRIC_NAMES for ending in ("", "_mean", "_sd")]
    return pd.read_csv(
        path,
        dtype={"case": str, "class": str, "status": str},
        keep_default_na=False,
        na_values={name: ["", "nan"] for name in metrics},
    )


class CaseReport:
    """Collects the metrics of all cases of an evaluation, writes them and sums them up.

    The files are ``metrics_cases.csv`` (a row for each case and class), ``metrics_summary.csv`` (a row for each class
    and one for the mean over classes; overlaps from 0 to 1) and ``metrics_summary.md`` (the same to read; overlaps in
    percent). Means and standard deviations are taken over cases, the latter with ``n - 1`` in the denominator.
    Distances exist only where a class was found, so their means are over those cases, and the counts of the other
    cases stand beside them: a class that was never found shows "-" for its distances, not 0.

    Args:
        output_dir: folder of the files; made by :meth:`write` when it is missing.
        class_names: names of the foreground classes in the order of their labels.

    Raises:
        BundleError: when the names are none or not different.
    """

    def __init__(self, output_dir: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = foreground_names(len(class_names) + 1, class_names)
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.rows)

    def add(self, case: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the metrics of one case.

        Args:
            case: name of the case, different from all others.
            rows: what :func:`~scripts.evaluation.metrics.evaluate_case` returned: one row a class, in order.

        Raises:
            BundleError: when the case was added before, or the rows are not those of the classes.
        """
        if case in self.rows:
            raise BundleError(f"case must be a name of its own for each case, got {case!r} a second time.")
        classes = [row["class"] for row in rows]
        if classes != self.class_names:
            raise BundleError(f"rows of case {case!r} must be of the classes {self.class_names}, got {classes}.")
        self.rows[case] = [dict(row) for row in rows]

    def mean_dice(self, case: str) -> float:
        """Mean Dice coefficient of one case over the foreground classes, from 0 to 1.

        Args:
            case: name of a case that was added.

        Returns:
            The mean.
        """
        return float(np.mean([row["dice"] for row in self.rows[case]]))

    def worst(self, n: int = 3) -> list[str]:
        """Names of the cases with the lowest mean Dice coefficient, the lowest first.

        Args:
            n: how many.

        Returns:
            At most ``n`` names.
        """
        return sorted(self.rows, key=lambda case: (self.mean_dice(case), case))[:n]

    def cases(self) -> pd.DataFrame:
        """All rows in the order in which the cases came.

        Returns:
            A table with the columns ``case``, ``class``, ``status`` and the metrics.
        """
        rows = [{"case": case, **row} for case, rows in self.rows.items() for row in rows]
        return pd.DataFrame(rows, columns=["case", "class", "status", *METRIC_NAMES])

    def summary(self) -> pd.DataFrame:
        """Means, standard deviations and counts for each class, and for the mean over classes.

        Returns:
            A table with the columns ``class``, ``cases``, ``found``, ``missed``, ``false_positive``, ``absent``, and
            ``<metric>_mean`` and ``<metric>_sd`` for each metric. In the last row, ``mean over classes``, a case
            counts with the mean over its classes (for distances: over those found), and the counts are sums.

        Raises:
            BundleError: when there is no case.
        """
        if not self.rows:
            raise BundleError("the report must have at least one case, got none: is the list of cases empty?")
        cases = self.cases()
        groups = [(name, cases[cases["class"] == name]) for name in self.class_names]
        rows = [self._summary_row(name, group["status"], group) for name, group in groups]
        per_case = cases.groupby("case", sort=False)[list(METRIC_NAMES)].mean()
        rows.append(self._summary_row(MEAN_OVER_CLASSES, cases["status"], per_case))
        return pd.DataFrame(rows)

    def write(self) -> list[Path]:
        """Write the three files; each takes the place of an older one in one step.

        Returns:
            The paths: cases, summary, summary to read.

        Raises:
            BundleError: when there is no case.
        """
        # The cases last: their table is the sign that an evaluation is complete.
        texts = {
            "metrics_summary.md": self._markdown(),
            "metrics_summary.csv": self.summary().to_csv(index=False),
            "metrics_cases.csv": self.cases().to_csv(index=False),
        }
        return [write_text(self.output_dir / name, text) for name, text in texts.items()][::-1]

    def table(self) -> str:
        """The summary as aligned plain text for the console.

        Returns:
            Several lines, without a line break at the end.

        Raises:
            BundleError: when there is no case.
        """
        heading, rows = self._readable_summary()
        widths = [max(len(line[column]) for line in (heading, *rows)) for column in range(len(heading))]
        lines = []
        for line in (heading, ["-" * width for width in widths], *rows):
            first, *others = (
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            lines.append("  ".join([first, *others]).rstrip())
        return "\n".join(lines)

    def _markdown(self) -> str:
        heading, rows = self._readable_summary()
        heading, *rows = ([markdown_text(cell) for cell in line] for line in (heading, *rows))
        table = markdown_table(heading, rows)
        return f"# Metrics of {len(self)} {plural('case', len(self))}\n\n{table}\n\n{_NOTE}\n"

    def _readable_summary(self) -> tuple[list[str], list[list[str]]]:
        summary = self.summary()
        if len(self.class_names) == 1:
            # With a single class the mean over classes only says the same again.
            summary = summary[:-1]
        heading = ["class", *HEADINGS.values(), "cases", *(status.replace("_", " ") for status in STATUSES)]
        rows = []
        for row in summary.to_dict("records"):
            values = [
                mean_and_deviation(row[f"{name}_mean"], row[f"{name}_sd"], percent=name in ("dice", "jaccard"))
                for name in HEADINGS
            ]
            rows.append([str(row["class"]), *values, str(row["cases"]), *(str(row[status]) for status in STATUSES)])
        return heading, rows

    def _summary_row(self, name: str, statuses: pd.Series, values: pd.DataFrame) -> dict[str, Any]:
        row: dict[str, Any] = {"class": name, "cases": len(self)}
        for status in STATUSES:
            row[status] = int((statuses == status).sum())
        for metric in METRIC_NAMES:
            # NaN, a distance that does not exist, is left out by both.
            row[f"{metric}_mean"] = values[metric].mean()
            row[f"{metric}_sd"] = values[metric].std(ddof=1)
        return row
