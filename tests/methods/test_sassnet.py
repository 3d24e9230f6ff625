# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, modes and degenerate batches of SASSNet; see also test_auxiliary_optimizer.py."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.signed_distance import SignedDistanceLoss
from scripts.losses.supervised import SupervisedLoss
from scripts.methods.sassnet import SASSNet
from scripts.networks.discriminator import Discriminator
from scripts.networks.dual_task_vnet import DualTaskVNet
from scripts.schedules import Weight


class TinyDualTask(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.shared = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.Dropout3d(0.5))
        self.logits = nn.Conv3d(8, num_classes, 1)
        self.distance = nn.Conv3d(8, num_classes - 1, 1)
        self.modes = []

    def logits_and_distance(self, image):
        self.modes.append(self.training)
        features = self.shared(image)
        return self.logits(features), self.distance(features).float().tanh()


class TinyDiscriminator(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.stem = nn.Conv3d(num_classes, 8, 3, padding=1)
        self.dropout = nn.Dropout3d(0.5)
        self.classifier = nn.Linear(8, 2)
        self.modes = []

    def forward(self, distance, image):
        self.modes.append(self.training)
        features = self.dropout(self.stem(torch.cat((distance, image), dim=1)).relu())
        return self.classifier(features.mean(dim=(2, 3, 4)))


def make_batch(size=6, num_classes=2, num_unlabeled=2):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, size, size, size)
    return {
        "image": torch.randn(shape, generator=generator),
        "label": torch.randint(num_classes, shape, generator=generator),
        "unlabeled": torch.randn((num_unlabeled, *shape[1:]), generator=generator),
    }


def make_method(num_classes=2, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, discriminator = TinyDualTask(num_classes), TinyDiscriminator(num_classes)
    options = {"supervised": SupervisedLoss(cross_entropy_weight=0.0), **options}
    return SASSNet(network, discriminator=discriminator, **options).train()


def gradients_of(term, module):
    return torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)


def descend(loss, parameters):
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter -= 0.2 * gradient


def is_trained(term, module):
    return all(gradient is not None and gradient.norm() > 0 for gradient in gradients_of(term, module))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_loss_is_the_weighted_sum_of_its_terms(num_classes):
    method = make_method(num_classes, adversarial_weight=Weight(0.01, "linear", 4))
    batch = make_batch(num_classes=num_classes, num_unlabeled=3)
    torch.manual_seed(0)
    output = method(batch, 1)
    torch.manual_seed(0)
    # One joint pass: batch statistics and dropout are those of all five crops.
    logits, distance = method.network.logits_and_distance(torch.cat((batch["image"], batch["unlabeled"])))
    scores = copy.deepcopy(method.discriminator).eval()(distance[2:], batch["unlabeled"])
    expected = {
        "loss_supervised": SupervisedLoss(cross_entropy_weight=0.0)(logits[:2], batch["label"]).item(),
        "loss_distance": SignedDistanceLoss()(distance[:2], batch["label"]).item(),
        # Class 1 is "labeled": the network wants its unlabeled crops to be taken for labeled ones.
        "loss_adversarial": -scores.log_softmax(dim=1)[:, 1].mean().item(),
        "weight_distance": 0.3,
        "weight_adversarial": 0.0025,
    }
    expected["loss"] = (
        expected["loss_supervised"] + 0.3 * expected["loss_distance"] + 0.0025 * expected["loss_adversarial"]
    )
    assert {name: pytest.approx(torch.as_tensor(value).item(), rel=1e-5) for name, value in output.items()} == expected


def test_loss_of_the_discriminator_by_hand():
    method, batch = make_method(), make_batch(num_unlabeled=3)
    torch.manual_seed(0)
    output = method(batch, 0, auxiliary=True)
    assert set(output) == {"loss", "loss_discriminator"}
    images = torch.cat((batch["image"], batch["unlabeled"]))
    _, distance = copy.deepcopy(method.network).eval().logits_and_distance(images)
    torch.manual_seed(0)
    scores = method.discriminator(distance.detach(), images)
    expected = F.cross_entropy(scores, torch.tensor([1, 1, 0, 0, 0]))
    assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert output["loss_discriminator"].item() == output["loss"].item()


def test_each_term_trains_what_it_should():
    method = make_method()
    network, output = method.network, method(make_batch(), 0)
    for term, trained, untouched in (
        ("loss_supervised", network.logits, network.distance),
        ("loss_distance", network.distance, network.logits),
        ("loss_adversarial", network.distance, network.logits),
    ):
        assert is_trained(output[term], trained), term
        assert gradients_of(output[term], network.shared[0])[0].norm() > 0, term
        assert gradients_of(output[term], untouched) == (None, None), term
    assert set(gradients_of(output["loss"], method.discriminator)) == {None}


def test_discriminator_learns_and_the_network_does_not():
    method = make_method()
    loss = method(make_batch(), 0, auxiliary=True)["loss"]
    assert is_trained(loss, method.discriminator)
    assert set(gradients_of(loss, method.network)) == {None}


def test_both_losses_pull_against_each_other():
    method, batch = make_method(), make_batch()
    for layer in method.modules():
        if isinstance(layer, nn.Dropout3d):
            layer.p = 0.0
    # Crops that are told apart by a glance.
    batch["image"] += 2
    batch["unlabeled"] -= 2
    for _ in range(50):
        descend(method(batch, 0, auxiliary=True)["loss"], list(method.discriminator.parameters()))
    assert method(batch, 0, auxiliary=True)["loss"] < 0.5 * math.log(2)
    found_out = method(batch, 0)["loss_adversarial"]
    assert found_out > math.log(2)
    descend(found_out, [method.network.distance.weight])
    assert method(batch, 0)["loss_adversarial"] < found_out


def test_modes_of_both_passes_and_after_them():
    method, batch = make_method(), make_batch()
    method(batch, 0)
    assert (method.network.modes, method.discriminator.modes) == ([True], [False])
    assert all(module.training for module in method.modules())
    statistics = copy.deepcopy(method.network.shared[1].state_dict())
    method(batch, 0, auxiliary=True)
    assert (method.network.modes, method.discriminator.modes) == ([True, False], [False, True])
    assert all(module.training for module in method.modules())
    assert all(parameter.requires_grad for parameter in method.parameters())
    # The second look at the batch does not move the running statistics.
    assert all(torch.equal(value, statistics[name]) for name, value in method.network.shared[1].state_dict().items())


def test_discriminator_judges_the_deployed_network_without_its_dropout():
    method, batch = make_method(), make_batch()
    method.discriminator.dropout.p = 0.0
    assert len({method(batch, 0, auxiliary=True)["loss"].item() for _ in range(3)}) == 1


def test_optimizer_moves_the_network_alone():
    method = make_method()
    assert {id(p) for p in method.trainable_parameters()} == {id(p) for p in method.network.parameters()}


def test_ramp_by_hand():
    method = make_method(adversarial_weight=Weight(0.01, "sigmoid", 100))
    assert method(make_batch(), 0)["weight_adversarial"] == pytest.approx(0.01 * math.exp(-5))
    assert method(make_batch(), 50)["weight_adversarial"] == pytest.approx(0.01 * math.exp(-1.25))
    assert method(make_batch(), 500)["weight_adversarial"] == pytest.approx(0.01)


def test_terms_of_weight_zero_are_not_computed():
    method = make_method(distance_weight=0.0, adversarial_weight=0.0)
    assert set(method(make_batch(), 0)) == {"loss", "loss_supervised"}
    assert method.discriminator.modes == []


@pytest.mark.parametrize(
    "kind", ["saturated", "constant", "background", "foreground", "one_crop", "tiny", "three_classes", "no_unlabeled"]
)
def test_degenerate_batches(kind):
    num_classes = 3 if kind == "three_classes" else 2
    method, batch = make_method(num_classes), make_batch(1 if kind == "tiny" else 6, num_classes)
    if kind == "saturated":
        batch["image"] *= 1e6
    elif kind == "constant":
        batch["image"].zero_()
    elif kind == "background":
        batch["label"].zero_()
    elif kind == "foreground":
        batch["label"].fill_(1)
    elif kind == "one_crop":
        batch = {name: tensor[:1] for name, tensor in batch.items()}
    elif kind == "no_unlabeled":
        del batch["unlabeled"]
    output = method(batch, 0)
    assert ("loss_adversarial" in output) == (kind != "no_unlabeled")
    auxiliary = method(batch, 0, auxiliary=True)
    assert all(torch.as_tensor(value).isfinite() for value in (*output.values(), *auxiliary.values()))
    output["loss"].backward()
    auxiliary["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_options_are_told():
    description = make_method().describe()
    assert "distance_weight=Weight(0.3, constant, 0)" in description
    assert "adversarial_weight=Weight(0.01, constant, 0)" in description
    assert "discriminator=TinyDiscriminator" in description


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"adversarial_weight must be at least 0.*, got -0\.5"):
        make_method(adversarial_weight=-0.5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_real_networks(precision):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, discriminator = DualTaskVNet(1, 3), Discriminator(1, 3)
        method = SASSNet(network, discriminator=discriminator, supervised=SupervisedLoss(), adversarial_weight=1.0)
        method.train()
        batch = make_batch(16, num_classes=3)
        batch = {name: tensor.repeat(1, 1, 2, 1, 1) for name, tensor in batch.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            output, auxiliary = method(batch, 0), method(batch, 0, auxiliary=True)
    assert all(term.dtype == torch.float32 for term in (output["loss"], auxiliary["loss"]))
    output["loss"].backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    auxiliary["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_configuration(pytestconfig):
    configs = pytestconfig.rootpath / "configs"
    parser = ConfigParser(ConfigParser.load_config_files([configs / "train.json", configs / "method_sassnet.json"]))
    with torch.device("meta"):
        parser["network"] = parser.get_parsed_content("network_def")
        method = parser.get_parsed_content("method_def")
    assert type(method) is SASSNet
    assert type(method.network) is DualTaskVNet
    assert (method.supervised.dice_weight, method.supervised.cross_entropy_weight) == (1.0, 0.0)
    assert method.distance_weight(0) == method.distance_weight(6000) == 0.3
    assert [method.adversarial_weight(step) for step in (0, 3000, 6000)] == pytest.approx(
        [0.01 * math.exp(-5), 0.01 * math.exp(-1.25), 0.01]
    )
    dropouts = [module.p for module in method.discriminator.modules() if isinstance(module, nn.Dropout3d)]
    assert dropouts == [0.5, 0.5, 0.5]


def test_dropout_of_the_discriminator_is_described():
    descriptions = {
        SASSNet(TinyDualTask(2), discriminator=Discriminator(dropout=dropout), supervised=SupervisedLoss()).describe()
        for dropout in (0.1, 0.5)
    }
    assert len(descriptions) == 2
