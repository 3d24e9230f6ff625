# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Misspelled arguments are refused, and mistakes cost one line."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch
from conftest import ROOT
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow, run
from monai.transforms import Compose

from scripts.configuration import data_configurations, read_configuration
from scripts.console import (
    check_arguments,
    check_run_id,
    describe_mistake,
    merged_configuration,
    prepare_command_line,
    report_in_one_line,
)
from scripts.errors import BundleError
from scripts.inferer import window_overlap
from scripts.schedules import Weight

PROGRAM = "/some/where/monai/bundle/__main__.py"


@pytest.fixture(autouse=True)
def _keep_exception_hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "train.json"
    train = {"trainer": {"_target_": "Trainer", "amp": False}, "handlers": [{"_target_": "Handler", "interval": 5}]}
    path.write_text(json.dumps({"iterations": 6000, "patch_size": [48, 48, 48], "train": train}))
    return str(path)


@pytest.fixture
def overlay(tmp_path):
    path = tmp_path / "data_pancreas.json"
    path.write_text(json.dumps({"uses_boxes": True}))
    return str(path)


def assert_accepted(*arguments):
    prepare_command_line([PROGRAM, "run", *arguments])
    # What passes was looked at: under another program nothing is, and the hook stays what it was.
    assert sys.excepthook is report_in_one_line


# --- overrides --------------------------------------------------------------------------------------------------------


def test_known_overrides_pass(config_file):
    assert_accepted("--config_file", config_file, "--iterations", "100", "--patch_size", "[16,16,16]")
    assert_accepted("--iterations=100", f"--config_file={config_file}", "--patch_size=[16,16,16]")
    assert_accepted("--config_file", config_file)


@pytest.mark.parametrize(("key", "hint"), [("iteratons", r" Did you mean iterations\?"), ("zzz", "")])
def test_keys_of_an_overlay_that_nothing_uses_are_refused(tmp_path, config_file, key, hint):
    (tmp_path / "mine.json").write_text(json.dumps({key: 100}))
    with pytest.raises(
        BundleError, match=rf"^nothing uses the key {key} of the configuration \[.*mine.json'\]\.{hint}$"
    ):
        assert_accepted("--config_file", f"['{config_file}','{tmp_path / 'mine.json'}']")


def test_a_misspelled_key_of_a_file_among_the_bundles_own_is_refused(tmp_path, config_file, monkeypatch):
    configs = tmp_path / "configs"
    configs.mkdir()
    for name in ("train", "inference", "evaluate"):
        shutil.copy(ROOT / f"configs/{name}.json", configs)
    monkeypatch.setattr("scripts.configuration.CONFIGS", configs)
    # What is beside it is not read: somebody may be editing it, and some systems leave files of their own.
    (configs / "data_broken.json").write_text('{"num_classes": 2,}')
    (configs / "._train.json").write_bytes(b"\x00\xff")
    (configs / "data_liver.json").write_text(json.dumps({"spacng": [3, 3, 3]}))
    (configs / "data_odd.json").write_text('{"num_classes#x": 2}')
    assert list(data_configurations()) == ["data_liver.json"]
    with pytest.raises(BundleError, match=r"^nothing uses the key spacng of .* Did you mean spacing\?$"):
        assert_accepted("--config_file", f"['{config_file}','{configs / 'data_liver.json'}']")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"num_classes": 2,}', r"mine\.json cannot be read: .*line 1 column"),
        ("[]", "mine.json must hold keys and values, got a list"),
        (None, r"must name files that exist, got .*mine\.json"),
    ],
)
def test_a_configuration_file_that_cannot_be_read_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "mine.json").write_text(content)
    with pytest.raises(BundleError, match=f"^config_file .*{message}"):
        read_configuration([str(ROOT / "configs/train.json"), str(tmp_path / "mine.json")])


def test_files_in_one_text_with_commas_are_read_one_by_one(tmp_path, config_file):
    (tmp_path / "mine.json").write_text(json.dumps({"iterations": 5}))
    assert read_configuration(f"{config_file},{tmp_path / 'mine.json'}")["iterations"] == 5
    assert_accepted("--config_file", f"{config_file},{tmp_path / 'mine.json'}", "--iterations", "7")


def test_a_text_with_the_mark_of_keys_is_refused(tmp_path, config_file):
    mine = {"_desc_": "a # in a remark", "iterations": "$@train#trainer['amp'] + 1", "class_names": ["part #2"]}
    (tmp_path / "mine.json").write_text(json.dumps({**mine, "class_names": ["part 2"]}))
    files = ("--config_file", f"['{config_file}','{tmp_path / 'mine.json'}']")
    assert_accepted(*files)
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    with pytest.raises(BundleError, match=r"^class_names must be without #, .*, got 'part #2'\.$"):
        assert_accepted(*files)
    train = str(ROOT / "configs/train.json")
    with pytest.raises(BundleError, match=r"^initial_weights must be without #, .*, got '/run#1/model\.pt'\.$"):
        assert_accepted("--config_file", train, "--initial_weights", "/run#1/model.pt")
    # Fire would take what is behind it for a comment.
    with pytest.raises(BundleError, match=r"^--initial_weights runs#2\.pt would be cut off at its #"):
        assert_accepted("--config_file", train, "--initial_weights", "runs#2.pt")


def test_keys_of_an_overlay_that_something_uses_pass(tmp_path, config_file):
    mine = {
        "_note_": "mine",
        "factor": 2,
        "others": {"number": 3},
        "iterations": "$@factor * 50 + @others#number",
        "again": ["$print('once more')"],
        "train#amp": True,
    }
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    assert_accepted("--config_file", f"['{config_file}','{tmp_path / 'mine.json'}']")


def test_options_of_another_workflow_are_refused():
    train, data, inference = (str(ROOT / f"configs/{name}.json") for name in ("train", "data_hippocampus", "inference"))
    message = r"^--ckpt_path would change nothing: .* A training begins with --initial_weights\.$"
    with pytest.raises(BundleError, match=message):
        assert_accepted("--config_file", f"['{train}','{data}']", "--ckpt_path", "model.pt")
    with pytest.raises(BundleError, match=r"^--strides would change nothing: .* for another workflow alone\.$"):
        assert_accepted("--config_file", f"['{inference}','{data}']", "--strides", "[8,8,8]")
    evaluate = str(ROOT / "configs/evaluate.json")
    assert_accepted("--config_file", f"['{train}','{data}','{evaluate}']", "--ckpt_path", "model.pt")
    assert_accepted(
        "--config_file", f"['{inference}','{data}']", "--ckpt_path", "model.pt", "--trained_extent", "[1,1,1]"
    )


def test_no_order_of_files_takes_the_weights_of_another_run(tmp_path):
    names = ("train", "data_hippocampus", "evaluate", "inference")
    train, data, evaluate, inference = (str(ROOT / f"configs/{name}.json") for name in names)
    (tmp_path / "inference.json").write_text(json.dumps({"ckpt_path": "mine.pt"}))
    of_run = str(tmp_path / "inference.json")
    with pytest.raises(BundleError, match=rf"^{evaluate} must be the last configuration file"):
        assert_accepted("--config_file", f"['{train}','{evaluate}','{data}']")
    with pytest.raises(BundleError, match=rf"^{inference} must be the first configuration file"):
        assert_accepted("--config_file", f"['{of_run}','{inference}']")
    assert_accepted("--config_file", f"['{inference}','{data}','{of_run}']")


def test_the_file_of_a_renamed_run_does_not_take_the_weights_of_its_old_folder(tmp_path):
    inference = str(ROOT / "configs/inference.json")
    (tmp_path / "new").mkdir()
    of_run, weights = tmp_path / "new" / "inference.json", tmp_path / "new" / "model_final.pt"
    files = f"['{inference}','{of_run}']"
    of_run.write_text(json.dumps({"ckpt_path": str(tmp_path / "old" / "model_final.pt")}))
    assert_accepted("--config_file", files)
    weights.touch()
    with pytest.raises(BundleError, match=rf"^{of_run} names the weights .*old.*: give --ckpt_path {weights}\.$"):
        assert_accepted("--config_file", files)
    assert_accepted("--config_file", files, "--ckpt_path", str(weights))
    of_run.write_text(json.dumps({"ckpt_path": str(weights)}))
    assert_accepted("--config_file", files)


@pytest.mark.parametrize("word", ["2024", "1e5", "True"])
def test_a_folder_called_like_a_number_is_no_number(word):
    config_file = str(ROOT / "configs/train.json")
    with pytest.raises(
        BundleError, match=rf"^--dataset_dir {word} is read as a number .*: write a path as \./{word}\.$"
    ):
        assert_accepted("--config_file", config_file, "--dataset_dir", word)
    assert_accepted("--config_file", config_file, "--dataset_dir", f"./{word}")
    assert_accepted("--config_file", config_file, "--dataset_dir", "007")
    assert_accepted("--config_file", config_file, "--logging_file", "False")
    assert_accepted("--config_file", config_file, "--nologging_file")


def test_a_text_is_no_object():
    train = str(ROOT / "configs/train.json")
    for name, value, shown in (
        ("optimizer", "adam", "'adam'"),
        ("method_def#supervised", "dice", "'dice'"),
        ("network_def", "vnet", "'vnet'"),
        ("window", "False", "False"),
        ("method_def", "[1]", r"\[1\]"),
    ):
        message = rf"^--{name} must be an object with a _target_, or an expression .*, got {shown}\.$"
        with pytest.raises(BundleError, match=message):
            assert_accepted("--config_file", train, f"--{name}", value)
    assert_accepted("--config_file", train, "--method_def#pseudo_label_weight", "0")
    released = f"['{train}','{ROOT / 'configs/method_dual_network_literal.json'}']"
    assert_accepted("--config_file", released, "--method_def#contrastive_weight", "0.5")
    assert_accepted("--config_file", train, "--network_def", "$object()")
    assert_accepted("--config_file", train, "--optimizer", "{'_target_': 'torch.optim.Adam'}")


def test_the_text_false_is_refused_where_it_would_be_taken_for_true(tmp_path, monkeypatch):
    train = str(ROOT / "configs/train.json")
    for name in ("normalize#nonzero", "normalize::nonzero", "optimizer#nesterov", "network_def#with_disagreement"):
        for value in ("false", "FALSE"):
            message = (
                rf"^{name.replace('::', '#')} must be True or False, got the text {value}, which would be taken for"
            )
            with pytest.raises(BundleError, match=message):
                assert_accepted("--config_file", train, f"--{name}", value)
        assert_accepted("--config_file", train, f"--{name}", "False")
    with pytest.raises(BundleError, match=r"^optimizer#nesterov must be True or False"):
        assert_accepted(
            "--config_file", train, "--optimizer", "{'_target_': 'torch.optim.SGD', 'lr': 0.1, 'nesterov': 'false'}"
        )
    # Most of the bundle's own classes read such texts, and what is derived of them; MONAI does those of its own keys.
    assert_accepted("--config_file", train, "--method_def#pseudo_label_dropout", "false")
    assert_accepted("--config_file", train, "--normalize#_disabled_", "false")
    (tmp_path / "mine.py").write_text(
        "from scripts.methods.dual_network import DualNetworkMethod\n\nclass Mine(DualNetworkMethod):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ("--config_file", train, "--method_def#_target_", "mine.Mine")
    assert_accepted(*own, "--method_def#pseudo_label_dropout", "false")
    (tmp_path / "mine.json").write_text(json.dumps({"augmentation": [{"_target_": "RandRotated", "keys": ["image"]}]}))
    files = f"['{train}','{tmp_path}/mine.json']"
    with pytest.raises(BundleError, match=r"^augmentation#0#keep_size must be True or False"):
        assert_accepted("--config_file", files, "--augmentation#0#keep_size", "false")


def test_what_the_code_itself_does_wrong_keeps_its_traceback():
    with pytest.raises(ValueError, match="zip") as caught:
        window_overlap([1, 2, 3], [1, 2])
    assert describe_mistake(caught.value) is None


def test_options_of_what_is_switched_off_are_refused(tmp_path):
    train, pancreas = (str(ROOT / f"configs/{name}.json") for name in ("train", "data_pancreas"))
    for separator in "#", "::":
        with pytest.raises(BundleError, match=r"as window is switched off: give --window#_disabled_ false, too\.$"):
            assert_accepted("--config_file", train, f"--window{separator}a_min", "-100")
    assert_accepted("--config_file", train, "--window#a_min", "-100", "--window#_disabled_", "false")
    with pytest.raises(BundleError, match=r"as no volume is cropped: give --uses_boxes true, too\.$"):
        assert_accepted("--config_file", train, "--crop#margin", "10")
    assert_accepted("--config_file", train, "--crop#margin", "10", "--uses_boxes", "true")
    assert_accepted("--config_file", train, "--crop#_disabled_", "false")
    own = {"_target_": "CenterSpatialCropd", "keys": ["image", "label", "unlabeled"], "roi_size": [32, 32, 32]}
    (tmp_path / "crop.json").write_text(json.dumps({"crop": own}))
    assert_accepted("--config_file", f"['{train}','{tmp_path}/crop.json']", "--crop#roi_size", "[64,64,64]")
    assert_accepted("--config_file", f"['{train}','{pancreas}']", "--crop#margin", "10")
    assert_accepted("--config_file", f"['{train}','{pancreas}']", "--window#a_min", "-100")
    mirror = {"_target_": "RandFlipd", "keys": ["image"], "prob": 0.5, "_disabled_": True}
    (tmp_path / "mine.json").write_text(json.dumps({"augmentation": [mirror]}))
    with pytest.raises(BundleError, match=r"as augmentation#0 is switched off"):
        assert_accepted("--config_file", f"['{train}','{tmp_path / 'mine.json'}']", "--augmentation#0#prob", "0.1")


@pytest.mark.parametrize(
    "form", [["train"], ["trainin"], ["--run_id", "validate"], ["--config_file", "x", "--run_id=settings"]]
)
def test_what_is_no_workflow_is_not_run(form):
    train = str(ROOT / "configs/train.json")
    message = r"^(train|trainin|validate|settings) is no workflow .*: give run or training\.$"
    with pytest.raises(BundleError, match=message):
        check_run_id([PROGRAM, "run", *form, "--config_file", train])
    check_run_id([PROGRAM, "run", "training", "--config_file", train])
    check_run_id([PROGRAM, "run", "--config_file", train])
    check_run_id(["/bin/other", "run", *form, "--config_file", train])


@pytest.mark.parametrize("files", [["train"], ["train", "multi_gpu_train"], ["train", "evaluate"], ["inference"]])
def test_every_workflow_checks_its_command_line_first(files):
    config = ConfigParser.load_config_files([str(ROOT / f"configs/{name}.json") for name in files])
    assert config["run"][0] == {"_target_": "scripts.console.prepare_command_line"}
    if "train" in files and "evaluate" not in files:
        assert config["initialize"][0]["_target_"] == "scripts.console.check_run_id"


def test_none_that_monai_leaves_out_is_refused(config_file):
    with pytest.raises(BundleError, match=r"^--patch_size None would .* write --patch_size '\$None'\.$"):
        assert_accepted("--config_file", config_file, "--patch_size", "None")
    assert_accepted("--config_file", config_file, "--patch_size", "$None")


def test_monai_takes_none_as_an_expression_only(config_file, monkeypatch):
    taken = []
    monkeypatch.setattr(ConfigWorkflow, "__init__", lambda self, **arguments: taken.append(arguments))
    for name in ("initialize", "run", "finalize"):
        monkeypatch.setattr(ConfigWorkflow, name, lambda self: None)
    for value in (None, "$None"):
        run(config_file=config_file, patch_size=value)
    assert "patch_size" not in taken[0]
    assert taken[1]["patch_size"] == "$None"


@pytest.mark.parametrize("form", [["--iteratons", "100"], ["--iteratons=100"]])
def test_a_misspelled_override_is_refused_with_a_hint(config_file, form):
    with pytest.raises(BundleError) as caught:
        assert_accepted("--config_file", config_file, *form)
    assert str(caught.value) == (
        f"--iteratons is no key of the configuration {config_file}. Did you mean --iterations?"
    )


def test_an_override_before_the_configuration_is_checked_too(config_file):
    with pytest.raises(BundleError, match=r"Did you mean --patch_size\?"):
        assert_accepted("--patchsize", "[16,16,16]", "--config_file", config_file)


def test_an_override_like_nothing_is_refused_without_a_hint(config_file):
    with pytest.raises(BundleError, match=r"--zzz is no key of the configuration .*train\.json\.$"):
        assert_accepted("--config_file", config_file, "--zzz", "1")


@pytest.mark.parametrize("key", ["train#trainer#amp", "train::trainer::amp", "train#trainer::amp"])
def test_nested_overrides_pass(config_file, key):
    assert_accepted("--config_file", config_file, f"--{key}", "true")
    assert_accepted("--config_file", config_file, f"--{key}=true")


@pytest.mark.parametrize("key", ["trian#trainer#amp", "trian::trainer::amp"])
def test_a_misspelled_nested_override_is_refused(config_file, key):
    with pytest.raises(BundleError, match=rf"--{key} is no key of the configuration .* Did you mean --train\?"):
        assert_accepted("--config_file", config_file, f"--{key}", "true")


@pytest.mark.parametrize("key", ["train#trainr", "train::trainr"])
def test_a_misspelling_further_down_is_refused(config_file, key):
    # MONAI would add a key that nothing reads, and the run would go on with the old value.
    with pytest.raises(BundleError, match=rf"--{key} is no key of the configuration"):
        assert_accepted("--config_file", config_file, f"--{key}", "{}")


def test_an_object_in_a_list_may_be_changed(config_file):
    assert_accepted(
        "--config_file", config_file, "--train#handlers#0#interval", "2", "--train::handlers::0::interval=2"
    )


def test_a_new_argument_of_an_object_passes(config_file):
    # The object may take more arguments than its configuration names.
    assert_accepted("--config_file", config_file, "--train#trainer#non_blocking", "true")


@pytest.mark.parametrize("name", ["run_id", "init_id", "final_id", "meta_file", "logging_file", "tracking"])
def test_arguments_of_the_program_pass(config_file, name):
    assert_accepted("--config_file", config_file, f"--{name}", "x")


def test_keys_of_a_tracker_pass_beside_it(config_file):
    tracker = ("--tracking_uri", "http://localhost:5000", "--experiment_name", "atria", "--run_name", "first")
    assert_accepted("--config_file", config_file, "--tracking", "mlflow", *tracker)
    with pytest.raises(BundleError, match="--tracking_uri is no key of the configuration"):
        assert_accepted("--config_file", config_file, *tracker)


def test_a_misspelled_argument_of_the_program_is_refused(config_file):
    with pytest.raises(BundleError, match=r"Did you mean --logging_file\?"):
        assert_accepted("--config_file", config_file, "--loging_file", "configs/logging.conf")


@pytest.mark.parametrize("separator", ["','", "', '"])
def test_a_list_of_configurations(config_file, overlay, separator):
    files = f"['{config_file}{separator}{overlay}']"
    assert_accepted("--config_file", files, "--iterations", "5", "--uses_boxes", "false")
    with pytest.raises(BundleError, match=r"Did you mean --uses_boxes\?"):
        assert_accepted("--config_file", files, "--use_boxes", "false")
    # Alone, the first file has no such key.
    with pytest.raises(BundleError, match="--uses_boxes is no key"):
        assert_accepted("--config_file", config_file, "--uses_boxes", "false")


def test_a_path_that_would_be_read_as_another_is_refused(config_file):
    with pytest.raises(BundleError, match=r"dataset_dir must be a path without #, .* got /data/run#1"):
        assert_accepted("--config_file", config_file, "--dataset_dir", "/data/run#1")


@pytest.mark.parametrize("name", ["dataset_dir", "output_dir", "split_file", "ckpt_path"])
def test_a_home_that_no_shell_has_replaced_is_refused(config_file, name):
    with pytest.raises(BundleError, match=rf"{name} must be a path without ~, got ~/run: write /.* out\."):
        assert_accepted("--config_file", config_file, f"--{name}=~/run")


def test_a_value_is_no_override(config_file):
    assert_accepted("--config_file", config_file, "--iterations", "zzz", "yyy", "-1")


@pytest.mark.parametrize("form", [["-iteratons", "100"], ["-iteratons=100"], ["-x"], ["--noiteratons"]])
def test_every_form_of_a_name_is_checked(config_file, form):
    with pytest.raises(BundleError, match=r"--(iteratons|x) is no key of the configuration"):
        assert_accepted("--config_file", config_file, *form)


def test_every_form_of_a_value_is_recorded_as_it_is_read(config_file):
    words = ["-iterations", "5", "--train#trainer#amp", "--patch-size=[16,16,16]", "--notrain#trainer#cudnn"]
    merged = merged_configuration([PROGRAM, "run", "training", *words, "--config_file", config_file])
    assert (merged["iterations"], merged["patch_size"]) == (5, [16, 16, 16])
    assert (merged["train"]["trainer"]["amp"], merged["train"]["trainer"]["cudnn"]) == (True, False)


def test_the_configuration_of_a_tracked_run_can_be_repeated(config_file, tmp_path):
    words = ["--tracking", "mlflow", "--run_name", "first", "--experiment_name", "atria", "--tracking_uri", "file:x"]
    words += ["--output_dir", "output/first"]
    merged = merged_configuration([PROGRAM, "run", "training", *words, "--config_file", config_file])
    assert merged["output_dir"] == "output/first"
    assert not merged.keys() & {"run_name", "experiment_name", "tracking_uri", "tracking"}
    (tmp_path / "run_config.json").write_text(json.dumps(merged))
    assert_accepted("--config_file", str(tmp_path / "run_config.json"), "--output_dir", "output/again")
    # Without tracking they are keys of nothing.
    with pytest.raises(BundleError, match="run_name"):
        assert_accepted("--config_file", config_file, "--run_name", "first")


def test_without_a_configuration_nothing_is_checked():
    assert_accepted("--iteratons", "100")


def test_arguments_of_a_file_are_checked_as_those_of_the_command_line(tmp_path, config_file):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"config_file": config_file, "iterations": 7}))
    assert_accepted("--args_file", str(file), "--patch_size", "[16,16,16]")
    configuration = merged_configuration([PROGRAM, "run", "--args_file", str(file), "--patch_size", "[16,16,16]"])
    assert (configuration["iterations"], configuration["patch_size"]) == (7, [16, 16, 16])
    assert merged_configuration([PROGRAM, "run", "--args_file", str(file), "--iterations", "8"])["iterations"] == 8
    file.write_text(json.dumps({"config_file": config_file, "iteratons": 7}))
    with pytest.raises(BundleError, match=r"^--iteratons is no key .* Did you mean --iterations\?$"):
        assert_accepted("--args_file", str(file))
    with pytest.raises(BundleError, match=r"^args_file none\.json cannot be read: "):
        assert_accepted("--args_file", "none.json")


@pytest.mark.parametrize("program", ["/usr/bin/pytest", "scripts/__main__.py", "-c", ""])
def test_other_programs_are_left_alone(config_file, program):
    hook = sys.excepthook
    prepare_command_line([program, "run", "--config_file", config_file, "--iteratons", "100"])
    prepare_command_line([])
    assert sys.excepthook is hook


def test_mistakes_are_reported_in_one_line_from_now_on(config_file):
    assert_accepted("--config_file", config_file)
    assert sys.excepthook is report_in_one_line


def test_mistakes_are_reported_in_one_line_also_without_a_configuration():
    assert_accepted()
    assert sys.excepthook is report_in_one_line


def test_the_command_line_of_this_process_is_the_default(monkeypatch, config_file):
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--config_file", config_file, "--iteratons", "100"])
    with pytest.raises(BundleError, match="--iteratons is no key"):
        prepare_command_line()


# --- reports ----------------------------------------------------------------------------------------------------------


def report(error, capsys):
    report_in_one_line(type(error), error, error.__traceback__)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def caught(function):
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        function()
    return raised.value


def refuse_weight(_=None):
    Weight(-1.0)


def raise_here():
    raise ValueError("not an argument check of the bundle")


def test_a_bundle_error_is_one_line(capsys):
    assert report(BundleError("ckpt_path x.pt does not exist."), capsys) == "error: ckpt_path x.pt does not exist.\n"


@pytest.mark.parametrize(
    "cause",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError("Unable to allocate 2.00 GiB for an array"),
    ],
)
def test_a_device_without_memory_is_one_line(cause, capsys):
    wrapped = RuntimeError("evaluator failed")
    wrapped.__cause__ = cause
    line = report(wrapped, capsys)
    assert line.startswith("error: the memory of the device is not enough: ")
    assert "--skip_existing true" in line
    # Without the options that make another study.
    assert line.endswith("a study by the same command with sw_batch_size or stitching_device.\n")
    assert line.count("\n") == 1


def test_an_argument_check_of_the_bundle_is_one_line(capsys):
    error = caught(refuse_weight)
    assert report(error, capsys) == f"error: {error}\n"


def test_a_mistake_that_monai_wraps_is_one_line(capsys):
    error = caught(lambda: Compose([refuse_weight])({}))
    assert isinstance(error, RuntimeError)
    assert report(error, capsys) == f"error: {caught(refuse_weight)}\n"


def test_a_mistake_under_two_wrappers_is_one_line(capsys):
    def wrap_twice():
        try:
            Compose([refuse_weight])({})
        except RuntimeError:
            # Without "from", as a failing error handler does it.
            raise KeyError("run")  # noqa: B904

    assert report(caught(wrap_twice), capsys) == f"error: {caught(refuse_weight)}\n"


@pytest.mark.parametrize("function", [raise_here, lambda: int("seven"), lambda: [][0]])
def test_a_foreign_error_keeps_its_traceback(function, capsys):
    error = caught(function)
    text = report(error, capsys)
    assert text.startswith("Traceback (most recent call last):")
    assert f"{type(error).__name__}: {error}" in text
    assert "test_console.py" in text


def test_a_foreign_error_that_monai_wraps_keeps_its_traceback(capsys):
    text = report(caught(lambda: Compose([lambda _: int("seven")])({})), capsys)
    assert text.count("Traceback (most recent call last):") == 2
    assert "invalid literal" in text


def test_other_errors_inside_the_bundle_keep_their_traceback(capsys):
    # A TypeError there is a bug of the bundle, not a mistake of its user.
    error = caught(lambda: Weight(1.0, "linear", 10)("a"))
    assert isinstance(error, TypeError)
    assert report(error, capsys).startswith("Traceback")


def test_an_error_without_a_traceback(capsys):
    assert "ValueError: x" in report(ValueError("x"), capsys)


def test_an_interruption_is_one_line(capsys):
    assert report(KeyboardInterrupt(), capsys) == (
        "stopped; a training goes on with --resume true once an iteration is done, "
        "an inference with --skip_existing true; an evaluation begins anew with --overwrite true\n"
    )


def test_a_file_that_the_system_refuses_is_one_line(tmp_path, capsys):
    error = caught(lambda: (tmp_path / "nothing" / "file.txt").open())
    assert report(error, capsys) == f"error: {tmp_path / 'nothing' / 'file.txt'}: No such file or directory\n"


def test_an_argument_that_an_object_does_not_take_is_one_line(capsys):
    parser = ConfigParser({"schedule": {"_target_": "scripts.schedules.Weight", "final": 1.0, "rmap": "linear"}})
    text = report(caught(lambda: parser.get_parsed_content("schedule")), capsys)
    assert text.startswith("error: scripts.schedules.Weight cannot be made from its configuration: ")
    assert text.count("\n") == 1
    assert "rmap" in text


def test_a_decimal_comma_is_told(capsys):
    component = {"_target_": "scripts.losses.uncertainty.UncertaintyLoss", "temperature": DefaultParseValue("0,5")}
    parser = ConfigParser({"uncertainty": component})
    text = report(caught(lambda: parser.get_parsed_content("uncertainty")), capsys)
    assert text.endswith("'tuple' and 'int'; a number takes a decimal point, as in 0.5\n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"_target_": "scripts.methods.mean_teacher.MeanTeacherr"}, "names what is not there: Cannot locate class"),
        ({"_target_": "scripts.schedules.Weight", "final": "@itt"}, "refers to what is not there: .*@itt"),
    ],
)
def test_what_a_configuration_names_and_is_not_there_is_one_line(value, message, capsys):
    text = report(caught(lambda: ConfigParser({"part": value}).get_parsed_content("part")), capsys)
    assert re.match(f"error: the configuration {message}", text), text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("$[16] + 1", 'TypeError: can only concatenate list (not "int") to list'),
        ("$undefined * 2", "NameError: name 'undefined' is not defined"),
        ("$next(iter([]))", "StopIteration: StopIteration"),
    ],
)
def test_an_expression_that_fails_is_one_line(expression, reason, capsys):
    parser = ConfigParser({"size": expression, "part": {"_target_": "builtins.len", "obj": "@size"}})
    text = report(caught(lambda: parser.get_parsed_content("part")), capsys)
    assert text == f"error: the expression {expression!r} of the configuration fails: {reason}\n"


def test_an_expression_that_is_no_python_is_one_line(capsys):
    text = report(caught(lambda: ConfigParser({"size": "$[16"}).get_parsed_content("size")), capsys)
    assert text == "error: an expression of the configuration is no Python, '[' was never closed: [16\n"


def test_an_expression_whose_code_fails_keeps_its_traceback(capsys):
    parser = ConfigParser({"imports": ["$import json"], "size": "$json.loads('{')"})
    assert report(caught(lambda: parser.get_parsed_content("size")), capsys).startswith("Traceback")


# --- the merged configuration -----------------------------------------------------------------------------------------


def test_files_and_overrides_become_one_configuration():
    files = f"['{ROOT}/configs/train.json','{ROOT}/configs/method_cps.json']"
    words = ["/site-packages/monai/bundle/__main__.py", "run", "training", "--config_file", files]
    merged = merged_configuration([*words, "--iterations", "7", "--optimizer#lr=0.5", "--patch_size", "[16,16,16]"])
    assert (merged["iterations"], merged["optimizer"]["lr"], merged["patch_size"]) == (7, 0.5, [16, 16, 16])
    assert merged["method_def"]["_target_"].endswith("CrossPseudoSupervision")
    assert merged["network"]["network"] == "@network_def"
    assert "config_file" not in merged


@pytest.mark.parametrize(
    "arguments",
    [[], ["/usr/bin/pytest", "--config_file", "a"], ["/monai/bundle/__main__.py", "run", "--iterations", "3"]],
)
def test_another_program_has_no_configuration(arguments):
    assert merged_configuration(arguments) is None


@pytest.mark.parametrize("words", [["--path", "scans#2"], ["--path=scans#2"], ["scans#2"]])
def test_no_value_is_cut_off_at_its_hash(words):
    def command(path, **others):
        """Do nothing."""

    with pytest.raises(
        BundleError, match=r"^scans#2 would be cut off at its #: write a path as \./scans#2, a text as '"
    ):
        check_arguments("command", command, words)
    for value in ("./scans#2", "data/scans#2", '"Ward #3"'):
        check_arguments("command", command, ["--path", value, "--optimizer#lr", "0.1"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folds", ["--folds", "8", "--folds", "9"]),
        ("folds", ["--folds=8", "--output_dir", "a", "-folds", "9"]),
        ("output_dir", ["--output-dir", "a", "--output_dir", "a"]),
        ("relaunch", ["--relaunch", "--norelaunch"]),
        ("optimizer#lr", ["--optimizer#lr", "0.1", "--optimizer#lr=0.2"]),
    ],
)
def test_an_option_that_comes_twice_is_refused(name, words):
    def command(output_dir, folds=None, relaunch=False, **overrides):
        pass

    with pytest.raises(BundleError, match=f"^--{name} is given twice: give it once, several values with commas"):
        check_arguments("command", command, words)
    # Behind -- stand the options of Fire.
    check_arguments("command", command, ["--folds", "8", "--iterations", "8", "--", "--folds"])


def test_a_space_in_a_list_is_refused():
    def command(methods="", folds=None, **overrides):
        pass

    words = ["--methods", "supervised_vnet,", "mean_teacher", "--folds", "0"]
    with pytest.raises(BundleError, match=r"^supervised_vnet, mean_teacher are two arguments: leave out"):
        check_arguments("command", command, words)
    with pytest.raises(BundleError, match=r"^supervised_vnet ,mean_teacher are two arguments"):
        check_arguments("command", command, ["--methods", "supervised_vnet", ",mean_teacher"])
    check_arguments("command", command, ["--methods", "supervised_vnet, mean_teacher", "--folds", "0"])
