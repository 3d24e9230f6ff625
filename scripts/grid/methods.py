# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The methods that a grid can compare, the overlay and the recipe of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..configuration import overlay_names, read_configuration, read_configuration_file, require
from ..errors import BundleError
from ..files import CONFIGS, read_json_object

#: The method that train.json itself holds.
DEFAULT_METHOD = "dual_network"
#: The recipe that stands for each method's own one.
ORIGINAL_RECIPE = "original"
#: What the tables of the papers call a method of the bundle.
_SHORT_NAMES = {"supervised": "supervised_vnet"}
#: Keys of the configuration that say what the volumes of all methods are, and how they are measured.
_OF_ALL_METHODS = {
    "num_classes",
    "class_names",
    "in_channels",
    "spacing",
    "patch_size",
    "strides",
    "test_time_views",
    "uses_boxes",
    "orient",
    "resample",
    "crop",
    "window",
    "normalize",
    "validate",
}


def full_name(method: str) -> str:
    """Return the bundle's name of a method.

    Args:
        method: that name, or what the papers call it.

    Returns:
        the name; what is no short one comes back as it is.
    """
    return _SHORT_NAMES.get(method, method)


def method_names() -> list[str]:
    """List the methods of the bundle.

    Returns:
        their names: that of ``train.json``, then those of the overlays.
    """
    return [DEFAULT_METHOD, *overlay_names("method")]


def named_methods(methods: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Check the methods that a user asks for.

    Args:
        methods: their names, "supervised" for that of the V-Net alone, or paths of overlays outside the bundle.

    Returns:
        the names of all, and the path of each that is not one of the bundle's by its name.

    Raises:
        BundleError: when a name or a file does not exist or is not to be told from another, or when there is none.
    """
    names, files = [], {}
    for method in methods:
        path = Path(method)
        if path.suffix == ".json":
            _check_overlay(path)
            method = path.stem.removeprefix("method_")
            if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", method):
                raise BundleError(
                    f"methods: {path} must be named by letters, digits and any of . _ + -, as its runs are after it."
                )
            if method in _SHORT_NAMES:
                raise BundleError(f"methods: {path} is named as {_SHORT_NAMES[method]} is for short: rename the file.")
            if method not in method_names():
                files[method] = str(path.resolve())
            elif path.resolve() != CONFIGS / f"method_{method}.json":
                raise BundleError(f"methods: {path} has the name of the bundle's method {method}: rename the file.")
        else:
            method = full_name(method)
            require("methods", method, method_names())
        names.append(method)
    if not names or len(set(names)) != len(names):
        raise BundleError(f"methods must be different names, at least one, got {names}.")
    return names, files


def method_file(method: str, method_files: Mapping[str, str]) -> list[Path]:
    """Find the overlay of a method.

    Args:
        method: name of the method.
        method_files: path of the overlay of each method that is not one of the bundle's.

    Returns:
        the file; none for the method of ``train.json``.
    """
    if method in method_files:
        return [Path(method_files[method])]
    return [] if method == DEFAULT_METHOD else [CONFIGS / f"method_{method}.json"]


def check_recipe(path: Path, recipe: str, data: str) -> None:
    """Refuse a user's overlay that names no recipe of its own where one is asked for, or sets what others share.

    Args:
        path: the overlay.
        recipe: name of the recipe of the grid.
        data: name of the data overlay.

    Raises:
        BundleError: names what the overlay lacks, or must leave to recipe or data.
    """
    overlay = read_configuration_file(path)
    if recipe == ORIGINAL_RECIPE:
        if "original_recipe" not in overlay:
            raise BundleError(f"methods: {path} must name its original_recipe, which recipe {recipe!r} asks for.")
        recipe = overlay["original_recipe"]
        require(f"original_recipe of {path}", str(recipe), overlay_names("recipe"))
        recipe = _original_recipe(recipe, data)
    content = read_configuration_file(CONFIGS / f"recipe_{recipe}.json")
    # MONAI merges or removes by a first + or ~, and takes :: for #.
    keys = {key.lstrip("+~").replace("::", "#").partition("#")[0] for key in overlay}
    replaced = sorted(keys & content.keys() - {"_desc_"})
    if replaced:
        raise BundleError(
            f"methods: {path} must leave {', '.join(replaced)} to the recipe {recipe!r}, which all methods of a grid "
            "share: take them out, or give them to all runs as arguments, such as --iterations 3000."
        )
    shared = sorted(keys & _OF_ALL_METHODS)
    if shared:
        raise BundleError(
            f"methods: {path} must leave {', '.join(shared)} to the data, as all methods of a grid are trained and "
            "measured on the same volumes: take them out, or give them to all runs as arguments."
        )


def recipe_of_paper(method: str, method_files: Mapping[str, str], data: str) -> str:
    """Name the recipe of a method's own paper.

    Args:
        method: name of the method.
        method_files: path of the overlay of each method that is not one of the bundle's.
        data: name of the data overlay.

    Returns:
        its name: that for these data where the bundle has one, else that for the left atrium.
    """
    files = [CONFIGS / "train.json", *method_file(method, method_files)]
    return _original_recipe(read_configuration([str(file) for file in files])["original_recipe"], data)


def _original_recipe(name: str, data: str) -> str:
    """Name the recipe of a paper's experiments on this data: its own one there, or that of the left atrium."""
    return f"{name}_{data}" if f"{name}_{data}" in overlay_names("recipe") else name


def _check_overlay(path: Path) -> None:
    try:
        read_json_object(path)
    except FileNotFoundError:
        raise BundleError(f"methods: {path} not found.") from None
    except (BundleError, OSError) as error:
        raise BundleError(f"methods: {error}") from error
