# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients and degenerate batches of the supervised control."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scripts.losses.rectification import RectificationLoss
from scripts.losses.supervised import SupervisedLoss
from scripts.methods.supervised import SupervisedDualNetwork
from scripts.networks.dual_network import DualNetwork
from scripts.schedules import Weight


class TinyPair(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.vnet = nn.Conv3d(1, num_classes, 3, padding=1)
            self.resnet_vnet = nn.Conv3d(1, num_classes, 3, padding=1)


def make_batch(size=6, num_classes=2):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, size, size, size)
    return {
        "image": 5 * torch.randn(shape, generator=generator),
        "label": torch.randint(num_classes, shape, generator=generator),
        "unlabeled": torch.randn(shape, generator=generator),
    }


def gradients_of(term, module):
    return torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)


def by_hand(logits, label):
    foreground, target = logits.softmax(dim=1)[:, 1], label[:, 0].float()
    overlap = 2 * (foreground * target).sum() + 1e-5
    dice = 1 - overlap / (foreground.square().sum() + target.sum() + 1e-5)
    return F.cross_entropy(logits, label[:, 0]) + dice


def test_loss_is_the_sum_of_both_supervised_losses():
    network, batch = TinyPair(), make_batch()
    output = SupervisedDualNetwork(network, supervised=SupervisedLoss())(batch, 0)
    assert set(output) == {"loss", "loss_supervised_vnet", "loss_supervised_resnet_vnet"}
    total = 0.0
    for name in ("vnet", "resnet_vnet"):
        expected = by_hand(getattr(network, name)(batch["image"]), batch["label"]).item()
        assert output[f"loss_supervised_{name}"].item() == pytest.approx(expected, rel=1e-5)
        total += expected
    assert output["loss"].item() == pytest.approx(total, rel=1e-5)
    assert output["loss"].shape == ()


@pytest.mark.parametrize(("name", "other"), [("vnet", "resnet_vnet"), ("resnet_vnet", "vnet")])
def test_each_term_trains_its_network_alone(name, other):
    network = TinyPair()
    output = SupervisedDualNetwork(network, supervised=SupervisedLoss())(make_batch(), 0)
    term = output[f"loss_supervised_{name}"]
    own = gradients_of(term, getattr(network, name))
    assert all(gradient is not None and gradient.norm() > 0 for gradient in own)
    assert gradients_of(term, getattr(network, other)) == (None, None)


def test_networks_are_independent_without_rectification():
    """A network learns the same whatever the other one is: the control has no tie between them."""
    gradients = []
    for factor in (1.0, -3.0):
        network = TinyPair()
        with torch.no_grad():
            network.resnet_vnet.weight.mul_(factor)
        output = SupervisedDualNetwork(network, supervised=SupervisedLoss())(make_batch(), 0)
        gradients.append(gradients_of(output["loss"], network.vnet))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_rectification_is_weighted_and_trains_both():
    network, batch = TinyPair(), make_batch()
    method = SupervisedDualNetwork(
        network,
        supervised=SupervisedLoss(),
        rectification=RectificationLoss(threshold=0.0),
        rectification_weight=Weight(2.0, "linear", 4),
    )
    output = method(batch, 1)
    assert set(output) == {
        "loss",
        "loss_supervised_vnet",
        "loss_supervised_resnet_vnet",
        "loss_rectification",
        "weight_rectification",
    }
    assert output["weight_rectification"] == 0.5
    supervised = output["loss_supervised_vnet"] + output["loss_supervised_resnet_vnet"]
    assert output["loss"].item() == pytest.approx((supervised + 0.5 * output["loss_rectification"]).item(), rel=1e-6)
    for subnetwork in (network.vnet, network.resnet_vnet):
        assert all(gradient.norm() > 0 for gradient in gradients_of(output["loss_rectification"], subnetwork))

    vnet, resnet_vnet = (subnetwork(batch["image"]) for subnetwork in (network.vnet, network.resnet_vnet))
    expected = RectificationLoss(threshold=0.0)(vnet, resnet_vnet, batch["label"])
    assert output["loss_rectification"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_unlabeled_crops_are_not_looked_at():
    network, batch = TinyPair(), make_batch()
    method = SupervisedDualNetwork(network, supervised=SupervisedLoss(), rectification_weight=0.5)
    expected = method(batch, 0)["loss"].item()
    assert method({**batch, "unlabeled": torch.full_like(batch["image"], torch.nan)}, 0)["loss"].item() == expected
    del batch["unlabeled"]
    assert method(batch, 0)["loss"].item() == expected


@pytest.mark.parametrize("rectification_weight", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["saturated", "constant", "background", "tiny", "three_classes", "no_dispute"])
def test_degenerate_batches(kind, rectification_weight):
    num_classes = 3 if kind == "three_classes" else 2
    network, batch = TinyPair(num_classes), make_batch(1 if kind == "tiny" else 6, num_classes)
    if kind == "saturated":
        batch["image"] *= 1e6
    elif kind == "constant":
        batch["image"].zero_()
    elif kind == "background":
        batch["label"].zero_()
    elif kind == "no_dispute":
        network.resnet_vnet.load_state_dict(network.vnet.state_dict())
    output = SupervisedDualNetwork(network, supervised=SupervisedLoss(), rectification_weight=rectification_weight)(
        batch, 0
    )
    assert all(torch.as_tensor(value).isfinite() for value in output.values())
    output["loss"].backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"rectification_weight must be at least 0.*, got -0\.5"):
        SupervisedDualNetwork(TinyPair(), supervised=SupervisedLoss(), rectification_weight=-0.5)


def test_real_networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = SupervisedDualNetwork(DualNetwork(), supervised=SupervisedLoss(), rectification_weight=0.5).train()
        output = method(make_batch(size=16), 0)
    output["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
