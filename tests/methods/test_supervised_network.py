# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients and degenerate batches of the supervised control with one network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.supervised import SupervisedLoss
from scripts.methods.supervised_network import SupervisedNetwork
from scripts.networks.resnet_vnet import ResNetVNet
from scripts.networks.single_network import SingleNetwork
from scripts.networks.vnet import VNet


class TinySingle(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone = nn.Conv3d(1, num_classes, 3, padding=1)


def make_batch(size=6, num_classes=2):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, size, size, size)
    return {
        "image": 5 * torch.randn(shape, generator=generator),
        "label": torch.randint(num_classes, shape, generator=generator),
        "unlabeled": torch.randn(shape, generator=generator),
    }


def by_hand(logits, label):
    foreground, target = logits.softmax(dim=1)[:, 1], label[:, 0].float()
    overlap = 2 * (foreground * target).sum() + 1e-5
    dice = 1 - overlap / (foreground.square().sum() + target.sum() + 1e-5)
    return F.cross_entropy(logits, label[:, 0]) + dice


def test_loss_by_hand():
    network, batch = TinySingle(), make_batch()
    output = SupervisedNetwork(network, supervised=SupervisedLoss())(batch, 0)
    assert set(output) == {"loss", "loss_supervised"}
    assert output["loss"].item() == output["loss_supervised"].item()
    assert output["loss"].item() == pytest.approx(by_hand(network.backbone(batch["image"]), batch["label"]).item())
    assert output["loss"].shape == ()


def test_unlabeled_crops_are_not_looked_at():
    method, batch = SupervisedNetwork(TinySingle(), supervised=SupervisedLoss()), make_batch()
    expected = method(batch, 0)["loss"].item()
    assert method({**batch, "unlabeled": torch.full_like(batch["image"], torch.nan)}, 0)["loss"].item() == expected
    del batch["unlabeled"]
    assert method(batch, 0)["loss"].item() == expected


@pytest.mark.parametrize("kind", ["saturated", "constant", "background", "tiny", "three_classes", "one_crop"])
def test_degenerate_batches(kind):
    num_classes = 3 if kind == "three_classes" else 2
    network, batch = TinySingle(num_classes), make_batch(1 if kind == "tiny" else 6, num_classes)
    if kind == "saturated":
        batch["image"] *= 1e6
    elif kind == "constant":
        batch["image"].zero_()
    elif kind == "background":
        batch["label"].zero_()
    elif kind == "one_crop":
        batch = {key: value[:1] for key, value in batch.items()}
    output = SupervisedNetwork(network, supervised=SupervisedLoss())(batch, 0)
    assert output["loss"].isfinite()
    output["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("architecture", ["vnet", "resnet_vnet"])
def test_real_networks(architecture):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = SupervisedNetwork(SingleNetwork(architecture), supervised=SupervisedLoss()).train()
        method(make_batch(size=16), 0)["loss"].backward()
    gradients = [parameter.grad for parameter in method.trainable_parameters()]
    assert len(gradients) == len(list(method.network.parameters()))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert method.network.backbone.classifier.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("method_supervised_vnet", VNet),
        ("method_supervised_resnet_vnet", ResNetVNet),
        ("method_upper_bound_vnet", VNet),
    ],
)
def test_configurations(name, backbone, pytestconfig):
    configs = pytestconfig.rootpath / "configs"
    parser = ConfigParser(ConfigParser.load_config_files([configs / "train.json", configs / f"{name}.json"]))
    parser["device"] = "cpu"
    with torch.device("meta"):
        parser["network"] = parser.get_parsed_content("network_def")
    method = parser.get_parsed_content("method_def")
    assert isinstance(method, SupervisedNetwork)
    assert type(method.network.backbone) is backbone
    assert parser.get_parsed_content("unlabeled_batch_size") == 0
    assert parser.get_parsed_content("lists") == ["labeled", "validation"]
    # Half of the cross-entropy and half of the Dice loss, as UA-MT and all that follow it.
    logits = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    label = make_batch(size=4)["label"]
    assert method.supervised(logits, label).item() == pytest.approx(0.5 * by_hand(logits, label).item(), rel=1e-5)
