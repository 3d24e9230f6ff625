# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: files, numbers, counts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from scripts.errors import BundleError
from scripts.evaluation.case_report import CaseReport, read_metrics

NAN = float("nan")


def row(name, dice, *, distance=1.0, status="found"):
    distance = distance if status == "found" else NAN
    return {
        "class": name,
        "dice": dice,
        "jaccard": dice / (2 - dice),
        "hd95_voxel": 2 * distance,
        "asd_voxel": distance,
        "hd95_mm": 4 * distance,
        "asd_mm": 2 * distance,
        "status": status,
    }


@pytest.fixture
def report(tmp_path):
    report = CaseReport(tmp_path / "eval", ["head", "body", "tail"])
    report.add("a", [row("head", 0.8, distance=1), row("body", 0.6, distance=3), row("tail", 0, status="missed")])
    report.add("b", [row("head", 0.6, distance=2), row("body", 0, status="missed"), row("tail", 0, status="missed")])
    report.add(
        "c", [row("head", 0.7, distance=6), row("body", 0, status="false_positive"), row("tail", 1, status="absent")]
    )
    return report


def test_cases_file_has_a_row_for_each_case_and_class(report):
    paths = report.write()
    assert [path.name for path in paths] == ["metrics_cases.csv", "metrics_summary.csv", "metrics_summary.md"]
    cases = pd.read_csv(paths[0])
    assert list(cases) == ["case", "class", "status", "dice", "jaccard", "hd95_voxel", "asd_voxel", "hd95_mm", "asd_mm"]
    assert cases["case"].tolist() == list("aaabbbccc")
    assert cases["class"].tolist() == ["head", "body", "tail"] * 3
    assert cases["dice"].tolist() == [0.8, 0.6, 0, 0.6, 0, 0, 0.7, 0, 1]
    assert cases["asd_mm"].isna().tolist() == [False, False, True, False, True, True, False, True, True]
    assert sorted(path.name for path in report.output_dir.iterdir()) == sorted(path.name for path in paths)


def test_summary_by_hand(report):
    report.write()
    summary = pd.read_csv(report.output_dir / "metrics_summary.csv").set_index("class")
    assert list(summary.index) == ["head", "body", "tail", "mean over classes"]
    counts = summary[["cases", "found", "missed", "false_positive", "absent"]]
    assert counts.loc["head"].tolist() == [3, 3, 0, 0, 0]
    assert counts.loc["body"].tolist() == [3, 1, 1, 1, 0]
    assert counts.loc["tail"].tolist() == [3, 0, 2, 0, 1]
    assert counts.loc["mean over classes"].tolist() == [3, 4, 3, 1, 1]

    assert summary.loc["head", "dice_mean"] == pytest.approx(0.7)
    assert summary.loc["head", "dice_sd"] == pytest.approx(0.1)  # sqrt((0.01 + 0.01) / 2)
    assert summary.loc["head", "asd_voxel_mean"] == pytest.approx(3)
    assert summary.loc["head", "asd_voxel_sd"] == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / 2
    assert summary.loc["head", "hd95_mm_mean"] == pytest.approx(12)

    # Missed and false positive cases count as 0 for the overlap and not at all for the distances.
    assert summary.loc["body", "dice_mean"] == pytest.approx(0.2)
    assert summary.loc["body", "asd_mm_mean"] == pytest.approx(6)
    assert math.isnan(summary.loc["body", "asd_mm_sd"])
    assert math.isnan(summary.loc["tail", "asd_mm_mean"])

    # Within the cases first: 1.4 / 3, 0.6 / 3, 1.7 / 3 and, over the classes found, 2, 2, 6.
    assert summary.loc["mean over classes", "dice_mean"] == pytest.approx(3.7 / 9)
    assert summary.loc["mean over classes", "dice_sd"] == pytest.approx(np.std([1.4 / 3, 0.2, 1.7 / 3], ddof=1))
    assert summary.loc["mean over classes", "asd_voxel_mean"] == pytest.approx(10 / 3)


def test_tables_are_read_back_with_names_as_they_are(tmp_path):
    report = CaseReport(tmp_path, ["NA"])
    report.add("1", [row("NA", 0.8, status="missed")])
    cases, summary, _ = report.write()
    table = read_metrics(cases)
    assert table[["case", "class"]].to_numpy().tolist() == [["1", "NA"]]
    assert table["dice"].item() == 0.8
    assert table["hd95_mm"].isna().all()
    # One case has no deviation.
    assert read_metrics(summary)[["dice_sd", "hd95_mm_mean", "hd95_mm_sd"]].isna().all(axis=None)
    assert set(read_metrics(summary)["class"]) == {"NA", "mean over classes"}


def test_readable_summary_has_percent_and_a_dash_for_a_class_never_found(report):
    report.write()
    text = (report.output_dir / "metrics_summary.md").read_text(encoding="utf-8")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    cells = [cell.strip() for cell in lines["head"].split("|")[2:-1]]
    assert cells[0] == "70.00 ± 10.00"
    assert cells[3] == "3.00 ± 2.65"
    assert cells[6:] == ["3", "3", "0", "0", "0"]
    assert "6.00 ± -" in lines["body"]
    cells = [cell.strip() for cell in lines["tail"].split("|")[2:-1]]
    assert cells[2:] == ["-", "-", "-", "-", "3", "0", "2", "0", "1"]
    assert text.startswith("# Metrics of 3 cases\n")
    assert "n - 1" in text


def test_table_is_aligned_plain_text(report):
    lines = report.table().splitlines()
    assert len(lines) == 6
    assert "\x1b" not in report.table()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].startswith("class ")
    assert lines[-1].startswith("mean over classes ")


def test_one_class_needs_no_mean_over_classes_to_read(tmp_path):
    report = CaseReport(tmp_path, ["atrium"])
    report.add("a", [row("atrium", 0.5)])
    assert "mean over classes" not in report.table()
    assert report.summary()["class"].tolist() == ["atrium", "mean over classes"]
    assert "50.00 ± -" in report.table()


def test_worst_cases_come_by_mean_dice(report):
    assert report.worst() == ["b", "a", "c"]
    assert report.worst(1) == ["b"]
    assert report.worst(0) == []
    assert report.mean_dice("a") == pytest.approx(1.4 / 3)
    assert len(report) == 3


def test_names_stand_in_the_summary_as_they_are(tmp_path):
    report = CaseReport(tmp_path, ["<b>head|a", "*tail*"])
    report.add("a", [row("<b>head|a", 0.8), row("*tail*", 0.6)])
    text = report.write()[2].read_text(encoding="utf-8")
    assert "| &lt;b&gt;head\\|a |" in text
    assert "| \\*tail\\* |" in text


def test_report_refuses(report, tmp_path):
    with pytest.raises(BundleError, match="got 'a' a second time"):
        report.add("a", [])
    with pytest.raises(BundleError, match=r"case 'd' must be of the classes .*, got \['head'\]"):
        report.add("d", [row("head", 1)])
    with pytest.raises(BundleError, match="at least one case"):
        CaseReport(tmp_path, ["x"]).write()
    with pytest.raises(BundleError, match="num_classes must be at least 2"):
        CaseReport(tmp_path, [])
