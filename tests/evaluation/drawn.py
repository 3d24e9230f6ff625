# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What any picture must be."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread


def assert_is_picture(path, *, width=None):
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)
    assert 200 < pixels.shape[0] < 4000
    assert 300 < pixels.shape[1] < 2000
    assert pixels[..., :3].std() > 0.05
    assert np.all(pixels[0, 0, :3] == 1)
    if width is not None:
        assert pixels.shape[1] == pytest.approx(width, abs=2)
    return pixels
