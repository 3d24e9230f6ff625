# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from monai.transforms import Affine
from torch.nn import functional as F

from scripts.inferer import AugmentedInferer, FilledWindowInferer


class CountingNetwork:
    """Finds foreground everywhere, so that a window without the network can be told from one with it."""

    def __init__(self):
        self.num_windows = 0

    def __call__(self, windows):
        self.num_windows += len(windows)
        background = torch.full_like(windows[:, :1], 0.25)
        return torch.cat((background, 1 - background), dim=1)


@pytest.fixture
def network():
    return CountingNetwork()


@pytest.mark.parametrize(("sw_batch_size", "num_windows"), [(1, 2), (3, 1)])
def test_empty_windows_are_background_without_the_network(network, sw_batch_size, num_windows):
    volume = torch.full((1, 1, 64, 16, 16), -7.0)
    volume[:, :, 16:32] = torch.randn(1, 1, 16, 16, 16)
    infer = FilledWindowInferer(roi_size=16, sw_batch_size=sw_batch_size, overlap=0)
    probabilities = infer(volume, network)
    # One more than the filled one where an empty window comes first: it tells the number of channels.
    assert network.num_windows == num_windows
    assert probabilities.shape == (1, 2, 64, 16, 16)
    assert probabilities[0, :, 20, 3, 3].tolist() == [0.25, 0.75]
    assert probabilities[0, 1].amax(dim=(1, 2)).gt(0).nonzero().squeeze(1).tolist() == list(range(16, 32))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 64, 16, 16))


def test_windows_are_empty_where_each_channel_has_one_value(network):
    volume = torch.tensor([-7.0, 3.0]).view(1, 2, 1, 1, 1).repeat(1, 1, 32, 16, 16)
    volume[:, 1, :16] = torch.randn(16, 16, 16)
    probabilities = FilledWindowInferer(roi_size=16, overlap=0)(volume, network)
    assert network.num_windows == 1
    assert probabilities[0, 1, :, 0, 0].tolist() == [0.75] * 16 + [0.0] * 16


def test_a_volume_of_one_value_is_background(network):
    probabilities = FilledWindowInferer(roi_size=16, overlap=0.5)(torch.zeros(1, 1, 32, 32, 32), network)
    assert network.num_windows == 1
    assert probabilities[:, 0].eq(1).all()


class RecordingNetwork:
    """Says of each voxel what is there, more by 1 in each call."""

    def __init__(self):
        self.seen = []

    def __call__(self, image):
        self.seen.append(image)
        return image + len(self.seen) - 1


@pytest.fixture
def ball():
    """A smooth volume without any symmetry, (1, 1, 24, 20, 16)."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in (24, 20, 16)), indexing="ij")
    return torch.exp(-2 * (x**2 + (y - 0.2) ** 2 + 2 * (z + 0.1) ** 2 + x * y))[None, None]


def test_without_views_a_volume_is_predicted_once(ball):
    network = RecordingNetwork()
    assert AugmentedInferer(SimpleInferer())(ball, network) is not ball
    assert [seen is ball for seen in network.seen] == [True]


@pytest.mark.parametrize("turn", [[0.2, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, -0.3], [0.1, 0.1, 0.2]])
def test_a_view_is_turned_as_monai_turns(turn, ball):
    network = RecordingNetwork()
    AugmentedInferer(SimpleInferer(), [{"turn": turn}])(ball, network)
    turned = Affine(rotate_params=turn, padding_mode="border", image_only=True)(ball[0])[None]
    assert (turned - ball).abs().max() > 0.05
    torch.testing.assert_close(network.seen[1], turned.as_tensor(), atol=1e-5, rtol=0)


def test_a_view_has_the_size_that_it_is_given(ball):
    network = RecordingNetwork()
    AugmentedInferer(SimpleInferer(), [{"size": 1.25}, {"size": 0.8}])(ball, network)
    sizes = [[24, 20, 16], [30, 25, 20], [19, 16, 13]]
    assert [list(seen.shape[2:]) for seen in network.seen] == sizes
    for seen, size in zip(network.seen, sizes, strict=True):
        torch.testing.assert_close(seen, F.interpolate(ball, size=size, mode="trilinear"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictions_of_views_return_to_their_places_and_are_averaged(dtype, ball):
    views = ConfigParser.load_config_file(ROOT / "configs/test_time_augmentation.json")["test_time_views"]
    assert len(views) == 8
    for view in [*views, {"turn": [0.0, 0.0, 0.3], "size": 0.9}]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            mean = AugmentedInferer(SimpleInferer(), [view])(ball, RecordingNetwork())
        inner = (..., slice(4, -4), slice(4, -4), slice(4, -4))
        # The second call says 1 more: half of it is in the mean.
        torch.testing.assert_close(mean[inner], ball[inner] + 0.5, atol=0.02, rtol=0)
    mean = AugmentedInferer(SimpleInferer(), views)(ball, RecordingNetwork())
    torch.testing.assert_close(mean[inner], ball[inner] + 4, atol=0.04, rtol=0)


def test_what_a_view_shows_nothing_of_is_predicted_without_it():
    mean = AugmentedInferer(SimpleInferer(), [{"turn": [0.0, 0.0, 0.25]}])(
        torch.zeros(1, 1, 24, 24, 8), RecordingNetwork()
    )
    assert mean[0, 0, [0, 0, 23, 23], [0, 23, 0, 23]].eq(0).all()
    torch.testing.assert_close(mean[0, 0, 8:16, 8:16], torch.full((8, 8, 8), 0.5))


def test_turned_windows_of_one_value_are_background(network):
    volume = torch.full((1, 1, 64, 32, 32), -1.2345678)
    volume[:, :, :16] = torch.randn(16, 32, 32)
    infer = FilledWindowInferer(roi_size=16, overlap=0)
    probabilities = AugmentedInferer(infer, [{"turn": [0.2, 0.0, 0.0]}])(volume, network)
    # Four windows of each pass are filled; one that is not is computed for its number of channels where it is first.
    assert network.num_windows <= 10
    torch.testing.assert_close(probabilities[0, 0, 17:], torch.ones(47, 32, 32))
