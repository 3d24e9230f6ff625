# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sizes, gradients and refusals of the discriminator."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_bfloat16
from torch import nn

from scripts.networks.discriminator import Discriminator


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def make_input(size, *, in_channels=1, num_classes=2, num_crops=2):
    generator = torch.Generator().manual_seed(0)
    distance = torch.rand(num_crops, num_classes - 1, *size, generator=generator) * 2 - 1
    return distance, torch.randn(num_crops, in_channels, *size, generator=generator)


@pytest.fixture(scope="module")
def discriminator():
    """A discriminator that no test may change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Discriminator().eval()


def test_parameter_counts():
    with torch.device("meta"):
        assert count_parameters(Discriminator()) == 11_020_290
        # A class more is a channel of the map, 64 kernels of 4x4x4; so is an image channel.
        assert count_parameters(Discriminator(3, 4)) == 11_020_290 + (2 + 2) * 64 * 4**3


@pytest.mark.parametrize("size", [(112, 112, 80), (96, 96, 96), (32, 48, 32), (16, 16, 16), (17, 40, 31)])
def test_any_crop_size_gives_two_scores(size):
    with torch.device("meta"):
        network = Discriminator(2, 3)
        distance, image = torch.empty(2, 2, *size), torch.empty(2, 2, *size)
    assert network(distance, image).shape == (2, 2)


def test_crop_of_the_left_atrium_is_pooled_as_in_the_public_code():
    with torch.device("meta"):
        network = Discriminator()
        features = network.stages(network.distance_stem(torch.empty(1, 1, 112, 112, 80)))
        assert network.deepest(features).shape == (1, 512, 7, 7, 5)


def test_values_layer_by_layer(discriminator):
    distance, image = make_input((32, 16, 16))
    weights = [p for p in discriminator.parameters() if p.ndim == 5]
    biases = [p for p in discriminator.parameters() if p.ndim == 1]
    assert [list(weight.shape[:2]) for weight in weights] == [[64, 1], [64, 1], [128, 64], [256, 128], [512, 256]]

    def convolve(features, index):
        return F.conv3d(features, weights[index], biases[index], stride=2, padding=1)

    with torch.no_grad():
        features = convolve(distance, 0) + convolve(image, 1)
        for index in (2, 3, 4):
            features = convolve(torch.where(features > 0, features, features / 5), index)
        pooled = torch.where(features > 0, features, features / 5).flatten(2).mean(dim=2)
        expected = pooled @ discriminator.classifier.weight.T + discriminator.classifier.bias
        torch.testing.assert_close(discriminator(distance, image), expected)


def test_scores_depend_on_shape_and_image(discriminator):
    distance, image = make_input((16, 16, 16))
    distance.requires_grad_()
    image.requires_grad_()
    scores = discriminator(distance, image)
    gradients = torch.autograd.grad(scores[:, 1].sum(), (distance, image))
    assert all(gradient.norm() > 0 for gradient in gradients)
    # Crops do not meet.
    torch.testing.assert_close(discriminator(distance[:1], image[:1]), scores[:1])


def test_dropout_switches_channels_off_in_training_alone(discriminator):
    inputs = make_input((16, 16, 16))
    with torch.no_grad():
        assert torch.equal(discriminator(*inputs), discriminator(*inputs))
        network = copy.deepcopy(discriminator).train()
        assert not torch.equal(network(*inputs), network(*inputs))
    found = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout3d)]
    assert found == [0.5] * 3


@needs_bfloat16
@pytest.mark.parametrize("size", [(32, 16, 16), (16, 16, 16), (32, 32, 16), (32, 32, 32)])
def test_autocast_gives_the_gradients_of_float32(discriminator, size):
    """PyTorch's own gradient of the deepest weights is of another direction, or not a number, for the first size."""
    inputs = make_input(size)
    gradients = []
    for enabled in (False, True):
        network = copy.deepcopy(discriminator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            scores = network(*inputs)
        F.cross_entropy(scores.float(), torch.tensor([1, 0])).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for exact, rounded in zip(*gradients):
        assert (exact - rounded).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("distance", "image", "message"),
    [
        ((2, 1, 15, 16, 16), (2, 1, 15, 16, 16), r"spatial sizes of at least 16, got \[15, 16, 16\]"),
        ((2, 1, 16, 16, 16), (2, 3, 16, 16, 16), r"image must have shape \(B, 1, X, Y, Z\), got \[2, 3,"),
        ((2, 1, 16, 16), (2, 1, 16, 16), r"image must have shape \(B, 1, X, Y, Z\), got \[2, 1, 16, 16\]"),
        ((2, 2, 16, 16, 16), (2, 1, 16, 16, 16), r"distance must have 1 channels on the grid of image, got \[2, 2"),
        ((2, 1, 16, 16, 32), (2, 1, 16, 16, 16), r"distance must have 1 channels .* beside \[2, 1, 16, 16, 16\]"),
    ],
)
def test_inputs_are_refused(discriminator, distance, image, message):
    with pytest.raises(ValueError, match=message):
        discriminator(torch.zeros(distance), torch.zeros(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 17}, "in_channels must be from 1 to 16, got 17"),
        ({"num_classes": 1}, "num_classes must be from 2 to 128, got 1"),
        ({"dropout": -0.5}, r"dropout must be at least 0 and below 1, got -0\.5"),
    ],
)
def test_options_are_refused(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Discriminator(**options)
