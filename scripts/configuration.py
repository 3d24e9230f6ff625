# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A configuration: its files and what overrides them, read together and checked."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser
from monai.utils.misc import str2bool

from .errors import BundleError, did_you_mean, one_line, one_of
from .files import CONFIGS, ROOT

#: What inference compares volumes and label maps with, see :mod:`scripts.data.geometry`; a training measures it.
TRAINED_KEYS = ("trained_spacing", "trained_extent", "trained_margin", "trained_class_volumes")
#: The key of the weights that an evaluation or an inference takes.
_WEIGHTS = "ckpt_path"
#: What switches the crop of train.json.
_BOXES_SWITCH = "$not str2bool(@uses_boxes)"
#: The files that have every key that a workflow of this bundle reads.
_WORKFLOWS = ("train.json", "inference.json", "evaluate.json")
#: First part of a reference to another key of a configuration.
_REFERENCE = re.compile(r"[@%](\w+)")


def read_configuration_file(path: str | Path) -> dict[str, Any]:
    """Read one configuration file, in JSON or YAML.

    Args:
        path: the file.

    Returns:
        its keys and values.

    Raises:
        BundleError: when it is missing, cannot be read or holds something else; names the file.
    """
    try:
        content = ConfigParser.load_config_file(path)
    except FileNotFoundError:
        raise BundleError(f"config_file must name files that exist, got {path}.") from None
    # The readers of JSON and YAML have errors of their own.
    except Exception as error:
        raise BundleError(f"config_file {path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise BundleError(f"config_file {path} must hold keys and values, got a {type(content).__name__}.")
    return content


def overlay_names(kind: str) -> list[str]:
    """Name the overlays of one kind that this bundle has.

    Args:
        kind: "data", "method" or "recipe".

    Returns:
        what stands between the kind and the suffix of their files, sorted.
    """
    return sorted(path.stem.removeprefix(f"{kind}_") for path in CONFIGS.glob(f"{kind}_*.json"))


def require(argument: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a name of an overlay that there is not.

    Args:
        argument: what the user gave it as.
        value: the name.
        allowed: the names that there are.

    Raises:
        BundleError: when it is none of these.
    """
    if not allowed:
        raise BundleError(f"{argument} names an overlay configs/{argument}_*.json, and this bundle has none.")
    if value not in allowed:
        hint = did_you_mean(value, allowed, at_most=3)
        raise BundleError(f"{argument} must be one of {', '.join(allowed)}, got {value!r}.{hint}")


def data_configurations() -> dict[str, dict[str, Any]]:
    """Read each configuration of data in ``configs/`` behind ``inference.json``, without those that cannot be read.

    Returns:
        the merged configurations by the names of the files. Somebody may be editing one: it is left out.
    """
    found = {}
    for name in overlay_names("data"):
        path = CONFIGS / f"data_{name}.json"
        # The readers, and what merges, have errors of their own.
        with suppress(Exception):
            found[path.name] = ConfigParser.load_config_files([str(CONFIGS / "inference.json"), str(path)])
    return found


def named_weights(configuration: Mapping[str, Any]) -> Path | None:
    """Find the weights that a configuration names by a path, or by one below the bundle's root.

    Args:
        configuration: merged files, before anything in them is evaluated.

    Returns:
        the path; None where they are named in another way, or not at all.
    """
    try:
        path = ConfigParser({**configuration, "bundle_root": str(ROOT)}).get_parsed_content(_WEIGHTS)
    # An overlay of somebody's own may hold anything.
    except Exception:
        return None
    return Path(path).resolve() if isinstance(path, str) else None


def read_configuration(config_file: str | Sequence[str], overrides: Mapping[str, Any] | None = None) -> ConfigParser:
    """Read configuration files and override some of their keys, as ``monai.bundle run`` does.

    Args:
        config_file: one file or several, a later one overriding an earlier one.
        overrides: values by key, such as ``iterations`` or ``network_def#dropout``.

    Returns:
        the configuration before anything in it is evaluated.

    Raises:
        BundleError: for a file that is missing or cannot be read.
    """
    files = _file_names(config_file)
    for file in files:
        read_configuration_file(file)
    parser = ConfigParser()
    parser.read_config(files)
    parser.update(dict(overrides or {}))
    return parser


def check_overrides(
    overrides: Mapping[str, Any], config_file: str | Sequence[str], *, arguments: Iterable[str]
) -> None:
    """Refuse overrides of keys that no configuration has, and keys of a configuration of one's own that nothing uses.

    Args:
        overrides: values by key, such as ``iterations`` or ``network_def#dropout``.
        config_file: one configuration file or several.
        arguments: other names that a misspelled one may have meant: the program's own arguments.

    Raises:
        BundleError: for the first key that none of the configuration files has, or that is there for another workflow
            than this one, or that no file of this bundle has and nothing refers to; names the most similar one. When
            the files are in an order, or in a folder, in which the weights of another run would be taken; when a key is
            inside of an object that is switched off; when an object is replaced by what makes none; when the text
            false is given to an object that takes any text for true; when a text has a #, which MONAI would change to
            :: without a word.
    """
    contents = {str(file): read_configuration_file(file) for file in _file_names(config_file)}
    config = ConfigParser.load_config_files(config_file)
    _check_order(contents)
    paths = {name: name.replace("::", "#") for name in overrides}
    if not paths.keys() & {_WEIGHTS, "load_pretrain"}:
        _check_weights_beside(contents)
    used = referenced_keys(config)
    _check_keys(config, used, config_file)
    # Files with a workflow hold its options; those of data hold what other workflows need, too.
    of_workflow = {key for content in contents.values() if "run" in content for key in content} or set(config)
    for name in paths:
        path = paths[name].split("#")
        values = _along(config, path)
        found = len(values) > len(path)
        # An object may take more arguments than are configured.
        if not found and not _is_object(values[-1]):
            others = [] if path[0] in config else [key for key in (*config, *arguments) if key != path[0]]
            hint = did_you_mean(path[0], others, prefix="--")
            raise BundleError(f"--{name} is no key of the configuration {config_file}.{hint}")
        if found and _is_object(values[-1]) and not _makes_object(overrides[name]):
            raise BundleError(
                f"--{name} must be an object with a _target_, or an expression that begins with $, @ or %, got "
                f"{overrides[name]!r}."
            )
        switched_off = _switched_off(values, path)
        if switched_off is not None and f"{switched_off}#_disabled_" not in paths.values():
            raise BundleError(
                f"--{name} would change nothing, as {switched_off} is switched off: give --{switched_off}#_disabled_ "
                "false, too."
            )
        if path[0] == "crop" and len(path) > 1 and _crops_nothing(config, overrides, paths.values()):
            raise BundleError(f"--{name} would change nothing, as no volume is cropped: give --uses_boxes true, too.")
        if path[0] not in used | of_workflow:
            hint = " A training begins with --initial_weights." if name == _WEIGHTS else ""
            raise BundleError(f"--{name} would change nothing: {config_file} has it for another workflow alone.{hint}")
    merged = dict(read_configuration(config_file, overrides).get())
    _check_texts(merged)
    _check_truth_values(merged)


def _file_names(config_file: str | Sequence[str]) -> list[str]:
    """List configuration files, of which MONAI takes several in one text with commas, too."""
    if not isinstance(config_file, str):
        return list(config_file)
    return [config_file] if Path(config_file).is_file() else config_file.split(",")


def referenced_keys(value: Any) -> set[str]:
    """Name the keys that references in a part of a configuration stand for.

    Args:
        value: the part, before anything in it is evaluated.

    Returns:
        the first part of each reference: ``train`` of ``@train#dataset``.
    """
    # Through text, as a reference may stand anywhere in an expression.
    return set(_REFERENCE.findall(json.dumps(value, default=str)))


def own_keys(part: Mapping[str, Any], configuration: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Find what a part of a configuration needs of it, directly or through what it needs.

    Args:
        part: keys and values that are taken out of the configuration.
        configuration: the whole.
        known: keys that are there where the part goes.

    Returns:
        the further keys and their values.
    """
    found: dict[str, Any] = {}
    there = {*part, *known}
    missing = referenced_keys(part)
    while missing := {name for name in missing if name in configuration and name not in there}:
        found |= {name: configuration[name] for name in sorted(missing)}
        there |= missing
        missing = referenced_keys(found)
    return found


def check_workflow(name: str, config: Mapping[str, Any]) -> None:
    """Refuse to run what is no workflow: a part of a configuration MONAI would build, and do nothing.

    Args:
        name: the key to run, such as ``training``.
        config: the merged configuration files.

    Raises:
        BundleError: when it is not there, or is no list of steps.
    """
    same = ("%run", "@run")
    value = config.get("run") if config.get(name) in same else config.get(name)
    if not _is_workflow(value):
        workflows = [key for key in config if key == "run" or config[key] in same]
        raise BundleError(f"{name} is no workflow of the configuration: give {one_of(workflows)}.")


def _check_order(contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an order of files in which weights that a file of data names take the place of those that are meant."""
    files = list(contents)
    for number, (file, content) in enumerate(contents.items()):
        if "evaluation_dir" in content and any(_WEIGHTS in contents[other] for other in files[number + 1 :]):
            raise BundleError(f"{file} must be the last configuration file: the one behind it names other weights.")
        if "datalist" in content and any(_WEIGHTS in contents[other] for other in files[:number]):
            raise BundleError(f"{file} must be the first configuration file: it would replace the weights of others.")


def _check_weights_beside(contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse the file of a run that was copied or renamed, and that still names the weights of the old folder."""
    for file, content in contents.items():
        weights = content.get(_WEIGHTS)
        if not isinstance(weights, str) or not Path(weights).is_absolute():
            continue
        beside = Path(file).parent.resolve() / Path(weights).name
        if beside.is_file() and Path(weights).parent.resolve() != beside.parent:
            raise BundleError(f"{file} names the weights {weights}, but its run is here: give --{_WEIGHTS} {beside}.")


def _switched_off(values: Sequence[Any], path: Sequence[str]) -> str | None:
    """Name the object on the way to a key that the configuration has, but does not build."""
    for number, value in enumerate(values[: len(path)]):
        if isinstance(value, dict) and value.get("_disabled_") is True and path[number] != "_disabled_":
            return "#".join(path[:number])
    return None


def _crops_nothing(config: Mapping[str, Any], overrides: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Return whether the crop to boxes is off by uses_boxes; a crop or a switch of one's own is left to itself."""
    crop = config.get("crop")
    if not isinstance(crop, dict) or crop.get("_disabled_") != _BOXES_SWITCH or "crop#_disabled_" in keys:
        return False
    # What is no text of a truth value is an expression.
    return not str2bool(overrides.get("uses_boxes", config.get("uses_boxes")), default=True, raise_exc=False)


def _check_keys(config: dict[str, Any], used: set[str], config_file: str | Sequence[str]) -> None:
    # Not those of all files: the file of one's own may lie beside them.
    known = {key for name in _WORKFLOWS for key in read_configuration_file(CONFIGS / name)}
    unknown = [key for key in config if key not in known and not key.startswith("_") and not _is_workflow(config[key])]
    for key in unknown:
        if key not in used:
            hint = did_you_mean(key, known)
            raise BundleError(f"nothing uses the key {key} of the configuration {config_file}.{hint}")


def _check_texts(config: Mapping[str, Any]) -> None:
    for key, text in _texts(config):
        if "#" in text:
            raise BundleError(
                f"{key} must be without #, which in a configuration marks a key within a key, got {text!r}."
            )


def _check_truth_values(place: Any, path: Sequence[str] = ()) -> None:
    """Refuse the text false for an option of an object that takes any text for true."""
    if isinstance(place, (list, tuple)):
        place = {str(number): part for number, part in enumerate(place)}
    if not isinstance(place, Mapping):
        return
    for name, part in place.items():
        key = "#".join((*path, str(name)))
        is_false = isinstance(part, str) and part.lower() == "false"
        # What begins with _ MONAI reads itself.
        is_option = _is_object(place) and not str(name).startswith("_")
        if is_false and is_option and not _reads_text(place["_target_"], name):
            raise BundleError(f"{key} must be True or False, got the text {part}, which would be taken for true.")
        _check_truth_values(part, (*path, str(name)))


def _reads_text(target: Any, option: str) -> bool:
    """Return whether an object reads the truth value of an option from a text, by the types that it tells."""
    parameter = None
    # Short names are of MONAI, whose objects do not; a module of somebody's own may fail in any way.
    with suppress(Exception):
        parameter = inspect.signature(locate(str(target))).parameters.get(option)  # type: ignore[arg-type]
    annotation = "bool" if parameter is None else str(parameter.annotation)
    return "bool" not in annotation or "str" in annotation


def _is_workflow(value: Any) -> bool:
    """Return whether a value can be run by its name: a list of steps."""
    steps = value if isinstance(value, list) else []
    return any(isinstance(step, dict) or str(step).startswith(("$", "@", "%")) for step in steps)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Find the texts that stand for themselves, with the first key of each; not what remarks say."""
    if _is_text(value):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if not str(name).startswith("_"):
                yield from _texts(part, key or str(name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part, key)


def _along(place: Any, path: Sequence[str]) -> list[Any]:
    """Return what stands along a path, from the whole configuration to the last value that is there."""
    values = [place]
    for key in path:
        if isinstance(place, list) and key.isdigit() and int(key) < len(place):
            place = place[int(key)]
        elif isinstance(place, dict) and key in place:
            place = place[key]
        else:
            break
        values.append(place)
    return values


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _makes_object(value: Any) -> bool:
    # A number is a constant weight of a term.
    return not _is_text(value) and not isinstance(value, (bool, list))


def _is_text(value: Any) -> bool:
    """Return whether a value is a text that stands for itself, not for an expression or a reference."""
    return isinstance(value, str) and not value.startswith(("$", "@", "%"))
