# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Pictures of cases: slices with the outlines of reference and prediction, and where the two differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy import ndimage

from ..errors import BundleError
from ..nifti import rounded, unfit_labels
from .canvas import new_figure, save_figure
from .metrics import foreground_names

# After Okabe and Ito, whose colors stay apart for all common kinds of color vision; green and blue are brighter here
# so that they show on dark images. The first classes share no color with the differences.
CLASS_COLORS = ("#1FD19B", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#9A8CFF")
EXTRA_COLOR, LACKING_COLOR, CONFUSED_COLOR = "#D55E00", "#2E8BE6", "#F0E442"
PLANES = (("sagittal", "x"), ("coronal", "y"), ("axial", "z"))
#: What a panel shows of a slice.
Content = Literal["image", "reference", "prediction", "difference"]


@dataclass(frozen=True)
class View:
    """One slice of a case, cut to the surroundings of the structures: rows go up, columns to the right.

    Attributes:
        name: the plane and the index of the slice (in the turned volume, where an affine was given).
        image: intensities, shape (rows, columns).
        prediction: label map of the same shape.
        reference: label map of the same shape, or None.
        aspect: height of a pixel divided by its width.
        window: intensities shown as black and as white.
        sides: the sides of the body at the left and the right of the picture, such as ("L", "R"); None where no affine
            tells them.
    """

    name: str
    image: npt.NDArray[np.float32]
    prediction: npt.NDArray[np.uint16]
    reference: npt.NDArray[np.uint16] | None
    aspect: float
    window: tuple[float, float]
    sides: tuple[str, str] | None = None


def case_picture(
    image: npt.ArrayLike,
    reference: npt.ArrayLike | None,
    prediction: npt.ArrayLike,
    path: str | os.PathLike[str],
    title: str,
    class_names: Sequence[str] | None = None,
    num_slices: int = 1,
    affine: npt.ArrayLike | None = None,
) -> Path:
    """Draw slices of a case: the image, the outlines of reference and prediction, and where the two differ.

    Args:
        image: intensities, shape (X, Y, Z).
        reference: label map of the same shape, or None: then only the image and the prediction are drawn.
        prediction: label map of the same shape.
        path: the PNG file to write; its folder is made when it is missing.
        title: text above the picture.
        class_names: names of the foreground classes in the order of their labels; None numbers them.
        num_slices: slices a plane.
        affine: voxel to world matrix, shape (4, 4); with it the arrays are turned so that the planes have the names
            of the anatomy, the head or the front of the body is up, and the proportions are those of the voxels. None
            takes the axes for x, y and z, and the voxels for cubes.

    Returns:
        The path.

    Raises:
        BundleError: when shapes differ, or ``num_slices`` is not positive.
    """
    views = select_views(image, reference, prediction, num_slices=num_slices, affine=affine)
    return draw_views(views, path, title, class_names=class_names)


def select_views(
    image: npt.ArrayLike,
    reference: npt.ArrayLike | None,
    prediction: npt.ArrayLike,
    *,
    num_slices: int = 1,
    affine: npt.ArrayLike | None = None,
) -> list[View]:
    """Choose and copy the slices that :func:`draw_views` draws, so that the volumes need not stay in memory.

    In each plane this is the slice with the largest area of the reference (of the prediction where there is no
    reference), or several slices spread evenly over its extent.

    Args:
        image: intensities, shape (X, Y, Z).
        reference: label map of the same shape, or None.
        prediction: label map of the same shape.
        num_slices: slices a plane.
        affine: see :func:`case_picture`.

    Returns:
        Axial views first, then coronal, then sagittal ones.

    Raises:
        BundleError: when shapes differ, a label map holds other values than labels, or ``num_slices`` is not positive.
    """
    if num_slices < 1:
        raise BundleError(f"num_slices must be at least 1, got {num_slices}.")
    volumes = [np.asarray(image), np.asarray(prediction)]
    if reference is not None:
        volumes.append(np.asarray(reference))
    shapes = [volume.shape for volume in volumes]
    if len(shapes[0]) != 3 or len(set(shapes)) != 1 or 0 in shapes[0]:
        raise BundleError(
            f"image, prediction and reference must have one shape (X, Y, Z), got {', '.join(map(str, shapes))}."
        )
    for name, labels in zip(("prediction", "reference"), volumes[1:]):
        unfit = unfit_labels(np.unique(labels), highest=np.iinfo(np.uint16).max)
        if unfit.size:
            raise BundleError(f"{name} must hold whole numbers of at least 0, got {unfit[0]:.7g}: is it a label map?")
    volumes[1:] = [rounded(labels) for labels in volumes[1:]]
    spacing = np.ones(3) if affine is None else nib.affines.voxel_sizes(np.asarray(affine))
    if affine is not None:
        orientation = nib.orientations.io_orientation(np.asarray(affine))
        volumes = [nib.orientations.apply_orientation(volume, orientation) for volume in volumes]
        spacing = spacing[np.argsort(orientation[:, 0])]

    intensities, predicted = volumes[0], volumes[1]
    expected = volumes[2] if len(volumes) > 2 else None
    foreground = predicted > 0 if expected is None else (predicted > 0) | (expected > 0)
    guide = foreground if expected is None or not np.any(expected > 0) else expected > 0
    box = surroundings(foreground)
    window = intensity_window(intensities[box])
    views = []
    for axis in (2, 1, 0):
        plane, letter = PLANES[axis]
        across, up = (other for other in range(3) if other != axis)
        for index in _slice_indices(guide, axis=axis, count=num_slices):
            where = tuple(index if other == axis else box[other] for other in range(3))
            views.append(
                View(
                    name=f"{plane}, {letter} = {index}",
                    image=np.array(intensities[where].T, dtype=np.float32),
                    prediction=np.array(predicted[where].T, dtype=np.uint16),
                    reference=None if expected is None else np.array(expected[where].T, dtype=np.uint16),
                    aspect=float(spacing[up] / spacing[across]),
                    window=window,
                    sides=None if affine is None else ("P", "A") if axis == 0 else ("L", "R"),
                )
            )
    return views


def draw_views(
    views: Sequence[View], path: str | os.PathLike[str], title: str, class_names: Sequence[str] | None = None
) -> Path:
    """Draw the chosen slices, one a row; see :func:`case_picture`.

    Args:
        views: what :func:`select_views` returned.
        path: the PNG file to write.
        title: text above the picture.
        class_names: names of the foreground classes in the order of their labels; None numbers them.

    Returns:
        The path.
    """
    with_reference = views[0].reference is not None
    headings: list[Content] = ["image", "prediction"]
    if with_reference:
        headings = ["image", "reference", "prediction", "difference"]
    handles = class_handles(views, class_names) + (_difference_handles(views) if with_reference else [])
    legend_columns = 3 * len(headings) // 2
    panel_width, label_width, title_height, legend_height = (
        2.7,
        0.45,
        0.6,
        0.2 + 0.22 * -(-len(handles) // legend_columns),
    )
    # A row is as high as its slice needs, within limits which keep long thin slices on the page.
    ratios = [float(np.clip(view.image.shape[0] * view.aspect / view.image.shape[1], 0.35, 1.4)) for view in views]
    height = panel_width * sum(ratios) + title_height + legend_height
    figure = new_figure(panel_width * len(headings) + label_width, height)
    grid = figure.subplots(
        len(views),
        len(headings),
        squeeze=False,
        gridspec_kw={
            "height_ratios": ratios,
            "left": label_width / (panel_width * len(headings) + label_width),
            "right": 0.995,
            "top": 1 - title_height / height,
            "bottom": legend_height / height,
            "wspace": 0.03,
            "hspace": 0.04,
        },
    )
    for row, view in enumerate(views):
        for axes, heading in zip(grid[row], headings, strict=True):
            draw_panel(axes, view, heading)
            if row == 0:
                axes.set_title(heading, fontsize=10, pad=4)
        grid[row][0].set_ylabel(view.name.replace(", ", "\n"), fontsize=9)

    # Text is taken literally: a dollar sign in a file name starts no formula.
    figure.text(0.5, 1 - 0.1 / height, title, ha="center", va="top", fontsize=12, parse_math=False)
    if handles:
        columns = min(len(handles), legend_columns)
        legend = figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=9, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return save_figure(figure, path)


def surroundings(foreground: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box of the foreground, wider by half its size on each side; the whole volume where there is none."""
    boxes = ndimage.find_objects(foreground.astype(np.uint8))
    if not boxes:
        return tuple(slice(0, size) for size in foreground.shape)
    margins = (max(16, (extent.stop - extent.start) // 2) for extent in boxes[0])
    return tuple(
        slice(max(0, extent.start - margin), min(size, extent.stop + margin))
        for extent, margin, size in zip(boxes[0], margins, foreground.shape, strict=True)
    )


def _slice_indices(guide: npt.NDArray[np.bool_], *, axis: int, count: int) -> list[int]:
    areas = np.count_nonzero(guide, axis=tuple(other for other in range(3) if other != axis))
    occupied = np.flatnonzero(areas)
    if occupied.size == 0:
        return [len(areas) // 2]
    if count == 1:
        return [int(np.argmax(areas))]
    return [int(part[len(part) // 2]) for part in np.array_split(occupied, count) if part.size]


def intensity_window(image: npt.NDArray) -> tuple[float, float]:
    """Choose the gray values that are drawn as black and white.

    Args:
        image: gray values, (X, Y, Z) or a slice.

    Returns:
        darkest and brightest value.
    """
    finite = np.asarray(image[np.isfinite(image)], dtype=np.float64)
    if finite.size == 0:
        return 0.0, 1.0
    # Single bright voxels must not turn the rest dark.
    low, high = (float(value) for value in np.percentile(finite, (0.5, 99.5)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def draw_panel(axes: Axes, view: View, content: Content) -> None:
    """Draw one slice in gray.

    Args:
        axes: where to draw.
        view: the slice.
        content: what lies over it: nothing ("image"), the outlines of one of its label maps, or where they differ.
    """
    axes.imshow(
        view.image,
        cmap="gray",
        vmin=view.window[0],
        vmax=view.window[1],
        origin="lower",
        aspect=view.aspect,
        interpolation="nearest",
    )
    axes.set(xticks=[], yticks=[], facecolor="black")
    axes.spines[:].set_visible(False)
    if view.sides is not None:
        for place, side in zip((0.02, 0.98), view.sides, strict=True):
            text = axes.text(place, 0.5, side, transform=axes.transAxes, color="white", fontsize=8)
            text.set(
                ha="left" if place < 0.5 else "right",
                va="center",
                path_effects=[withStroke(linewidth=1.5, foreground="black")],
            )
    if content == "difference":
        for mask, color in zip(_difference(view), (EXTRA_COLOR, LACKING_COLOR, CONFUSED_COLOR), strict=True):
            _fill(axes, mask, color=color)
    elif content != "image":
        labels = view.prediction if content == "prediction" else view.reference
        assert labels is not None
        for label in np.unique(labels[labels > 0]):
            outline(axes, labels == label, color=class_color(int(label)), width=1.4)


def _difference(view: View) -> tuple[npt.NDArray[np.bool_], ...]:
    """Where only the prediction is foreground, only the reference is, and both are but of different classes."""
    assert view.reference is not None
    predicted, expected = view.prediction > 0, view.reference > 0
    confused = predicted & expected & (view.prediction != view.reference)
    return predicted & ~expected, expected & ~predicted, confused


def outline(axes: Axes, mask: npt.NDArray[np.bool_], *, color: str, width: float) -> None:
    """Draw the border of a mask, with a dark rim that keeps it apart from bright surroundings.

    Args:
        axes: where to draw.
        mask: the mask, as the slice lies in the picture.
        color: color of the line.
        width: width of the line in points.
    """
    # The rim of background closes the lines of structures that the picture cuts; the finer grid lets the line follow
    # the edges of the voxels, where it would cut their corners otherwise.
    fine = 4
    wide = np.pad(mask, 1).repeat(fine, axis=0).repeat(fine, axis=1).astype(np.float32)
    rows, columns = ((np.arange(length) + 0.5) / fine - 1.5 for length in wide.shape)
    for line_color, line_width in (("black", width + 1.4), (color, width)):
        axes.contour(columns, rows, wide, levels=[0.5], colors=[line_color], linewidths=line_width)
    axes.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(-0.5, mask.shape[0] - 0.5))


def _fill(axes: Axes, mask: npt.NDArray[np.bool_], *, color: str) -> None:
    if not mask.any():
        return
    layer = np.zeros((*mask.shape, 4), dtype=np.float32)
    layer[mask] = to_rgba(color, alpha=0.75)
    axes.imshow(layer, origin="lower", aspect=axes.get_aspect(), interpolation="nearest")


def class_color(label: int) -> str:
    """Give a class its color, the same in all pictures.

    Args:
        label: value of the class in a label map, from 1.

    Returns:
        the color.
    """
    return CLASS_COLORS[(label - 1) % len(CLASS_COLORS)]


def class_handles(views: Sequence[View], class_names: Sequence[str] | None) -> list[Line2D]:
    """Make the entries of a legend for the classes in some slices.

    Args:
        views: the slices.
        class_names: names of the foreground classes; without them their numbers are used.

    Returns:
        one entry a class.
    """
    maps = [view.prediction for view in views] + [view.reference for view in views if view.reference is not None]
    labels = sorted({int(label) for labels in maps for label in np.unique(labels)} - {0})
    names = foreground_names(max(labels, default=1) + 1) if class_names is None else class_names
    return [
        Line2D([], [], color=class_color(label), label=names[label - 1] if label <= len(names) else str(label))
        for label in labels
    ]


def _difference_handles(views: Sequence[View]) -> list[Line2D]:
    kinds = [("only predicted", EXTRA_COLOR), ("only in the reference", LACKING_COLOR)]
    if any(_difference(view)[2].any() for view in views):
        kinds.append(("another class", CONFUSED_COLOR))
    return [Line2D([], [], color=color, marker="s", linestyle="", label=name) for name, color in kinds]
