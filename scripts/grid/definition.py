# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a grid of runs consists of: its cells, the configuration files of each, and the file that remembers them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..configuration import check_overrides, overlay_names, read_configuration, read_configuration_file
from ..console import mistakes_in_one_line
from ..data.splits import read_split
from ..errors import BundleError, did_you_mean
from ..files import CONFIGS, file_hash, read_json_object, write_json
from ..locks import locked_folder
from ..settings import check_settings, checkable

logger = logging.getLogger(__name__)

#: The method that train.json itself holds.
DEFAULT_METHOD = "dual_network"
#: Name of the split that the data overlay itself names.
FIXED_SPLIT = "fixed"
#: The recipe that stands for each method's own one.
ORIGINAL_RECIPE = "original"
#: The recipe of the papers that have the same settings on the left atrium and on the pancreas.
_BOTH_DATA_RECIPE = "paper"
#: What the tables of the papers call a method of the bundle.
SHORT_NAMES = {"supervised": "supervised_vnet"}
GRID_FILE = "grid.json"
_LOCK_FILE = ".grid.lock"
CELL_FILE = "cell.json"
#: Keys of the configuration that a grid sets for each of its runs, or by which it finds what they leave.
OWN_KEYS = (
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
#: Keys of the configuration that change no result of a run.
_WITHOUT_EFFECT = (
    "cache_dir",
    "cache_gigabytes",
    "cache_memory_gigabytes",
    "cache_num",
    "cache_rate",
    "checkpoint_interval",
    "keep_memory",
    "log_interval",
    "num_workers",
)
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


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        method: name of the method.
        split: "fixed", or "fold0", "fold1", ...
        seed: seed of the run.
        path: folder of the run.
    """

    method: str
    split: str
    seed: int
    path: Path

    @property
    def name(self) -> str:
        """Name of the cell, for example ``mean_teacher/fold0_seed1``."""
        return f"{self.method}/{self.split}_seed{self.seed}"

    @property
    def evaluated(self) -> bool:
        """Whether the cell is done: trained and evaluated."""
        return (self.path / "evaluation" / "metrics_cases.csv").is_file()

    @property
    def trained(self) -> bool:
        """Whether the training has come to its end."""
        return (self.path / "model_final.pt").is_file()

    def state(self) -> dict[str, Any]:
        """Read what the last attempt at this cell left.

        Returns:
            content of ``cell.json``; empty without a readable one.
        """
        try:
            return read_json_object(self.path / CELL_FILE)
        except (OSError, BundleError):
            return {}

    def write_state(self, **state: Any) -> None:
        """Write ``cell.json``; the seconds that earlier attempts took stay where none are given.

        Args:
            **state: its content.
        """
        earlier = self.state()
        if "seconds" in earlier:
            state = {"seconds": earlier["seconds"], **state}
        write_json(self.path / CELL_FILE, state)

    def beat(self) -> None:
        """Give a sign of life: a new time of change of ``cell.json``, whose content stays."""
        # A sign that cannot be given, as on a file server that is away for a moment, must not end a training.
        with contextlib.suppress(OSError):
            os.utime(self.path / CELL_FILE)

    def last_beat(self) -> int | None:
        """Read when the last sign of life was given.

        Returns:
            time of change of ``cell.json`` in ns, by the clock of whoever made it; None without that file.
        """
        try:
            return (self.path / CELL_FILE).stat().st_mtime_ns
        except OSError:
            return None

    def training_progress(self) -> tuple[int, float]:
        """Read how far the training is from the last whole line of its history.

        Returns:
            number of iterations, 0 before the first, and the seconds that they took with their validations.
        """
        try:
            with (self.path / "history.csv").open("rb") as stream:
                stream.seek(0, 2)
                stream.seek(max(0, stream.tell() - 4096))
                lines = stream.read().split(b"\n")[:-1]
            iterations, seconds = lines[-1].split(b",")[:2]
            return int(iterations), float(seconds)
        except (OSError, ValueError, IndexError):
            return 0, 0.0


@dataclass(frozen=True)
class Grid:
    """All cells of a cross-validation, as ``grid.json`` in its folder remembers them.

    Attributes:
        data: name of the data overlay: ``configs/data_<data>.json``.
        recipe: name of the recipe: ``configs/recipe_<recipe>.json``, or "original" for each method's own one.
        methods: names of the methods, in the order in which they were given: ``configs/method_<method>.json``, or
            "dual_network" for that of ``train.json``.
        splits: path of the split file by its name, "fixed" or "fold<K>".
        seeds: seeds of the runs.
        dataset_dir: folder of the data set.
        overrides: further keys of the configuration for every cell.
        class_names: names of the foreground classes.
        method_files: path of the overlay of each method that is not one of the bundle's.
        cases: image and label of each test case, for the pictures of the report.
        file_hashes: SHA-256 of the file behind each split, and behind each method that is not one of the bundle's; and
            of the bundle's overlays by their file names.
    """

    data: str
    recipe: str
    methods: tuple[str, ...]
    splits: Mapping[str, str]
    seeds: tuple[int, ...]
    dataset_dir: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    method_files: Mapping[str, str] = field(default_factory=dict)
    cases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    file_hashes: Mapping[str, str] = field(default_factory=dict)

    def cells(self, output_dir: str | Path) -> Iterator[Cell]:
        """List the cells: all methods for one split and seed before the next, so that a table fills evenly.

        Args:
            output_dir: folder of the grid.

        Yields:
            the cells.
        """
        for seed in self.seeds:
            for split in self.splits:
                for method in self.methods:
                    yield Cell(method, split, seed, Path(output_dir) / "cells" / method / f"{split}_seed{seed}")

    def config_files(self, method: str) -> list[str]:
        """List the configuration files of a method's runs: data, method, recipe, what is original; later ones win.

        Args:
            method: name of a method of this grid.

        Returns:
            absolute paths.
        """
        files = [CONFIGS / "train.json", CONFIGS / f"data_{self.data}.json", *_method_file(method, self.method_files)]
        files.append(CONFIGS / f"recipe_{self.recipe_of(method)}.json")
        # What belongs to the method itself, and so to no recipe.
        original = CONFIGS / f"original_{method}_{self.data}.json"
        if self.recipe == ORIGINAL_RECIPE and original.is_file():
            files.append(original)
        return [str(path) for path in files]

    def hashed_files(self, method: str, split: str) -> dict[str, str]:
        """List the files that make the runs of a method on a split what they are.

        Args:
            method: name of a method of this grid.
            split: name of a split of this grid.

        Returns:
            their paths by the names that they have in ``file_hashes``.
        """
        own = self.method_files.get(method)
        if own and not Path(own).is_file():
            # It would name the recipe; the training tells of it.
            return {split: self.splits[split], method: own}
        # train.json is a part of the code, whose commit each run writes down.
        overlays = {Path(path).name: path for path in self.config_files(method)[1:] if path != own}
        return {split: self.splits[split], **({method: own} if own else {}), **overlays}

    def recipe_of(self, method: str) -> str:
        """Name the recipe of a method's runs.

        Args:
            method: name of a method of this grid.

        Returns:
            that of the grid, or that of the method's own paper.
        """
        if self.recipe != ORIGINAL_RECIPE:
            return self.recipe
        return _recipe_of_paper(_method_file(method, self.method_files), self.data)

    def arguments(self, cell: Cell, *, evaluate: bool) -> list[str]:
        """Compose the arguments of ``python -m monai.bundle`` for a cell.

        Args:
            cell: a cell of this grid.
            evaluate: those of the evaluation instead of the training.

        Returns:
            words of the command line.
        """
        files = self.config_files(cell.method) + ([str(CONFIGS / "evaluate.json")] if evaluate else [])
        words = ["run", *([] if evaluate else ["training"]), "--config_file", repr(files)]
        values = {
            "dataset_dir": self.dataset_dir,
            "split_file": self.splits[cell.split],
            "output_dir": str(cell.path),
            "seed": cell.seed,
            **self.overrides,
        }
        if "unlabeled_batch_size" in values and self._takes_no_unlabeled_case(cell.method):
            del values["unlabeled_batch_size"]
        for name, value in values.items():
            # The command line is read as Python: JSON's null and true would arrive as texts. MONAI leaves None out.
            value = "$None" if value is None else value
            words += [f"--{name}", value if isinstance(value, str) else repr(value)]
        return words

    def iterations(self, method: str) -> int:
        """Return how many iterations a run of a method has.

        Args:
            method: name of a method of this grid.

        Returns:
            the number.
        """
        config = read_configuration(self.config_files(method))
        config["iterations"] = self.overrides.get("iterations", config["iterations"])
        with mistakes_in_one_line():
            iterations = config.get_parsed_content("iterations")
        if not isinstance(iterations, int):
            raise BundleError(f"iterations must be a whole number, got {iterations!r} for {method}.")
        return iterations

    def joined(self, output_dir: str | Path) -> Grid:
        """Join this grid with what earlier calls have put into its folder.

        Args:
            output_dir: folder of the grid.

        Returns:
            the grid of all of them.

        Raises:
            BundleError: when the folder holds a grid of other data, another recipe or other overrides, or other files
                for the same methods or splits, whose cells would stand in one table with these. A grid of which no cell
                was begun is replaced instead.
        """
        path = Path(output_dir) / GRID_FILE
        if not path.is_file():
            return self
        known = Grid.read(output_dir)
        is_begun = any(cell.path.exists() for cell in known.cells(output_dir))
        return known._merge(self, path) if is_begun or known._shared() == self._shared() else self

    def write(self, output_dir: str | Path) -> None:
        """Write ``grid.json``, together with what an earlier call of the same grid had put there.

        Args:
            output_dir: folder of the grid.

        Raises:
            BundleError: see :meth:`joined`.
        """
        # Two calls at the same time must not forget each other's methods.
        with locked_folder(Path(output_dir) / _LOCK_FILE, wait_seconds=10):
            content = {"version": 1, **dataclasses.asdict(self.joined(output_dir))}
            write_json(Path(output_dir) / GRID_FILE, content)

    def _shared(self) -> dict[str, Any]:
        """What the cells of a grid have in common."""
        overrides = {name: value for name, value in self.overrides.items() if name not in _WITHOUT_EFFECT}
        return {"data": self.data, "recipe": self.recipe, "dataset_dir": self.dataset_dir, "overrides": overrides}

    def _merge(self, new: Grid, path: Path) -> Grid:
        asked = new._shared()
        for name, value in self._shared().items():
            if value != asked[name]:
                moved = ", or write it into this file if it is the same data moved" if name == "dataset_dir" else ""
                raise BundleError(
                    f"{path} is a grid with {name} {value!r}, got {asked[name]!r}: choose another --output_dir{moved}."
                )
        sources = [
            *((split, self.splits[split], new.splits[split]) for split in new.splits if split in self.splits),
            *((method, self._source(method), new._source(method)) for method in new.methods if method in self.methods),
        ]
        for name, known, given in sources:
            is_same = self.file_hashes.get(name) == new.file_hashes.get(name) is not None
            if known != given and not is_same:
                raise BundleError(f"{path} has {known} as {name}, got {given}: choose another --output_dir.")
        splits = {self.file_hashes.get(name): name for name in self.splits}
        for name in new.splits.keys() - self.splits.keys():
            if new.file_hashes[name] in splits:
                raise BundleError(
                    f"{path} has {new.splits[name]} as {splits[new.file_hashes[name]]}, got it as {name}: its runs "
                    "would count twice. Leave it out, or choose another --output_dir."
                )
        # A file that was mended before anything came of it is no other one.
        trained: dict[str, str] = {}
        for cell in self.cells(path.parent):
            if cell.trained:
                trained |= self.hashed_files(cell.method, cell.split)
        for name in trained.keys() & self.file_hashes.keys() & new.file_hashes.keys():
            if self.file_hashes[name] != new.file_hashes[name]:
                file = trained[name]
                raise BundleError(
                    f"{path}: {file} was changed since cells with it were trained: choose another --output_dir."
                )
        # Of what an older version trained, nobody knows by which file.
        hashes = {name: value for name, value in new.file_hashes.items() if name not in trained}
        return dataclasses.replace(
            self,
            overrides={**self.overrides, **new.overrides},
            methods=tuple(dict.fromkeys((*self.methods, *new.methods))),
            seeds=tuple(dict.fromkeys((*self.seeds, *new.seeds))),
            splits={**self.splits, **new.splits},
            method_files={**self.method_files, **new.method_files},
            cases={**self.cases, **new.cases},
            file_hashes={**self.file_hashes, **hashes},
        )

    def changed_file(self, cell: Cell) -> str | None:
        """Find a file of a cell that is not what it was when this grid was written.

        Args:
            cell: one of :meth:`cells`.

        Returns:
            its path; None where all are as they were, or gone, of which the training tells.
        """
        for name, path in self.hashed_files(cell.method, cell.split).items():
            known = self.file_hashes.get(name)
            if known is not None and Path(path).is_file() and file_hash(path) != known:
                return path
        return None

    def _takes_no_unlabeled_case(self, method: str) -> bool:
        """Whether a method switches unlabeled crops off: it would ignore those that an override has read for it."""
        return any(
            # Of a file that is gone, the training tells.
            path.is_file() and read_configuration_file(path).get("unlabeled_batch_size") == 0
            for path in _method_file(method, self.method_files)
        )

    def _source(self, method: str) -> str:
        return self.method_files.get(method, "the bundle's own method")

    @classmethod
    def read(cls, output_dir: str | Path) -> Grid:
        """Read ``grid.json``.

        Args:
            output_dir: folder of the grid.

        Returns:
            the grid.

        Raises:
            BundleError: when the file is missing or damaged.
        """
        path = Path(output_dir) / GRID_FILE
        try:
            content = read_json_object(path)
            if content.pop("version") != 1:
                raise BundleError(f"{path} is of another version of this bundle.")
            lists = {name: tuple(content[name]) for name in ("methods", "seeds", "class_names")}
            return cls(**{**content, **lists})
        except FileNotFoundError:
            raise BundleError(f"{output_dir} holds no grid: {GRID_FILE} is missing.") from None
        except BundleError:
            raise
        except (KeyError, TypeError) as error:
            raise BundleError(f"{path} is damaged: {error}.") from error


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
    _require("data", data, overlay_names("data"))
    _require("recipe", recipe, [ORIGINAL_RECIPE, *overlay_names("recipe")])
    names, files = _named_methods(methods)
    for file in files.values():
        _check_recipe(Path(file), recipe, data)
    given = dict(overrides or {})
    config_file = [str(CONFIGS / "train.json"), str(CONFIGS / f"data_{data}.json")]
    config = read_configuration(config_file)
    recipes = {recipe}
    if recipe == ORIGINAL_RECIPE:
        recipes = {_recipe_of_paper(_method_file(name, files), data) for name in names}
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
        logger.warning("recipe original: where there is none for %s, %s.", grid.data, ", ".join(others))


def _path_of(config: ConfigParser, key: str) -> str:
    """Evaluate a path of the data overlay."""
    with mistakes_in_one_line():
        value = config.get_parsed_content(key)
    if not isinstance(value, str):
        raise BundleError(f"{key} must be a path, got {value!r}: give it as an argument, or in the data overlay.")
    return value


def _named_methods(methods: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Check methods; give the names of all, and the path of each that is not one of the bundle's."""
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
            if method in SHORT_NAMES:
                raise BundleError(f"methods: {path} is named as {SHORT_NAMES[method]} is for short: rename the file.")
            if method not in method_names():
                files[method] = str(path.resolve())
            elif path.resolve() != CONFIGS / f"method_{method}.json":
                raise BundleError(f"methods: {path} has the name of the bundle's method {method}: rename the file.")
        else:
            method = full_name(method)
            _require("methods", method, method_names())
        names.append(method)
    if not names or len(set(names)) != len(names):
        raise BundleError(f"methods must be different names, at least one, got {names}.")
    return names, files


def _check_given(overrides: Mapping[str, Any], config_file: Sequence[str]) -> None:
    """Refuse overrides that no run has, that a grid sets itself, or that grid.json could not hold."""
    for name in overrides:
        if name in OWN_KEYS:
            raise BundleError(
                f"--{name} must not be given: a grid sets {', '.join(OWN_KEYS)} for each run itself; its arguments are "
                "seeds, dataset_dir, split_file and output_dir."
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


def _original_recipe(name: str, data: str) -> str:
    """Name the recipe of a paper's experiments on this data: its own one there, or that of the left atrium."""
    return f"{name}_{data}" if f"{name}_{data}" in overlay_names("recipe") else name


def _recipe_of_paper(method_file: Sequence[Path], data: str) -> str:
    files = [CONFIGS / "train.json", *method_file]
    return _original_recipe(read_configuration([str(file) for file in files])["original_recipe"], data)


def _method_file(method: str, method_files: Mapping[str, str]) -> list[Path]:
    """Find the overlay of a method, a file of one's own or of the bundle; none for that of ``train.json``."""
    if method in method_files:
        return [Path(method_files[method])]
    return [] if method == DEFAULT_METHOD else [CONFIGS / f"method_{method}.json"]


def _check_recipe(path: Path, recipe: str, data: str) -> None:
    """Refuse a user's overlay that names no recipe of its own where one is asked for, or sets what others share."""
    overlay = read_configuration_file(path)
    if recipe == ORIGINAL_RECIPE:
        if "original_recipe" not in overlay:
            raise BundleError(f"methods: {path} must name its original_recipe, which recipe {recipe!r} asks for.")
        recipe = overlay["original_recipe"]
        _require(f"original_recipe of {path}", str(recipe), overlay_names("recipe"))
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


def _check_overlay(path: Path) -> None:
    try:
        read_json_object(path)
    except FileNotFoundError:
        raise BundleError(f"methods: {path} not found.") from None
    except (BundleError, OSError) as error:
        raise BundleError(f"methods: {error}") from error


def full_name(method: str) -> str:
    """Return the bundle's name of a method.

    Args:
        method: that name, or what the papers call it.

    Returns:
        the name; what is no short one comes back as it is.
    """
    return SHORT_NAMES.get(method, method)


def method_names() -> list[str]:
    """List the methods of the bundle.

    Returns:
        their names: that of ``train.json``, then those of the overlays.
    """
    return [DEFAULT_METHOD, *overlay_names("method")]


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
    names = {FIXED_SPLIT: pattern}
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


def _require(argument: str, value: str, allowed: Sequence[str]) -> None:
    if not allowed:
        raise BundleError(f"{argument} names an overlay configs/{argument}_*.json, and this bundle has none.")
    if value not in allowed:
        hint = did_you_mean(value, allowed, at_most=3)
        raise BundleError(f"{argument} must be one of {', '.join(allowed)}, got {value!r}.{hint}")
