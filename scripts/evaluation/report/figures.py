# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Curves of the trainings and distributions over the cases, all methods in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ..canvas import light_grid, new_figure, save_figure
from ..case_report import HEADINGS
from .comparison import HIGHER_IS_BETTER
from .grid import GridResults

_CURVES_IN_A_ROW = 5
_HIGHLIGHT, _PLAIN = "#D55E00", "#5B7083"


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        path: the PNG file.
        caption: what it shows, one or two sentences.
    """

    path: Path
    caption: str


def curves_pictures(grid: GridResults, reference: str, folder: Path) -> list[Picture]:
    """Draw validation Dice and training loss over the iterations, averaged over runs: each method and the reference.

    Args:
        grid: the grid of runs.
        reference: method whose curve stands in every panel.
        folder: where to write the PNG files ``figure_validation.png`` and ``figure_loss.png``.

    Returns:
        The pictures of those tables that a run has left.
    """
    scores = _curves(grid, "validation.csv", "mean_dice", factor=100)
    losses = _smooth(_curves(grid, "history.csv", "loss"))
    pictures = []
    if len(scores.columns) > 1:
        figure = _draw_curves(scores, reference, label="validation Dice [%]", marker="o")
        caption = (
            "Validation Dice (mean over classes and validation cases), averaged over the runs of a method. Each panel "
            f"shows one method; {reference} in color."
        )
        pictures.append(Picture(save_figure(figure, folder / "figure_validation.png"), caption))
    if len(losses.columns) > 1:
        figure = _draw_curves(losses, reference, label="training loss")
        caption = (
            "Training loss (running mean over a fiftieth of the run), averaged over the runs of a method. Each panel "
            f"shows one method; {reference} in color. Losses of different methods have different terms: their course "
            "can be compared, their height cannot."
        )
        pictures.append(Picture(save_figure(figure, folder / "figure_loss.png"), caption))
    return pictures


def _draw_curves(table: pd.DataFrame, reference: str, *, label: str, marker: str | None = None) -> Figure:
    """A panel for each method, with the reference in all; the reference has one of its own only when it is alone."""
    curves = table.set_index("iteration")
    methods = [method for method in curves if method != reference] or [reference]
    columns = min(_CURVES_IN_A_ROW, len(methods))
    rows = -(-len(methods) // columns)
    figure = new_figure(max(5.0, 2.1 * columns), 1.75 * rows + 0.5, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, method in zip(panels, methods):
        for name, color in ((method, _PLAIN), (reference, _HIGHLIGHT)):
            if name in curves:
                curve = curves[name].dropna()
                axes.plot(curve.index, curve, color=color, linewidth=1.4, marker=marker, markersize=2.5, label=name)
        axes.set_title(method, fontsize=8, parse_math=False)
        light_grid(axes)
        axes.tick_params(labelsize=7)
    for axes in panels[len(methods) :]:
        axes.axis("off")
    if label == "training loss" and curves.min(axis=None) > 0:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panels[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    panels[0].xaxis.set_major_locator(MaxNLocator(3, integer=True))
    figure.supxlabel("iteration", fontsize=9)
    figure.supylabel(label, fontsize=9)
    return figure


def boxes_picture(grid: GridResults, reference: str, metric: str, path: Path) -> Picture:
    """Draw the distribution of a metric over the cases, a box and the cases themselves for each method.

    Args:
        grid: the grid of runs.
        reference: method whose box is highlighted.
        metric: name of the metric.
        path: the PNG file to write.

    Returns:
        The picture.
    """
    percent = metric in HIGHER_IS_BETTER
    methods = grid.evaluated_methods
    values = [_values_of_cases(grid, method, metric) * (100 if percent else 1) for method in methods]
    figure = new_figure(9.5, 1.1 + 0.34 * len(methods), layout="constrained")
    axes = figure.subplots()
    for row, (method, sample) in enumerate(zip(methods, values, strict=True)):
        _draw_box(axes, row, sample, color=_HIGHLIGHT if method == reference else _PLAIN)
    if len(grid.competing_methods) < len(methods):
        axes.axhline(len(grid.competing_methods) - 0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods, fontsize=9, parse_math=False)
    axes.set(ylim=(len(methods) - 0.4, -0.6), xlabel=HEADINGS[metric])
    light_grid(axes, axis="x", hidden=("top", "right", "left"))
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    direction = "more is better" if percent else "less is better; only classes that were found count"
    caption = (
        f"{HEADINGS[metric]} of each test case (points; mean over its classes and the runs), {direction}. Box: "
        f"quartiles and median; whiskers: the last case within 1.5 times the box; {reference} in color."
    )
    if len(grid.competing_methods) < len(methods):
        caption += " Below the line: upper bounds."
    return Picture(save_figure(figure, path), caption)


def _curves(grid: GridResults, file_name: str, column: str, *, factor: float = 1) -> pd.DataFrame:
    """One column a method, averaged over its runs, by iteration; methods without the table are left out."""
    curves = {}
    for method in grid.methods:
        # A run that was stopped early would end the curve of the others.
        cells = list(grid.evaluated(method).values()) or [cell for cell in grid.cells if cell.method == method]
        tables = [cell.table(file_name) for cell in cells]
        runs = [table.set_index("iteration")[column] for table in tables if table is not None and column in table]
        if runs:
            # As far as all of them came: the mean of fewer would show steps that no run has.
            curves[method] = factor * pd.concat(runs, axis=1).mean(axis=1, skipna=False).dropna()
    return pd.DataFrame(curves).rename_axis("iteration").reset_index()


def _smooth(table: pd.DataFrame) -> pd.DataFrame:
    window = max(1, len(table) // 50)
    curves = table.drop(columns="iteration")
    # A method that was stopped early must not go on as a flat line.
    smooth = curves.rolling(window, min_periods=1).mean().where(curves.notna())
    return pd.concat([table[["iteration"]], smooth], axis=1)


def _values_of_cases(grid: GridResults, method: str, metric: str) -> np.ndarray:
    means = pd.concat([cell.case_means[metric] for cell in grid.evaluated(method).values()])
    return means.groupby(level=0, sort=False).mean().dropna().to_numpy()


def _draw_box(axes: Axes, row: int, sample: np.ndarray, *, color: str) -> None:
    if sample.size == 0:
        axes.annotate("no case", (0.5, row), xycoords=("axes fraction", "data"), ha="center", va="center", fontsize=8)
        return
    line = {"color": color, "linewidth": 1.2}
    axes.boxplot(
        [sample],
        positions=[row],
        orientation="horizontal",
        widths=0.6,
        manage_ticks=False,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": color + "2A", "edgecolor": color, "linewidth": 1.2},
        whiskerprops=line,
        capprops=line,
        medianprops={"color": color, "linewidth": 2.2},
    )
    # Spread evenly over the height of the box in an order of their own, so that equal cases do not hide each other.
    offsets = (np.arange(sample.size) * 0.618 % 1 - 0.5) * 0.42
    axes.plot(sample, row + offsets, "o", color=color, markersize=3, alpha=0.6, markeredgewidth=0, zorder=3)
