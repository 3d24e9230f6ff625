# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, degenerate batches and configurations of MC-Net and MC-Net+."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.supervised import SupervisedLoss
from scripts.methods.mc_net import MutualConsistency
from scripts.networks.multi_decoder_vnet import MultiDecoderVNet
from scripts.schedules import Weight

SUPERVISED = {"dice_weight": 0.5, "cross_entropy_weight": 0.0, "squared": False}


class TinyDecoders(nn.Module):
    """One convolution under several heads: the interface of the network in a few weights."""

    def __init__(self, num_decoders=2, num_classes=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Conv3d(1, 4, 3, padding=1)
            self.decoders = nn.ModuleList(nn.Conv3d(4, num_classes, 1) for _ in range(num_decoders))
        self.batch_sizes = []

    def all_logits(self, image):
        self.batch_sizes.append(len(image))
        features = self.encoder(image).relu()
        return [decoder(features) for decoder in self.decoders]


class Answers(nn.Module):
    """Gives the same probabilities at every voxel, one row for each decoder."""

    def __init__(self, *rows):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(rows).log())

    def all_logits(self, image):
        shape = (len(image), self.scores.shape[1], *image.shape[2:])
        return [row[None, :, None, None, None].expand(shape) for row in self.scores]


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


def make_method(network, **options):
    return MutualConsistency(network, **{"supervised": SupervisedLoss(**SUPERVISED), **options})


def gradient_norm(term, module):
    gradients = torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)
    return sum(float(gradient.norm()) for gradient in gradients if gradient is not None)


def consistency_by_hand(logits, temperature, detached=False):
    """The sum over ordered pairs in the binary form of MC-Net, where both classes have the same squared error."""
    total = 0.0
    for own, other in permutations([scores.softmax(dim=1)[:, 1] for scores in logits], 2):
        powers = other.pow(1 / temperature), (1 - other).pow(1 / temperature)
        target = powers[0] / (powers[0] + powers[1])
        total = total + (own - (target.detach() if detached else target)).square().mean()
    return total


def test_value_by_hand():
    # Foreground 0.8 and 0.5; with T = 1/2 they are sharpened to 16/17 and 0.5.
    output = make_method(Answers([0.2, 0.8], [0.5, 0.5]), temperature=0.5)(
        {**make_batch(), "label": torch.ones(2, 1, 6, 6, 6)}, 0
    )
    assert output["loss_consistency"].item() == pytest.approx(0.3**2 + (0.5 - 16 / 17) ** 2, rel=1e-5)
    # Half of 1 - 2 p / (p + 1).
    assert output["loss_supervised_decoder_1"].item() == pytest.approx(0.5 * (1 - 1.6 / 1.8), rel=1e-4)
    assert output["loss_supervised_decoder_2"].item() == pytest.approx(0.5 * (1 - 1 / 1.5), rel=1e-4)


def test_value_of_three_decoders_and_three_classes_by_hand():
    rows = ([0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8])
    output = make_method(Answers(*rows), temperature=0.5)(make_batch(num_classes=3), 0)
    sharpened = [[p**2 / sum(q**2 for q in row) for p in row] for row in rows]
    expected = sum(
        sum((p - q) ** 2 for p, q in zip(rows[i], sharpened[j], strict=True)) / 3 for i, j in permutations(range(3), 2)
    )
    assert output["loss_consistency"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_decoders", [2, 3])
def test_loss_is_the_weighted_sum_of_its_terms(num_decoders):
    method = make_method(TinyDecoders(num_decoders), consistency_weight=Weight(2.0, "sigmoid", 8))
    output = method(make_batch(), 4)
    names = [f"loss_supervised_decoder_{number}" for number in range(1, num_decoders + 1)]
    assert set(output) == {"loss", *names, "loss_consistency", "weight_consistency"}
    assert output["weight_consistency"] == pytest.approx(2 * math.exp(-1.25))
    expected = sum(output[name] for name in names) + 2 * math.exp(-1.25) * output["loss_consistency"]
    assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert [method(make_batch(), step)["weight_consistency"] for step in (0, 8, 99)] == pytest.approx(
        [2 * math.exp(-5), 2, 2]
    )


@pytest.mark.parametrize("num_decoders", [2, 3])
def test_supervised_terms_train_their_decoder_and_the_encoder(num_decoders):
    network = TinyDecoders(num_decoders)
    output = make_method(network)(make_batch(), 0)
    for own in range(num_decoders):
        term = output[f"loss_supervised_decoder_{own + 1}"]
        assert gradient_norm(term, network.encoder) > 1e-6
        for other, decoder in enumerate(network.decoders):
            assert (gradient_norm(term, decoder) > 1e-6) == (own == other)


@pytest.mark.parametrize("num_decoders", [2, 3])
def test_consistency_trains_all_also_through_the_targets(num_decoders):
    network, batch = TinyDecoders(num_decoders), make_batch()
    term = make_method(network)(batch, 0)["loss_consistency"]
    for module in (network.encoder, *network.decoders):
        assert gradient_norm(term, module) > 1e-6
    logits = network.all_logits(torch.cat((batch["image"], batch["unlabeled"])))
    assert term.item() == pytest.approx(consistency_by_hand(logits, 0.1).item(), rel=1e-5)
    parameters = list(network.parameters())
    given = torch.autograd.grad(term, parameters)
    wanted = torch.autograd.grad(consistency_by_hand(logits, 0.1), parameters, retain_graph=True)
    without = torch.autograd.grad(consistency_by_hand(logits, 0.1, detached=True), parameters)
    for name, a, b, c in zip(dict(network.named_parameters()), given, wanted, without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6, msg=name)
        assert not torch.allclose(a, c, rtol=1e-2), name


def test_order_of_the_decoders_does_not_matter():
    network, batch = TinyDecoders(3), make_batch()
    expected = make_method(network)(batch, 0)["loss"].item()
    network.decoders = nn.ModuleList(reversed(network.decoders))
    assert make_method(network)(batch, 0)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_decoders_that_are_certain_of_the_same_agree():
    output = make_method(Answers([1e-30, 1.0], [1e-30, 1.0]))(make_batch(), 0)
    assert output["loss_consistency"].item() == pytest.approx(0, abs=1e-6)


def test_all_crops_are_seen_at_once_and_labels_only_reach_their_crops():
    network, batch = TinyDecoders(), make_batch(num_labeled=1, num_unlabeled=3)
    outputs = [
        make_method(network)({**batch, "unlabeled": unlabeled}, 0)
        for unlabeled in (batch["unlabeled"], batch["unlabeled"] + 1)
    ]
    assert network.batch_sizes == [4, 4]
    first, second = (output["loss_supervised_decoder_1"].item() for output in outputs)
    assert first == pytest.approx(second, rel=1e-6)
    assert outputs[0]["loss_consistency"].item() != pytest.approx(outputs[1]["loss_consistency"].item(), rel=1e-3)


def test_without_unlabeled_crops_the_labeled_ones_are_made_consistent():
    network, batch = TinyDecoders(), make_batch(num_unlabeled=0)
    output = make_method(network)(batch, 0)
    expected = consistency_by_hand(network.all_logits(batch["image"]), 0.1)
    assert output["loss_consistency"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_of_zero_leaves_the_term_out():
    output = make_method(TinyDecoders(), consistency_weight=0)(make_batch(), 0)
    assert set(output) == {"loss", "loss_supervised_decoder_1", "loss_supervised_decoder_2"}


@pytest.mark.parametrize("num_decoders", [2, 3])
@pytest.mark.parametrize(
    "kind", ["saturated", "half", "constant", "background", "tiny", "three_classes", "labeled_only", "one_labeled"]
)
def test_degenerate_batches(kind, num_decoders):
    num_classes = 3 if kind == "three_classes" else 2
    network = TinyDecoders(num_decoders, num_classes)
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


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0 and at most 1, got {temperature}"):
        make_method(TinyDecoders(), temperature=temperature)


def test_real_network_trains_every_weight():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = make_method(MultiDecoderVNet(num_decoders=3)).train()
        output = method(make_batch(size=16), 0)
    output["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("name", "num_decoders"), [("method_mc_net", 2), ("method_mc_net_plus", 3)])
def test_configured_options(name, num_decoders):
    files = [ROOT / "configs" / f"{name}.json" for name in ("train", name)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser["device"], parser["iterations"] = "cpu", 100
    method = parser.get_parsed_content("method")
    assert isinstance(method, MutualConsistency)
    assert len(method.network.decoders) == num_decoders
    assert [method.consistency_weight(step) for step in (50, 100)] == pytest.approx([math.exp(-1.25), 1.0])
    assert method.temperature == 0.1
    # The Dice of MC-Net: two voxels at p = 1/2, one of them foreground.
    logits, label = torch.zeros(1, 2, 2, 1, 1), torch.tensor([1, 0]).reshape(1, 1, 2, 1, 1)
    assert method.supervised(logits, label).item() == pytest.approx(0.5 * (1 - 1 / 2), abs=1e-5)
