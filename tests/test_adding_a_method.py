# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The method of docs/adding_a_method.md trains from outside the package, by configuration alone."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL
from monai.bundle import ConfigWorkflow


@pytest.fixture
def page_files(tmp_path, monkeypatch):
    """The Python and the JSON block of the page as files outside the bundle."""
    page = (ROOT / "docs" / "adding_a_method.md").read_text()
    blocks = dict(re.findall(r"```(python|json)\n(.*?)```", page, re.DOTALL))
    (tmp_path / "pi_model.py").write_text(blocks["python"])
    (tmp_path / "method_pi_model.json").write_text(blocks["json"])
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_page_trains(page_files, phantom_dir):
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs/train.json"), str(page_files / "method_pi_model.json")],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(ROOT),
        dataset_dir=str(phantom_dir),
        output_dir=str(page_files / "run"),
        **SMALL,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    with (page_files / "run" / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == SMALL["iterations"]
    assert all(float(row["loss_consistency"]) > 0 for row in rows)
    assert float(rows[-1]["weight_consistency"]) > float(rows[0]["weight_consistency"])
    assert (page_files / "run" / "model_final.pt").is_file()


def test_page_joins_a_grid_of_real_runs_that_ends_in_a_report(page_files, phantom_dir):
    options = {
        "data": "hippocampus",
        "methods": f"supervised,{page_files / 'method_pi_model.json'}",
        "reference": "supervised",
        "dataset_dir": phantom_dir,
        "split_file": phantom_dir / "split.json",
        "output_dir": page_files / "grid",
        "jobs": 2,
        "num_classes": 2,
        "class_names": ["organ"],
        "iterations": 2,
        "val_interval": 2,
        "patch_size": [32, 16, 16],
        "strides": [32, 16, 16],
        "precision": "float32",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run(
        [sys.executable, "-m", "scripts", "crossval", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(page_files)},
        check=True,
    )
    report = page_files / "grid" / "report"
    assert (report / "report.html").is_file()
    with (report / "table_runs.csv").open() as stream:
        assert {row["method"] for row in csv.DictReader(stream)} == {"supervised_vnet", "pi_model"}
    assert "tested against: supervised_vnet" in (report / "report.md").read_text()
