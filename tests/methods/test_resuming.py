# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Resuming of every method that has no such test among its own."""

from __future__ import annotations

import pytest
from conftest import ROOT
from resuming import assert_resumed_run_ends_with_the_same_bits

#: Methods whose own files test it, with a teacher, stages, a second optimizer or a setting of theirs.
TESTED_ELSEWHERE = {"method_bcp", "method_dual_copy_paste", "method_dual_mean_teacher", "method_sassnet", "method_sdcl"}
OVERLAYS = {path.stem for path in (ROOT / "configs").glob("method_*.json")}


@pytest.mark.parametrize("name", sorted(OVERLAYS - TESTED_ELSEWHERE))
def test_resumed_run_ends_with_the_same_bits(name, tmp_path, make_workflow, phantom_dir):
    assert_resumed_run_ends_with_the_same_bits(make_workflow, phantom_dir, tmp_path / "run", name)


def test_crops_around_foreground_and_augmentation_are_resumed(tmp_path, make_workflow, phantom_dir):
    flip = {"_target_": "RandFlipd", "keys": ["image", "label", "unlabeled"], "prob": 0.5, "allow_missing_keys": True}
    assert_resumed_run_ends_with_the_same_bits(
        make_workflow,
        phantom_dir,
        tmp_path / "run",
        "method_supervised_vnet",
        iterations=4,
        foreground_share=0.5,
        augmentation=[flip],
    )
