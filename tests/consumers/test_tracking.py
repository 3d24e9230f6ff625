# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a run tells its trackers and leaves behind to be repeated: TensorBoard, MLflow, facts and configuration."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys

import mlflow
import pandas as pd
import pytest
import torch
from conftest import SMALL
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.data.splits import describe_split
from scripts.handlers import run_directory


@pytest.fixture(scope="module")
def train(bundle, phantom_dir, tmp_path_factory):
    """Train two iterations from the command line in another folder; give the folder of the run."""

    def call(*words):
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        overrides = {**SMALL, "iterations": 2, "dataset_dir": phantom_dir, "output_dir": elsewhere / "run"}
        options = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs/train.json")]
        done = subprocess.run(
            [*command, *options, *words], cwd=elsewhere, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return elsewhere / "run"

    return call


@pytest.fixture(scope="module")
def finished(train):
    return train("--optimizer#lr", "0.02")


def test_tensorboard_shows_terms_dice_and_pictures(finished):
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    history = pd.read_csv(finished / "history.csv")
    for tag, column in (
        ("loss/total", "loss"),
        ("loss/supervised_vnet", "loss_supervised_vnet"),
        ("loss/pseudo_label", "loss_pseudo_label"),
        ("weight/pseudo_label", "weight_pseudo_label"),
        ("training/learning_rate", "learning_rate"),
        ("training/gradient_norm", "gradient_norm"),
    ):
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [1, 2]
        assert [scalar.value for scalar in scalars] == pytest.approx(history[column].tolist(), rel=1e-5)
    assert {"validation/mean_dice", "validation/dice_organ"} <= set(tags["scalars"])
    assert all("/" in tag for tag in tags["scalars"])
    # In a file of its own, as TensorBoard stops reading one beside which a newer one lies.
    assert len(list((finished / "tensorboard").glob("events*"))) == 1
    pictures = EventAccumulator(str(finished / "tensorboard" / "pictures"), size_guidance={"images": 0})
    pictures.Reload()
    (picture,) = pictures.Images("validation/picture")
    assert picture.step == 2
    assert picture.width > 100
    (text,) = events.Tensors("run/text_summary")
    assert "cases_hash" in text.tensor_proto.string_val[0].decode()


def test_facts_tell_what_was_run(finished, phantom_dir):
    facts = json.loads((finished / "run.json").read_text())
    assert facts["split"] == describe_split(phantom_dir / "split.json")
    for package in ("torch", "monai", "nibabel", "pytorch-ignite"):
        assert facts["versions"][package] == importlib.metadata.version(package)
    # The copy of the bundle is no checkout.
    assert facts["commit"] is None


def test_configuration_of_a_run_repeats_it(finished, bundle, tmp_path):
    configuration = finished / "run_config.json"
    parser = ConfigParser(ConfigParser.load_config_file(configuration))
    assert parser["optimizer#lr"] == 0.02
    assert parser["network#network"] == "@network_def"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configuration)]
    command += ["--output_dir", str(tmp_path / "again")]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, again = (
        torch.load(folder / "model_final.pt", weights_only=True) for folder in (finished, tmp_path / "again")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(("git", "-C", str(folder), *identity, *words), check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a folder scripts/, of which the facts of a run will tell the commit."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/file.py", "remark.md", ".gitignore"):
        (tmp_path / name).write_text("*.pyc\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    monkeypatch.setattr(run_directory, "ROOT", tmp_path.resolve())
    return tmp_path


def test_commit_is_that_of_the_bundle_alone(checkout, monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{40}", run_directory._commit())
    # It lies in a repository of something else.
    monkeypatch.setattr(run_directory, "ROOT", (checkout / "scripts").resolve())
    assert run_directory._commit() is None
    monkeypatch.setattr(run_directory, "ROOT", checkout.resolve())
    monkeypatch.setenv("PATH", "")
    assert run_directory._commit() is None


def test_commit_tells_files_that_differ_by_their_hash(checkout):
    clean = run_directory._commit()
    # Neither what is no code nor what is ignored, nor a file that only was written anew.
    (checkout / "remark.md").write_text("other")
    (checkout / "scripts/file.pyc").write_text("compiled")
    (checkout / "scripts/file.py").write_text("*.pyc\n")
    assert run_directory._commit() == clean
    seen = [clean]
    for name, content in (("file", "2"), ("file", "3"), ("own_method", "3"), ("own_method", "4"), ("ümlaut", "4")):
        (checkout / f"scripts/{name}.py").write_text(content)
        seen.append(run_directory._commit())
        assert run_directory._commit() == seen[-1]
    (checkout / "scripts/file.py").unlink()
    seen.append(run_directory._commit())
    assert len(set(seen)) == len(seen)
    assert all(re.fullmatch(rf"{clean}-dirty-[0-9a-f]{{8}}", commit) for commit in seen[1:])
    # Whether they are in the index does not matter.
    git(checkout, "add", ".")
    assert run_directory._commit() == seen[-1]
    (checkout / "scripts/file.py").write_text("3")
    assert run_directory._commit() == seen[5]


def test_mlflow_logs_losses_and_dice(train):
    folder = train("--tracking", "mlflow")
    database = folder / "mlruns.db"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    metrics = {name for run in runs for name in run.data.metrics}
    assert {"train_loss", "mean_dice"} <= metrics
    assert len(list(folder.glob("config_*.json"))) == 1
