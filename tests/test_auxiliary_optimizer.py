# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The second optimizer of an iteration, with the discriminator of SASSNet: steps, checkpoints, refusals, processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL, assert_refused
from monai.bundle import ConfigWorkflow

from scripts.trainer import NonFiniteLossError

#: Two iterations with a checkpoint after each; validation would come after the end.
TWO = {**SMALL, "patch_size": [32, 16, 16], "iterations": 2, "checkpoint_interval": 1, "val_interval": 4}


def load(path):
    return torch.load(path, weights_only=True)


def flatten(content, prefix=""):
    """All values of nested dictionaries and lists by path."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def assert_equal(first, second):
    first, second = dict(flatten(first)), dict(flatten(second))
    assert first.keys() == second.keys()
    for name, value in first.items():
        equal = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert equal, name


def watch(optimizer, parameters, changes):
    """Note after each step of an optimizer which parameters it has changed."""
    before = {}

    def remember(*_):
        before.update({name: parameter.detach().clone() for name, parameter in parameters.items()})

    def compare(*_):
        changes.append({name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])})

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(compare)


@pytest.fixture(scope="module")
def trained(phantom_dir, tmp_path_factory):
    """A run of two iterations: its folder, its workflow, and what each step of the two optimizers changed."""
    folder = tmp_path_factory.mktemp("auxiliary") / "run"
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / f"configs/{name}.json") for name in ("train", "method_sassnet")],
        logging_file=False,
        **TWO,
        dataset_dir=str(phantom_dir),
        output_dir=str(folder),
    )
    workflow.initialize()
    method = workflow.parser.get_parsed_content("method_def")
    changes = []
    for name in ("optimizer", "auxiliary_optimizer"):
        watch(workflow.parser.get_parsed_content(name), dict(method.named_parameters()), changes)
    workflow.run()
    return folder, workflow, changes


def test_both_optimizers_step_in_turn_and_each_moves_its_own(trained):
    _, workflow, changes = trained
    method = workflow.parser.get_parsed_content("method_def")
    network = {f"network.{name}" for name, _ in method.network.named_parameters()}
    discriminator = {f"discriminator.{name}" for name, _ in method.discriminator.named_parameters()}
    assert len(changes) == 4
    for of_network, of_discriminator in (changes[:2], changes[2:]):
        assert of_network == network
        assert of_discriminator == discriminator
    optimizer, auxiliary = (workflow.parser.get_parsed_content(f"{name}optimizer") for name in ("", "auxiliary_"))
    moved = [{id(p) for group in o.param_groups for p in group["params"]} for o in (optimizer, auxiliary)]
    assert moved == [{id(p) for p in part.parameters()} for part in (method.network, method.discriminator)]


def test_settings_of_the_release_reach_the_optimizer(trained):
    _, workflow, _ = trained
    optimizer = workflow.parser.get_parsed_content("auxiliary_optimizer")
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == 1e-4
    assert tuple(optimizer.defaults["betas"]) == (0.9, 0.99)


def test_terms_of_both_parts_reach_the_history(trained):
    history = pd.read_csv(trained[0] / "history.csv")
    assert history["iteration"].tolist() == [1, 2]
    for name in ("adversarial", "distance", "supervised"):
        assert history[f"loss_{name}"].notna().all()
    for name in ("loss", "loss_discriminator", "gradient_norm"):
        assert (history[f"auxiliary_{name}"] > 0).all()
    assert (history["gradient_norm"] != history["auxiliary_gradient_norm"]).all()


def interrupted(folder, new_folder):
    """What the run would have left, had it been killed after the first checkpoint."""
    (new_folder / "checkpoints").mkdir(parents=True)
    for name in ("run.json", "history.csv", "checkpoints/checkpoint_00000001.pt"):
        shutil.copy(folder / name, new_folder / name)
    return new_folder


def resume(make_workflow, phantom_dir, folder, **overrides):
    paths = {"dataset_dir": str(phantom_dir), "output_dir": str(folder), "resume": True}
    workflow = make_workflow("train", "method_sassnet", **{**TWO, **paths, **overrides})
    workflow.initialize()
    workflow.run()


def test_resumed_run_ends_with_the_same_bits(trained, tmp_path, make_workflow, phantom_dir):
    folder = interrupted(trained[0], tmp_path / "run")
    kept = (folder / "checkpoints/checkpoint_00000001.pt").stat().st_mtime_ns
    resume(make_workflow, phantom_dir, folder)
    # A run that began anew would end the same.
    assert (folder / "checkpoints/checkpoint_00000001.pt").stat().st_mtime_ns == kept
    first, second = (load(path / "checkpoints/checkpoint_00000002.pt") for path in (trained[0], folder))
    state = second["auxiliary_optimizer"]["state"]
    # Two steps of Adam with both moments of every parameter.
    assert {value["step"].item() for value in state.values()} == {2}
    assert all(value["exp_avg"].norm() > 0 and value["exp_avg_sq"].norm() > 0 for value in state.values())
    assert_equal(first, second)
    resumed, straight = (pd.read_csv(path / "history.csv") for path in (folder, trained[0]))
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), straight.drop(columns="seconds"))


def test_checkpoint_without_the_auxiliary_state_is_refused(trained, tmp_path, make_workflow, phantom_dir):
    folder = interrupted(trained[0], tmp_path / "run")
    path = folder / "checkpoints/checkpoint_00000001.pt"
    torch.save({**load(path), "auxiliary_optimizer": None}, path)
    with assert_refused(r"of another method or network .* \(one of them has no auxiliary optimizer\)$"):
        resume(make_workflow, phantom_dir, folder)


def test_run_is_not_resumed_with_another_auxiliary_optimizer(trained, make_workflow, phantom_dir):
    with assert_refused("auxiliary_optimizer was Adam .* is Adam "):
        resume(make_workflow, phantom_dir, trained[0], **{"auxiliary_optimizer#lr": 0.5})
    with assert_refused("auxiliary_optimizer was Adam .* is None"):
        resume(make_workflow, phantom_dir, trained[0], auxiliary_optimizer=None)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_auxiliary_part_that_is_not_finite_stops_the_run(broken, tmp_path, make_workflow, phantom_dir):
    paths = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path / "run")}
    workflow = make_workflow("train", "method_sassnet", **TWO, **paths)
    workflow.initialize()
    discriminator = workflow.parser.get_parsed_content("method_def").discriminator
    before = [parameter.detach().clone() for parameter in discriminator.parameters()]
    if broken == "loss":
        discriminator.classifier.register_forward_hook(
            lambda module, inputs, scores: scores * float("nan") if module.training else scores
        )
        named = "auxiliary_loss = nan, auxiliary_loss_discriminator = nan on "
    else:
        discriminator.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
        named = "auxiliary_gradient_norm = (inf|nan) on "
    with assert_refused(rf"iteration 1: {named}.*phantom_\d+\.nii\.gz", NonFiniteLossError):
        workflow.run()
    assert all(torch.equal(old, new) for old, new in zip(before, discriminator.parameters(), strict=True))


def test_discriminator_that_nobody_trains_is_refused(tmp_path, make_workflow, phantom_dir):
    options = {**TWO, "dataset_dir": str(phantom_dir), "output_dir": str(tmp_path / "run")}
    workflow = make_workflow("train", "method_sassnet", **options, auxiliary_optimizer=None)
    workflow.initialize()
    with assert_refused("auxiliary_optimizer must be an optimizer for SASSNet, which trains more"):
        workflow.run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("without_auxiliary", [False, True])
def test_two_processes_train_both_parts_or_the_network_alone(tmp_path, phantom_dir, without_auxiliary):
    arguments = {**TWO, "dataset_dir": phantom_dir, "output_dir": tmp_path / "run"}
    if without_auxiliary:
        arguments |= {"auxiliary_optimizer": "$None", "method_def#adversarial_weight": 0.0}
    options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    names = ("train", "method_sassnet", "multi_gpu_train")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", "--device", "$torch.device('cpu')"]
    command += ["--config_file", str([str(ROOT / f"configs/{name}.json") for name in names])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    history = pd.read_csv(tmp_path / "run/history.csv")
    assert history["iteration"].tolist() == [1, 2]
    if without_auxiliary:
        assert "auxiliary_gradient_norm" not in history
        return
    assert (history["auxiliary_gradient_norm"] > 0).all()
    checkpoint = load(tmp_path / "run/checkpoints/checkpoint_00000002.pt")
    assert {value["step"].item() for value in checkpoint["auxiliary_optimizer"]["state"].values()} == {2}
    assert all(torch.isfinite(value).all() for value in checkpoint["method"].values())
