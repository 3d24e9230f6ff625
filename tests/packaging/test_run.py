# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The bundle of a run on other data: it stands alone, does what the run does, and keeps the data to itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL, assert_refused
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata

from scripts.__main__ import main
from scripts.configuration import TRAINED_KEYS
from scripts.data.phantom import generate_phantom_dataset
from scripts.handlers.run_directory import inference_overlay
from scripts.packaging.package import write_package
from scripts.packaging.run import run_package

NAME = "kidney_ct_segmentation"


def monai_bundle(folder, *words):
    """Run MONAI's command line in a folder, with nothing else of a bundle in reach."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "monai.bundle", *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Generated CT with two classes."""
    folder = tmp_path_factory.mktemp("patients")
    generate_phantom_dataset(folder, num_cases=5, size=32, num_labeled=2, num_classes=3, modality="ct")
    return folder


@pytest.fixture(scope="module")
def run_dir(data_dir, tmp_path_factory):
    """A finished and evaluated run of one network, with a window, a spacing and random flips of its own."""
    folder = tmp_path_factory.mktemp("runs") / "kidney"
    own = folder.parent / "window.json"
    window = {"darkest": "$@air + 900", "air": -1000, "window#_disabled_": False, "window#a_min": "$@darkest"}
    keys = ["image", "label", "unlabeled"]
    flip = {"_target_": "RandFlipd", "keys": keys, "prob": 0.5, "spatial_axis": 0, "allow_missing_keys": True}
    steps = read(ROOT, "train")["train"]["random_transforms"]
    own.write_text(json.dumps({**window, "spacing": [1.5, 1.5, 1.5], "train#random_transforms": [*steps, flip]}))
    arguments = {
        **SMALL,
        "num_classes": 3,
        "class_names": ["kidney", "tumor"],
        "dataset_dir": data_dir,
        "split_file": data_dir / "split.json",
        "output_dir": folder,
        "cache_dir": folder.parent / "cache",
    }
    words = [word for key, value in arguments.items() for word in (f"--{key}", value)]
    files = [f"configs/{name}.json" for name in ("train", "method_supervised_vnet")] + [str(own)]
    monai_bundle(ROOT, "run", "training", "--config_file", files, *words)
    monai_bundle(ROOT, "run", "--config_file", [*files, "configs/evaluate.json"], *words)
    return folder


def change_inference(run_dir, **values):
    path = run_dir / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def make_package(run_dir, **options):
    given = {"modality": "CT", "data_source": "St. Elsewhere", "authors": "The lab", **options}
    return run_package(run_dir, given.pop("name", NAME), **given)


@pytest.fixture(scope="module")
def bundle(run_dir, tmp_path_factory):
    folder, _ = write_package(make_package(run_dir, version="1.2.0"), tmp_path_factory.mktemp("models"))
    return folder


def read(bundle, name):
    return json.loads((bundle / f"configs/{name}.json").read_text())


def test_it_segments_as_the_run_does(bundle, run_dir, data_dir, tmp_path, make_workflow):
    image = data_dir / "images/phantom_000.nii.gz"
    monai_bundle(
        bundle, "run", "--config_file", "configs/inference.json", "--dataset_dir", image, "--output_dir", tmp_path
    )
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs/inference.json"), str(run_dir / "inference.json")],
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(ROOT),
        dataset_dir=str(image),
        output_dir=str(tmp_path / "expected"),
    )
    workflow.initialize()
    workflow.run()
    label, expected = (nib.load(folder / "phantom_000_seg.nii.gz") for folder in (tmp_path, tmp_path / "expected"))
    np.testing.assert_array_equal(label.affine, nib.load(image).affine)
    np.testing.assert_array_equal(np.asanyarray(label.dataobj), np.asanyarray(expected.dataobj))
    assert len(np.unique(np.asanyarray(label.dataobj))) > 1


def test_it_trains_as_the_run_did(bundle, run_dir, data_dir, tmp_path):
    # Where the bundle looks for data by itself.
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    shutil.copytree(data_dir, copy / "data")
    words = ("--config_file", "configs/train.json", "--output_dir", tmp_path / "again")
    monai_bundle(copy, "run", "training", *words)
    first, again = (
        torch.load(folder / "model_final.pt", weights_only=True) for folder in (run_dir, tmp_path / "again")
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_monai_deploy_gets_one_file(bundle, tmp_path):
    words = ["--net_id", "network_def", "--filepath", tmp_path / "model.ts", "--ckpt_file", "models/model.pt"]
    words += ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    monai_bundle(bundle, "ckpt_export", *words)
    with torch.inference_mode():
        answer = torch.jit.load(tmp_path / "model.ts").eval()(torch.randn(1, 1, 32, 32, 32))
    assert answer.shape == (1, 3, 32, 32, 32)
    torch.testing.assert_close(answer.sum(dim=1), torch.ones(1, 32, 32, 32))


def test_its_metadata_tell_of_the_run(bundle, run_dir):
    metadata = read(bundle, "metadata")
    verify_metadata(
        meta_file=str(bundle / "configs/metadata.json"), filepath=str(ROOT / "tests/schema/meta_schema_20240725.json")
    )
    formats = metadata["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "kidney", "2": "tumor"}
    assert formats["outputs"]["pred"]["num_channels"] == read(bundle, "inference")["num_classes"] == 3
    assert formats["inputs"]["image"]["modality"] == "CT"
    assert formats["inputs"]["image"]["spatial_shape"] == [32, 32, 32]
    assert metadata["version"] == "1.2.0"
    assert list(metadata["changelog"]) == ["1.2.0"]
    cases = pd.read_csv(run_dir / "evaluation/metrics_cases.csv")
    assert metadata["eval_metrics"]["mean_dice"] == pytest.approx(cases["dice"].mean(), abs=6e-4)
    assert metadata["eval_metrics"]["dice_tumor"] == pytest.approx(
        cases.loc[cases["class"] == "tumor", "dice"].mean(), abs=6e-4
    )
    for status in ("missed", "false_positive", "absent"):
        assert metadata["eval_metrics"][status] == (cases["status"] == status).sum()
    readme = (bundle / "docs/README.md").read_text()
    for words in ("The lab", "St. Elsewhere", "SupervisedNetwork", "resampled to 1.5 x 1.5 x 1.5 mm"):
        assert words in readme
    assert f"- mean_dice: {metadata['eval_metrics']['mean_dice']}\n" in readme
    assert "atri" not in (readme + json.dumps(metadata)).lower()


def test_inference_warns_of_volumes_unlike_those_of_the_training(bundle, run_dir):
    inference, overlay = (
        json.loads(path.read_text()) for path in (bundle / "configs/inference.json", run_dir / "inference.json")
    )
    assert [len(overlay[name]) for name in TRAINED_KEYS] == [3, 3, 3, 2]
    assert {name: inference[name] for name in TRAINED_KEYS} == {name: overlay[name] for name in TRAINED_KEYS}


def test_no_path_and_no_case_goes_along(bundle, run_dir, data_dir):
    cases = [path.name.removesuffix(".nii.gz") for path in (data_dir / "images").iterdir()]
    private = [words.encode() for words in (str(run_dir.parent), str(data_dir), *cases)]
    assert len(private) == 7
    # The code speaks of generated cases by itself.
    files = [path for path in bundle.rglob("*") if path.is_file() and path.suffix != ".py"]
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        assert not any(words in content for words in private), path
    assert not list((bundle / "configs/splits").iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset_dir", "/patients"),
        ("unlabeled_dir", "/patients"),
        ("initial_weights", "/patients/model.pt"),
        ("cache_dir", "/patients"),
        ("study_root", "/patients"),
        ("initialize", ["$print('/patients')"]),
        ("imports", ["$import sys", "$sys.path.insert(0, '/patients')"]),
    ],
)
def test_nothing_but_what_was_trained_goes_along(key, value, run_dir, tmp_path):
    package = make_package(changed(run_dir, tmp_path, lambda config: config.update({key: value})))
    assert "/patients" not in json.dumps(package.configs) + package.readme


@pytest.mark.parametrize("part", ["train#dataset#data", "validate#dataset#data", "unlabeled_pool", "train#handlers"])
def test_what_a_server_changed_does_not_go_along(part, run_dir, tmp_path):
    def change(config):
        parser = ConfigParser(config)
        parser[part] = [{"image": "/patients/jane.nii.gz"}]

    package = make_package(changed(run_dir, tmp_path, change))
    assert "jane" not in json.dumps(package.configs)
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.json"))
    assert ConfigParser(package.configs["train"])[part] == parser[part]


def test_a_run_in_several_processes_becomes_a_bundle_for_one(run_dir, tmp_path):
    def change(config):
        config.update(ConfigParser.load_config_file(ROOT / "configs/multi_gpu_train.json"))
        config["labeled_batch_size"] = 1

    train = make_package(changed(run_dir, tmp_path, change)).configs["train"]
    assert "init_process_group" not in json.dumps(train)
    # run.json tells the size of the step, the configuration that of each process.
    assert train["labeled_batch_size"] == 2


def test_expressions_become_values(run_dir, tmp_path):
    def change(config):
        config.update({"width": 32, "patch_size": "$[@width] * 3", "class_names": "$['left', 'right']"})

    package = make_package(changed(run_dir, tmp_path, change))
    for name in ("train", "inference"):
        assert package.configs[name]["patch_size"] == [32, 32, 32]
    assert "1 left, 2 right" in package.readme
    assert "32 x 32 x 32" in package.readme


def test_the_values_of_a_run_go_along(run_dir, tmp_path):
    values = {
        "strides": [8, 16, 4],
        "seed": 7,
        "iterations": 11,
        "val_interval": 5,
        "checkpoint_interval": 3,
        "foreground_share": 0.25,
        "normalization": "batch",
        "largest_component": True,
        "evaluated_checkpoint": "model.pt",
        "precision": "auto",
        "val_overlap": 0.25,
        "deterministic": False,
    }
    package = make_package(changed(run_dir, tmp_path, lambda config: config.update(values)))
    assert {name: package.configs["train"][name] for name in values} == values


def test_a_run_without_unlabeled_cases_does_not_boast_of_them(bundle, run_dir, tmp_path):
    assert "Semi-supervised" not in (bundle / "docs/README.md").read_text()
    assert "trained by SupervisedNetwork on 2 labeled cases" in read(bundle, "metadata")["description"]
    copy = shutil.copytree(run_dir, tmp_path / "run")
    facts = json.loads((copy / "run.json").read_text())
    facts["settings"] |= {"unlabeled_batch_size": 2, "class_names": ["Gefäß"]}
    facts["initial_weights"] = "/patients/first.pt"
    (copy / "run.json").write_text(json.dumps(facts))
    readme = make_package(copy).readme
    assert re.search(r"on 2 labeled and \d unlabeled cases", readme)
    assert "Segmentation, CT, Semi-supervised" in readme
    assert "from other weights, which are not in it" in readme
    assert '- class_names: ["Gefäß"]' in readme


def test_words_of_the_user_are_shown_as_they_are(run_dir, tmp_path):
    copy = changed(run_dir, tmp_path, lambda config: config.update({"class_names": ["<kidney>", "tumor"]}))
    for path in (copy / "evaluation/metrics_summary.csv", copy / "evaluation/metrics_weights.json"):
        path.write_text(path.read_text().replace("kidney", "<kidney>"))
    package = make_package(copy, authors="<script>A</script>", data_source="ours\n\n## **Limitations**\n\nnone")
    assert "Classes: 0 background, 1 &lt;kidney&gt;, 2 tumor." in package.readme
    assert "- dice_&lt;kidney&gt;: " in package.readme
    assert "&lt;script&gt;A&lt;/script&gt;" in package.readme
    assert "Source: ours ## **Limitations** none. No data" in package.readme
    # The metadata are data and hold them as they were given.
    assert package.configs["metadata"]["authors"] == "<script>A</script>"
    assert "dice_<kidney>" in package.configs["metadata"]["eval_metrics"]


def test_figures_of_a_class_that_is_called_like_no_value(run_dir, tmp_path):
    copy = changed(run_dir, tmp_path, lambda config: config.update({"class_names": ["NA", "nan"]}))
    table = copy / "evaluation/metrics_summary.csv"
    record = copy / "evaluation/metrics_weights.json"
    for path in table, record:
        path.write_text(path.read_text().replace("kidney", "NA").replace("tumor", "nan"))
    figures = make_package(copy).configs["metadata"]["eval_metrics"]
    assert figures.keys() >= {"dice_NA", "dice_nan"}


def test_steps_and_boxes_are_told_of(run_dir, tmp_path):
    readme = make_package(run_dir).readme
    assert "these steps of configs/inference.json: `window` and `normalize`." in readme
    assert "boxes.json" not in readme
    off = changed(run_dir, tmp_path / "off", lambda config: config["window"].update({"_disabled_": True}))
    assert "these steps of configs/inference.json: `normalize`." in make_package(off).readme
    readme = make_package(changed(run_dir, tmp_path, lambda config: config.update({"uses_boxes": True}))).readme
    assert "cropped each volume to its box of `boxes.json`" in readme


@pytest.mark.parametrize("overlay", sorted(path.stem for path in (ROOT / "configs").glob("method_*.json")))
def test_every_method_can_be_packaged(overlay, run_dir, tmp_path):
    """With untrained weights of its network, and the overlay that such a run leaves."""
    config = ConfigParser.load_config_files([ROOT / "configs/train.json", ROOT / f"configs/{overlay}.json"])
    config |= {"num_classes": 3, "class_names": ["kidney", "tumor"], "iterations": 4, "ramp_length": 4}
    copy = shutil.copytree(
        run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "*.pt", "tensorboard")
    )
    weights = copy / "model_final.pt"
    (copy / "run_config.json").write_text(json.dumps(config))
    (copy / "inference.json").write_text(json.dumps(inference_overlay(config, weights, {})))
    torch.save(ConfigParser(config).get_parsed_content("network_def").state_dict(), weights)
    package = make_package(copy)
    assert package.configs["train"]["method_def"] == config["method_def"]
    network = ConfigParser(package.configs["inference"]).get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, weights_only=True))


def test_rights_of_weights_before_are_not_those_of_the_code(run_dir, tmp_path, monkeypatch):
    """As in a package that was trained in a package."""
    configs = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    metadata = json.loads((configs / "metadata.json").read_text())
    (configs / "metadata.json").write_text(json.dumps({**metadata, "copyright": "Weights: Lab 1. Code: (c) 2026 us"}))
    monkeypatch.setattr("scripts.packaging.run.CONFIGS", configs)
    assert make_package(run_dir).configs["metadata"]["copyright"] == "Weights: The lab. Code: (c) 2026 us"


def test_figures_are_those_of_the_weights(run_dir, tmp_path, caplog):
    evaluated = make_package(run_dir).configs["metadata"]["eval_metrics"]
    assert not any("is left out" in message for message in caplog.messages)
    assert evaluated["test_cases"] == 1
    same = shutil.copyfile(run_dir / "model_final.pt", tmp_path / "same.pt")
    assert make_package(run_dir, weights=same).configs["metadata"]["eval_metrics"] == evaluated
    other = shutil.copytree(run_dir, tmp_path / "other_split")
    record = json.loads((other / "evaluation/metrics_weights.json").read_text())
    assert record["split"] == json.loads((other / "run.json").read_text())["split"]
    config = json.loads((run_dir / "run_config.json").read_text())
    assert record["settings"]["patch_size"] == config["patch_size"]
    assert set(record["settings"]) == {"patch_size", "strides", "test_time_views", "largest_component", "class_names"}
    other_windows = shutil.copytree(run_dir, tmp_path / "other_windows")
    changed_record = {**record, "settings": {**record["settings"], "largest_component": True}}
    (other_windows / "evaluation/metrics_weights.json").write_text(json.dumps(changed_record))
    caplog.clear()
    assert make_package(other_windows).configs["metadata"]["eval_metrics"] == {}
    assert any(
        message.endswith("is left out of the package: largest_component was True, in the package it is False.")
        for message in caplog.messages
    )
    views = [{"turn": [0, 0, 0.25]}]
    with_views = shutil.copytree(run_dir, tmp_path / "with_views")
    change_inference(with_views, test_time_views=views)
    package = make_package(with_views)
    assert package.configs["metadata"]["eval_metrics"] == {}
    assert package.configs["inference"]["test_time_views"] == package.configs["train"]["test_time_views"] == views
    measured = {**record, "settings": {**record["settings"], "test_time_views": views}}
    (with_views / "evaluation/metrics_weights.json").write_text(json.dumps(measured))
    package = make_package(with_views)
    assert package.configs["metadata"]["eval_metrics"] == evaluated
    assert "MONAI Label and MONAI Deploy\nsegment without" in package.readme
    assert "segment without" not in make_package(run_dir).readme
    record["split"]["cases_hash"] = "0"
    (other / "evaluation/metrics_weights.json").write_text(json.dumps(record))
    assert make_package(other).configs["metadata"]["eval_metrics"] == {}
    assert any(message.endswith("is left out of the package: it is of another split.") for message in caplog.messages)
    state = torch.load(same, weights_only=True)
    torch.save({name: value / 2 for name, value in state.items()}, tmp_path / "other.pt")
    assert make_package(run_dir, weights=tmp_path / "other.pt").configs["metadata"]["eval_metrics"] == {}
    assert any(message.endswith(f"it is of other weights than {tmp_path / 'other.pt'}.") for message in caplog.messages)
    not_evaluated = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    package = make_package(not_evaluated)
    assert package.configs["metadata"]["eval_metrics"] == {}
    assert "No figure has been measured" in package.readme


def test_what_was_chosen_for_the_inference_of_a_run_goes_along(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    chosen = {"largest_component": True, "overlap": 0.75, "blending": "constant", "skip_empty_windows": True}
    chosen["crop_to_organs"] = 1
    change_inference(run, **chosen)
    package = make_package(run)
    assert {name: package.configs["inference"][name] for name in chosen} == chosen
    assert "MONAI Label and MONAI Deploy segment without. The figures" in package.readme
    # The figures of the run are of another component filter.
    assert package.configs["train"]["largest_component"] is True
    assert package.configs["metadata"]["eval_metrics"] == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("normalize#nonzero", True, "normalize#nonzero was None, is True"),
        ("spacing", [2, 2, 2], r"spacing was \[1.5, 1.5, 1.5\], is \[2, 2, 2\]"),
        ("patch_size", [48, 48, 48], r"patch_size was .* is \[48, 48, 48\]"),
        ("save_uncertainty", True, "save_uncertainty was None, is True"),
    ],
)
@pytest.mark.parametrize("weights", [None, "elsewhere.pt"])
def test_what_would_not_go_along_of_the_inference_is_refused(key, value, message, weights, run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    options = {} if weights is None else {"weights": shutil.copyfile(run / "model_final.pt", tmp_path / weights)}
    change_inference(run, **{key: value})
    with assert_refused(f"inference.json is not as the run left it .*{message}.*: a package takes test_time_views, "):
        make_package(run, **options)


def test_a_package_that_would_refuse_every_scan_is_refused(run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    # As an older version of the bundle left it.
    change_inference(run, crop_to_organs=1, trained_margin=None)
    with assert_refused("crop_to_organs needs trained_margin in mm"):
        make_package(run)


def test_a_spacing_that_is_an_expression(run_dir, tmp_path):
    run = changed(run_dir, tmp_path, lambda config: config.update({"spacing": "$[1.5] * 3"}))
    assert make_package(run).configs["inference"]["spacing"] == [1.5, 1.5, 1.5]


def test_the_weights_are_those_that_the_evaluation_takes(run_dir, tmp_path):
    best = shutil.copytree(run_dir, tmp_path / "run")
    config = json.loads((best / "run_config.json").read_text())
    assert make_package(best).weights == best / "model_final.pt"
    (best / "run_config.json").write_text(json.dumps({**config, "evaluated_checkpoint": "$'model' + '.pt'"}))
    assert make_package(best).weights == best / "model.pt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "kidney/ct"}, "name must be letters, digits and _, got 'kidney/ct'"),
        ({"modality": "mri"}, "modality must be two capital letters, such as MR or CT, got 'mri'"),
        ({"version": "1"}, "version must be three numbers, such as 0.1.0, got '1'"),
        ({"weights": "none.pt"}, "weights none.pt do not exist: name a file"),
        ({"run_dir": ROOT / "configs/splits"}, "run_dir .*splits holds no run started by .*: run.json is missing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_are_refused(options, message, run_dir):
    with assert_refused(message):
        make_package(options.pop("run_dir", run_dir), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: (run / "model_final.pt").unlink(),
            "model_final.pt do not exist: go on with the run until its end",
        ),
        (lambda run: (run / "run_config.json").unlink(), "started by python -m monai.bundle run: run_config.json is"),
        (lambda run: (run / "run.json").write_text("{"), "run.json is damaged"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json is damaged: it must hold a JSON object"),
        (lambda run: (run / "run.json").write_text('{"settings": null}'), "run.json is damaged: .* the settings"),
        (
            lambda run: shutil.copyfile(ROOT / "models/hippocampus/model.pt", run / "model_final.pt"),
            "^weights .* holds the weights of another network",
        ),
    ],
    ids=["unfinished", "not merged", "damaged", "a list", "no settings", "other network"],
)
def test_runs_that_cannot_be_packaged_are_refused(change, message, run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    change(run)
    with assert_refused(message):
        make_package(run)


def set_item(key, value):
    def change(config):
        ConfigParser(config)[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_item("method_def#_target_", "scripts.methods.gone.Gone"), "method_def of the run .* cannot be built from"),
        (
            set_item("method_def#_target_", "lab.Method"),
            "method_def of the run .* cannot be built from its bundle alone",
        ),
        (
            set_item("method_def#_target_", "torch.nn.Identity"),
            "uses torch.nn.modules.linear.Identity, which would not",
        ),
        (set_item("augmentation", ["@mine"]), "augmentation of the run .* cannot be built from its bundle alone"),
        (set_item("validate#preprocessing", []), "has another validate#preprocessing than train.json"),
        (
            set_item("optimizer#lr", "$float(len('HOME'))"),
            "the configuration of the run .* names .*, which must not go",
        ),
    ],
    ids=["gone", "foreign", "of a library", "own key", "own preprocessing", "private"],
)
def test_what_a_bundle_cannot_hold_is_refused(change, message, run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "len('HOME')")
    with assert_refused(message):
        make_package(changed(run_dir, tmp_path, change))


def test_the_root_is_no_private_folder(run_dir, monkeypatch):
    monkeypatch.setenv("HOME", "/")
    package = make_package(run_dir)
    assert package.name == NAME
    # The slashes that were taken for the root are those of addresses and of paths within the bundle.
    assert "/" in json.dumps(package.configs["inference"])


@pytest.mark.parametrize("folder", ["/daten/M\u00fcller", "C:\\daten\\scans"])
def test_folders_of_any_letters_do_not_go_along(folder, run_dir, tmp_path):
    copy = changed(run_dir, tmp_path, set_item("optimizer#lr", f"$len(r'{folder}') / 1000"))
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**facts, "dataset_dir": folder}))
    with assert_refused("the configuration of the run .* names .*, which must not go along"):
        make_package(copy)


@pytest.mark.parametrize(("folder", "split"), [("data", "split.json"), ("/data", "/data/images/split.json")])
def test_folders_called_as_those_of_the_bundle_are_no_secret(folder, split, run_dir, tmp_path):
    copy = changed(run_dir, tmp_path, set_item("optimizer#lr", 0.01))
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**facts, "dataset_dir": folder, "split_file": split}))
    assert make_package(copy).configs["train"]["dataset_dir"] == "$@bundle_root + '/data'"
    (copy / "run_config.json").write_text(
        (copy / "run_config.json").read_text().replace('"lr": 0.01', '"lr": "$len(\'/data/images/split.json\') / 1000"')
    )
    if folder == "/data":
        with assert_refused("names /data"):
            make_package(copy)


def changed(run_dir, tmp_path, change):
    """A copy of the run with another configuration."""
    copy = shutil.copytree(run_dir, tmp_path / "run")
    config = json.loads((copy / "run_config.json").read_text())
    change(config)
    (copy / "run_config.json").write_text(json.dumps(config))
    left = json.loads((copy / "inference.json").read_text())
    (copy / "inference.json").write_text(json.dumps(inference_overlay(config, copy / "model_final.pt", left)))
    return copy


def test_the_command_line(run_dir, tmp_path, capsys):
    words = ["package_run", "--run_dir", str(run_dir), "--name", NAME, "--modality", "CT"]
    words += ["--output_dir", str(tmp_path), "--triton", "true", "--authors", "Doe, Roe", "--data_source", "2018"]
    main(words)
    folder, archive, triton = capsys.readouterr().out.split()
    assert archive == str(tmp_path / f"{NAME}_v0.1.0.zip")
    assert (tmp_path / "triton" / NAME / "config.pbtxt").is_file()
    assert triton == str(tmp_path / "triton" / NAME)
    metadata = json.loads(Path(folder, "configs/metadata.json").read_text())
    assert (metadata["authors"], metadata["data_source"]) == ("Doe, Roe", "2018")
    assert metadata["copyright"].startswith("Weights: Doe, Roe. Code: Copyright (c)")
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().err.startswith(f"error: {folder} exists: replace it by --overwrite true")
    # The settings of a server are its user's.
    again = [*words, "--overwrite", "true"]
    main(again)
    capsys.readouterr()
    for changed_file in ("config.pbtxt", "2/model.pt"):
        path = Path(triton, changed_file)
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write("mine")
        with pytest.raises(SystemExit):
            main(again)
        assert f"{triton} holds {changed_file}, which is not that of the new package: move it away" in (
            capsys.readouterr().err
        )
        assert path.read_text().endswith("mine")
        path.unlink()
