# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""MONAI Deploy: one TorchScript file with its configurations, and no Python of the bundle anywhere."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np

#: What MonaiBundleInferenceOperator does with the file and a volume that a DICOM reader has given it.
DEPLOY = """
import importlib.util
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform

assert importlib.util.find_spec("scripts") is None
model, image, result, spacing = sys.argv[1:]
parser = ConfigParser()
with zipfile.ZipFile(model) as archive, tempfile.TemporaryDirectory() as folder:
    parser.read_meta(f=json.loads(archive.read("model/extra/metadata.json")))
    parser.read_config(archive.extract("model/extra/inference.json", path=folder))
# The volumes of the test are small.
parser["patch_size"] = [32, 32, 32]
parser["overlap"] = 0.25
parser["spacing"] = json.loads(spacing)
parser.parse()
device = parser.get_parsed_content("device")
inferer = parser.get_parsed_content("inferer")


def steps(name):
    compose = parser.get_parsed_content(name)
    assert isinstance(compose.transforms[0], MapTransform)
    unwanted = ("LoadImage", "SaveImage")
    kept = [step for step in compose.transforms if not any(word in type(step).__name__ for word in unwanted)]
    compose.transforms = tuple(kept)
    return compose


preprocessing, postprocessing = steps("preprocessing"), steps("postprocessing")
volume = nib.load(image)
meta = {
    "affine": volume.affine.copy(),
    "original_affine": volume.affine.copy(),
    "spatial_shape": np.asarray(volume.shape),
    "original_channel_dim": "no_channel",
}
array = torch.from_numpy(np.asarray(volume.dataobj, dtype=np.float32))
network = torch.jit.load(model, map_location=device).eval()
(name,) = parser["_meta_#network_data_format#inputs"]
(output_name,) = parser["_meta_#network_data_format#outputs"]
with torch.no_grad():
    inputs = preprocessing({name: MetaTensor(array, meta=meta)})
    prediction = inferer(inputs=inputs[name][None].to(device), network=network)[0]
    outputs = postprocessing({output_name: prediction, **inputs})
labels = outputs[output_name].cpu().numpy()
assert labels.shape == (1, *volume.shape), labels.shape
assert (labels == labels.astype(np.uint8)).all()
nib.save(nib.Nifti1Image(labels[0].astype(np.uint8), volume.affine), result)
"""


def test_an_exported_file_stands_alone(bundle, phantom_dir, run_outside, tmp_path, label_map):
    command = [sys.executable, "-m", "monai.bundle", "ckpt_export", "--net_id", "network_def"]
    command += ["--filepath", str(tmp_path / "model.ts"), "--ckpt_file", "models/model.pt"]
    command += ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    image = phantom_dir / "images/phantom_000.nii.gz"
    run_outside(DEPLOY, tmp_path / "model.ts", image, tmp_path / "result.nii.gz", "[1.7, 1.3, 1.5]")
    labels = np.asanyarray(nib.load(tmp_path / "result.nii.gz").dataobj)
    expected = np.asanyarray(label_map(image, spacing=[1.7, 1.3, 1.5]).dataobj)
    # TorchScript and eager code differ in the last bits, which can turn a voxel where both classes are equal.
    assert (labels != expected).mean() < 1e-3
