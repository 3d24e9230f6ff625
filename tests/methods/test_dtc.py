# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, degenerate batches and resuming of DTC."""

from __future__ import annotations

import math

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.signed_distance import SignedDistanceLoss, TaskConsistencyLoss
from scripts.losses.supervised import SupervisedLoss
from scripts.methods.dtc import DualTaskConsistency
from scripts.networks.dual_task_vnet import DualTaskVNet
from scripts.schedules import Weight


class TinyDualTask(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.shared = nn.Conv3d(1, 4, 3, padding=1)
            self.logits = nn.Conv3d(4, num_classes, 1)
            self.distance = nn.Conv3d(4, num_classes - 1, 1)

    def logits_and_distance(self, image):
        features = self.shared(image)
        return self.logits(features), self.distance(features).float().tanh()


def make_batch(size=6, num_classes=2, num_unlabeled=2):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, size, size, size)
    return {
        "image": torch.randn(shape, generator=generator),
        "label": torch.randint(num_classes, shape, generator=generator),
        "unlabeled": torch.randn((num_unlabeled, *shape[1:]), generator=generator),
    }


def make_method(network=None, **options):
    options = {"supervised": SupervisedLoss(cross_entropy_weight=0.0), **options}
    return DualTaskConsistency(network or TinyDualTask(), **options)


def gradients_of(term, module):
    return torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_loss_is_the_weighted_sum_of_its_terms(num_classes):
    network, batch = TinyDualTask(num_classes), make_batch(num_classes=num_classes, num_unlabeled=3)
    output = make_method(network, consistency=TaskConsistencyLoss(5.0), consistency_weight=Weight(1.0, "linear", 4))(
        batch, 1
    )
    logits, distance = network.logits_and_distance(batch["image"])
    _, unlabeled_distance = network.logits_and_distance(batch["unlabeled"])
    unlabeled_logits, _ = network.logits_and_distance(batch["unlabeled"])
    supervised = SupervisedLoss(cross_entropy_weight=0.0)(logits, batch["label"]).item()
    signed_distance = SignedDistanceLoss()(distance, batch["label"]).item()
    foreground = torch.cat((logits, unlabeled_logits)).softmax(dim=1)[:, 1:]
    drawn = (-5 * torch.cat((distance, unlabeled_distance))).sigmoid()
    consistency = (drawn - foreground).square().mean().item()
    expected = {
        "loss_supervised": supervised,
        "loss_distance": signed_distance,
        "loss_consistency": consistency,
        "weight_distance": 0.3,
        "weight_consistency": 0.25,
        "loss": supervised + 0.3 * signed_distance + 0.25 * consistency,
    }
    assert {name: pytest.approx(torch.as_tensor(value).item(), rel=1e-5) for name, value in output.items()} == expected


def test_each_term_trains_its_task_and_the_shared_layers():
    network = TinyDualTask()
    output = make_method(network, consistency=TaskConsistencyLoss(5.0))(make_batch(), 0)
    for term, trained, untouched in (
        ("loss_supervised", [network.logits], [network.distance]),
        ("loss_distance", [network.distance], [network.logits]),
        ("loss_consistency", [network.logits, network.distance], []),
    ):
        for module in (network.shared, *trained):
            assert all(gradient.norm() > 0 for gradient in gradients_of(output[term], module)), term
        for module in untouched:
            assert gradients_of(output[term], module) == (None, None), term


def test_the_steepness_of_the_release_still_trains_near_the_surface():
    network = TinyDualTask()
    output = make_method(network)(make_batch(size=12), 0)
    assert all(gradient.norm() > 0 for gradient in gradients_of(output["loss_consistency"], network.distance))


@pytest.mark.parametrize("where", ["image", "unlabeled"])
def test_consistency_looks_at_both_kinds_of_crops(where):
    batch = make_batch()
    before = make_method()(batch, 0)["loss_consistency"].item()
    batch[where] = -batch[where]
    assert make_method()(batch, 0)["loss_consistency"].item() != pytest.approx(before)


def test_ramp_by_hand():
    method = make_method(consistency_weight=Weight(1.0, "sigmoid", 100))
    assert method(make_batch(), 0)["weight_consistency"] == pytest.approx(math.exp(-5))
    assert method(make_batch(), 50)["weight_consistency"] == pytest.approx(math.exp(-1.25))
    assert method(make_batch(), 500)["weight_consistency"] == 1.0


def test_terms_of_weight_zero_are_not_computed():
    output = make_method(distance_weight=0.0, consistency_weight=0.0)(make_batch(), 0)
    assert set(output) == {"loss", "loss_supervised"}


@pytest.mark.parametrize(
    "kind", ["saturated", "constant", "background", "foreground", "one_crop", "tiny", "three_classes", "no_unlabeled"]
)
def test_degenerate_batches(kind):
    num_classes = 3 if kind == "three_classes" else 2
    network, batch = TinyDualTask(num_classes), make_batch(1 if kind == "tiny" else 6, num_classes)
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
    output = make_method(network)(batch, 0)
    assert "loss_consistency" in output
    assert all(torch.as_tensor(value).isfinite() for value in output.values())
    output["loss"].backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_options_are_told():
    description = make_method().describe()
    assert "distance_weight=Weight(0.3, constant, 0)" in description
    assert "TaskConsistencyLoss{'steepness': 1500.0}" in description


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"consistency_weight must be at least 0.*, got -0\.5"):
        make_method(consistency_weight=-0.5)


def test_real_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = make_method(DualTaskVNet(1, 3)).train()
        output = method(make_batch(16, num_classes=3), 0)
    output["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_configuration(pytestconfig):
    configs = pytestconfig.rootpath / "configs"
    parser = ConfigParser(ConfigParser.load_config_files([configs / "train.json", configs / "method_dtc.json"]))
    with torch.device("meta"):
        parser["network"] = parser.get_parsed_content("network_def")
        method = parser.get_parsed_content("method_def")
    assert type(method) is DualTaskConsistency
    assert type(method.network) is DualTaskVNet
    assert (method.supervised.dice_weight, method.supervised.cross_entropy_weight) == (1.0, 0.0)
    assert method.distance_weight(0) == method.distance_weight(6000) == 0.3
    assert method.consistency.steepness == 1500.0
    assert [method.consistency_weight(step) for step in (0, 3000, 6000)] == pytest.approx(
        [math.exp(-5), math.exp(-1.25), 1]
    )
