# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the overlay of LUSEG promises, worked by hand on two crops of a hundred voxels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GRID = (4, 5, 5)
NAMES = ("vnet", "resnet_vnet")
#: Unlabeled voxels: only the better network is certain of the first 20, only the worse one of the next 20.
UNLABELED = {"better": ((20, 6.0), (20, -1.0), (60, 1.0)), "worse": ((20, -1.0), (20, 6.0), (60, -1.0))}
#: Labeled voxels, 50 of the foreground first. Foreground of a probability below 0.6 is said of the 25 with 0.3.
LABELED = {"better": ((50, 2.0), (50, -2.0)), "worse": ((50, -0.2), (25, 0.3), (25, -2.0))}


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def cross_entropy(log_odds):
    """That of a voxel which gets these log-odds for its class."""
    return math.log1p(math.exp(-log_odds))


def spread(runs):
    """One value for each voxel from (number of voxels, value)."""
    return torch.cat([torch.full((count,), value) for count, value in runs])


class Table(nn.Module):
    """A network that says what a table holds, whatever it sees; its features have two channels."""

    def __init__(self, labeled, unlabeled):
        super().__init__()
        log_odds = torch.stack([spread(labeled), spread(unlabeled)])
        self.logits = nn.Parameter(torch.stack([torch.zeros_like(log_odds), log_odds], dim=1).reshape(2, 2, *GRID))
        # The voxels of the two certain groups at right angles, those of the third between them.
        maps = torch.stack([spread(((20, 2.0), (20, 0.0), (60, 3.0))), spread(((20, 0.0), (20, 5.0), (60, 4.0)))])
        self.maps = nn.Parameter(maps.reshape(1, 2, *GRID).repeat(2, 1, 1, 1, 1))

    def features(self, image):
        assert image.shape == (2, 1, *GRID)
        return self.maps

    def head(self, features):
        return self.logits


class Pair(nn.Module):
    def __init__(self, **networks):
        super().__init__()
        self.vnet, self.resnet_vnet = (networks[name] for name in NAMES)


def other(name):
    return NAMES[1 - NAMES.index(name)]


def make_method(better, labeled=LABELED):
    """The shipped method on two tables, of which the network of this name has the better one."""
    tables = {kind: Table(labeled[kind], UNLABELED[kind]) for kind in UNLABELED}
    parser = ConfigParser(ConfigParser.load_config_files([CONFIGS / "train.json", CONFIGS / "method_luseg.json"]))
    parser["network"] = Pair(**{better: tables["better"], other(better): tables["worse"]})
    parser["device"] = "cpu"
    return parser.get_parsed_content("method")


def make_batch():
    label = spread(((50, 1), (50, 0))).reshape(1, 1, *GRID)
    return {"image": torch.zeros(1, 1, *GRID), "label": label, "unlabeled": torch.zeros(1, 1, *GRID)}


def gradients(loss, parameter):
    (gradient,) = torch.autograd.grad(loss, [parameter], retain_graph=True, allow_unused=True)
    return torch.zeros_like(parameter) if gradient is None else gradient


@pytest.mark.parametrize("better", NAMES)
def test_pseudo_labels_by_hand(better):
    method = make_method(better)
    loss = method(make_batch(), 0)["loss_pseudo_label"]
    # 40 of 100 voxels are among the 20 % most certain of either network; the better one says 1 and 0 there.
    of_better = 100 / 40 * (20 * cross_entropy(6.0) + 20 * cross_entropy(1.0)) / 40
    of_worse = 100 / 40 * (20 * cross_entropy(-1.0) + 20 * cross_entropy(-6.0)) / 40
    assert loss.item() == pytest.approx(of_better + of_worse, rel=1e-5)
    for name in NAMES:
        network = getattr(method.network, name)
        labeled, unlabeled = gradients(loss, network.logits)
        assert not labeled.any()
        reliable = unlabeled[1].flatten() != 0
        assert reliable.tolist() == [True] * 40 + [False] * 60
        # Where its log-odds fall, the network learns foreground.
        assert (unlabeled[1].flatten()[:40] < 0).tolist() == [True] * 20 + [False] * 20
        assert not gradients(loss, network.maps).any()


@pytest.mark.parametrize("better", NAMES)
def test_contrast_by_hand(better):
    method = make_method(better)
    loss = method(make_batch(), 0)["loss_contrastive"]
    # Prototypes at right angles, of what the better network says of the reliable voxels. The uncertain ones point to
    # (0.6, 0.8) and are background to the network that learns, whose prototype is (0, 1).
    assert loss.item() == pytest.approx(math.hypot(0.6, 0.2) + math.sqrt(2), rel=1e-5)
    # Only the loser learns by it.
    assert not gradients(loss, getattr(method.network, better).maps).any()
    labeled, unlabeled = gradients(loss, getattr(method.network, other(better)).maps)
    assert unlabeled.any()
    assert not labeled.any()


@pytest.mark.parametrize("better", NAMES)
def test_rectification_by_hand(better):
    loss = make_method(better)(make_batch(), 0)["loss_rectification"]
    # The better network alone is confident of the first 50 voxels, and no network of foreground elsewhere.
    assert loss.item() == pytest.approx((1 - sigmoid(2.0)) ** 2 + (1 - sigmoid(-0.2)) ** 2, rel=1e-5)


@pytest.mark.parametrize("better", NAMES)
def test_loss_is_the_sum_of_its_terms(better):
    output = make_method(better)(make_batch(), 0)

    def dice(overlap, squares):
        return 1 - (2 * overlap + 1e-5) / (squares + 50 + 1e-5)

    of_better = cross_entropy(2.0) + dice(50 * sigmoid(2.0), 50 * sigmoid(2.0) ** 2 + 50 * sigmoid(-2.0) ** 2)
    of_worse = (50 * cross_entropy(-0.2) + 25 * cross_entropy(-0.3) + 25 * cross_entropy(2.0)) / 100 + dice(
        50 * sigmoid(-0.2), 50 * sigmoid(-0.2) ** 2 + 25 * sigmoid(0.3) ** 2 + 25 * sigmoid(-2.0) ** 2
    )
    assert output[f"loss_supervised_{better}"].item() == pytest.approx(of_better, rel=1e-5)
    assert output[f"loss_supervised_{other(better)}"].item() == pytest.approx(of_worse, rel=1e-5)
    terms = {"rectification": 0.5, "pseudo_label": 1.0, "contrastive": 0.1 * math.exp(-5)}
    assert {name for name in output if name.startswith("weight_")} == {f"weight_{name}" for name in terms}
    total = of_better + of_worse + sum(weight * output[f"loss_{name}"].item() for name, weight in terms.items())
    assert output["loss"].item() == pytest.approx(total, rel=1e-5)


def test_the_whole_supervised_loss_decides_who_teaches():
    # Five voxels at which it is wrong and certain cost the network of the better Dice its cross-entropy.
    labeled = {"better": ((50, 0.5), (50, -0.5)), "worse": ((45, 2.0), (5, -30.0), (50, -2.0))}
    method = make_method("vnet", labeled)
    output = method(make_batch(), 0)
    probabilities = [network.logits[0].softmax(dim=0)[1].flatten() for network in method.network.children()]
    label = spread(((50, 1), (50, 0)))
    dice = [2 * (p * label).sum() / (p.square().sum() + label.sum()) for p in probabilities]
    assert dice[0] < dice[1]
    assert output["loss_supervised_vnet"] < output["loss_supervised_resnet_vnet"]
    assert not gradients(output["loss_contrastive"], method.network.vnet.maps).any()
    assert gradients(output["loss_contrastive"], method.network.resnet_vnet.maps).any()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1 * math.exp(-5)),
        (149, 0.1 * math.exp(-5)),
        (150, 0.1 * math.exp(-5 * (39 / 40) ** 2)),
        (3000, 0.1 * math.exp(-5 / 4)),
        (5999, 0.1 * math.exp(-5 / 1600)),
        (6000, 0.1),
    ],
)
def test_the_contrast_rises_in_forty_stairs_and_the_rest_does_not(step, expected):
    output = make_method("vnet")(make_batch(), step)
    assert output["weight_contrastive"] == pytest.approx(expected)
    assert (output["weight_rectification"], output["weight_pseudo_label"]) == (0.5, 1.0)
