# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser


def inferer_of_the_evaluation(**settings):
    config = json.loads((ROOT / "configs/evaluate.json").read_text())
    parser = ConfigParser({"inferer": config["validate#inferer"], "test_time_views": [], **settings})
    return parser.get_parsed_content("inferer")


def windows_of_the_protocol(size, patch, stride):
    """Starts min(k * stride, size - patch) for k = 0 .. ceil((size - patch) / stride)."""
    return sorted({min(k * stride, size - patch) for k in range(math.ceil((size - patch) / stride) + 1)})


@pytest.mark.parametrize(("patch", "stride"), [(112, 18), (80, 4), (96, 16), (48, 8), (32, 8)])
def test_windows_start_where_the_reference_protocol_starts_them(patch, stride):
    inferer = inferer_of_the_evaluation(patch_size=[patch, 1, 1], strides=[stride, 1, 1])
    for size in range(patch, patch + 130):
        starts = set()

        def record(windows, seen=starts):
            seen.update(int(start) for start in windows[:, 0, 0, 0, 0])
            return windows

        # Every voxel holds its own position, so that the first voxel of a window tells its start.
        inferer(torch.arange(size, dtype=torch.float32).view(1, 1, size, 1, 1), record)
        assert sorted(starts) == windows_of_the_protocol(size, patch, stride)


def test_windows_of_an_example():
    assert windows_of_the_protocol(190, 112, 18) == [0, 18, 36, 54, 72, 78]


def test_overlapping_windows_are_averaged_evenly_and_small_volumes_padded():
    inferer = inferer_of_the_evaluation(patch_size=[16, 16, 16], strides=[4, 4, 4])
    image = torch.randn(1, 1, 21, 9, 16)
    torch.testing.assert_close(inferer(image, lambda windows: 2 * windows), 2 * image)
