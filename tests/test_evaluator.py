# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the evaluator hands to the network and to the metrics."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_bfloat16
from monai.inferers import SimpleInferer

from scripts.evaluator import SegmentationEvaluator, prepare_reference_batch


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


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
def test_the_network_computes_in_the_precision_and_transforms_after_it_do_not(precision):
    seen = []

    class Network(torch.nn.Conv3d):
        def forward(self, image):
            seen.append(super().forward(image).dtype)
            return image

    def transform(item):
        seen.append((torch.eye(4) @ torch.eye(4)).dtype)
        return item

    evaluator = SegmentationEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1, 4, 4, 4)}],
        network=Network(1, 1, kernel_size=1),
        inferer=SimpleInferer(),
        postprocessing=transform,
        precision=precision,
    )
    evaluator.run()
    assert seen == [getattr(torch, precision), torch.float32]
