# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""MONAI Label: the parts of inference.json one by one, training on the pairs that the server hands over."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

#: What BundleInferTask does with a request, Restored and the writer included.
LABEL_INFERENCE = """
import copy
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigItem, ConfigParser
from monai.transforms import Compose, LoadImaged, SaveImaged

bundle, image, result, spacing = sys.argv[1:]
sys.path.insert(0, bundle)
parser = ConfigParser()
parser.read_config(f"{bundle}/configs/inference.json")
parser.config.update({"bundle_root": bundle})
parser.config["use_click"] = False
# The volumes of the test are small.
parser.config.update({"patch_size": [32, 32, 32], "overlap": 0.25, "spacing": json.loads(spacing)})
network = parser.get_parsed_content("network_def", instantiate=True)
metadata = json.loads(Path(f"{bundle}/configs/metadata.json").read_text())
key_image = next(iter(metadata["network_data_format"]["inputs"]))
key_pred, prediction = next(iter(metadata["network_data_format"]["outputs"].items()))
labels = {name.lower(): int(key) for key, name in prediction["channel_def"].items() if name.lower() != "background"}
print(json.dumps(labels))
sys.path.remove(bundle)

request = {"model": "left_atrium_segmentation", "device": "cpu", "image": image, "result_dtype": "uint8"}
data = {**copy.deepcopy(request), "image_path": image}


def part(name):
    sys.path.insert(0, bundle)
    parser.config.update({"device": "cpu"})
    if parser.ref_resolver.items.get("device"):
        parser.ref_resolver.items["device"] = ConfigItem(config="cpu", id="device")
    content = parser.get_parsed_content(name, instantiate=True)
    sys.path.remove(bundle)
    return list(content.transforms) if isinstance(content, Compose) else content


for step in part("preprocessing"):
    if isinstance(step, LoadImaged):
        step._loader.image_only = False
    data = step(data)
network = copy.deepcopy(network).to("cpu")
checkpoint = torch.load(f"{bundle}/models/model.pt", map_location="cpu")
assert checkpoint.keys() == network.state_dict().keys()
network.load_state_dict(checkpoint)
network.eval()
with torch.no_grad():
    data[key_pred] = part("inferer")(data[key_image][None], network)[0]
for step in part("postprocessing"):
    if not isinstance(step, SaveImaged):
        data = step(data)

# The server's writer takes the ending of the result from this key.
assert data["image_path"] == image
array = data[key_pred].numpy()
spatial_shape = data[key_image].meta["spatial_shape"]
assert array.shape == (1, *spatial_shape), (array.shape, spatial_shape)
nib.save(nib.Nifti1Image(array[0].astype(np.uint8), np.asarray(data[key_image].meta["original_affine"])), result)
"""


@pytest.mark.parametrize("spacing", [None, [1.7, 1.3, 1.5]], ids=["own spacing", "resampled"])
def test_parts_of_the_inference_are_taken_one_by_one(spacing, bundle, phantom_dir, run_outside, tmp_path, label_map):
    image = phantom_dir / "images/phantom_000.nii.gz"
    spoken = run_outside(
        LABEL_INFERENCE, bundle, image, tmp_path / "result.nii.gz", "null" if spacing is None else spacing
    )
    assert '{"left atrium": 1}' in spoken
    result, expected = nib.load(tmp_path / "result.nii.gz"), label_map(image, spacing=spacing)
    np.testing.assert_array_equal(np.asanyarray(result.dataobj), np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-4)
