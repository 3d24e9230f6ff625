# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""An iteration in float16, as on a GPU without bfloat16, here on the CPU: the gradient is scaled."""

from __future__ import annotations

import inspect

import pytest
import torch
from conftest import assert_refused
from monai.engines import SupervisedTrainer

from scripts.methods.base import Method, weighted_sum
from scripts.trainer import NonFiniteLossError, SemiSupervisedTrainer


class Loader:
    """The same labeled crop again and again."""

    def start_at(self, iteration):
        pass

    def __iter__(self):
        while True:
            yield {"fold": torch.zeros(1), "image": torch.ones(1, 1, 32, 1, 1), "label": torch.ones(1, 1, 32, 1, 1)}


class Steep(Method):
    """A loss of 0 whose gradient is a number of choice for each iteration."""

    def __init__(self, network, slopes):
        super().__init__(network)
        self.slopes = slopes

    def forward(self, batch, step):
        # What else a case has, such as its fold, is not for the method.
        assert list(batch) == ["image", "label"]
        zero = self.network.weight.sum() - self.network.weight.detach().sum()
        zero.register_hook(lambda gradient: gradient * self.slopes[step])
        return weighted_sum({"loss_steep": zero * 1.0}, {})

    def after_step(self, step):
        self.seen = [*getattr(self, "seen", []), (step, self.network.weight.item())]


@pytest.fixture
def train(monkeypatch):
    monkeypatch.setattr("scripts.trainer.resolve_precision", lambda precision, device: precision)

    def train(slopes, precision="float16"):
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(network.weight)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        trainer = SemiSupervisedTrainer(
            "cpu",
            1,
            Loader(),
            network,
            Steep(network, slopes),
            optimizer,
            precision=precision,
            epoch_length=len(slopes),
        )
        trainer.weights = []
        trainer.add_event_handler("ITERATION_COMPLETED", lambda: trainer.weights.append(network.weight.item()))
        trainer.run()
        return trainer

    return train


def test_the_step_is_that_without_a_scale(train):
    slopes = [0.5, 2.0**-20, -0.25]
    trainer = train(slopes)
    assert trainer.dtype == torch.float16
    assert trainer.state.terms["gradient_scale"] == 2.0**16
    assert trainer.weights == train(slopes, "float32").weights == [-0.5, -0.5 - 2.0**-20, -0.25 - 2.0**-20]


def test_a_method_hears_of_each_step_when_the_weights_have_moved(train):
    assert train([0.5, 0.25, -1.0], "float32").method.seen == [(0, -0.5), (1, -0.75), (2, 0.25)]


def test_an_infinite_gradient_costs_a_step_and_half_of_the_scale(train):
    trainer = train([0.5, float("inf"), 0.25])
    assert trainer.weights == [-0.5, -0.5, -0.75]
    assert trainer.grad_scaler.get_scale() == 2.0**15


def test_a_gradient_that_no_scale_makes_finite_stops_the_run(train):
    with assert_refused(r"iteration 32: gradient_norm = nan on unnamed cases", NonFiniteLossError):
        train([float("nan")] * 100)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("amp", True, r"amp has no effect on this trainer and must be left out, got True\. Give precision instead\."),
        ("amp_kwargs", {"dtype": torch.bfloat16}, r"amp_kwargs .*\. Give precision instead\."),
        ("accumulation_steps", 4, r"accumulation_steps .* got 4\. Give labeled_batch_size and unlabeled_batch_size"),
        ("compile", "true", r"compile .* got 'true'\."),
        ("compile_kwargs", {"mode": "default"}, r"compile_kwargs .*"),
        ("prepare_batch", len, r"prepare_batch .*"),
        ("to_kwargs", {"copy": True}, r"to_kwargs .*"),
    ],
)
def test_what_an_iteration_does_not_use_is_refused(name, value, message):
    network = torch.nn.Linear(1, 1, bias=False)
    arguments = ("cpu", 1, Loader(), network, Steep(network, []), torch.optim.SGD(network.parameters(), lr=1.0))
    with assert_refused(message):
        SemiSupervisedTrainer(*arguments, epoch_length=1, **{name: value})
    # What MONAI takes when nothing is given.
    default = inspect.signature(SupervisedTrainer).parameters[name].default
    SemiSupervisedTrainer(*arguments, epoch_length=1, **{name: default})


def test_false_of_a_command_line_is_the_default():
    network = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    trainer = SemiSupervisedTrainer(
        "cpu", 1, Loader(), network, Steep(network, []), optimizer, epoch_length=1, amp="false", compile="false"
    )
    assert (trainer.amp, trainer.network) == (False, network)
