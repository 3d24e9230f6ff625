# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sizes and values of the V-Net with two heads."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_bfloat16

from scripts.networks.dual_task_vnet import DualTaskVNet

SIZE = (32, 16, 16)


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DualTaskVNet(1, 3)


@pytest.fixture
def image():
    return torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))


def test_parameter_counts():
    with torch.device("meta"):
        # The V-Net of two classes and a head of 16 weights and a bias for each foreground class.
        assert count_parameters(DualTaskVNet()) == 9_448_866 + 17
        assert count_parameters(DualTaskVNet(1, 4)) == 9_448_866 + 2 * 17 + 3 * 17


def test_prediction_is_the_softmax_of_the_logits(network, image):
    network.eval()
    with torch.no_grad():
        logits, distance = network.logits_and_distance(image)
        probabilities = network(image)
    assert logits.shape == probabilities.shape == (2, 3, *SIZE)
    assert distance.shape == (2, 2, *SIZE)
    torch.testing.assert_close(probabilities, logits.softmax(dim=1))
    assert probabilities.std() > 0
    assert distance.abs().max() <= 1
    assert distance.min() < 0 < distance.max()


def test_prediction_does_not_depend_on_the_distance_head(network, image):
    network.eval()
    with torch.no_grad():
        before = network(image)
        network.distance_head.weight.zero_()
        assert torch.equal(network(image), before)
        assert torch.equal(
            network.logits_and_distance(image)[1][:, 0, 0, 0, 0], network.distance_head.bias[0].tanh().expand(2)
        )


def test_both_heads_see_the_same_channels(network, image):
    """Dropout is drawn once: equal heads give equal scores in training too."""
    network.train()
    with torch.no_grad():
        network.distance_head.weight.copy_(network.backbone.classifier.weight[1:])
        network.distance_head.bias.copy_(network.backbone.classifier.bias[1:])
        torch.manual_seed(0)
        logits, distance = network.logits_and_distance(image)
    torch.testing.assert_close(distance, logits[:, 1:].tanh())


def test_each_head_takes_its_gradient_to_the_shared_layers(network, image):
    network.train()
    logits, distance = network.logits_and_distance(image)
    for output, own, other in (
        (logits, network.backbone.classifier, network.distance_head),
        (distance, network.distance_head, network.backbone.classifier),
    ):
        shared = network.backbone.encoder.stages[0][0].conv.weight
        gradients = torch.autograd.grad(
            output.square().sum(), [own.weight, shared, other.weight], retain_graph=True, allow_unused=True
        )
        assert gradients[0].norm() > 0
        assert gradients[1].norm() > 0
        assert gradients[2] is None


def test_torchscript_gives_the_same(network, image):
    network.eval()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), network(image))


@needs_bfloat16
def test_autocast_gives_float32(network, image):
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(image).dtype == torch.float32
        logits, distance = network.logits_and_distance(image)
    assert logits.dtype == torch.bfloat16
    assert distance.dtype == torch.float32


def test_distance_is_computed_in_float32(network, monkeypatch):
    network.eval()
    features = torch.randn(1, 16, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(network.backbone, "features", lambda image: features)
    with torch.no_grad():
        expected = network.logits_and_distance(torch.empty(0))[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, distance = network.logits_and_distance(torch.empty(0))
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(distance, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be from 1 to 16, got 0"),
        ({"out_channels": 1}, "out_channels must be from 2 .* got 1"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"normalization": "layer"}, "normalization must be .* got 'layer'"),
    ],
)
def test_options_are_refused(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DualTaskVNet(**options)


def test_images_are_refused(network):
    for call in (network, network.logits_and_distance):
        with pytest.raises(ValueError, match=r"divisible by 16, got \[16, 16, 17\]"):
            call(torch.zeros(1, 1, 16, 16, 17))
