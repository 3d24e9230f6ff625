# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, teacher, degenerate batches and resuming of the discrepancy-informed correction."""

from __future__ import annotations

import copy

import pytest
import torch
from resuming import assert_resumed_run_ends_with_the_same_bits
from tiny_pair import DEGENERATE, TinyPair, assert_degenerate_batch_trains, gradient_norm, make_batch
from torch import nn

from scripts.losses.copy_paste import CopyPasteLoss, DistanceCorrectionLoss, EntropyCorrectionLoss, copy_paste_mask
from scripts.methods.bcp import BidirectionalCopyPaste
from scripts.methods.sdcl import StudentDiscrepancyCorrectionLearning
from scripts.networks.dual_network import DualNetwork
from scripts.schedules import Weight

STUDENTS = ("vnet", "resnet_vnet")
COPY_PASTE = {f"loss_{name}_{student}" for name in ("inward", "outward") for student in STUDENTS}
CORRECTIONS = {"loss_distance", "weight_distance", "loss_entropy", "weight_entropy"}


def make_method(network=None, **options):
    options = {"copy_paste": CopyPasteLoss(), "pretrain_iterations": 2, **options}
    return StudentDiscrepancyCorrectionLearning(network or TinyPair(), **options)


def call(method, batch, step):
    """The output, and the mixtures it was computed of."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixtures = method.mixtures(batch, step)
        torch.manual_seed(0)
        return method(batch, step), mixtures


def test_second_stage_by_hand():
    method = make_method(entropy_weight=Weight(0.4, "linear", 8))
    output, mixtures = call(method, make_batch(), 2)
    assert set(output) == {"loss", *COPY_PASTE, *CORRECTIONS}
    total = distance = entropy = 0.0
    for name, (image, label, labeled) in mixtures.items():
        logits = {student: getattr(method.network, student)(image) for student in STUDENTS}
        disputed = logits["vnet"].argmax(dim=1, keepdim=True) != logits["resnet_vnet"].argmax(dim=1, keepdim=True)
        assert disputed.any()
        assert not disputed.all()
        for student in STUDENTS:
            copy_paste = CopyPasteLoss()(logits[student], label, labeled)
            assert output[f"loss_{name}_{student}"].item() == pytest.approx(copy_paste.item(), rel=1e-5)
            total += copy_paste.item()
            distance += DistanceCorrectionLoss()(logits[student], label, labeled, disputed).item()
            entropy += EntropyCorrectionLoss()(logits[student], label, labeled, disputed).item()
    assert output["loss_distance"].item() == pytest.approx(distance, rel=1e-5)
    assert output["loss_entropy"].item() == pytest.approx(entropy, rel=1e-5)
    assert output["weight_distance"] == 0.5
    assert output["weight_entropy"] == pytest.approx(0.1)
    assert output["loss"].item() == pytest.approx(total + 0.5 * distance + 0.1 * entropy, rel=1e-5)


def test_first_stage_has_no_correction():
    method, batch = make_method(), make_batch()
    output, _ = call(method, batch, 1)
    assert set(output) == {"loss", "loss_pretrain_vnet", "loss_pretrain_resnet_vnet"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outside = copy_paste_mask(batch["image"][:1])
    image, label = (torch.where(outside, *batch[name].chunk(2)) for name in ("image", "label"))
    for student in STUDENTS:
        logits = getattr(method.network, student)(image)
        expected = CopyPasteLoss()(logits, label, torch.ones_like(outside)).item()
        assert output[f"loss_pretrain_{student}"].item() == pytest.approx(expected, rel=1e-5)
    del batch["unlabeled"]
    later, _ = call(method, batch, 100)
    assert later["loss"].item() == output["loss"].item()


@pytest.mark.parametrize("step", [0, 2])
def test_vnet_without_corrections_learns_as_in_bcp(step):
    class Single(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

    network, batch = TinyPair(), make_batch()
    method = make_method(network, distance_weight=0.0, entropy_weight=0.0)
    output, _ = call(method, batch, step)
    assert not set(output) & CORRECTIONS
    bcp = BidirectionalCopyPaste(Single(network.vnet), copy_paste=CopyPasteLoss(), pretrain_iterations=2)
    expected, _ = call(bcp, batch, step)
    for name, value in expected.items():
        if name != "loss":
            assert output[f"{name}_vnet"].item() == pytest.approx(value.item(), rel=1e-6)
    vnet = sum(value for name, value in output.items() if name.endswith("_vnet") and "resnet" not in name)
    assert expected["loss"].item() == pytest.approx(vnet.item(), rel=1e-6)


@pytest.mark.parametrize(("student", "other"), [STUDENTS, STUDENTS[::-1]])
def test_each_student_learns_its_own_copy_paste_losses(student, other):
    method = make_method()
    output = call(method, make_batch(), 0)[0] | call(method, make_batch(), 2)[0]
    for name in ("pretrain", "inward", "outward"):
        term = output[f"loss_{name}_{student}"]
        assert gradient_norm(term, getattr(method.network, student)) > 0
        assert gradient_norm(term, getattr(method.network, other)) == 0


def test_corrections_train_both_students_and_no_teacher():
    method = make_method().train()
    output, _ = call(method, make_batch(), 2)
    for name in ("distance", "entropy"):
        for student in STUDENTS:
            assert gradient_norm(output[f"loss_{name}"], getattr(method.network, student)) > 0
    output["loss"].backward()
    assert method.teacher.network.training
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    own = {id(parameter) for parameter in method.network.parameters()}
    assert {id(parameter) for parameter in method.trainable_parameters()} == own


def test_equal_students_have_nothing_to_correct():
    network = TinyPair()
    network.resnet_vnet.load_state_dict(network.vnet.state_dict())
    output, _ = call(make_method(network), make_batch(), 2)
    assert output["loss_distance"].item() == output["loss_entropy"].item() == 0
    output["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_teacher_follows_the_vnet_from_the_border_on():
    method = make_method()
    vnet, teacher = method.network.vnet, method.teacher.network
    with torch.no_grad():
        for value in (*method.network.parameters(), *method.network.buffers()):
            value += 1
    start = copy.deepcopy(teacher.state_dict())
    method.after_step(0)
    assert all(torch.equal(value, start[name]) for name, value in teacher.state_dict().items())
    method.after_step(1)
    assert all(torch.equal(value, vnet.state_dict()[name]) for name, value in teacher.state_dict().items())
    with torch.no_grad():
        for parameter in vnet.parameters():
            parameter += 1
    method.after_step(200)
    for own, parameter in zip(vnet.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(parameter, own - 0.99)


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_batches(kind, step):
    assert_degenerate_batch_trains(make_method, TinyPair, kind, step)


def test_refusals():
    with pytest.raises(ValueError, match=r"distance_weight must be at least 0.*, got -0\.5"):
        make_method(distance_weight=-0.5)
    with pytest.raises(ValueError, match="pretrain_iterations must be a whole number of at least 0, got -1"):
        make_method(pretrain_iterations=-1)
    with pytest.raises(ValueError, match=r"labeled_batch_size must be even.*, got 1"):
        make_method().check_batch_sizes(1, 2)


def test_description_has_all_options():
    text = make_method(pretrain_iterations=7, box_fraction=0.5, decay=0.75, entropy_weight=0.1).describe()
    for part in (
        "pretrain_iterations=7",
        "box_fraction=0.5",
        "'decay': 0.75",
        "distance=DistanceCorrectionLoss{'unlabeled_weight': 0.5}",
        "distance_weight=Weight(0.5,",
        "entropy_weight=Weight(0.1,",
    ):
        assert part in text


@pytest.mark.parametrize("pretrain_iterations", [3, 1], ids=["across the border", "in the second stage"])
def test_resumed_run_ends_with_the_same_bits(tmp_path, make_workflow, phantom_dir, pretrain_iterations):
    folder = tmp_path / "run"
    straight = assert_resumed_run_ends_with_the_same_bits(
        make_workflow,
        phantom_dir,
        folder,
        "method_sdcl",
        iterations=4,
        **{"method_def#pretrain_iterations": pretrain_iterations},
    )
    assert any(name.startswith("teacher.") for name in straight)
    DualNetwork().load_state_dict(torch.load(folder / "model_final.pt", weights_only=True))
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert {"loss_pretrain_vnet", "loss_distance", "weight_entropy", *COPY_PASTE} <= set(header.split(","))
