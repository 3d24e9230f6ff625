# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What several tests share: a small phantom data set and the shipped configurations with small sizes."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from scripts.data.phantom import generate_phantom_dataset
from scripts.errors import BundleError
from scripts.precision import resolve_precision

ROOT = Path(__file__).resolve().parents[1]
#: Overrides that make a training run of seconds, with the same figures on every processor.
SMALL = {
    "patch_size": [32, 32, 32],
    "iterations": 4,
    "val_interval": 2,
    "checkpoint_interval": 2,
    "log_interval": 2,
    "precision": "float32",
}
needs_bfloat16 = pytest.mark.skipif(
    resolve_precision("auto", "cpu") != "bfloat16", reason="this processor has no bfloat16 instructions"
)


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory):
    """Six generated volumes of about 32 voxels: two labeled, two unlabeled, one for validation, one for the test."""
    folder = tmp_path_factory.mktemp("phantom")
    generate_phantom_dataset(folder, num_cases=6, size=32, num_labeled=2)
    return folder


@pytest.fixture
def make_workflow():
    """Build a workflow from shipped configurations by name, with overrides."""

    def build(*names, workflow_type="train", **overrides):
        return ConfigWorkflow(
            config_file=[str(ROOT / "configs" / f"{name}.json") for name in names],
            workflow_type=workflow_type,
            logging_file=False,
            bundle_root=str(ROOT),
            **overrides,
        )

    return build


@contextmanager
def assert_refused(match, kind=BundleError):
    """Expect an error of this kind and text, also where MONAI wraps it into RuntimeErrors."""
    with pytest.raises((kind, RuntimeError)) as caught:
        yield
    error = caught.value
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    assert error is not None, f"no {kind.__name__} behind {caught.value!r}"
    assert re.search(match, str(error)), str(error)
