# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""MONAI Label: the parts of inference.json one by one, training on the pairs that the server hands over."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

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


#: What BundleTrainTask does with a request: the pairs of its datastore, 20 % of them for validation.
LABEL_TRAINING = """
import json
import os
import sys

import monai.bundle
from monai.bundle import ConfigParser
from monai.data import partition_dataset

bundle, pairs, more = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
config = ConfigParser()
config.read_config(f"{bundle}/configs/train.json")
config.config.update({"bundle_root": bundle})
handlers = config.get("train#handlers", [])
weights = os.path.join(bundle, "models", "model.pt")
assert not [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]
loader = {"_target_": "CheckpointLoader", "load_path": weights, "load_dict": {"model": "$@network"}, "strict": False}
handlers.insert(0, loader)
training, validation = partition_dataset(pairs, ratios=[0.8, 0.2], shuffle=False)
overrides = {
    "bundle_root": bundle,
    "train#trainer#max_epochs": 1,
    "train#dataset#data": training,
    "device": "cpu",
    "train#handlers": handlers,
    "validate#dataset#data": validation,
    **more,
}
sys.path.insert(0, bundle)
monai.bundle.run(
    run_id="run",
    init_id=None,
    final_id=None,
    meta_file=f"{bundle}/configs/metadata.json",
    config_file=f"{bundle}/configs/train.json",
    **overrides,
)
"""


@pytest.fixture
def server(bundle, phantom_dir, tmp_path):
    """A bundle of its own to train, and a folder of images with three of them labeled."""
    shutil.copytree(bundle, tmp_path / "left_atrium_segmentation")
    studies = tmp_path / "studies"
    shutil.copytree(phantom_dir / "images", studies)
    shutil.copytree(phantom_dir / "labels", studies / "labels/final")
    names = sorted(path.name for path in (phantom_dir / "images").iterdir())[:3]
    pairs = [{"image": str(studies / name), "label": str(studies / "labels/final" / name)} for name in names]
    return tmp_path / "left_atrium_segmentation", studies, pairs


#: What makes a training of seconds.
TINY = {
    "patch_size": [32, 32, 32],
    "iterations": 2,
    "val_interval": 2,
    "log_interval": 1,
    # That of the inference of this bundle; in the bundle of one task both have it.
    "spacing": [1.25, 1.25, 1.25],
}


def train(run_outside, bundle, pairs, **more):
    run_outside(LABEL_TRAINING, bundle, json.dumps(pairs), json.dumps({**TINY, **more}))
    run = max((bundle / "output").glob("given_pairs_*"))
    history = pd.read_csv(run / "history.csv")
    assert history["iteration"].tolist() == [1, 2]
    return run, history, json.loads((run / "run.json").read_text())


def test_pairs_of_the_server_are_trained_on_alone(server, run_outside, tmp_path):
    bundle, _, pairs = server
    before = torch.load(bundle / "models/model.pt", weights_only=True)
    run, history, facts = train(run_outside, bundle, pairs)
    assert facts["settings"]["cases"].startswith("2 labeled, 0 unlabeled, ")
    assert history["loss_supervised_vnet"].notna().all()
    assert "loss_pseudo_label" not in history
    assert len(pd.read_csv(run / "validation.csv")) == 1
    # Neither another data set nor generated volumes slip in.
    assert not (bundle / "data").exists()

    after = torch.load(bundle / "models/model.pt", weights_only=True)
    kept = torch.load(bundle / "models/model_previous_1.pt", weights_only=True)
    assert all(torch.equal(kept[name], before[name]) for name in before)
    # Two steps from the weights that were there: near them, and not they.
    name = "vnet.classifier.weight"
    assert 0 < (after[name] - before[name].float()).abs().max() < 0.2
    final = torch.load(run / "model_final.pt", weights_only=True)
    assert all(torch.equal(after[name], final[name]) for name in final)


def test_trained_weights_are_used_afterwards_and_trained_on_again(server, run_outside, tmp_path):
    bundle, studies, pairs = server
    labels = []
    for position in range(2):
        result = tmp_path / f"result_{position}.nii.gz"
        run_outside(LABEL_INFERENCE, bundle, studies / "phantom_005.nii.gz", result, "null")
        labels.append(np.asanyarray(nib.load(result).dataobj))
        if position == 0:
            train(run_outside, bundle, pairs)
    assert not np.array_equal(*labels)
    original = (bundle / "models/model_previous_1.pt").read_bytes()
    first = torch.load(bundle / "models/model.pt", weights_only=True)
    train(run_outside, bundle, pairs)
    # The weights that the bundle came with stay.
    assert (bundle / "models/model_previous_1.pt").read_bytes() == original
    kept = torch.load(bundle / "models/model_previous_2.pt", weights_only=True)
    assert all(torch.equal(kept[name], first[name]) for name in first)
    assert len(list((bundle / "output").glob("given_pairs_*"))) == 2


def test_images_without_labels_join_by_option(server, run_outside):
    bundle, studies, pairs = server
    _, history, facts = train(run_outside, bundle, pairs, unlabeled_dir=str(studies))
    # Six images, of which two are trained on with their labels and one is for validation.
    assert facts["settings"]["cases"].startswith("2 labeled, 3 unlabeled, ")
    assert history["loss_pseudo_label"].notna().all()


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
