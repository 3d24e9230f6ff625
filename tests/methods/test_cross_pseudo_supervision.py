# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, degenerate batches and configuration of cross pseudo supervision."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.reliability import ReliabilityFilter
from scripts.losses.supervised import SupervisedLoss
from scripts.methods.cross_pseudo_supervision import CrossPseudoSupervision
from scripts.methods.dual_network import DualNetworkMethod
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
    return CrossPseudoSupervision(network, **{"supervised": SupervisedLoss(0.5, 0.5), **options})


def test_value_by_hand():
    # The V-Net says background with 0.7, the ResNet34-V-Net foreground with 0.9; the label is foreground.
    output = make_method(Answers([0.7, 0.3], [0.1, 0.9]), pseudo_label_weight=0.2)(
        {**make_batch(), "label": torch.ones(2, 1, 6, 6, 6)}, 0
    )
    assert output["loss_pseudo_label"].item() == pytest.approx(-math.log(0.3) - math.log(0.1), rel=1e-5)
    supervised = [0.5 * (-math.log(p) + 1 - 2 * p / (p**2 + 1)) for p in (0.3, 0.9)]
    assert output["loss_supervised_vnet"].item() == pytest.approx(supervised[0], rel=1e-4)
    assert output["loss_supervised_resnet_vnet"].item() == pytest.approx(supervised[1], rel=1e-4)
    expected = sum(supervised) + 0.2 * output["loss_pseudo_label"].item()
    assert output["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_value_of_three_classes_by_hand():
    output = make_method(Answers([0.5, 0.3, 0.2], [0.1, 0.1, 0.8]))(make_batch(num_classes=3), 0)
    assert output["loss_pseudo_label"].item() == pytest.approx(-math.log(0.2) - math.log(0.1), rel=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_it_is_the_dual_network_method_without_its_extras(factor):
    """The factors that differ are arguments of both: that of the supervised loss, and the weight."""
    network, batch = TinyPair(), make_batch()
    supervised, weight = SupervisedLoss(factor, factor), Weight(0.1, "sigmoid", 8)
    outputs = [
        make_method(network, supervised=supervised, pseudo_label_weight=weight)(batch, 3),
        DualNetworkMethod(
            network,
            supervised=supervised,
            pseudo_label_weight=weight,
            pseudo_label_source="cross",
            # Ties with the largest entropy are not reliable there, unless everything is kept.
            reliability=ReliabilityFilter(keep_percent=100),
            rectification_weight=0.0,
            consistency_weight=0.0,
            uncertainty_weight=0.0,
            contrastive_weight=0.0,
        )(batch, 3),
    ]
    assert set(outputs[0]) == set(outputs[1])
    for name in outputs[0]:
        given, wanted = (torch.as_tensor(output[name]).item() for output in outputs)
        assert given == pytest.approx(wanted, rel=1e-5), name
    given, wanted = (torch.autograd.grad(output["loss"], list(network.parameters())) for output in outputs)
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6)


def test_supervised_terms_train_one_network_each_and_pseudo_labels_both():
    network = TinyPair()
    output = make_method(network)(make_batch(), 0)
    for name, claimed in (
        ("loss_supervised_vnet", (True, False)),
        ("loss_supervised_resnet_vnet", (False, True)),
        ("loss_pseudo_label", (True, True)),
    ):
        found = tuple(gradient_norm(output[name], part) > 1e-6 for part in (network.vnet, network.resnet_vnet))
        assert found == claimed, name


def test_a_teaching_network_is_a_constant():
    """The gradient of a network depends on the arg-max of the other alone."""
    network, gradients = TinyPair(), []
    for factor in (1.0, 3.0):
        with torch.no_grad():
            for parameter in network.resnet_vnet.classifier.parameters():
                parameter.mul_(factor)
        term = make_method(network)(make_batch(), 0)["loss_pseudo_label"]
        gradients.append(torch.autograd.grad(term, list(network.vnet.parameters())))
    torch.testing.assert_close(*gradients)


def test_weight_rises_and_the_step_is_an_argument():
    method = make_method(TinyPair(), pseudo_label_weight=Weight(0.1, "sigmoid", 8))
    weights = [method(make_batch(), step)["weight_pseudo_label"] for step in (4, 0, 8, 99)]
    assert weights == pytest.approx([0.1 * math.exp(-1.25), 0.1 * math.exp(-5), 0.1, 0.1])


def test_both_networks_see_labeled_and_unlabeled_crops_at_once():
    network = TinyPair()
    make_method(network)(make_batch(num_labeled=1, num_unlabeled=3), 0)
    assert network.vnet.batch_sizes == network.resnet_vnet.batch_sizes == [4]


@pytest.mark.parametrize("reason", ["no unlabeled crops", "weight 0"])
def test_only_supervised_terms_are_left(reason):
    weight, num_unlabeled = (0.1, 0) if reason == "no unlabeled crops" else (0.0, 2)
    output = make_method(TinyPair(), pseudo_label_weight=weight)(make_batch(num_unlabeled=num_unlabeled), 0)
    assert set(output) == {"loss", "loss_supervised_vnet", "loss_supervised_resnet_vnet"}


@pytest.mark.parametrize(
    "kind", ["saturated", "half", "constant", "background", "tiny", "three_classes", "labeled_only", "one_labeled"]
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
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "half"):
        output = make_method(network)(batch, 0)
    assert all(torch.as_tensor(value).isfinite() for value in output.values())
    assert output["loss"].dtype == torch.float32
    output["loss"].backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"pseudo_label_weight must be at least 0.*, got -0\.1"):
        make_method(TinyPair(), pseudo_label_weight=-0.1)


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
    files = [ROOT / "configs" / f"{name}.json" for name in ("train", "method_cps")]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    # Methods receive their network: they can be built without the weights of the real one.
    parser["network_def"] = TinyPair()
    parser["device"], parser["iterations"] = "cpu", 100
    method = parser.get_parsed_content("method")
    assert isinstance(method, CrossPseudoSupervision)
    weights = [method.pseudo_label_weight(step) for step in (50, 100)]
    assert weights == pytest.approx([0.1 * math.exp(-1.25), 0.1])
    # Half of cross-entropy and Dice: two voxels at p = 1/2, one of them foreground.
    logits, label = torch.zeros(1, 2, 2, 1, 1), torch.tensor([1, 0]).reshape(1, 1, 2, 1, 1)
    assert method.supervised(logits, label).item() == pytest.approx(0.5 * (math.log(2) + 1 / 3), abs=1e-5)
