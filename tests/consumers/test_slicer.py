# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""3D Slicer's bundle module: inference.json alone, the evaluator run without initialize, no bundle on the path."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np

#: What the module's inference script does with a bundle, a volume and a file for the result.
SLICER = """
import shutil
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

bundle, image, result = map(Path, sys.argv[1:])
assert not any((Path(folder) / "scripts").is_dir() for folder in sys.path if folder)
result.parent.mkdir(parents=True)
parser = ConfigParser()
parser.read_config(str(bundle / "configs/inference.json"))
parser["bundle_root"] = str(bundle)
parser["dataset_dir"] = str(image.parent)
parser["output_dir"] = str(result.parent)
parser["datalist"] = [str(image)]
parser["window_device"] = "cpu"
parser["device"] = torch.device("cpu")
parser["inferer"]["device"] = torch.device("cpu")
parser["dataloader"]["num_workers"] = 0
# The volumes of the test are small.
parser["patch_size"] = [32, 32, 32]
parser["overlap"] = 0.25
with torch.no_grad():
    assert len(parser.get_parsed_content("dataloader")) == 1
    parser.get_parsed_content("evaluator").run()
(written,) = result.parent.rglob("*.nii.gz")
shutil.move(written, result)
"""


def test_a_volume_is_segmented_as_at_the_command_line(bundle, phantom_dir, run_outside, tmp_path, label_map):
    image = phantom_dir / "images/phantom_000.nii.gz"
    run_outside(SLICER, bundle, image, tmp_path / "slicer/result.nii.gz")
    result = nib.load(tmp_path / "slicer/result.nii.gz")
    np.testing.assert_allclose(result.affine, nib.load(image).affine, atol=1e-4)
    np.testing.assert_array_equal(np.asanyarray(result.dataobj), np.asanyarray(label_map(image).dataobj))


def test_every_segment_has_a_name(bundle):
    # The module names segment i after channel i + 1.
    names = json.loads((bundle / "configs/metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert list(names["channel_def"]) == [str(channel) for channel in range(names["num_channels"])]
    assert names["channel_def"]["0"] == "background"
