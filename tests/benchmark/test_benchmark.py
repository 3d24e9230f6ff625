# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The benchmark on tiny volumes: that it measures what it names, not how fast this machine is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import assert_refused

from scripts.__main__ import main
from scripts.benchmark import benchmark, inference, measuring, step
from scripts.benchmark.inference import DEFAULT, inference_modes, measure_inference
from scripts.benchmark.measuring import Measured, measure_alone
from scripts.errors import BundleError
from scripts.inference_configuration import inference_configs
from scripts.networks.dual_network import DualNetwork
from scripts.studies.cases import study_cases


def allocate(mebibytes):
    return int(np.ones((mebibytes, 2**20), np.uint8).sum()) // 2**20


def die():
    os._exit(1)


def test_peak_memory_is_that_of_the_measured_process():
    small, large = (measure_alone(allocate, mebibytes) for mebibytes in (1, 301))
    assert (small.value, large.value) == (1, 301)
    assert 250 < large.peak_mebibytes - small.peak_mebibytes < 400


def test_a_killed_measurement_is_reported():
    with assert_refused("a measurement was killed"):
        measure_alone(die)


def test_a_measurement_ends_with_the_process_that_started_it(tmp_path):
    script = "from scripts.benchmark.measuring import measure_alone\n"
    script += "from test_benchmark import write_pid_and_sleep\n"
    script += f"measure_alone(write_pid_and_sleep, {str(tmp_path / 'pid')!r})\n"
    path = os.pathsep.join([os.getcwd(), os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))])
    starter = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
    assert comes_true(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "", seconds=120)
    measurement = int((tmp_path / "pid").read_text())
    assert is_running(measurement)
    starter.kill()
    starter.wait()
    assert comes_true(lambda: not is_running(measurement), seconds=30)


def write_pid_and_sleep(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def comes_true(condition, *, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def test_modes_take_the_strides_of_the_protocol():
    baseline, *others = inference_modes([112, 112, 80], [18, 18, 4])
    steps = [
        int(size * (1 - overlap)) for size, overlap in zip((112, 112, 80), baseline.settings["overlap"], strict=True)
    ]
    assert steps == [18, 18, 4]
    assert DEFAULT in [mode.name for mode in others]


@pytest.fixture
def report(phantom_dir, tmp_path, monkeypatch):
    """A report whose measurements share this process, as starting one for each takes longer than the test may."""
    for module in (step, inference):
        monkeypatch.setattr(module, "measure_alone", lambda measure, *args: Measured(measure(*args), 1024.0))
    folder = tmp_path
    torch.manual_seed(0)
    torch.save(DualNetwork().state_dict(), folder / "model.pt")
    words = [
        "--patch_size",
        "[32,32,32]",
        "--strides",
        "[16,16,16]",
        "--num_steps",
        "1",
        "--device",
        "cpu",
        "--parts",
        "step,inference",
    ]
    words += ["--dataset_dir", str(phantom_dir), "--ckpt_path", str(folder / "model.pt")]
    words += ["--data", "left_atrium"]
    main(["benchmark", "--output_dir", str(folder / "report"), *words])
    return folder / "report"


def test_the_report_holds_machine_steps_and_inference(report):
    facts = json.loads((report / "benchmark.json").read_text())
    assert facts["machine"]["torch"] == torch.__version__
    steps = {row["mode"]: row for row in facts["step"]}
    assert {*step.MODES} <= {*steps}
    baseline, bundle = steps["baseline"], steps["bundle"]
    assert baseline["precision"] == "float32"
    assert baseline["ratio"] == 1
    assert bundle["seconds"] * bundle["ratio"] == pytest.approx(baseline["seconds"])
    assert 0 < bundle["loss_share"] < 1
    modes = {row["mode"]: row for row in facts["inference"]}
    assert modes["window by window"]["agreement"] == 100
    assert modes["protocol's windows"]["agreement"] > 99.9
    assert modes["whole volume"]["agreement"] < 100
    assert all(
        row["seconds"] * row["ratio"] == pytest.approx(modes["window by window"]["seconds"]) for row in modes.values()
    )
    assert all(0 < row["dice"] < 100 for row in modes.values())
    assert re.fullmatch(r"step [\d.]+x, inference [\d.]+x, memory 1.0 GiB", facts["summary"])
    text = (report / "benchmark.md").read_text()
    assert text.endswith(facts["summary"] + "\n")
    assert text.count("\n| ") == 2 * 2 + len(steps) + len(modes)


@pytest.mark.parametrize(
    ("words", "patch_size", "strides"),
    [
        ([], [112, 112, 80], [18, 18, 4]),
        (["--data", "hippocampus"], [32, 48, 32], [8, 12, 8]),
        (["--data", "hippocampus", "--patch_size", "[16,32,16]"], [16, 32, 16], [8, 12, 8]),
    ],
)
def test_sizes_are_those_of_the_data(words, patch_size, strides, phantom_dir, tmp_path, monkeypatch):
    seen = {}

    def measure(cases, config_file, folder, *, strides, overrides, **_):
        seen.update(overrides, strides=strides)
        raise BundleError("enough")

    monkeypatch.setattr(benchmark, "measure_inference", measure)
    words = ["--dataset_dir", str(phantom_dir), "--parts", "inference", *words]
    with pytest.raises(SystemExit):
        main(["benchmark", "--output_dir", str(tmp_path), *words])
    assert (seen["patch_size"], seen["strides"]) == (patch_size, strides)


def test_a_training_on_a_whole_data_set_needs_no_test_list(phantom_dir, tmp_path, monkeypatch, capsys):
    split = json.loads((phantom_dir / "split.json").read_text()) | {"validation": [], "test": []}
    split.pop("cases_hash", None)
    (tmp_path / "split.json").write_text(json.dumps(split))
    seen = {}

    def measure(overlays, *, overrides):
        seen.update(overrides)
        raise BundleError("enough")

    monkeypatch.setattr(benchmark, "measure_starts", measure)
    words = ["benchmark", "--output_dir", str(tmp_path), "--dataset_dir", str(phantom_dir)]
    words += ["--split_file", str(tmp_path / "split.json"), "--parts"]
    for parts, message in (("start", "enough"), ("inference,start", "has no test case")):
        with pytest.raises(SystemExit):
            main([*words, parts])
        assert message in capsys.readouterr().err
    assert seen["split_file"] == str(tmp_path / "split.json")


def test_bad_arguments_cost_a_line(capsys, tmp_path, phantom_dir):
    words = ["benchmark", "--dataset_dir", str(phantom_dir)]
    (tmp_path / "earlier").mkdir()
    earlier = tmp_path / "earlier" / "benchmark.json"
    earlier.write_text("{}")
    for arguments, message in (
        (["--pool_sizes", "[5,100]"], "pool_sizes must be numbers of at least 10, got [5, 100]."),
        (["--pool_sizes", "[]"], "pool_sizes must be numbers of at least 10, got []."),
        (
            ["--patch_size", "[30,32,32]"],
            "patch_size must be three whole numbers of at least 16 that are divisible by 16, such as [96,96,96], "
            "got [30, 32, 32].",
        ),
        (["--ckpt_path", "missing.pt"], "ckpt_path missing.pt not found."),
        (["--device", "nowhere"], "device must be a device of this machine, such as cpu or cuda:0, got 'nowhere'."),
        (
            ["--output_dir", str(earlier.parent)],
            f"{earlier} exists: replace it by --overwrite true, or choose another --output_dir.",
        ),
        (["--parts", "speed"], "parts must be of step, inference, start, pools, got 'speed'."),
        (["--patch_size", "32"], "patch_size must be three whole numbers, such as [96,96,96], got 32."),
    ):
        folder = [] if "--output_dir" in arguments else ["--output_dir", str(tmp_path)]
        with pytest.raises(SystemExit):
            main([*words, *folder, *arguments])
        assert capsys.readouterr().err == f"error: {message}\n"
    assert earlier.read_text() == "{}"


def test_nothing_is_generated_for_arguments_that_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.__main__.study_cases", lambda *arguments, **options: pytest.fail("generated"))
    with pytest.raises(SystemExit):
        main(["benchmark", "--output_dir", str(tmp_path), "--device", "nowhere"])
    assert "device must be a device of this machine" in capsys.readouterr().err


def test_weights_of_another_preprocessing_are_refused(capsys, tmp_path, phantom_dir):
    weights = tmp_path / "run" / "model_final.pt"
    weights.parent.mkdir()
    weights.touch()
    (weights.parent / "run_config.json").write_text(json.dumps({"spacing": [9, 9, 9]}))
    words = ["--dataset_dir", str(phantom_dir), "--parts", "inference", "--ckpt_path", str(weights)]
    with pytest.raises(SystemExit):
        main(["benchmark", "--output_dir", str(tmp_path / "report"), *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {weights} was trained with another preprocessing (spacing was [9, 9, 9]")
    assert line.endswith("give the --data of the run.")
    assert not (tmp_path / "report").exists()


def test_weights_and_images_are_checked(phantom_dir, tmp_path):
    torch.save(DualNetwork(out_channels=3).state_dict(), tmp_path / "model.pt")
    cases = study_cases(phantom_dir, phantom_dir / "split.json")
    options = {"strides": [16, 16, 16], "overrides": {"patch_size": [32, 32, 32]}}
    with assert_refused("ckpt_path .*model.pt"):
        measure_inference(
            cases[:1], inference_configs("left_atrium"), tmp_path, ckpt_path=str(tmp_path / "model.pt"), **options
        )
    with assert_refused("the images of the cases must have different file names"):
        measure_inference([cases[0], cases[0]], inference_configs(None), tmp_path, **options)


@pytest.mark.parametrize(("peaks", "expected"), [({1: 2**20}, 1.0), ({0: 3 * 2**20, 1: 2**20}, 3.0)])
def test_the_peak_is_that_of_the_gpu_in_use(peaks, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks.get(device, 0))
    assert measuring._peak_mebibytes() == expected
    peaks.clear()
    # Nothing on any GPU: that of the process.
    assert measuring._peak_mebibytes() > 50


_IMPORTED = "$__import__('scripts.networks.dual_network', fromlist=['DualNetwork'])"


@pytest.mark.parametrize(
    ("pair", "options", "expected"),
    [
        (True, {"normalization": "instance"}, "instance"),
        (True, {"network_def#normalization": "group"}, "group"),
        (True, {"network_def": f"{_IMPORTED}.DualNetwork(1, 2, normalization='group')"}, "group"),
        (False, {}, None),
    ],
)
def test_single_networks_are_measured_where_the_bundle_has_a_pair(
    pair, options, expected, phantom_dir, tmp_path, monkeypatch
):
    measured = []
    monkeypatch.setattr(inference, "measure_alone", lambda _, *args: measured.append(args[-1]) or Measured(1.0, 1.0))
    single = {
        "network_def": {
            "_target_": "scripts.networks.single_network.SingleNetwork",
            "architecture": "vnet",
            "in_channels": 1,
            "out_channels": 2,
        }
    }
    measure_inference(
        study_cases(phantom_dir, phantom_dir / "split.json")[:1],
        inference_configs(None),
        tmp_path,
        strides=[16, 16, 16],
        overrides={"patch_size": [32, 32, 32], **options, **({} if pair else single)},
    )
    assert len(measured) == len(inference_modes([32, 32, 32], [16, 16, 16])) - (0 if pair else 2)
    definitions = (settings.get("network_def") for settings in measured)
    networks = [definition for definition in definitions if isinstance(definition, dict)]
    if pair:
        assert [network["architecture"] for network in networks] == ["vnet", "resnet_vnet"]
        assert {network["normalization"] for network in networks} == {expected}
    else:
        assert networks == [single["network_def"]] * len(measured)
