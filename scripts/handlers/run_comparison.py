# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a run was, compared with what now goes on with it or uses its weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from textwrap import shorten
from typing import Any

from monai.bundle import ConfigParser
from monai.utils.misc import str2bool

from ..configuration import data_configurations, named_weights
from ..errors import BundleError
from ..files import CONFIGS, CONFIGURATION_FILE, FACTS_FILE, INFERENCE_FILE, read_json_object

_OTHER_FILES = (
    f"all files and options of the training, or to an inference the {INFERENCE_FILE} that lies beside the weights"
)
#: What makes the volumes that a network sees.
_PREPROCESSING_KEYS = ("spacing", "orient", "resample", "crop", "window", "normalize")
#: The steps that these keys are part of: in training, and in its validation and evaluation.
_TRAINING_STEPS, _EVALUATION_STEPS = "train#deterministic_transforms", "validate#preprocessing"
#: What makes label maps of what the network says, in which precision, and names their classes.
_SEGMENTATION_KEYS = ("patch_size", "strides", "test_time_views", "precision", "largest_component", "class_names")
#: What ``settings`` cannot tell of a training, since only their configuration has all of their options.
_TRAINING_KEYS = (
    "network_def",
    "lr_scheduler",
    "augmentation",
    *_PREPROCESSING_KEYS,
    _TRAINING_STEPS,
    _EVALUATION_STEPS,
)
#: What makes crops of volumes.
_CROP_KEYS = (
    "region_size",
    "train#region",
    "train#unlabeled_region",
    "train#random_transforms",
    "train#preprocessing",
    "train#unlabeled_preprocessing",
)
#: Up to this number of characters a difference is told in full.
_MAX_TEXT = 300
_logger = logging.getLogger(__name__)


def changed_training(folder: Path, configuration: Mapping[str, Any] | None) -> dict[str, tuple[Any, Any]]:
    """Compare a training with the run that it is to go on with, as far as both configurations are known.

    Args:
        folder: that of the run.
        configuration: the merged configuration of the training.

    Returns:
        what was and what is, by the key of the configuration.

    Raises:
        BundleError: when the configuration of the run cannot be read.
    """
    return _differences(_trained_configuration(folder), configuration, (*_TRAINING_KEYS, *_CROP_KEYS))


def check_preprocessing(
    weights: str, configuration: Mapping[str, Any] | None = None, *, remedy: str = _OTHER_FILES
) -> None:
    """Make sure that weights are used on volumes such as they were trained on.

    Compared is what the preprocessing says, not what a reference to another key in it stands for. Of the weights that
    this bundle ships it only warns, as nobody chose them by a run.

    Args:
        weights: file of the weights; where it lies in the folder of a run, the configuration of the run is known.
        configuration: that of the evaluation or of the inference, which has no crop; None where it is not known.
        remedy: what to give instead, for the message.

    Raises:
        BundleError: when the run had another preprocessing.
    """
    if configuration is None:
        return
    trained = _trained_configuration(Path(weights).parent)
    if trained is None:
        _warn_of_shipped_weights(Path(weights), configuration)
        return
    names = [name for name in _PREPROCESSING_KEYS if name != "crop" or name in configuration]
    changed = _differences(trained, configuration, [*names, *[_EVALUATION_STEPS] * ("validate" in configuration)])
    if changed:
        raise BundleError(f"{weights} was trained with another preprocessing ({listed(changed)}): give {remedy}.")
    if "datalist" in configuration and _has_own_steps(trained) and _has_shipped_preprocessing(configuration):
        raise BundleError(
            f"{weights} was trained with another {_TRAINING_STEPS} than that of train.json, which the preprocessing of "
            "inference.json does not repeat: give the inference a preprocessing with the same steps."
        )
    _warn_of_other_figures(weights, trained, configuration)


def _trained_configuration(folder: Path) -> dict[str, Any] | None:
    """Read the configuration that a run left in its folder; None where there is none."""
    file = folder / CONFIGURATION_FILE
    if not file.is_file():
        return None
    try:
        return read_json_object(file)
    except BundleError as error:
        raise BundleError(f"{error} Move it away, and nothing is compared with it.") from error


def _warn_of_shipped_weights(weights: Path, configuration: Mapping[str, Any]) -> None:
    """Warn where weights of the bundle's own models/ are used otherwise than the configurations that name them."""
    names = [name for name in _PREPROCESSING_KEYS if name != "crop"]
    inference = ConfigParser.load_config_file(CONFIGS / "inference.json")
    changes = {
        file: _differences(shipped, configuration, names)
        for file, shipped in {"inference.json": inference, **data_configurations()}.items()
        if named_weights(shipped) == weights.resolve()
    }
    if changes and all(changes.values()):
        name, changed = next(iter(changes.items()))
        _logger.warning(
            "%s are weights of %s, used with another preprocessing (%s): check the result.",
            weights,
            name,
            listed(changed),
        )


def _has_own_steps(trained: Mapping[str, Any]) -> bool:
    """Return whether a run has other steps than those of train.json; their options may be those of another version."""
    shipped = ConfigParser.load_config_file(CONFIGS / "train.json")
    own, base = ConfigParser(dict(trained)), ConfigParser(shipped)
    return _TRAINING_STEPS in own and _kinds(own[_TRAINING_STEPS]) != _kinds(base[_TRAINING_STEPS])


def _kinds(steps: Any) -> list[str]:
    return [step["_target_"] if isinstance(step, dict) else str(step) for step in steps]


def _has_shipped_preprocessing(configuration: Mapping[str, Any]) -> bool:
    return (
        configuration.get("preprocessing") == ConfigParser.load_config_file(CONFIGS / "inference.json")["preprocessing"]
    )


def _warn_of_other_figures(weights: str, trained: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
    """Warn where an evaluation measures, or an inference does, something else than the run would."""
    if "evaluation_dir" in configuration:
        changed = _differences(trained, configuration, _SEGMENTATION_KEYS)
        if changed:
            _logger.warning("%s is evaluated with other options than its run has (%s).", weights, listed(changed))
    elif (
        "datalist" in configuration
        and str2bool(trained.get("uses_boxes", False), raise_exc=False)
        and not configuration.get("crop_to_organs")
    ):
        _logger.warning(
            "%s was trained on boxes around the organ, within which gray values were normalized: crop the volumes in "
            "the same way, or have the organ found first by crop_to_organs 1; else the result is not that of the "
            "evaluation.",
            weights,
        )


def compare_split(weights: str, split: Mapping[str, Any]) -> None:
    """Warn where weights are evaluated on another split than they were trained with.

    Args:
        weights: file of the weights; where it lies in the folder of a run, the split of the run is known.
        split: that of the evaluation, see :func:`scripts.data.splits.describe_split`.
    """
    try:
        trained = read_json_object(Path(weights).parent / FACTS_FILE)["split"]
    except (OSError, BundleError, KeyError):
        return
    if trained and trained != split:
        _logger.warning(
            "%s was trained with the split %s, this is %s: the test cases may be among those that it was trained on.",
            weights,
            *(f"{part.get('name')} (cases_hash {part.get('cases_hash')})" for part in (trained, split)),
        )


def listed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Tell differences in one line.

    Args:
        changed: what was and what is, by name.

    Returns:
        the line; of long values it has the parts that differ, and of many of those the first.
    """
    return "; ".join(f"{name} {_difference(str(was), str(value))}" for name, (was, value) in changed.items())


def _difference(was: str, value: str) -> str:
    if len(was) + len(value) > _MAX_TEXT:
        before, now = was.split(", "), value.split(", ")
        if sorted(before) == sorted(now):
            return "is in another order"
        steps = SequenceMatcher(None, before, now, autojunk=False).get_opcodes()
        steps = [step for step in steps if step[0] != "equal"]
        parts = ", ".join(", ".join(before[i:j]) for _, i, j, _, _ in steps if i < j)
        others = ", ".join(", ".join(now[i:j]) for _, _, _, i, j in steps if i < j)
        was, value = (shorten(text or "nothing", _MAX_TEXT // 2, placeholder=" ...") for text in (parts, others))
    return f"was {was}, is {value}"


def _differences(
    begun: Mapping[str, Any] | None, now: Mapping[str, Any] | None, names: Iterable[str]
) -> dict[str, tuple[Any, Any]]:
    """Compare keys of two configurations, where both are known: what was, and what is."""
    if begun is None or now is None:
        return {}
    # Through JSON, as the file of a run went.
    was, value = ConfigParser(dict(begun)), ConfigParser(json.loads(json.dumps(dict(now), default=str)))
    # What an older version of the bundle did not write down cannot be compared.
    pairs = {name: (_value(was, name), _value(value, name)) for name in names if name in was}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _value(configuration: ConfigParser, name: str) -> Any:
    value = configuration.get(name)
    if name != "crop" or not isinstance(value, dict):
        return _plain(value)
    # What counts is whether volumes are cropped, by uses_boxes or by a switch of its own.
    switch = _plain(value.get("_disabled_", False))
    is_off = (
        not str2bool(configuration.get("uses_boxes", False), raise_exc=False) if isinstance(switch, str) else switch
    )
    return None if is_off else {key: part for key, part in value.items() if key != "_disabled_"}


def _plain(value: Any) -> Any:
    """Take None, true and false of a command line for those of a file."""
    return {"$None": None, "true": True, "false": False}.get(str(value), value)
