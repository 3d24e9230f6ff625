# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The bundle of a run on other data: it stands alone, does what the run does, and keeps the data to itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL, assert_refused
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata

from scripts.__main__ import main
from scripts.data.phantom import generate_phantom_dataset
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
    """A finished and evaluated run of one network, with a window and a spacing of its own."""
    folder = tmp_path_factory.mktemp("runs") / "kidney"
    own = folder.parent / "window.json"
    own.write_text(json.dumps({"window#_disabled_": False, "window#a_min": -100, "spacing": [1.5, 1.5, 1.5]}))
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


@pytest.fixture(scope="module")
def bundle(run_dir, tmp_path_factory):
    package = run_package(run_dir, NAME, modality="CT", data_source="St. Elsewhere", authors="The lab", version="1.2.0")
    folder, _ = write_package(package, tmp_path_factory.mktemp("models"))
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
    words = ("--config_file", "configs/train.json", "--dataset_dir", data_dir, "--output_dir", tmp_path / "again")
    monai_bundle(bundle, "run", "training", *words)
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
    readme = (bundle / "docs/README.md").read_text()
    for words in ("The lab", "St. Elsewhere", "SupervisedNetwork", "2 labeled", "resampled to 1.5 x 1.5 x 1.5 mm"):
        assert words in readme
    assert f"- mean_dice: {metadata['eval_metrics']['mean_dice']}\n" in readme
    assert "left atrium" not in readme.lower()


def test_no_path_and_no_case_goes_along(bundle, run_dir, data_dir):
    files = [path for path in bundle.rglob("*") if path.suffix in (".json", ".md", ".txt", ".yml")]
    assert len(files) > 30
    for path in files:
        text = path.read_text()
        for private in (run_dir.parent, data_dir, ROOT):
            assert str(private) not in text, path
        assert "phantom_00" not in text, path
    assert not list((bundle / "configs/splits").iterdir())


def test_pairs_that_a_server_gave_do_not_go_along(run_dir, tmp_path):
    given = shutil.copytree(run_dir, tmp_path / "run")
    config = json.loads((given / "run_config.json").read_text())
    for part in ("train", "validate"):
        config[part]["dataset"]["data"] = [{"image": "/patients/jane.nii.gz", "label": "/patients/jane_label.nii.gz"}]
    (given / "run_config.json").write_text(json.dumps(config))
    train = run_package(given, NAME, modality="CT").configs["train"]
    assert "jane" not in json.dumps(train)
    default = json.loads((ROOT / "configs/train.json").read_text())
    for part in ("train", "validate"):
        assert train[part]["dataset"]["data"] == default[part]["dataset"]["data"]


def test_figures_are_those_of_the_weights(run_dir, tmp_path):
    other = shutil.copyfile(run_dir / "model.pt", tmp_path / "other.pt")
    assert run_package(run_dir, NAME, modality="CT", weights=other).configs["metadata"]["eval_metrics"] == {}
    not_evaluated = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    package = run_package(not_evaluated, NAME, modality="CT")
    assert package.configs["metadata"]["eval_metrics"] == {}
    assert "No figure has been measured" in package.readme


def test_the_weights_are_those_that_the_evaluation_takes(run_dir, tmp_path):
    best = shutil.copytree(run_dir, tmp_path / "run")
    config = json.loads((best / "run_config.json").read_text())
    assert run_package(best, NAME, modality="CT").weights == best / "model_final.pt"
    (best / "run_config.json").write_text(json.dumps({**config, "evaluated_checkpoint": "model.pt"}))
    assert run_package(best, NAME, modality="CT").weights == best / "model.pt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "kidney/ct"}, "name must be letters, digits and _, got 'kidney/ct'"),
        ({"modality": "mri"}, "modality must be two capital letters, such as MR or CT, got 'mri'"),
        ({"version": "1"}, "version must be three numbers, such as 0.1.0, got '1'"),
        ({"weights": "none.pt"}, "weights none.pt do not exist: name a file"),
        ({"run_dir": ROOT / "configs/splits"}, "run_dir .*splits holds no run: run.json is missing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_are_refused(options, message, run_dir):
    with assert_refused(message):
        run_package(**{"run_dir": run_dir, "name": NAME, "modality": "CT", **options})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: (run / "model_final.pt").unlink(),
            "model_final.pt do not exist: go on with the run until its end",
        ),
        (lambda run: (run / "run.json").write_text("{"), "run.json is damaged"),
        (
            lambda run: set_target(run, "scripts.methods.gone.Gone"),
            "uses scripts.methods.gone.Gone, which this version of the bundle does not have: .* commit ",
        ),
        (lambda run: set_target(run, "lab.Method"), r"uses lab.Method, which would not go along: put it into scripts/"),
        (
            lambda run: shutil.copyfile(ROOT / "models/hippocampus/model.pt", run / "model_final.pt"),
            "^weights .* holds the weights of another network",
        ),
    ],
    ids=["unfinished", "damaged", "gone", "foreign", "other network"],
)
def test_runs_that_cannot_be_packaged_are_refused(change, message, run_dir, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")
    change(run)
    with assert_refused(message):
        run_package(run, NAME, modality="CT")


def set_target(run, name):
    config = json.loads((run / "run_config.json").read_text())
    config["method_def"]["_target_"] = name
    (run / "run_config.json").write_text(json.dumps(config))


def test_the_command_line(run_dir, tmp_path, capsys):
    words = ["package_run", "--run_dir", str(run_dir), "--name", NAME, "--modality", "CT"]
    words += ["--output_dir", str(tmp_path), "--triton", "true"]
    main(words)
    folder, archive, triton = capsys.readouterr().out.split()
    assert archive == str(tmp_path / f"{NAME}_v0.1.0.zip")
    assert (tmp_path / "triton" / NAME / "config.pbtxt").is_file()
    assert triton == str(tmp_path / "triton" / NAME)
    network = ConfigParser(ConfigParser.load_config_file(f"{folder}/configs/inference.json"))
    assert network.get_parsed_content("patch_size") == [32, 32, 32]
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().err.startswith(f"error: {folder} exists: replace it by --overwrite true")
