# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The method of docs/adding_a_method.md trains from outside the package, by configuration alone."""

from __future__ import annotations

import csv
import re

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
