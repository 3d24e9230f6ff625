# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Curves of a training run over its iterations, and the tables that they are drawn from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..errors import BundleError, one_line
from .canvas import light_grid, new_figure, save_figure

# After Okabe and Ito, whose colors stay apart for all common kinds of color vision.
_COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")


def learning_curves(
    history_csv: str | os.PathLike[str],
    path: str | os.PathLike[str],
    validation_csv: str | os.PathLike[str] | None = None,
) -> Path:
    """Draw the losses, their weights, the learning rate and the validation Dice of a training run.

    Each loss is a running mean over a fiftieth of the run, on top of its faint raw values. A run that was resumed may
    have written some iterations twice: the later row counts.

    Args:
        history_csv: table with the column ``iteration`` and any of ``loss``, ``loss_*``, ``weight_*`` and
            ``learning_rate``.
        path: the PNG file to write.
        validation_csv: table with the column ``iteration`` and any of ``mean_dice`` and ``dice_<class>``, or None.

    Returns:
        The path.

    Raises:
        BundleError: when a file is missing, is empty or has no column ``iteration``, or there is nothing to draw.
    """
    history = read_table(history_csv)
    losses = [name for name in history if name == "loss" or name.startswith("loss_")]
    # A logarithmic axis shows terms of very different size together, but has no place for negative values.
    negative = [name for name in losses if (history[name] < 0).any()]
    panels: list[tuple[str, pd.DataFrame, list[str]]] = [
        ("loss", history, [name for name in losses if name not in negative]),
        ("loss with negative values", history, negative),
        ("weight", history, [name for name in history if name.startswith("weight_")]),
        ("learning rate", history, [name for name in history if name == "learning_rate"]),
    ]
    if validation_csv is not None:
        validation = read_table(validation_csv)
        scores = [name for name in validation if name == "mean_dice" or name.startswith("dice_")]
        validation[scores] *= 100
        panels.append(("validation Dice [%]", validation, scores))
    panels = [(label, table, names) for label, table, names in panels if names and table[names].notna().any(axis=None)]
    if not panels:
        raise BundleError(f"{history_csv} must have a column loss, loss_*, weight_* or learning_rate with numbers.")

    # A term and its weight have one color.
    terms = dict.fromkeys(_term(name) for _, _, names in panels for name in names)
    colors = {term: _COLORS[number % len(_COLORS)] for number, term in enumerate(terms)}
    heights = [3.4 if label.startswith("loss") else 2.0 for label, _, _ in panels]
    figure = new_figure(9.5, sum(heights) + 0.4, layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (label, table, names) in zip(grid, panels, strict=True):
        _draw_curves(axes, table, names, label=label, colors=colors)
    grid[-1].set_xlabel("iteration")
    return save_figure(figure, path)


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table of a run, its rows in the order of the iteration.

    Args:
        path: its CSV file.

    Returns:
        the table; infinite numbers are missing ones.

    Raises:
        BundleError: when there is no such file, it is no table of numbers, or has no rows or no column iteration.
    """
    try:
        table = pd.read_csv(path).apply(pd.to_numeric)
    except FileNotFoundError:
        raise BundleError(f"{path} must be a table of the training run, but there is no such file.") from None
    except pd.errors.EmptyDataError:
        raise BundleError(f"{path} must be a table with the column iteration, but it is empty.") from None
    # A line too long, a word in place of a number, bytes that are no text.
    except ValueError as error:
        raise BundleError(f"{path} must be a table of numbers: {one_line(error)}.") from None
    if "iteration" not in table or table.empty:
        raise BundleError(f"{path} must have rows and the column iteration, got {len(table)} rows of {list(table)}.")
    table = table.drop_duplicates("iteration", keep="last").sort_values("iteration")
    return table.replace([np.inf, -np.inf], np.nan)


def _term(name: str) -> str:
    return name.removeprefix("loss_").removeprefix("weight_")


def _draw_curves(
    axes: Axes, table: pd.DataFrame, names: Sequence[str], *, label: str, colors: Mapping[str, str]
) -> None:
    """Draw columns of a table over the iteration; losses are smoothed, and "loss" has a logarithmic axis."""
    smooth = label.startswith("loss")
    logarithmic = label == "loss" and bool((table[list(names)] > 0).any(axis=None))
    window = max(1, len(table) // 50)
    drawn: list[float] = []
    for number, name in enumerate(names):
        rows = table[["iteration", name]].dropna()
        color, turn = colors[_term(name)], number // len(_COLORS)
        # Weights are often equal: every second one is dashed, and above the others.
        dashed = label == "weight" and number % 2
        if smooth and window > 1:
            axes.plot(rows["iteration"], rows[name], color=color, alpha=0.18, linewidth=0.6)
        values = rows[name].rolling(window, min_periods=1).mean() if smooth else rows[name]
        if logarithmic:
            # A running mean leaves rounding residues where all is zero, which a logarithmic axis would show.
            values = values.where(rows[name].rolling(window, min_periods=1).max() > 0)
        marker = "o" if len(rows) == 1 or label == "validation Dice [%]" else None
        # A logarithmic axis has no place for zeros: the name says why its line is not there.
        shown = f"{name} (zero)" if logarithmic and not (rows[name] > 0).any() else name
        style: dict[str, Any] = {
            "ls": "--" if dashed else ("-", "--", ":")[turn % 3],
            "zorder": 3 if dashed else 2,
            "marker": marker,
        }
        axes.plot(rows["iteration"], values, color=color, lw=1.4, markersize=3, label=shown, **style)
        drawn.extend(values[values > 0])
    if logarithmic:
        axes.set_yscale("log", nonpositive="mask")
        # The smooth lines set the limits: one raw value close to zero would squeeze all others.
        axes.set_ylim(min(drawn) / 3, max(drawn) * 3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylabel(label)
    light_grid(axes)
    if len(names) > 1 or names[0] != "learning_rate":
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
