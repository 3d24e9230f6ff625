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
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..case_report import HEADINGS
from ..pictures import DOTS_PER_INCH, draw_curves, save_figure
from .comparison import HIGHER_IS_BETTER
from .grid import Grid

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


def curves_picture(grid: Grid, reference: str, path: Path) -> Picture | None:
    """Draw validation Dice and training loss of all methods over the iterations, averaged over their runs.

    Args:
        grid: the grid of runs.
        reference: method whose curves are highlighted.
        path: the PNG file to write.

    Returns:
        The picture, or None when no run has a table of its training.
    """
    scores = _curves(grid, "validation.csv", "mean_dice")
    losses = _smooth(_curves(grid, "history.csv", "loss"))
    # The same columns in both, so that a method has one color.
    methods = [method for method in grid.methods if method in scores or method in losses]
    tables = {"validation Dice": scores, "training loss": losses}
    panels = {
        label: table.reindex(columns=["iteration", *methods])
        for label, table in tables.items()
        if len(table.columns) > 1
    }
    if not panels:
        return None
    height = max(3.4, 0.6 + 0.175 * len(methods))
    figure = Figure(figsize=(10.5, height * len(panels)), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
    grid_of_axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (label, table) in zip(grid_of_axes, panels.items(), strict=True):
        draw_curves(axes, table, methods, label=label)
        if label == "training loss" and table[methods].min(axis=None) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        for line in axes.get_lines():
            line.set_linewidth(2.2 if line.get_label() == reference else 1.2)
        legend = axes.get_legend()
        assert legend is not None
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_fontweight("bold" if text.get_text() == reference else "normal")
    grid_of_axes[-1].set_xlabel("iteration")
    caption = (
        "Validation Dice (mean over classes and validation cases) and training loss (running mean over a fiftieth of "
        "the run), both averaged over the runs of a method. Losses of different methods have different terms: their "
        "course can be compared, their height cannot."
    )
    return Picture(save_figure(figure, path), caption)


def boxes_picture(grid: Grid, reference: str, metric: str, path: Path) -> Picture:
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
    figure = Figure(
        figsize=(9.5, 1.1 + 0.34 * len(methods)), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained"
    )
    axes = figure.subplots()
    for row, (method, sample) in enumerate(zip(methods, values, strict=True)):
        _draw_box(axes, row, sample, color=_HIGHLIGHT if method == reference else _PLAIN)
    axes.set_yticks(range(len(methods)), methods, fontsize=9, parse_math=False)
    axes.set(ylim=(len(methods) - 0.4, -0.6), xlabel=HEADINGS[metric])
    axes.grid(visible=True, axis="x", color="#D9D9D9", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    direction = "more is better" if percent else "less is better; cases without a found class have no distance"
    caption = (
        f"{HEADINGS[metric]} of each test case (points; mean over its classes and the runs), {direction}. Box: "
        f"quartiles and median; whiskers: the last case within 1.5 times the box; {reference} in color."
    )
    return Picture(save_figure(figure, path), caption)


def _curves(grid: Grid, file_name: str, column: str) -> pd.DataFrame:
    """One column a method, averaged over its runs, by iteration; methods without the table are left out."""
    curves = {}
    for method in grid.methods:
        tables = [cell.table(file_name) for cell in grid.cells if cell.method == method]
        runs = [table.set_index("iteration")[column] for table in tables if table is not None and column in table]
        if runs:
            curves[method] = pd.concat(runs).groupby(level=0).mean()
    return pd.DataFrame(curves).rename_axis("iteration").reset_index()


def _smooth(table: pd.DataFrame) -> pd.DataFrame:
    window = max(1, len(table) // 50)
    curves = table.drop(columns="iteration")
    # A method that was stopped early must not go on as a flat line.
    smooth = curves.rolling(window, min_periods=1).mean().where(curves.notna())
    return pd.concat([table[["iteration"]], smooth], axis=1)


def _values_of_cases(grid: Grid, method: str, metric: str) -> np.ndarray:
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
