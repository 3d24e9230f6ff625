# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Voxel sizes and extent of the volumes of a training, and warnings of others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

#: How many times larger or smaller than in the training voxels may be without a warning.
_MAX_SPACING_RATIO = 1.25
#: How many times larger than in the training a volume may be along an axis without a warning.
_MAX_EXTENT_RATIO = 1.5
#: About how many headers tell of a training.
_NUM_HEADERS = 250
_logger = logging.getLogger(__name__)


def volume_geometry(
    data: Sequence[Mapping[str, Any]], *, box_margin: int | None = None, spacing_mm: Sequence[float] | None = None
) -> dict[str, list[float] | None]:
    """Describe the volumes of a training, so that inference can warn of others, see :func:`warn_of_geometry`.

    Args:
        data: dictionaries with the path of a volume under "image" or "unlabeled"; of a longer list the headers of
            every n-th are read, some 250. Files that cannot be read are left to the training.
        box_margin: voxels around the box of a case to which the training crops it, see
            :class:`scripts.data.boxes.CropToBoxd`; None where it sees the whole volumes.
        spacing_mm: voxels of the training, which the margin counts; None for those of each file.

    Returns:
        ``trained_spacing``, the geometric middle of the smallest and the largest voxels in mm along x, y and z, and
        ``trained_extent``, the largest extent. None for both without any header, and for the first where the volumes
        themselves differ by more than inference would warn of.
    """
    sizes = []
    for item in data[:: len(data) // _NUM_HEADERS + 1]:
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
    if not sizes:
        return {"trained_spacing": None, "trained_extent": None}
    spacings, extents = map(np.array, zip(*sizes, strict=True))
    smallest, largest = spacings.min(axis=0), spacings.max(axis=0)
    alike = (largest <= _MAX_SPACING_RATIO**2 * smallest).all()
    return {
        "trained_spacing": _rounded(np.sqrt(smallest * largest)) if alike else None,
        "trained_extent": _rounded(extents.max(axis=0)),
    }


def warn_of_geometry(
    path: str,
    affine: Any,
    shape: Sequence[int],
    *,
    trained_spacing: Sequence[float] | None,
    trained_extent: Sequence[float] | None,
) -> None:
    """Warn of a volume that is unlike those of the training.

    Args:
        path: its file.
        affine: voxel indices to mm, 4x4, of the file.
        shape: (X, Y, Z) of the file.
        trained_spacing: voxel sizes in mm, along x, y and z, of the files that the network was trained on. None skips
            it.
        trained_extent: largest extent in mm, along x, y and z, of these; warned of is what is half as large again. None
            skips it.
    """
    spacing, extent = _sizes(affine, shape)
    if trained_spacing is not None:
        ratio = spacing / np.asarray(trained_spacing)
        if ratio.max() > _MAX_SPACING_RATIO or ratio.min() < 1 / _MAX_SPACING_RATIO:
            sizes = (_in_mm(spacing), _in_mm(trained_spacing))
            _logger.warning("%s has voxels of %s, the weights are for %s: check the result.", path, *sizes)
    if trained_extent is not None and (extent > _MAX_EXTENT_RATIO * np.asarray(trained_extent)).any():
        sizes = (_in_mm(extent), _in_mm(trained_extent))
        _logger.warning(
            "%s spans %s, the weights are for volumes of up to %s around the organ: check the result, crop the "
            "volume, or keep the largest component alone.",
            path,
            *sizes,
        )


def _sizes(affine: Any, shape: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxel sizes and extent in mm along x, y and z of a volume of any orientation."""
    axes = np.argsort(io_orientation(affine)[:, 0])
    spacing = voxel_sizes(affine)[axes]
    return spacing, spacing * np.asarray(shape)[axes]


def _rounded(sizes: Iterable[float]) -> list[float]:
    return [float(f"{size:.4g}") for size in sizes]


def _in_mm(sizes: Iterable[float]) -> str:
    return f"{'x'.join(f'{size:.4g}' for size in sizes)} mm"
