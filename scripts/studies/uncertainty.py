# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Whether the disagreement of both networks and the class probabilities tell where and when a segmentation is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from ..console import mistakes_in_one_line
from ..errors import BundleError
from ..evaluation.canvas import light_grid, new_figure, save_figure
from ..evaluation.wording import markdown_table
from ..files import write_text
from ..inference_configuration import checked_configuration
from ..nifti import read_nifti
from ..weights import check_disagreement
from .cases import (
    Case,
    check_margin,
    check_references,
    claimed_study,
    label_array,
    measure_on_reference,
    near_foreground,
    segment,
    segmented,
    study_cases,
)

_NUM_BINS = 15
#: Of fewer cases a rank correlation is 1 or -1 too easily.
_FEWEST_CASES = 5


class Bins(NamedTuple):
    """Confidence, share of right voxels and number of voxels of each bin, all of shape (bins,)."""

    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    voxels: npt.NDArray[np.float64]


def area_under_curve(score: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Probability that a random positive has a higher score than a random negative, ties by half: the ROC's area.

    Args:
        score: numbers of any shape.
        positive: which of them are positive, same shape.

    Returns:
        the area from 0 to 1; NaN without a positive or without a negative.
    """
    flags = np.asarray(positive, dtype=bool).ravel()
    num_positive = int(flags.sum())
    num_negative = flags.size - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    scores = np.asarray(score).ravel()
    larger = stats.mannwhitneyu(scores[flags], scores[~flags], method="asymptotic").statistic
    return float(larger / num_positive / num_negative)


def calibration_bins(probabilities: npt.NDArray, label: npt.NDArray[np.integer], region: npt.NDArray[np.bool_]) -> Bins:
    """Sort voxels by the probability of the predicted class.

    Args:
        probabilities: (C, X, Y, Z).
        label: true class indices, (X, Y, Z).
        region: which voxels count, (X, Y, Z).

    Returns:
        fifteen bins of equal width; those without a voxel hold 0.
    """
    confidence = probabilities.max(axis=0)[region].astype(np.float64)
    right = (probabilities.argmax(axis=0) == label)[region]
    # In float64: monai.metrics.calibration_binning adds voxels one by one in float32, which loses the small addends of
    # a million voxels and all beyond 2**24.
    bins = np.minimum((confidence * _NUM_BINS).astype(np.intp), _NUM_BINS - 1)
    voxels, sum_of_confidence, num_right = (
        np.bincount(bins, weights, minlength=_NUM_BINS).astype(np.float64) for weights in (None, confidence, right)
    )
    counted = np.maximum(voxels, 1)
    return Bins(sum_of_confidence / counted, num_right / counted, voxels)


def pool_bins(parts: Sequence[Bins]) -> Bins:
    """Join the bins of several cases, as if all their voxels had been sorted at once.

    Args:
        parts: see :func:`calibration_bins`.

    Returns:
        bins of all voxels.
    """
    voxels = np.sum([part.voxels for part in parts], axis=0)
    confidence = np.sum([part.confidence * part.voxels for part in parts], axis=0) / np.maximum(voxels, 1)
    accuracy = np.sum([part.accuracy * part.voxels for part in parts], axis=0) / np.maximum(voxels, 1)
    return Bins(confidence, accuracy, voxels)


def expected_calibration_error(bins: Bins) -> float:
    """Mean distance of confidence and accuracy over all voxels.

    Args:
        bins: see :func:`calibration_bins`.

    Returns:
        the error from 0 to 1; NaN without a voxel.
    """
    total = bins.voxels.sum()
    return float((bins.voxels * np.abs(bins.confidence - bins.accuracy)).sum() / total) if total else float("nan")


def study_uncertainty(
    dataset_dir: str,
    split_file: str,
    output_dir: str,
    config_file: Sequence[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    num_cases: int | None = None,
    margin_mm: float = 5.0,
) -> Path:
    """Segment the test cases with all maps, and compare the maps with the errors.

    Most of a volume is background that nobody would doubt. So voxels are counted twice: all of them, and those within
    ``margin_mm`` of the foreground of prediction or reference.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file; the test list counts.
        output_dir: folder of the tables, the pictures and the maps; a study that was stopped goes on.
        config_file: see :func:`scripts.inference_configuration.inference_configs`.
        overrides: values by key of that configuration, such as ckpt_path.
        num_cases: the first so many cases of the list.
        margin_mm: that distance in mm.

    Returns:
        the summary, ``uncertainty.md``.

    Raises:
        BundleError: when an argument is not allowed, or the folder holds a finished study.
    """
    check_margin(margin_mm)
    if (Path(output_dir) / "uncertainty.md").exists():
        raise BundleError(f"output_dir {output_dir} already holds a study: choose another --output_dir.")
    cases = study_cases(dataset_dir, split_file, num_cases=num_cases)
    arguments = inspect.signature(study_uncertainty).parameters
    asked = checked_configuration(config_file, {**(overrides or {}), "save_uncertainty": True}, arguments=arguments)
    with mistakes_in_one_line():
        check_disagreement(asked.get_parsed_content("network_def"))
    with claimed_study(
        output_dir, cases, config_file, overrides or {}, arguments=arguments, margin_mm=margin_mm
    ) as study:
        # Before the hours of the networks: the maps are compared with the references voxel by voxel.
        check_references(study)
        output, images = study.folder, (read_nifti(case.image) for case in cases)
        segment(study, images, output, save_probabilities=True, save_uncertainty=True)
        measured = [_measure(case, output, margin_mm=margin_mm) for case in cases]
        table = pd.DataFrame([row for row, _ in measured])
        bins = {name: pool_bins([each[name] for _, each in measured]) for name in ("all", "near")}
        write_text(output / "uncertainty_cases.csv", table.to_csv(index=False))
        _draw(table, bins, output / "uncertainty.png")
        return write_text(output / "uncertainty.md", _summarize(table, bins, margin_mm))


def _measure(case: Case, folder: Path, *, margin_mm: float) -> tuple[dict[str, Any], dict[str, Bins]]:
    reference, prediction = read_nifti(case.label), segmented(folder, case)
    probabilities = np.moveaxis(segmented(folder, case, "probabilities").get_fdata(dtype=np.float32), -1, 0)
    disagreement = segmented(folder, case, "uncertainty").get_fdata(dtype=np.float32)
    label, predicted = label_array(reference), label_array(prediction)
    foreground = (label > 0) | (predicted > 0)
    near = near_foreground(foreground, reference.affine, margin_mm)
    regions = {"all": np.ones(label.shape, dtype=bool), "near": near}
    wrong = predicted != label
    entropy = stats.entropy(probabilities, axis=0)
    row: dict[str, Any] = {"case": case.name}
    rows = measure_on_reference(prediction, reference, len(probabilities))
    row["dice"] = float(np.mean([entry["dice"] for entry in rows]))
    for name, region in regions.items():
        row[f"auroc_disagreement_{name}"] = area_under_curve(disagreement[region], wrong[region])
        row[f"auroc_entropy_{name}"] = area_under_curve(entropy[region], wrong[region])
    row["mean_disagreement"] = float(disagreement[near].mean()) if near.any() else float("nan")
    return row, {name: calibration_bins(probabilities, label, region) for name, region in regions.items()}


def _summarize(table: pd.DataFrame, bins: Mapping[str, Bins], margin_mm: float) -> str:
    # Where neither prediction nor reference has foreground, nothing is near it.
    known = table.dropna(subset="mean_disagreement")
    regions = ("all", "near")
    rows = [
        [
            f"AUROC of the {name} for wrong voxels, mean over cases",
            *(f"{table[f'auroc_{name}_{region}'].mean():.3f}" for region in regions),
        ]
        for name in ("disagreement", "entropy")
    ]
    errors = (f"{expected_calibration_error(bins[region]):.4f}" for region in regions)
    rows.append(["expected calibration error of the mean probabilities", *errors])
    return (
        f"{len(table)} test cases, Dice {100 * table['dice'].mean():.2f} %.\n\n"
        f"{markdown_table(('Question', 'Whole volume', 'Near the foreground'), rows)}\n\n"
        f"Near: within {margin_mm:g} mm of the foreground of prediction or reference. Per case, the mean disagreement "
        f"near the foreground against Dice: {_compare_cases(known)}.\n"
    )


def _compare_cases(table: pd.DataFrame) -> str:
    if len(table) < _FEWEST_CASES:
        return f"{len(table)} cases are too few to tell"
    correlation = stats.spearmanr(table["mean_disagreement"], table["dice"])
    below = table["dice"] < table["dice"].median()
    return (
        f"Spearman correlation {correlation.statistic:.2f} (p = {correlation.pvalue:.3g}), AUROC for the half of the "
        f"cases with the lower Dice {area_under_curve(table['mean_disagreement'], below):.3f}"
    )


def _draw(table: pd.DataFrame, bins: Mapping[str, Bins], path: Path) -> Path:
    figure = new_figure(10, 4, layout="constrained")
    reliability, scatter = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="perfect")
    for name, label in (("all", "whole volume"), ("near", "near the foreground")):
        filled = bins[name].voxels > 0
        reliability.plot(bins[name].confidence[filled], bins[name].accuracy[filled], marker="o", label=label)
    reliability.set(xlabel="probability of the predicted class", ylabel="share of right voxels")
    lowest = min(float(each.confidence[each.voxels > 0].min(initial=1)) for each in bins.values())
    reliability.set_xlim(min(lowest, 0.5) - 0.02, 1.02)
    reliability.legend(frameon=False)
    scatter.scatter(table["mean_disagreement"], 100 * table["dice"], s=18)
    scatter.set(xlabel="mean disagreement near the foreground", ylabel="Dice [%]")
    for axes in (reliability, scatter):
        light_grid(axes)
    return save_figure(figure, path)
