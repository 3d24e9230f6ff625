# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Sizes, values and refusals of the V-Net with several decoders."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scripts.networks.blocks import Decoder, upsampling_unit
from scripts.networks.multi_decoder_vnet import MultiDecoderVNet
from scripts.networks.vnet import VNet

# The smallest image whose deepest map has more than one voxel.
SIZE = (32, 16, 16)


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def without_memory(build):
    """Build a network whose tensors have a shape and no values, for questions of shape alone."""
    with torch.device("meta"):
        return build().eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network(image):
    """A network with the batch statistics of the image as running ones; no test may change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MultiDecoderVNet(num_decoders=3)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm3d):
                layer.momentum = 1.0
        with torch.no_grad():
            network.train().all_logits(image)
    return network.eval()


def test_parameter_counts():
    assert count_parameters(without_memory(MultiDecoderVNet)) == 12_347_716
    network = without_memory(lambda: MultiDecoderVNet(num_decoders=3))
    assert count_parameters(network) == 15_246_566
    first, *others = (count_parameters(decoder) for decoder in network.decoders)
    assert first == 2_071_970 - 34
    # A 3x3x3 convolution has 27 weights where a 2x2x2 one has 8.
    pairs = 256 * 128 + 128 * 64 + 64 * 32 + 32 * 16
    assert others == [first + (27 - 8) * pairs] * 2


def test_decoders_upsample_in_different_ways():
    network = without_memory(lambda: MultiDecoderVNet(num_decoders=3))
    first, *others = (decoder.up for decoder in network.decoders)
    assert all(isinstance(up.conv, nn.ConvTranspose3d) for up in first)
    modes = [[(up[0].mode, up[0].align_corners) for up in ups] for ups in others]
    assert modes == [[("trilinear", True)] * 4, [("nearest", None)] * 4]


@pytest.mark.parametrize("num_decoders", [2, 3])
@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 2), (3, 5)])
def test_output_shapes(num_decoders, in_channels, num_classes):
    network = without_memory(lambda: MultiDecoderVNet(in_channels, num_classes, num_decoders=num_decoders))
    image = torch.empty(2, in_channels, 48, 32, 16, device="meta")
    assert list(network(image).shape) == [2, num_classes, 48, 32, 16]
    assert [list(logits.shape) for logits in network.all_logits(image)] == [
        [2, num_classes, 48, 32, 16] for _ in range(num_decoders)
    ]


def test_forward_is_the_softmax_of_the_first_decoder(network, image):
    with torch.no_grad():
        output, logits = network(image), network.all_logits(image)
    assert torch.equal(output, logits[0].softmax(dim=1))
    torch.testing.assert_close(output.sum(dim=1), torch.ones(2, *SIZE))
    for other in logits[1:]:
        assert not torch.allclose(other, logits[0])


def test_forward_does_not_need_the_other_decoders(network, image):
    changed = copy.deepcopy(network)
    for decoder in changed.decoders[1:]:
        decoder.forward = None
    with torch.no_grad():
        assert torch.equal(changed(image), network(image))


def test_encoder_and_first_decoder_are_those_of_the_vnet(network, image):
    vnet = VNet().eval()
    weights = {}
    for name, value in network.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "encoder":
            weights[name] = value
        elif rest.startswith("0."):
            weights[f"{part.removesuffix('s')}.{rest.removeprefix('0.')}"] = value
    vnet.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(vnet(image), network.all_logits(image)[0])


def test_each_decoder_has_its_own_gradient_and_the_encoder_all(network, image):
    network = copy.deepcopy(network).train()
    for index, logits in enumerate(network.all_logits(image)):
        term = logits.softmax(dim=1)[:, 1].square().mean()
        for other, decoder in enumerate(network.decoders):
            gradients = torch.autograd.grad(term, list(decoder.parameters()), retain_graph=True, allow_unused=True)
            if other == index:
                assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
                assert sum(gradient.norm() for gradient in gradients) > 0
            else:
                assert set(gradients) == {None}
        gradients = torch.autograd.grad(term, list(network.encoder.parameters()), retain_graph=True)
        assert sum(gradient.norm() for gradient in gradients) > 0


def test_dropout_reaches_every_decoder(network, image):
    network = copy.deepcopy(network)
    network.dropout.train()
    torch.manual_seed(0)
    with torch.no_grad():
        first, second = network.all_logits(image), network.all_logits(image)
    assert not any(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_trilinear_keeps_the_corners_and_nearest_repeats():
    features = torch.arange(4.0).reshape(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
    expected = {"trilinear": [3 * i / 7 for i in range(8)], "nearest": [0, 0, 1, 1, 2, 2, 3, 3]}
    for upsampling, values in expected.items():
        unit = upsampling_unit(1, 1, normalization="batch", upsampling=upsampling)
        doubled = unit[0](features)
        assert list(doubled.shape) == [1, 1, 8, 4, 4]
        torch.testing.assert_close(doubled[0, 0, :, 0, 0], torch.tensor(values, dtype=torch.float32))


@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("size", [(2, 2, 2), (4, 3, 2)])
def test_half_precision_trains_every_upsampling(upsampling, memory_format, size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unit = upsampling_unit(32, 16, normalization="batch", upsampling=upsampling).to(memory_format=memory_format)
        features = torch.randn(2, 32, *size).to(memory_format=memory_format)
        factors = torch.randn(2, 16, *(2 * length for length in size))
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = unit(features)
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
        weights = [parameter for parameter in unit.parameters() if parameter.ndim == 5]
        gradients.append(torch.autograd.grad((output.float() * factors).sum(), weights)[0])
    assert torch.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0) > 0.99
    assert (gradients[1].norm() / gradients[0].norm()).item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("normalization", ["instance", "group"])
def test_other_normalizations_build(normalization):
    network = without_memory(lambda: MultiDecoderVNet(num_decoders=3, normalization=normalization))
    assert not any(isinstance(layer, nn.BatchNorm3d) for layer in network.modules())


def test_torchscript_gives_the_same(network, image):
    scripted = torch.jit.script(network)
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), network(image))
        for given, expected in zip(scripted.all_logits(image), network.all_logits(image), strict=True):
            torch.testing.assert_close(given, expected)
    with pytest.raises(torch.jit.Error, match="image must have spatial sizes divisible by 16"):
        scripted(image[..., :15])


def test_memory_format_and_precision_do_not_matter_much(network, image):
    with torch.no_grad():
        expected = network.all_logits(image)
        changed = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
        channels_last = image.to(memory_format=torch.channels_last_3d)
        for given, wanted in zip(changed.all_logits(channels_last), expected, strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, output = changed.all_logits(channels_last), changed(channels_last)
    assert output.dtype == torch.float32
    for given, wanted in zip(half, expected, strict=True):
        assert given.dtype == torch.bfloat16
        # bfloat16 keeps eight bits; the predictions of two decoders are some 0.25 apart.
        assert (given.float().softmax(dim=1) - wanted.softmax(dim=1)).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_decoders": 1}, r"num_decoders must be 2 or 3, got 1\."),
        ({"num_decoders": 4}, r"num_decoders must be 2 or 3, got 4\."),
        ({"in_channels": 0}, "in_channels must be from 1 to 16, got 0"),
        ({"out_channels": 1}, r"out_channels must be from 2 \(background and one class\) to 128, got 1"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0\."),
        ({"normalization": "layer"}, "normalization must be 'batch', 'instance' or 'group', got 'layer'"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        without_memory(lambda: MultiDecoderVNet(**options))


def test_images_and_upsampling_are_refused():
    network = without_memory(MultiDecoderVNet)
    for call in (network, network.all_logits):
        with pytest.raises(ValueError, match=r"divisible by 16, got \[16, 24, 16\]\."):
            call(torch.empty(1, 1, 16, 24, 16, device="meta"))
        with pytest.raises(ValueError, match=r"image must have shape \(B, 1, X, Y, Z\), got \[1, 3, 16, 16, 16\]\."):
            call(torch.empty(1, 3, 16, 16, 16, device="meta"))
    with pytest.raises(ValueError, match="upsampling must be one of transposed, trilinear, nearest, got 'cubic'"):
        Decoder(upsampling="cubic")
