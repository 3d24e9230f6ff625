# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Figures drawn without a display, and written in one step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import replacing

_DOTS_PER_INCH = 110


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Make an empty white figure.

    Args:
        width: in inches.
        height: in inches.
        **options: further arguments of :class:`matplotlib.figure.Figure`.

    Returns:
        the figure.
    """
    return Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, facecolor="white", **options)


def light_grid(axes: Axes, *, axis: Literal["both", "x"] = "both", hidden: Sequence[str] = ("top", "right")) -> None:
    """Draw thin lines behind the data, and leave out sides of the frame.

    Args:
        axes: where to draw.
        axis: whose ticks the lines begin at.
        hidden: sides of the frame that are left out.
    """
    axes.grid(visible=True, axis=axis, color="#D9D9D9", linewidth=0.5)
    axes.spines[list(hidden)].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a picture; it takes the place of an older one in one step.

    Args:
        figure: what to write.
        path: PNG file.

    Returns:
        the path.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    return Path(path)
