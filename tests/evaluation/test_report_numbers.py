# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The numbers of the report, by hand: means of runs, deviations, marks, paired tests, cost."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
from report_grid import change_facts, write_cells, write_grid
from scipy import stats

from scripts.evaluation.report.comparison import compare, holm, paired_differences, signed_rank_p
from scripts.evaluation.report.grid import read_grid
from scripts.evaluation.report.summary import costs, settings_by_method, spread_is_over_runs, summarize
from scripts.evaluation.report.tables import make_tables, rank_marks

NAN = float("nan")


@pytest.fixture
def make_cells(tmp_path):
    return partial(write_cells, tmp_path / "grid")


@pytest.fixture
def make_grid(tmp_path):
    return partial(write_grid, tmp_path / "grid")


def overall(grid):
    table = summarize(grid)
    return table[table["class"] == "mean over classes"].set_index("method")


def test_mean_of_a_method_is_that_of_its_runs_and_deviation_goes_over_runs(make_cells):
    grid = read_grid(
        make_cells(
            {"a": {("fold0", 0): {"x": 0.8, "y": 0.6}, ("fold1", 0): {"z": 0.9}}, "b": {("fold0", 0): {"x": 0.5}}}
        )
    )
    row = overall(grid).loc["a"]
    # Means of the runs first: 0.7 and 0.9. The mean over the cases would be 0.767.
    assert row["dice_mean"] == pytest.approx(0.8)
    assert row["dice_sd"] == pytest.approx(math.sqrt(0.02))
    assert row["hd95_mm_mean"] == pytest.approx(2)
    assert row["asd_voxel_sd"] == pytest.approx(math.sqrt(2))
    assert (row["runs"], row["cases"], row["missed"]) == (2, 3, 0)
    # One run has no deviation over runs, and does not borrow that over its cases.
    assert math.isnan(overall(grid).loc["b", "dice_sd"])
    assert overall(grid)["complete"].tolist() == [True, False]
    assert "over the runs" in make_tables(grid, "a")[0].note


def test_with_one_run_a_method_the_deviation_goes_over_cases_and_the_note_says_so(make_cells):
    grid = read_grid(make_cells({"a": {("fixed", 0): {"x": 0.8, "y": 0.6, "z": None}}}))
    assert not spread_is_over_runs(grid)
    row = overall(grid).loc["a"]
    assert row["dice_mean"] == pytest.approx(1.4 / 3)
    assert row["dice_sd"] == pytest.approx(np.std([0.8, 0.6, 0], ddof=1))
    # Distances only over the two cases found: 2 and 4.
    assert row["hd95_voxel_mean"] == pytest.approx(3)
    assert row["missed"] == 1
    table = make_tables(grid, "a")[0]
    assert "over its test cases" in table.note
    assert table.rows[0][:4] == ["a", "-", "-", "46.67 ± 41.63"]
    assert table.rows[0][-5:] == ["3", "1", "0", "0", "1 of 1"]


def test_classes_have_tables_of_their_own_that_agree_with_the_evaluation(make_grid):
    folder = make_grid({"a": 0.05, "b": 0.15}, num_cases=3)
    tables = {table.name: table for table in make_tables(read_grid(folder), "a")}
    assert tables["table_class_1"].title == "Test metrics: front"
    written = pd.read_csv(folder / "cells/b/fixed_seed0/evaluation/metrics_summary.csv").set_index("class")
    for name, of_class in (
        ("table_metrics", "mean over classes"),
        ("table_class_1", "front"),
        ("table_class_2", "back"),
    ):
        row = tables[name].numbers.set_index("method").loc["b"]
        for column in ("dice_mean", "dice_sd", "hd95_mm_mean", "asd_voxel_sd"):
            assert row[column] == pytest.approx(written.loc[of_class, column]), (name, column)


@pytest.mark.parametrize(
    ("values", "higher", "marks"),
    [
        ([1, 3, 2, 0], True, [None, "best", "second", None]),
        ([1, 3, 2, 0], False, ["second", None, None, "best"]),
        # Behind two best ones nothing is second best, two second ones are both.
        ([3, 3, 2, 1], True, ["best", "best", None, None]),
        ([3, 2, 2, 1], True, ["best", "second", "second", None]),
        ([NAN, 2, 1, 0], False, [None, None, "second", "best"]),
        # The worst is not praised.
        ([2, 1], True, ["best", None]),
        ([1], True, [None]),
        ([1, 1], True, [None, None]),
        ([NAN, NAN], True, [None, None]),
    ],
)
def test_marks(values, higher, marks):
    assert rank_marks(values, higher_is_better=higher) == marks


def marks_of(table, heading):
    column = table.heading.index(heading)
    return {table.rows[r][0]: mark for (r, c), mark in table.marks.items() if c == column}


def test_marks_follow_the_shown_means_of_complete_methods(make_cells):
    run, other = ("fixed", 0), ("fixed", 1)
    # a and b look equal; d and f would be the best, but lack a run and a case.
    dice = {"a": 0.90001, "b": 0.90002, "c": 0.5, "e": 0.4}
    cells = {name: {run: {"x": value, "y": value}, other: {"x": value}} for name, value in dice.items()}
    cells |= {"d": {run: {"x": 0.99, "y": 0.99}}, "f": {run: {"x": 0.98}, other: {"x": 0.98}}}
    table = make_tables(read_grid(make_cells(cells)), "a")[0]
    for heading in ("Dice [%]", "95HD [voxel]"):
        assert marks_of(table, heading) == {"a": "best", "b": "best"}
    assert "Not ranked, since runs or test cases that others have are missing: d, f." in table.note
    assert "bold, the second underlined too" in table.note


def test_upper_bounds_are_in_the_tables_but_do_not_compete(make_cells):
    # The upper bound was evaluated on one case more, which nobody else has to have.
    dice = {"top": (0.9, 0.8, 0.9), "a": (0.7, 0.6), "b": (0.6, 0.5), "c": (0.5, 0.6)}
    folder = make_cells({m: {("f", 0): dict(zip("xyz", values, strict=False))} for m, values in dice.items()})
    for method in dice:
        cases = "9 labeled, 0 unlabeled, k" if method == "top" else "4 labeled, 5 unlabeled, h"
        change_facts(folder, method, settings={"cases": cases})
    grid = read_grid(folder)
    table, test = make_tables(grid, "a")[:2]
    assert [row[:3] for row in table.rows] == [["a", "4", "5"], ["b", "4", "5"], ["c", "4", "5"], ["top", "9", "0"]]
    assert marks_of(table, "Dice [%]") == {"a": "best"}
    assert table.numbers["upper_bound"].tolist() == [False, False, False, True]
    assert list(table.groups) == [3]
    assert list(test.groups) == [2]
    tested = compare(grid, "a", "dice").set_index("method")
    assert list(tested.index) == ["b", "c", "top"]
    assert tested.loc["top", ["cases", "better"]].tolist() == [2, 2]
    # Each group is corrected for its own number of methods.
    assert tested["p"].tolist() == [0.5, 1.0, 0.5]
    assert tested["p_holm"].tolist() == [1.0, 1.0, 0.5]


def test_distances_over_fewer_found_classes_have_a_sign_and_no_rank(make_cells):
    cells = {
        "full": {"x": (0.8, 0.4), "y": (0.8, 0.4)},
        "worse": {"x": (0.7, 0.3), "y": (0.7, 0.3)},
        "misses": {"x": (0.79, None), "y": (0.79, None)},
    }
    folder = make_cells({m: {("f", 0): cases} for m, cases in cells.items()}, class_names=["easy", "hard"])
    overall, easy, hard = make_tables(read_grid(folder), "full")[:3]
    column = overall.heading.index("95HD [mm]")
    assert [row[column] for row in overall.rows] == ["4.00 ± 0.00", "5.00 ± 0.00", "2.10 ± 0.00 \N{DAGGER}"]
    assert marks_of(overall, "95HD [mm]") == {"full": "best"}
    assert "\N{DAGGER} Distances not ranked" in overall.note
    assert marks_of(easy, "95HD [mm]") == {"full": "best", "misses": "second"}
    assert "\N{DAGGER}" not in easy.note
    # Where nothing was found there is nothing to be signed.
    assert hard.rows[2][column] == "-"


def test_settings_that_differ_by_method_are_listed_by_method(make_cells):
    cell = {("f", seed): {"x": 0.5} for seed in (0, 1)}
    folder = make_cells({"a": cell, "b": cell})
    for method in "ab":
        for seed in (0, 1):
            settings = {"seed": seed, "unlabeled_batch_size": 2 if method == "a" else 0, "class_names": ["Gefäß"]}
            settings["network"] = 'Net(normalization="batch")'
            change_facts(folder, method, f"f_seed{seed}", settings=settings)
    change_facts(folder, "b", "f_seed1", versions={"torch": "3"})
    path = folder / "cells" / "a" / "f_seed1" / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "commit": "c0", "resumed": [{"commit": "c1", "versions": facts["versions"]}]}))
    table = next(table for table in make_tables(read_grid(folder), "a") if table.name == "table_settings")
    assert table.heading == ["method", "method_def", "unlabeled_batch_size", "commit", "torch"]
    assert table.rows == [["a", "a", "2", "-; c0; c1", "2.13.0"], ["b", "b", "0", "-", "2.13.0; 3"]]
    table = settings_by_method(read_grid(folder), "settings")
    assert table["seed"].tolist() == ["0; 1", "0; 1"]
    assert table.loc["a", ["class_names", "network"]].tolist() == ['["Gefäß"]', 'Net(normalization="batch")']


def test_terms_that_methods_of_one_class_leave_out_are_a_table_as_in_the_paper(make_cells):
    dice = {"both": 0.9, "one": 0.8, "other": 0.7, "plain": 0.6, "luseg": 0.5, "bare": 0.4, "upper": 0.95}
    folder = make_cells({name: {("f", 0): {"x": value}} for name, value in dice.items()})
    losses = {
        "both": ["supervised", "uncertainty", "mean_squared"],
        "one": ["supervised", "uncertainty"],
        "other": ["supervised", "mean_squared"],
        "plain": ["supervised"],
        "luseg": ["supervised", "entropy"],
        "upper": ["supervised"],
    }
    for method in dice:
        of_class = {"luseg": "Luseg(weight=1.0)", "bare": "Bare()"}.get(method, f"Dual(weight={dice[method]})")
        change_facts(folder, method, "f_seed0", settings={"method": of_class, "network": "DualNetwork"})
        path = folder / "cells" / method / "f_seed0" / "history.csv"
        table = pd.read_csv(path)
        table.assign(**{f"loss_{name}": 1.0 for name in losses.get(method, [])}).to_csv(path, index=False)
    # The same class with another network has other terms, and leaves none out.
    change_facts(folder, "upper", "f_seed0", settings={"network": "VNet"})
    tables = [table for table in make_tables(read_grid(folder), "plain") if table.name.startswith("table_terms")]
    assert [table.title for table in tables] == ["Terms of the loss that some methods leave out: Dual"]
    (table,) = tables
    assert table.heading[:4] == ["method", "uncertainty", "mean squared", "Dice [%]"]
    assert sorted(row[:3] for row in table.rows) == [
        ["both", "yes", "yes"],
        ["one", "yes", "-"],
        ["other", "-", "yes"],
        ["plain", "-", "-"],
    ]
    assert {table.rows[row][0]: mark for (row, column), mark in table.marks.items() if column == 3} == {
        "both": "best",
        "one": "second",
    }
    names = ["loss_uncertainty", "loss_mean_squared"]
    assert table.numbers.set_index("method").loc["one", names].tolist() == [True, False]


@pytest.mark.parametrize("name", ["labeled", "cases", "dice_mean"])
def test_terms_may_be_called_as_columns_of_the_summary_are(make_cells, name):
    folder = make_cells({method: {("f", 0): {"x": 0.5}} for method in "ab"})
    for method in "ab":
        change_facts(folder, method, "f_seed0", settings={"method": "Mine()", "network": "DualNetwork"})
        path = folder / "cells" / method / "f_seed0" / "history.csv"
        losses = {"loss_supervised": 1.0} | ({f"loss_{name}": 1.0} if method == "a" else {})
        pd.read_csv(path).assign(**losses).to_csv(path, index=False)
    (table,) = (table for table in make_tables(read_grid(folder), "a") if table.name.startswith("table_terms"))
    assert [row[:2] for row in table.rows] == [["a", "yes"], ["b", "-"]]


# --- paired tests -----------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Ascending: 0.005 * 4, then max(0.02, 0.01 * 3), max(0.03, 0.03 * 2), max(0.06, 0.04 * 1).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    corrected = holm([NAN, 0.02, 0.04])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.04, 0.04])


def test_signed_rank_p_is_exact_and_knows_zeros():
    # All six differences have one sign: 2 of the 2^6 assignments of signs are as extreme.
    assert signed_rank_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])) == pytest.approx(2 / 64)
    assert signed_rank_p(np.zeros(4)) == 1
    assert math.isnan(signed_rank_p(np.array([])))


def test_differences_are_over_common_runs_and_average_the_seeds_of_a_case(make_cells):
    grid = read_grid(
        make_cells(
            {
                "a": {("f", 0): {"x": 0.9, "y": 0.5, "z": None}, ("f", 1): {"x": 0.7, "y": 0.5, "z": 0.3}},
                "b": {("f", 0): {"x": 0.5, "y": 0.4, "z": 0.2}, ("f", 1): {"x": 0.5, "y": 0.7, "z": 0.2}},
                "c": {("f", 1): {"x": 0.6, "y": 0.5, "z": 0.3}},
                "d": {("f", 0): {"x": 0.1, "y": 0.1, "z": 0.1}},
            }
        )
    )
    pairs = paired_differences(grid, "a", "b", "dice")
    assert pairs.tolist() == pytest.approx([0.4, 0.1, -0.2, 0.2, -0.2, 0.1])
    # A missed case has no distance: z counts with its other seed.
    pairs = paired_differences(grid, "a", "b", "asd_mm")
    assert pairs.to_list() == pytest.approx([-4, -1, -2, 2, -1])
    assert paired_differences(grid, "d", "c", "dice").empty

    dice, distance = compare(grid, "b", "dice").set_index("method"), compare(grid, "b", "hd95_mm").set_index("method")
    assert list(dice.index) == ["a", "c", "d"]
    assert dice.loc["a", ["cases", "pairs", "better", "worse"]].tolist() == [3, 6, 1, 2]
    assert dice.loc["a", ["mean_difference", "median_difference"]].tolist() == pytest.approx([0.2 / 3, -0.05])
    assert distance.loc["a", ["cases", "pairs", "better", "worse"]].tolist() == [3, 5, 2, 1]
    assert distance.loc["a", "mean_difference"] == pytest.approx((-3 + 0.5 - 1) / 3)
    assert dice.loc["a", "p"] == pytest.approx(stats.wilcoxon([0.3, -0.05, -0.05]).pvalue)
    assert dice["p_holm"].tolist() == pytest.approx(holm(dice["p"].tolist()))
    # c is compared with the seed of a that it has itself: equal on y and z, exactly.
    c = compare(grid, "a", "dice").set_index("method").loc["c"]
    assert c[["cases", "better", "worse", "mean_difference"]].tolist() == pytest.approx([3, 0, 1, -0.1 / 3])
    without_common = compare(grid, "c", "dice").set_index("method").loc["d"]
    assert without_common["cases"] == 0
    assert math.isnan(without_common["p_holm"])


def test_who_misses_the_difficult_class_does_not_gain_by_it(make_cells):
    cases = [f"case_{number}" for number in range(8)]
    cells = {
        "reference": {("f", 0): dict.fromkeys(cases, (0.8, 0.2))},
        "misses": {("f", 0): dict.fromkeys(cases, (0.75, None))},
    }
    grid = read_grid(make_cells(cells, class_names=["easy", "hard"]))
    row = compare(grid, "reference", "hd95_mm").iloc[0]
    assert row["mean_difference"] == pytest.approx(0.5)
    assert row[["cases", "pairs", "better", "worse"]].tolist() == [8, 8, 0, 8]
    table = next(table for table in make_tables(grid, "reference") if table.name == "table_test_hd95_voxel")
    assert table.rows[0][table.heading.index("pairs")] == "8"
    assert "where both methods found the class" in table.note


def test_test_tables_read_in_percent_with_signs(make_cells):
    dice = {"x": 0.5, "y": 0.6}
    cells = {"a": {("f", 0): dice}, "b": {("f", 0): {"x": 0.4, "y": 0.58}}, "c": {("f", 0): dice}}
    tables = {table.name: table for table in make_tables(read_grid(make_cells(cells)), "a")}
    minus = "\N{MINUS SIGN}"
    b, c = tables["table_test_dice"].rows
    assert b == ["b", f"{minus}6.00", f"{minus}6.00", "0", "2", "2", "2", "0.5000", "1.0000"]
    assert c == ["c", "+0.00", "+0.00", "0", "0", "2", "2", "1.0000", "1.0000"]
    assert tables["table_test_hd95_voxel"].rows[0][1:5] == ["+0.60", "+0.60", "0", "2"]


# --- cost -------------------------------------------------------------------------------------------------------------


def write_history(folder, seconds):
    table = pd.DataFrame({"iteration": range(1, len(seconds) + 1), "seconds": seconds, "loss": 1.0})
    table.to_csv(folder / "history.csv", index=False)


def test_cost_by_hand(make_cells):
    folder = make_cells({"a": {("f", 0): {"x": 0.5}, ("f", 1): {"x": 0.5}}, "b": {("f", 0): {"x": 0.5}}})
    # The second begins with 3 s of preparation and has a validation of 4 s.
    write_history(folder / "cells/a/f_seed0", [1, 2, 3, 4, 5, 6])
    write_history(folder / "cells/a/f_seed1", [3, 4, 5, 9, 10, 11])
    write_history(folder / "cells/b/f_seed0", [3717.4, 3719.4, 3721.4, 3723.4])
    (folder / "cells/b/f_seed0/model_final.pt").write_bytes(b"broken")
    grid = read_grid(folder)
    a, b = costs(grid).to_dict("records")
    assert (a["runs"], a["iterations"], a["seconds_training"], a["seconds_iteration"]) == (2, 6, 8.5, 1)
    # 3 * 4 + 3: the running mean of the normalization is no parameter.
    assert a["parameters"] == 15
    assert b["seconds_training"] == 3723.4
    assert math.isnan(b["parameters"])
    # A process killed while writing leaves half a line.
    with (folder / "cells/b/f_seed0/history.csv").open("a") as stream:
        stream.write("5,")
    grid = read_grid(folder)
    table = next(table for table in make_tables(grid, "a") if table.name == "table_cost")
    assert table.rows == [["a", "6", "0:00:08", "1.000", "1.00", "0.00"], ["b", "4", "1:02:03", "2.000", "2.00", "-"]]
