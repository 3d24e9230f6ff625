# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Numbers and texts as tables show them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence


def mean_and_deviation(mean: float, deviation: float, *, percent: bool) -> str:
    """Word a mean and its standard deviation.

    Args:
        mean: the mean; NaN where there is none.
        deviation: the standard deviation; NaN where there is none.
        percent: whether both are shares to be worded in percent.

    Returns:
        a text such as "84.05 ± 3.85"; "-" stands for what there is not.
    """
    if math.isnan(mean):
        return "-"
    factor = 100 if percent else 1
    spread = "-" if math.isnan(deviation) else f"{factor * deviation:.2f}"
    return f"{factor * mean:.2f} ± {spread}"


def plural(noun: str, count: int) -> str:
    """Give a noun its form for a number.

    Args:
        noun: the singular.
        count: the number.

    Returns:
        the singular for 1, else the plural.
    """
    return noun if count == 1 else f"{noun}s"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown, the first column to the left and the others, which hold numbers, to the right.

    Args:
        heading: the names of the columns.
        rows: their cells, already escaped where that is needed.

    Returns:
        a line for the heading, one for the alignment and one for each row, without a line break at the end.
    """
    alignment = [":--", *["--:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, alignment, *rows))


def markdown_text(text: str) -> str:
    """Write a text so that Markdown shows it as it is, in one line.

    Args:
        text: any text.

    Returns:
        the text with the signs of Markdown and HTML escaped.
    """
    # Angle brackets would begin a tag. An underscore within a word means nothing.
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"([\\`*|~\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    # Brackets around a unit, as in "Dice [%]", mean nothing either where no address follows them.
    return re.sub(r"\\\[(%|\w+)\\\](?![(:\\])", r"[\1]", text)
