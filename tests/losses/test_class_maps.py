# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The predicted class is that of numpy, whatever the layout of the scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.losses.class_maps import predicted_class


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predicted_class_is_the_first_of_the_highest(dtype, memory_format):
    # So few values that many voxels are ties.
    logits = torch.randint(-2, 3, (2, 4, 5, 5, 5)).to(dtype).contiguous(memory_format=memory_format)
    expected = torch.tensor(np.argmax(logits.float().numpy(), axis=1))[:, None]
    assert torch.equal(predicted_class(logits), expected)
