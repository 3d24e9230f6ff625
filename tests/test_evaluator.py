# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the evaluator hands to the network and to the metrics."""

from __future__ import annotations

import torch

from scripts.evaluator import prepare_reference_batch


def test_image_and_reference_are_where_the_network_is():
    batch = {"image": torch.zeros(1, 1, 4, 4, 4), "reference": torch.zeros(1, 1, 8, 8, 8)}
    # The device meta stands for a GPU: metrics refuse a reference that is not where the prediction is.
    image, reference = prepare_reference_batch(batch, torch.device("meta"))
    assert (image.device.type, reference.device.type) == ("meta", "meta")
    assert (image.shape, reference.shape) == (batch["image"].shape, batch["reference"].shape)


def test_a_case_may_have_no_reference():
    image, reference = prepare_reference_batch({"image": torch.ones(1, 1, 2, 2, 2)}, torch.device("cpu"))
    assert image.sum() == 8
    assert reference is None
