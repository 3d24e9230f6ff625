# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The folder of one training run: who may write there, and what was run."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from monai.utils.misc import str2bool

from ..configuration import TRAINED_KEYS, own_keys
from ..errors import BundleError
from ..evaluation.case_report import REPORT_FILE
from ..files import (
    CONFIGS,
    CONFIGURATION_FILE,
    FACTS_FILE,
    INFERENCE_FILE,
    ROOT,
    check_writable,
    file_hash,
    is_in_run,
    read_json_object,
    write_json,
)
from ..locks import FolderInUseError, lock_folder
from ..parallel import is_main_process
from .run_comparison import changed_training, listed

_logger = logging.getLogger(__name__)
_LOCK_FILE = ".training.lock"
#: The locks of this process, which are held until its end, by device and number of their files.
_HELD: dict[tuple[int, int], BaseFileLock] = {}
#: What a result depends on of the bundle's own files.
_CODE_FOLDERS = ("scripts", "configs")
#: What ``run.json`` calls the hash of the file of initial weights.
_INITIAL_HASH = "initial_weights_sha256"
#: For who asks a run for more iterations.
_LONGER = (
    " For more iterations begin another run with --initial_weights; its schedule, ramps and order of crops begin anew."
)
#: What inference has in common with training.
_INFERENCE_KEYS = (
    "in_channels",
    "num_classes",
    "class_names",
    "spacing",
    "patch_size",
    "orient",
    "resample",
    "window",
    "normalize",
    "largest_component",
    "normalization",
    "test_time_views",
)
#: Everything that a run writes; ``overwrite`` removes these and nothing else.
_RUN_FILES = (
    CONFIGURATION_FILE,
    INFERENCE_FILE,
    "history.csv",
    "validation.csv",
    "unreadable_cases.txt",
    "model.pt",
    "model_final.pt",
    "learning_curves.png",
    "checkpoints/checkpoint_*.pt",
    "tensorboard/events.out.tfevents.*",
    "tensorboard/pictures/events.out.tfevents.*",
    "evaluation/metrics_*.csv",
    "evaluation/metrics_summary.md",
    "evaluation/metrics_weights.json",
    "evaluation/worst_*.png",
    "evaluation/labels/*.nii.gz",
    "pictures/validation_*.png",
)
#: What a process killed in the middle of writing leaves, see :func:`scripts.files.replacing`.
_LEFTOVERS = ("checkpoints/.checkpoint_*.pt", ".model*.pt")
#: A run with one of these holds work that could be lost.
_RESULTS = ("model*.pt", *(name for name in _RUN_FILES if name not in (CONFIGURATION_FILE, INFERENCE_FILE)))


class RunDirectory:
    """Guards the folder of a run, so that no run is overwritten or continued by accident.

    Args:
        output_dir: folder of the run.
        resume: go on with the run that the folder holds; a text like "true" is understood.
        overwrite: remove the run that the folder holds and start anew; files that no run writes stay.
        evaluated_checkpoint: name of the weights that evaluation and inference take.
        facts: what ``run.json`` tells of the run besides versions, commit and command line: folder of the data, split
            file, ...; a function is called when the file is written.
        settings: what must be the same when the run is resumed, since it would not go on as it began: iterations,
            seed, sizes of patch and batch, ...
        configuration: gives the merged configuration for ``run_config.json``, or None where it is not known; with it,
            ``inference.json`` is written too, the overlay with which inference takes the weights of this run.
        geometry: measures the files of the training, see :func:`scripts.data.geometry.volume_geometry`, for that
            overlay, and by which a resumed run knows its data.
    """

    def __init__(
        self,
        output_dir: str,
        *,
        resume: bool | str = False,
        overwrite: bool | str = False,
        evaluated_checkpoint: str = "model_final.pt",
        facts: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        configuration: Callable[[], dict[str, Any] | None] = lambda: None,
        geometry: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.path = Path(output_dir)
        self.resume = str2bool(resume)
        self.overwrite = str2bool(overwrite)
        self.evaluated_checkpoint = evaluated_checkpoint
        self.facts = facts or {}
        self.settings = settings or {}
        self.configuration = configuration
        self.geometry = functools.cache(geometry)
        self._entered = self._begun = False

    def checkpoints(self) -> list[Path]:
        """List the checkpoints of the run, newest first."""
        return sorted((self.path / "checkpoints").glob("checkpoint_*.pt"), reverse=True)

    def claim(self) -> None:
        """Make sure that this run may write into the folder, before a volume is loaded; changes nothing.

        Raises:
            BundleError: when the folder holds a run and neither resume nor overwrite is set, when both are, when there
                is no run to resume, when its checkpoints are gone, when it was begun with other settings, or when files
                of the user are in the way.
        """
        if self.resume and self.overwrite:
            raise BundleError("resume and overwrite exclude each other: give one of them.")
        check_writable("output_dir", self.path)
        is_run = (self.path / FACTS_FILE).is_file()
        results = self._files(_RESULTS)
        foreign = [] if is_run else self._files(("model*.pt", *_RUN_FILES))
        if foreign:
            raise BundleError(
                f"output_dir {self.path} holds no run, but files that a run would replace, such as {foreign[0].name}: "
                "choose another --output_dir."
            )
        if results and not self.resume and not self.overwrite:
            raise BundleError(
                f"output_dir {self.path} already holds a run: go on with it by --resume true, "
                "replace it by --overwrite true, or choose another --output_dir."
            )
        if self.resume and not is_run:
            raise BundleError(f"resume is true, but output_dir {self.path} holds no run: drop --resume.")
        if self.resume and (self.path / "model_final.pt").is_file() and not self.checkpoints():
            raise BundleError(
                f"the run in {self.path} is finished and its checkpoints are gone, so that nothing can go on: drop "
                "--resume and choose another --output_dir, with --initial_weights for its weights."
            )
        # A run that was stopped while it wrote its first checkpoint has the folder.
        if self.resume and (self.path / "model.pt").is_file() and not (self.path / "checkpoints").is_dir():
            raise BundleError(
                f"the run in {self.path} has a model.pt and its checkpoints are gone: copy them back, or begin it anew "
                "by --overwrite true."
            )
        if self.resume:
            self._refuse_other_settings()

    def enter(self) -> None:
        """Claim the folder once more and keep other processes out of it; called when all else is ready.

        Raises:
            BundleError: see :meth:`claim`; or when another process is training in the folder.
        """
        if self._entered or not is_main_process():
            return
        self.claim()
        self._lock()
        if self.resume:
            self._warn_of_other_weights()
        self._entered = True

    def begin(self) -> None:
        """Clear the folder, unless the run is resumed, and write down what is run.

        Called after the first iteration: a training whose settings fail in it has replaced nothing.

        Raises:
            BundleError: see :meth:`enter`.
        """
        if self._begun or not is_main_process():
            return
        self.enter()
        for path in self._files(_LEFTOVERS if self.resume else (*_LEFTOVERS, *_RUN_FILES)):
            path.unlink()
        if self.resume:
            self._add_resume()
        else:
            self._write_facts()
        self._begun = True

    def _lock(self) -> None:
        """Keep other processes out of the folder until this one ends."""
        file = self.path.resolve() / _LOCK_FILE
        # A later run of this process may go on in the folder, also under another name.
        if file.exists() and _identity(file) in _HELD:
            return
        try:
            lock = lock_folder(file)
        except FolderInUseError as error:
            raise BundleError(
                f"another process is training in output_dir {self.path}: wait for its end, or choose another folder."
            ) from error
        if lock is not None:
            _HELD[_identity(file)] = lock

    def _files(self, patterns: Iterable[str]) -> list[Path]:
        return [path for pattern in patterns for path in sorted(self.path.glob(pattern))]

    def _refuse_other_settings(self) -> None:
        try:
            facts = read_json_object(self.path / FACTS_FILE)
            begun = dict(facts["settings"])
        except (BundleError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{self.path / FACTS_FILE} is damaged: the run cannot be resumed.") from error
        if facts.get("split"):
            # Its validation cases choose the best weights.
            begun["split"] = facts["split"]
        if facts.get("volumes"):
            # Cases of another data set may have the same names.
            begun["volumes"] = facts["volumes"]
        split = self.facts.get("split")
        now = {**self.settings, "split": split() if callable(split) else split, "volumes": self.geometry()}
        if not self.checkpoints() and _INITIAL_HASH in facts:
            # Without a checkpoint to go on from it begins anew, with the weights that it began with.
            begun[_INITIAL_HASH], now[_INITIAL_HASH] = facts[_INITIAL_HASH], self._initial_hash()
        # Through JSON, as the settings of the file went.
        now = json.loads(json.dumps(now, default=str))
        # What an older version of the bundle did not write down cannot be compared.
        now["volumes"] = {name: value for name, value in now["volumes"].items() if name in begun.get("volumes", ())}
        changed = {name: (begun[name], value) for name, value in now.items() if begun.get(name, value) != value}
        changed = {**changed_training(self.path, self.configuration()), **changed}
        if "iterations" in changed:
            # Ramps follow it, so that the method is another one, too.
            changed.pop("method", None)
        if changed:
            longer = _LONGER if "iterations" in changed else ""
            raise BundleError(
                f"the run in {self.path} was begun with other settings ({listed(changed)}): resume it with those, "
                f"or train anew in another --output_dir.{longer}"
            )

    def _warn_of_other_weights(self) -> None:
        """Tell of initial weights that are not those of the run, which goes on from its checkpoint."""
        given, facts = self._initial_hash(), read_json_object(self.path / FACTS_FILE)
        if self.checkpoints() and given is not None and given != facts.get(_INITIAL_HASH, given):
            _logger.warning(
                "initial_weights %s have no effect: the run in %s goes on from its checkpoint.",
                self.facts["initial_weights"],
                self.path,
            )

    def _initial_hash(self) -> str | None:
        path = self.facts.get("initial_weights")
        return None if path is None or not Path(path).is_file() else file_hash(path)

    def _add_resume(self) -> None:
        """Write down who goes on with the run: its versions may be others than those that began it."""
        path = self.path / FACTS_FILE
        facts = read_json_object(path)
        write_json(path, {**facts, "resumed": [*facts.get("resumed", []), _process_facts()]}, default=str)

    def _write_facts(self) -> None:
        geometry = self.geometry()
        facts = {
            **{name: fact() if callable(fact) else fact for name, fact in self.facts.items()},
            _INITIAL_HASH: self._initial_hash(),
            "volumes": geometry,
            "settings": self.settings,
            **_process_facts(),
        }
        write_json(self.path / FACTS_FILE, facts, default=str)
        configuration = self.configuration()
        if configuration is not None:
            # Whoever repeats the run by its configuration must not replace it.
            again = {name: False for name in ("resume", "overwrite") if name in configuration}
            write_json(self.path / CONFIGURATION_FILE, configuration | again)
            weights = self.path.resolve() / self.evaluated_checkpoint
            write_json(self.path / INFERENCE_FILE, inference_overlay(configuration, weights, geometry))


def _process_facts() -> dict[str, Any]:
    """Describe this process: when and how it was started, and by which versions."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_package_versions()},
    }


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def inference_overlay(configuration: dict[str, Any], weights: Path, geometry: Mapping[str, Any]) -> dict[str, Any]:
    """Put together what ``configs/inference.json`` must know of a training to use its weights.

    Args:
        configuration: the merged configuration of the training.
        weights: file of the weights.
        geometry: what :func:`scripts.data.geometry.volume_geometry` measured; None where it does not tell.

    Returns:
        the overlay.
    """
    overlay = {key: configuration[key] for key in _INFERENCE_KEYS if key in configuration}
    network = configuration["network_def"]
    shipped = read_json_object(CONFIGS / "inference.json")
    default = shipped["network_def"]
    # A window may refer to a key of the user's own file.
    overlay |= own_keys({**overlay, "network_def": network}, configuration, shipped)
    if network["_target_"] == default["_target_"]:
        # Not the whole object: inference has an option of its own, for the map of uncertainty.
        overlay |= {f"network_def#{name}": value for name, value in network.items()}
    else:
        overlay["network_def"] = {"_requires_": default["_requires_"], **network}
    # Inference must not compare with those of the shipped weights.
    overlay |= {name: geometry.get(name) for name in TRAINED_KEYS}
    overlay["ckpt_path"] = str(weights)
    return {"_desc_": "Named after configs/inference.json: the weights of this run.", **overlay}


def _package_versions() -> dict[str, str | None]:
    """Find the versions of the packages that the bundle requires; None for one that is not installed."""
    metadata = read_json_object(CONFIGS / "metadata.json")
    versions: dict[str, str | None] = {}
    for name in ("torch", "monai", "numpy", *metadata["required_packages_version"]):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _commit() -> str | None:
    """Return the git commit of the bundle, None outside of a checkout.

    Where files of its code or configurations were changed or added, "-dirty-" and a hash of these files are behind it.
    """

    def git(*words: str) -> str:
        command = ("git", "--no-optional-locks", "-C", str(ROOT), *words)
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape", check=True)
        return done.stdout

    try:
        folder, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        # The bundle may lie in the repository of something else.
        if Path(folder).resolve() != ROOT:
            return None
        changes = git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *_CODE_FOLDERS)
        # Before the path of each stand two letters for its state and a blank.
        names = sorted({change[3:] for change in changes.split("\0") if change})
        files = [(name, file_hash(ROOT / name) if (ROOT / name).is_file() else None) for name in names]
        return f"{commit}-dirty-{hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]}" if files else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def claim_report_directory(path: str, *, overwrite: bool | str = False) -> None:
    """Make sure that an evaluation does not replace the tables of another.

    Args:
        path: folder of the tables and pictures.
        overwrite: replace those that are there.

    Raises:
        BundleError: when the folder holds tables, or outside of a run anything that is called like a part of an
            evaluation, and overwrite is not set.
    """
    folder = Path(path)
    # In the folder of a run, pictures without tables are of an evaluation that was stopped.
    present = sorted(folder.glob("metrics_cases.csv" if is_in_run(folder) else "*"))
    taken = [file for file in present if REPORT_FILE.fullmatch(file.name)]
    if taken and not str2bool(overwrite):
        raise BundleError(
            f"evaluation_dir {path} already holds an evaluation ({taken[0].name}): replace it by --overwrite true, "
            "or choose another --evaluation_dir."
        )
