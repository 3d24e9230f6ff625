# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""One bundle for each task, as the MONAI Model Zoo takes it: its train.json and inference.json stand alone."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from monai.bundle import ConfigParser

from .errors import BundleError
from .export import write_triton_model
from .files import CONFIGS, ROOT
from .weights import check_weights, read_tensors

#: The tasks, and the data overlay with which the weights that this bundle has for it were trained.
TASKS = {"left_atrium": "left_atrium_small", "pancreas": "pancreas", "hippocampus": "hippocampus"}
#: Configurations that are the same for every task, beside the methods and the recipes.
_SHARED_CONFIGS = ("evaluate.json", "multi_gpu_train.json", "logging.conf", "method_*.json", "recipe_*.json")
_MODALITIES = {"MR": "mri", "CT": "ct"}
#: The Model Zoo takes no file above this size in a pull request.
_LARGE_FILE_BYTES = 25 * 10**6


def write_package(
    task: str,
    output_dir: str | Path,
    *,
    weights: str | Path | None = None,
    without_weights: bool = False,
    data: str | None = None,
    triton: bool = False,
    large_files_url: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the bundle of one task as a folder and as a zip file, and a Triton model repository on demand.

    Args:
        task: left_atrium, pancreas or hippocampus.
        output_dir: where ``<name>/`` and ``<name>_v<version>.zip`` go, and ``triton/<name>/``.
        weights: bare state dict of the network; by default the file that this bundle has for the task.
        without_weights: write a bundle that has to be trained first.
        data: data overlay with which the weights were trained; by default that of the weights that this bundle has.
        triton: write ``triton/<name>/`` too.
        large_files_url: address of a folder that serves ``<name>/models/model.pt``; weights above 25 MB are then named
            by a ``large_files.yml`` instead of copied.
        overwrite: replace what an earlier call left.

    Returns:
        the paths that were written.

    Raises:
        BundleError: when an argument is not allowed, the weights are missing or of another network, or something is
            there already.
    """
    if task not in TASKS:
        raise BundleError(f"task must be {_one_of(TASKS)}, got {task!r}.")
    overlays = sorted(path.stem.removeprefix("data_") for path in CONFIGS.glob(f"data_{task}*.json"))
    data = TASKS[task] if data is None else data
    if data not in overlays:
        raise BundleError(f"data must be {_one_of(overlays)} for the task {task}, got {data!r}.")
    source = _weights_of(data, weights, without_weights=without_weights)
    if source is None and (triton or large_files_url is not None):
        option = "triton" if triton else "large_files_url"
        raise BundleError(f"{option} needs weights: leave out without_weights.")

    configs = _task_configs(task, data)
    if without_weights or weights is not None:
        # The figures are those of the weights that this bundle has.
        configs["metadata"]["eval_metrics"] = {}
    # A parser resolves macros in the dictionary that it is given.
    network = ConfigParser(deepcopy(configs["inference"])).get_parsed_content("network_def")
    if source is not None:
        check_weights(str(source), network, name="weights")
        network.load_state_dict(read_tensors(source))
    name, version = _bundle_name(task, configs["metadata"]), configs["metadata"]["version"]
    output = Path(output_dir)
    targets = [output / name, output / f"{name}_v{version}.zip", *([output / "triton" / name] if triton else [])]
    taken = [path for path in targets if path.exists()]
    if taken and not overwrite:
        raise BundleError(f"{taken[0]} exists: replace it by --overwrite true, or choose another --output_dir.")

    output.mkdir(parents=True, exist_ok=True)
    # Built aside and moved at the end: what was there is kept when something fails.
    with TemporaryDirectory(dir=output, prefix=".package_") as temporary:
        folder = Path(temporary) / name
        _write_folder(folder, task, configs)
        if source is not None:
            _add_weights(folder, source, large_files_url)
        built = [folder, Path(shutil.make_archive(f"{folder}_v{version}", "zip", root_dir=temporary, base_dir=name))]
        if triton:
            sizes = {key: configs["inference"][key] for key in ("in_channels", "num_classes", "patch_size")}
            built.append(write_triton_model(Path(temporary) / "triton" / name, network, **sizes))
        for path, target in zip(built, targets):
            _replace(path, target)
    return targets


def _weights_of(data: str, weights: str | Path | None, *, without_weights: bool) -> Path | None:
    if without_weights:
        if weights is not None:
            raise BundleError("weights and without_weights must not both be given.")
        return None
    if weights is None:
        overlay = ConfigParser.load_config_file(CONFIGS / f"data_{data}.json")
        source = Path(ConfigParser({**overlay, "bundle_root": str(ROOT)}).get_parsed_content("ckpt_path"))
    else:
        source = Path(weights)
    if not source.is_file():
        raise BundleError(
            f"weights {source} do not exist: name a file by --weights, or package without by --without_weights true."
        )
    return source


def _task_configs(task: str, data: str) -> dict[str, dict[str, Any]]:
    """Merge the overlays of a task into train.json, inference.json and metadata.json, which then stand alone."""
    overlay_file = CONFIGS / f"data_{data}.json"
    overlay = ConfigParser.load_config_file(overlay_file)
    train = ConfigParser.load_config_files([CONFIGS / "train.json", overlay_file])
    # A package has its weights where inference.json looks for them. Training does not ask what they were trained on.
    for key in ("ckpt_path", "trained_spacing", "trained_extent"):
        train.pop(key, None)
    overlay.pop("ckpt_path", None)
    inference = ConfigParser.load_config_file(CONFIGS / "inference.json")
    inference |= {key: overlay[key] for key in overlay if key in inference and key != "_desc_"}
    # Those of inference.json belong to the weights of this repository.
    inference |= {key: overlay.get(key) for key in ("trained_spacing", "trained_extent")}
    # Training takes the folder of a data set, inference that of its volumes.
    inference["dataset_dir"] = f"{overlay['dataset_dir']} + '/images'"
    metadata = ConfigParser.load_config_files([CONFIGS / "metadata.json", CONFIGS / f"metadata_{task}.json"])
    _describe_classes(metadata, train["class_names"], train["patch_size"])
    return {"train": train, "inference": inference, "metadata": metadata, f"data_{data}": overlay}


def _describe_classes(metadata: dict[str, Any], class_names: Iterable[str], patch_size: list[int]) -> None:
    channels = {str(index): name for index, name in enumerate(["background", *class_names])}
    metadata["label_classes"] = f"single channel label map: {_list_classes(channels)}"
    metadata["pred_classes"] = f"{len(channels)} channels of probabilities: {_list_classes(channels)}"
    formats = metadata["network_data_format"]
    formats["inputs"]["image"]["spatial_shape"] = patch_size
    formats["outputs"]["pred"] |= {"spatial_shape": patch_size, "num_channels": len(channels), "channel_def": channels}


def _list_classes(channels: Mapping[str, str]) -> str:
    return ", ".join(f"{index} {name}" for index, name in channels.items())


def _bundle_name(task: str, metadata: Mapping[str, Any]) -> str:
    """Name a bundle by the rules of the Model Zoo: organ, type of image, and the word segmentation."""
    modality = metadata["network_data_format"]["inputs"]["image"]["modality"]
    return f"{task}_{_MODALITIES[modality]}_dual_network_segmentation"


def _write_folder(folder: Path, task: str, configs: Mapping[str, dict[str, Any]]) -> None:
    for part in ("configs/splits", "docs", "models"):
        (folder / part).mkdir(parents=True)
    for pattern in (*_SHARED_CONFIGS, f"data_{task}*.json", f"splits/{task}_*.json"):
        for path in sorted(CONFIGS.glob(pattern)):
            shutil.copyfile(path, folder / "configs" / path.relative_to(CONFIGS))
    for name, content in configs.items():
        (folder / f"configs/{name}.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    (folder / "docs/README.md").write_text(_readme(task, configs), encoding="utf-8")
    (folder / "docs/data_license.txt").write_text(_data_license(configs["metadata"]), encoding="utf-8")


def _readme(task: str, configs: Mapping[str, dict[str, Any]]) -> str:
    """Put the facts of the configurations into the page of the task, followed by what all tasks share."""
    train, metadata = configs["train"], configs["metadata"]
    spacing, figures = train["spacing"], metadata["eval_metrics"]
    facts = {
        "name": metadata["name"],
        "patch_size": " x ".join(map(str, train["patch_size"])),
        "spacing": "kept" if spacing is None else f"resampled to {' x '.join(map(str, spacing))} mm",
        "iterations": train["iterations"],
        "classes": _list_classes(metadata["network_data_format"]["outputs"]["pred"]["channel_def"]),
        "num_classes": train["num_classes"],
        "weights": (ROOT / f"docs/packages/{task}_weights.md").read_text(encoding="utf-8") if figures else "",
        "performance": "\n".join(f"- {metric}: {value}" for metric, value in figures.items())
        or "No figure has been measured with the weights of this version.",
        "references": "\n\n".join(f"[{i}] {text}" for i, text in enumerate(metadata["references"], start=1)),
    }
    pages = [ROOT / f"docs/packages/{name}.md" for name in (task, "usage")]
    return Template("\n".join(page.read_text(encoding="utf-8") for page in pages)).substitute(facts)


def _data_license(metadata: Mapping[str, Any]) -> str:
    """Take the section of docs/data_license.txt that names the source of the task, and of its weights if it has any."""
    separator = re.compile(r"^(?=/\*+/$)", re.MULTILINE)
    head, *sections = separator.split((ROOT / "docs/data_license.txt").read_text(encoding="utf-8"))
    url = metadata["data_source"].split()[-1]
    (section,) = [section for section in sections if url in section]
    # The line of the repository's own weights: here they have another path, or are others.
    line = "   Weights:  models/model.pt was trained on these data\n" if metadata["eval_metrics"] else ""
    section = re.sub(r"^ +Weights:.*\n", line, section, flags=re.MULTILINE)
    return f"{head}{section.rstrip()}\n"


def _add_weights(folder: Path, source: Path, large_files_url: str | None) -> None:
    path = "models/model.pt"
    if large_files_url is None or source.stat().st_size <= _LARGE_FILE_BYTES:
        shutil.copyfile(source, folder / path)
        return
    entry = {
        "path": path,
        "url": f"{large_files_url.rstrip('/')}/{folder.name}/{path}",
        "hash_val": hashlib.sha256(source.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }
    lines = [f"{'  - ' if key == 'path' else '    '}{key}: {json.dumps(value)}" for key, value in entry.items()]
    (folder / "large_files.yml").write_text("\n".join(["large_files:", *lines]) + "\n", encoding="utf-8")


def _replace(path: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)


def _one_of(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
