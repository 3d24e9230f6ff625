# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Numbers and texts as tables show them."""

from __future__ import annotations

import math

import pytest

from scripts.evaluation.wording import markdown_table, markdown_text, mean_and_deviation, plural


def test_table_has_the_first_column_on_the_left_and_numbers_on_the_right():
    rows = [["anterior", "87.50", "1.50"], ["posterior", "85.72", "1.49"]]
    assert markdown_table(["class", "Dice [%]", "95HD [mm]"], rows).splitlines() == [
        "| class | Dice [%] | 95HD [mm] |",
        "| :-- | --: | --: |",
        "| anterior | 87.50 | 1.50 |",
        "| posterior | 85.72 | 1.49 |",
    ]


def test_escaped_text_stays_within_its_cell():
    table = markdown_table(["class", "cases"], [[markdown_text("left|right\n<b>"), "3"]])
    assert table.splitlines()[2] == r"| left\|right &lt;b&gt; | 3 |"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__init__ of _a b_, mean_teacher", r"\_\_init\_\_ of \_a b\_, mean_teacher"),
        ("~~old~~", r"\~\~old\~\~"),
        ("a]b [c", r"a\]b \[c"),
        ("[a](b), [a][b], [a]: b, [f[x](y)]", r"\[a\](b), \[a\][b], \[a\]: b, \[f\[x\](y)\]"),
        ("Dice [%], 95HD [mm]", "Dice [%], 95HD [mm]"),
        (r"\[%], *`", r"\\[%], \*\`"),
    ],
)
def test_signs_of_markdown_are_escaped(text, expected):
    assert markdown_text(text) == expected


@pytest.mark.parametrize(
    ("mean", "deviation", "percent", "expected"),
    [
        (0.84053, 0.0385, True, "84.05 ± 3.85"),
        (1.777, 0.6, False, "1.78 ± 0.60"),
        (0.5, math.nan, True, "50.00 ± -"),
        (math.nan, math.nan, True, "-"),
    ],
)
def test_mean_and_deviation(mean, deviation, percent, expected):
    assert mean_and_deviation(mean, deviation, percent=percent) == expected


def test_plural():
    assert [plural("case", count) for count in (0, 1, 2)] == ["cases", "case", "cases"]
