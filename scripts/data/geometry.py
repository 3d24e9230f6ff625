# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sizes of the scans of a training and of what was labeled in them, and warnings of others."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from monai.transforms.utils import generate_spatial_bounding_box
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from ..nifti import rounded

#: How many times larger or smaller than in the training voxels may be without a warning.
_MAX_SPACING_RATIO = 1.25
#: How many times larger than in the training a volume may be along an axis without a warning.
_MAX_EXTENT_RATIO = 1.5
#: How many times larger or smaller than in the labels of the training a class may be without a warning.
_MAX_CLASS_RATIO = 1.25
#: How many headers tell of a training at most.
_NUM_HEADERS = 250
#: How many label maps do, which are read to their end.
_NUM_LABELS = 64
_logger = logging.getLogger(__name__)
_Item = TypeVar("_Item")


def volume_geometry(
    data: Sequence[Mapping[str, Any]],
    *,
    num_classes: int,
    box_margin: int | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Measure the files of a training, so that inference can warn of others; warn of unlike ones not resampled.

    Args:
        data: dictionaries with the path of a volume under "image" or "unlabeled", and of its label map under "label"
            where it has one; of a longer list every n-th is read, at most 250 headers and 64 label maps.
            Files that cannot be read are left to the training.
        num_classes: number of classes with the background.
        box_margin: voxels around the box of a case to which the training crops it, see
            :class:`scripts.data.boxes.CropToBoxd`; None where it sees the whole volumes.
        spacing_mm: voxels of the training, which the margin counts; None for those of each file.

    Returns:
        ``trained_spacing``, the geometric middle of the smallest and the largest voxels in mm along x, y and z, and
        ``trained_extent``, the largest extent, see :func:`geometry_warnings`; ``trained_margin``, the median distance
        from the box around all classes to the border of the volume; and ``trained_class_volumes``, the
        smallest and the largest volume in ml of each foreground class, see :func:`class_volume_warnings`. None for what
        no file tells, and for the first where the files themselves differ by more than inference would warn of.
    """
    sizes = []
    for item in _some(data, _NUM_HEADERS):
        try:
            volume: Any = nib.load(item.get("image") or item["unlabeled"])
            spacing, extent = _sizes(volume.affine, volume.shape[:3])
            if box_margin is not None:
                _, of_box = _sizes(volume.affine, np.subtract(*item["box"][::-1]))
                extent = np.minimum(extent, of_box + 2 * box_margin * np.asarray(spacing_mm or spacing))
            sizes.append((spacing, extent))
        # As many ways to fail as there are readers.
        except Exception as error:
            _logger.debug("%s: %s", item, error)
    measured: dict[str, Any] = dict.fromkeys(
        ("trained_spacing", "trained_extent", "trained_margin", "trained_class_volumes")
    )
    if sizes:
        spacings, extents = map(np.array, zip(*sizes, strict=True))
        smallest, largest = spacings.min(axis=0), spacings.max(axis=0)
        alike = (largest <= _MAX_SPACING_RATIO**2 * smallest).all()
        if not alike and spacing_mm is None:
            _logger.warning(
                "the volumes of the training have voxels of %s to %s and are not resampled: give them one size by "
                "--spacing.",
                _in_mm(smallest),
                _in_mm(largest),
            )
        measured["trained_spacing"] = _rounded(np.sqrt(smallest * largest)) if alike else None
        measured["trained_extent"] = _rounded(extents.max(axis=0))
    class_volumes, margins = _labeled_volumes([item["label"] for item in data if "label" in item], num_classes)
    if class_volumes:
        ranges = zip(np.min(class_volumes, axis=0), np.max(class_volumes, axis=0), strict=True)
        measured["trained_class_volumes"] = [_rounded(pair) for pair in ranges]
    if margins and sizes:
        margin = np.median(margins, axis=(0, 1))
        if box_margin is not None:
            margin = np.minimum(margin, box_margin * np.asarray(spacing_mm or np.median(spacings, axis=0)))
        measured["trained_margin"] = _rounded(margin)
    return measured


def _some(items: Sequence[_Item], most: int) -> Sequence[_Item]:
    return items[:: max(1, math.ceil(len(items) / most))]


def _labeled_volumes(
    paths: Sequence[str], num_classes: int
) -> tuple[list[list[float]], list[tuple[NDArray[Any], NDArray[Any]]]]:
    """Volumes of the foreground classes in ml, of some of the label maps; both margins in mm, of those with a class."""
    volumes, margins = [], []
    for path in _some(paths, _NUM_LABELS):
        try:
            label: Any = nib.load(path)
            label_map = rounded(np.asanyarray(label.dataobj))
            volumes.append(_class_volumes(label_map, label.affine, num_classes))
            if label_map.any():
                margins.append(_margins(label_map, label.affine))
        except Exception as error:
            _logger.debug("%s: %s", path, error)
    return volumes, margins


def _margins(label_map: NDArray[Any], affine: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """From the box around all classes to the border in mm along x, y and z, on the one and on the other side."""
    start, stop = map(np.asarray, generate_spatial_bounding_box(label_map[None]))
    spacing, axes = voxel_sizes(affine), patient_axes(affine)
    return (start * spacing)[axes], ((label_map.shape - stop) * spacing)[axes]


def _class_volumes(label_map: NDArray[Any], affine: Any, num_classes: int) -> list[float]:
    """Volumes of the foreground classes in ml."""
    voxel = abs(np.linalg.det(np.asarray(affine)[:3, :3])) / 1000
    return [voxel * float(np.count_nonzero(label_map == index)) for index in range(1, num_classes)]


def patient_axes(affine: Any) -> NDArray[np.intp]:
    """Find the axes of a volume along x, y and z of the patient.

    Args:
        affine: voxel indices to mm, 4x4.

    Returns:
        the number of the axis of the array that is next to each of the three.
    """
    return np.argsort(io_orientation(affine)[:, 0])


def geometry_warnings(
    path: str,
    affine: Any,
    shape: Sequence[int],
    *,
    trained_spacing: Sequence[float] | None,
    trained_extent: Sequence[float] | None,
) -> list[str]:
    """Tell what makes a volume unlike those of the training.

    Args:
        path: its file.
        affine: voxel indices to mm, 4x4, of the file.
        shape: (X, Y, Z) of the file.
        trained_spacing: voxel sizes in mm, along x, y and z, of the files that the network was trained on. None skips
            it.
        trained_extent: largest extent in mm, along x, y and z, of these; warned of is what is half as large again. None
            skips it.

    Returns:
        a sentence for each difference.
    """
    spacing, extent = _sizes(affine, shape)
    warnings = []
    if trained_spacing is not None:
        ratio = spacing / np.asarray(trained_spacing)
        if ratio.max() > _MAX_SPACING_RATIO or ratio.min() < 1 / _MAX_SPACING_RATIO:
            warnings.append(
                f"{path} has voxels of {_in_mm(spacing)}, the weights are for {_in_mm(trained_spacing)}: check the "
                "result."
            )
    if trained_extent is not None and is_larger_than_trained(affine, shape, trained_extent):
        warnings.append(
            f"{path} spans {_in_mm(extent)}, the weights are for volumes of up to {_in_mm(trained_extent)} around the "
            "organ: crop the volume, or have the organ found first by crop_to_organs 1; check the result."
        )
    return warnings


def is_larger_than_trained(affine: Any, shape: Sequence[int], trained_extent: Sequence[float]) -> bool:
    """Tell whether a volume is half as large again as those of the training along an axis.

    Args:
        affine: voxel indices to mm, 4x4.
        shape: (X, Y, Z).
        trained_extent: largest extent in mm, along x, y and z, of those of the training.

    Returns:
        whether it is.
    """
    _, extent = _sizes(affine, shape)
    return bool((extent > _MAX_EXTENT_RATIO * np.asarray(trained_extent)).any())


def class_volume_warnings(
    path: str,
    label_map: NDArray[Any],
    affine: Any,
    *,
    num_classes: int,
    trained_class_volumes: Sequence[Sequence[float]] | None,
) -> list[str]:
    """Tell which classes of a segmentation are smaller or larger than in the training: mostly the network has failed.

    Args:
        path: file of the volume that was segmented.
        label_map: class indices, (X, Y, Z), that the network gave.
        affine: voxel indices to mm, 4x4, of the label map.
        num_classes: number of classes with the background.
        trained_class_volumes: smallest and largest volume in ml of each foreground class in the labels of the training;
            warned of is what is a quarter smaller or larger. None warns of a map without any foreground alone.

    Returns:
        a sentence for each class, or one where nothing was found.
    """
    found = _class_volumes(label_map, affine, num_classes)
    if not any(found):
        return [f"{path}: nothing was found, the label map is empty: check the image."]
    if trained_class_volumes is None:
        return []
    return [
        f"{path}: class {index} fills {volume:.4g} ml, in the labels of the training {smallest:.4g} to {largest:.4g} "
        "ml: check the result."
        for index, (volume, (smallest, largest)) in enumerate(zip(found, trained_class_volumes, strict=True), start=1)
        if not smallest / _MAX_CLASS_RATIO <= volume <= largest * _MAX_CLASS_RATIO
    ]


def _sizes(affine: Any, shape: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxel sizes and extent in mm along x, y and z of a volume of any orientation."""
    axes = patient_axes(affine)
    spacing = voxel_sizes(affine)[axes]
    return spacing, spacing * np.asarray(shape)[axes]


def _rounded(sizes: Iterable[float]) -> list[float]:
    return [float(f"{size:.4g}") for size in sizes]


def _in_mm(sizes: Iterable[float]) -> str:
    return f"{'x'.join(f'{size:.4g}' for size in sizes)} mm"
