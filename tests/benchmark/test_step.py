# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The modes that the benchmark of a step compares compute the same, to the rounding of their number formats."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT, needs_bfloat16
from monai.bundle import ConfigParser

from scripts.benchmark.step import MODES, _noise, _RepeatedBatch
from scripts.trainer import SemiSupervisedTrainer

#: Small crops, terms without their ramps, and no sample of voxels, which one voxel more or less would draw anew.
OVERRIDES = {
    "device": "cpu",
    "patch_size": [32, 32, 32],
    "method_def#pseudo_label_weight": 1.0,
    "method_def#contrastive_weight": 0.1,
    "method_def#contrastive#sample_fraction": 1.0,
}


def train_one_step(mode, *, seed=0, precision="float32"):
    """The networks, terms and gradients by network of a step of the default method."""
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/train.json"))
    parser.update({**MODES[mode], **OVERRIDES})
    torch.manual_seed(seed)
    batch = _noise(parser)
    network, method, optimizer = (parser.get_parsed_content(name) for name in ("network", "method", "optimizer"))
    channels_last = parser.get_parsed_content("channels_last")
    trainer = SemiSupervisedTrainer(
        "cpu", 1, _RepeatedBatch(batch, 1), network, method, optimizer, precision=precision, channels_last=channels_last
    )
    gradients = {}

    def note(*_):
        for name in ("vnet", "resnet_vnet"):
            parameters = getattr(network, name).parameters()
            gradients[name] = torch.cat([parameter.grad.flatten() for parameter in parameters])

    optimizer.register_step_pre_hook(note)
    trainer.run()
    return network, trainer.state.terms, gradients


def difference(value, expected):
    return float((value - expected).norm() / expected.norm())


def test_modes_have_the_same_losses_and_gradients():
    (network, terms, gradients), (bundle_network, bundle_terms, bundle_gradients) = map(
        train_one_step, ("baseline", "bundle")
    )
    other_gradients = train_one_step("baseline", seed=1)[2]
    assert all(weight.is_contiguous() for weight in network.parameters())
    kernels = [weight for weight in bundle_network.parameters() if weight.dim() == 5]
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in kernels)
    assert not all(weight.is_contiguous() for weight in kernels)
    losses = [name for name in terms if name.startswith("loss")]
    assert len(losses) == 8
    assert {name: bundle_terms[name] for name in losses} == pytest.approx(
        {name: terms[name] for name in losses}, rel=1e-4
    )
    for name, gradient in gradients.items():
        # The way back through these networks multiplies what float32 rounds away: about 0.01 is left of it.
        assert difference(bundle_gradients[name], gradient) < 0.03
        assert difference(other_gradients[name], gradient) > 0.3


@needs_bfloat16
def test_bfloat16_has_the_losses_of_float32_and_gradients_of_their_direction():
    (_, terms, gradients), (_, rounded_terms, rounded_gradients) = (
        train_one_step("bundle", precision=precision) for precision in ("float32", "bfloat16")
    )
    losses = [name for name in terms if name.startswith("loss")]
    assert {name: rounded_terms[name] for name in losses} == pytest.approx(
        {name: terms[name] for name in losses}, rel=5e-3
    )
    assert rounded_terms != terms
    # On noise, where an error grows most on its way back through the layers.
    for name, least in (("vnet", 0.7), ("resnet_vnet", 0.93)):
        assert torch.cosine_similarity(rounded_gradients[name], gradients[name], dim=0) > least
