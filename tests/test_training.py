# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL, assert_refused, needs_bfloat16
from ignite.engine import Engine
from monai.bundle import ConfigParser

from scripts.data.boxes import write_boxes
from scripts.data.cached_dataset import CachedDataset
from scripts.data.phantom import generate_phantom_dataset
from scripts.trainer import NonFiniteLossError

#: A learning rate that falls within the few iterations.
STEPPED = {**SMALL, "lr_scheduler#step_size": 2}


def run(make_workflow, phantom_dir, output_dir, *names, **overrides):
    arguments = {**STEPPED, "dataset_dir": str(phantom_dir), "output_dir": str(output_dir), **overrides}
    workflow = make_workflow("train", *names, **arguments)
    workflow.initialize()
    workflow.run()
    return workflow


def load(path):
    return torch.load(path, weights_only=True)


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def finished(phantom_dir, tmp_path_factory):
    """A finished run of four iterations, with its folder."""
    from monai.bundle import ConfigWorkflow

    folder = tmp_path_factory.mktemp("finished") / "run"
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs/train.json"),
        logging_file=False,
        **STEPPED,
        dataset_dir=str(phantom_dir),
        output_dir=str(folder),
    )
    workflow.initialize()
    workflow.run()
    return folder


def test_run_leaves_models_checkpoints_history_and_pictures(finished):
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "checkpoint_00000002.pt",
        "checkpoint_00000004.pt",
    ]
    history = pd.read_csv(finished / "history.csv")
    assert history["iteration"].tolist() == [1, 2, 3, 4]
    for term in ("pseudo_label", "consistency", "uncertainty", "contrastive", "rectification"):
        assert history[f"loss_{term}"].notna().all()
        assert history[f"weight_{term}"].notna().all()
    assert history["learning_rate"].tolist() == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert pd.read_csv(finished / "validation.csv")["iteration"].tolist() == [2, 4]
    assert len(list((finished / "pictures").glob("validation_*.png"))) == 2
    assert (finished / "learning_curves.png").stat().st_size > 5000
    assert any((finished / "tensorboard").iterdir())
    facts = json.loads((finished / "run.json").read_text())
    assert facts["settings"]["seed"] == 1337
    # The files of a build may say less of it than the build itself, such as +cu130.
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_models_are_bare_weights_of_the_deployed_network(finished):
    from scripts.networks.dual_network import DualNetwork

    for name in ("model.pt", "model_final.pt"):
        DualNetwork().load_state_dict(load(finished / name))
    checkpoint = load(finished / "checkpoints" / "checkpoint_00000004.pt")
    final = load(finished / "model_final.pt")
    assert_equal_weights({name.removeprefix("network."): value for name, value in checkpoint["method"].items()}, final)
    assert checkpoint["best_metric"] == pytest.approx(pd.read_csv(finished / "validation.csv")["mean_dice"].max())


def test_folder_with_a_run_is_refused_and_kept(finished, make_workflow, phantom_dir):
    before = (finished / "history.csv").read_bytes()
    with assert_refused("already holds a run: go on with it by --resume true"):
        run(make_workflow, phantom_dir, finished)
    assert (finished / "history.csv").read_bytes() == before


def test_an_occupied_folder_is_refused_before_a_volume_is_loaded(finished, make_workflow, phantom_dir, monkeypatch):
    loaded = []
    monkeypatch.setattr(CachedDataset, "__init__", lambda *_, **__: loaded.append(1))
    with assert_refused("already holds a run"):
        run(make_workflow, phantom_dir, finished)
    assert loaded == []


def test_resume_without_a_run_is_refused(tmp_path, make_workflow, phantom_dir):
    with assert_refused("holds no run: drop --resume"):
        run(make_workflow, phantom_dir, tmp_path / "empty", resume=True)


def test_resume_and_overwrite_exclude_each_other(finished, make_workflow, phantom_dir):
    with assert_refused("exclude each other"):
        run(make_workflow, phantom_dir, finished, resume="true", overwrite="true")


def test_overwrite_keeps_what_no_run_wrote(tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    run(make_workflow, phantom_dir, folder, iterations=2)
    (folder / "notes.txt").write_text("mine")
    (folder / "pictures" / "holiday.png").write_text("mine")
    (folder / "checkpoints" / "checkpoint_00000099.pt").write_text("of the old run")
    (folder / "evaluation" / "labels").mkdir(parents=True)
    for name in ("metrics_cases.csv", "metrics_summary.md", "worst_1_a.png", "labels/a.nii.gz", "notes.txt"):
        (folder / "evaluation" / name).write_text("of the old run, or mine")
    run(make_workflow, phantom_dir, folder, iterations=2, overwrite="true")
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "pictures" / "holiday.png").read_text() == "mine"
    assert not (folder / "checkpoints" / "checkpoint_00000099.pt").exists()
    assert [path.name for path in (folder / "evaluation").rglob("*") if path.is_file()] == ["notes.txt"]


def _shorten(folder, iteration):
    """Bring a finished run to the state of one that was killed after the checkpoint of this iteration."""
    for path in (folder / "checkpoints").iterdir():
        if int(path.stem.split("_")[1]) > iteration:
            path.unlink()
    (folder / "model_final.pt").unlink()


def test_resumed_run_ends_with_the_same_bits(finished, tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    _shorten(folder, 2)
    half = folder / "checkpoints" / "checkpoint_00000002.pt"
    kept = half.stat().st_mtime_ns
    run(make_workflow, phantom_dir, folder, resume="true")
    # A run that began anew would end the same.
    assert half.stat().st_mtime_ns == kept
    assert_equal_weights(load(folder / "model_final.pt"), load(finished / "model_final.pt"))
    first = load(folder / "checkpoints" / "checkpoint_00000004.pt")
    second = load(finished / "checkpoints" / "checkpoint_00000004.pt")
    assert first["best_metric"] == second["best_metric"]
    assert first["lr_scheduler"] == second["lr_scheduler"]
    assert first["lr_scheduler"]["last_epoch"] == 4
    assert torch.equal(first["random"]["torch"], second["random"]["torch"])
    resumed, straight = (pd.read_csv(path / "history.csv") for path in (folder, finished))
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), straight.drop(columns="seconds"))


@pytest.mark.parametrize("how", ["truncated", "changed"])
def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    how, finished, tmp_path, make_workflow, phantom_dir, caplog
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    damaged = folder / "checkpoints" / "checkpoint_00000004.pt"
    content = bytearray(damaged.read_bytes())
    if how == "truncated":
        content = content[:100_000]
    else:
        content[len(content) // 2 : len(content) // 2 + 64] = bytes(64 * [255])
    damaged.write_bytes(content)
    run(make_workflow, phantom_dir, folder, resume=True)
    assert any("checkpoint_00000004.pt is damaged" in record.message for record in caplog.records)
    assert_equal_weights(load(folder / "model_final.pt"), load(finished / "model_final.pt"))


def test_only_damaged_checkpoints_are_refused(finished, tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"no checkpoint")
    with assert_refused("holds no readable checkpoint"):
        run(make_workflow, phantom_dir, folder, resume=True)


def test_checkpoint_of_another_method_is_refused(finished, tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with assert_refused("network was DualNetwork with dropout 0.5, is DualNetwork with dropout 0.5, GroupNorm"):
        run(make_workflow, phantom_dir, folder, resume=True, normalization="group")
    # Nor where the folder does not tell of its network.
    facts = json.loads((folder / "run.json").read_text())
    del facts["settings"]["network"]
    (folder / "run.json").write_text(json.dumps(facts))
    with assert_refused("of another method or network"):
        run(make_workflow, phantom_dir, folder, resume=True, **{"network_def#normalization": "group"})


def test_run_is_not_resumed_with_other_settings(finished, make_workflow, phantom_dir):
    with assert_refused("iterations was 4, is 8; patch_size was \\[32, 32, 32\\], is \\[48, 32, 32\\]"):
        run(make_workflow, phantom_dir, finished, resume=True, iterations=8, patch_size=[48, 32, 32])


def test_run_killed_before_its_first_checkpoint_starts_again(finished, tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(finished / "run.json", folder)
    # Killed while it wrote the first one, after the row of the history.
    rows = (finished / "history.csv").read_text().splitlines(keepends=True)[: 1 + SMALL["checkpoint_interval"]]
    (folder / "history.csv").write_text("".join(rows))
    run(make_workflow, phantom_dir, folder, resume=True)
    assert_equal_weights(load(folder / "model_final.pt"), load(finished / "model_final.pt"))
    assert pd.read_csv(folder / "history.csv")["iteration"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["model.pt", "inference.json", "validation.csv", "pictures/validation_1.png"])
def test_files_of_the_user_are_not_taken_for_a_run(name, overwrite, tmp_path, make_workflow, phantom_dir):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with assert_refused(f"holds no run, but files that a run would replace, such as {file.name}"):
        run(make_workflow, phantom_dir, tmp_path, overwrite=overwrite)
    assert file.read_text() == "mine"


def test_killed_process_resumes_to_the_same_bits(tmp_path, phantom_dir):
    def start(folder, *more):
        arguments = {**SMALL, "patch_size": [32, 16, 16], "iterations": 8, "val_interval": 4}
        arguments |= {"dataset_dir": phantom_dir, "output_dir": folder}
        options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "monai.bundle", "run", "training"]
        command += ["--config_file", str(ROOT / "configs/train.json"), *options, *more]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    straight = start(tmp_path / "straight")
    output = straight.communicate(timeout=300)[0]
    assert straight.returncode == 0, output

    cache = ("--cache_dir", str(tmp_path / "cache"))
    killed = start(tmp_path / "killed", *cache)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed/checkpoints/checkpoint_00000004.pt").exists():
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed/model_final.pt").exists()

    prepared = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    resumed = start(tmp_path / "killed", "--resume", "true", *cache)
    output = resumed.communicate(timeout=300)[0]
    assert resumed.returncode == 0, output
    assert "resumed at iteration" in output
    assert_equal_weights(load(tmp_path / "killed/model_final.pt"), load(tmp_path / "straight/model_final.pt"))
    assert (tmp_path / "killed/validation.csv").read_text() == (tmp_path / "straight/validation.csv").read_text()
    # The second process found what the first had kept: two labeled cases, two unlabeled, one for validation.
    assert len(prepared) == 5
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == prepared


def test_loss_that_is_not_finite_stops_the_run(tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    overrides = {**SMALL, "checkpoint_interval": 1, "dataset_dir": str(phantom_dir), "output_dir": str(folder)}
    workflow = make_workflow("train", **overrides)
    workflow.initialize()
    trainer, method = workflow.trainer, workflow.parser.get_parsed_content("method_def")
    supervised = method.supervised.forward

    def broken(logits, label):
        return supervised(logits, label) * (float("nan") if trainer.state.iteration == 3 else 1.0)

    method.supervised.forward = broken
    named = r"iteration 3: loss = nan, loss_supervised_vnet = nan.*phantom_\d+\.nii\.gz"
    with assert_refused(named, NonFiniteLossError):
        workflow.run()
    assert load(folder / "checkpoints" / "checkpoint_00000002.pt")["iteration"] == 2


@needs_bfloat16
def test_mixed_precision_and_any_memory_format(tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    run(make_workflow, phantom_dir, folder, iterations=2, precision="bfloat16", channels_last=False)
    assert np.isfinite(pd.read_csv(folder / "history.csv")["loss"]).all()
    assert all(value.dtype != torch.bfloat16 for value in load(folder / "model_final.pt").values())


def test_half_precision_on_a_cpu_is_refused(tmp_path, make_workflow, phantom_dir):
    with assert_refused("precision 'float16' needs a GPU", ValueError):
        run(make_workflow, phantom_dir, tmp_path / "run", precision="float16", device="$torch.device('cpu')")


def test_control_without_unlabeled_cases(tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    run(make_workflow, phantom_dir, folder, "method_supervised_dual", iterations=2)
    columns = pd.read_csv(folder / "history.csv").columns
    assert "loss_supervised_vnet" in columns
    assert "loss_pseudo_label" not in columns


def test_split_without_validation_trains_and_keeps_the_last_model(tmp_path, make_workflow, phantom_dir):
    split = json.loads((phantom_dir / "split.json").read_text())
    split["test"] += split["validation"]
    split["validation"] = []
    (tmp_path / "split.json").write_text(json.dumps(split))
    folder = tmp_path / "run"
    run(make_workflow, phantom_dir, folder, iterations=2, split_file=str(tmp_path / "split.json"))
    assert (folder / "model_final.pt").is_file()
    assert not (folder / "model.pt").exists()


def test_unreadable_case_is_refused_or_passed_over_and_listed(tmp_path, make_workflow, phantom_dir):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(phantom_dir, data)
    split = json.loads((data / "split.json").read_text())
    cut, missing = (data / f"images/{case}.nii.gz" for case in (split["labeled"][1], split["unlabeled"][0]))
    cut.write_bytes(cut.read_bytes()[:1000])
    with assert_refused(f"{cut.name} cannot be read"):
        run(make_workflow, data, folder, iterations=2)
    missing.unlink()
    with assert_refused(f"1 file of .* not found in .*{missing.name}"):
        run(make_workflow, data, folder, iterations=2)
    run(make_workflow, data, folder, iterations=2, skip_unreadable="true")
    listed = (folder / "unreadable_cases.txt").read_text().splitlines()
    assert sorted(line.split()[0] for line in listed) == sorted([str(cut), str(missing)])
    # A new run in the folder begins a list of its own.
    for path in (cut, missing):
        shutil.copy(phantom_dir / "images" / path.name, path)
    run(make_workflow, data, folder, iterations=2, skip_unreadable=True, overwrite=True)
    assert not (folder / "unreadable_cases.txt").exists()


def test_missing_data_set_names_what_is_expected(tmp_path, make_workflow):
    with assert_refused("python -m scripts check .*python -m scripts phantom"):
        run(make_workflow, tmp_path / "nothing", tmp_path / "run")


def test_evaluation_compares_on_the_grid_of_the_files(finished, tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "evaluation"
    overrides = {
        **SMALL,
        "dataset_dir": str(phantom_dir),
        "ckpt_path": str(finished / "model_final.pt"),
        "evaluation_dir": str(folder),
        "spacing": [2.0, 2.0, 2.0],
    }
    workflow = make_workflow("train", "evaluate", **overrides)
    workflow.initialize()
    workflow.run()
    table = pd.read_csv(folder / "metrics_cases.csv")
    split = json.loads((phantom_dir / "split.json").read_text())
    assert table["case"].tolist() == split["test"]
    assert len(list(folder.glob("worst_*.png"))) == len(split["test"])
    prediction = workflow.evaluator.state.output[0]["pred"]
    reference = nib.load(phantom_dir / "labels" / f"{split['test'][-1]}.nii.gz")
    assert prediction.shape[1:] == reference.shape
    mask, truth = prediction[0].numpy() == 1, np.asanyarray(reference.dataobj) == 1
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert table["dice"].iloc[-1] == pytest.approx(dice)
    kept = nib.load(folder / "labels" / f"{split['test'][-1]}.nii.gz")
    assert np.array_equal(np.asarray(kept.dataobj), prediction[0].numpy())
    assert np.allclose(kept.affine, reference.affine)

    again = make_workflow("train", "evaluate", **overrides)
    again.initialize()
    with assert_refused("already holds an evaluation"):
        again.run()


def test_evaluation_of_no_test_case_is_refused(finished, tmp_path, make_workflow, phantom_dir):
    split = json.loads((phantom_dir / "split.json").read_text())
    content = {name: value for name, value in split.items() if name != "cases_hash"}
    (tmp_path / "split.json").write_text(json.dumps({**content, "test": []}))
    workflow = make_workflow(
        "train",
        "evaluate",
        **SMALL,
        dataset_dir=str(phantom_dir),
        split_file=str(tmp_path / "split.json"),
        ckpt_path=str(finished / "model_final.pt"),
        evaluation_dir=str(tmp_path / "evaluation"),
    )
    with assert_refused(r"split\.json has no test case"):
        workflow.initialize()
        workflow.run()


def test_evaluation_without_weights_is_refused(tmp_path, make_workflow, phantom_dir):
    workflow = make_workflow("train", "evaluate", dataset_dir=str(phantom_dir), output_dir=str(tmp_path))
    workflow.initialize()
    with assert_refused(r"model_final\.pt does not exist: train first"):
        workflow.run()


def test_a_mistake_beside_overwrite_keeps_the_old_run(finished, tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    with assert_refused("precision must be auto, float32, bfloat16 or float16, got 'bf16'"):
        run(make_workflow, phantom_dir, folder, overwrite=True, precision="bf16")
    with assert_refused("does not exist"):
        run(make_workflow, tmp_path / "nothing", folder, overwrite=True)
    # It fails at the first step of the schedule.
    with assert_refused("modulo by zero", ZeroDivisionError):
        run(make_workflow, phantom_dir, folder, overwrite=True, **{"lr_scheduler#step_size": 0})
    for method, sizes, message in (
        ("bcp", {"labeled_batch_size": 3}, "labeled_batch_size must be even, .* got 3"),
        ("sdcl", {"unlabeled_batch_size": 1}, "unlabeled_batch_size must be that of the labeled crops, .* got 1"),
        ("dual_mean_teacher", {"unlabeled_batch_size": 1}, "unlabeled_batch_size must be at least 2"),
        ("bcp", {"method_def#pretrain_iterations": 2000}, "pretrain_iterations must be below the .* got 2000"),
        ("supervised_vnet", {"labeled_batch_size": 0, "unlabeled_batch_size": 2}, "must be at least 1 for Supervised"),
        ("luseg", {"labeled_batch_size": 0}, "the network with the lower supervised loss leads"),
    ):
        options = {**SMALL, "dataset_dir": str(phantom_dir), "output_dir": str(folder), "overwrite": True, **sizes}
        workflow = make_workflow("train", f"method_{method}", **options)
        workflow.initialize()
        with assert_refused(message, ValueError):
            workflow.run()
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_fails_in_its_first_iteration_replaces_nothing(finished, tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "unreadable_cases.txt").write_text("x.nii.gz cannot be read\n")
    before = contents(folder)
    # Only the networks know that one voxel is left in the deepest map.
    with assert_refused(r"patch_size \[16, 16, 16\] leaves a single voxel in the deepest map"):
        run(make_workflow, phantom_dir, folder, overwrite=True, patch_size=[16, 16, 16], normalization="instance")
    assert contents(folder) == before


def test_validation_counts_an_organ_that_is_not_there():
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.json"))
    parser["num_classes"] = 3
    metric = parser.get_parsed_content("validate#key_metric#mean_dice")
    reference = torch.zeros(1, 4, 4, 4)
    reference[:, :2] = 1
    invented = reference.clone()
    invented[:, 3] = 2
    for prediction, expected in ((reference, (1.0, 1.0)), (invented, (1.0, 0.0))):
        engine = Engine(lambda *_, prediction=prediction: [{"pred": prediction, "label": reference}])
        engine.state.metric_details = {}
        metric.attach(engine, "mean_dice")
        engine.run([0])
        assert engine.state.metrics["mean_dice"] == pytest.approx(sum(expected) / 2)
        assert engine.state.metric_details["mean_dice"].tolist() == [list(expected)]


@needs_bfloat16
def test_a_patch_that_the_precision_does_not_take_keeps_the_old_run(finished, tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with assert_refused(
        r"patch_size must start with at least 32 for precision 'bfloat16' on a CPU, got \[16, 32, 32\]"
    ):
        run(make_workflow, phantom_dir, folder, overwrite=True, precision="bfloat16", patch_size=[16, 32, 32])
    assert_equal_weights(load(folder / "model_final.pt"), load(finished / "model_final.pt"))


def test_run_is_not_resumed_with_another_method_or_other_cases(finished, tmp_path, make_workflow, phantom_dir):
    with assert_refused("method was consistency_weight=Weight"):
        run(make_workflow, phantom_dir, finished, resume=True, **{"method_def#consistency_weight": 0.5})
    with assert_refused("network was DualNetwork with dropout 0.5, is DualNetwork with dropout 0.3"):
        run(make_workflow, phantom_dir, finished, resume=True, **{"network_def#dropout": 0.3})
    with assert_refused("optimizer was SGD"):
        run(make_workflow, phantom_dir, finished, resume=True, **{"optimizer#lr": 0.5})
    split = json.loads((phantom_dir / "split.json").read_text())
    split["unlabeled"].append(split["labeled"].pop())
    (tmp_path / "split.json").write_text(json.dumps(split))
    with assert_refused("cases was 2 labeled, .* is 1 labeled"):
        run(make_workflow, phantom_dir, finished, resume=True, split_file=str(tmp_path / "split.json"))


def test_gradient_that_is_not_finite_stops_the_run(tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    overrides = {**SMALL, "checkpoint_interval": 1, "dataset_dir": str(phantom_dir), "output_dir": str(folder)}
    workflow = make_workflow("train", **overrides)
    workflow.initialize()
    trainer, network = workflow.trainer, workflow.parser.get_parsed_content("network")
    network.vnet.classifier.weight.register_hook(
        lambda gradient: gradient * (float("inf") if trainer.state.iteration == 2 else 1.0)
    )
    with assert_refused(r"iteration 2: gradient_norm = (inf|nan) on ", NonFiniteLossError):
        workflow.run()
    assert load(folder / "checkpoints" / "checkpoint_00000001.pt")["iteration"] == 1


def test_broken_case_costs_one_line(tmp_path, phantom_dir):
    folder = tmp_path / "data"
    shutil.copytree(phantom_dir, folder)
    case = json.loads((folder / "split.json").read_text())["labeled"][0]
    image = folder / "images" / f"{case}.nii.gz"
    image.write_bytes(image.read_bytes()[:1000])
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file"]
    command += [str(ROOT / "configs/train.json"), "--dataset_dir", str(folder), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert f"{case}.nii.gz cannot be read" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_pancreas_protocol_on_ct_phantoms(tmp_path, make_workflow):
    data = tmp_path / "data"
    split = generate_phantom_dataset(data, num_cases=6, size=48, modality="ct", num_labeled=2)
    write_boxes(data, split)
    overrides = {
        "dataset_dir": str(data),
        "split_file": str(split),
        "output_dir": str(tmp_path / "run"),
        **SMALL,
        "iterations": 2,
        "crop#margin": 3,
        "strides": [16, 16, 16],
    }
    workflow = make_workflow("train", "data_pancreas", **overrides)
    workflow.initialize()
    workflow.run()
    image = workflow.train_dataset[0]["image"]
    assert image.shape == (1, 32, 32, 32)
    # Weights that see foreground everywhere.
    weights = load(tmp_path / "run" / "model_final.pt")
    for name in ("vnet.classifier.bias", "resnet_vnet.classifier.bias"):
        weights[name][1] += 1000
    torch.save(weights, tmp_path / "foreground.pt")
    overrides["ckpt_path"] = str(tmp_path / "foreground.pt")
    evaluation = make_workflow("train", "data_pancreas", "evaluate", **overrides)
    evaluation.initialize()
    evaluation.run()
    prediction = evaluation.evaluator.state.output[-1]["pred"]
    item = evaluation.evaluator.state.batch[-1]
    assert prediction.shape == item["original_image"].shape
    # Nothing is predicted outside of the box: the crop is undone with background.
    (x0, y0, z0), (x1, y1, z1) = item["box"]
    outside = prediction.clone()
    margin = 6
    outside[
        :, max(0, x0 - margin) : x1 + margin, max(0, y0 - margin) : y1 + margin, max(0, z0 - margin) : z1 + margin
    ] = 0
    assert outside.sum() == 0
    assert prediction[:, x0:x1, y0:y1, z0:z1].all()


def test_validation_of_three_classes_by_hand(tmp_path, make_workflow):
    split = generate_phantom_dataset(tmp_path / "data", num_cases=6, size=32, num_labeled=2, num_classes=3)
    names = ["first", "second"]
    options = {"iterations": 2, "num_classes": 3, "class_names": names, "split_file": str(split)}
    workflow = run(make_workflow, tmp_path / "data", tmp_path / "run", **options)
    (case,) = json.loads(split.read_text())["validation"]
    prediction = workflow.evaluator.state.output[0]["pred"][0].numpy()
    reference = np.asanyarray(nib.load(tmp_path / "data" / "labels" / f"{case}.nii.gz").dataobj)
    expected = [
        2
        * ((prediction == label) & (reference == label)).sum()
        / ((prediction == label).sum() + (reference == label).sum())
        for label in (1, 2)
    ]
    assert max(expected) > 0
    assert expected[0] != expected[1]
    table = pd.read_csv(tmp_path / "run" / "validation.csv")
    assert [table[f"dice_{name}"].item() for name in names] == pytest.approx(expected, abs=1e-6)
    assert table["mean_dice"].item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_run_goes_on_with_another_number_of_processes(tmp_path, make_workflow, phantom_dir):
    one, two = tmp_path / "one", tmp_path / "two"
    # Without what every process draws for itself.
    options = {"val_interval": 4, "network_def#dropout": 0.0, "method_def#contrastive#sample_fraction": 1.0}
    halves = {"labeled_batch_size": 1, "unlabeled_batch_size": 1}
    run(make_workflow, phantom_dir, one, **options)
    shutil.copytree(one, two)
    (two / "checkpoints/checkpoint_00000004.pt").unlink()

    def assert_ends_as_one():
        start, end = (load(one / f"checkpoints/checkpoint_0000000{number}.pt")["method"] for number in (2, 4))
        weights = load(two / "model_final.pt")
        names = [name for name in weights if name.endswith((".weight", ".bias"))]
        assert len(names) > 100
        error = sum((weights[name] - end[f"network.{name}"]).square().sum() for name in names)
        step = sum((start[f"network.{name}"] - end[f"network.{name}"]).square().sum() for name in names)
        # An image scaled by 1 + 1e-6 changes a gradient of these networks in float32 by half a percent already.
        assert error.sqrt() < 0.1 * step.sqrt()
        losses = [pd.read_csv(folder / "history.csv")["loss"].tolist() for folder in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-2)
        assert losses[1][2] == pytest.approx(losses[0][2], rel=1e-4)

    arguments = {**SMALL, **options, **halves, "checkpoint_interval": 1, "resume": True}
    arguments |= {"dataset_dir": phantom_dir, "output_dir": two}
    files = [str(ROOT / "configs" / name) for name in ("train.json", "multi_gpu_train.json")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", "--config_file", str(files), "--device", "cpu"]
    command += [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_ends_as_one()

    with assert_refused("labeled_batch_size was 2, is 1; unlabeled_batch_size was 2, is 1"):
        run(make_workflow, phantom_dir, two, resume=True, **options, **halves)
    # The two processes have left a checkpoint after iteration 3.
    (two / "checkpoints/checkpoint_00000004.pt").unlink()
    run(make_workflow, phantom_dir, two, resume=True, **options)
    assert_ends_as_one()
