# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The files of the report: which there are, that they need nothing else, and that names cannot break them."""

from __future__ import annotations

import json
import re
from functools import partial
from html.parser import HTMLParser

import pandas as pd
import pytest
from report_grid import change_facts, write_cells, write_grid

from scripts.evaluation.report.documents import latex_text, markdown
from scripts.evaluation.report.report import _OF_A_REPORT, write_report
from scripts.evaluation.report.tables import Table

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects tags and text, and fails on a tag that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def make_cells(tmp_path):
    return partial(write_cells, tmp_path / "grid")


def files_beside_the_report(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "report" not in path.parts}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Folder of a grid of four methods, one an upper bound, with its report, and what was there before the report."""
    errors = {"upper_bound_vnet": 0.02, "supervised_vnet": 0.1, "dual_network": 0.05, "mean_teacher": 0.15}
    folder = write_grid(tmp_path_factory.mktemp("report_files") / "grid", errors, num_cases=4)
    numbers = {"upper_bound_vnet": (56, 0), "supervised_vnet": (16, 0), "dual_network": (16, 40)}
    for method, (labeled, unlabeled) in numbers.items():
        cases = f"{labeled} labeled, {unlabeled} unlabeled, 0a1b2c"
        change_facts(folder, method, "fixed_seed0", settings={"cases": cases})
    before = files_beside_the_report(folder)
    write_report(folder)
    return folder, before


@pytest.fixture
def folder(reported):
    return reported[0]


def test_all_files_are_written_and_nothing_else_is_touched(reported):
    folder, before = reported
    assert sorted(path.name for path in (folder / "report").iterdir()) == [
        "figure_case_best.png",
        "figure_case_median.png",
        "figure_case_worst.png",
        "figure_dice.png",
        "figure_hd95_voxel.png",
        "figure_loss.png",
        "figure_validation.png",
        "report.html",
        "report.md",
        "report.tex",
        "table_class_1.csv",
        "table_class_2.csv",
        "table_cost.csv",
        "table_metrics.csv",
        "table_runs.csv",
        "table_settings.csv",
        "table_test_asd_voxel.csv",
        "table_test_dice.csv",
        "table_test_hd95_voxel.csv",
        "tables.csv",
    ]
    assert files_beside_the_report(folder) == before


def test_the_same_grid_makes_the_same_report_and_old_pictures_go(folder):
    report = folder / "report"
    first = {path.name: path.read_bytes() for path in report.iterdir()}
    own = ("figure_for_paper.png", "table_edited.csv", "notes.txt")
    for name in ("table_class_9.csv", "table_terms_3.csv", *own):
        (report / name).write_text("of another time")
    assert write_report(folder) == report / "report.html"
    again = {path.name: path.read_bytes() for path in report.iterdir()}
    for name in own:
        (report / name).unlink()
    assert again == {**first, **dict.fromkeys(own, b"of another time")}


def test_all_that_a_report_writes_goes_with_the_next_one(folder):
    for path in (folder / "report").glob("*_*"):
        assert _OF_A_REPORT.fullmatch(path.name), path.name


def test_the_page_is_whole_and_needs_nothing_else(folder):
    text = (folder / "report" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("table") == 9
    assert page.tags.count("img") == 7
    assert not {"script", "link", "iframe"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/png;base64,", "#")), value[:60]
    assert not re.search(r"https?://|@import|url\(", text)
    links = {value[1:] for name, value in page.attributes if name == "href"}
    assert links == {value for name, value in page.attributes if name == "id"}
    assert "position: sticky" in text
    assert "@media print" in text
    assert 'content="width=device-width' in text
    # In all documents the best two of three rows are bold, the second underlined; the upper bound stands below them.
    best = pd.read_csv(folder / "report" / "table_metrics.csv").sort_values("dice_mean", ascending=False)
    assert best["method"].tolist() == ["upper_bound_vnet", "dual_network", "supervised_vnet", "mean_teacher"]
    top, first, second = (f"{100 * row.dice_mean:.2f} ± {100 * row.dice_sd:.2f}" for row in best[:3].itertuples())
    group = "upper bounds: labels of all training cases"
    assert f"<td><b>{first}</b></td>" in text
    assert f"<td><b><u>{second}</u></b></td>" in text
    assert f'<th scope="rowgroup" colspan="14">{group}</th></tr>\n<tr><th scope="row">upper_bound_vnet</th>' in text
    document = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert f"| dual_network | 16 | 40 | **{first}** |" in document
    assert f"| supervised_vnet | 16 | 0 | **<ins>{second}</ins>** |" in document
    assert f"| *{group}* |{'  |' * 13}\n| upper_bound_vnet | 56 | 0 | {top} |" in document
    assert "](figure_case_best.png)" in document
    tables = (folder / "report" / "report.tex").read_text(encoding="utf-8")
    assert rf"dual\_network & 16 & 40 & \textbf{{{latex_text(first)}}}" in tables
    assert rf"supervised\_vnet & 16 & 0 & \textbf{{\underline{{{latex_text(second)}}}}}" in tables
    assert (
        rf"""\midrule
\multicolumn{{14}}{{l}}{{\emph{{{group}}}}} \\
upper\_bound\_vnet & 56 & 0 & {latex_text(top)}"""
        in tables
    )
    for written in (text, document, tables):
        assert "bold, the second underlined too" in written
    assert tables.count(r"\begin{table}") == tables.count(r"\end{table}") == 9
    assert not re.search(r"(?<!\\)[_&%]", re.sub(r" & |^%.*$|\{%$", "", tables, flags=re.MULTILINE))


def test_tables_in_long_form_hold_every_number(folder):
    report = folder / "report"
    numbers = pd.read_csv(report / "tables.csv")
    assert list(numbers) == ["table", "method", "class", "metric", "split", "seed", "quantity", "value"]
    row = numbers.query("table == 'table_class_2' and method == 'mean_teacher' and quantity == 'asd_mm_mean'")
    wide = pd.read_csv(report / "table_class_2.csv").set_index("method")
    assert float(row["value"].item()) == wide.loc["mean_teacher", "asd_mm_mean"]
    row = numbers.query("table == 'table_test_dice' and method == 'mean_teacher' and quantity == 'p_holm'")
    assert row["metric"].item() == "dice"
    assert float(row["value"].item()) == 0.25  # 2 / 2^4, the smallest for four cases, times 2


def test_settings_of_all_methods_are_named_and_the_others_listed(folder):
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Methods on hippocampus\n")
    assert "- recipe: budget\n- overrides: iterations 100\n- methods: 4 of 4 evaluated\n" in text
    assert "- upper bounds: upper_bound_vnet\n" in text
    assert "- splits: fixed (tubes_fixed.json)\n" in text
    assert "- settings: iterations 100\n" in text
    assert "- versions: torch 2.13.0\n" in text
    assert "| method | method_def | cases |" in text
    assert "| supervised_vnet | supervised_vnet | 16 labeled, 0 unlabeled, 0a1b2c |" in text
    assert "| mean_teacher | mean_teacher | - |" in text


def test_names_and_errors_are_texts_and_no_commands(make_cells):
    nasty = "<script>alert(1)<&$x_^{|}"
    cells = {
        nasty: {("f", 0): {"<b>x": 0.5, "y": 0.6}},
        "b": {("f", 0): {"<b>x": 0.4, "y": 0.8}},
        "c": {("f", 0): {"y": 0.1}},
    }
    folder = make_cells(cells, data="A <i>title</i>")
    error = {"status": "failed", "error": "<img src=http://x> 100 %"}
    (folder / "cells/c/f_seed0/cell.json").write_text(json.dumps(error))
    (folder / "cells/c/f_seed0/evaluation/metrics_cases.csv").unlink()
    path = write_report(folder, reference=nasty)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "i"} & set(page.tags)
    assert page.tags.count("img") == 4
    assert nasty in page.texts
    assert "<img src=http://x> 100 %" in page.texts
    document = path.with_name("report.md").read_text(encoding="utf-8")
    assert "<script" not in document
    assert r"&lt;script&gt;alert(1)&lt;&amp;$x\_^{\|}".replace(r"\_", "_") in document.replace(r"\_", "_")
    tables = path.with_name("report.tex").read_text(encoding="utf-8")
    assert r"\textless{}script\textgreater{}alert(1)\textless{}\&\$x\_\textasciicircum{}\{|\}" in tables


def test_latex_text():
    assert latex_text("a_b 5 % ± ~ \\ #{x}") == r"a\_b 5 \% $\pm$ \textasciitilde{} \textbackslash{} \#\{x\}"
    assert latex_text("\N{MINUS SIGN}1 < 2") == r"$-$1 \textless{} 2"


def test_markdown_keeps_rows_in_one_piece():
    table = Table("table_x", "T", ["method", "error"], [["a|b", "one\ntwo"]], pd.DataFrame(), [], "_note_ of a_b")
    text = markdown("Title", [("name", "[link](x)")], [table], [], ["nothing drawn"])
    assert "| a\\|b | one two |" in text
    assert "\\_note\\_ of a_b" in text
    assert "[link\\](x)" in text
    assert text.endswith("\n\nnothing drawn\n")
