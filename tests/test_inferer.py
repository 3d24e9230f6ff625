# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from scripts.inferer import FilledWindowInferer


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
