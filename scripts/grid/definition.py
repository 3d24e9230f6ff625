# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a user asks of a grid, checked before its first run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..configuration import check_overrides, overlay_names, read_configuration, require
from ..console import mistakes_in_one_line
from ..data.splits import read_split
from ..errors import BundleError
from ..files import CONFIGS, file_hash
from ..settings import check_settings, checkable
from .grid import Grid
from .methods import DEFAULT_METHOD, ORIGINAL_RECIPE, check_recipe, named_methods, recipe_of_paper

_logger = logging.getLogger(__name__)

#: Name of the split that the data overlay itself names.
_FIXED_SPLIT = "fixed"
#: The recipe of the papers that have the same settings on the left atrium and on the pancreas.
_BOTH_DATA_RECIPE = "paper"
#: Keys of the configuration that a grid sets for each of its runs, or by which it finds what they leave.
_OWN_KEYS = (
    "seed",
    "dataset_dir",
    "split_file",
    "output_dir",
    "evaluation_dir",
    "labels_dir",
    "ckpt_path",
    "resume",
    "overwrite",
)


def define_grid(
    data: str,
    methods: Sequence[str],
    *,
    folds: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    recipe: str = "budget",
    dataset_dir: str | None = None,
    split_file: str | None = None,
    num_labeled: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Grid:
    """Check what a user asks for and make a grid of it.

    Args:
        data: name of a data overlay.
        methods: names of methods, "supervised" for that of the V-Net alone, or paths of overlays outside the bundle.
        folds: numbers of the folds; None takes the one split of the data overlay.
        seeds: seeds of the runs.
        recipe: name of a recipe.
        dataset_dir: folder of the data set; None takes that of the data overlay.
        split_file: split file of the user, in which ``{fold}`` stands for the number of the fold; None takes those of
            the bundle.
        num_labeled: labeled cases of the bundle's split files; None takes the number of the data overlay.
        overrides: further keys of the configuration for every cell.

    Returns:
        the grid.

    Raises:
        BundleError: when a name, a file or a key does not exist; names what is allowed.
    """
    require("data", data, overlay_names("data"))
    require("recipe", recipe, [ORIGINAL_RECIPE, *overlay_names("recipe")])
    for seed in seeds:
        check_settings(seed=seed)
    names, files = named_methods(methods)
    for file in files.values():
        check_recipe(Path(file), recipe, data)
    given = dict(overrides or {})
    config_file = [str(CONFIGS / "train.json"), str(CONFIGS / f"data_{data}.json")]
    config = read_configuration(config_file)
    recipes = {recipe}
    if recipe == ORIGINAL_RECIPE:
        recipes = {recipe_of_paper(name, files, data) for name in names}
    overlays = [f"recipe_{name}" for name in sorted(recipes)]
    overlays += [f"method_{name}" for name in names if name not in files and name != DEFAULT_METHOD]
    _check_given(given, [*config_file, *(str(CONFIGS / f"{name}.json") for name in overlays), *files.values()])
    class_names = given.get("class_names", config["class_names"])
    evaluated = given.get("evaluated_checkpoint", config["evaluated_checkpoint"])
    iterations = given.get("iterations", config["iterations"])
    known = {"class_names": class_names, "iterations": iterations, "evaluated_checkpoint": evaluated}
    sizes = {name: config[name] for name in ("patch_size", "strides")}
    check_settings(**(checkable({**sizes, **given}) | known))
    folder = Path(dataset_dir or _path_of(config, "dataset_dir")).expanduser().resolve()
    config["dataset_dir"] = str(folder)
    splits = _split_files(Path(_path_of(config, "split_file")), folds, split_file, num_labeled)
    hashes = {name: file_hash(path) for name, path in {**splits, **files}.items()}
    for one, other in combinations(splits, 2):
        if hashes[one] == hashes[other]:
            raise BundleError(f"{splits[one]} and {splits[other]} are the same: the runs of {other} would count twice.")
    grid = Grid(
        data=data,
        recipe=recipe,
        methods=tuple(names),
        splits=splits,
        seeds=tuple(seeds),
        dataset_dir=str(folder),
        # As grid.json will give them back: tuples of the command line become lists.
        overrides=json.loads(json.dumps(given)),
        class_names=tuple(class_names),
        method_files=files,
        cases=_test_cases(splits.values(), folder, validated=evaluated == "model.pt"),
        file_hashes=hashes,
    )
    for name in names:
        # Refused here and not in the first cell.
        grid.iterations(name)
    paths = {key: path for name in names for key, path in grid.hashed_files(name, next(iter(splits))).items()}
    grid = dataclasses.replace(grid, file_hashes={key: file_hash(path) for key, path in paths.items()} | hashes)
    if recipe == ORIGINAL_RECIPE:
        _warn_of_other_data(grid)
    return grid


def _warn_of_other_data(grid: Grid) -> None:
    """Tell of the methods whose papers have no recipe for the data of the grid."""
    if grid.data.startswith("left_atrium"):
        return
    recipes = {method: grid.recipe_of(method) for method in grid.methods}
    of_these_data = _BOTH_DATA_RECIPE if grid.data == "pancreas" else None
    others = [
        f"{method} takes {recipe}"
        for method, recipe in recipes.items()
        if recipe != of_these_data and not recipe.endswith(f"_{grid.data}")
    ]
    if others:
        _logger.warning("recipe original: where there is none for %s, %s.", grid.data, ", ".join(others))


def _path_of(config: ConfigParser, key: str) -> str:
    """Evaluate a path of the data overlay."""
    with mistakes_in_one_line():
        value = config.get_parsed_content(key)
    if not isinstance(value, str):
        raise BundleError(f"{key} must be a path, got {value!r}: give it as an argument, or in the data overlay.")
    return value


def _check_given(overrides: Mapping[str, Any], config_file: Sequence[str]) -> None:
    """Refuse overrides that no run has, that a grid sets itself, or that grid.json could not hold."""
    for name in overrides:
        if name in _OWN_KEYS:
            raise BundleError(
                f"--{name} must not be given: a grid sets {', '.join(_OWN_KEYS)} for each run itself; its arguments "
                "are seeds, dataset_dir, split_file and output_dir."
            )
    check_overrides(overrides, config_file, arguments=inspect.signature(define_grid).parameters)
    try:
        json.dumps(overrides)
    except TypeError as error:
        raise BundleError(f"overrides must be numbers, texts, lists or dictionaries: {error}.") from error


def _test_cases(split_files: Iterable[str], folder: Path, *, validated: bool) -> dict[str, dict[str, str]]:
    """Find image and label of each test case of all splits, which need validation cases where these choose weights."""
    cases = {}
    for path in split_files:
        split = read_split(path)
        if not split.test:
            raise BundleError(f"split_file {path} has no test case, so that no run could be evaluated.")
        if validated and not split.validation:
            raise BundleError(
                f"split_file {path} has no validation case, by which model.pt is chosen: leave out "
                "--evaluated_checkpoint, or give another split."
            )
        for case in split.test:
            cases[case] = {"image": str(folder / split.image_path(case)), "label": str(folder / split.label_path(case))}
    return cases


def _split_files(
    default: Path, folds: Sequence[int] | None, split_file: str | None, num_labeled: int | None
) -> dict[str, str]:
    if split_file is not None and num_labeled is not None:
        raise BundleError("split_file and num_labeled exclude each other: give one of them.")
    pattern = str(default) if split_file is None else split_file
    found = re.fullmatch(r"(.+?)(_fold\d+)?_(\d+)", default.stem)
    if split_file is None and (folds is not None or num_labeled is not None):
        if found is None:
            raise BundleError(
                f"split_file must be given with folds and num_labeled: that of the data, {default}, is not named as "
                "those of the bundle, such as hippocampus_fold0_16.json."
            )
        fold = (found.group(2) or "") if folds is None else "_fold{fold}"
        number = found.group(3) if num_labeled is None else num_labeled
        pattern = str(default.with_name(f"{found.group(1)}{fold}_{number}.json"))
    if folds is None and "{fold}" in pattern:
        raise BundleError(f"folds must be given where split_file has {{fold}}, got split_file {split_file!r} alone.")
    if folds is not None and "{fold}" not in pattern:
        raise BundleError(f"split_file must contain {{fold}} where folds are given, got {split_file!r}.")
    names = {_FIXED_SPLIT: pattern}
    if folds is not None:
        names = {f"fold{fold}": pattern.replace("{fold}", str(fold)) for fold in folds}
    for path in names.values():
        if not Path(path).is_file():
            shipped: list[str] = []
            if found and split_file is None:
                shipped = sorted(file.stem for file in (CONFIGS / "splits").glob(f"{found.group(1)}_*.json"))
            hint = f"; the bundle has {', '.join(shipped)}" if shipped else ""
            raise BundleError(f"split file {path} not found{hint}.")
    return {name: str(Path(path).resolve()) for name, path in names.items()}
