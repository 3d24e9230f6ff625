# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Exports: the commands of docs/export.md, and that their files compute what the network computes."""

from __future__ import annotations

import re
import shlex
import shutil

import fire
import monai.bundle
import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, assert_refused

from scripts.__main__ import main
from scripts.export import extract_network
from scripts.inference_configuration import inference_configs
from scripts.networks.dual_network import DualNetwork
from scripts.networks.onnx_network import OnnxNetwork
from scripts.predict import predict_volumes

SMALL = {"patch_size": [32, 32, 32], "overlap": 0, "device": "cpu"}


def documented(program):
    """List the commands of the page as the words after ``python -m PROGRAM``."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[3:] for line in lines if line.startswith(f"python -m {program} ")]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DualNetwork().eval()


@pytest.fixture(scope="module")
def bundle(network, tmp_path_factory):
    """A bundle with weights in which the exports of the page were made."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models/model.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (extract,) = [words for words in documented("scripts") if words[0] == "extract"]
        main(extract)
        exports = documented("monai.bundle")
        assert [words[0] for words in exports] == ["ckpt_export", "onnx_export"] * 2
        for command, *words in exports:
            fire.Fire(getattr(monai.bundle, command), command=words)
    return folder


@pytest.mark.parametrize("shape", [(1, 1, 32, 48, 32), (2, 1, 48, 16, 32)], ids=str)
@pytest.mark.parametrize("name", ["model.ts", "model.onnx", "vnet.ts", "vnet.onnx"])
def test_exports_equal_the_network(name, shape, bundle, network):
    path = str(bundle / "models" / name)
    exported = torch.jit.load(path) if name.endswith(".ts") else OnnxNetwork(path)
    image = torch.randn(shape)
    with torch.inference_mode():
        expected = network(image) if name.startswith("model") else network.vnet(image).softmax(dim=1)
        torch.testing.assert_close(exported(image), expected, atol=1e-4, rtol=0)


def test_a_torchscript_file_tells_how_it_is_used(bundle):
    extra = {"metadata.json": "", "inference.json": ""}
    torch.jit.load(bundle / "models/model.ts", _extra_files=extra)
    assert extra["inference.json"]
    assert extra["metadata.json"]


def test_predictions_of_exports_equal_those_of_the_weights(bundle, phantom_dir, tmp_path, monkeypatch):
    volume = phantom_dir / "images/phantom_000.nii.gz"
    weights = {**SMALL, "ckpt_path": str(bundle / "models/model.pt")}
    predict_volumes(volume, tmp_path / "weights", inference_configs(), overrides=weights, logging_file=False)
    monkeypatch.chdir(bundle)
    given = {"SCANS": str(volume), "LABELS/ts": str(tmp_path / "ts"), "LABELS/onnx": str(tmp_path / "onnx")}
    for words in documented("scripts"):
        if words[0] == "predict":
            main([given.get(word, word) for word in words] + ["--patch_size", "[32,32,32]", "--overlap", "0"])
    expected, torchscript, onnx = (
        np.asanyarray(nib.load(tmp_path / kind / "phantom_000_seg.nii.gz").dataobj)
        for kind in ("weights", "ts", "onnx")
    )
    assert 0 < expected.mean() < 1
    # A voxel whose classes are equally likely may fall to either side.
    assert (torchscript != expected).mean() < 1e-3
    assert (onnx != expected).mean() < 1e-3


def test_onnx_files_are_checked(bundle, phantom_dir, tmp_path, monkeypatch):
    volume, output = phantom_dir / "images/phantom_000.nii.gz", tmp_path / "out"

    def segment(model, **overrides):
        options = {"overrides": {**SMALL, **overrides}, "model": str(model), "logging_file": False}
        predict_volumes(volume, output, inference_configs(), **options)

    (tmp_path / "text.onnx").write_text("no model")
    with assert_refused("model .*text.onnx cannot be read as an ONNX file"):
        segment(tmp_path / "text.onnx")
    with assert_refused("model .* has 2 classes, num_classes is 3"):
        segment(bundle / "models/model.onnx", num_classes=3)
    with assert_refused("save_uncertainty needs --ckpt_path: an ONNX file gives class probabilities alone"):
        segment(bundle / "models/model.onnx", save_uncertainty=True)
    torch.onnx.export(torch.nn.Identity(), (torch.zeros(1, 2, 16, 16, 16),), tmp_path / "fixed.onnx", dynamo=False)
    with assert_refused(r"model .*fixed.onnx does not take windows of \[32, 32, 32\] voxels and 1 channel"):
        segment(tmp_path / "fixed.onnx")
    monkeypatch.setattr("scripts.inference_configuration.find_spec", lambda name: None)
    with assert_refused("model .* needs the package onnxruntime: pip install onnxruntime"):
        segment(bundle / "models/model.onnx")
    assert not output.exists()


def test_onnx_runs_on_what_the_package_offers(bundle):
    session = OnnxNetwork(str(bundle / "models/vnet.onnx")).session
    assert session.get_providers() == onnxruntime.get_available_providers()


# --- one of the two networks ------------------------------------------------------------------------------------------


def test_extract_takes_each_network(network, bundle, tmp_path):
    for name in ("vnet", "resnet_vnet"):
        extract_network(bundle / "models/model.pt", name, tmp_path / f"{name}.pt")
        state = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        single = getattr(network, name)
        single.load_state_dict({key.removeprefix("backbone."): value for key, value in state.items()})
        assert all(key.startswith("backbone.") for key in state)
        expected = single.state_dict()
        assert all(torch.equal(state[f"backbone.{key}"], value) for key, value in expected.items())


def test_extract_refuses(bundle, tmp_path, capsys):
    weights, output = bundle / "models/model.pt", tmp_path / "vnet.pt"
    with assert_refused("network must be vnet or resnet_vnet, got 'unet'"):
        extract_network(weights, "unet", output)
    with assert_refused("ckpt_path none.pt does not exist"):
        extract_network("none.pt", "vnet", output)
    with assert_refused("ckpt_path .*vnet.pt does not hold the weights of the dual network"):
        extract_network(bundle / "models/vnet.pt", "vnet", output)
    assert not output.exists()
    with assert_refused("output must be another file than ckpt_path, got .* for both"):
        extract_network(weights, "vnet", weights, overwrite=True)
    output.write_text("mine")
    with pytest.raises(SystemExit):
        main(["extract", "--ckpt_path", str(weights), "--network", "vnet", "--output", str(output)])
    assert capsys.readouterr().err == (
        f"error: output {output} exists: replace it by --overwrite true, or choose another file.\n"
    )
    assert output.read_text() == "mine"
    extract_network(weights, "vnet", output, overwrite=True)
    assert len(torch.load(output, weights_only=True)) > 10
