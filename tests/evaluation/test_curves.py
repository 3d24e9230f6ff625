# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Learning curves are drawn of any run, and tables that are none are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawn import assert_is_picture
from matplotlib.axes import Axes
from matplotlib.image import imread

from scripts.errors import BundleError
from scripts.evaluation import curves
from scripts.evaluation.curves import learning_curves


def history(length=300):
    steps = np.arange(1, length + 1)
    return pd.DataFrame(
        {
            "iteration": steps,
            "loss": 1 / steps + 0.1,
            "loss_supervised": 1 / steps,
            "loss_zero": 0.0,
            "loss_late": np.where(steps > length // 2, 0.01, 0.0),
            "weight_consistency": np.minimum(0.1, steps / 1000),
            "learning_rate": 0.01 * (1 - steps / length),
            "seconds": 1.0,
        }
    )


def test_learning_curves(tmp_path):
    history().to_csv(tmp_path / "history.csv", index=False)
    validation = pd.DataFrame({"iteration": [100, 200], "mean_dice": [0.4, 0.6], "dice_atrium": [0.4, np.nan]})
    validation.to_csv(tmp_path / "validation.csv", index=False)
    path = learning_curves(tmp_path / "history.csv", tmp_path / "c.png", tmp_path / "validation.csv")
    whole = assert_is_picture(path, width=1045)
    without = imread(learning_curves(tmp_path / "history.csv", tmp_path / "d.png"))
    assert whole.shape[0] - without.shape[0] == pytest.approx(220, abs=2)


def test_names_are_texts_and_no_formulas(tmp_path):
    history().to_csv(tmp_path / "history.csv", index=False)
    validation = pd.DataFrame({"iteration": [100], "mean_dice": [0.4], "dice_cost $\\x$": [0.4]})
    validation.to_csv(tmp_path / "validation.csv", index=False)
    assert learning_curves(tmp_path / "history.csv", tmp_path / "c.png", tmp_path / "validation.csv").is_file()


def test_learning_curves_show_the_dice_in_percent(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curves, "_draw_curves", lambda axes, table, names, *, label, **_: drawn.update({label: table}))
    (tmp_path / "history.csv").write_text("iteration,loss\n1,0.5\n")
    (tmp_path / "validation.csv").write_text("iteration,mean_dice,dice_organ\n1,0.5,0.25\n")
    learning_curves(tmp_path / "history.csv", tmp_path / "c.png", tmp_path / "validation.csv")
    assert drawn["validation Dice [%]"].to_numpy().tolist() == [[1, 50, 25]]
    assert drawn["loss"].to_numpy().tolist() == [[1, 0.5]]


def test_a_term_and_its_weight_have_one_color_and_equal_weights_can_be_seen(tmp_path, monkeypatch):
    lines = {}
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda axes, *data, **style: lines.update({style["label"]: style}) or plot(axes, *data, **style)
    )
    names = ("loss", "loss_a", "loss_b", "weight_b", "weight_c")
    pd.DataFrame({"iteration": [1, 2], **dict.fromkeys(names, 1.0)}).to_csv(tmp_path / "history.csv", index=False)
    learning_curves(tmp_path / "history.csv", tmp_path / "c.png")
    assert lines["loss_b"]["color"] == lines["weight_b"]["color"]
    assert len({lines[name]["color"] for name in (*names[:3], "weight_c")}) == 4
    assert [lines[name]["ls"] for name in ("weight_b", "weight_c")] == ["-", "--"]
    assert lines["weight_c"]["zorder"] > lines["weight_b"]["zorder"]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param({"iteration": [1], "loss": [0.5]}, id="one-row"),
        pytest.param({"iteration": [1, 2], "loss": [0.0, 0.0]}, id="zeros"),
        pytest.param({"iteration": [1, 2], "loss": [-1.0, 0.5], "loss_a": [1.0, 2.0]}, id="negative"),
        pytest.param({"iteration": [1, 2, 3], "loss": [1.0, np.nan, np.inf]}, id="not-finite"),
        pytest.param({"iteration": [1, 2, 2, 1], "learning_rate": [0.1, 0.2, 0.3, 0.4]}, id="written-twice"),
        pytest.param({"iteration": range(200), "loss": [0.3] * 100 + [0.0] * 100}, id="zero-at-the-end"),
    ],
)
def test_learning_curves_of_unusual_runs(tmp_path, rows):
    pd.DataFrame(rows).to_csv(tmp_path / "history.csv", index=False)
    assert_is_picture(learning_curves(tmp_path / "history.csv", tmp_path / "c.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "but it is empty"),
        ("step,loss\n1,2\n", r"the column iteration, got 1 rows of \['step', 'loss'\]"),
        ("iteration,loss\n", "got 0 rows"),
        ("iteration,loss\n1,0.5\n2,0.4,3\n", "must be a table of numbers: Error tokenizing data.*line 3"),
        ("iteration,loss\n1,O.5\n", 'must be a table of numbers: Unable to parse string "O.5"'),
        ("iteration,seconds\n1,2\n", r"must have a column loss, loss_\*, weight_\* or learning_rate"),
    ],
)
def test_learning_curves_refuse(tmp_path, text, message):
    if text is not None:
        (tmp_path / "history.csv").write_text(text)
    with pytest.raises(BundleError, match=message):
        learning_curves(tmp_path / "history.csv", tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
