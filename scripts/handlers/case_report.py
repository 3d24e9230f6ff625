# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Metrics of each case while an evaluator runs, and pictures of the cases that went worst."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils import CommonKeys, convert_to_numpy
from nibabel.affines import voxel_sizes

from ..errors import BundleError
from ..evaluation.case_report import REPORT_FILE, CaseReport, read_metrics
from ..evaluation.label_maps import case_file_name, case_name, label_map_path
from ..evaluation.metrics import evaluate_case, foreground_names
from ..evaluation.pictures import View, draw_views, select_views
from ..evaluation.wording import plural
from ..files import write_json
from ..parallel import is_main_process

_ORIGINAL_IMAGE_KEY = "original_image"


class CaseReportHandler:
    """Makes a :class:`~scripts.evaluation.case_report.CaseReport` of an evaluator's run, with pictures of its worst.

    Attach it to a :class:`monai.engines.SupervisedEvaluator` whose postprocessing leaves, for each case, label maps
    of shape (1, X, Y, Z) under ``pred`` and ``label`` on the same grid. The image of that grid is looked for under
    ``original_image`` and then, when its shape fits, under ``image``; without any the pictures show the outlines on
    black. A case is named by ``case``, or else by the file name of its image or label. The voxel size is that of the
    label. At the end of the run the report is written, its table is logged, and ``worst_<rank>_<case>.png`` are drawn
    into the same folder, from which those of an earlier run are removed at the start. Only the slices to be drawn of
    the worst cases so far are kept in memory. Of several processes, which all evaluate the same cases, the first one
    writes.

    Args:
        num_classes: number of classes with the background.
        output_dir: folder of the report and the pictures.
        class_names: names of the foreground classes in the order of their labels; None names them by numbers.
        num_pictures: how many of the worst cases to draw; 0 draws none.
        split: gives name and hash of the split, for ``metrics_weights.json``, which tells what the figures are of where
            a :class:`~scripts.handlers.checkpoint_loader.RecordedCheckpointLoader` has read the weights.
        settings: what the figures depend on beside weights and split, such as the windows, for that file.
        labels_dir: folder into which the evaluation writes its label maps, if it does. Where it lies in that of the
            report, the maps of the cases that an earlier report names are removed with it.

    Raises:
        BundleError: when the names do not fit the classes, or ``num_pictures`` is no number of them.
    """

    def __init__(
        self,
        num_classes: int,
        output_dir: str | os.PathLike[str],
        class_names: Sequence[str] | None = None,
        num_pictures: int = 3,
        split: Callable[[], Mapping[str, Any]] | None = None,
        settings: Mapping[str, Any] | None = None,
        labels_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(num_pictures, int) or num_pictures < 0:
            raise BundleError(f"num_pictures must be a whole number of at least 0, got {num_pictures!r}.")
        self.num_classes = num_classes
        self.output_dir = Path(output_dir)
        self.class_names = foreground_names(num_classes, class_names)
        self.num_pictures = num_pictures
        self.split = split
        self.settings = dict(settings or {})
        self.labels_dir = None if labels_dir is None else Path(labels_dir)
        self.logger = logging.getLogger("scripts.evaluation")
        self.report = CaseReport(self.output_dir, self.class_names)
        self._views: dict[str, list[View]] = {}
        self._started_at = 0.0

    def attach(self, engine: Engine) -> None:
        """Register the handler.

        Args:
            engine: the evaluator.
        """
        # After the weights were read: without them the figures of an earlier run stay.
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        # Decollating and postprocessing run inside the iteration, so their results are there when it has ended.
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._evaluate)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.report = CaseReport(self.output_dir, self.class_names)
        self._views = {}
        self._started_at = time.perf_counter()
        if is_main_process():
            # Those of an earlier run would pass for those of this one, should it be stopped.
            figures = [path for path in self.output_dir.glob("*") if REPORT_FILE.fullmatch(path.name)]
            for path in [*self._earlier_label_maps(), *figures]:
                path.unlink()

    def _earlier_label_maps(self) -> list[Path]:
        """Where labels_dir is of the report alone, list the label maps of the cases of the table that is there."""
        if self.labels_dir is None or not self.labels_dir.resolve().is_relative_to(self.output_dir.resolve()):
            return []
        try:
            cases = read_metrics(self.output_dir / "metrics_cases.csv")["case"]
        # There is none, or it is a table of something else.
        except (OSError, ValueError, KeyError):
            return []
        return [path for case in cases.unique() if (path := label_map_path(self.labels_dir, case)).is_file()]

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
        if not is_main_process():
            return
        self._write_facts(getattr(engine.state, "weights_sha256", None))
        for rank, case in enumerate(self.report.worst(self.num_pictures), start=1):
            file = self.output_dir / f"worst_{rank}_{case_file_name(case)}.png"
            title = f"{case}: mean Dice {100 * self.report.mean_dice(case):.1f} %"
            draw_views(self._views[case], file, title, class_names=self.class_names)
        # At the end: whoever finds the table of the cases takes the evaluation for complete.
        self.report.write()
        self.logger.info("%d %s\n%s", len(self.report), plural("case", len(self.report)), self.report.table())

    def _write_facts(self, weights_sha256: str | None) -> None:
        if weights_sha256 is not None:
            facts = {"sha256": weights_sha256, "split": self.split() if self.split else None, "settings": self.settings}
            write_json(self.output_dir / "metrics_weights.json", facts)


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
    if _ORIGINAL_IMAGE_KEY in item:
        image = convert_to_numpy(item[_ORIGINAL_IMAGE_KEY])
        if image.shape[1:] != shape:
            raise BundleError(
                f"case {case!r}: {_ORIGINAL_IMAGE_KEY} must have the shape (channels, X, Y, Z) with the grid {shape} "
                f"of the label, got {image.shape}."
            )
        return image[0]
    if CommonKeys.IMAGE in item and tuple(item[CommonKeys.IMAGE].shape[1:]) == shape:
        return convert_to_numpy(item[CommonKeys.IMAGE])[0]
    return None


def _dice_text(row: Mapping[str, Any]) -> str:
    text = f"{100 * row['dice']:.1f}"
    return text if row["status"] == "found" else f"{text} ({row['status'].replace('_', ' ')})"
