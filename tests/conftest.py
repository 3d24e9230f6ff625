# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What several tests share: a small phantom data set and the shipped configurations with small sizes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.data.phantom import generate_phantom_dataset
from scripts.errors import BundleError
from scripts.precision import resolve_precision

ROOT = Path(__file__).resolve().parents[1]
#: Overrides that make a training run of seconds, with the same figures on every processor.
SMALL = {
    "keep_memory": False,
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


def pytest_collection_modifyitems(items):
    """Begin with the runs of minutes: at the end one process would do them while the others have nothing left."""
    items.sort(key=lambda item: item.path.name != "test_training.py")


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


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A copy of the bundle with weights of an untrained network, in half precision as weights are handed out."""
    folder = tmp_path_factory.mktemp("zoo") / "left_atrium_segmentation"
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    torch.manual_seed(0)
    network = ConfigParser(ConfigParser.load_config_file(ROOT / "configs/inference.json")).get_parsed_content(
        "network_def"
    )
    (folder / "models").mkdir()
    torch.save(network.half().state_dict(), folder / "models/model.pt")
    return folder


@pytest.fixture
def run_outside(tmp_path):
    """Run a Python program in an empty folder, with nothing of this repository on its path."""

    def run(program, *arguments):
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def label_map(bundle, tmp_path, make_workflow):
    """Segment a small volume with the inference workflow: what every consumer must get as well."""

    def segment(image, **overrides):
        workflow = make_workflow(
            "inference",
            workflow_type="infer",
            dataset_dir=str(image),
            output_dir=str(tmp_path / "expected"),
            ckpt_path=str(bundle / "models/model.pt"),
            patch_size=[32, 32, 32],
            overlap=0.25,
            overwrite=True,
            **overrides,
        )
        workflow.initialize()
        workflow.run()
        label = nib.load(tmp_path / "expected" / image.name.replace(".nii", "_seg.nii"))
        assert 0 < np.asanyarray(label.dataobj).mean() < 1
        return label

    return segment


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
