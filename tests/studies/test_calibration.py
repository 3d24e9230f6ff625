# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A calibration is found again where it is known, and weights that hold it predict by it."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import assert_refused

from scripts.__main__ import main
from scripts.inference_configuration import inference_configs
from scripts.networks.dual_network import DualNetwork
from scripts.studies.calibration import Calibration, calibrate_weights, fit_calibration


def drawn(calibration, heads=1):
    """Logits, and labels that are drawn by their calibrated probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(100_000, heads, len(calibration.bias), generator=generator)
    return logits, calibration(logits).exp().multinomial(1, generator=generator)[:, 0]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("known", [Calibration(0.5, (0.0, -0.7)), Calibration(1.6, (0.0, 0.4, -1.2))])
def test_a_known_calibration_is_found(known, heads):
    found = fit_calibration(*drawn(known, heads))
    assert found.scale == pytest.approx(known.scale, rel=0.05)
    assert found.bias == pytest.approx(known.bias, abs=0.05)
    assert found.bias[0] == 0


def test_probabilities_are_the_mean_of_both_heads():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])
    first, second = torch.tensor([[0.0, 0.5 - 0.3], [1.0, -0.3]]).softmax(dim=1)
    torch.testing.assert_close(Calibration(0.5, (0.0, -0.3))(logits).exp(), ((first + second) / 2)[None])


def test_scale_and_bias_are_fitted_alone():
    logits, labels = drawn(Calibration(0.5, (0.0, -0.7)))
    scaled = fit_calibration(logits, labels, "scale")
    assert scaled.bias == (0.0, 0.0)
    assert scaled.scale == pytest.approx(0.5, rel=0.2)
    assert torch.equal(scaled(logits).argmax(dim=1), logits[:, 0].argmax(dim=1))
    shifted = fit_calibration(logits, labels, "bias")
    assert shifted.scale == 1
    # The border that the labels have on average; by the true scale it is -0.7 / 0.5.
    assert shifted.bias[1] < -0.7


def test_what_no_calibration_can_be_told_from_is_refused():
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 9.0, 0.0]], [[0.0, 0.0, 9.0]]])
    with assert_refused("these cases have no voxel of class 0, 2: name other lists"):
        fit_calibration(logits, torch.tensor([1, 1, 1]))
    with assert_refused("no scale fits these cases, got .*: name other lists, or fit bias"):
        fit_calibration(10 * logits, torch.tensor([2, 0, 1]), "scale")


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    torch.save(DualNetwork().half().state_dict(), path)
    return path


@pytest.fixture
def arguments(phantom_dir, tmp_path, weights):
    """Those of small volumes and weights in half precision."""
    overrides = {"patch_size": [32, 32, 32], "overlap": 0, "device": "cpu", "ckpt_path": str(weights)}
    split = phantom_dir / "split.json"
    files = inference_configs()
    return {
        "dataset_dir": str(phantom_dir),
        "split_file": str(split),
        "output": tmp_path / "calibrated.pt",
        "config_file": files,
        "overrides": overrides,
    }


def load(path):
    network = DualNetwork()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def test_weights_hold_the_calibration(arguments, weights):
    text = calibrate_weights(**arguments, lists=["labeled", "validation"])
    assert text.startswith("3 cases, ")
    before, after = (torch.load(path, weights_only=True) for path in (weights, arguments["output"]))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {f"{part}.classifier.{kind}" for part in ("vnet", "resnet_vnet") for kind in ("weight", "bias")}
    assert after["vnet.classifier.bias"].dtype == torch.float16
    # What the text says is what the weights do.
    scale, *biases = (float(word.rstrip(".,")) for word in text.splitlines()[0].split() if "." in word.rstrip(".,"))
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    raw, calibrated = load(weights), load(arguments["output"])
    with torch.no_grad():
        logits = torch.stack([raw.vnet(image), raw.resnet_vnet(image)]).flatten(3)[:, 0].permute(2, 0, 1)
        expected = Calibration(scale, tuple(biases))(logits).exp()
        torch.testing.assert_close(calibrated(image)[0].flatten(1).T, expected, atol=2e-3, rtol=0)
    # A second time nothing is left to do.
    again = {**arguments, "overrides": {**arguments["overrides"], "ckpt_path": str(arguments["output"])}}
    again["output"] = arguments["output"].with_name("again.pt")
    again["overrides"] |= {"load_pretrain": "true"}
    second = calibrate_weights(**again, lists=["labeled", "validation"])
    assert float(second.split("logits times ")[1].split(",")[0]) == pytest.approx(1, abs=0.02)


def test_voxels_near_the_foreground_are_fewer(arguments):
    texts = [calibrate_weights(**arguments, margin_mm=margin, overwrite=True) for margin in (None, 2.0)]
    every, near = (int(text.split("1 cases, ")[1].split(" voxels")[0]) for text in texts)
    assert 100 < near < every


def test_mistakes_are_refused(arguments, weights, tmp_path):
    for options, message in [
        ({"fit": "all"}, "fit must be one of both, scale, bias, got 'all'"),
        ({"lists": ["unlabeled"]}, "lists must be some of labeled, validation, test, got 'unlabeled'"),
        ({"margin_mm": 0}, "margin_mm must be a number above 0, got 0"),
        ({"margin_mm": "near"}, "margin_mm must be a number above 0, got 'near'"),
        ({"output": weights, "overwrite": True}, "output must be another file than ckpt_path"),
        ({"output": tmp_path}, "output must be a file of weights, but .* is a folder"),
        *(
            ({"overrides": {**arguments["overrides"], name: value}}, f"{name} must be {allowed} here: a calibration is")
            for name, value, allowed in (
                ("crop_to_organs", 1, "0"),
                ("test_time_views", [{"size": 1.1}], r"\[\]"),
                ("whole_volume", True, "false"),
                ("load_pretrain", False, "true"),
            )
        ),
    ]:
        with assert_refused(message):
            calibrate_weights(**{**arguments, **options})
    arguments["output"].write_text("mine")
    with assert_refused("output .*calibrated.pt exists: replace it by --overwrite true"):
        calibrate_weights(**arguments)
    assert arguments["output"].read_text() == "mine"
    calibrate_weights(**arguments, overwrite=True)
    assert load(arguments["output"])


def test_labels_with_a_fourth_axis_of_size_1(arguments, tmp_path):
    text = calibrate_weights(**arguments, lists=["labeled"])
    copy = shutil.copytree(arguments["dataset_dir"], tmp_path / "copy")
    for path in (copy / "labels").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[..., None], label.affine), path)
    arguments |= {"dataset_dir": str(copy), "split_file": str(copy / "split.json")}
    assert calibrate_weights(**arguments, lists=["labeled"], overwrite=True) == text


def test_another_network_is_refused(arguments, weights):
    convolution = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), weights)
    overrides = {**arguments["overrides"], "network_def": convolution}
    with assert_refused("Conv3d cannot be calibrated: its output is not the mean of the softmaxes of its heads"):
        calibrate_weights(**{**arguments, "overrides": overrides})
    assert not arguments["output"].exists()


def test_the_command_line(arguments, capsys):
    words = ["calibrate", "--fit", "scale", "--overlap", "0", "--patch_size", "[32,32,32]", "--device", "cpu"]
    for name in ("dataset_dir", "split_file", "output"):
        words += [f"--{name}", str(arguments[name])]
    words += ["--ckpt_path", arguments["overrides"]["ckpt_path"]]
    main(words)
    assert str(arguments["output"]) in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(words)
    assert "error: output" in capsys.readouterr().err
