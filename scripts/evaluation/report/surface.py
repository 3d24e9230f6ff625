# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Shaded views of the surface of label maps, by casting parallel rays through the volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float64]

# Rows of the picture go down, columns to its right, and depth away from the viewer, who stands to the left in front of
# the patient and a little above (axes: to the right, to the front and to the head).
_TOWARD_VIEWER = np.array([-0.62, 0.64, 0.45]) / np.linalg.norm([-0.62, 0.64, 0.45])
_COLUMNS = np.cross(np.array([0.0, 0.0, 1.0]), _TOWARD_VIEWER)
_COLUMNS /= np.linalg.norm(_COLUMNS)
_AXES = np.stack([np.cross(_COLUMNS, _TOWARD_VIEWER), _COLUMNS, -_TOWARD_VIEWER], axis=1)
_LIGHT = np.array([-0.5, -0.4, -0.77])
_AMBIENT = 0.35
_SMOOTHING_VOXELS = 1.2


@dataclass(frozen=True)
class Frame:
    """What of a volume is in the picture: a cube around a structure, whatever side it is seen from.

    Attributes:
        center: its center in voxels.
        radius_mm: half of its edge.
    """

    center: Array
    radius_mm: float


def frame_of(mask: npt.NDArray[np.bool_], spacing_mm: Sequence[float]) -> Frame:
    """The frame of a structure, so that several label maps of it are shown in the same place and size.

    Args:
        mask: the structure, shape (X, Y, Z); the whole volume counts where it is empty.
        spacing_mm: size of a voxel along each axis in mm.

    Returns:
        The frame, with a margin.
    """
    occupied = np.argwhere(mask) if mask.any() else np.array([[0, 0, 0], np.array(mask.shape) - 1])
    low, high = occupied.min(axis=0), occupied.max(axis=0)
    extent_mm = (high - low + 1) * np.asarray(spacing_mm)
    # Half of what the box of the structure reaches along each axis of the view, the depth as well.
    reach_mm = np.abs(_AXES).T @ extent_mm / 2
    return Frame(center=(low + high) / 2, radius_mm=float(1.08 * reach_mm.max()))


def surface_picture(
    labels: npt.NDArray,
    spacing_mm: Sequence[float],
    frame: Frame,
    colors: Mapping[int, Sequence[float]],
    size: int = 140,
) -> npt.NDArray[np.float32]:
    """Draw the outer surface of the foreground, in the color of the class that lies there.

    A ray enters the foreground where the trilinear interpolation of its mask passes one half. Only the light comes from
    a smoothed mask: no voxel is added or taken away. A class inside of another one is hidden.

    Args:
        labels: label map, shape (X, Y, Z), with axes to the right, to the front and to the head.
        spacing_mm: size of a voxel along each axis in mm.
        frame: what to show; foreground beyond it is not drawn.
        colors: red, green and blue from 0 to 1 for each label.
        size: edge of the picture in pixels.

    Returns:
        The picture, shape (size, size, 3), from 0 to 1 on white.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    # Only the part that is seen is worked on; the rim keeps the smoothing the same.
    reach = frame.radius_mm * np.sqrt(3) / spacing + 4 * _SMOOTHING_VOXELS
    low = np.maximum(np.floor(frame.center - reach).astype(int), 0)
    high = np.ceil(frame.center + reach).astype(int) + 1
    labels = labels[tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))]
    foreground = (labels > 0).astype(np.float32)

    # Voxel coordinates are matrix @ (row, column, depth) + offset.
    matrix = _AXES * (2 * frame.radius_mm / (size - 1)) / spacing[:, None]
    offset = frame.center - low - matrix @ np.full(3, (size - 1) / 2)
    sampled = ndimage.affine_transform(foreground, matrix, offset, output_shape=(size, size, size), order=1)
    inside = sampled > 0.5
    picture = np.ones((size, size, 3), dtype=np.float32)
    rows, columns = np.nonzero(inside.any(axis=2))
    if rows.size == 0:
        return picture
    depths = inside.argmax(axis=2)[rows, columns]
    points = matrix @ np.stack([rows, columns, depths]).astype(np.float64) + offset[:, None]

    smooth = ndimage.gaussian_filter(foreground, _SMOOTHING_VOXELS)
    normals = np.stack([_difference_along(smooth, points, step) for step in matrix.T])
    normals /= np.maximum(np.linalg.norm(normals, axis=0), 1e-6)
    brightness = _AMBIENT + (1 - _AMBIENT) * np.clip(_LIGHT @ normals / np.linalg.norm(_LIGHT), 0, 1)

    present = [int(label) for label in np.unique(labels) if label > 0]
    shares = [ndimage.map_coordinates((labels == label).astype(np.float32), points, order=1) for label in present]
    palette = np.array([colors[label] for label in present])
    picture[rows, columns] = palette[np.argmax(shares, axis=0)] * brightness[:, None]
    return picture


def _difference_along(volume: npt.NDArray[np.float32], points: Array, step: Array) -> Array:
    """How much the volume falls from one pixel before the points to one behind them: points outward."""
    before = ndimage.map_coordinates(volume, points - step[:, None], order=1)
    behind = ndimage.map_coordinates(volume, points + step[:, None], order=1)
    return before - behind
