# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""All runs of a grid: the configuration files of each, and the file that remembers them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configuration import read_configuration, read_configuration_file
from ..console import mistakes_in_one_line
from ..errors import BundleError
from ..files import CONFIGS, file_hash, read_json_object, write_json
from ..locks import locked_folder
from .cell import Cell
from .methods import ORIGINAL_RECIPE, method_file, recipe_of_paper

_GRID_FILE = "grid.json"
_LOCK_FILE = ".grid.lock"
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
        files = [CONFIGS / "train.json", CONFIGS / f"data_{self.data}.json", *method_file(method, self.method_files)]
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
        return recipe_of_paper(method, self.method_files, self.data)

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
        path = Path(output_dir) / _GRID_FILE
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
            write_json(Path(output_dir) / _GRID_FILE, content)

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
        return dataclasses.replace(
            self,
            overrides={**self.overrides, **new.overrides},
            methods=tuple(dict.fromkeys((*self.methods, *new.methods))),
            seeds=tuple(dict.fromkeys((*self.seeds, *new.seeds))),
            splits={**self.splits, **new.splits},
            method_files={**self.method_files, **new.method_files},
            cases={**self.cases, **new.cases},
            file_hashes={**self.file_hashes, **new.file_hashes},
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
            for path in method_file(method, self.method_files)
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
        path = Path(output_dir) / _GRID_FILE
        try:
            content = read_json_object(path)
            if content.pop("version") != 1:
                raise BundleError(f"{path} is of another version of this bundle.")
            lists = {name: tuple(content[name]) for name in ("methods", "seeds", "class_names")}
            return cls(**{**content, **lists})
        except FileNotFoundError:
            raise BundleError(f"{output_dir} holds no grid: {_GRID_FILE} is missing.") from None
        except (KeyError, TypeError) as error:
            raise BundleError(f"{path} is damaged: {error}.") from error
