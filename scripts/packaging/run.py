# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The bundle of one's own run: what MONAI Label, Deploy and 3D Slicer take of a network trained on other data."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
from monai.bundle import ConfigParser
from torch import nn

from ..configuration import TRAINED_KEYS, own_keys
from ..errors import BundleError, root_cause
from ..evaluation.case_report import read_metrics
from ..files import CONFIGS, CONFIGURATION_FILE, FACTS_FILE, INFERENCE_FILE, file_hash, read_json_object
from ..handlers.run_comparison import check_preprocessing, listed
from ..handlers.run_directory import inference_overlay
from ..settings import check_settings, checkable
from .package import COMMON_CONFIGS, Package, describe_classes, load_network, readme_line, readme_text

_logger = logging.getLogger(__name__)
#: Plain values that a bundle takes from a run, for training and inference; expressions are evaluated.
_VALUES = (
    "in_channels",
    "num_classes",
    "class_names",
    "spacing",
    "patch_size",
    "strides",
    "test_time_views",
    "uses_boxes",
    "normalization",
    "largest_component",
)
#: The same for its training alone.
_TRAINING_VALUES = (
    "seed",
    "deterministic",
    "iterations",
    "precision",
    "val_interval",
    "val_overlap",
    "checkpoint_interval",
    "foreground_share",
    "evaluated_checkpoint",
)
#: Those of them that may be chosen after the training, in the ``inference.json`` of the run.
_CHOSEN_VALUES = ("test_time_views", "largest_component")
#: What inference alone takes from there.
_INFERENCE_VALUES = ("overlap", "blending", "whole_volume", "crop_to_organs", "skip_empty_windows")
#: Objects that a bundle takes from a run. Everything else, above all data and folders, is that of train.json.
_OBJECTS = (
    "orient",
    "resample",
    "crop",
    "window",
    "normalize",
    "region_size",
    "augmentation",
    "network_def",
    "method_def",
    "optimizer",
    "auxiliary_optimizer",
    "lr_scheduler",
    "ramp_length",
    "lists",
    "cases",
)
#: Parts of ``train`` that a bundle takes from a run.
_TRAIN_PARTS = ("region", "unlabeled_region", "random_transforms", "preprocessing", "unlabeled_preprocessing")
#: What must be as in train.json, as a bundle could not know it otherwise.
_FIXED = ("train#deterministic_transforms", "validate#preprocessing")


def run_package(
    run_dir: str | Path,
    name: str,
    *,
    modality: str,
    data_source: str,
    authors: str,
    weights: str | Path | None = None,
    version: str = "0.1.0",
) -> Package:
    """Put together the bundle of a finished run that was started from the command line.

    It trains as the run did, on data of its own folder, and segments as the run's ``inference.json`` does. Metrics are
    those of the evaluation in the folder of the run, if it is of these weights.

    Args:
        run_dir: folder of the run.
        name: of the folder of the bundle; MONAI Label takes it for a segmentation when it says so.
        modality: two capital letters, as DICOM names it, such as MR or CT.
        data_source: where the data are from.
        authors: who trained it.
        weights: bare state dict of the network; by default those that the evaluation of the run takes,
            ``model_final.pt`` unless its recipe says otherwise.
        version: of the bundle, three numbers.

    Returns:
        what :func:`scripts.packaging.package.write_package` writes.

    Raises:
        BundleError: when an argument is not allowed, the folder holds no finished run, or the run used what a bundle
            cannot hold.
    """
    for argument, value, pattern, allowed in (
        ("name", name, r"\w+", "letters, digits and _"),
        ("modality", modality, "[A-Z]{2}", "two capital letters, such as MR or CT"),
        ("version", version, r"\d+\.\d+\.\d+", "three numbers, such as 0.1.0"),
    ):
        if not re.fullmatch(pattern, value, re.ASCII):
            raise BundleError(f"{argument} must be {allowed}, got {value!r}.")
    folder = Path(run_dir)
    facts, trained, overlay = (_read(folder / file) for file in (FACTS_FILE, CONFIGURATION_FILE, INFERENCE_FILE))
    settings = facts.get("settings")
    if not isinstance(settings, dict) or not {"method", "cases", "unlabeled_batch_size"} <= settings.keys():
        raise BundleError(f"{folder / FACTS_FILE} is damaged: it does not tell the settings of the run.")
    _check_overlay(folder / INFERENCE_FILE, overlay, trained)
    train = _train_config(folder, trained, settings)
    # What may have been chosen after the training.
    train |= {key: overlay[key] for key in _CHOSEN_VALUES if key in overlay}
    inference = _inference_config(overlay, train)
    source = folder / train["evaluated_checkpoint"] if weights is None else Path(weights)
    if not source.is_file():
        hint = "go on with the run until its end, or name a file by --weights" if weights is None else "name a file"
        raise BundleError(f"weights {source} do not exist: {hint}.")
    check_preprocessing(str(source), trained, remedy="weights of this run, or package the run that they are of")
    _check_parts(folder, train, inference)
    network = load_network(inference, source)

    labeled, unlabeled = settings["cases"].split(", ")[:2]
    cases = f"{labeled} and {unlabeled} cases" if settings["unlabeled_batch_size"] else f"{labeled} cases"
    commit = facts.get("commit") or "not known"
    metadata = ConfigParser.load_config_file(CONFIGS / "metadata.json")
    metadata |= {
        "version": version,
        "changelog": {version: f"trained with the bundle's code at commit {commit}"},
        "name": name,
        "task": f"Segmentation of {', '.join(train['class_names'])} in 3D {modality}",
        "description": f"{type(network).__name__} trained by {settings['method'].partition('(')[0]} on {cases}",
        "authors": authors,
        # A package that was trained in a package tells of the rights of the code alone, not of the weights before.
        "copyright": f"Weights: {authors}. Code: {metadata['copyright'].rpartition('Code: ')[2]}",
        "data_source": data_source,
        "image_classes": f"3D {modality} image, {train['in_channels']} channel(s), preprocessed as in inference.json",
        "eval_metrics": _figures(folder, source, train),
        "references": metadata["references"][:1],
    }
    image = metadata["network_data_format"]["inputs"]["image"]
    channels = {str(index): f"image {index}" for index in range(train["in_channels"])}
    image |= {"modality": modality, "num_channels": len(channels), "channel_def": channels}
    describe_classes(metadata, train["class_names"], train["patch_size"])
    configs = {"train": train, "inference": inference, "metadata": metadata}
    readme = readme_text(
        ("run",),
        configs,
        network,
        authors=readme_line(authors),
        tags=f"Segmentation, {modality}" + (", Semi-supervised" if settings["unlabeled_batch_size"] else ""),
        task=readme_line(metadata["task"]),
        description=readme_line(metadata["description"]),
        data_source=readme_line(data_source),
        beginning="from other weights, which are not in it" if facts.get("initial_weights") else "from random weights",
        steps=" and ".join(f"`{name}`" for name in ("window", "normalize") if _is_on(inference, name)) or "none",
        boxes="".join(
            text
            for text, holds in (
                (_BOXES, train["uses_boxes"] and not inference["crop_to_organs"]),
                (_ORGANS, inference["crop_to_organs"]),
                (_VIEWS, train["test_time_views"]),
            )
            if holds
        ),
        recipe="\n".join(f"- {key}: {_plain(value)}" for key, value in settings.items() if key != "cases"),
        commit=commit,
    )
    _refuse_private(folder, facts, f"{json.dumps(configs, ensure_ascii=False)}\n{readme}")
    return Package(
        name=name,
        configs=configs,
        readme=readme,
        data_license=f"No data are shipped with this bundle. models/model.pt was trained on these: {data_source}\n",
        network=network,
        weights=source,
        patterns=COMMON_CONFIGS,
    )


_BOXES = """
Training and evaluation cropped each volume to its box of `boxes.json` (`python -m scripts boxes`). Inference knows no
box: it segments the whole volume, for which the network was not trained, and the figures below do not hold for it.
"""
_ORGANS = """
Inference finds the organ of a scan that is much larger than the volumes of the training first, and segments its
surroundings alone (`crop_to_organs`); MONAI Label and MONAI Deploy segment without. The figures below are of the
evaluation, which crops as the training did.
"""
_VIEWS = """
Evaluation and inference take the mean over several views of a volume (`test_time_views`); MONAI Label and MONAI Deploy
segment without, and the figures below do not hold for them.
"""


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except FileNotFoundError:
        raise BundleError(
            f"run_dir {path.parent} holds no run started by python -m monai.bundle run: {path.name} is missing."
        ) from None


def _check_overlay(file: Path, overlay: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
    """Refuse what was changed in the ``inference.json`` of a run and would not go along."""
    left = json.loads(json.dumps(inference_overlay(dict(trained), file, overlay), default=str))
    chosen = (*_CHOSEN_VALUES, *_INFERENCE_VALUES)
    free = {"_desc_", "ckpt_path", *chosen}
    changed = {key: (left.get(key), value) for key, value in overlay.items() if key not in free}
    changed = {key: (was, value) for key, (was, value) in changed.items() if was != value}
    if changed:
        raise BundleError(
            f"{file} is not as the run left it ({listed(changed)}): a package takes {', '.join(chosen)} of it, and "
            "everything else as it was trained."
        )


def _train_config(folder: Path, trained: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Put what a run trained, but nothing of its data, machine and processes, into train.json."""
    train = ConfigParser.load_config_file(CONFIGS / "train.json")
    own, base = ConfigParser(dict(trained)), ConfigParser(deepcopy(train))
    for key in _FIXED:
        if key not in own or own[key] != base[key]:
            raise BundleError(
                f"the run in {folder} has another {key} than train.json of this version of the bundle, "
                "which its inference would not repeat: such a run cannot be packaged."
            )
    train |= {key: trained[key] for key in (*_VALUES, *_TRAINING_VALUES, *_OBJECTS) if key in trained}
    train["train"] |= {key: trained["train"][key] for key in _TRAIN_PARTS if key in trained["train"]}
    train |= own_keys(train, trained, ())
    # Those of a run in several processes are for each of them.
    train |= {key: settings[key] for key in ("labeled_batch_size", "unlabeled_batch_size") if key in settings}
    parser = ConfigParser(deepcopy({**trained, **train}))
    train |= {key: _build(folder, parser, key) for key in (*_VALUES, *_TRAINING_VALUES)}
    return train | {
        "_desc_": "Trains as the run did of which this bundle was made.",
        "dataset_dir": "$@bundle_root + '/data'",
    }


def _inference_config(overlay: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the overlay that a run leaves into inference.json, with the weights where a bundle has them."""
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "inference.json"))
    for key, value in overlay.items():
        if key.partition("#")[0] in _OBJECTS:
            parser[key] = value
    inference = {key: value for key, value in dict(parser.get()).items() if key != "_meta_"}
    inference |= {key: train[key] for key in _VALUES if key in inference}
    inference |= {key: overlay[key] for key in _INFERENCE_VALUES if key in overlay}
    inference |= own_keys(inference, overlay, ())
    # Those of inference.json belong to the weights of this repository.
    inference |= {name: overlay.get(name) for name in TRAINED_KEYS}
    return inference | {"dataset_dir": "$@bundle_root + '/data/images'"}


def _check_parts(folder: Path, train: Mapping[str, Any], inference: Mapping[str, Any]) -> None:
    """Build what the bundle will build, so that it does not fail where nobody can mend it."""
    parser = ConfigParser(deepcopy({**train, "device": "cpu"}))
    for part in (_build(folder, parser, key) for key in ("network_def", "method_def")):
        if isinstance(part, nn.Module) and not type(part).__module__.startswith("scripts."):
            raise BundleError(
                f"the run in {folder} uses {type(part).__module__}.{type(part).__name__}, which would not go along: "
                "put it into scripts/."
            )
    parts = ("augmentation", "crop", "train#preprocessing", "train#unlabeled_preprocessing")
    for key in ("optimizer", "auxiliary_optimizer", "lr_scheduler", *parts):
        _build(folder, parser, key)
    parser = ConfigParser(deepcopy({**inference, "device": "cpu"}))
    for key in ("network_def", "preprocessing", "inferer", "organ_inferer", "postprocessing"):
        _build(folder, parser, key)
    check_settings(**checkable(inference))


def _is_on(configuration: Mapping[str, Any], name: str) -> bool:
    return ConfigParser(deepcopy(dict(configuration))).get_parsed_content(name) is not None


def _build(folder: Path, parser: ConfigParser, key: str) -> Any:
    try:
        return parser.get_parsed_content(key)
    # Whatever a configuration may do wrong.
    except Exception as error:
        raise BundleError(
            f"{key} of the run in {folder} cannot be built from its bundle alone: {root_cause(error)}."
        ) from error


def _figures(folder: Path, weights: Path, train: Mapping[str, Any]) -> dict[str, float]:
    """Read the means over the test cases, if these weights were evaluated as the package does, on the split of it."""
    evaluation = folder / "evaluation"
    if not (evaluation / "metrics_weights.json").is_file() or not (evaluation / "metrics_summary.csv").is_file():
        return {}
    evaluated, facts = _read(evaluation / "metrics_weights.json"), _read(folder / FACTS_FILE)
    # Through JSON, as those of the evaluation went. What an older version did not write down cannot be compared.
    settings = json.loads(json.dumps({name: train[name] for name in evaluated.get("settings", ())}))
    pairs = [(name, evaluated["settings"][name], value) for name, value in settings.items()]
    reasons = [
        f"{name} was {measured}, in the package it is {value}"
        for name, measured, value in pairs
        if str(measured).lower() != str(value).lower()
    ]
    # The test cases of another split may be training cases of the run.
    if evaluated.get("split", facts.get("split")) != facts.get("split"):
        reasons.insert(0, "it is of another split")
    if evaluated.get("sha256") != file_hash(weights):
        reasons.insert(0, f"it is of other weights than {weights}")
    if reasons:
        _logger.warning("the evaluation in %s is left out of the package: %s.", evaluation, "; ".join(reasons))
        return {}
    *classes, mean = read_metrics(evaluation / "metrics_summary.csv").to_dict("records")
    figures = {"mean_dice": mean["dice_mean"], "jaccard": mean["jaccard_mean"]}
    if len(classes) > 1:
        figures |= {f"dice_{row['class']}": row["dice_mean"] for row in classes}
    figures |= {name: mean[f"{name}_mean"] for name in ("hd95_mm", "asd_mm")}
    means = {name: round(float(value), 3) for name, value in figures.items() if pd.notna(value)}
    counts = {name: int(mean[name]) for name in ("missed", "false_positive", "absent")}
    return {"test_cases": int(mean["cases"]), **counts, **means}


def _refuse_private(folder: Path, facts: Mapping[str, Any], text: str) -> None:
    """Refuse to carry away where the run found its data."""
    # A single name, such as data, tells of nobody, nor does the root, the home of a user who has none.
    named = [str(facts.get(name) or "") for name in ("dataset_dir", "split_file")]
    named = [path for path in named if re.search(r"[/\\].", path)]
    private = [str(path) for path in (Path.home(), folder.resolve()) if str(path) != path.anchor] + named
    # Folders of the bundle itself may be called as those of the user.
    text = re.sub(r"@bundle_root \+ '[^']*'", "", text)
    for path in private:
        # In the configurations as JSON writes it, where a backslash is two.
        written = {path, json.dumps(path, ensure_ascii=False)[1:-1]}
        if any(re.search(rf"(?<![\w.~-]){re.escape(form)}(?![\w.-])", text) for form in written):
            raise BundleError(f"the configuration of the run in {folder} names {path}, which must not go along.")


def _plain(value: Any) -> str:
    return readme_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
