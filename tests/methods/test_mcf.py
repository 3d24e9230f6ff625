# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, degenerate batches and configuration of MCF."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.supervised import SupervisedLoss
from scripts.methods.mcf import MutualCorrection
from scripts.networks.dual_network import DualNetwork
from scripts.schedules import Weight


class TinyNetwork(nn.Module):
    """One convolution with a ReLU and a 1x1x1 head: the interface of the segmentation networks in a few weights."""

    def __init__(self, seed, num_classes):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution = nn.Conv3d(1, 4, 3, padding=1)
            self.classifier = nn.Conv3d(4, num_classes, 1)
            nn.init.normal_(self.classifier.weight, std=2.0)
        self.batch_sizes = []

    def features(self, image):
        self.batch_sizes.append(len(image))
        return self.convolution(image).relu()

    def head(self, features):
        return self.classifier(features)

    def forward(self, image):
        return self.head(self.features(image))


class TinyPair(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.vnet = TinyNetwork(1, num_classes)
        self.resnet_vnet = TinyNetwork(2, num_classes)


class Answer(nn.Module):
    """Gives the same probabilities at every voxel."""

    def __init__(self, *probabilities):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, image):
        return self.scores[None, :, None, None, None].expand(len(image), -1, *image.shape[2:])


class Answers(nn.Module):
    def __init__(self, vnet, resnet_vnet):
        super().__init__()
        self.vnet, self.resnet_vnet = Answer(*vnet), Answer(*resnet_vnet)


def make_batch(size=6, num_classes=2, num_labeled=2, num_unlabeled=2):
    generator = torch.Generator().manual_seed(0)
    shape = (1, size, size, size)
    batch = {
        "image": torch.randn(num_labeled, *shape, generator=generator),
        "label": torch.randint(num_classes, (num_labeled, *shape), generator=generator),
    }
    if num_unlabeled:
        batch["unlabeled"] = torch.randn(num_unlabeled, *shape, generator=generator)
    return batch


def gradient_norm(term, module):
    gradients = torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)
    return sum(float(gradient.norm()) for gradient in gradients if gradient is not None)


def make_method(network, **options):
    return MutualCorrection(network, **{"supervised": SupervisedLoss(), **options})


def let_win(batch, winner):
    """Labels with which one of the two networks has the lower Dice loss."""
    with torch.no_grad():
        return {**batch, "label": winner(batch["image"]).argmax(dim=1, keepdim=True)}


def by_hand(network, batch, temperature=0.1):
    """The terms for two classes, with masks instead of classes."""
    label = batch["label"][:, 0]
    foreground, dice, supervised = {}, {}, {}
    for name, part in network.named_children():
        logits = part(batch["image"])
        p = foreground[name] = logits.softmax(dim=1)[:, 1]
        dice[name] = 1 - (2 * (p * label).sum() + 1e-5) / (p.square().sum() + label.sum() + 1e-5)
        supervised[name] = F.cross_entropy(logits, label) + dice[name]
    disputed = (foreground["vnet"] > 0.5) ^ (foreground["resnet_vnet"] > 0.5)
    rectification = sum((disputed * (p - label).square()).sum() / disputed.sum() for p in foreground.values())
    winner, loser = sorted(dice, key=lambda name: dice[name].item())
    p = getattr(network, winner)(batch["unlabeled"]).softmax(dim=1).detach()
    target = p.pow(1 / temperature) / p.pow(1 / temperature).sum(dim=1, keepdim=True)
    pseudo_label = (getattr(network, loser)(batch["unlabeled"]).softmax(dim=1) - target).square().mean()
    return {
        "loss_supervised_vnet": supervised["vnet"],
        "loss_supervised_resnet_vnet": supervised["resnet_vnet"],
        "loss_rectification": rectification,
        "loss_pseudo_label": pseudo_label,
    }


def test_value_by_hand():
    # The label is foreground, so the ResNet34-V-Net wins; with T = 1/2 its 0.8 is sharpened to 16/17.
    output = make_method(Answers([0.7, 0.3], [0.2, 0.8]), temperature=0.5)(
        {**make_batch(), "label": torch.ones(2, 1, 6, 6, 6)}, 0
    )
    assert output["loss_pseudo_label"].item() == pytest.approx((0.3 - 16 / 17) ** 2, rel=1e-5)
    # One network alone sees foreground, everywhere.
    assert output["loss_rectification"].item() == pytest.approx(0.7**2 + 0.2**2, rel=1e-5)


def test_value_of_three_classes_by_hand():
    # The label is class 2, so the V-Net wins; all voxels are disputed in both foreground channels.
    rows = [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]
    output = make_method(Answers(*rows), temperature=0.5)({**make_batch(), "label": torch.full((2, 1, 6, 6, 6), 2)}, 0)
    target = [p**2 / (0.01 + 0.04 + 0.49) for p in rows[0]]
    expected = sum((p - q) ** 2 for p, q in zip(rows[1], target, strict=True)) / 3
    assert output["loss_pseudo_label"].item() == pytest.approx(expected, rel=1e-5)
    expected = (0.2**2 + 0.3**2) / 2 + (0.6**2 + 0.8**2) / 2
    assert output["loss_rectification"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("winner", ["vnet", "resnet_vnet"])
def test_terms_and_gradients_are_those_written_by_hand(winner):
    network = TinyPair()
    batch = let_win(make_batch(), getattr(network, winner))
    method = make_method(network, rectification_weight=0.5, pseudo_label_weight=Weight(0.1, "sigmoid", 8))
    output, expected = method(batch, 4), by_hand(network, batch)
    assert set(output) == {"loss", *expected, "weight_rectification", "weight_pseudo_label"}
    for name, value in expected.items():
        assert output[name].item() == pytest.approx(value.item(), rel=1e-4), name
    weight = 0.1 * math.exp(-1.25)
    assert output["weight_rectification"] == 0.5
    assert output["weight_pseudo_label"] == pytest.approx(weight)
    factors = {"loss_rectification": 0.5, "loss_pseudo_label": weight}
    total = sum(factors.get(name, 1.0) * value for name, value in expected.items())
    assert output["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    given, wanted = (torch.autograd.grad(loss, list(network.parameters())) for loss in (output["loss"], total))
    torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("winner", "loser"), [("vnet", "resnet_vnet"), ("resnet_vnet", "vnet")])
def test_each_term_trains_whom_it_claims(winner, loser):
    network = TinyPair()
    output = make_method(network)(let_win(make_batch(), getattr(network, winner)), 0)
    for name, trained in (
        ("loss_supervised_vnet", {"vnet"}),
        ("loss_supervised_resnet_vnet", {"resnet_vnet"}),
        ("loss_rectification", {"vnet", "resnet_vnet"}),
        ("loss_pseudo_label", {loser}),
    ):
        norms = {part: gradient_norm(output[name], module) for part, module in network.named_children()}
        assert {part for part, norm in norms.items() if norm > 1e-6} == trained, name
        assert all(norm == 0 for part, norm in norms.items() if part not in trained), name


def test_the_winner_is_chosen_by_dice_alone():
    # Of 100 voxels one is foreground: 0.9 everywhere has the higher Dice, 0.005 everywhere the lower cross-entropy.
    label = torch.zeros(1, 1, 10, 10, 1, dtype=torch.long)
    label[0, 0, 0, 0, 0] = 1
    batch = {"image": torch.zeros(1, 1, 10, 10, 1), "label": label, "unlabeled": torch.zeros(1, 1, 10, 10, 1)}
    network = Answers([0.995, 0.005], [0.1, 0.9])
    output = make_method(network)(batch, 0)
    assert output["loss_supervised_vnet"] < output["loss_supervised_resnet_vnet"]
    # The V-Net loses.
    assert gradient_norm(output["loss_pseudo_label"], network.vnet) > 0
    assert gradient_norm(output["loss_pseudo_label"], network.resnet_vnet) == 0


def test_without_labeled_foreground_the_resnet_teaches():
    # Over so many voxels both Dice losses are exactly 1.
    network, batch = Answers([0.6, 0.4], [0.3, 0.7]), {**make_batch(16), "label": torch.zeros(2, 1, 16, 16, 16)}
    output = make_method(network)(batch, 0)
    assert gradient_norm(output["loss_pseudo_label"], network.vnet) > 0
    assert gradient_norm(output["loss_pseudo_label"], network.resnet_vnet) == 0


def test_every_disputed_voxel_is_rectified_however_uncertain():
    # Foreground probabilities on the two sides of 1/2; the threshold 0.6 of the later methods would leave all out.
    output = make_method(Answers([0.51, 0.49], [0.49, 0.51]))(make_batch(), 0)
    assert output["loss_rectification"] > 0.4


def test_both_networks_see_labeled_and_unlabeled_crops_at_once():
    network = TinyPair()
    make_method(network)(make_batch(num_labeled=1, num_unlabeled=3), 0)
    assert network.vnet.batch_sizes == network.resnet_vnet.batch_sizes == [4]


def test_terms_are_left_out():
    supervised = {"loss", "loss_supervised_vnet", "loss_supervised_resnet_vnet"}
    rectification = {"loss_rectification", "weight_rectification"}
    pseudo_label = {"loss_pseudo_label", "weight_pseudo_label"}
    network = TinyPair()
    assert set(make_method(network)(make_batch(num_unlabeled=0), 0)) == supervised | rectification
    assert set(make_method(network, pseudo_label_weight=0)(make_batch(), 0)) == supervised | rectification
    assert set(make_method(network, rectification_weight=0)(make_batch(), 0)) == supervised | pseudo_label


@pytest.mark.parametrize(
    "kind",
    ["saturated", "half", "constant", "background", "tiny", "equal", "three_classes", "labeled_only", "one_labeled"],
)
def test_degenerate_batches(kind):
    num_classes = 3 if kind == "three_classes" else 2
    network = TinyPair(num_classes)
    batch = make_batch(
        size=1 if kind == "tiny" else 6,
        num_classes=num_classes,
        num_labeled=1 if kind == "one_labeled" else 2,
        num_unlabeled=0 if kind == "labeled_only" else 2,
    )
    if kind == "saturated":
        batch["image"], batch["unlabeled"] = 1e6 * batch["image"], 1e6 * batch["unlabeled"]
    elif kind == "constant":
        batch["image"].zero_()
        batch["unlabeled"].zero_()
    elif kind == "background":
        batch["label"].zero_()
    elif kind == "equal":
        network.resnet_vnet.load_state_dict(network.vnet.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "half"):
        output = make_method(network)(batch, 0)
    assert all(torch.as_tensor(value).isfinite() for value in output.values())
    assert output["loss"].dtype == torch.float32
    output["loss"].backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0 and at most 1, got {temperature}"):
        make_method(TinyPair(), temperature=temperature)


def test_real_networks_train_every_weight():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = make_method(DualNetwork()).train()
        output = method(make_batch(size=16), 0)
    output["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_configured_options():
    files = [ROOT / "configs" / f"{name}.json" for name in ("train", "method_mcf")]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    # Methods receive their network: they can be built without the weights of the real one.
    parser["network_def"] = TinyPair()
    parser["device"], parser["iterations"] = "cpu", 100
    method = parser.get_parsed_content("method")
    assert isinstance(method, MutualCorrection)
    weights = [method.pseudo_label_weight(step) for step in (50, 100)]
    assert weights == pytest.approx([0.1 * math.exp(-1.25), 0.1])
    assert (method.rectification_weight(0), method.rectification.threshold, method.temperature) == (0.5, 0.0, 0.1)
    # Cross-entropy and Dice: two voxels at p = 1/2, one of them foreground.
    logits, label = torch.zeros(1, 2, 2, 1, 1), torch.tensor([1, 0]).reshape(1, 1, 2, 1, 1)
    assert method.supervised(logits, label).item() == pytest.approx(math.log(2) + 1 / 3, abs=1e-5)
