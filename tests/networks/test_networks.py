# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sizes, values and refusals of the two networks and of the deployed pair."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from conftest import needs_bfloat16
from torch import nn

from scripts.networks.arguments import CHANNELS, check_channels, normalization_layer
from scripts.networks.blocks import Decoder, resampling_convolution
from scripts.networks.dual_network import DualNetwork
from scripts.networks.layers import ChannelDropout, Head, TransposedConvolution, split_crops
from scripts.networks.recompute import recompute
from scripts.networks.resnet_vnet import ResNet34Encoder, ResNetVNet
from scripts.networks.vnet import VNet, VNetEncoder

# The smallest image whose deepest map has more than one voxel.
SIZE = (32, 16, 16)


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def without_memory(build):
    """Build a network whose tensors have a shape and no values, for questions of shape alone."""
    with torch.device("meta"):
        return build().eval()


def normalize_by(network, image):
    """Take the batch statistics of one image as running ones: random weights then give logits of moderate size."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(image)
    return network.eval()


def answer_always(network, probabilities):
    """Let a network give the same class probabilities at every voxel."""
    nn.init.zeros_(network.classifier.weight)
    with torch.no_grad():
        network.classifier.bias.copy_(torch.tensor(probabilities).log())


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network(image):
    """A pair of networks that no test may change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return normalize_by(DualNetwork(), image)


@pytest.fixture
def changeable(network):
    return copy.deepcopy(network)


def test_parameter_counts():
    vnet, resnet_vnet = without_memory(VNet), without_memory(ResNetVNet)
    assert count_parameters(vnet) == 9_448_866
    assert count_parameters(resnet_vnet) == 17_930_354
    assert count_parameters(resnet_vnet.encoder) == 15_858_384
    for network in (vnet, resnet_vnet):
        assert count_parameters(network.decoder) + count_parameters(network.classifier) == 2_071_970
    assert count_parameters(without_memory(DualNetwork)) == 9_448_866 + 17_930_354


def test_parameter_counts_of_stages():
    vnet, encoder = without_memory(VNet), without_memory(ResNet34Encoder)
    first, *others = vnet.encoder.stages
    assert count_parameters(first) == 480
    assert [count_parameters(stage[0]) for stage in others] == [4_192, 16_576, 65_920, 262_912]
    assert [count_parameters(stage[1]) for stage in others] == [55_488, 332_352, 1_328_256, 5_310_720]
    assert [count_parameters(up) for up in vnet.decoder.up] == [262_528, 65_728, 16_480, 4_144]
    assert [count_parameters(stack) for stack in vnet.decoder.stacks] == [1_328_256, 332_352, 55_488, 6_960]
    assert count_parameters(vnet.classifier) == 34
    assert count_parameters(encoder.stem) == 5_520
    assert [count_parameters(stage) for stage in encoder.stages] == [153_024, 832_640, 5_098_752, 9_768_448]


def test_parameter_counts_of_other_channels():
    # Two more image channels cost 2 * 16 kernels in the first convolution, a class costs 16 weights and a bias.
    vnet = without_memory(lambda: VNet(3, 5))
    resnet_vnet = without_memory(lambda: ResNetVNet(3, 5))
    assert count_parameters(vnet) == 9_448_866 + 2 * 16 * 3**3 + 3 * 17
    assert count_parameters(resnet_vnet) == 17_930_354 + 2 * 16 * 7**3 + 3 * 17


@pytest.mark.parametrize("encoder", [VNetEncoder, ResNet34Encoder])
def test_pyramid_shapes(encoder):
    pyramid = without_memory(encoder)(torch.empty(1, 1, 112, 112, 80, device="meta"))
    assert [list(features.shape) for features in pyramid] == [
        [1, 16, 112, 112, 80],
        [1, 32, 56, 56, 40],
        [1, 64, 28, 28, 20],
        [1, 128, 14, 14, 10],
        [1, 256, 7, 7, 5],
    ]
    assert list(without_memory(Decoder)(pyramid).shape) == [1, 16, 112, 112, 80]


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_output_shapes(in_channels, num_classes):
    image = torch.empty(2, in_channels, 48, 32, 16, device="meta")
    for build in (VNet, ResNetVNet, DualNetwork):
        network = without_memory(lambda build=build: build(in_channels, num_classes))
        assert list(network(image).shape) == [2, num_classes, 48, 32, 16]
    network = without_memory(lambda: DualNetwork(in_channels, num_classes, with_disagreement=True))
    assert list(network(image).shape) == [2, num_classes + 1, 48, 32, 16]


def test_forward_is_head_of_features(network, image):
    with torch.no_grad():
        for subnetwork in (network.vnet, network.resnet_vnet):
            features = subnetwork.features(image)
            assert list(features.shape) == [2, 16, *SIZE]
            # The features come after a ReLU.
            assert features.min() == 0 < features.max()
            assert torch.equal(subnetwork.head(features), subnetwork(image))


@pytest.mark.parametrize("name", ["vnet", "resnet_vnet"])
def test_features_come_before_the_last_dropout(changeable, image, name):
    subnetwork = getattr(changeable, name)
    subnetwork.dropout.train()
    with torch.no_grad():
        features = subnetwork.features(image)
        assert torch.equal(features, subnetwork.features(image))
        heads = [subnetwork.head(features) for _ in range(8)]
        without = subnetwork.head_without_dropout(features)
        assert torch.equal(without, subnetwork.head_without_dropout(features))
        assert torch.equal(without, subnetwork.eval().head(features))
    assert any(not torch.equal(heads[0], head) for head in heads[1:])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("training", [True, False])
def test_head_is_dropout_and_convolution(memory_format, training):
    head, channel_weights = Head(3), ChannelDropout(0.5).train(training)
    dropout = nn.Dropout3d(0.5).train(training)
    convolution = nn.Conv3d(CHANNELS[0], 3, kernel_size=1)
    convolution.load_state_dict(head.state_dict())
    values = torch.randn(2, CHANNELS[0], 4, 3, 5, generator=torch.Generator().manual_seed(0))
    results = []
    for compute in (
        lambda features: head(features, channel_weights(features)),
        lambda features: convolution(dropout(features)),
    ):
        features = values.clone().to(memory_format=memory_format).requires_grad_()
        torch.manual_seed(1)
        scores = compute(features)
        scores.square().sum().backward()
        results.append((scores, features.grad))
    assert (results[0][1] == 0).all(dim=(2, 3, 4)).any() == training
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(head, name).grad, getattr(convolution, name).grad)


@pytest.mark.parametrize("precision", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_transposed_convolution_is_that_of_torch(memory_format, precision):
    ours, theirs = TransposedConvolution(6, 4), nn.ConvTranspose3d(6, 4, 2, stride=2)
    theirs.load_state_dict(ours.state_dict())
    values = torch.randn(2, 6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    results = []
    for layer in (ours, theirs):
        features = values.clone().to(memory_format=memory_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            output = layer.to(memory_format=memory_format)(features)
        (output.float() * torch.arange(output.numel()).reshape(output.shape).sin()).sum().backward()
        results.append((output, features.grad, layer.weight.grad, layer.bias.grad))
    for our, their in zip(*results, strict=True):
        assert our.dtype == their.dtype
        assert their.abs().sum() > 0
        torch.testing.assert_close(our, their, **({"rtol": 0.02, "atol": 0.02} if precision == torch.bfloat16 else {}))
    assert results[0][0].dtype == precision
    torch.testing.assert_close(ours.eval()(values), theirs(values))


def _note_size(sizes, tensor):
    sizes.append(tensor.numel())
    return tensor


@pytest.mark.parametrize("normalization", ["batch", "instance", "group"])
def test_recomputing_changes_nothing_but_memory(normalization):
    unit = resampling_convolution(16, 16, normalization=normalization, transposed=True)
    values = torch.randn(2, 16, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    results = []
    for compute in (lambda layers, features: layers(features), recompute):
        layers, features = copy.deepcopy(unit), values.clone().requires_grad_()
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(_note_size, saved), lambda tensor: tensor):
            output = compute(layers, features)
        # Twice, as a graph that is retained can be.
        for _ in range(2):
            output.square().sum().backward(retain_graph=True)
        gradients = [parameter.grad for parameter in layers.parameters()]
        results.append((sum(saved), [output, features.grad, *gradients, *layers.state_dict().values()]))
    (plain_size, plain), (size, recomputed) = results
    for ours, theirs in zip(recomputed, plain, strict=True):
        assert torch.equal(ours, theirs)
    assert size < plain_size / 2


@pytest.mark.parametrize("learning", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_parts_of_a_batch_have_the_gradient_of_slices_in_the_layout_of_the_whole(number, learning):
    def gradient(split):
        features = torch.arange(3 * 2 * 2 * 2 * 3.0).reshape(3, 2, 2, 2, 3)
        features = features.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        seen = []
        # What reaches a map inside a network, before the leaf keeps it in a layout of its own.
        inner = features * 1
        inner.register_hook(seen.append)
        parts = split(inner)
        torch.stack([part.square().sum() for part, learns in zip(parts, learning) if learns]).sum().backward()
        return parts, seen[0]

    parts, found = gradient(lambda features: split_crops(features, number))
    expected_parts, expected = gradient(lambda features: (features[:number], features[number:]))
    for part, expected_part in zip(parts, expected_parts):
        assert torch.equal(part, expected_part)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


def test_networks_compile_for_training():
    network = torch.compile(VNet(), backend="eager")
    network(torch.randn(1, 1, 32, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_recomputed_without_a_gradient(training):
    unit = resampling_convolution(16, 16, normalization="batch", transposed=True).train(training)
    calls = []
    unit.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(not training):
        output = recompute(unit, torch.randn(1, 16, 2, 2, 2))
    if output.requires_grad:
        output.sum().backward()
    assert calls == [1]


def test_resnet_vnet_has_no_other_dropout(changeable, image):
    changeable.train()
    with torch.no_grad():
        assert torch.equal(changeable.resnet_vnet.features(image), changeable.resnet_vnet.features(image))
        features = [changeable.vnet.features(image) for _ in range(2)]
    # The V-Net has one at its deepest map, of 256 channels.
    assert not torch.equal(*features)


def test_dropout_zero_is_deterministic(changeable, image):
    for layer in changeable.modules():
        if isinstance(layer, nn.Dropout3d):
            layer.p = 0.0
    changeable.train()
    with torch.no_grad():
        assert torch.equal(changeable(image), changeable(image))


def test_dropout_option_reaches_both_networks():
    network = without_memory(lambda: DualNetwork(dropout=0.25))
    for subnetwork, rates in ((network.vnet, [0.25, 0.25]), (network.resnet_vnet, [0.25])):
        found = [layer.p for layer in subnetwork.modules() if isinstance(layer, nn.Dropout3d) and layer.p > 0]
        assert found == rates


def test_weights_have_the_spread_of_he(network):
    # Standard deviation sqrt(2 / inputs of one output); 128 * 27 inputs in the fourth stack.
    weight = network.vnet.encoder.stages[3][1][1].conv.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 27)), rel=0.01)
    weight = network.resnet_vnet.encoder.stages[3][1].conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 27)), rel=0.01)


def test_a_seed_gives_the_same_networks():
    weights = []
    with torch.random.fork_rng():
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            weights.append(VNetEncoder().stages[0][0].conv.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("build", [VNet, ResNetVNet, DualNetwork])
def test_images_are_refused(build):
    network = without_memory(build)
    for shape, message in (
        ((1, 1, 16, 24, 16), r"image must have spatial sizes divisible by 16, got \[16, 24, 16\]\."),
        ((1, 1, 16, 16, 17), r"divisible by 16, got \[16, 16, 17\]\."),
        ((1, 3, 16, 16, 16), r"image must have shape \(B, 1, X, Y, Z\), got \[1, 3, 16, 16, 16\]\."),
        ((1, 16, 16, 16), r"image must have shape \(B, 1, X, Y, Z\), got \[1, 16, 16, 16\]\."),
    ):
        with pytest.raises(ValueError, match=message):
            network(torch.empty(shape, device="meta"))


@pytest.mark.parametrize("build", [VNet, ResNetVNet, DualNetwork])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be from 1 to 16, got 0"),
        ({"in_channels": 17}, "in_channels must be from 1 to 16, got 17"),
        ({"out_channels": 1}, r"out_channels must be from 2 \(background and one class\) to 128, got 1"),
        ({"out_channels": 129}, "to 128, got 129"),
        ({"in_channels": -1}, "in_channels must be from 1 to 16, got -1"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0\."),
        ({"dropout": 1.5}, r"dropout must be at least 0 and below 1, got 1\.5\."),
        ({"dropout": -0.1}, r"dropout must be at least 0 and below 1, got -0\.1\."),
        ({"normalization": "layer"}, "normalization must be 'batch', 'instance' or 'group', got 'layer'"),
    ],
)
def test_options_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        without_memory(lambda: build(**options))


def test_limits_are_allowed():
    check_channels(16, 128)
    check_channels(1, 2)
    assert normalization_layer("group") == ("group", {"num_groups": 8})
    assert [normalization_layer(name) for name in ("batch", "instance")] == ["batch", "instance"]


@pytest.mark.parametrize(("normalization", "layer"), [("instance", nn.InstanceNorm3d), ("group", nn.GroupNorm)])
def test_other_normalizations(image, normalization, layer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DualNetwork(normalization=normalization)
    for part in (network.vnet, network.resnet_vnet.decoder):
        assert any(isinstance(module, layer) for module in part.modules())
        assert not any(isinstance(module, nn.BatchNorm3d) for module in part.modules())
    # The ResNet keeps its batch normalization.
    assert any(isinstance(module, nn.BatchNorm3d) for module in network.resnet_vnet.encoder.modules())
    output = network(image)
    assert list(output.shape) == [2, 2, *SIZE]
    output[:, 1].mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_samples_do_not_meet_in_instance_normalization():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VNet(dropout=0.0, normalization="instance").train()
        image = torch.randn(2, 1, 32, 32, 32)
    with torch.no_grad():
        both = network(image)
        alone = network(image[:1])
    torch.testing.assert_close(both[:1], alone, rtol=1e-2, atol=1e-2)


def test_pair_is_the_mean_of_both(network, image):
    with torch.no_grad():
        output = network(image)
        expected = (network.vnet(image).softmax(1) + network.resnet_vnet(image).softmax(1)) / 2
    assert torch.equal(output, expected)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.sum(dim=1), torch.ones(2, *SIZE))
    # The two networks are no copies of each other.
    assert not torch.allclose(network.vnet(image), network.resnet_vnet(image))


@pytest.mark.parametrize(
    ("vnet", "resnet_vnet", "mean", "disagreement"),
    [
        ([0.9, 0.1], [0.4, 0.6], [0.65, 0.35], 0.5),
        ([0.7, 0.3], [0.7, 0.3], [0.7, 0.3], 0.0),
        # As certain as float32 can be, of two classes.
        ([1.0, 1e-30], [1e-30, 1.0], [0.5, 0.5], 1.0),
    ],
)
def test_disagreement_by_hand(changeable, image, vnet, resnet_vnet, mean, disagreement):
    changeable.with_disagreement = True
    answer_always(changeable.vnet, vnet)
    answer_always(changeable.resnet_vnet, resnet_vnet)
    with torch.no_grad():
        output = changeable(image)
    expected = torch.tensor([*mean, disagreement]).view(1, 3, 1, 1, 1).expand_as(output)
    torch.testing.assert_close(output, expected)


def test_disagreement_is_added_to_the_mean(network, changeable, image):
    changeable.with_disagreement = True
    with torch.no_grad():
        output = changeable(image)
        assert torch.equal(output[:, :2], network(image))
        # For two classes the total variation distance is the distance of the foreground probabilities.
        vnet, resnet_vnet = network.vnet(image).softmax(1), network.resnet_vnet(image).softmax(1)
    torch.testing.assert_close(output[:, 2], (vnet[:, 1] - resnet_vnet[:, 1]).abs(), rtol=0, atol=1e-6)
    assert output[:, 2].max() > 0.01


def test_disagreement_has_no_weights_of_its_own(network):
    keys = without_memory(lambda: DualNetwork(with_disagreement=True)).state_dict().keys()
    assert keys == network.state_dict().keys()


def test_torchscript_gives_the_same(network, image):
    scripted = torch.jit.script(network)
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), network(image))
        torch.testing.assert_close(scripted.vnet.head(scripted.vnet.features(image)), network.vnet(image))
    with pytest.raises(torch.jit.Error, match="image must have spatial sizes divisible by 16"):
        scripted(image[..., :15])


def test_memory_format_does_not_matter(network, changeable, image):
    changeable.to(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        for name in ("vnet", "resnet_vnet"):
            expected = getattr(network, name)(image)
            given = getattr(changeable, name)(image.to(memory_format=torch.channels_last_3d))
            torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


@needs_bfloat16
def test_autocast_gives_float32_probabilities(network, image):
    with torch.no_grad():
        expected = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network.vnet(image).dtype == torch.bfloat16
            output = network(image)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.sum(dim=1), torch.ones(2, *SIZE))
    # bfloat16 keeps eight bits; two unrelated predictions would be some 0.3 apart.
    assert (output - expected).abs().mean() < 0.05


@needs_bfloat16
@pytest.mark.parametrize("size", [(32, 32, 32), (48, 48, 16), (64, 64, 16)])
@pytest.mark.parametrize("name", ["vnet", "resnet_vnet"])
def test_autocast_gives_the_gradients_of_float32(changeable, name, size):
    # PyTorch's own bfloat16 is wrong on CPUs where the deepest map has size 2 along its first axis or 1 along its last.
    subnetwork = getattr(changeable, name)
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))
    weights = [layer.weight for layer in subnetwork.encoder.stages[-1].modules() if isinstance(layer, nn.Conv3d)]
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            features = subnetwork.encoder(image)[4]
        gradients.append(torch.autograd.grad(features.float().square().mean(), weights))
    for precise, rough in zip(*gradients, strict=True):
        assert rough.isfinite().all()
        assert nn.functional.cosine_similarity(precise.flatten(), rough.flatten(), dim=0) > 0.9
