# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation: a table of all cases, its summary, and pictures of the cases that went worst."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import numpy.typing as npt
import pandas as pd
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils import CommonKeys, convert_to_numpy
from nibabel.affines import voxel_sizes

from ..errors import BundleError
from ..files import file_hash, write_json, write_text
from .label_maps import case_file_name, case_name
from .metrics import METRIC_NAMES, evaluate_case, foreground_names
from .pictures import View, draw_views, select_views

STATUSES = ("found", "missed", "false_positive", "absent")
MEAN_OVER_CLASSES = "mean over classes"
ORIGINAL_IMAGE_KEY = "original_image"
HEADINGS = {
    "dice": "Dice [%]",
    "jaccard": "Jaccard [%]",
    "hd95_voxel": "95HD [voxel]",
    "asd_voxel": "ASD [voxel]",
    "hd95_mm": "95HD [mm]",
    "asd_mm": "ASD [mm]",
}
_NOTE = (
    "Mean ± standard deviation over the cases (n - 1 in the denominator). Distances are averaged over the cases where "
    "the class was found: the column found says how many. A class which is in the reference but not in the prediction "
    "is missed (Dice 0, no distance); one which is only in the prediction is a false positive (Dice 0, no distance); "
    "one which is in neither is absent (Dice 100, no distance). The mean over classes is taken within each case first, "
    "and its counts are sums."
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
        summary = self.summary()
        texts = {
            "metrics_cases.csv": self.cases().to_csv(index=False),
            "metrics_summary.csv": summary.to_csv(index=False),
            "metrics_summary.md": self._markdown(),
        }
        return [write_text(self.output_dir / name, text) for name, text in texts.items()]

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
        alignment = [":--"] + ["--:"] * (len(heading) - 1)
        lines = [[markdown_text(cell) for cell in line] for line in (heading, alignment, *rows)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
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


class CaseReportHandler:
    """Makes a :class:`CaseReport` of the run of an evaluator, with pictures of the worst cases.

    Attach it to a :class:`monai.engines.SupervisedEvaluator` whose postprocessing leaves, for each case, label maps
    of shape (1, X, Y, Z) under ``pred`` and ``label`` on the same grid. The image of that grid is looked for under
    ``original_image`` and then, when its shape fits, under ``image``; without any the pictures show the outlines on
    black. A case is named by ``case``, or else by the file name of its image or label. The voxel size is that of the
    label. At the end of the run the report is written, its table is logged, and ``worst_<rank>_<case>.png`` are drawn
    into the same folder, where they take the place of those of an earlier run. Only the slices to be drawn of the
    worst cases so far are kept in memory. With several processes each evaluates its own cases, and the first one
    writes the report of all.

    Args:
        num_classes: number of classes with the background.
        output_dir: folder of the report and the pictures.
        class_names: names of the foreground classes in the order of their labels; None names them by numbers.
        num_pictures: how many of the worst cases to draw; 0 draws none.
        weights: file of the weights that are evaluated; its hash goes to ``metrics_weights.json``.
        split: gives name and hash of the split, for that file.

    Raises:
        BundleError: when the names do not fit the classes, or ``num_pictures`` is negative.
    """

    def __init__(
        self,
        num_classes: int,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str] | None = None,
        num_pictures: int = 3,
        weights: str | None = None,
        split: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        if num_pictures < 0:
            raise BundleError(f"num_pictures must not be negative, got {num_pictures}.")
        self.num_classes = num_classes
        self.output_dir = Path(output_dir)
        self.class_names = foreground_names(num_classes, class_names)
        self.num_pictures = num_pictures
        self.weights = weights
        self.split = split
        self.logger = logging.getLogger("scripts.evaluation")
        self.report = CaseReport(self.output_dir, self.class_names)
        self._views: dict[str, list[View]] = {}
        self._started_at = 0.0

    def attach(self, engine: Engine) -> None:
        """Register the handler.

        Args:
            engine: the evaluator.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        # Decollating and postprocessing run inside the iteration, so their results are there when it has ended.
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._evaluate)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.report = CaseReport(self.output_dir, self.class_names)
        self._views = {}
        self._started_at = time.perf_counter()

    def _evaluate(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(batch, list) or not isinstance(output, list) or len(batch) != len(output):
            raise BundleError(
                "CaseReportHandler must get lists of dictionaries, one a case, from the evaluator (decollate=True), "
                f"got {type(batch).__name__} and {type(output).__name__}."
            )
        for given, made in zip(batch, output, strict=True):
            item = {**given, **made}
            case = case_name(item)
            prediction = _label_map(item, CommonKeys.PRED, case=case)
            reference = _label_map(item, CommonKeys.LABEL, case=case)
            affine = _affine(item[CommonKeys.LABEL], case=case)
            spacing_mm = voxel_sizes(affine).tolist()
            try:
                rows = evaluate_case(prediction, reference, self.num_classes, spacing_mm, self.class_names)
            except BundleError as error:
                raise BundleError(f"case {case!r}: {error}") from None
            self.report.add(case, rows)
            dice = ", ".join(f"{row['class']} {_dice_text(row)}" for row in rows)
            self.logger.info("case %s: Dice [%%] %s%s", case, dice, self._progress(engine))
            if case in self.report.worst(self.num_pictures):
                image = _image(item, shape=reference.shape, case=case)
                if image is None:
                    self.logger.warning("case %s: no image on the grid of the label, its picture is black", case)
                    image = np.zeros(reference.shape, dtype=np.float32)
                self._views[case] = select_views(image, reference, prediction, affine=affine)
            self._views = {name: self._views[name] for name in self.report.worst(self.num_pictures)}

    def _progress(self, engine: Engine) -> str:
        total, done = engine.state.epoch_length, engine.state.iteration
        if not total or not 0 < done <= total:
            return ""
        seconds_left = (time.perf_counter() - self._started_at) / done * (total - done)
        minutes, seconds = divmod(round(seconds_left), 60)
        return f" (batch {done} of {total}, {minutes}:{seconds:02d} min left)"

    def _finish(self, engine: Engine) -> None:
        self.report = self._report_of_all_processes()
        worst = self.report.worst(self.num_pictures)
        pictures = {case: f"worst_{rank}_{case_file_name(case)}.png" for rank, case in enumerate(worst, start=1)}
        if idist.get_rank() == 0:
            self.report.write()
            if self.weights is not None:
                facts = {"sha256": file_hash(self.weights), "split": self.split() if self.split else None}
                write_json(self.output_dir / "metrics_weights.json", facts)
            for path in self.output_dir.glob("worst_*.png"):
                # The pictures of an earlier run would pass for those of this one.
                if re.fullmatch(r"worst_\d+_.*\.png", path.name) and path.name not in pictures.values():
                    path.unlink(missing_ok=True)
            self.logger.info("%d %s\n%s", len(self.report), plural("case", len(self.report)), self.report.table())
        for case, file_name in pictures.items():
            if case in self._views:
                title = f"{case}: mean Dice {100 * self.report.mean_dice(case):.1f} %"
                draw_views(self._views[case], self.output_dir / file_name, title, class_names=self.class_names)

    def _report_of_all_processes(self) -> CaseReport:
        if idist.get_world_size() == 1:
            return self.report
        whole = CaseReport(self.output_dir, self.class_names)
        gathered: Any = idist.all_gather(self.report.rows)
        for rows_of_process in gathered:
            for case, rows in rows_of_process.items():
                # A sampler repeats a few cases so that all processes have the same number; they count once.
                if case not in whole.rows:
                    whole.add(case, rows)
                elif not np.allclose(
                    [row["dice"] for row in rows], [row["dice"] for row in whole.rows[case]], atol=0.01
                ):
                    raise BundleError(f"case must be a name of its own for each case, got {case!r} for different ones.")
        return whole


def _label_map(item: Mapping[str, Any], key: str, *, case: str) -> npt.NDArray:
    if key not in item:
        raise BundleError(f"case {case!r} must have the key {key!r} to be evaluated, got {list(item)}.")
    shape = tuple(item[key].shape)
    if len(shape) != 4 or shape[0] != 1:
        raise BundleError(f"case {case!r}: {key} must be a label map of shape (1, X, Y, Z), got {shape}.")
    return convert_to_numpy(item[key])[0]


def _affine(label: Any, *, case: str) -> npt.NDArray[np.float64]:
    if not isinstance(label, MetaTensor):
        raise BundleError(
            f"case {case!r}: label must be a MetaTensor, whose affine has the voxel size, got {type(label).__name__}."
        )
    return np.asarray(convert_to_numpy(label.affine), dtype=np.float64)


def _image(item: Mapping[str, Any], *, shape: tuple[int, ...], case: str) -> npt.NDArray | None:
    """The first channel of the image on the grid of the label map, None where there is none on that grid."""
    if ORIGINAL_IMAGE_KEY in item:
        image = convert_to_numpy(item[ORIGINAL_IMAGE_KEY])
        if image.shape[1:] != shape:
            raise BundleError(
                f"case {case!r}: {ORIGINAL_IMAGE_KEY} must have the shape (channels, X, Y, Z) with the grid {shape} of "
                f"the label, got {image.shape}."
            )
        return image[0]
    if CommonKeys.IMAGE in item and tuple(item[CommonKeys.IMAGE].shape[1:]) == shape:
        return convert_to_numpy(item[CommonKeys.IMAGE])[0]
    return None


def _dice_text(row: Mapping[str, Any]) -> str:
    text = f"{100 * row['dice']:.1f}"
    return text if row["status"] == "found" else f"{text} ({row['status'].replace('_', ' ')})"


def mean_and_deviation(mean: float, deviation: float, *, percent: bool) -> str:
    """Word a mean and its standard deviation.

    Args:
        mean: the mean; NaN where there is none.
        deviation: the standard deviation; NaN where there is none.
        percent: whether both are shares to be worded in percent.

    Returns:
        a text such as "84.05 ± 3.85"; "-" stands for what there is not.
    """
    if math.isnan(mean):
        return "-"
    factor = 100 if percent else 1
    spread = "-" if math.isnan(deviation) else f"{factor * deviation:.2f}"
    return f"{factor * mean:.2f} ± {spread}"


def plural(noun: str, count: int) -> str:
    """Give a noun its form for a number.

    Args:
        noun: the singular.
        count: the number.

    Returns:
        the singular for 1, else the plural.
    """
    return noun if count == 1 else f"{noun}s"


def markdown_text(text: str) -> str:
    """Write a text so that Markdown shows it as it is, in one line.

    Args:
        text: any text.

    Returns:
        the text with the signs of Markdown and HTML escaped.
    """
    # Angle brackets would begin a tag. Underscores within a word and brackets without an address mean nothing.
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|]|\](?=[(\[])|(?<!\w)_|_(?!\w))", r"\\\1", text)
