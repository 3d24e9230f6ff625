# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves for inference, and what a resumed one is compared with."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil

import pytest
import torch
from conftest import ROOT, assert_refused
from filelock import FileLock
from monai.bundle import ConfigParser

from scripts.configuration import read_configuration
from scripts.errors import BundleError
from scripts.handlers import run_directory
from scripts.handlers.run_comparison import changed_training, check_preprocessing, compare_split, listed
from scripts.handlers.run_directory import RunDirectory, claim_report_directory
from scripts.inference_configuration import checked_configuration

INFERENCE = str(ROOT / "configs" / "inference.json")


def inference_after(tmp_path, *names, **overrides):
    """Begin a run with these files, and read what inference gets of it."""
    training = ConfigParser()
    training.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("train", *names)])
    training.update(overrides)
    folder = tmp_path / "run"
    geometry = {"trained_spacing": None, "trained_extent": [20.0, 30.0, 40.0]}
    directory = RunDirectory(str(folder), configuration=lambda: dict(training.get()), geometry=lambda: geometry)
    directory.claim()
    directory.begin()
    parser = ConfigParser()
    parser.read_config([INFERENCE, str(folder / "inference.json")])
    parser["bundle_root"] = str(ROOT)
    return parser


def test_inference_knows_what_a_training_was_given(tmp_path):
    overrides = {"patch_size": [32, 32, 32], "class_names": ["spleen"], "normalization": "instance"}
    parser = inference_after(tmp_path, **overrides)
    assert parser.get_parsed_content("patch_size") == [32, 32, 32]
    assert parser.get_parsed_content("spacing") is None
    assert parser.get_parsed_content("trained_spacing") is None
    assert parser.get_parsed_content("trained_extent") == [20, 30, 40]
    assert parser.get_parsed_content("class_names") == ["spleen"]
    assert parser.get_parsed_content("ckpt_path") == str(tmp_path / "run" / "model_final.pt")
    network = parser.get_parsed_content("network_def")
    assert any(isinstance(module, torch.nn.InstanceNorm3d) for module in network.modules())
    assert not network.with_disagreement
    keys = parser.get_parsed_content("preprocessing").transforms
    assert "ScaleIntensityRanged" not in {type(transform).__name__ for transform in keys}


def test_inference_takes_the_weights_that_the_evaluation_takes(tmp_path):
    configuration = ConfigParser.load_config_file(ROOT / "configs/train.json")
    RunDirectory(
        str(tmp_path), evaluated_checkpoint="model.pt", configuration=lambda: configuration, geometry=dict
    ).begin()
    assert json.loads((tmp_path / "inference.json").read_text())["ckpt_path"] == str(tmp_path / "model.pt")
    parser = ConfigParser(configuration)
    assert parser["run_directory#evaluated_checkpoint"] == "@evaluated_checkpoint"
    assert "scripts.settings.check_evaluated_checkpoint" in [
        step["_target_"] for step in parser["run"] if isinstance(step, dict)
    ]


def test_inference_takes_spacing_and_window_of_the_data(tmp_path):
    parser = inference_after(tmp_path, "data_hippocampus")
    # Its own volumes, not those that the shipped weights were trained on.
    assert parser.get_parsed_content("trained_extent") == [20, 30, 40]
    parser = inference_after(tmp_path / "pancreas", "data_pancreas")
    assert parser.get_parsed_content("spacing") == [1.0, 1.0, 1.0]
    names = {type(transform).__name__ for transform in parser.get_parsed_content("preprocessing").transforms}
    assert {"ScaleIntensityRanged", "Spacingd"} <= names


def test_inference_takes_the_keys_that_a_window_refers_to(tmp_path):
    own = {"air": -1000, "darkest": "$@air + 900", "brightest": 240, "study": "/patients"}
    window = {"window#_disabled_": False, "window#a_min": "@darkest", "window#a_max": "$@brightest"}
    parser = inference_after(tmp_path, **own, **window)
    (step,) = [
        step
        for step in parser.get_parsed_content("preprocessing").transforms
        if type(step).__name__ == "ScaleIntensityRanged"
    ]
    assert (step.scaler.a_min, step.scaler.a_max) == (-100, 240)
    assert "study" not in json.loads((tmp_path / "run" / "inference.json").read_text())


def test_map_of_uncertainty_stays_an_option(tmp_path):
    parser = inference_after(tmp_path)
    parser["save_uncertainty"] = True
    assert parser.get_parsed_content("network_def").with_disagreement


@pytest.mark.parametrize(
    ("method", "kind"), [("method_supervised_vnet", "SingleNetwork"), ("method_mc_net", "MultiDecoderVNet")]
)
def test_inference_builds_the_network_of_another_method(tmp_path, method, kind):
    network = inference_after(tmp_path, "data_hippocampus", method).get_parsed_content("network_def")
    assert type(network).__name__ == kind
    assert network(torch.zeros(1, 1, 32, 32, 32)).shape[1] == 3


def test_nothing_is_written_where_the_configuration_is_not_known(tmp_path):
    directory = RunDirectory(str(tmp_path / "run"))
    directory.claim()
    directory.begin()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", ".training.lock"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"] == {}


def test_what_the_beginning_of_a_run_did_not_record_is_not_compared(tmp_path):
    begun = RunDirectory(str(tmp_path), settings={"seed": 1})
    begun.begin()
    RunDirectory(str(tmp_path), resume=True, settings={"seed": 1, "network": "new"}).claim()
    with pytest.raises(BundleError, match="seed was 1, is 2"):
        RunDirectory(str(tmp_path), resume=True, settings={"seed": 2, "network": "new"}).claim()


def test_a_run_is_not_resumed_with_other_validation_cases(tmp_path):
    facts = {"split": lambda: {"name": "a", "cases_hash": "1"}}
    RunDirectory(str(tmp_path), facts=facts).begin()
    RunDirectory(str(tmp_path), facts=facts, resume=True).claim()
    for other in ({"name": "a", "cases_hash": "2"}, None):
        with pytest.raises(BundleError, match=r"other settings \(split was \{'name': 'a', 'cases_hash': '1'\}, is "):
            RunDirectory(str(tmp_path), facts={"split": other}, resume=True).claim()
    # A run of an older version does not tell its split.
    (tmp_path / "run.json").write_text(json.dumps({"settings": {}}))
    RunDirectory(str(tmp_path), facts=facts, resume=True).claim()


def test_a_run_without_a_checkpoint_is_resumed_with_its_first_weights(tmp_path, caplog):
    first, same, other = (tmp_path / name for name in ("first.pt", "moved/renamed.pt", "other/first.pt"))
    for path, content in ((first, b"1"), (same, b"1"), (other, b"2")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    RunDirectory(str(tmp_path / "run"), facts={"initial_weights": str(first)}).begin()
    RunDirectory(str(tmp_path / "run"), facts={"initial_weights": str(same)}, resume=True).claim()
    for weights in (None, str(other), str(tmp_path / "gone.pt")):
        with pytest.raises(BundleError, match=r"other settings \(initial_weights_sha256 was \w{64}, is "):
            RunDirectory(str(tmp_path / "run"), facts={"initial_weights": weights}, resume=True).claim()
    # A checkpoint has the weights.
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "run/checkpoints/checkpoint_000010.pt").touch()
    for weights in (None, str(same), str(tmp_path / "gone.pt")):
        RunDirectory(str(tmp_path / "run"), facts={"initial_weights": weights}, resume=True).enter()
    assert caplog.messages == []
    directory = RunDirectory(str(tmp_path / "run"), facts={"initial_weights": str(other)}, resume=True)
    directory.claim()
    directory.enter()
    directory.begin()
    assert caplog.messages == [
        f"initial_weights {other} have no effect: the run in {tmp_path / 'run'} goes on from its checkpoint."
    ]


def test_of_other_iterations_the_ramps_that_follow_are_not_told(tmp_path):
    RunDirectory(str(tmp_path), settings={"iterations": 4, "method": "ramp over 4"}).begin()
    message = r"other settings \(iterations was 4, is 8\): resume .* schedule, ramps and order of crops begin anew\.$"
    with pytest.raises(BundleError, match=message):
        RunDirectory(str(tmp_path), resume=True, settings={"iterations": 8, "method": "ramp over 8"}).claim()


def test_of_long_settings_the_parts_that_differ_are_told(tmp_path):
    options = [f"option_{number}=0.5" for number in range(40)]
    RunDirectory(str(tmp_path), settings={"method": f"Method({', '.join(options)})"}).begin()
    options[20:22] = ["option_20=0.7", "option_21=0.9"]
    with pytest.raises(
        BundleError, match=r"\(method was option_20=0\.5, option_21=0\.5, is option_20=0\.7, option_21=0\.9\)"
    ):
        RunDirectory(str(tmp_path), settings={"method": f"Method({', '.join(options)})"}, resume=True).claim()


def test_a_file_in_the_place_of_a_folder_above_a_run_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=rf"^output_dir .*sub cannot be written: {tmp_path / 'file'} is a file\.$"):
        RunDirectory(str(tmp_path / "file/sub")).claim()


def test_a_run_is_not_resumed_on_volumes_of_another_data_set(tmp_path):
    geometry = {"trained_spacing": [1.0, 1.0, 1.0], "trained_extent": [20.0, 30.0, 40.0]}
    RunDirectory(str(tmp_path), geometry=lambda: geometry).begin()
    RunDirectory(str(tmp_path), geometry=lambda: dict(geometry), resume=True).claim()
    with pytest.raises(BundleError, match=r"other settings \(volumes was .*40\.0\]\}, is .*41\.0\]\}\): resume"):
        RunDirectory(
            str(tmp_path), geometry=lambda: {**geometry, "trained_extent": [20.0, 30.0, 41.0]}, resume=True
        ).claim()
    # An older version of the bundle did not measure this.
    RunDirectory(str(tmp_path), geometry=lambda: {**geometry, "trained_margin": [5.0, 5.0, 5.0]}, resume=True).claim()
    calls = []
    directory = RunDirectory(str(tmp_path), geometry=lambda: calls.append(1) or geometry, resume=True)
    directory.claim()
    directory.enter()
    # It reads label maps.
    assert calls == [1]


def test_who_goes_on_with_a_run_is_written_down(tmp_path, monkeypatch):
    RunDirectory(str(tmp_path), settings={"seed": 1}).begin()
    before = json.loads((tmp_path / "run.json").read_text())
    for commit in ("c1", "c2"):
        monkeypatch.setattr(run_directory, "_commit", lambda commit=commit: commit)
        RunDirectory(str(tmp_path), settings={"seed": 1}, resume=True).begin()
    facts = json.loads((tmp_path / "run.json").read_text())
    assert [process["commit"] for process in facts.pop("resumed")] == ["c1", "c2"]
    assert facts == before


def begin_with(folder, configuration):
    parser = ConfigParser(ConfigParser.load_config_files(str(ROOT / "configs/train.json")))
    parser.update(configuration)
    directory = RunDirectory(str(folder), resume=True, configuration=lambda: dict(parser.get()))
    if not (folder / "run.json").is_file():
        directory.resume = False
        directory.begin()
    else:
        directory.claim()


@pytest.mark.parametrize(
    "change",
    [
        {"network_def": {"_target_": "scripts.networks.single_network.SingleNetwork", "architecture": "vnet"}},
        {"lr_scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2}},
        {"augmentation": [{"_target_": "RandFlipd", "prob": 0.2}]},
        {"window": {"_target_": "ScaleIntensityRanged", "a_min": -200}},
        {"normalize": []},
        {"train#deterministic_transforms": ["%normalize"]},
        {"train#random_transforms": []},
        {"train#unlabeled_preprocessing": None},
        {"validate#preprocessing#transforms": []},
    ],
)
def test_a_run_is_not_resumed_with_other_options_of_its_parts(tmp_path, change):
    begun = {"lr_scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1}, "augmentation": []}
    begin_with(tmp_path, begun)
    begin_with(tmp_path, begun)
    (name,) = change
    with pytest.raises(BundleError, match=f"other settings \\({name.removesuffix('#transforms')} was .*\\)"):
        begin_with(tmp_path, {**begun, **change})
    (tmp_path / "run_config.json").write_text("{")
    with pytest.raises(BundleError, match=r"run_config\.json is damaged"):
        begin_with(tmp_path, begun)


def test_weights_are_evaluated_with_the_preprocessing_of_their_run(tmp_path):
    begin_with(tmp_path, {"spacing": [1.0, 1.0, 1.0]})
    configuration = json.loads((tmp_path / "run_config.json").read_text())
    weights = str(tmp_path / "model_final.pt")
    check_preprocessing(weights, {**configuration, "patch_size": [16, 16, 16]})
    check_preprocessing(weights)
    check_preprocessing(str(tmp_path / "elsewhere" / "model.pt"), {**configuration, "spacing": None})
    with pytest.raises(BundleError, match=r"another preprocessing \(spacing was \[1.0, 1.0, 1.0\], is None\)"):
        check_preprocessing(weights, {**configuration, "spacing": None})


def test_steps_of_ones_own_are_needed_by_inference(tmp_path):
    step = {"_target_": "ScaleIntensityd", "keys": ["image"]}
    steps = ConfigParser.load_config_file(ROOT / "configs/train.json")["train"]["deterministic_transforms"]
    begin_with(tmp_path, {"train#deterministic_transforms": [*steps, step]})
    weights = str(tmp_path / "model_final.pt")
    trained = json.loads((tmp_path / "run_config.json").read_text())
    check_preprocessing(weights, trained)
    with pytest.raises(BundleError, match=r"another preprocessing \(validate#preprocessing was .*LoadCased.*, is .*\)"):
        check_preprocessing(weights, {**trained, "validate": {"preprocessing": {"transforms": ["%normalize"] * 99}}})
    files = [INFERENCE, str(tmp_path / "inference.json")]
    torch.save({}, weights)
    with pytest.raises(BundleError, match=r"another train#deterministic_transforms than that of train\.json"):
        checked_configuration(files, {}, arguments=())
    inference = ConfigParser(ConfigParser.load_config_files([INFERENCE, str(tmp_path / "inference.json")]))
    with pytest.raises(BundleError, match=r"another train#deterministic_transforms than that of train\.json"):
        check_preprocessing(weights, dict(inference.get()))
    inference["preprocessing#transforms"] = [*inference["preprocessing#transforms"], step]
    check_preprocessing(weights, dict(inference.get()))


def test_what_differs_by_its_order_is_told():
    steps = [f"step_{number}" for number in range(99)]
    swapped = [*steps[:50], steps[51], steps[50], *steps[52:]]
    assert listed({"steps": (steps, swapped)}) == "steps is in another order"
    assert listed({"steps": (steps, [*steps, "more"])}) == "steps was 'step_98'], is 'step_98', 'more']"
    assert len(listed({"steps": (steps, [f"other_{number}" for number in range(99)])})) < 330


def test_an_overlay_of_ones_own_stands_in_no_ones_way(tmp_path, monkeypatch, caplog):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for module in ("configuration", "inference_configuration", "handlers.run_comparison"):
        monkeypatch.setattr(f"scripts.{module}.CONFIGS", tmp_path / "configs")
    hippocampus = ConfigParser.load_config_file(ROOT / "configs/data_hippocampus.json")
    for name, change in (("a", {"ckpt_path": None}), ("b", {"ckpt_path": "$@home"}), ("brain", {"spacing": [2, 2, 2]})):
        (tmp_path / f"configs/data_{name}.json").write_text(json.dumps({**hippocampus, **change}))
    configuration = {**ConfigParser.load_config_file(INFERENCE), **hippocampus}
    check_preprocessing(str(ROOT / "models/hippocampus/model.pt"), configuration)
    check_preprocessing("/elsewhere/model.pt", configuration)
    assert caplog.messages == []
    (tmp_path / "mine.json").write_text(json.dumps({"ckpt_path": str(tmp_path / "missing.pt")}))
    with pytest.raises(BundleError, match=r"missing\.pt does not exist: train first.* --data .*hippocampus"):
        checked_configuration([str(tmp_path / "configs/inference.json"), str(tmp_path / "mine.json")], {}, arguments=())


def test_shipped_weights_on_other_volumes_are_warned_of(caplog):
    inference = ConfigParser.load_config_file(INFERENCE)
    small, full, hippocampus = (
        {**inference, **ConfigParser.load_config_file(ROOT / f"configs/data_{name}.json")}
        for name in ("left_atrium_small", "left_atrium", "hippocampus")
    )
    weights, others = (str(ROOT / "models" / name) for name in ("model.pt", "hippocampus/model.pt"))
    for path, configuration in ((weights, inference), (weights, small), (others, hippocampus)):
        check_preprocessing(path, configuration)
    assert caplog.messages == []
    check_preprocessing(weights, full)
    check_preprocessing(others, inference)
    first, second = caplog.messages
    expected = (
        "model.pt are weights of inference.json, used with another preprocessing (spacing was [1.25, 1.25, 1.25], is"
    )
    assert f"{expected} None): check the result" in first
    assert "hippocampus/model.pt are weights of data_hippocampus.json" in second


def test_one_process_trains_in_a_folder(tmp_path):
    begun = RunDirectory(str(tmp_path / "run"))
    begun.begin()
    (tmp_path / "run" / "history.csv").write_text("iteration,loss\n1,0.5\n")
    # The bundle's own lock is shared by the runs of a process; this one is that of another.
    with FileLock(tmp_path / "other" / ".training.lock"):
        for options in ({}, {"overwrite": True}):
            with pytest.raises(
                BundleError, match=r"^another process is training in output_dir .*other: wait for its end"
            ):
                RunDirectory(str(tmp_path / "other"), **options).begin()
    RunDirectory(str(tmp_path / "other")).begin()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    RunDirectory(str(tmp_path / "link"), overwrite=True).begin()
    (tmp_path / "other").rename(tmp_path / "renamed")
    RunDirectory(str(tmp_path / "renamed"), overwrite=True).begin()
    RunDirectory(str(tmp_path / "run"), overwrite=True).begin()
    assert not (tmp_path / "run" / "history.csv").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(code, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    RunDirectory(str(tmp_path / "run")).begin()
    assert "cannot be locked" in caplog.text
    assert (tmp_path / "run" / "run.json").is_file()


def test_figures_of_other_windows_are_warned_of(tmp_path, caplog):
    configuration = {"patch_size": [32, 32, 32], "strides": [8, 8, 8], "precision": "auto", "largest_component": False}
    configuration["test_time_views"] = []
    (tmp_path / "run_config.json").write_text(json.dumps(configuration))
    weights = str(tmp_path / "model_final.pt")
    check_preprocessing(weights, {**configuration, "evaluation_dir": "e"})
    check_preprocessing(weights, {**configuration, "largest_component": "false", "evaluation_dir": "e"})
    check_preprocessing(weights, {**configuration, "patch_size": [16, 16, 16]})
    assert caplog.messages == []
    other = {"patch_size": [16, 16, 16], "strides": [16, 16, 16], "precision": "float32"}
    other["test_time_views"] = [{"size": 0.9}]
    for name, value in other.items():
        check_preprocessing(weights, {**configuration, name: value, "evaluation_dir": "e"})
    assert [message.partition("other options than its run has ")[2] for message in caplog.messages] == [
        "(patch_size was [32, 32, 32], is [16, 16, 16]).",
        "(strides was [8, 8, 8], is [16, 16, 16]).",
        "(precision was auto, is float32).",
        "(test_time_views was [], is [{'size': 0.9}]).",
    ]


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "configs").glob("recipe_*.json")))
def test_an_evaluation_with_the_files_of_its_run_is_warned_of_nothing(recipe, tmp_path, caplog):
    files = [str(ROOT / "configs" / name) for name in ("train.json", "data_left_atrium.json", recipe, "evaluate.json")]
    trained, evaluation = (dict(read_configuration(names, {}).get()) for names in (files[:-1], files))
    (tmp_path / "run_config.json").write_text(json.dumps(trained))
    check_preprocessing(str(tmp_path / "model_final.pt"), evaluation)
    assert caplog.messages == []


def test_figures_under_the_names_of_other_classes_are_warned_of(tmp_path, caplog):
    configuration = {"class_names": ["front", "back"], "evaluation_dir": "e"}
    (tmp_path / "run_config.json").write_text(json.dumps(configuration))
    check_preprocessing(str(tmp_path / "model_final.pt"), {**configuration, "class_names": ["back", "front"]})
    (message,) = caplog.messages
    assert message.endswith("(class_names was ['front', 'back'], is ['back', 'front']).")


def test_inference_without_the_boxes_of_the_training_is_warned_of(tmp_path, caplog):
    (tmp_path / "run_config.json").write_text(json.dumps({"uses_boxes": True}))
    weights = str(tmp_path / "model_final.pt")
    for configuration in ({"evaluation_dir": "e"}, {}, {"datalist": [], "crop_to_organs": 1}, None):
        check_preprocessing(weights, configuration)
    assert caplog.messages == []
    check_preprocessing(weights, {"datalist": [], "crop_to_organs": 0})
    assert "was trained on boxes around the organ" in caplog.text


def test_a_crop_is_compared_by_whether_it_is_on(tmp_path):
    crop = {"_target_": "CropToBoxd", "margin": 25}
    off, on = (
        {"uses_boxes": flag, "crop": {**crop, "_disabled_": "$not str2bool(@uses_boxes)"}} for flag in (False, True)
    )
    # A switch of its own, beside uses_boxes.
    was_off, was_on = {"uses_boxes": False, "crop": {**crop, "_disabled_": True}}, {"uses_boxes": True, "crop": crop}
    weights = str(tmp_path / "model_final.pt")
    for trained, same, other in ((off, off, on), (on, on, off), (was_off, off, on), (was_on, on, off)):
        (tmp_path / "run_config.json").write_text(json.dumps(trained))
        check_preprocessing(weights, same)
        assert changed_training(tmp_path, same) == {}
        with pytest.raises(BundleError, match=r"another preprocessing \(crop was"):
            check_preprocessing(weights, other)
    with pytest.raises(BundleError, match=r"another preprocessing \(crop was"):
        check_preprocessing(weights, {**on, "crop": {**on["crop"], "margin": 3}})


def test_inference_has_no_crop_to_compare(tmp_path):
    begin_with(tmp_path, {"crop": {"_target_": "CropToBoxd"}, "spacing": None})
    weights = str(tmp_path / "model_final.pt")
    inference = json.loads((tmp_path / "run_config.json").read_text())
    del inference["crop"]
    check_preprocessing(weights, inference)
    with pytest.raises(BundleError, match=r"inference\.json that lies beside the weights"):
        check_preprocessing(weights, {**inference, "spacing": [1.25, 1.25, 1.25]})
    with pytest.raises(BundleError, match="crop was"):
        check_preprocessing(weights, {**inference, "crop": None})


def test_an_evaluation_on_another_split_is_warned_of(tmp_path, caplog):
    weights = str(tmp_path / "model_final.pt")
    compare_split(weights, {"name": "mine", "cases_hash": "1"})
    (tmp_path / "run.json").write_text(json.dumps({"split": {"name": "mine", "cases_hash": "1"}}))
    compare_split(weights, {"name": "mine", "cases_hash": "1"})
    assert not caplog.records
    compare_split(weights, {"name": "mine", "cases_hash": "2"})
    (record,) = caplog.records
    assert "was trained with the split mine (cases_hash 1), this is mine (cases_hash 2)" in record.getMessage()


def test_whoever_repeats_a_run_does_not_replace_it(tmp_path):
    begin_with(tmp_path, {"overwrite": "true", "resume": False})
    configuration = json.loads((tmp_path / "run_config.json").read_text())
    assert (configuration["overwrite"], configuration["resume"]) == (False, False)


def test_what_the_configuration_of_a_run_did_not_have_is_not_compared(tmp_path):
    begin_with(tmp_path, {})
    path = tmp_path / "run_config.json"
    configuration = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in configuration.items() if name != "crop"}))
    begin_with(tmp_path, {"crop": []})
    check_preprocessing(str(tmp_path / "model_final.pt"), {**configuration, "crop": []})
    with pytest.raises(BundleError, match="normalize was "):
        check_preprocessing(str(tmp_path / "model_final.pt"), {**configuration, "normalize": []})


def test_none_of_a_command_line_is_that_of_a_file(tmp_path):
    begin_with(tmp_path, {"spacing": None})
    begin_with(tmp_path, {"spacing": "$None"})
    with pytest.raises(BundleError, match="spacing was None, is 2"):
        begin_with(tmp_path, {"spacing": 2})


@pytest.mark.parametrize("settings", [[1], 3, None, "text"])
def test_settings_of_another_form_are_damaged(settings, tmp_path):
    begin_with(tmp_path, {})
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    with pytest.raises(BundleError, match=r"run\.json is damaged"):
        begin_with(tmp_path, {})


def test_a_finished_run_without_checkpoints_is_not_begun_again(tmp_path):
    RunDirectory(str(tmp_path)).begin()
    (tmp_path / "history.csv").write_text("iteration\n1\n")
    RunDirectory(str(tmp_path), resume=True).claim()
    (tmp_path / "model_final.pt").write_text("weights")
    with pytest.raises(BundleError, match="is finished and its checkpoints are gone"):
        RunDirectory(str(tmp_path), resume=True).claim()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint_00000001.pt").write_text("checkpoint")
    RunDirectory(str(tmp_path), resume=True).claim()


def test_a_run_that_has_lost_its_checkpoints_is_not_begun_anew_unasked(tmp_path):
    RunDirectory(str(tmp_path)).begin()
    (tmp_path / "model.pt").write_text("weights")
    message = r"has a model\.pt and its checkpoints are gone: copy them back, or begin it anew by --overwrite true\.$"
    with pytest.raises(BundleError, match=message):
        RunDirectory(str(tmp_path), resume=True).claim()
    RunDirectory(str(tmp_path), overwrite=True).claim()
    # It was stopped while it wrote the first one.
    (tmp_path / "checkpoints").mkdir()
    RunDirectory(str(tmp_path), resume=True).claim()


@pytest.mark.parametrize(
    "name",
    [
        "evaluation/metrics_cases.csv",
        "evaluation/labels/a.nii.gz",
        "evaluation/worst_1_a.png",
        "validation.csv",
        "unreadable_cases.txt",
        "learning_curves.png",
    ],
)
def test_no_part_of_a_run_is_lost(tmp_path, name):
    RunDirectory(str(tmp_path)).begin()
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(BundleError, match="already holds a run"):
        RunDirectory(str(tmp_path)).begin()
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics_cases.csv", "metrics_summary.md", "worst_1_mine.png"])
def test_an_evaluation_replaces_nothing_outside_of_runs(tmp_path, name):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "metrics_mine.csv").write_text("of no evaluation")
    claim_report_directory(str(folder))
    (folder / name).write_text("mine")
    with assert_refused(
        f"evaluation_dir {folder} already holds an evaluation .{name}.: replace it by --overwrite true"
    ):
        claim_report_directory(str(folder))
    claim_report_directory(str(folder), overwrite=True)
    # In a run an evaluation that was stopped has left pictures, and no table yet.
    RunDirectory(str(tmp_path)).path.joinpath("run.json").write_text("{}")
    if name != "metrics_cases.csv":
        claim_report_directory(str(folder))
