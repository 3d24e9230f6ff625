# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A short run of a method, and the same run resumed from its checkpoint in the middle."""

from __future__ import annotations

import json

import torch
from conftest import SMALL


def _same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_resumed_run_ends_with_the_same_bits(
    make_workflow, phantom_dir, folder, method, *, iterations=2, **overrides
):
    """Train some iterations, take the second half away, train it again, and compare all that a checkpoint holds.

    Args:
        make_workflow: the fixture.
        phantom_dir: folder of the phantom volumes.
        folder: where to train.
        method: name of the overlay.
        iterations: length of the run, an even number.
        **overrides: further keys of the configuration.

    Returns:
        state of the method after the last iteration.
    """
    # Without validation cases, whose pictures take longer than these iterations.
    split = json.loads((phantom_dir / "split.json").read_text())
    split_file = folder.with_suffix(".json")
    split_file.write_text(json.dumps({**split, "validation": [], "test": split["validation"] + split["test"]}))
    half, last = (folder / f"checkpoints/checkpoint_{number:08d}.pt" for number in (iterations // 2, iterations))

    def load(path):
        # Not copied into memory: only compared.
        return torch.load(path, weights_only=True, mmap=True)

    def run(**options):
        arguments = {**SMALL, "patch_size": [32, 16, 16], "iterations": iterations}
        arguments |= {"checkpoint_interval": iterations // 2, **overrides, **options}
        arguments |= {"dataset_dir": str(phantom_dir), "split_file": str(split_file), "output_dir": str(folder)}
        workflow = make_workflow("train", method, **arguments)
        workflow.initialize()
        workflow.run()
        return load(last)

    straight, kept = run(), half.stat().st_mtime_ns
    last.unlink()
    (folder / "model_final.pt").unlink()
    resumed = run(resume=True)
    # A run that began anew would end the same, and so would one that learns nothing in its second half.
    assert half.stat().st_mtime_ns == kept
    assert not _same(load(half)["method"], straight["method"])
    for name, value in straight.items():
        assert _same(value, resumed[name]), name
    return straight["method"]
