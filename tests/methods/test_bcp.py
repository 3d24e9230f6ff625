# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Stages, mixtures, teacher, degenerate batches and resuming of bidirectional copy-paste."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from resuming import assert_resumed_run_ends_with_the_same_bits
from torch import nn

from scripts.losses.copy_paste import CopyPasteLoss, copy_paste_mask
from scripts.methods.bcp import BidirectionalCopyPaste
from scripts.methods.copy_paste import CopyPasteMethod
from scripts.networks.single_network import SingleNetwork


class TinyBackbone(nn.Module):
    """Convolution, batch normalization, ReLU and a head; remembers what it has seen."""

    def __init__(self, num_classes):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.convolution = nn.Conv3d(1, 4, 3, padding=1)
            self.normalization = nn.BatchNorm3d(4)
            self.classifier = nn.Conv3d(4, num_classes, 1)
        self.seen = []

    def forward(self, image):
        self.seen.append(image.detach())
        return self.classifier(self.normalization(self.convolution(image)).relu())


class TinySingle(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.backbone = TinyBackbone(num_classes)


class Blobs(nn.Module):
    """A teacher that sees two blobs of class 1, of five and of two voxels, in every crop."""

    LABEL = torch.tensor([1, 1, 1, 1, 1, 0, 1, 1])

    def forward(self, image):
        foreground = self.LABEL[: image.shape[2]].float()[None, None, :, None, None].expand_as(image)
        return torch.cat((1 - foreground, foreground), dim=1)


def make_method(network=None, **options):
    options = {"copy_paste": CopyPasteLoss(), "pretrain_iterations": 2, **options}
    return BidirectionalCopyPaste(network or TinySingle(), **options)


def make_batch(size=8, num_classes=2, num_labeled=2, num_unlabeled=2):
    generator = torch.Generator().manual_seed(0)
    shape = (1, size, size, size)
    batch = {
        "image": torch.randn(num_labeled, *shape, generator=generator),
        "label": torch.randint(num_classes, (num_labeled, *shape), generator=generator).float(),
    }
    if num_unlabeled:
        batch["unlabeled"] = torch.randn(num_unlabeled, *shape, generator=generator)
    return batch


def call(method, batch, step, seed=0):
    """The output, and the box that was drawn for it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outside = copy_paste_mask(batch["image"][: len(batch["image"]) // 2])
        torch.manual_seed(seed)
        return method(batch, step), outside


def gradients_of(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)


# --- first stage ------------------------------------------------------------------------------------------------------


def test_first_stage_mixes_the_labeled_halves():
    method, batch = make_method(), make_batch(num_labeled=4, num_unlabeled=4)
    batch["unlabeled"].fill_(torch.nan)
    output, outside = call(method, batch, 1)
    assert set(output) == {"loss", "loss_pretrain"}
    image = batch["image"]
    mixed = torch.where(outside, image[:2], image[2:])
    assert len(method.network.backbone.seen) == 1
    assert torch.equal(method.network.backbone.seen[0], mixed)
    assert method.teacher.network.seen == []

    logits = method.network.backbone(mixed)
    label = torch.where(outside, batch["label"][:2], batch["label"][2:])
    p = logits.softmax(dim=1)
    y = torch.stack([label[:, 0] == 0, label[:, 0] == 1], dim=1).float()
    axes = (2, 3, 4)
    dice = 1 - (2 * (p * y).sum(dim=axes) + 1e-5) / ((p + y).sum(dim=axes) + 1e-5)
    expected = (nn.functional.cross_entropy(logits, label[:, 0].long()) + dice.mean()) / 2
    assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert output["loss"].item() == output["loss_pretrain"].item()


def test_first_stage_goes_on_without_unlabeled_crops():
    method, batch = make_method(), make_batch(num_unlabeled=0)
    (first, _), (later, _) = call(method, batch, 0), call(method, batch, 100)
    assert set(later) == {"loss", "loss_pretrain"}
    assert later["loss"].item() == first["loss"].item()


# --- second stage -----------------------------------------------------------------------------------------------------


def test_second_stage_mixes_in_both_directions():
    method, batch = make_method(), make_batch(num_labeled=4, num_unlabeled=4)
    output, outside = call(method, batch, 2)
    assert set(output) == {"loss", "loss_inward", "loss_outward"}
    image, unlabeled = batch["image"], batch["unlabeled"]
    inward, outward = method.network.backbone.seen
    assert torch.equal(inward, torch.where(outside, image[:2], unlabeled[:2]))
    assert torch.equal(outward, torch.where(outside, unlabeled[2:], image[2:]))
    first, second = method.teacher.network.seen
    assert torch.equal(first, unlabeled[:2])
    assert torch.equal(second, unlabeled[2:])
    expected = output["loss_inward"] + output["loss_outward"]
    assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_second_stage_weighs_labeled_and_pseudo_labeled_regions():
    method, batch = make_method(), make_batch()
    method.teacher.network = Blobs()
    output, outside = call(method, batch, 2)
    # Only the larger blob is left of what the teacher says.
    pseudo_label = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0])[None, None, :, None, None].expand_as(batch["label"][:1])
    assert (pseudo_label != Blobs.LABEL[None, None, :, None, None]).any()
    loss, backbone = CopyPasteLoss(0.5), method.network.backbone
    inward, outward = backbone.seen
    label = torch.where(outside, batch["label"][:1].long(), pseudo_label)
    assert output["loss_inward"].item() == pytest.approx(loss(backbone(inward), label, outside).item(), rel=1e-6)
    label = torch.where(outside, pseudo_label, batch["label"][1:].long())
    assert output["loss_outward"].item() == pytest.approx(loss(backbone(outward), label, ~outside).item(), rel=1e-6)


def test_each_mixture_has_the_pseudo_label_of_its_own_crop():
    method, batch = make_method(), make_batch()
    # Another slab of each crop is foreground.
    batch["unlabeled"] = torch.zeros(2, 1, 8, 8, 8)
    batch["unlabeled"][0, :, :3] = batch["unlabeled"][1, :, 5:] = 1.0

    class Reads(nn.Module):
        def forward(self, image):
            return torch.cat((0.5 - image, image - 0.5), dim=1)

    method.teacher.network = Reads()
    with torch.random.fork_rng():
        mixtures = method.mixtures(batch, 2)
    for position, name in enumerate(("inward", "outward")):
        mixture, crop = mixtures[name], batch["unlabeled"][position : position + 1]
        unlabeled = ~mixture.labeled
        assert torch.equal(mixture.label[unlabeled].float(), crop[unlabeled])
        assert torch.equal(mixture.image[unlabeled], crop[unlabeled])
        assert torch.equal(mixture.label[mixture.labeled], batch["label"][position : position + 1][mixture.labeled])
        # Of the other crop it would be another.
        assert not torch.equal(crop[unlabeled], batch["unlabeled"].flip(0)[position : position + 1][unlabeled])


def test_pseudo_label_is_the_arg_max_of_three_classes():
    method, batch = make_method(TinySingle(3)), make_batch(num_classes=3)
    # A ramp of the image selects the class, so that every class is one slab.
    ramp = torch.arange(8.0)[None, None, :, None, None].expand(2, 1, 8, 8, 8)

    class Slabs(nn.Module):
        def forward(self, image):
            return torch.cat((1 - image, (image - 3.5).abs().neg() + 1, image - 6), dim=1)

    method.teacher.network = Slabs()
    with torch.random.fork_rng():
        mixtures = method.mixtures({**batch, "unlabeled": ramp}, 2)
    expected = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2])[None, None, :, None, None].expand(1, 1, 8, 8, 8)
    assert torch.equal(Slabs()(ramp[:1]).argmax(dim=1, keepdim=True), expected)
    for name in ("inward", "outward"):
        unlabeled = ~mixtures[name].labeled
        assert torch.equal(mixtures[name].label[unlabeled].long(), expected[unlabeled])


# --- teacher and gradients --------------------------------------------------------------------------------------------


def change(module, amount):
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value += amount


def test_teacher_starts_at_the_border_and_follows_after_it():
    method = make_method(pretrain_iterations=3, decay=0.99)
    student, teacher = method.network.backbone, method.teacher.network
    start = copy.deepcopy(teacher.state_dict())
    for step in range(2):
        change(student, 1)
        method.after_step(step)
        assert all(torch.equal(value, start[name]) for name, value in teacher.state_dict().items())

    change(student, 1)
    method.after_step(2)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())

    # From here on parameters alone: 1 - 1 / 4 in step 3, and 0.99 as soon as that is less.
    before = copy.deepcopy(teacher.state_dict())
    change(student, 1)
    method.after_step(3)
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.25)
    for name, buffer in teacher.named_buffers():
        assert torch.equal(buffer, before[name])
    before = copy.deepcopy(teacher.state_dict())
    method.after_step(99)
    for (name, parameter), own in zip(teacher.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(parameter, 0.99 * before[name] + 0.01 * own)


def test_without_first_stage_the_teacher_follows_from_the_start():
    method = make_method(pretrain_iterations=0)
    assert set(method(make_batch(), 0)) == {"loss", "loss_inward", "loss_outward"}
    change(method.network.backbone, 1)
    method.after_step(0)
    for own, parameter in zip(method.network.backbone.parameters(), method.teacher.parameters(), strict=True):
        torch.testing.assert_close(own, parameter)


@pytest.mark.parametrize(("step", "names"), [(0, ["pretrain"]), (2, ["inward", "outward"])])
def test_every_term_trains_the_student_alone(step, names):
    method = make_method().train()
    assert method.teacher.network.training
    output = method(make_batch(), step)
    for name in names:
        gradients = gradients_of(output[f"loss_{name}"], method.network)
        # The bias before a batch normalization has no effect.
        for (parameter, _), gradient in zip(method.network.named_parameters(), gradients, strict=True):
            assert gradient is not None, parameter
            assert gradient.norm() > 0 or parameter == "backbone.convolution.bias"
    output["loss"].backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    own = {id(parameter) for parameter in method.network.parameters()}
    assert {id(parameter) for parameter in method.trainable_parameters()} == own


def test_teacher_sees_batch_statistics_of_its_own():
    method = make_method().train()
    before = copy.deepcopy(method.teacher.network.normalization.running_mean)
    method(make_batch(), 2)
    assert not torch.equal(method.teacher.network.normalization.running_mean, before)


# --- degenerate batches and refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("kind", ["background", "constant", "saturated", "no_unlabeled", "three_classes", "small"])
def test_degenerate_batches(kind, step):
    num_classes = 3 if kind == "three_classes" else 2
    batch = make_batch(size=2 if kind == "small" else 6, num_classes=num_classes)
    if kind == "background":
        batch["label"].zero_()
    elif kind == "constant":
        batch["image"].zero_()
        batch["unlabeled"].zero_()
    elif kind == "no_unlabeled":
        del batch["unlabeled"]
    method = make_method(TinySingle(num_classes))
    if kind == "saturated":
        with torch.no_grad():
            method.network.backbone.classifier.weight *= 1e6
    output = method(batch, step)
    assert all(torch.as_tensor(value).isfinite() for value in output.values())
    output["loss"].backward()
    for parameter in method.network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_crops_that_cannot_be_paired_are_refused():
    method = make_method()
    for allowed in ((2, 2), (4, 4), (4, 0)):
        method.check_batch_sizes(*allowed)
    with pytest.raises(ValueError, match=r"labeled_batch_size must be at least 1 for .*, got 0"):
        method.check_batch_sizes(0, 2)
    with pytest.raises(ValueError, match=r"labeled_batch_size must be even.*, got 1"):
        method.check_batch_sizes(1, 2)
    with pytest.raises(ValueError, match=r"labeled_batch_size must be even.*, got 3"):
        method.check_batch_sizes(3, 0)
    with pytest.raises(ValueError, match=r"unlabeled_batch_size must be.* got 4 beside labeled_batch_size 2"):
        method.check_batch_sizes(2, 4)


def test_a_first_stage_as_long_as_the_training_is_refused():
    make_method(pretrain_iterations=7).check_iterations(8)
    with pytest.raises(ValueError, match=r"pretrain_iterations must be below the 7 iterations of the training.* got 7"):
        make_method(pretrain_iterations=7).check_iterations(7)


def test_options_are_refused():
    with pytest.raises(ValueError, match="pretrain_iterations must be a whole number of at least 0, got -1"):
        make_method(pretrain_iterations=-1)
    with pytest.raises(ValueError, match=r"pretrain_iterations must be a whole number .*, got 2\.5"):
        make_method(pretrain_iterations=2.5)
    with pytest.raises(ValueError, match=r"box_fraction must be above 0 and below 1, got 1\.0"):
        make_method(box_fraction=1.0)
    with pytest.raises(ValueError, match=r"decay must be at least 0 and below 1, got 1\.0"):
        make_method(decay=1.0)
    with pytest.raises(NotImplementedError, match="CopyPasteMethod must implement student"):
        CopyPasteMethod(TinySingle(), copy_paste=CopyPasteLoss(), pretrain_iterations=1)


def test_description_has_all_options():
    text = make_method(pretrain_iterations=7, box_fraction=0.5, decay=0.75).describe()
    for part in ("pretrain_iterations=7", "box_fraction=0.5", "'decay': 0.75", "'unlabeled_weight': 0.5"):
        assert part in text


def test_autocast():
    method = make_method()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(make_batch(), 2)
    output["loss"].backward()
    assert output["loss"].dtype == torch.float32
    assert output["loss"].isfinite()


# --- shipped configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "iterations", "pretrain_iterations"),
    [
        ("method_bcp", 17000, 2000),
        ("method_bcp", 6000, 705),
        ("method_bcp", 4, 0),
        ("method_sdcl", 14200, 3200),
        ("method_sdcl", 6000, 1352),
        ("method_dual_copy_paste", 1000, 200),
    ],
)
def test_share_of_the_first_stage(name, iterations, pretrain_iterations):
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{file}.json") for file in ("train", name)])
    parser["iterations"] = iterations
    assert parser.get_parsed_content("method_def#pretrain_iterations") == pretrain_iterations
    assert parser.get_parsed_content("method_def#box_fraction") == 2 / 3


@pytest.mark.parametrize("architecture", ["vnet", "resnet_vnet"])
def test_real_network(architecture):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = make_method(SingleNetwork(architecture)).train()
        batch = {name: value.repeat(1, 1, 4, 2, 2) for name, value in make_batch().items()}
        output = method(batch, 2)
    output["loss"].backward()
    for name, parameter in method.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("pretrain_iterations", [3, 1], ids=["across the border", "in the second stage"])
def test_resumed_run_ends_with_the_same_bits(tmp_path, make_workflow, phantom_dir, pretrain_iterations):
    folder = tmp_path / "run"
    straight = assert_resumed_run_ends_with_the_same_bits(
        make_workflow,
        phantom_dir,
        folder,
        "method_bcp",
        iterations=4,
        **{"method_def#pretrain_iterations": pretrain_iterations},
    )
    assert any(name.startswith("teacher.") for name in straight)
    SingleNetwork().load_state_dict(torch.load(folder / "model_final.pt", weights_only=True))
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert {"loss_pretrain", "loss_inward", "loss_outward"} <= set(header.split(","))
