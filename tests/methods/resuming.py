# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A short run of a method, and the same run resumed from its checkpoint in the middle."""

from __future__ import annotations

import torch
from conftest import SMALL


def assert_resumed_run_ends_with_the_same_bits(make_workflow, phantom_dir, folder, method, **overrides):
    """Train four iterations, take the second half away, train it again, and compare all that a method keeps.

    Args:
        make_workflow: the fixture.
        phantom_dir: folder of the phantom volumes.
        folder: where to train.
        method: name of the overlay.
        **overrides: further keys of the configuration.

    Returns:
        state of the method after the last iteration.
    """
    last = folder / "checkpoints/checkpoint_00000004.pt"

    def run(**options):
        arguments = {**SMALL, "patch_size": [32, 16, 16], "val_interval": 4, **overrides, **options}
        arguments |= {"dataset_dir": str(phantom_dir), "output_dir": str(folder)}
        workflow = make_workflow("train", method, **arguments)
        workflow.initialize()
        workflow.run()
        return torch.load(last, weights_only=True)["method"]

    straight = run()
    last.unlink()
    (folder / "model_final.pt").unlink()
    resumed = run(resume=True)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    return straight
