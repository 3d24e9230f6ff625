# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Inference of whole volumes: the ways in which the bundle can do it, their time, memory and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai.inferers import Inferer

from ..configuration import read_configuration
from ..errors import BundleError
from ..export import extract_network
from ..inferer import window_overlap
from ..networks.dual_network import DualNetwork
from ..nifti import read_nifti, volume_name
from ..studies.cases import Case, label_array, measure_on_reference
from ..weights import check_weights
from .measuring import measure_alone, now

_BASELINE = "window by window"
#: The mode that configs/inference.json chooses.
DEFAULT = "Gaussian, 50 % overlap"


class Mode(NamedTuple):
    """A way of inference: what it is called, its settings, and which network alone, if one alone."""

    name: str
    settings: Mapping[str, Any]
    network: str | None = None


def inference_modes(patch_size: Sequence[int], strides: Sequence[int]) -> list[Mode]:
    """List the ways of inference, the baseline first.

    Args:
        patch_size: sizes of the sliding window.
        strides: its steps in the protocol of the paper.

    Returns:
        the modes; the settings are values by key of ``configs/inference.json``.
    """
    protocol = {"overlap": window_overlap(patch_size, strides), "blending": "constant"}
    default = {"overlap": 0.5, "blending": "gaussian"}
    fastest = {"precision": "auto"}
    return [
        Mode(_BASELINE, {**protocol, "precision": "float32", "channels_last": False, "keep_memory": False}),
        Mode("protocol's windows", protocol),
        Mode("protocol's windows, precision auto", {**protocol, **fastest}),
        Mode("Gaussian, 75 % overlap", {**default, "overlap": 0.75}),
        Mode(DEFAULT, default),
        Mode(f"{DEFAULT}, memory handed back", {**default, "keep_memory": False}),
        Mode(f"{DEFAULT}, empty windows skipped", {**default, "skip_empty_windows": True}),
        Mode(f"{DEFAULT}, precision auto", {**default, **fastest}),
        Mode("Gaussian, 25 % overlap", {**default, "overlap": 0.25}),
        Mode("whole volume", {"whole_volume": True}),
        Mode("whole volume, precision auto", {"whole_volume": True, **fastest}),
        Mode(f"V-Net alone, {DEFAULT}", default, "vnet"),
        Mode(f"ResNet34-V-Net alone, {DEFAULT}", default, "resnet_vnet"),
    ]


def measure_inference(
    cases: Sequence[Case],
    config_file: Sequence[str],
    output_dir: Path,
    *,
    strides: Sequence[int],
    ckpt_path: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Segment volumes in each of the modes, each mode in a process of its own.

    Args:
        cases: volumes with references.
        config_file: see :func:`scripts.inference_configuration.inference_configs`.
        output_dir: folder of the label maps, one subfolder a mode.
        strides: steps of the sliding window in the protocol of the paper.
        ckpt_path: weights of the dual network; without, the networks are untrained and only time and memory count.
        overrides: values by key of the configuration, such as patch_size.

    Returns:
        a row a mode: ``mode``, ``seconds`` of the network and the blending on all volumes, ``ratio`` (how many times
        faster than window by window), ``peak_mebibytes``; and with weights ``dice``, the mean over classes and volumes
        in percent, and ``agreement``, the percentage of voxels with the label of the baseline.

    Raises:
        BundleError: when two images have one file name, or the weights are not those of the networks.
    """
    names = [case.image.name for case in cases]
    if len(set(names)) < len(names):
        raise BundleError(
            f"the images of the cases must have different file names, got {max(names, key=names.count)} more than once."
        )
    parser = read_configuration(config_file, overrides)
    modes = inference_modes(parser.get_parsed_content("patch_size"), strides)
    network = parser.get_parsed_content("network_def")
    if not isinstance(network, DualNetwork):
        modes = [mode for mode in modes if mode.network is None]
    num_classes = parser.get_parsed_content("num_classes")
    rows: list[dict[str, Any]] = []
    baseline: list[nib.Nifti1Image] = []
    for mode in modes:
        folder = output_dir / mode.name.replace(" ", "_").replace(",", "").replace("%", "percent")
        settings = {
            **(overrides or {}),
            "test_time_views": [],
            **mode.settings,
            **_weights(mode.network, network, ckpt_path, folder),
        }
        images = [str(case.image) for case in cases]
        measured = measure_alone(_segment, images, config_file, {**settings, "output_dir": str(folder)})
        row: dict[str, Any] = {"mode": mode.name, "seconds": measured.value, "peak_mebibytes": measured.peak_mebibytes}
        if ckpt_path is not None:
            maps = [read_nifti(folder / f"{volume_name(case.image)}_seg.nii.gz") for case in cases]
            # The first mode; the maps of the others are not kept.
            baseline = baseline or maps
            row |= _accuracy(maps, baseline, cases, num_classes)
        rows.append(row)
    table = pd.DataFrame(rows)
    table.insert(2, "ratio", table["seconds"].iloc[0] / table["seconds"])
    return table


def _weights(architecture: str | None, pair: Any, ckpt_path: str | None, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {"load_pretrain": False} if ckpt_path is None else {"ckpt_path": ckpt_path}
    if architecture is None:
        return settings
    settings |= {
        "network_def": {
            "_target_": "scripts.networks.single_network.SingleNetwork",
            "architecture": architecture,
            "in_channels": "@in_channels",
            "out_channels": "@num_classes",
            "normalization": pair.normalization,
        }
    }
    if ckpt_path is not None:
        folder.mkdir(parents=True, exist_ok=True)
        extract_network(ckpt_path, architecture, folder / "model.pt", overwrite=True)
        settings["ckpt_path"] = str(folder / "model.pt")
    return settings


def _accuracy(
    maps: Sequence[nib.Nifti1Image], baseline: Sequence[nib.Nifti1Image], cases: Sequence[Case], num_classes: int
) -> dict[str, float]:
    dice = [
        row["dice"]
        for label, case in zip(maps, cases, strict=True)
        for row in measure_on_reference(label, read_nifti(case.label), num_classes)
    ]
    equal = [label_array(a) == label_array(b) for a, b in zip(maps, baseline, strict=True)]
    return {
        "dice": 100 * float(np.mean(dice)),
        "agreement": 100 * float(np.concatenate([array.ravel() for array in equal]).mean()),
    }


class _TimedInferer(Inferer):
    def __init__(self, inferer: Inferer) -> None:
        super().__init__()
        self.inferer = inferer
        self.seconds = 0.0

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> Any:
        start = now(inputs.device)
        output = self.inferer(inputs, network, *args, **kwargs)
        self.seconds += now(inputs.device) - start
        return output


def _segment(images: Sequence[str], config_file: Sequence[str], settings: Mapping[str, Any]) -> float:
    parser = read_configuration(config_file, {**settings, "datalist": list(images)})
    if parser.get_parsed_content("load_pretrain"):
        check_weights(parser.get_parsed_content("ckpt_path"), parser.get_parsed_content("network"))
    parser.get_parsed_content("kept_memory")
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.inferer = _TimedInferer(evaluator.inferer)
    evaluator.run()
    return evaluator.inferer.seconds
