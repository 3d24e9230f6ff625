# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Pages with a slice of every case of a data set and the outline of its label, to be looked through before training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import BundleError
from ..nifti import read_nifti, rounded
from .canvas import new_figure, save_figure
from .pictures import View, draw_panel, intensity_window, surroundings

_logger = logging.getLogger(__name__)
_COLUMNS, _ROWS = 6, 5
_PANEL_INCHES = 2.0
_MAX_LETTERS = 28


def draw_montage(cases: Mapping[str, tuple[Path, Path | None]], output_dir: Path, *, jobs: int = 2) -> list[Path]:
    """Draw the axial slice with the largest area of the label of each case, thirty cases a page.

    The slices are whole, and turned by the affine of their file: the front of the body is up, its right side is on the
    right. A body that lies otherwise, or an outline that misses its organ, tells of a wrong affine.

    Args:
        cases: for each id the NIfTI files of its image and of its label, or None; one that cannot be read is left out.
        output_dir: folder of the pages, ``montage_01.png`` and so on; pages that are there are replaced.
        jobs: cases read at the same time.

    Returns:
        The pages.
    """
    names = list(cases)
    pages: list[Path] = []
    for start in range(0, len(names), _COLUMNS * _ROWS):
        chosen = names[start : start + _COLUMNS * _ROWS]
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            views = [view for view in pool.map(lambda name: _axial_view(name, *cases[name]), chosen) if view]
        if views:
            pages.append(_draw_page(views, output_dir / f"montage_{len(pages) + 1:02d}.png"))
    return pages


def _axial_view(name: str, image_path: Path, label_path: Path | None) -> View | None:
    try:
        image = nib.as_closest_canonical(read_nifti(image_path))
        turned = None if label_path is None else nib.as_closest_canonical(read_nifti(label_path))
    except BundleError as error:
        _logger.warning("%s is not in the montage: %s", name, error)
        return None
    voxels = np.asanyarray(image.dataobj)
    label = np.zeros(voxels.shape, dtype=np.uint8)
    if turned is not None:
        label = rounded(np.asanyarray(turned.dataobj))
    areas = np.count_nonzero(label, axis=(0, 1))
    index = int(areas.argmax()) if areas.any() else len(areas) // 2
    across_mm, up_mm = nib.affines.voxel_sizes(image.affine)[:2]
    return View(
        name=name,
        image=voxels[..., index].T.astype(np.float32),
        prediction=label[..., index].T.astype(np.uint16),
        reference=None,
        aspect=float(up_mm / across_mm),
        window=intensity_window(voxels[surroundings(label > 0)]),
        sides=("L", "R"),
    )


def _draw_page(views: Sequence[View], path: Path) -> Path:
    columns = min(len(views), _COLUMNS)
    rows = -(-len(views) // columns)
    figure = new_figure(_PANEL_INCHES * columns, (_PANEL_INCHES + 0.2) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.01, top=1 - 0.2 / rows / _PANEL_INCHES, wspace=0.04, hspace=0.12
    )
    for axes in grid[len(views) :]:
        axes.axis("off")
    for axes, view in zip(grid, views):
        draw_panel(axes, view, "prediction")
        # Text is taken literally: a dollar sign in a file name starts no formula.
        axes.set_title(_short(view.name), fontsize=7, pad=2, parse_math=False)
    return save_figure(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_LETTERS else f"...{name[-_MAX_LETTERS:]}"
