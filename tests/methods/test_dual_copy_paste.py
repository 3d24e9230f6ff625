# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, stages, teacher, degenerate batches and resuming of copy and paste with both networks."""

from __future__ import annotations

import pytest
import torch
from resuming import assert_resumed_run_ends_with_the_same_bits
from tiny_pair import DEGENERATE, TinyPair, assert_degenerate_batch_trains, gradient_norm, make_batch

from scripts.losses.consistency import ConsistencyLoss
from scripts.losses.copy_paste import CopyPasteLoss, copy_paste_mask
from scripts.methods.bcp import BidirectionalCopyPaste
from scripts.methods.dual_copy_paste import DualCopyPaste
from scripts.networks.dual_network import DualNetwork
from scripts.schedules import Weight

STUDENTS = ("vnet", "resnet_vnet")


def make_method(network=None, **options):
    options = {"copy_paste": CopyPasteLoss(), "pretrain_iterations": 2, **options}
    return DualCopyPaste(network or TinyPair(), **options).train()


def call(method, batch, step):
    """The output, and the mixtures it was computed of."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixtures = method.mixtures(batch, step)
        torch.manual_seed(0)
        return method(batch, step), mixtures


def draw_box(image):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return copy_paste_mask(image)


@pytest.mark.parametrize("step", [0, 2])
def test_terms_by_hand(step):
    method = make_method(consistency_weight=Weight(0.8, "linear", 4))
    output, mixtures = call(method, make_batch(), step)
    image = torch.cat([mixture.image for mixture in mixtures.values()])
    assert len(image) == 2
    logits = {student: getattr(method.network, student)(image) for student in STUDENTS}
    total = 0.0
    for student in STUDENTS:
        parts = logits[student].split([len(mixture.image) for mixture in mixtures.values()])
        expected = sum(
            CopyPasteLoss()(part, mixture.label, mixture.labeled).item()
            for part, mixture in zip(parts, mixtures.values(), strict=True)
        )
        assert output[f"loss_copy_paste_{student}"].item() == pytest.approx(expected, rel=1e-5)
        total += expected
    consistency = ConsistencyLoss()(logits["vnet"], logits["resnet_vnet"]).item()
    assert output["loss_consistency"].item() == pytest.approx(consistency, rel=1e-5)
    assert output["weight_consistency"] == pytest.approx(0.8 * step / 4)
    assert output["loss"].item() == pytest.approx(total + 0.8 * step / 4 * consistency, rel=1e-5)


def test_its_copy_and_paste_is_that_of_bcp():
    # Without batch normalization the passes do not matter, and BCP of one network is what is left.
    pair, batch = TinyPair(), make_batch()
    pair.vnet.normalization = pair.resnet_vnet.normalization = torch.nn.Identity()
    method = make_method(pair, pretrain_iterations=0, consistency_weight=0.0)
    single = torch.nn.Module()
    single.backbone = pair.vnet
    bcp = BidirectionalCopyPaste(single, copy_paste=CopyPasteLoss(), pretrain_iterations=0)
    bcp.teacher.forward = method.teacher.forward
    expected, _ = call(bcp, batch, 0)
    output, _ = call(method, batch, 0)
    assert output["loss_copy_paste_vnet"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)


def test_first_stage_pastes_each_labeled_crop_into_the_other_one():
    method, batch = make_method(), make_batch(num_labeled=4, num_unlabeled=4)
    _, mixtures = call(method, batch, 1)
    outside = draw_box(batch["image"])
    for name, mixed in (("image", mixtures["pretrain"].image), ("label", mixtures["pretrain"].label)):
        for own, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
            expected = torch.where(outside[own], batch[name][own], batch[name][other])
            assert torch.equal(mixed[own], expected)
    assert mixtures["pretrain"].labeled.all()
    del batch["unlabeled"]
    _, later = call(method, batch, 100)
    assert torch.equal(later["pretrain"].image, mixtures["pretrain"].image)


def test_second_stage_takes_the_label_of_the_averaged_pair():
    method, batch = make_method(), make_batch()
    # Any other answer than the students': the teacher of a later step has weights of its own.
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    method.teacher.network.eval()
    with torch.no_grad():
        probabilities = sum(
            getattr(method.teacher.network, student)(batch["unlabeled"]).softmax(dim=1) for student in STUDENTS
        )
    expected = probabilities.argmax(dim=1, keepdim=True)
    _, mixtures = call(method, batch, 2)
    outside = draw_box(batch["image"][:1])
    inside = ~outside[0]
    kept = mixtures["inward"].label[0][inside]
    of_teacher = expected[0][inside]
    # The largest component stays of what the teacher calls foreground, and nothing is added.
    assert ((kept == of_teacher) | (kept == 0)).all()
    assert kept.any()
    assert torch.equal(mixtures["inward"].label[0][outside[0]], batch["label"][0][outside[0]])
    assert torch.equal(mixtures["outward"].label[0][inside], batch["label"][1][inside])
    assert torch.equal(mixtures["outward"].image[0][outside[0]], batch["unlabeled"][1][outside[0]])


@pytest.mark.parametrize(("student", "other"), [STUDENTS, STUDENTS[::-1]])
@pytest.mark.parametrize("step", [0, 2])
def test_every_term_trains_whom_it_names(student, other, step):
    method = make_method()
    output, _ = call(method, make_batch(), step)
    own, pair = output[f"loss_copy_paste_{student}"], output["loss_consistency"]
    assert gradient_norm(own, getattr(method.network, student)) > 0
    assert gradient_norm(own, getattr(method.network, other)) == 0
    assert gradient_norm(pair, getattr(method.network, student)) > 0


def test_no_term_trains_the_teacher():
    method = make_method()
    call(method, make_batch(), 2)[0]["loss"].backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    own = {id(parameter) for parameter in method.network.parameters()}
    assert {id(parameter) for parameter in method.trainable_parameters()} == own
    assert method.network.training
    assert not any(module.training for module in method.teacher.network.modules())


def test_teacher_follows_both_networks_from_the_border_on():
    method = make_method()
    with torch.no_grad():
        for value in (*method.network.parameters(), *method.network.buffers()):
            value += 1
    method.after_step(0)
    assert not torch.equal(method.teacher.network.vnet.classifier.weight, method.network.vnet.classifier.weight)
    method.after_step(1)
    state = method.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in method.teacher.network.state_dict().items())
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter += 1
    method.after_step(200)
    for own, parameter in zip(method.network.parameters(), method.teacher.network.parameters(), strict=True):
        torch.testing.assert_close(parameter, own - 0.99)


def test_weight_zero_switches_the_consistency_off():
    output, _ = call(make_method(consistency_weight=0.0), make_batch(), 2)
    assert set(output) == {"loss", *(f"loss_copy_paste_{student}" for student in STUDENTS)}


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_batches(kind, step):
    assert_degenerate_batch_trains(make_method, TinyPair, kind, step)


def test_refusals_and_description():
    with pytest.raises(ValueError, match="pretrain_iterations must be a whole number of at least 0, got -1"):
        make_method(pretrain_iterations=-1)
    with pytest.raises(ValueError, match="teacher_mode must be 'training' or 'evaluation', got 'eval'"):
        make_method(teacher_mode="eval")
    with pytest.raises(ValueError, match=r"labeled_batch_size must be even.*, got 3"):
        make_method().check_batch_sizes(3, 2)
    text = make_method(box_fraction=0.5, decay=0.75, consistency_weight=0.3).describe()
    for part in ("box_fraction=0.5", "'decay': 0.75, 'mode': 'evaluation'", "consistency_weight=Weight(0.3,"):
        assert part in text


@pytest.mark.parametrize("pretrain_iterations", [3, 1], ids=["across the border", "in the second stage"])
def test_resumed_run_ends_with_the_same_bits(tmp_path, make_workflow, phantom_dir, pretrain_iterations):
    folder = tmp_path / "run"
    straight = assert_resumed_run_ends_with_the_same_bits(
        make_workflow,
        phantom_dir,
        folder,
        "method_dual_copy_paste",
        iterations=4,
        **{"method_def#pretrain_iterations": pretrain_iterations},
    )
    assert any(name.startswith("teacher.network.resnet_vnet.") for name in straight)
    DualNetwork().load_state_dict(torch.load(folder / "model_final.pt", weights_only=True))
