# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The bundle of one task of this repository: its train.json and inference.json stand alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..configuration import TRAINED_KEYS, named_weights, overlay_names
from ..errors import BundleError, one_of
from ..files import CONFIGS, ROOT
from ..handlers.run_comparison import check_preprocessing
from .package import COMMON_CONFIGS, Package, describe_classes, load_network, readme_text

#: The tasks, and the data overlay with which the weights that this bundle has for it were trained.
TASKS = {"left_atrium": "left_atrium_small", "pancreas": "pancreas", "hippocampus": "hippocampus"}
_MODALITIES = {"MR": "mri", "CT": "ct"}


def task_package(
    task: str, *, weights: str | Path | None = None, without_weights: bool = False, data: str | None = None
) -> Package:
    """Put together the bundle of one task.

    Args:
        task: left_atrium, pancreas or hippocampus.
        weights: bare state dict of the network; by default the file that this bundle has for the task.
        without_weights: a bundle that has to be trained first.
        data: data overlay with which the weights were trained; by default that of the weights that this bundle has.

    Returns:
        what :func:`scripts.packaging.package.write_package` writes.

    Raises:
        BundleError: when an argument is not allowed, or the weights are missing, of another network, or of a run with
            another preprocessing.
    """
    if task not in TASKS:
        raise BundleError(f"task must be {one_of(TASKS)}, got {task!r}.")
    metadata_file = CONFIGS / f"metadata_{task}.json"
    if not metadata_file.is_file():
        raise BundleError(
            f"task {task} cannot be packaged, as {metadata_file} is missing: this is a package already. A run of one's "
            "own goes by package_run."
        )
    overlays = [name for name in overlay_names("data") if name.startswith(task)]
    data = TASKS[task] if data is None else data
    if data not in overlays:
        raise BundleError(f"data must be {one_of(overlays)} for the task {task}, got {data!r}.")
    source = _weights_of(data, weights, without_weights=without_weights)
    configs = _task_configs(task, data)
    if without_weights or weights is not None or data != TASKS[task]:
        # The figures are those of the weights that this bundle has.
        configs["metadata"]["eval_metrics"] = {}
    if source is not None:
        remedy = "the data overlay of their training by --data, or package the run by package_run"
        check_preprocessing(str(source), configs["train"], remedy=remedy)
    others = tuple(f"_{other}.json" for other in TASKS if other != task)
    recipes = [path.name for path in CONFIGS.glob("recipe_*.json") if not path.name.endswith(others)]
    metadata, network = configs["metadata"], load_network(configs["inference"], source)
    return Package(
        name=f"{task}_{_MODALITIES[_modality(metadata)]}_dual_network_segmentation",
        configs=configs,
        readme=readme_text((task, "usage"), configs, network, **_story(task, metadata)),
        data_license=_data_license(metadata),
        network=network,
        weights=source,
        patterns=(
            *COMMON_CONFIGS,
            "method_*.json",
            *recipes,
            f"original_*_{task}.json",
            f"data_{task}*.json",
            f"splits/{task}_*.json",
        ),
    )


def _weights_of(data: str, weights: str | Path | None, *, without_weights: bool) -> Path | None:
    if without_weights:
        if weights is not None:
            raise BundleError("weights and without_weights must not both be given.")
        return None
    if weights is None:
        source = named_weights(ConfigParser.load_config_file(CONFIGS / f"data_{data}.json"))
    else:
        source = Path(weights)
    if source is None or not source.is_file():
        raise BundleError(
            f"weights {source or f'of data_{data}.json'} do not exist: name a file by --weights, or package without by "
            "--without_weights true."
        )
    return source


def _task_configs(task: str, data: str) -> dict[str, dict[str, Any]]:
    """Merge the overlays of a task into train.json, inference.json and metadata.json, which then stand alone."""
    overlay_file = CONFIGS / f"data_{data}.json"
    overlay = ConfigParser.load_config_file(overlay_file)
    train = ConfigParser.load_config_files([CONFIGS / "train.json", overlay_file])
    # A package has its weights where inference.json looks for them. Training does not ask what they were trained on.
    for key in ("ckpt_path", *TRAINED_KEYS):
        train.pop(key, None)
    overlay.pop("ckpt_path", None)
    inference = ConfigParser.load_config_file(CONFIGS / "inference.json")
    inference |= {key: overlay[key] for key in overlay if key in inference and key != "_desc_"}
    # Those of inference.json belong to the weights of this repository.
    inference |= {key: overlay.get(key) for key in TRAINED_KEYS}
    # Training takes the folder of a data set, inference that of its volumes.
    inference["dataset_dir"] = f"{overlay['dataset_dir']} + '/images'"
    metadata = ConfigParser.load_config_files([CONFIGS / "metadata.json", CONFIGS / f"metadata_{task}.json"])
    describe_classes(metadata, train["class_names"], train["patch_size"])
    return {"train": train, "inference": inference, "metadata": metadata, f"data_{data}": overlay}


def _story(task: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """What is told of the weights that this bundle has for the task, by the place on the page of their package."""
    path = ROOT / f"docs/packages/{task}_weights.md"
    text = path.read_text(encoding="utf-8") if metadata["eval_metrics"] else ""
    _, *parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    return {f"weights_{part}": told.get(part, "").strip() for part in ("training", "performance", "limitations")}


def _modality(metadata: Mapping[str, Any]) -> str:
    modality: str = metadata["network_data_format"]["inputs"]["image"]["modality"]
    return modality


def _data_license(metadata: Mapping[str, Any]) -> str:
    """Take the section of docs/data_license.txt that names the source of the task, and of its weights if it has any."""
    separator = re.compile(r"^(?=/\*+/$)", re.MULTILINE)
    head, *sections = separator.split((ROOT / "docs/data_license.txt").read_text(encoding="utf-8"))
    url = metadata["data_source"].split()[-1]
    (section,) = [section for section in sections if url in section]
    # The line of the repository's own weights: here they have another path, or are others.
    line = r"\1models/model.pt,\2" if metadata["eval_metrics"] else ""
    section = re.sub(r"^( +Weights: +)\S+ of this repository,(.*\n)", line, section, flags=re.MULTILINE)
    return f"{head}{section.rstrip()}\n"
