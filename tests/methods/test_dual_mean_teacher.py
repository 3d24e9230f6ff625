# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, mixtures, teacher, degenerate batches and resuming of both networks with a mean teacher."""

from __future__ import annotations

import pytest
import torch
from conftest import SMALL
from resuming import assert_resumed_run_ends_with_the_same_bits
from tiny_pair import DEGENERATE, TinyPair, assert_degenerate_batch_trains, gradient_norm, make_batch

from scripts.losses.copy_paste import copy_paste_mask
from scripts.losses.supervised import SupervisedLoss
from scripts.methods.dual_mean_teacher import DualMeanTeacher
from scripts.networks.dual_network import DualNetwork
from scripts.schedules import Weight

STUDENTS = ("vnet", "resnet_vnet")


def make_method(network=None, **options):
    return DualMeanTeacher(network or TinyPair(), supervised=SupervisedLoss(), **options).train()


def call(method, batch, step=0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method(batch, step)


def shift_teacher(method):
    """Give the teacher an answer of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("loss", [None, SupervisedLoss(dice_weight=0.0)])
def test_terms_by_hand(loss):
    method = make_method(pseudo_label_weight=Weight(0.8, "linear", 4), pseudo_label=loss)
    batch = make_batch(num_unlabeled=3)
    shift_teacher(method)
    output = call(method, batch, 1)
    teacher, unlabeled = method.teacher.network, batch["unlabeled"]
    assert not any(module.training for module in teacher.modules())
    label = sum(getattr(teacher, student)(unlabeled).softmax(dim=1) for student in STUDENTS).argmax(1, keepdim=True)
    assert 0 < label.float().mean() < 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outside = copy_paste_mask(unlabeled)
    mixed = {}
    for name, part in (("image", unlabeled), ("label", label)):
        mixed[name] = part.clone()
        for index, before in ((0, 2), (1, 0), (2, 1)):
            mixed[name][index][~outside[index]] = part[before][~outside[before]]
    images, taught, total = torch.cat((batch["image"], mixed["image"])), 0.0, 0.0
    for student in STUDENTS:
        logits = getattr(method.network, student)(images)
        supervised = SupervisedLoss()(logits[:2], batch["label"]).item()
        pseudo_label = (loss or SupervisedLoss())(logits[2:], mixed["label"]).item()
        assert output[f"loss_supervised_{student}"].item() == pytest.approx(supervised, rel=1e-5)
        taught += pseudo_label
        total += supervised + 0.2 * pseudo_label
    assert output["loss_pseudo_label"].item() == pytest.approx(taught, rel=1e-5)
    assert output["weight_pseudo_label"] == pytest.approx(0.2)
    assert output["loss"].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("student", "other"), [STUDENTS, STUDENTS[::-1]])
def test_every_term_trains_whom_it_names(student, other):
    method = make_method()
    output = call(method, make_batch())
    assert gradient_norm(output["loss_pseudo_label"], getattr(method.network, student)) > 0
    assert gradient_norm(output[f"loss_supervised_{student}"], getattr(method.network, student)) > 0
    assert gradient_norm(output[f"loss_supervised_{student}"], getattr(method.network, other)) == 0


def test_no_term_trains_the_teacher():
    method = make_method()
    call(method, make_batch())["loss"].backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    own = {id(parameter) for parameter in method.network.parameters()}
    assert {id(parameter) for parameter in method.trainable_parameters()} == own
    assert method.network.training


def test_teacher_follows_both_networks():
    method = make_method()
    with torch.no_grad():
        for value in (*method.network.parameters(), *method.network.buffers()):
            value += 1
    method.after_step(0)
    state = method.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in method.teacher.network.state_dict().items())
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter += 1
    method.after_step(200)
    for own, average in zip(method.network.parameters(), method.teacher.network.parameters(), strict=True):
        torch.testing.assert_close(average, own - 0.99)


def test_weight_zero_is_the_supervised_control():
    batch = make_batch()
    output = call(make_method(pseudo_label_weight=0.0), batch)
    assert set(output) == {"loss", *(f"loss_supervised_{student}" for student in STUDENTS)}
    del batch["unlabeled"]
    assert torch.equal(call(make_method(), batch)["loss"], output["loss"])


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_batches(kind):
    assert_degenerate_batch_trains(make_method, TinyPair, kind, 0)


def test_refusals_and_description():
    with pytest.raises(ValueError, match="box_fraction must be above 0 and below 1, got 1"):
        make_method(box_fraction=1)
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1, got 1"):
        make_method(decay=1)
    with pytest.raises(ValueError, match="unlabeled_batch_size must be at least 2, as crops are mixed, got 1"):
        make_method().check_batch_sizes(2, 1)
    text = make_method(box_fraction=0.5, decay=0.75, pseudo_label_weight=0.3).describe()
    for part in ("box_fraction=0.5", "'decay': 0.75, 'mode': 'evaluation'", "pseudo_label_weight=Weight(0.3,"):
        assert part in text


def test_configuration(make_workflow, phantom_dir, tmp_path):
    overrides = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path / "run"), "iterations": 100}
    workflow = make_workflow("train", "method_dual_mean_teacher", **{**SMALL, **overrides, "val_interval": 100})
    workflow.initialize()
    method = workflow.parser.get_parsed_content("method_def")
    assert [method.pseudo_label_weight(step) for step in (0, 20, 40, 100)] == pytest.approx(
        [0.0067379, 0.2865048, 1, 1], rel=1e-5
    )
    assert (method.box_fraction, method.teacher.decay) == (2 / 3, 0.99)
    assert (method.supervised.dice_weight, method.supervised.cross_entropy_weight) == (1, 1)


def test_resumed_run_ends_with_the_same_bits(tmp_path, make_workflow, phantom_dir):
    folder = tmp_path / "run"
    straight = assert_resumed_run_ends_with_the_same_bits(
        make_workflow, phantom_dir, folder, "method_dual_mean_teacher"
    )
    assert any(name.startswith("teacher.network.resnet_vnet.") for name in straight)
    DualNetwork().load_state_dict(torch.load(folder / "model_final.pt", weights_only=True))
