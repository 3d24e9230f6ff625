# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Check the settings of a run before anything slow or lasting happens."""

from __future__ import annotations

import copy
import io
import logging
import math
import operator
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from monai.utils.misc import str2bool
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .errors import BundleError, one_line
from .precision import Precision, resolve_precision

Check = tuple[str, Callable[[Any], bool]]

_logger = logging.getLogger(__name__)


def true_or_false(name: str, value: Any) -> bool:
    """Read a setting that is true or false, also as a text.

    Args:
        name: what to call it in the message.
        value: its value.

    Returns:
        whether it is true.

    Raises:
        BundleError: when it is neither.
    """
    if not _is_true_or_false(value):
        raise BundleError(f"{name} must be true or false, got {value!r}.")
    return bool(str2bool(value))


def _is_true_or_false(value: Any) -> bool:
    return isinstance(value, bool) or str(value).lower() in ("true", "false")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _three(value: Any, accept: Callable[[Any], bool]) -> bool:
    return _many(value) and len(value) == 3 and all(map(accept, value))


def _many(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _range(value: Any) -> bool:
    return _many(value) and len(value) == 2 and all(map(_number, value)) and 0 <= value[0] <= value[1]


def _view(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and 0 < len(value) == len(value.keys() & {"turn", "size"})
        and _three(value.get("turn", [0, 0, 0]), lambda angle: _number(angle) and abs(angle) <= math.pi)
        and _number(value.get("size", 1))
        and 0.5 <= value.get("size", 1) <= 2
    )


def _available(value: Any) -> bool:
    try:
        # A kernel is run: a card for which this build of torch has none takes memory all the same.
        torch.zeros(1, device=value)
    # Each kind of device is missing in its own way.
    except Exception:
        return False
    return True


def _at_least(least: int) -> Check:
    return f"a whole number of at least {least}", lambda value: _whole(value) and value >= least


_ABOVE_ZERO: Check = ("a number above 0", lambda value: _number(value) and value > 0)
_TRUE_OR_FALSE: Check = ("true or false", _is_true_or_false)
_SPACING: Check = (
    "None or three numbers above 0 in mm, such as [1.25,1.25,1.25]",
    lambda value: value is None or _three(value, lambda size: _number(size) and size > 0),
)
_DEVICE: Check = ("a device of this machine, such as cpu or cuda:0", _available)
_CHECKS: dict[str, Check] = {
    "iterations": _at_least(1),
    "ramp_length": _at_least(0),
    "val_interval": _at_least(1),
    "checkpoint_interval": _at_least(1),
    "log_interval": _at_least(1),
    "labeled_batch_size": _at_least(0),
    "unlabeled_batch_size": _at_least(0),
    "num_workers": _at_least(0),
    "sw_batch_size": _at_least(1),
    "crop_to_organs": _at_least(0),
    "in_channels": ("a whole number from 1 to 16", lambda value: _whole(value) and 1 <= value <= 16),
    "num_classes": ("a whole number from 2 to 128", lambda value: _whole(value) and 2 <= value <= 128),
    "deterministic": _TRUE_OR_FALSE,
    "seed": ("a whole number from 0 to 4294967295", lambda value: _whole(value) and 0 <= value < 2**32),
    "cache_rate": ("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1),
    "device": _DEVICE,
    "stitching_device": _DEVICE,
    "cache_num": _at_least(0),
    "cache_memory_gigabytes": _ABOVE_ZERO,
    "cache_dir": (
        "None or a folder",
        lambda value: value is None or (isinstance(value, str) and value.lower() not in ("", "null", "none")),
    ),
    "cache_gigabytes": _ABOVE_ZERO,
    "skip_unreadable": _TRUE_OR_FALSE,
    "evaluated_checkpoint": ("model_final.pt or model.pt", lambda value: value in ("model_final.pt", "model.pt")),
    "precision": ("auto, float32, bfloat16 or float16", lambda value: value in get_args(Precision)),
    "patch_size": (
        "three whole numbers of at least 16 that are divisible by 16, such as [96,96,96]",
        lambda value: _three(value, lambda size: _whole(size) and size >= 16 and size % 16 == 0),
    ),
    "strides": (
        "three whole numbers of at least 1, such as [16,16,16]",
        lambda value: _three(value, lambda step: _whole(step) and step >= 1),
    ),
    "spacing": _SPACING,
    "trained_spacing": _SPACING,
    "trained_extent": _SPACING,
    "trained_margin": (
        "None or three numbers of at least 0 in mm, such as [10,10,10]",
        lambda value: value is None or _three(value, lambda size: _number(size) and size >= 0),
    ),
    "trained_class_volumes": (
        "None, or the smallest and the largest volume in ml of each class without the background, such as [[20,150]]",
        lambda value: value is None or (_many(value) and all(map(_range, value))),
    ),
    "foreground_share": ("a number of at least 0 and below 1", lambda value: _number(value) and 0 <= value < 1),
    "val_overlap": ("a number of at least 0 and below 1", lambda value: _number(value) and 0 <= value < 1),
    "overlap": ("a number of at least 0 and below 1", lambda value: _number(value) and 0 <= value < 1),
    "resume": _TRUE_OR_FALSE,
    "overwrite": _TRUE_OR_FALSE,
    "channels_last": _TRUE_OR_FALSE,
    "keep_memory": _TRUE_OR_FALSE,
    "uses_boxes": _TRUE_OR_FALSE,
    "load_pretrain": _TRUE_OR_FALSE,
    "save_probabilities": _TRUE_OR_FALSE,
    "save_uncertainty": _TRUE_OR_FALSE,
    "largest_component": _TRUE_OR_FALSE,
    "whole_volume": _TRUE_OR_FALSE,
    "skip_empty_windows": _TRUE_OR_FALSE,
    "progress": _TRUE_OR_FALSE,
    "skip_existing": _TRUE_OR_FALSE,
    "normalization": ("batch, instance or group", lambda value: value in ("batch", "instance", "group")),
    "test_time_views": (
        'a list of views such as {"turn": [0,0,0.25]} in radians, at most pi, {"size": 1.1} from 0.5 to 2, or both',
        lambda value: _many(value) and all(map(_view, value)),
    ),
    "blending": ("gaussian or constant", lambda value: value in ("gaussian", "constant")),
    "class_names": (
        "a list of different strings, one for each class without the background",
        lambda value: (
            _many(value)
            and all(isinstance(name, str) and name.strip() for name in value)
            and len(set(value)) == len(value)
        ),
    ),
}

#: What not every machine can do.
_OF_THE_MACHINE = {"device", "stitching_device", "precision"}


def check_settings(**settings: Any) -> None:
    """Refuse settings of a wrong type or out of range, all at once.

    Args:
        **settings: values by the name of their configuration key.

    Raises:
        BundleError: when a setting is not allowed; names each, what is allowed, and what came. Or when the device
            cannot compute in the precision.
    """
    problems = [
        f"{name} must be {_CHECKS[name][0]}, got {value!r}"
        for name, value in settings.items()
        if not _CHECKS[name][1](value)
    ]
    names, num_classes = settings.get("class_names"), settings.get("num_classes")
    if not problems and names is not None and num_classes is not None and len(names) != num_classes - 1:
        problems.append(f"class_names must name the {num_classes - 1} class(es) without the background, got {names!r}")
    trained = settings.get("trained_class_volumes")
    if not problems and trained is not None and num_classes is not None and len(trained) != num_classes - 1:
        problems.append(
            f"trained_class_volumes must be for the {num_classes - 1} class(es) without the background, got {trained!r}"
        )
    if not problems and any(map(operator.gt, settings.get("strides", ()), settings.get("patch_size", ()))):
        problems.append(
            f"strides must be at most the patch_size {list(settings['patch_size'])}, got {list(settings['strides'])}: "
            "the voxels between two windows would have no label"
        )
    views = settings.get("test_time_views", ())
    if not problems and str2bool(settings.get("whole_volume", False)) and any("size" in view for view in views):
        problems.append(f"test_time_views must have no size where whole_volume is true, got {views!r}")
    if not problems and settings.get("crop_to_organs", 0):
        problems += [
            f"crop_to_organs needs {name} in mm, as the inference.json of a run has it, got None"
            for name in ("trained_extent", "trained_margin")
            if settings.get(name) is None
        ]
        if str2bool(settings.get("whole_volume", False)):
            problems.append("crop_to_organs must be 0 where whole_volume is true")
        if settings["crop_to_organs"] > 1 and str2bool(settings.get("largest_component", False)):
            problems.append("crop_to_organs must be at most 1 where largest_component is true, which keeps one")
    if problems:
        raise BundleError("; ".join(problems) + ".")
    if "precision" in settings:
        resolve_precision(settings["precision"], settings["device"])


def checkable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Choose what :func:`check_settings` can look at before it is known on which machine a run will be.

    Args:
        values: values by the key of the configuration.

    Returns:
        those that it knows, without expressions, devices, and the precision that depends on them.
    """
    return {
        name: value
        for name, value in values.items()
        if name in _CHECKS.keys() - _OF_THE_MACHINE and not any(mark in str(value) for mark in "$@%")
    }


def check_evaluated_checkpoint(evaluated_checkpoint: str, num_validation_cases: int) -> None:
    """Refuse a training whose evaluation and inference would take weights that it never writes.

    Args:
        evaluated_checkpoint: name of the file that they take.
        num_validation_cases: cases that choose the best weights.

    Raises:
        BundleError: when these are to be taken, and there is no case to choose by.
    """
    if evaluated_checkpoint == "model.pt" and not num_validation_cases:
        raise BundleError(
            "evaluated_checkpoint model.pt is chosen by validation cases, and the split has none: leave it out, or "
            "give another split_file."
        )


def check_learning_rate(lr_scheduler: Any, iterations: int) -> None:
    """Follow the schedule of the learning rate to its end, so that it cannot fail in the midst of a training.

    Schedule and optimizer are afterwards as they were. A warning tells of a rate that is 0 before the end, as where a
    program asks for more iterations than those that the schedule was set for.

    Args:
        lr_scheduler: the schedule, which steps once an iteration; one that is none of PyTorch's, and
            ReduceLROnPlateau, are not followed.
        iterations: number of steps that the training will take.

    Raises:
        BundleError: when a step fails, or gives a learning rate that is no finite number of at least 0, or when a
            checkpoint could not keep the schedule.
    """
    if not isinstance(lr_scheduler, LRScheduler) or isinstance(lr_scheduler, ReduceLROnPlateau):
        return
    _check_kept(lr_scheduler)
    groups, state = lr_scheduler.optimizer.param_groups, copy.deepcopy(lr_scheduler.state_dict())
    kept = [copy.deepcopy({name: value for name, value in group.items() if name != "params"}) for group in groups]
    steps, trained = 0, int(any(group["lr"] for group in groups))
    try:
        with warnings.catch_warnings():
            # No step of the optimizer goes before these.
            warnings.simplefilter("ignore")
            while steps < iterations:
                steps += 1
                lr_scheduler.step()
                rates = [float(group["lr"]) for group in groups]
                # With the rate behind the last iteration nothing is trained.
                if steps < iterations and not all(math.isfinite(rate) and rate >= 0 for rate in rates):
                    raise ValueError(f"the learning rate becomes {rates}")
                if steps < iterations and any(rates):
                    trained = steps + 1
        _check_kept(lr_scheduler)
    except BundleError:
        raise
    # A schedule of one's own may fail in any way.
    except Exception as error:
        raise BundleError(
            f"lr_scheduler {type(lr_scheduler).__name__} fails at iteration {steps} of {iterations}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        lr_scheduler.load_state_dict(state)
        for group, values in zip(groups, kept, strict=True):
            group.update(values)
    if trained < iterations:
        _logger.warning(
            "lr_scheduler %s: the learning rate is 0 from iteration %d of %d on, which trains nothing: ask for fewer "
            "iterations, or set iterations to these.",
            type(lr_scheduler).__name__,
            trained + 1,
            iterations,
        )


def _check_kept(lr_scheduler: LRScheduler) -> None:
    """Refuse a schedule that a checkpoint could not give back: no run with it could be resumed."""
    groups = lr_scheduler.optimizer.param_groups
    # The parameters are no part of what an optimizer saves of its groups.
    rates = [item for group in groups for item in group.items() if item[0] != "params"]
    for name, value in (*lr_scheduler.state_dict().items(), *rates):
        stream = io.BytesIO()
        try:
            torch.save(value, stream)
            stream.seek(0)
            torch.load(stream, weights_only=True)
        # A schedule of one's own may keep anything.
        except Exception as error:
            raise BundleError(
                f"lr_scheduler {type(lr_scheduler).__name__} or its optimizer keeps {name} = {reprlib.repr(value)}, "
                "which a checkpoint cannot give back: plain numbers, lists and texts are allowed, such as float(...) "
                "of a NumPy number."
            ) from error
