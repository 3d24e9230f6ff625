# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, degenerate batches, options and configurations of the dual-network method."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.consistency import ConsistencyLoss
from scripts.losses.contrastive import PrototypeContrastiveLoss
from scripts.losses.pseudo_label import PseudoLabelLoss
from scripts.losses.rectification import RectificationLoss
from scripts.losses.reliability import ReliabilityFilter
from scripts.losses.supervised import SupervisedLoss
from scripts.losses.uncertainty import UncertaintyLoss
from scripts.methods.base import Method
from scripts.methods.dual_network import DualNetworkMethod
from scripts.methods.supervised import SupervisedDualNetwork
from scripts.networks.dual_network import DualNetwork
from scripts.schedules import Weight

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TERMS = ("rectification", "consistency", "uncertainty", "pseudo_label", "contrastive")


class TinyNetwork(nn.Module):
    """One convolution with a ReLU and a 1x1x1 head: the interface of the segmentation networks in 150 weights."""

    def __init__(self, seed, num_classes):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution = nn.Conv3d(1, 4, 3, padding=1)
            self.classifier = nn.Conv3d(4, num_classes, 1)
        # Wide enough that some predictions are confident and some are not.
        nn.init.normal_(self.classifier.weight, std=2.0, generator=torch.Generator().manual_seed(seed))
        self.dtype = torch.float32
        self.drops = False
        self.batch_sizes = []

    def features(self, image):
        self.batch_sizes.append(len(image))
        return self.convolution(image).relu()

    def head(self, features):
        # Instead of a dropout: the first of the four channels is off.
        channels = features.new_tensor([0 if self.drops else 1, 1, 1, 1])
        return self.head_without_dropout(features * channels.view(4, 1, 1, 1))

    def head_without_dropout(self, features):
        return self.classifier(features).to(self.dtype)

    def forward(self, image):
        return self.head(self.features(image))


class TinyPair(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.vnet = TinyNetwork(1, num_classes)
        self.resnet_vnet = TinyNetwork(2, num_classes)

    def forward(self, image):
        return (self.vnet(image).softmax(dim=1) + self.resnet_vnet(image).softmax(dim=1)) / 2


class Recording(nn.Module):
    """A loss that remembers what it was asked and what it said."""

    #: What a method reads of a contrastive loss.
    num_classes = 2

    def __init__(self, loss):
        super().__init__()
        self.loss = loss
        self.arguments = []
        self.results = []

    def forward(self, *arguments, **options):
        self.arguments.append((*arguments, options))
        self.results.append(self.loss(*arguments, **options))
        return self.results[-1]


def make_batch(size=6, num_classes=2, num_labeled=2, num_unlabeled=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, size, size, size)
    batch = {
        "image": torch.randn(num_labeled, *shape, generator=generator),
        "label": torch.randint(num_classes, (num_labeled, *shape), generator=generator),
    }
    if num_unlabeled:
        batch["unlabeled"] = torch.randn(num_unlabeled, *shape, generator=generator)
    if not num_labeled:
        del batch["image"], batch["label"]
    return batch


def let_win(batch, winner):
    """Labels with which one of the two networks has the lower supervised loss."""
    with torch.no_grad():
        return {**batch, "label": winner(batch["image"]).argmax(dim=1, keepdim=True)}


def make_method(network, **options):
    options = {"supervised": SupervisedLoss(), "contrastive": make_contrastive(), **options}
    return DualNetworkMethod(network, **options)


def make_contrastive(num_classes=2, form="hinge", margin=1.5):
    return PrototypeContrastiveLoss(num_classes, form=form, margin=margin, sample_fraction=1.0, min_reliable=1)


def only(term, network, **options):
    """A method with one term beside the supervised ones."""
    weights = {f"{name}_weight": 1.0 if name == term else 0.0 for name in TERMS}
    return make_method(network, **{**weights, **options})


def gradient_norm(term, module):
    gradients = torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)
    return sum(float(gradient.norm()) for gradient in gradients if gradient is not None)


def gradients_of(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


def assert_trains(term, network, *, vnet, resnet_vnet):
    """The term moves exactly the networks that it claims to train."""
    for subnetwork, claimed in ((network.vnet, vnet), (network.resnet_vnet, resnet_vnet)):
        norm = gradient_norm(term, subnetwork)
        assert norm > 1e-6 if claimed else norm == 0


# --- which term trains which network ----------------------------------------------------------------------------------


def test_supervised_terms_train_one_network_each():
    network = TinyPair()
    output = only(None, network)(make_batch(), 0)
    assert_trains(output["loss_supervised_vnet"], network, vnet=True, resnet_vnet=False)
    assert_trains(output["loss_supervised_resnet_vnet"], network, vnet=False, resnet_vnet=True)
    assert set(output) == {"loss", "loss_supervised_vnet", "loss_supervised_resnet_vnet"}


def test_rectification_trains_both_on_labeled_crops():
    network, rectification = TinyPair(), Recording(RectificationLoss())
    output = only("rectification", network, rectification=rectification)(make_batch(num_unlabeled=3), 0)
    assert_trains(output["loss_rectification"], network, vnet=True, resnet_vnet=True)
    assert [len(logits) for logits in rectification.arguments[0][:3]] == [2, 2, 2]


@pytest.mark.parametrize("mode", ["voxel", "volume"])
@pytest.mark.parametrize(("region", "num_crops"), [("all", 4), ("unlabeled", 2)])
def test_consistency_trains_both(mode, region, num_crops):
    network, consistency = TinyPair(), Recording(ConsistencyLoss(mode))
    output = only("consistency", network, consistency=consistency, consistency_region=region)(make_batch(), 0)
    assert_trains(output["loss_consistency"], network, vnet=True, resnet_vnet=True)
    assert [len(logits) for logits in consistency.arguments[0][:2]] == [num_crops, num_crops]


@pytest.mark.parametrize("target", ["soft", "hard"])
@pytest.mark.parametrize(("region", "num_crops"), [("all", 4), ("unlabeled", 2)])
@pytest.mark.parametrize(
    ("roles", "winner", "vnet", "resnet_vnet"),
    [
        ("fixed", "vnet", False, True),
        ("fixed", "resnet_vnet", False, True),
        ("winner", "vnet", False, True),
        ("winner", "resnet_vnet", True, False),
        ("symmetric", "vnet", True, True),
        ("symmetric", "resnet_vnet", True, True),
    ],
)
def test_uncertainty_trains_the_student(target, region, num_crops, roles, winner, vnet, resnet_vnet):
    network, uncertainty = TinyPair(), Recording(UncertaintyLoss(target))
    method = only("uncertainty", network, uncertainty=uncertainty, uncertainty_region=region, roles=roles)
    output = method(let_win(make_batch(), getattr(network, winner)), 0)
    assert_trains(output["loss_uncertainty"], network, vnet=vnet, resnet_vnet=resnet_vnet)
    assert all(len(logits) == num_crops for arguments in uncertainty.arguments for logits in arguments[:2])
    assert output["loss_uncertainty"].item() == pytest.approx(torch.stack(uncertainty.results).mean().item())


@pytest.mark.parametrize("winner", ["vnet", "resnet_vnet"])
@pytest.mark.parametrize("source", ["cross", "self", "winner", "union"])
def test_pseudo_labels_train_each_network_by_its_own_part(source, winner):
    network, pseudo_label = TinyPair(), Recording(PseudoLabelLoss())
    batch = let_win(make_batch(), getattr(network, winner))
    output = only(
        "pseudo_label",
        network,
        pseudo_label=pseudo_label,
        pseudo_label_source=source,
        reliability_combination="or" if source == "union" else "own",
    )(batch, 0)
    assert_trains(output["loss_pseudo_label"], network, vnet=True, resnet_vnet=True)
    of_vnet, of_resnet_vnet = pseudo_label.results
    assert_trains(of_vnet, network, vnet=True, resnet_vnet=False)
    assert_trains(of_resnet_vnet, network, vnet=False, resnet_vnet=True)
    assert output["loss_pseudo_label"].item() == pytest.approx((of_vnet + of_resnet_vnet).item())

    # What each network was taught, and that no gradient can pass there.
    with torch.no_grad():
        logits = {name: getattr(network, name)(batch["unlabeled"]) for name in ("vnet", "resnet_vnet")}
    classes = {name: value.argmax(dim=1, keepdim=True) for name, value in logits.items()}
    masks = {name: ReliabilityFilter()(value) for name, value in logits.items()}
    teachers = {
        "cross": ("resnet_vnet", "vnet"),
        "self": ("vnet", "resnet_vnet"),
        "winner": (winner, winner),
        "union": (None, None),
    }[source]
    for name, teacher, arguments in zip(("vnet", "resnet_vnet"), teachers, pseudo_label.arguments, strict=True):
        student_logits, target, reliable, _ = arguments
        assert torch.equal(student_logits, logits[name])
        if teacher is None:
            assert torch.equal(target, ((classes["vnet"] == 1) | (classes["resnet_vnet"] == 1)).long())
            assert torch.equal(reliable, masks["vnet"] | masks["resnet_vnet"])
        else:
            assert torch.equal(target, classes[teacher])
            assert torch.equal(reliable, masks[teacher])
        assert student_logits.requires_grad
        assert not target.requires_grad
        assert not reliable.requires_grad


@pytest.mark.parametrize("form", ["hinge", "infonce", "literal", "own_class_minimized"])
@pytest.mark.parametrize(
    ("learner", "winner", "vnet", "resnet_vnet"),
    [
        ("student", "vnet", False, True),
        ("student", "resnet_vnet", False, True),
        ("loser", "vnet", False, True),
        ("loser", "resnet_vnet", True, False),
        ("both", "vnet", True, True),
    ],
)
def test_contrastive_trains_the_learner(form, learner, winner, vnet, resnet_vnet):
    network, contrastive = TinyPair(), Recording(make_contrastive(form=form))
    method = only("contrastive", network, contrastive=contrastive, contrastive_network=learner)
    batch = let_win(make_batch(), getattr(network, winner))
    output = method(batch, 0)
    assert_trains(output["loss_contrastive"], network, vnet=vnet, resnet_vnet=resnet_vnet)
    # It works on features, which the head does not make.
    for subnetwork in (network.vnet, network.resnet_vnet):
        assert gradient_norm(output["loss_contrastive"], subnetwork.classifier) == 0
    assert output["loss_contrastive"].item() == pytest.approx(torch.stack(contrastive.results).mean().item())
    learners = [network.vnet] * vnet + [network.resnet_vnet] * resnet_vnet
    for subnetwork, (features, pseudo_label, reliable, options) in zip(learners, contrastive.arguments, strict=True):
        with torch.no_grad():
            assert torch.equal(features, subnetwork.features(batch["unlabeled"]))
            assert torch.equal(options["labeled_features"], subnetwork.features(batch["image"]))
            logits = subnetwork(batch["unlabeled"])
        assert torch.equal(options["label"], batch["label"])
        assert torch.equal(pseudo_label, logits.argmax(dim=1, keepdim=True))
        assert torch.equal(reliable, ReliabilityFilter()(logits))


@pytest.mark.parametrize("winner", ["vnet", "resnet_vnet"])
@pytest.mark.parametrize("source", ["winner", "union"])
def test_prototypes_are_made_of_what_both_networks_learn(source, winner):
    network, contrastive = TinyPair(), Recording(make_contrastive())
    method = only(
        "contrastive",
        network,
        contrastive=contrastive,
        contrastive_network="loser",
        pseudo_label_source=source,
        reliability_combination="or",
    )
    batch = let_win(make_batch(), getattr(network, winner))
    method(batch, 0)
    with torch.no_grad():
        logits = {name: getattr(network, name)(batch["unlabeled"]) for name in ("vnet", "resnet_vnet")}
    classes = {name: value.argmax(dim=1, keepdim=True) for name, value in logits.items()}
    loser = "vnet" if winner == "resnet_vnet" else "resnet_vnet"
    reliable = torch.logical_or(*(ReliabilityFilter()(value) for value in logits.values()))
    learned = classes[winner] if source == "winner" else classes["vnet"] | classes["resnet_vnet"]
    ((_, given, mask, _),) = contrastive.arguments
    assert torch.equal(mask, reliable)
    assert torch.equal(given[reliable], learned[reliable])
    assert torch.equal(given[~reliable], classes[loser][~reliable])
    assert not torch.equal(learned[reliable], classes[loser][reliable])


def test_pseudo_labels_may_be_made_without_dropout():
    network, pseudo_label, contrastive = TinyPair(), Recording(PseudoLabelLoss()), Recording(make_contrastive())
    network.vnet.drops = network.resnet_vnet.drops = True
    options = {"pseudo_label": pseudo_label, "contrastive": contrastive, "contrastive_network": "both"}
    method = only("pseudo_label", network, **options, pseudo_label_dropout=False, contrastive_weight=1.0)
    batch = make_batch()
    output = method(batch, 0)
    features = [part.features(batch["unlabeled"]) for part in network.children()]
    parts = list(zip(network.children(), features, strict=True))
    whole = [part.head_without_dropout(maps).detach() for part, maps in parts]
    dropped = [part.head(maps) for part, maps in parts]
    classes = [logits.argmax(dim=1, keepdim=True) for logits in whole]
    assert not any(torch.equal(a, b.argmax(dim=1, keepdim=True)) for a, b in zip(classes, dropped, strict=True))
    reliable = [ReliabilityFilter()(logits) for logits in whole]
    # Each network learns, with its dropout, what the other says without one.
    for call, logits, target, mask in zip(
        pseudo_label.arguments, dropped, reversed(classes), reversed(reliable), strict=True
    ):
        for given, wanted in zip(call[:3], (logits, target, mask), strict=True):
            torch.testing.assert_close(given, wanted)
    for call, maps, own, mask in zip(contrastive.arguments, features, classes, reliable, strict=True):
        for given, wanted in zip(call[:3], (maps, own, mask), strict=True):
            torch.testing.assert_close(given, wanted)
    assert_trains(output["loss_pseudo_label"], network, vnet=True, resnet_vnet=True)


def test_combinations_of_reliability_reach_the_losses():
    for combination, combine in (("and", torch.logical_and), ("or", torch.logical_or)):
        network, pseudo_label = TinyPair(), Recording(PseudoLabelLoss())
        batch = make_batch()
        method = only("pseudo_label", network, pseudo_label=pseudo_label, reliability_combination=combination)
        method(batch, 0)
        masks = [ReliabilityFilter()(subnetwork(batch["unlabeled"])) for subnetwork in network.children()]
        assert not torch.equal(*masks)
        for _, _, reliable, _ in pseudo_label.arguments:
            assert torch.equal(reliable, combine(*masks))


# --- the sum ----------------------------------------------------------------------------------------------------------


def test_loss_is_the_weighted_sum_of_its_terms():
    weights = {
        "rectification": 0.5,
        "consistency": Weight(2.0),
        "uncertainty": Weight(0.25, "linear", 8),
        "pseudo_label": Weight(3.0, "sigmoid", 8),
        "contrastive": Weight(0.1, "paper_literal", 8),
    }
    method = make_method(TinyPair(), **{f"{name}_weight": weight for name, weight in weights.items()})
    output = method(make_batch(), 4)
    expected = {
        "rectification": 0.5,
        "consistency": 2.0,
        "uncertainty": 0.125,
        "pseudo_label": 3 * math.exp(-1.25),
        "contrastive": 0.1 * math.e,
    }
    assert set(output) == {
        "loss",
        "loss_supervised_vnet",
        "loss_supervised_resnet_vnet",
        *(f"loss_{name}" for name in TERMS),
        *(f"weight_{name}" for name in TERMS),
    }
    total = output["loss_supervised_vnet"] + output["loss_supervised_resnet_vnet"]
    for name, weight in expected.items():
        assert output[f"weight_{name}"] == pytest.approx(weight)
        assert output[f"loss_{name}"] > 0
        total = total + weight * output[f"loss_{name}"]
    assert output["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    for name, value in output.items():
        if name.startswith("loss"):
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert value.requires_grad
        else:
            assert isinstance(value, float)


def test_a_weight_of_zero_leaves_a_term_out():
    for name in TERMS:
        loss = Recording(nn.Identity())
        output = make_method(TinyPair(), **{f"{name}_weight": 0.0, name: loss})(make_batch(), 0)
        assert f"loss_{name}" not in output
        assert f"weight_{name}" not in output
        assert not loss.results


def test_a_ramp_that_starts_at_zero_keeps_its_term():
    output = only("consistency", TinyPair(), consistency_weight=Weight(1.0, "linear", 10))(make_batch(), 0)
    assert output["weight_consistency"] == 0
    assert output["loss_consistency"] > 0
    supervised = output["loss_supervised_vnet"] + output["loss_supervised_resnet_vnet"]
    assert output["loss"].item() == supervised.item()


def test_default_contrastive_is_refused_unless_switched_off():
    with pytest.raises(ValueError, match="contrastive must be given unless contrastive_weight is 0"):
        DualNetworkMethod(TinyPair(), supervised=SupervisedLoss())
    DualNetworkMethod(TinyPair(), supervised=SupervisedLoss(), contrastive_weight=0.0)


def test_both_networks_see_labeled_and_unlabeled_crops_at_once():
    network = TinyPair()
    make_method(network)(make_batch(num_labeled=1, num_unlabeled=3), 0)
    assert network.vnet.batch_sizes == network.resnet_vnet.batch_sizes == [4]


def test_unlabeled_terms_are_absent_without_unlabeled_crops():
    batch = make_batch(num_unlabeled=0)
    output = make_method(TinyPair())(batch, 0)
    present = {"rectification", "consistency", "uncertainty"}
    assert {name for name in TERMS if f"loss_{name}" in output} == present
    assert {name for name in TERMS if f"weight_{name}" in output} == present
    regions = {"consistency_region": "unlabeled", "uncertainty_region": "unlabeled"}
    output = make_method(TinyPair(), **regions)(batch, 0)
    assert {name for name in TERMS if f"loss_{name}" in output} == {"rectification"}


def test_unlabeled_crops_do_not_reach_the_labeled_terms():
    network, batch = TinyPair(), make_batch()
    other = {**batch, "unlabeled": make_batch(seed=1)["unlabeled"]}
    outputs = [make_method(network)(given, 0) for given in (batch, other)]
    for name in ("supervised_vnet", "supervised_resnet_vnet", "rectification"):
        assert outputs[0][f"loss_{name}"].item() == pytest.approx(outputs[1][f"loss_{name}"].item(), rel=1e-6)
    for name in ("consistency", "uncertainty", "pseudo_label", "contrastive"):
        assert outputs[0][f"loss_{name}"].item() != pytest.approx(outputs[1][f"loss_{name}"].item(), rel=1e-6)


def test_the_step_is_an_argument():
    method, batch = make_method(TinyPair(), pseudo_label_weight=Weight(1.0, "linear", 4)), make_batch()
    weights = [method(batch, step)["weight_pseudo_label"] for step in (3, 0, 3, 9)]
    assert weights == [0.75, 0.0, 0.75, 1.0]


# --- against losses written by hand -----------------------------------------------------------------------------------


def supervised_by_hand(logits, label):
    foreground, target = logits.softmax(dim=1)[:, 1], label[:, 0].float()
    overlap = 2 * (foreground * target).sum() + 1e-5
    dice = 1 - overlap / (foreground.square().sum() + target.square().sum() + 1e-5)
    return F.cross_entropy(logits, label[:, 0]) + dice


def rectification_by_hand(logits, other, label):
    foreground, other_foreground = logits.softmax(dim=1)[:, 1], other.softmax(dim=1)[:, 1].detach()
    disputed = (foreground.detach() >= 0.6) ^ (other_foreground >= 0.6)
    return (disputed * (foreground - label[:, 0]).square()).sum() / disputed.sum()


def uncertainty_by_hand(student, teacher):
    log_student, teacher = student.log_softmax(dim=1), teacher.detach().softmax(dim=1)
    divergence = (teacher * (teacher.log() - log_student)).sum(dim=1)
    cross_entropy = F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")
    return (torch.exp(-divergence) * cross_entropy).mean() + divergence.mean()


def test_without_extras_it_is_cross_pseudo_supervision():
    network, batch, weight = TinyPair(), make_batch(), 0.3
    method = only(
        "pseudo_label",
        network,
        pseudo_label_weight=weight,
        reliability=ReliabilityFilter(keep_percent=100),
        pseudo_label_source="cross",
        contrastive=None,
    )
    output = method(batch, 0)

    vnet, resnet_vnet = network.vnet(batch["image"]), network.resnet_vnet(batch["image"])
    expected = supervised_by_hand(vnet, batch["label"]) + supervised_by_hand(resnet_vnet, batch["label"])
    vnet, resnet_vnet = network.vnet(batch["unlabeled"]), network.resnet_vnet(batch["unlabeled"])
    cross = F.cross_entropy(vnet, resnet_vnet.argmax(dim=1)) + F.cross_entropy(resnet_vnet, vnet.argmax(dim=1))
    expected = expected + weight * cross

    assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    for given, wanted in zip(gradients_of(output["loss"], network), gradients_of(expected, network), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6)


def released(network, **options):
    return DualNetworkMethod(
        network,
        **{
            "supervised": SupervisedLoss(),
            "pseudo_label_weight": 0.0,
            "contrastive_weight": 0.0,
            "uncertainty": UncertaintyLoss("hard"),
            **options,
        },
    )


@pytest.mark.parametrize("winner", ["vnet", "resnet_vnet"])
def test_released_variant_by_hand_whoever_wins(winner):
    network = TinyPair()
    batch = let_win(make_batch(), getattr(network, winner))
    output = released(network)(batch, 0)

    label, images = batch["label"], torch.cat((batch["image"], batch["unlabeled"]))
    vnet, resnet_vnet = network.vnet(images), network.resnet_vnet(images)
    labeled_vnet, labeled_resnet_vnet = vnet[:2], resnet_vnet[:2]
    expected = (
        supervised_by_hand(labeled_vnet, label)
        + supervised_by_hand(labeled_resnet_vnet, label)
        + 0.5 * rectification_by_hand(labeled_vnet, labeled_resnet_vnet, label)
        + 0.5 * rectification_by_hand(labeled_resnet_vnet, labeled_vnet, label)
        + (1 - F.cosine_similarity(vnet.softmax(dim=1), resnet_vnet.softmax(dim=1), dim=1)).mean()
        + uncertainty_by_hand(resnet_vnet, vnet)
    )
    assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    for given, wanted in zip(gradients_of(output["loss"], network), gradients_of(expected, network), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"reliability": ReliabilityFilter(keep_percent=20)},
        {"reliability": ReliabilityFilter(scope="per_class"), "reliability_combination": "and"},
        {"pseudo_label": PseudoLabelLoss("total_over_valid"), "pseudo_label_source": "winner"},
        {"pseudo_label_source": "union", "reliability_combination": "or"},
        {"contrastive": make_contrastive(), "contrastive_network": "loser"},
    ],
)
def test_released_variant_does_not_depend_on_pseudo_label_settings(options):
    network, batch = TinyPair(), make_batch()
    given, wanted = (released(network, **extra)(batch, 7) for extra in (options, {}))
    assert given["loss"].item() == wanted["loss"].item()
    for a, b in zip(gradients_of(given["loss"], network), gradients_of(wanted["loss"], network), strict=True):
        torch.testing.assert_close(a, b)


# --- one batch or two -------------------------------------------------------------------------------------------------


class NormalizedPair(TinyPair):
    """A pair with batch normalization."""

    def __init__(self):
        super().__init__()
        for network in self.children():
            network.convolution = nn.Sequential(network.convolution, nn.BatchNorm3d(4))


def test_separate_passes_without_batch_normalization_compute_the_same():
    network, batch = TinyPair(), make_batch(num_unlabeled=3)
    joint, separate = (make_method(network, passes=passes)(batch, 7) for passes in ("joint", "separate"))
    assert network.vnet.batch_sizes == network.resnet_vnet.batch_sizes == [5, 3, 2]
    for name, value in joint.items():
        assert float(separate[name]) == pytest.approx(float(value), rel=1e-5), name
    for a, b in zip(gradients_of(separate["loss"], network), gradients_of(joint["loss"], network), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("passes", ["joint", "separate"])
def test_separate_passes_normalize_labeled_crops_as_if_they_were_alone(passes):
    network, batch = NormalizedPair(), make_batch()
    batch["unlabeled"] = 3 * batch["unlabeled"] + 1
    method = make_method(network, passes=passes)
    alone = method({key: batch[key] for key in ("image", "label")}, 0)
    together = method(batch, 0)
    for name in ("loss_supervised_vnet", "loss_supervised_resnet_vnet"):
        assert (together[name].item() == pytest.approx(alone[name].item(), rel=1e-5)) is (passes == "separate")


def test_how_crops_pass_is_told():
    assert "passes=joint" in make_method(TinyPair()).describe()
    assert "passes=separate" in make_method(TinyPair(), passes="separate").describe()


def test_prototypes_are_made_where_the_pseudo_label_of_the_winner_counts():
    network, contrastive = TinyPair(), Recording(make_contrastive())
    reliability = ReliabilityFilter(keep_percent=50.0)
    options = {"contrastive_network": "loser", "pseudo_label_source": "winner"}
    method = only("contrastive", network, contrastive=contrastive, reliability=reliability, **options)
    batch = let_win(make_batch(), network.vnet)
    method(batch, 0)
    _, class_map, mask, _ = contrastive.arguments[0]
    with torch.no_grad():
        teaching = network.vnet(batch["unlabeled"])
    assert torch.equal(mask, reliability(teaching))
    assert torch.equal(class_map[mask], teaching.argmax(dim=1, keepdim=True)[mask])


def test_batch_normalization_remembers_both_of_separate_passes():
    network, batch = NormalizedPair(), make_batch()
    norm = network.vnet.convolution[1]
    convolution = network.vnet.convolution[0]
    means = [convolution(batch[key]).mean(dim=(0, 2, 3, 4)) for key in ("unlabeled", "image")]
    make_method(network, passes="separate")(batch, 0)
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.1 * means[0] + 0.1 * means[1])


# --- degenerate batches -----------------------------------------------------------------------------------------------

VARIANTS = {
    "paper": {},
    "symmetric": {
        "roles": "symmetric",
        "reliability": {"scope": "per_class"},
        "uncertainty_region": "unlabeled",
        "contrastive_network": "both",
        "passes": "separate",
    },
    "infonce": {"form": "infonce", "roles": "winner"},
    "literal": {"pseudo_label_source": "self", "form": "literal", "rectification_weight": 0.0},
    "luseg": {
        "roles": "winner",
        "reliability": {"keep_percent": 20.0},
        "reliability_combination": "or",
        "pseudo_label": "total_over_valid",
        "pseudo_label_source": "winner",
        "consistency_weight": 0.0,
        "uncertainty_weight": 0.0,
        "contrastive_network": "loser",
        "form": "own_class_minimized",
    },
    "everything_reliable": {"reliability": {"keep_percent": 100.0}, "reliability_combination": "and"},
    "union": {"pseudo_label_source": "union", "reliability_combination": "and"},
}


def make_variant(name, network, num_classes=2):
    options = dict(VARIANTS[name])
    form, kind = options.pop("form", "hinge"), options.pop("pseudo_label", "none")
    return DualNetworkMethod(
        network,
        supervised=SupervisedLoss(),
        reliability=ReliabilityFilter(**options.pop("reliability", {})),
        pseudo_label=PseudoLabelLoss(kind),
        contrastive=PrototypeContrastiveLoss(num_classes, form=form),
        **options,
    )


def assert_finite_training(method, batch):
    output = method(batch, 0)
    for name, value in output.items():
        assert torch.as_tensor(value).isfinite(), f"{name} is {value}"
    output["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
    return output


def scale_heads(network, factor):
    for subnetwork in network.children():
        with torch.no_grad():
            subnetwork.classifier.weight.mul_(factor)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ordinary_batch(variant):
    assert_finite_training(make_variant(variant, TinyPair()), make_batch())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_saturated_logits(variant, dtype):
    network = TinyPair()
    # Half precision ends at 65,504.
    scale_heads(network, 1e3 if dtype == torch.float16 else 1e6)
    for subnetwork in network.children():
        subnetwork.dtype = dtype
    assert_finite_training(make_variant(variant, network), make_batch())


@pytest.mark.parametrize("variant", VARIANTS)
def test_constant_images(variant):
    batch = {key: torch.zeros_like(value) for key, value in make_batch().items()}
    assert_finite_training(make_variant(variant, TinyPair()), batch)


def test_one_entropy_everywhere_teaches_nothing():
    network = TinyPair()
    nn.init.zeros_(network.vnet.classifier.weight)
    nn.init.zeros_(network.resnet_vnet.classifier.weight)
    output = only("pseudo_label", network)(make_batch(), 0)
    assert output["loss_pseudo_label"].item() == 0
    assert output["loss_pseudo_label"].requires_grad
    assert gradient_norm(output["loss_pseudo_label"], network) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_background_alone(variant):
    network, batch = TinyPair(), make_batch()
    # No foreground in the label, and none predicted: no reliable voxel of that class, no candidate, no dispute.
    for subnetwork in network.children():
        with torch.no_grad():
            subnetwork.classifier.bias.copy_(torch.tensor([100.0, 0.0]))
    batch["label"].zero_()
    output = assert_finite_training(make_variant(variant, network), batch)
    assert output.get("loss_rectification", torch.zeros(())).item() == 0


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_tiny_crops(variant, size):
    assert_finite_training(make_variant(variant, TinyPair()), make_batch(size=size, num_labeled=1, num_unlabeled=1))


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"union"}))
def test_three_classes(variant):
    method = make_variant(variant, TinyPair(num_classes=3), num_classes=3)
    assert_finite_training(method, make_batch(num_classes=3))
    method.zero_grad()
    # A class that neither labels nor predictions hold.
    for subnetwork in method.network.children():
        with torch.no_grad():
            subnetwork.classifier.bias[2] = -1000.0
    assert_finite_training(method, make_batch(num_classes=2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_unlabeled_crops(variant):
    assert_finite_training(make_variant(variant, TinyPair()), make_batch(num_unlabeled=0))


# --- batches without labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "vnet", "resnet_vnet"),
    [
        ("consistency", True, True),
        ("uncertainty", False, True),
        ("pseudo_label", True, True),
        ("contrastive", False, True),
    ],
)
def test_terms_that_need_no_labels_train_the_same_networks(term, vnet, resnet_vnet):
    network = TinyPair()
    output = only(term, network)(make_batch(num_labeled=0), 0)
    assert set(output) == {"loss", f"loss_{term}", f"weight_{term}"}
    assert_trains(output[f"loss_{term}"], network, vnet=vnet, resnet_vnet=resnet_vnet)
    assert output["loss"].item() == pytest.approx(output[f"loss_{term}"].item())


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_labeled_crops(variant, size):
    method = make_variant(variant, TinyPair())
    batch = make_batch(size=size, num_labeled=0)
    if "winner" in (method.roles, method.pseudo_label_source) or method.contrastive_network == "loser":
        with pytest.raises(ValueError, match="with the lower supervised loss leads, but labeled_batch_size is 0"):
            method.check_batch_sizes(0, size)
        return
    output = assert_finite_training(method, batch)
    assert not any("supervised" in name or "rectification" in name for name in output)
    # Nothing that is reliable, nothing but background: the same degenerate cases as with labels.
    method.zero_grad()
    assert_finite_training(method, {"unlabeled": torch.zeros_like(batch["unlabeled"])})


@pytest.mark.parametrize("term", [None, "rectification"])
def test_nothing_to_train_on_is_refused(term):
    with pytest.raises(ValueError, match="labeled_batch_size 0 needs a term that trains without labels"):
        only(term, TinyPair()).check_batch_sizes(0, 2)
    with pytest.raises(ValueError, match="unlabeled_batch_size must be at least 1 where labeled_batch_size is 0"):
        make_variant("paper", TinyPair()).check_batch_sizes(0, 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast(variant):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = assert_finite_training(make_variant(variant, TinyPair()), make_batch())
    assert {value.dtype for value in output.values() if isinstance(value, torch.Tensor)} == {torch.float32}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_networks(variant):
    network = TinyPair()
    network.resnet_vnet.load_state_dict(network.vnet.state_dict())
    output = assert_finite_training(make_variant(variant, network), make_batch())
    if variant != "luseg":
        assert output["loss_consistency"].item() == pytest.approx(0, abs=1e-6)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": "both"}, "passes must be one of joint, separate, got 'both'"),
        ({"roles": "swapped"}, "roles must be one of fixed, winner, symmetric, got 'swapped'"),
        (
            {"pseudo_label_source": "teacher"},
            "pseudo_label_source must be one of cross, self, winner, union, got 'teacher'",
        ),
        ({"reliability_combination": "xor"}, "reliability_combination must be one of own, and, or, got 'xor'"),
        ({"consistency_region": "labeled"}, "consistency_region must be one of all, unlabeled, got 'labeled'"),
        ({"uncertainty_region": None}, "uncertainty_region must be one of all, unlabeled, got None"),
        ({"contrastive_network": "vnet"}, "contrastive_network must be one of student, loser, both, got 'vnet'"),
        ({"pseudo_label_source": "union"}, "'union' needs reliability_combination 'and' or 'or', got 'own'"),
        ({"contrastive": None}, "contrastive must be given unless contrastive_weight is 0"),
        ({"consistency_weight": -1.0}, r"consistency_weight must be at least 0.*, got -1\.0"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_method(TinyPair(), **options)


def test_union_of_three_classes_is_refused():
    with pytest.raises(ValueError, match="pseudo_label_source 'union' needs two classes, got 3"):
        make_variant("union", TinyPair(num_classes=3), num_classes=3)
    options = {**VARIANTS["union"], "contrastive": None, "contrastive_weight": 0.0}
    method = make_method(TinyPair(num_classes=3), **options)
    with pytest.raises(ValueError, match="pseudo_label_source 'union' needs two classes, got logits of 3"):
        method(make_batch(num_classes=3), 0)


# --- what every method offers -----------------------------------------------------------------------------------------


def test_base_method():
    method = Method(TinyPair())
    with pytest.raises(NotImplementedError, match="Method must implement forward"):
        method({}, 0)
    assert method.after_step(0) is None
    method.network.vnet.requires_grad_(False)
    trainable = method.trainable_parameters()
    assert len(trainable) == 4
    assert all(any(a is b for b in method.network.resnet_vnet.parameters()) for a in trainable)


def test_a_method_has_no_weights_beside_its_network():
    method = make_method(TinyPair())
    assert all(name.startswith("network.") for name in method.state_dict())
    assert len(method.trainable_parameters()) == len(list(method.network.parameters()))


def test_real_networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = make_variant("paper", DualNetwork()).train()
        batch = make_batch(size=16)
        # Labels come out of the loader as numbers with a fraction.
        batch["label"] = batch["label"].float()
        output = assert_finite_training(method, batch)
    assert {name for name in output if name.startswith("loss_")} == {
        "loss_supervised_vnet",
        "loss_supervised_resnet_vnet",
        *(f"loss_{name}" for name in TERMS),
    }
    for subnetwork in (method.network.vnet, method.network.resnet_vnet):
        assert sum(float(parameter.grad.norm()) for parameter in subnetwork.parameters()) > 0


# --- the shipped configurations ---------------------------------------------------------------------------------------

END = 6000
RISES = (math.exp(-5), 1.0)

#: Table of variants in docs/methods.md: attributes of the method and weights at the first step and at the end.
SHIPPED = {
    "train.json": (
        {
            "roles": "fixed",
            "rectification.threshold": 0.6,
            "reliability.keep_percent": 80.0,
            "reliability.scope": "batch",
            "reliability_combination": "own",
            "pseudo_label.renormalize": "none",
            "pseudo_label_dropout": True,
            "pseudo_label_source": "cross",
            "consistency.mode": "voxel",
            "consistency_region": "all",
            "uncertainty.target": "soft",
            "uncertainty.temperature": 0.5,
            "uncertainty.detach_weight": False,
            "uncertainty_region": "all",
            "contrastive.form": "hinge",
            "contrastive.margin": 1.0,
            "contrastive.sample_fraction": 0.01,
            "contrastive_network": "student",
        },
        {
            "rectification": (0.5, 0.5),
            "pseudo_label": RISES,
            "consistency": (1.0, 1.0),
            "uncertainty": (1.0, 1.0),
            "contrastive": (0.1 * math.exp(-5), 0.1),
        },
    ),
    "method_dual_network_literal.json": (
        {
            "roles": "fixed",
            "reliability.keep_percent": 80.0,
            "reliability.scope": "batch",
            "reliability_combination": "own",
            "pseudo_label.renormalize": "none",
            "pseudo_label_dropout": True,
            "pseudo_label_source": "self",
            "consistency.mode": "voxel",
            "consistency_region": "all",
            "uncertainty.target": "soft",
            "uncertainty.temperature": 0.5,
            "uncertainty_region": "all",
            "contrastive.form": "literal",
            "contrastive.sample_fraction": 0.01,
            "contrastive_network": "student",
        },
        {
            "pseudo_label": (1.0, 1.0),
            "consistency": (1.0, 1.0),
            "uncertainty": (1.0, 1.0),
            "contrastive": (0.1 * math.exp(4), 0.1),
        },
    ),
    "method_dual_network_released.json": (
        {
            "roles": "fixed",
            "rectification.threshold": 0.6,
            "consistency.mode": "voxel",
            "consistency_region": "all",
            "uncertainty.target": "hard",
            "uncertainty.detach_weight": False,
            "uncertainty_region": "all",
            "contrastive": None,
        },
        {"rectification": (0.5, 0.5), "consistency": (1.0, 1.0), "uncertainty": (1.0, 1.0)},
    ),
    "method_luseg.json": (
        {
            "roles": "winner",
            "rectification.threshold": 0.6,
            "reliability.keep_percent": 20.0,
            "reliability.scope": "batch",
            # A voxel is unreliable only where both networks say so.
            "reliability_combination": "or",
            "pseudo_label.renormalize": "total_over_valid",
            "pseudo_label_dropout": True,
            "pseudo_label_source": "winner",
            "contrastive.form": "own_class_minimized",
            "contrastive.sample_fraction": 0.01,
            "contrastive_network": "loser",
        },
        {"rectification": (0.5, 0.5), "pseudo_label": (1.0, 1.0), "contrastive": (0.1 * math.exp(-5), 0.1)},
    ),
    "method_luseg_released.json": (
        {"rectification.threshold": 0.6, "contrastive": None, "passes": "joint"},
        {"rectification": (0.5, 0.5)},
    ),
}

#: Rows of Table 3 by the terms that they leave out of train.json.
TABLE_3 = {
    "method_dual_network_without_consistency.json": ("consistency",),
    "method_dual_network_without_uncertainty.json": ("uncertainty",),
    "method_dual_network_without_both.json": ("consistency", "uncertainty"),
}
for row, left_out in TABLE_3.items():
    paper_options, paper_weights = SHIPPED["train.json"]
    SHIPPED[row] = (paper_options, {term: pair for term, pair in paper_weights.items() if term not in left_out})
SHIPPED["method_dual_network_improved.json"] = (paper_options | {"pseudo_label_dropout": False}, paper_weights)


def configured(name):
    """Parser of train.json with one overlay, and the method it builds around a tiny pair of networks."""
    files = [CONFIGS / "train.json", *([CONFIGS / name] if name != "train.json" else [])]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    # Methods receive their network: they can be built without the 27 million weights of the real one.
    parser["network"] = TinyPair(parser["num_classes"])
    parser["device"] = "cpu"
    return parser, parser.get_parsed_content("method")


#: Overlays that keep the pair of networks.
PAIRED = [path.name for path in sorted(CONFIGS.glob("method_*.json")) if "network_def" not in path.read_text()]


@pytest.mark.parametrize("name", PAIRED)
def test_every_method_configuration_gives_a_method(name):
    parser, method = configured(name)
    assert isinstance(method, Method)
    output = method(make_batch(num_unlabeled=parser.get_parsed_content("unlabeled_batch_size")), 0)
    assert output["loss"].isfinite()
    if isinstance(method, DualNetworkMethod):
        assert name in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_configured_options(name):
    parser, method = configured(name)
    options, weights = SHIPPED[name]
    for path, expected in options.items():
        value = method
        for attribute in path.split("."):
            value = getattr(value, attribute)
        assert value == expected, path
    for position, step in enumerate((0, END)):
        output = method(make_batch(), step)
        given = {key.removeprefix("weight_"): value for key, value in output.items() if key.startswith("weight_")}
        assert given == pytest.approx({key: pair[position] for key, pair in weights.items()}), step
    assert parser.get_parsed_content("iterations") == END


@pytest.mark.parametrize("name", TABLE_3)
def test_rows_of_table_3_differ_from_the_paper_in_weights_alone(name):
    paper = ConfigParser.load_config_files([CONFIGS / "train.json"])
    row = ConfigParser.load_config_files([CONFIGS / "train.json", CONFIGS / name])
    for term in TABLE_3[name]:
        assert paper["method_def"].pop(f"{term}_weight") == 1
        assert row["method_def"].pop(f"{term}_weight") == 0
    assert {key: value for key, value in row.items() if key != "_desc_"} == {
        key: value for key, value in paper.items() if key != "_desc_"
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_configured_supervision_is_cross_entropy_plus_dice(name):
    _, method = configured(name)
    logits = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    label = make_batch(size=4)["label"]
    assert method.supervised(logits, label).item() == pytest.approx(supervised_by_hand(logits, label).item(), rel=1e-5)


def test_configured_control():
    parser, method = configured("method_supervised_dual.json")
    assert isinstance(method, SupervisedDualNetwork)
    assert method.rectification_weight(0) == method.rectification_weight(END) == 0
    assert parser.get_parsed_content("unlabeled_batch_size") == 0


def test_configured_ramps_follow_the_number_of_iterations():
    parser = ConfigParser(ConfigParser.load_config_files([CONFIGS / "train.json"]))
    parser["network_def"] = TinyPair(2)
    parser["device"] = "cpu"
    parser["iterations"] = 100
    method = parser.get_parsed_content("method")
    assert method.pseudo_label_weight(50) == pytest.approx(math.exp(-1.25))
    assert method.pseudo_label_weight(100) == 1.0
