# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The same cases segmented by all methods: outlines on one slice, and surfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...errors import BundleError
from ...nifti import read_nifti, rounded
from ..canvas import new_figure, save_figure
from ..label_maps import label_map_path
from ..pictures import View, class_color, class_handles, draw_panel, outline, select_views
from .figures import Picture
from .grid import CellResult, GridResults
from .surface import frame_of, surface_picture

_PANELS_IN_A_ROW = 5
_REFERENCE_COLOR = "white"


@dataclass(frozen=True)
class _Panel:
    """One segmentation of a case: its name, what stands below it, its slice and its surface."""

    name: str
    subtitle: str
    view: View
    surface: npt.NDArray[np.float32]


def typical_cases(dice: Mapping[str, float]) -> dict[str, str]:
    """Choose the best, the median and the worst case; equal ones by name.

    Args:
        dice: mean Dice coefficient of each case.

    Returns:
        Name of the case by "best", "median" and "worst"; of fewer than three cases each stands there once.
    """
    cases = sorted(dice, key=lambda case: (dice[case], case))
    chosen: dict[str, str] = {}
    for rank, position in (("best", -1), ("median", len(cases) // 2), ("worst", 0)):
        if cases and cases[position] not in chosen.values():
            chosen[rank] = cases[position]
    return chosen


def gallery(grid: GridResults, reference: str, folder: Path) -> tuple[list[Picture], list[str]]:
    """Draw the best, the median and the worst case of the reference method as all methods segmented it.

    The label maps are those that the evaluation has kept, ``<cell>/evaluation/labels/<case>.nii.gz``, of the first
    split and seed for which the reference method has any; images and reference labels are named in ``grid.json``.

    Args:
        grid: the grid of runs.
        reference: name of an evaluated method.
        folder: where to write the PNG files ``figure_case_<rank>.png``.

    Returns:
        The pictures, and what is missing in them with the reason.
    """
    cells, cases, remarks = _common_cases(grid, reference)
    pictures = []
    if cases:
        chosen = typical_cases(cells[reference].case_means["dice"].loc[cases].to_dict())
        for rank, case in chosen.items():
            try:
                picture = _draw_case(
                    grid, cells, case, f"{rank} case of {reference}", folder / f"figure_case_{rank}.png"
                )
            except BundleError as error:
                remarks.append(f"The picture of case {case} is missing: {error}")
            else:
                pictures.append(picture)
    return pictures, remarks


def _common_cases(grid: GridResults, reference: str) -> tuple[dict[str, CellResult], list[str], list[str]]:
    """The cells of one split and seed with label maps, the cases that all of them have, and what is missing."""
    runs = [run for run, cell in grid.evaluated(reference).items() if _label_files(cell)]
    if not runs:
        return {}, [], [f"Pictures of cases are missing: the evaluation of {reference} has kept no label maps."]
    split, seed = runs[0]
    evaluated = {cell.method: cell for cell in grid.cells if cell.run == runs[0] and cell.status == "evaluated"}
    files = {method: found for method, cell in evaluated.items() if (found := _label_files(cell))}
    shown = {method: evaluated[method] for method in files}
    cases = [
        case
        for case in shown[reference].case_means.index
        if case in (grid.facts.get("cases") or {})
        and all(case in files[method] and case in cell.case_means.index for method, cell in shown.items())
    ]
    lacking = [method for method in grid.methods if method not in shown]
    if not cases:
        return shown, [], ["Pictures of cases are missing: no case of grid.json has label maps of all methods."]
    if lacking:
        names = ", ".join(lacking)
        return shown, cases, [f"Not in the pictures of cases (no label maps of {split}, seed {seed}): {names}."]
    return shown, cases, []


def _label_files(cell: CellResult) -> dict[str, Path]:
    folder = cell.folder / "evaluation" / "labels"
    files = {case: label_map_path(folder, case) for case in cell.case_means.index}
    return {case: path for case, path in files.items() if path.is_file()}


def _draw_case(grid: GridResults, cells: Mapping[str, CellResult], case: str, title: str, path: Path) -> Picture:
    panels = _panels(grid, cells, case)
    view = panels[0].view
    columns = min(_PANELS_IN_A_ROW, len(panels))
    # Sizes in inches: two lines of text, the slice as high as it needs, and a square with the surface.
    width, text_height, legend_height = 2.4, 0.45, 0.4
    slice_height = width * float(np.clip(view.image.shape[0] * view.aspect / view.image.shape[1], 0.5, 1.4))
    block = text_height + slice_height + width
    height = -(-len(panels) // columns) * block + legend_height
    figure = new_figure(columns * width, height)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left, top = column / columns, height - row * block
        middle, inner = left + 0.5 / columns, 0.97 / columns
        name_size = min(9.0, 280 / len(panel.name))
        for text, size, depth in ((panel.name, name_size, 0.06), (panel.subtitle, 8.5, 0.23)):
            figure.text(middle, (top - depth) / height, text, ha="center", va="top", fontsize=size, parse_math=False)
        bottom = top - text_height - slice_height
        _draw_outlines(figure.add_axes((left, bottom / height, inner, slice_height / height)), panel.view)
        axes = figure.add_axes((left, (bottom - width) / height, inner, width / height))
        axes.imshow(panel.surface, interpolation="bilinear")
        axes.axis("off")
    _draw_legend(figure, panels, grid.class_names)
    caption = (
        f"{case}, the {title} by mean Dice ({view.name}). Outlines of the segmentation in color over those of the "
        "reference in white; below, the surface of the whole segmentation."
    )
    return Picture(save_figure(figure, path), caption)


def _panels(grid: GridResults, cells: Mapping[str, CellResult], case: str) -> list[_Panel]:
    files = grid.facts["cases"][case]
    volume = read_nifti(files["image"])
    image, affine = np.asanyarray(volume.dataobj), volume.affine
    paths = {"reference": files["label"], **{method: _label_files(cell)[case] for method, cell in cells.items()}}
    maps = {name: rounded(np.asanyarray(read_nifti(path).dataobj)) for name, path in paths.items()}
    for name, labels in maps.items():
        if labels.shape != image.shape:
            raise BundleError(f"the label map of {name} has shape {labels.shape}, its image {image.shape}.")
        if not 0 <= labels.min() <= labels.max() <= len(grid.class_names):
            raise BundleError(f"the label map of {name} holds other classes than 0 to {len(grid.class_names)}.")
    reference = maps["reference"]
    # Of the three planes the one that shows most of the structures.
    views = select_views(image, reference, reference, affine=affine)
    number = int(np.argmax([np.count_nonzero(view.prediction) for view in views]))
    orientation = nib.orientations.io_orientation(affine)
    spacing = nib.affines.voxel_sizes(affine)[np.argsort(orientation[:, 0])]
    frame = frame_of(nib.orientations.apply_orientation(reference, orientation) > 0, spacing)
    colors = {label: to_rgb(class_color(label)) for label in range(1, len(grid.class_names) + 1)}
    panels = []
    for name, labels in maps.items():
        # Box and slice come from the reference alone, to be the same for all: here the label map stands for the image.
        labels_of_slice = select_views(labels, reference, reference, affine=affine)[number].image
        view = replace(views[number], prediction=labels_of_slice.astype(np.uint16))
        surface = surface_picture(nib.orientations.apply_orientation(labels, orientation), spacing, frame, colors)
        subtitle = f"Dice {100 * cells[name].case_means.loc[case, 'dice']:.1f} %" if name in cells else ""
        panels.append(_Panel(name, subtitle, view, surface))
    return panels


def _draw_outlines(axes: Axes, view: View) -> None:
    draw_panel(axes, view, "image")
    assert view.reference is not None
    # The reference is seen where the segmentation leaves it, and hidden where both agree.
    for label in np.unique(view.reference[view.reference > 0]):
        outline(axes, view.reference == label, color=_REFERENCE_COLOR, width=1.0)
    for label in np.unique(view.prediction[view.prediction > 0]):
        outline(axes, view.prediction == label, color=class_color(int(label)), width=1.8)


def _draw_legend(figure: Figure, panels: Sequence[_Panel], class_names: Sequence[str]) -> None:
    handles = [Line2D([], [], color=_REFERENCE_COLOR, linewidth=1, label="reference")]
    handles += class_handles([panel.view for panel in panels], class_names)
    legend = figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), fontsize=8, facecolor="black", labelcolor="white"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
