# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Preparation of a data set: its cases converted, its split files written."""

from __future__ import annotations

import inspect
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BundleError, did_you_mean
from ...files import read_json_object, write_json
from ...nifti import read_nifti
from ..splits import LIST_NAMES, Split, is_inside, leads_out, starts_formula, write_split
from .archive import unpack
from .continuation import continue_lists, read_continued_split, write_continued
from .conversion import convert_cases, is_done, label_path, outdated_cases
from .decathlon import download, find_decathlon
from .folder import find_folder
from .folds import FoldCase, Lists, draw_lists, empty_label_notes, protocol_lists, shipped_splits
from .left_atrium import find_left_atrium
from .pancreas import find_pancreas
from .reading import Source, SourceCase

_FINDERS: Mapping[str, Callable[..., Source]] = {
    "left_atrium": find_left_atrium,
    "pancreas": find_pancreas,
    "decathlon": find_decathlon,
    "folder": find_folder,
}
_SETTINGS_FILE, _SOURCE_FOLDER = "prepared.json", "source"
_WITHDRAWN = "withdrawn by the publisher of the data"
_HELD_OUT = "their patient is in the validation or the test list"


@dataclass(frozen=True)
class SplitSettings:
    """Which split files are written, and how their cases are chosen.

    Attributes:
        fold: number of the fold of ``split_fold<K>_<N>.json`` (without N where no number of labeled cases is set),
            "all" for every one, None for ``split.json`` of fold 0.
        num_folds: number of folds; None for that of the data set, 0 for an empty test list.
        num_labeled: number of labeled cases; None for that of the data set.
        labeled: labeled cases by name instead.
        num_validation: cases of the validation list.
        seed: seed of what is drawn.
        continue_split: split file whose cases stay in their lists, in the place of lists that are drawn anew; the new
            one is ``<its name>_v<K>.json``.
        new_labels: the list that cases join which have a label since then: labeled, validation or test.

    Raises:
        BundleError: when they do not go together.
    """

    fold: int | str | None = None
    num_folds: int | None = None
    num_labeled: int | None = None
    labeled: Sequence[str] = ()
    num_validation: int = 0
    seed: int = 0
    continue_split: Path | None = None
    new_labels: str | None = None

    def __post_init__(self) -> None:
        if self.num_folds == 1:
            raise BundleError("num_folds must be 0 or at least 2, got 1.")
        if self.num_folds == 0 and self.fold is not None:
            raise BundleError(f"fold must not be given with num_folds 0, got {self.fold!r}.")
        if self.labeled and self.num_labeled is not None:
            raise BundleError("labeled and num_labeled must not both be given.")
        if self.continue_split is None and self.new_labels is not None:
            raise BundleError("new_labels is of --continue_split, which is missing.")
        if self.num_labeled is not None and self.new_labels not in (None, "labeled"):
            raise BundleError(f"num_labeled must not be given with new_labels {self.new_labels}.")
        drawn = {"fold": None, "num_folds": None, "labeled": (), "num_validation": 0}
        given = [name for name, default in drawn.items() if getattr(self, name) != default]
        if self.continue_split is not None and given:
            raise BundleError(f"{given[0]} must not be given with continue_split, whose cases stay in their lists.")


@dataclass(frozen=True)
class Prepared:
    """What was prepared.

    Attributes:
        cases: the cases that are there, with whether they have a label.
        split_files: the split files that were written or kept.
        num_found: cases of the source.
        problems: one line for each case that is not there.
        notes: one line for each matter that people should know.
    """

    cases: Mapping[str, bool]
    split_files: Sequence[Path]
    num_found: int
    problems: Sequence[str]
    notes: Sequence[str]


def prepare_dataset(
    name: str,
    source: Path | None,
    output_dir: Path,
    *,
    splits: SplitSettings,
    spacing_mm: Sequence[float] | None = None,
    jobs: int = 2,
    **options: Any,
) -> Prepared:
    """Turn a source into images/, labels/ and split files. What is there already is kept.

    Args:
        name: left_atrium, pancreas, decathlon or folder.
        source: folder or tar file; None only for a Decathlon task that is downloaded.
        output_dir: folder of the data set.
        splits: the split files.
        spacing_mm: spacing to resample to; None keeps that of the files.
        jobs: cases converted at the same time.
        **options: options of the data set, see the function that finds its cases; and task, the Decathlon task to
            download.

    Returns:
        What is there now.

    Raises:
        BundleError: when an option is not allowed, the source holds no case, the folder was prepared with other
            options, a split file is there with other cases, or too few cases are there for the split.
    """
    if name not in _FINDERS:
        raise BundleError(f"name must be one of {', '.join(_FINDERS)}, got {name!r}.")
    _check_options(name, options)
    _check_source(source, output_dir, task=options.get("task"))
    defaults = {key: value.default for key, value in _parameters(name).items() if value.default is not value.empty}
    settings = json.loads(json.dumps({"name": name, "spacing": spacing_mm, **defaults, **options}))
    settings |= _table_setting(settings)
    if source is not None and source.is_file():
        settings["archive"] = f"{source.name}, {source.stat().st_size} bytes"
    _refuse_other_settings(output_dir, settings)
    if source is None:
        source = download(options["task"], output_dir)
    if source.is_file():
        # With its size, so that another archive of the name is not taken for one that was unpacked before.
        source = unpack(source, output_dir / _SOURCE_FOLDER / f"{source.name.split('.')[0]}_{source.stat().st_size}")
    found = _FINDERS[name](source, **{key: value for key, value in options.items() if key != "task"})
    cases, unnamed = _with_usable_names(found.cases)
    problems = [*found.problems, *unnamed]
    try:
        _check_splits(splits, cases, found)
    except BundleError as error:
        raise _beside(problems, error) from error
    is_new = not (output_dir / _SETTINGS_FILE).exists()
    if is_new:
        write_json(output_dir / _SETTINGS_FILE, settings)
    failed, notes = convert_cases(cases, output_dir, spacing_mm=spacing_mm, jobs=jobs)
    problems += failed
    there = [case for case in cases if is_done(case, output_dir)]
    if not there:
        if is_new:
            # Nothing holds the folder to these settings.
            (output_dir / _SETTINGS_FILE).unlink()
        headline = f"none of the {len(cases) or len(problems)} cases in {source} could be prepared"
        raise BundleError("\n".join([f"{headline}:", *(f"- {problem}" for problem in problems)]))
    try:
        paths, split_notes = _write_splits(name, found, there, output_dir, splits=splits, jobs=jobs)
    except BundleError as error:
        raise _beside([*problems, *_outdated_notes(there, output_dir)], error) from error
    # A table that was added holds from now on.
    write_json(output_dir / _SETTINGS_FILE, settings)
    return Prepared(
        cases={case.name: case.has_label for case in there},
        split_files=paths,
        num_found=len(found.cases) + len(found.problems),
        problems=problems,
        notes=[*found.notes, *notes, *_outdated_notes(there, output_dir), *split_notes],
    )


def _beside(problems: Sequence[str], error: BundleError) -> BundleError:
    """Tell what went wrong and, below it, what could not be prepared, which is often the cause."""
    return BundleError("\n".join([str(error), *(f"- {problem}" for problem in problems)]))


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    allowed = [key for key in _parameters(name) if key != "source"]
    allowed += ["task"] if name == "decathlon" else []
    for key in options:
        if key not in allowed:
            raise BundleError(f"--{key} is no option of {name}; allowed are --{', --'.join(allowed)} and those of all.")


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_FINDERS[name]).parameters


def _check_source(source: Path | None, output_dir: Path, *, task: str | None) -> None:
    if (source is None) != (task is not None):
        raise BundleError("source must be given, or task with the name of a Decathlon task to download, not both.")
    if source is None:
        return
    if not source.exists():
        raise BundleError(f"source {source} does not exist.")
    if source.is_file() and not _is_archive(source):
        raise BundleError(f"source must be a folder or a whole tar file, which {source} is not.")
    if is_inside(output_dir, source):
        raise BundleError(f"output_dir must not lie in source, got {output_dir} in {source}.")


def _is_archive(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    # Not every Python takes a compressed file without a whole block for one that is no archive.
    except EOFError:
        return False


def _refuse_other_settings(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to mix cases that were prepared in different ways in one folder."""
    path = output_dir / _SETTINGS_FILE
    if path.is_file():
        present = read_json_object(path)
        # A folder may be moved and its files be read from elsewhere; an archive is the same file wherever it lies.
        if "archive" not in present or "archive" not in settings:
            present, settings = ({**each, "archive": None} for each in (present, settings))
        # A table that is added tells which scans are of one patient; one that is left out would have them come apart.
        if settings not in (present, present | {"table": True}):
            raise BundleError(
                f"output_dir {output_dir} was prepared with {json.dumps(present)}, now with {json.dumps(settings)}: "
                "choose another folder."
            )
    elif (output_dir / "images").exists() or (output_dir / "labels").exists():
        raise BundleError(
            f"output_dir {output_dir} holds images or labels that were not prepared here: choose another."
        )


def _table_setting(settings: Mapping[str, Any]) -> dict[str, bool]:
    """Keep whether there is a table, which may be moved as the source may."""
    return {"table": bool(settings["table"])} if "table" in settings else {}


def _with_usable_names(cases: Sequence[SourceCase]) -> tuple[list[SourceCase], list[str]]:
    # Some file systems do not tell capital letters from small ones.
    counts = Counter(case.name.casefold() for case in cases)
    repeated = defaultdict[str, list[str]](list)
    for case in sorted(cases, key=lambda case: case.name):
        if counts[case.name.casefold()] > 1:
            repeated[case.name] += [str(file) for file in case.files[:1]]
    unfit = sorted({case.name for case in cases if leads_out(case.name) or starts_formula(case.name)})
    problems = [
        f"{name}: several cases of the source have this name{''.join(f', {file}' for file in files)}: rename or remove "
        "all but one."
        for name, files in repeated.items()
    ]
    problems += [
        f"{name!r}: no name for a case; rename the file to printable characters without '..', not beginning with "
        "=, +, - or @."
        for name in unfit
    ]
    return [case for case in cases if case.name not in (*repeated, *unfit)], problems


def _num_folds(found: Source, splits: SplitSettings) -> int:
    return found.num_folds if splits.num_folds is None else splits.num_folds


def _num_labeled(found: Source, splits: SplitSettings) -> int | None:
    """Without folds every label is for the training, as no protocol is followed."""
    return splits.num_labeled or (found.num_labeled if _num_folds(found, splits) else None)


def _folds(found: Source, splits: SplitSettings) -> Sequence[int]:
    return range(_num_folds(found, splits)) if splits.fold == "all" else [int(splits.fold or 0)]


def _check_splits(splits: SplitSettings, cases: Sequence[SourceCase], found: Source) -> None:
    """Refuse what would otherwise be found out after hours of converting."""
    num_folds = _num_folds(found, splits)
    if isinstance(splits.fold, int) and splits.fold >= num_folds:
        raise BundleError(f"fold must be from 0 to {num_folds - 1}, got {splits.fold}.")
    names = {case.name for case in cases}
    unknown = sorted(set(splits.labeled) - names)
    if unknown:
        hint = did_you_mean(unknown[0], sorted(names))
        raise BundleError(f"labeled must name cases of the source, got {', '.join(unknown[:5])}: no such case.{hint}")
    if cases and not any(case.has_label for case in cases):
        raise BundleError(
            f"source: none of {len(cases)} cases has a label: labels/ must hold files that are named as the images, or "
            "a --table must name them in its column label."
        )
    # As if every label had foreground: what is refused then is refused in any case.
    assumed = [FoldCase(case.name, _group(case), (1,) if case.has_label else None) for case in cases]
    assumed = [case for case in assumed if case.name not in found.withdrawn]
    if splits.continue_split is not None:
        _continue(assumed, found, splits)
    elif cases and not _follows_protocol(found, splits):
        _draw(assumed, found, splits)


def _continue(cases: Sequence[FoldCase], found: Source, splits: SplitSettings) -> tuple[Split, Lists]:
    assert splits.continue_split is not None
    split = read_continued_split(splits.continue_split, withdrawn=found.withdrawn)
    new_labels = splits.new_labels or "labeled"
    return split, continue_lists(cases, split, new_labels=new_labels, num_labeled=splits.num_labeled, seed=splits.seed)


def _draw(cases: Sequence[FoldCase], found: Source, splits: SplitSettings) -> list[Lists]:
    return [
        draw_lists(
            cases,
            fold=fold,
            num_folds=_num_folds(found, splits),
            num_labeled=_num_labeled(found, splits),
            labeled=splits.labeled,
            num_validation=splits.num_validation,
            seed=splits.seed,
        )
        for fold in _folds(found, splits)
    ]


def _write_splits(
    name: str, found: Source, there: Sequence[SourceCase], output_dir: Path, *, splits: SplitSettings, jobs: int
) -> tuple[list[Path], list[str]]:
    if splits.continue_split is not None:
        cases = _describe(there, output_dir, withdrawn=found.withdrawn, jobs=jobs)
        split, continued = _continue(cases, found, splits)
        path, news = write_continued(name, output_dir, split, continued, cases)
        return [path], [*_left_out_notes(continued.left_out, _HELD_OUT), *news]
    num_folds = _num_folds(found, splits)
    folds = _folds(found, splits)
    lists: list[Lists] = []
    notes: list[str] = []
    # One name for the files of all folds, so that a pattern finds them.
    number = splits.num_labeled or len(splits.labeled) or _num_labeled(found, splits)
    if _follows_protocol(found, splits):
        lists, notes = _lists_of_protocol(found, there, folds=folds, splits=splits)
    source_of_lists = f"fold {{}} of the protocol of {found.protocol}"
    is_drawn = not lists
    if is_drawn:
        cases = _describe(there, output_dir, withdrawn=found.withdrawn, jobs=jobs)
        lists = _draw(cases, found, splits)
        withdrawn = [case.name for case in there if case.name in found.withdrawn]
        notes += _left_out_notes(withdrawn, _WITHDRAWN)
        notes += _left_out_notes(lists[0].left_out, _HELD_OUT)
        notes += empty_label_notes(cases, lists[0])
        if num_folds and not number and all(case.has_label for case in there):
            labeled, unlabeled = (len(lists[0].lists[key]) for key in ("labeled", "unlabeled"))
            notes.append(
                f"all cases have a label, {labeled} of the {labeled + unlabeled} training cases (a fifth) are the "
                "labeled ones; --num_labeled takes another number."
            )
        source_of_lists = f"fold {{}} of {num_folds}" if num_folds else "no test list"
        source_of_lists += f", drawn with seed {splits.seed}"
    paths = []
    for fold, drawn in zip(folds, lists):
        stem = "split" if splits.fold is None else f"split_fold{fold}" + f"_{number}" * bool(number)
        split = write_split(
            output_dir / f"{stem}.json",
            name=f"{name}{f'_fold{fold}' if num_folds else ''}_{len(drawn.lists['labeled'])}",
            description=f"{name}, {source_of_lists.format(fold)}: {drawn.counts()}.",
            lists=drawn.lists,
            seed=splits.seed if is_drawn else None,
        )
        paths.append(split.path)
    return paths, notes


def _follows_protocol(found: Source, splits: SplitSettings) -> bool:
    """Return whether nothing was asked for that the protocol of the literature does not have."""
    return bool(found.protocol) and not splits.labeled and not splits.num_validation and splits.num_folds is None


def _lists_of_protocol(
    found: Source, there: Sequence[SourceCase], *, folds: Sequence[int], splits: SplitSettings
) -> tuple[list[Lists], list[str]]:
    names = {case.name for case in found.cases}
    num_labeled = splits.num_labeled or found.num_labeled or 1
    lists = []
    for fold in folds:
        of_fold = protocol_lists(
            found.protocol, fold=fold, num_labeled=num_labeled, found=names, withdrawn=found.withdrawn
        )
        if of_fold is None:
            expected = {case for split in shipped_splits(found.protocol).values() for case in split.all_cases()}
            missing = sorted(expected - found.withdrawn - names)
            return [], [
                f"the source lacks {len(missing)} cases of the protocol, such as {missing[0]}: the folds are drawn "
                f"with seed {splits.seed}, and results do not compare to those of the literature."
            ]
        lists.append(of_fold)
    failed = sorted(
        {case for of_fold in lists for key in LIST_NAMES for case in of_fold.lists[key]} - {c.name for c in there}
    )
    if failed:
        raise BundleError(
            f"{len(failed)} cases of the protocol could not be prepared, such as {failed[0]}: the split is written "
            "when all are there."
        )
    return lists, _left_out_notes(lists[0].left_out, _WITHDRAWN)


def _left_out_notes(cases: Sequence[str], reason: str) -> list[str]:
    if not cases:
        return []
    shown = ", ".join(cases[:5]) + ", ..." * (len(cases) > 5)
    return [f"{len(cases)} cases are in no list of the split ({reason}): {shown}."]


def _group(case: SourceCase) -> str:
    # A case and a group of the same name have nothing to do with each other.
    return f"group {case.group}" if case.group else f"case {case.name}"


def _outdated_notes(there: Sequence[SourceCase], output_dir: Path) -> list[str]:
    outdated = outdated_cases(there, output_dir)
    if not outdated:
        return []
    return [
        f"of {len(outdated)} case{'s' * (len(outdated) != 1)}, such as {outdated[0]}, the source is not what they were "
        f"prepared of: delete their images in {output_dir}, and they are prepared again."
    ]


def _describe(cases: Sequence[SourceCase], output_dir: Path, *, withdrawn: frozenset[str], jobs: int) -> list[FoldCase]:
    def describe(case: SourceCase) -> FoldCase:
        if not case.has_label:
            return FoldCase(case.name, _group(case))
        path = label_path(output_dir, case.name)
        try:
            file = read_nifti(path)
        except BundleError as error:
            raise BundleError(f"{error}; delete {path}, and it is prepared again.") from error
        voxels = np.asanyarray(file.dataobj)
        classes = tuple(int(value) for value in np.unique(voxels) if value)
        voxel_mm3 = abs(float(np.linalg.det(file.affine[:3, :3])))
        return FoldCase(case.name, _group(case), classes, np.count_nonzero(voxels) * voxel_mm3)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        return list(pool.map(describe, (case for case in cases if case.name not in withdrawn)))
