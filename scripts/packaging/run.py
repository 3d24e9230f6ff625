# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The bundle of one's own run: what MONAI Label, Deploy and 3D Slicer take of a network trained on other data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

import pandas as pd
from monai.bundle import ConfigParser

from ..errors import BundleError
from ..files import CONFIGS
from .package import Package, describe_classes, load_network, write_readme

#: What a run was told of its machine and its data, which its bundle must not carry away.
_OWN_KEYS = (
    "bundle_root",
    "phantom_dir",
    "dataset_dir",
    "split_file",
    "unlabeled_dir",
    "output_dir",
    "labels_dir",
    "resume",
    "overwrite",
    "device",
    "initial_weights",
    "cache_dir",
    "skip_unreadable",
    # Of the weights from which a data overlay tells, not of those of the run.
    "ckpt_path",
    "trained_spacing",
    "trained_extent",
)
#: Where the classes of a bundle may come from; what is elsewhere does not go along.
_PACKAGES = ("scripts", "monai", "torch", "ignite")


def run_package(
    run_dir: str | Path,
    name: str,
    *,
    modality: str,
    weights: str | Path | None = None,
    data_source: str = "not stated",
    authors: str = "not stated",
    version: str = "0.1.0",
) -> Package:
    """Put together the bundle of a finished run.

    Paths and names of cases stay behind. Metrics are those of the evaluation in the folder of the run.

    Args:
        run_dir: folder of the run.
        name: of the folder of the bundle; MONAI Label takes it for a segmentation when it says so.
        modality: two capital letters, as DICOM names it, such as MR or CT.
        weights: bare state dict of the network; by default those that the evaluation of the run takes,
            ``model_final.pt`` unless its recipe says otherwise. Others have no metrics.
        data_source: where the data are from.
        authors: who trained it.
        version: of the bundle, three numbers.

    Returns:
        what :func:`scripts.packaging.package.write_package` writes.

    Raises:
        BundleError: when an argument is not allowed, the folder holds no finished run, or the run used classes that
            this bundle does not have.
    """
    for argument, value, pattern, allowed in (
        ("name", name, r"\w+", "letters, digits and _"),
        ("modality", modality, "[A-Z]{2}", "two capital letters, such as MR or CT"),
        ("version", version, r"\d+\.\d+\.\d+", "three numbers, such as 0.1.0"),
    ):
        if not re.fullmatch(pattern, value, re.ASCII):
            raise BundleError(f"{argument} must be {allowed}, got {value!r}.")
    folder = Path(run_dir)
    facts, trained, overlay = (_read(folder / file) for file in ("run.json", "run_config.json", "inference.json"))
    source = folder / trained["evaluated_checkpoint"] if weights is None else Path(weights)
    if not source.is_file():
        hint = "go on with the run until its end, or name a file by --weights" if weights is None else "name a file"
        raise BundleError(f"weights {source} do not exist: {hint}.")
    train, inference = _train_config(trained), _inference_config(overlay)
    _check_classes(folder, facts, train, inference)
    network = load_network(inference, source)
    metadata = ConfigParser.load_config_file(CONFIGS / "metadata.json")
    classes, method = ", ".join(train["class_names"]), facts["settings"]["method"].partition("(")[0]
    cases = facts["settings"]["cases"].rpartition(", ")[0]
    metadata |= {
        "version": version,
        "changelog": {version: f"trained at commit {facts['commit'] or 'not known'} of the bundle"},
        "name": name,
        "task": f"Segmentation of {classes} in 3D {modality}",
        "description": f"{type(network).__name__} trained by {method}, {cases} cases",
        "authors": authors,
        "copyright": f"Copyright (c) {facts['started'][:4]} {authors}",
        "data_source": data_source,
        "eval_metrics": _figures(folder) if weights is None else {},
        "references": metadata["references"][:1],
    }
    metadata["network_data_format"]["inputs"]["image"]["modality"] = modality
    describe_classes(metadata, train["class_names"], train["patch_size"])
    configs = {"train": train, "inference": inference, "metadata": metadata}
    return Package(
        name=name,
        configs=configs,
        readme=write_readme(
            "run",
            configs,
            network,
            authors=authors,
            modality=modality,
            task=metadata["task"],
            description=metadata["description"],
            data_source=data_source,
            training="see the settings above",
            recipe="\n".join(f"- {key}: {_plain(value)}" for key, value in facts["settings"].items() if key != "cases"),
            commit=facts["commit"] or "not known",
            sources="the paper of the method [1]",
        ),
        data_license=f"No data are shipped with this bundle. models/model.pt was trained on these: {data_source}\n",
        network=network,
        weights=source,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"run_dir {path.parent} holds no run: {path.name} is missing.") from None
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}.") from error
    return content


def _train_config(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Take what a run was trained with into train.json, but for the data."""
    train = ConfigParser.load_config_file(CONFIGS / "train.json")
    own = {key: value for key, value in trained.items() if key not in _OWN_KEYS and not key.startswith("_")}
    for part in ("train", "validate"):
        # A server may have given the pairs themselves.
        own[part] = {**own[part], "dataset": {**own[part]["dataset"], "data": train[part]["dataset"]["data"]}}
    return train | own | {"_desc_": "Trains as the run did of which this bundle was made."}


def _inference_config(overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the overlay that a run leaves into inference.json, with the weights where a bundle has them."""
    own = {key: value for key, value in overlay.items() if key not in ("_desc_", "class_names", "ckpt_path")}
    inference = ConfigParser.load_config_file(CONFIGS / "inference.json")
    parser = ConfigParser(inference)
    for key, value in own.items():
        parser[key] = value
    merged = {key: value for key, value in dict(parser.get()).items() if key != "_meta_"}
    return merged | {"dataset_dir": "$@bundle_root + '/data/images'"}


def _check_classes(folder: Path, facts: Mapping[str, Any], *configs: Any) -> None:
    targets = {name for config in configs for name in _targets(config)}
    for target in sorted(targets):
        package = target.partition(".")[0]
        if "." in target and package not in _PACKAGES:
            raise BundleError(f"the run in {folder} uses {target}, which would not go along: put it into scripts/.")
        if package == "scripts" and locate(target) is None:
            raise BundleError(
                f"the run in {folder} uses {target}, which this version of the bundle does not have: package it "
                f"with that of the run, commit {facts['commit'] or 'not known'}."
            )


def _targets(config: Any) -> Iterator[str]:
    """Find the names of all classes that a configuration builds; expressions are left out."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "_target_" and not value.startswith("$"):
                yield value
            yield from _targets(value)
    elif isinstance(config, list):
        for item in config:
            yield from _targets(item)


def _figures(folder: Path) -> dict[str, float]:
    """Read the means over the test cases, if the run was evaluated."""
    path = folder / "evaluation/metrics_summary.csv"
    if not path.is_file():
        return {}
    *classes, mean = pd.read_csv(path).to_dict("records")
    figures = {"mean_dice": mean["dice_mean"], "jaccard": mean["jaccard_mean"]}
    if len(classes) > 1:
        figures |= {f"dice_{row['class']}": row["dice_mean"] for row in classes}
    figures |= {name: mean[f"{name}_mean"] for name in ("hd95_mm", "asd_mm")}
    return {name: round(float(value), 3) for name, value in figures.items() if pd.notna(value)}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
