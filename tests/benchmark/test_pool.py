# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

from conftest import assert_refused

from scripts.benchmark import pool
from scripts.benchmark.measuring import Measured
from scripts.benchmark.pool import WaitingMeasurement, make_pool, measure_pools, measure_starts, measure_waiting
from scripts.data.cases import load_cases


def test_a_pool_is_a_data_set_of_few_volumes(tmp_path):
    make_pool(tmp_path / "pool", 40)
    cases = load_cases(tmp_path / "pool", tmp_path / "pool/split.json")
    assert {name: len(listed) for name, listed in cases.items()} == {
        "labeled": 4,
        "unlabeled": 36,
        "validation": 0,
        "test": 0,
    }
    files = list((tmp_path / "pool/images").iterdir())
    assert len(files) == 40
    assert len({path.stat().st_ino for path in files}) == 8
    assert json.loads((tmp_path / "pool/split.json").read_text())["name"] == "pool_40"


def test_each_pool_is_trained_on_in_a_process_of_its_own():
    (row,) = measure_pools([20], iterations=2).itertuples()
    assert row.cases == 20
    assert row.seconds_to_first_iteration > row.seconds_per_iteration > 0
    assert row.peak_mebibytes > 100


def test_a_mistake_in_an_override_costs_one_line():
    with assert_refused("dataset_dir: /nowhere does not exist"):
        measure_pools([20], iterations=2, overrides={"dataset_dir": "/nowhere"})


def test_times_and_memory_are_those_of_the_training(monkeypatch):
    training = pool._Training(100.0, (104.0, 108.0, 111.0, 116.0), (106.0, 109.0, 113.0, 119.0))
    monkeypatch.setattr(pool, "measure_alone", lambda *arguments: Measured(training, 512.0))
    (row,) = measure_pools([10], iterations=4).itertuples()
    assert (row.seconds_to_first_iteration, row.seconds_per_iteration, row.peak_mebibytes) == (6, 13 / 3, 512)
    # After the first two steps: ten seconds for two iterations, of which 2 + 3 seconds are the steps.
    waiting = measure_waiting(iterations=4, warm_up=2)
    assert waiting == WaitingMeasurement(seconds_to_first_step=4, seconds_per_iteration=5, seconds_per_step=2.5)
    assert waiting.waiting_share == 0.5


def test_the_second_start_finds_the_volumes_of_the_first(monkeypatch):
    seen = []

    def measure(overlays, overrides):
        files = list(Path(overrides["cache_dir"]).iterdir())
        seen.append((overlays, overrides["patch_size"], len(files)))
        (Path(overrides["cache_dir"]) / "volume").touch()
        return WaitingMeasurement(seconds_to_first_step=3, seconds_per_iteration=4, seconds_per_step=3)

    monkeypatch.setattr(pool, "measure_waiting", measure)
    starts = measure_starts(["data_left_atrium"], overrides={"patch_size": [32, 32, 32]})
    assert seen == [(["data_left_atrium"], [32, 32, 32], 0), (["data_left_atrium"], [32, 32, 32], 1)]
    assert starts["waiting_share"].tolist() == [0.25, 0.25]


def test_both_starts_are_of_the_same_phantoms(monkeypatch):
    folders = []

    def measure(overlays, overrides):
        assert Path(overrides["dataset_dir"], "images").is_dir()
        folders.append(overrides["dataset_dir"])
        return WaitingMeasurement(seconds_to_first_step=3, seconds_per_iteration=4, seconds_per_step=3)

    monkeypatch.setattr(pool, "measure_waiting", measure)
    measure_starts()
    first, second = folders
    assert first == second
