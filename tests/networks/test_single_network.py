# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sizes, values and refusals of the deployed network of methods with one network."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_bfloat16
from torch import nn

from scripts.networks.resnet_vnet import ResNetVNet
from scripts.networks.single_network import SingleNetwork
from scripts.networks.vnet import VNet

ARCHITECTURES = {"vnet": VNet, "resnet_vnet": ResNetVNet}


def without_memory(**options):
    """Build a network whose tensors have a shape and no values, for questions of shape alone."""
    with torch.device("meta"):
        return SingleNetwork(**options)


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 1, 32, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request, image):
    """A network with the running statistics of the image, for logits of moderate size; no test may change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SingleNetwork(request.param)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm3d):
                layer.momentum = 1.0
        with torch.no_grad():
            network(image)
    return network.eval()


@pytest.mark.parametrize(("architecture", "count"), [("vnet", 9_448_866), ("resnet_vnet", 17_930_354)])
def test_parameter_counts(architecture, count):
    network = without_memory(architecture=architecture)
    assert type(network.backbone) is ARCHITECTURES[architecture]
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert all(name.startswith("backbone.") for name in network.state_dict())


def test_vnet_is_the_default():
    assert type(without_memory().backbone) is VNet


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_options_reach_the_backbone(architecture):
    network = without_memory(
        architecture=architecture, in_channels=3, out_channels=5, dropout=0.25, normalization="group"
    )
    assert list(network(torch.empty(2, 3, 48, 32, 16, device="meta")).shape) == [2, 5, 48, 32, 16]
    assert network.backbone.dropout.p == 0.25
    assert any(isinstance(module, nn.GroupNorm) for module in network.backbone.decoder.modules())


def test_prediction_is_the_softmax_of_the_backbone(network, image):
    with torch.no_grad():
        output = network(image)
        assert torch.equal(output, network.backbone(image).softmax(dim=1))
    torch.testing.assert_close(output.sum(dim=1), torch.ones(2, 32, 16, 16))
    assert output[:, 1].std() > 0.01


@needs_bfloat16
def test_autocast_gives_float32_probabilities(network, image):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.backbone(image).dtype == torch.bfloat16
        output = network(image)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.sum(dim=1), torch.ones(2, 32, 16, 16))


def test_torchscript_gives_the_same(network, image):
    scripted = torch.jit.script(network)
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), network(image))
    with pytest.raises(torch.jit.Error, match="image must have spatial sizes divisible by 16"):
        scripted(image[..., :15])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "unet"}, "architecture must be one of vnet, resnet_vnet, got 'unet'"),
        ({"in_channels": 0}, "in_channels must be from 1 to 16, got 0"),
        ({"out_channels": 1}, "out_channels must be from 2 .* got 1"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"normalization": "layer"}, "normalization must be 'batch', 'instance' or 'group', got 'layer'"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        without_memory(**options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_are_refused(architecture):
    network = without_memory(architecture=architecture)
    with pytest.raises(ValueError, match=r"image must have shape \(B, 1, X, Y, Z\), got \[1, 3, 16, 16, 16\]"):
        network(torch.empty(1, 3, 16, 16, 16, device="meta"))
