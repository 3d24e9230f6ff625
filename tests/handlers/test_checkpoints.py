# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Which weights and checkpoints a run keeps, and what a checkpoint brings back."""

from __future__ import annotations

import random
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import assert_refused
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from scripts.errors import BundleError
from scripts.handlers import checkpoints
from scripts.handlers.checkpoints import Checkpoints, PublishedWeights, _random_state, _restore_random_state
from scripts.handlers.run_directory import RunDirectory

NAN = float("nan")


class Training:
    """A trainer that adds 1 to its only weight at each iteration, and an evaluator with metrics from a list."""

    def __init__(
        self, folder, metrics, *, resume=False, overwrite=False, gradient_scale=None, schedule=StepLR, **options
    ):
        self.network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.network.weight)
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        scheduler = schedule(optimizer, 2)
        self.evaluator = Engine(self._measure)
        self.checkpoints = Checkpoints(
            RunDirectory(str(folder), resume=resume, overwrite=overwrite),
            self.network,
            self.network,
            optimizer,
            scheduler,
            evaluator=self.evaluator,
            **options,
        )
        self.metrics = metrics
        self.draws = []
        self.trainer = Engine(self._iteration)
        self.trainer.grad_scaler = torch.amp.GradScaler(
            "cpu", init_scale=gradient_scale or 1.0, enabled=gradient_scale is not None
        )
        self.trainer.data_loader = SimpleNamespace(start_at=lambda iteration: None, write_unreadable=lambda: None)
        self.evaluator.state.key_metric_name = "dice"
        self.checkpoints.attach(self.trainer)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._validate)
        self.trainer.run(range(len(metrics)), max_epochs=1, epoch_length=len(metrics))

    def _iteration(self, engine, batch):
        with torch.no_grad():
            self.network.weight += 1
        self.draws.append((torch.rand(1).item(), np.random.rand(), random.random()))

    def _validate(self, engine):
        self.evaluator.run([self.metrics[engine.state.iteration - 1]])

    def _measure(self, engine, metric):
        engine.state.metrics["dice"] = metric
        engine.state.metric_details = {"dice": None if metric is None else torch.tensor([metric])}


def weight_of(path):
    return torch.load(path, weights_only=True)["weight"].item()


@pytest.mark.parametrize(
    ("metrics", "best"),
    [([0.2, 0.5, NAN, 0.4], 2), ([0.5, 0.2, 0.5, 0.5], 1), ([0.1, 0.2, 0.3, 0.4], 4), ([NAN, None, 0.0, NAN], 3)],
)
def test_the_best_validated_weights_are_kept(tmp_path, metrics, best):
    training = Training(tmp_path, metrics)
    assert weight_of(tmp_path / "model.pt") == best
    assert weight_of(tmp_path / "model_final.pt") == 4
    assert training.checkpoints.best_iteration == best
    assert training.checkpoints.best_metric == metrics[best - 1]


def test_without_a_finite_metric_no_weights_are_the_best(tmp_path):
    assert Training(tmp_path, [NAN, NAN]).checkpoints.best_metric is None
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(("later", "best"), [([0.3, 0.4], 2), ([0.6, 0.4], 3)])
def test_a_resumed_run_beats_the_best_before_it_or_keeps_it(tmp_path, later, best):
    Training(tmp_path, [0.2, 0.5], interval=1)
    (tmp_path / "model_final.pt").unlink()
    training = Training(tmp_path, [None, None, *later], resume=True, interval=1)
    assert training.trainer.state.iteration == 4
    assert weight_of(tmp_path / "model.pt") == best
    assert training.checkpoints.best_iteration == best


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be a whole number of at least 1, got 0"),
        ({"num_kept": 3.0}, r"num_kept must be a whole number of at least 1, got 3\.0"),
        (
            {"schedule": lambda optimizer, _: ReduceLROnPlateau(optimizer)},
            "lr_scheduler must step without a metric, got ReduceLROnPlateau",
        ),
    ],
)
def test_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Training(tmp_path, [0.1], **options)


def test_the_best_weights_of_steps_that_a_resumed_run_has_dropped_are_not_kept(tmp_path, monkeypatch):
    def stop(self, engine):
        self.evaluator.run([self.metrics[engine.state.iteration - 1]])
        if engine.state.iteration == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Training, "_validate", stop)
        with pytest.raises(KeyboardInterrupt):
            Training(tmp_path, [0.1, 0.2, 0.5, 0.1], interval=2)
    assert weight_of(tmp_path / "model.pt") == 2
    training = Training(tmp_path, [None, None, 0.1, 0.1], resume=True, interval=2)
    assert training.checkpoints.best_iteration == 2
    assert weight_of(tmp_path / "model.pt") == 2


def test_a_run_without_a_checkpoint_says_that_it_is_begun_anew(tmp_path, caplog):
    RunDirectory(str(tmp_path)).begin()
    caplog.set_level("INFO")
    assert Training(tmp_path, [0.1, 0.2, 0.3], resume=True, interval=3).trainer.state.iteration == 3
    assert f"no checkpoint in {tmp_path} yet: the run begins anew" in caplog.messages


def test_a_run_that_has_lost_its_checkpoints_keeps_its_history(tmp_path):
    RunDirectory(str(tmp_path)).begin()
    history = "iteration,seconds,loss\n1,1.0,0.5\n2,2.0,0.4\n3,3.0,0.3\n4,4."
    (tmp_path / "history.csv").write_text(history)
    message = f"the run in {tmp_path} has 3 iterations in history.csv, and its checkpoints are gone: copy them back,"
    with assert_refused(message):
        Training(tmp_path, [0.1, 0.2, 0.3], resume=True, interval=2)
    assert (tmp_path / "history.csv").read_text() == history
    # By the interval with which it was begun.
    (tmp_path / "run_config.json").write_text('{"checkpoint_interval": 2}')
    with assert_refused(message):
        Training(tmp_path, [0.1, 0.2, 0.3], resume=True, interval=100)
    (tmp_path / "run_config.json").write_text('{"checkpoint_interval": "$@iterations // 10"}')
    # It was stopped while it wrote the first one, or before.
    assert Training(tmp_path, [0.1, 0.2, 0.3], resume=True, interval=3).trainer.state.iteration == 3


def test_a_resumed_run_goes_on_with_its_scale_of_gradients(tmp_path):
    Training(tmp_path, [0.2, 0.5], interval=1, gradient_scale=8.0)
    (tmp_path / "model_final.pt").unlink()
    training = Training(tmp_path, [None, None, 0.3], resume=True, interval=1, gradient_scale=1024.0)
    assert training.trainer.grad_scaler.get_scale() == 8.0


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"interval": 1}, [4, 5]),
        ({"interval": 1, "num_kept": 3}, [3, 4, 5]),
        ({"interval": 2, "num_kept": 1}, [5]),
        ({"interval": 100}, [5]),
    ],
)
def test_the_newest_checkpoints_are_kept(tmp_path, options, kept):
    Training(tmp_path, [0.1] * 5, **options)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        f"checkpoint_{iteration:08d}.pt" for iteration in kept
    ]


def test_checkpoints_that_cannot_be_read_are_not_kept_in_the_place_of_others(tmp_path):
    Training(tmp_path, [0.1] * 4, interval=2)
    (tmp_path / "model_final.pt").unlink()
    (tmp_path / "checkpoints" / "checkpoint_00000004.pt").write_bytes(b"cut off")
    Training(tmp_path, [0.1] * 3, resume=True, interval=1)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["checkpoint_00000002.pt", "checkpoint_00000003.pt"]


def test_processes_that_see_other_checkpoints_are_not_resumed(tmp_path, monkeypatch):
    Training(tmp_path, [0.2, 0.5], interval=1)
    (tmp_path / "model_final.pt").unlink()
    monkeypatch.setattr("scripts.handlers.checkpoints.from_first_process", lambda tensor: torch.full_like(tensor, 1))
    with assert_refused("process 0 would go on from iteration 2, the first one from 1: resume when all see the same"):
        Training(tmp_path, [None, None, 0.3], resume=True, interval=1)
    # One that sees no checkpoint is asked, too.
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with assert_refused("process 0 would go on from iteration 0, the first one from 1: resume when all see the same"):
        Training(tmp_path, [0.3], resume=True, interval=1)


def test_all_processes_write_after_the_first_has_cleared_the_folder(tmp_path, monkeypatch):
    Training(tmp_path, [0.2])
    (tmp_path / "unreadable_cases.txt").write_text("of the run before\n")
    seen = []
    monkeypatch.setattr(
        "scripts.handlers.checkpoints.wait_for_processes",
        lambda: seen.append((tmp_path / "unreadable_cases.txt").exists()),
    )
    Training(tmp_path, [0.2, 0.5], overwrite=True)
    assert seen == [False]


def test_weights_are_saved_for_machines_without_the_device(tmp_path):
    class OnAnotherDevice(torch.nn.Linear):
        def state_dict(self, *arguments, **options):
            state = super().state_dict(*arguments, **options)
            # What cannot be written unless it is brought to the CPU first.
            state["weight"] = mock.Mock(cpu=lambda weight=state["weight"]: weight)
            return state

    network = OnAnotherDevice(1, 1)
    checkpoints = Checkpoints(RunDirectory(str(tmp_path)), network, network, None, None, evaluator=None)
    state = SimpleNamespace(iteration=0, key_metric_name="dice", metrics={"dice": 0.5}, metric_details={})
    checkpoints._keep_best(SimpleNamespace(state=state))
    checkpoints._finish(SimpleNamespace(state=state))
    (tmp_path / "inference.json").write_text('{"spacing": [1.25, 1.25, 1.25]}')
    options = {"spacing": [1.25, 1.25, 1.25], "inference_file": str(tmp_path / "inference.json")}
    PublishedWeights(str(tmp_path / "published.pt"), network, **options)._publish(None)
    for name in ("model.pt", "model_final.pt", "published.pt"):
        assert weight_of(tmp_path / name) == network.weight.item()


def test_weights_are_published_for_an_inference_at_their_spacing_alone(tmp_path):
    file = tmp_path / "inference.json"
    file.write_text('{"spacing": null}')
    PublishedWeights("model.pt", torch.nn.Linear(1, 1), spacing=None, inference_file=str(file))
    with pytest.raises(BundleError, match=r"^spacing is \[1, 1, 2\] in this training, but None in .*inference\.json"):
        PublishedWeights("model.pt", torch.nn.Linear(1, 1), spacing=[1, 1, 2], inference_file=str(file))
    # As --spacing 1,1,2 is read.
    file.write_text('{"spacing": [1, 1, 2]}')
    PublishedWeights("model.pt", torch.nn.Linear(1, 1), spacing=(1, 1, 2), inference_file=str(file))


def test_a_checkpoint_brings_back_every_generator_and_the_schedule(tmp_path):
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    straight = Training(tmp_path / "straight", [0.1] * 4)
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    Training(tmp_path / "resumed", [0.1] * 2, interval=1)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(99)
    resumed = Training(tmp_path / "resumed", [0.1] * 4, resume=True, interval=1)
    assert resumed.draws == straight.draws[2:]
    assert resumed.network.weight.item() == straight.network.weight.item() == 4


def test_another_process_draws_anew_and_leaves_other_settings_alone(tmp_path, monkeypatch):
    Training(tmp_path, [0.1] * 2, interval=1)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    draws = []
    for rank in (1, 2, 1):
        monkeypatch.setattr(checkpoints, "is_main_process", lambda: False)
        monkeypatch.setattr(checkpoints, "process_rank", lambda rank=rank: rank)
        torch.manual_seed(2**40)
        draws.append(Training(tmp_path, [0.1] * 4, resume=True, interval=1).draws)
    assert draws[0] == draws[2] != draws[1]
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.deterministic


@pytest.mark.parametrize(
    ("saved", "restored"), [(2, [("set_rng_state_all", ["a", "b"])]), (1, [("manual_seed_all", 47)])]
)
def test_generators_of_gpus_go_on_or_start_anew(monkeypatch, saved, restored):
    state = {**_random_state(), "cuda": ["a", "b"][:saved]}
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "initial_seed", lambda: 7)
    for name in ("set_rng_state_all", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda value, name=name: calls.append((name, value)))
    _restore_random_state(state, iteration=40)
    assert calls == restored
