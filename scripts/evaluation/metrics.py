# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Overlap and surface distance of two masks, with the definitions that the literature of the field reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..errors import BundleError

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]
Status = Literal["found", "missed", "false_positive", "absent"]

METRIC_NAMES = ("dice", "jaccard", "hd95_voxel", "asd_voxel", "hd95_mm", "asd_mm")


def surface(mask: Mask) -> Mask:
    """Foreground voxels with a background voxel among their face neighbors; beyond the array all is background.

    Args:
        mask: boolean array.

    Returns:
        Boolean array of the same shape.
    """
    footprint = ndimage.generate_binary_structure(mask.ndim, 1)
    return mask & ~ndimage.binary_erosion(mask, structure=footprint, border_value=0)


def segmentation_metrics(
    prediction: npt.ArrayLike, reference: npt.ArrayLike, spacing_mm: Sequence[float]
) -> dict[str, float | Status]:
    """All metrics of one pair of masks P (prediction) and R (reference), as the medpy library has them.

    - ``dice``: ``2 |P and R| / (|P| + |R|)``. ``jaccard``: ``|P and R| / |P or R|``.
    - ``hd95``: 95th percentile of the surface distances of both directions taken together. The maximum of the 95th
      percentiles of the two directions, which other libraries report under the same name, is never smaller and often
      larger.
    - ``asd``: mean distance from the surface of P to that of R, one direction only. It does not see parts of R that P
      lacks; ``hd95`` does.

    The published tables use these definitions. What is empty has no surface:

    | reference | prediction | status | Dice, Jaccard | distances |
    |-----------|------------|--------|---------------|-----------|
    | present | present | ``"found"`` | as they are | as they are |
    | present | empty | ``"missed"`` | 0 | NaN |
    | empty | present | ``"false_positive"`` | 0 | NaN |
    | empty | empty | ``"absent"`` | 1 | NaN |

    Args:
        prediction: mask of any shape, non-zero is foreground.
        reference: mask of the same shape.
        spacing_mm: size of a voxel along each axis in mm.

    Returns:
        The keys ``dice``, ``jaccard``, ``hd95_voxel``, ``asd_voxel``, ``hd95_mm``, ``asd_mm`` and ``status``.

    Raises:
        BundleError: when the shapes differ, or ``spacing_mm`` is not one positive number an axis.
    """
    predicted, expected = _as_masks(prediction, reference)
    sampling = _as_spacing(spacing_mm, axes=predicted.ndim)
    status = _status(predicted, expected)
    values: dict[str, float | Status] = dict.fromkeys(METRIC_NAMES, float("nan"))
    values["dice"], values["jaccard"] = _overlaps(predicted, expected)
    values["status"] = status
    if status != "found":
        return values

    predicted, expected = _crop_to_foreground(predicted, expected)
    # Extracted once for voxels and millimeters.
    surfaces = surface(predicted), surface(expected)
    in_voxels = _distances_between(*surfaces, None)
    if np.all(sampling == sampling[0]):
        # Cubic voxels need no second distance transform: lengths only change their unit.
        in_mm = in_voxels[0] * sampling[0], in_voxels[1] * sampling[0]
    else:
        in_mm = _distances_between(*surfaces, sampling)
    for unit, distances in (("voxel", in_voxels), ("mm", in_mm)):
        values[f"hd95_{unit}"] = float(np.percentile(np.concatenate(distances), 95))
        values[f"asd_{unit}"] = float(distances[0].mean())
    return values


def evaluate_case(
    prediction: npt.ArrayLike,
    reference: npt.ArrayLike,
    num_classes: int,
    spacing_mm: Sequence[float],
    class_names: Sequence[str] | None = None,
) -> list[dict[str, float | str]]:
    """Metrics of one case: a row for each foreground class.

    Args:
        prediction: label map, shape (X, Y, Z), whole numbers from 0 (background) to ``num_classes - 1``.
        reference: label map of the same shape and range.
        num_classes: number of classes with the background.
        spacing_mm: size of a voxel along each axis in mm.
        class_names: names of the foreground classes in the order of their labels; None names them ``"1"``, ``"2"``...

    Returns:
        For each foreground class the key ``class`` and the keys of :func:`segmentation_metrics`.

    Raises:
        BundleError: when a shape, a label value, the spacing or the number of names does not fit.
    """
    names = foreground_names(num_classes, class_names)
    predicted, expected = np.asarray(prediction), np.asarray(reference)
    if predicted.ndim != 3 or predicted.shape != expected.shape:
        raise BundleError(
            "prediction and reference must be label maps of one shape (X, Y, Z), "
            f"got {predicted.shape} and {expected.shape}."
        )
    _check_labels("prediction", predicted, num_classes=num_classes)
    _check_labels("reference", expected, num_classes=num_classes)
    return [
        {"class": name, **segmentation_metrics(predicted == label, expected == label, spacing_mm)}
        for label, name in enumerate(names, start=1)
    ]


def foreground_names(num_classes: int, class_names: Sequence[str] | None = None) -> list[str]:
    """Names of the foreground classes, by default their label numbers.

    Args:
        num_classes: number of classes with the background.
        class_names: names of the foreground classes in the order of their labels, or None.

    Returns:
        ``num_classes - 1`` names.

    Raises:
        BundleError: when there is no foreground class, or the names do not fit the classes one to one.
    """
    if num_classes < 2:
        raise BundleError(f"num_classes must be at least 2 (background and one class), got {num_classes}.")
    if class_names is None:
        return [str(label) for label in range(1, num_classes)]
    if isinstance(class_names, str) or len(class_names) != num_classes - 1 or len(set(class_names)) < len(class_names):
        raise BundleError(
            f"class_names must be a list of {num_classes - 1} different names, one a foreground class, "
            f"got {class_names!r}."
        )
    return list(class_names)


def _as_masks(prediction: npt.ArrayLike, reference: npt.ArrayLike) -> tuple[Mask, Mask]:
    predicted, expected = np.asarray(prediction, dtype=bool), np.asarray(reference, dtype=bool)
    if predicted.ndim == 0 or predicted.shape != expected.shape:
        raise BundleError(
            f"prediction and reference must be arrays of one shape, got {predicted.shape} and {expected.shape}."
        )
    return predicted, expected


def _as_spacing(spacing: Sequence[float], *, axes: int) -> npt.NDArray[np.float64]:
    values = np.asarray(spacing, dtype=np.float64)
    if values.shape != (axes,) or not np.all(np.isfinite(values)) or np.any(values <= 0):
        raise BundleError(f"spacing_mm must be {axes} positive numbers, one an axis, got {values.tolist()}.")
    return values


def _check_labels(name: str, labels: npt.NDArray, *, num_classes: int) -> None:
    if labels.size == 0:
        raise BundleError(f"{name} must have voxels, got the shape {labels.shape}.")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
        raise BundleError(f"{name} must hold whole numbers (a label map), got other values: arg-max is missing?")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= num_classes:
        raise BundleError(f"{name} must hold labels from 0 to {num_classes - 1}, got values from {low} to {high}.")


def _status(prediction: Mask, reference: Mask) -> Status:
    if reference.any():
        return "found" if prediction.any() else "missed"
    return "false_positive" if prediction.any() else "absent"


def _overlaps(prediction: Mask, reference: Mask) -> tuple[float, float]:
    both = np.count_nonzero(prediction & reference)
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    if total == 0:
        return 1.0, 1.0
    return float(2 * both / total), float(both / (total - both))


def _crop_to_foreground(prediction: Mask, reference: Mask) -> tuple[Mask, Mask]:
    # Exact: all that is cut away is background in both masks, which is also what the erosion assumes outside.
    box = ndimage.find_objects((prediction | reference).astype(np.uint8))[0]
    return prediction[box], reference[box]


def _distances_between(
    surface_a: Mask, surface_b: Mask, sampling: npt.NDArray[np.float64] | None
) -> tuple[Distances, Distances]:
    """Distances of each surface voxel of a to the nearest of b, and of b to a, unsorted; in voxels without sampling."""
    # The transform measures to the nearest zero, so the surface is the zero set.
    to_b = ndimage.distance_transform_edt(~surface_b, sampling=sampling)[surface_a]
    to_a = ndimage.distance_transform_edt(~surface_a, sampling=sampling)[surface_b]
    return to_b, to_a
