# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Continuation of a split: new cases and labels join its lists, and nothing that is held out is trained on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ...errors import BundleError, one_of
from ..splits import (
    IMAGE_PATTERN,
    LABEL_PATTERN,
    LIST_NAMES,
    Split,
    describe_split,
    hash_cases,
    read_split,
    some_of,
    split_versions,
    write_split,
)
from .folds import FoldCase, Lists

NEW_LABELS = ("labeled", "validation", "test")


def read_continued_split(path: Path, *, withdrawn: Collection[str] = ()) -> Split:
    """Read the split that is continued.

    Args:
        path: path of the split file.
        withdrawn: cases that are left out of every list.

    Returns:
        the split.

    Raises:
        BundleError: when it is missing or broken, or its files are not named as those of a prepared data set.
    """
    if not path.is_file():
        raise BundleError(f"continue_split {path} does not exist.")
    split = read_split(path)
    if (split.image, split.label) != (IMAGE_PATTERN, LABEL_PATTERN):
        raise BundleError(
            f"continue_split must be of a data set with {IMAGE_PATTERN} and {LABEL_PATTERN}, got {split.image} and "
            f"{split.label} in {path}."
        )
    lists = {name: tuple(case for case in split.cases(name) if case not in withdrawn) for name in LIST_NAMES}
    return dataclasses.replace(split, **lists)  # type: ignore[arg-type]


def continue_lists(
    cases: Sequence[FoldCase],
    split: Split,
    *,
    new_labels: str = "labeled",
    num_labeled: int | None = None,
    seed: int = 0,
) -> Lists:
    """Let new cases and new labels join the lists of a split.

    Labeled, validation and test cases stay what they are. Of the others those with a label become what ``new_labels``
    says, those without one, or with an empty one that would not be tested, unlabeled. A patient stays on one side:
    another scan of one who is held out is left out, a new label of one who is trained on with a label is not held out.

    Args:
        cases: all cases that are there.
        split: the split that is continued.
        new_labels: the list that new labels join: labeled, validation or test.
        num_labeled: labeled cases in all, drawn beside those of the split; None takes every new label.
        seed: seed of what is drawn.

    Returns:
        The lists: the ids of the split in its order, behind them the new ones, sorted.

    Raises:
        BundleError: when ``new_labels`` is not allowed, a case of the split is not there, the split itself tests a
            patient whom it trains on with a label, or there are not ``num_labeled`` labels.
    """
    if new_labels not in NEW_LABELS:
        raise BundleError(f"new_labels must be {one_of(NEW_LABELS)}, got {new_labels!r}.")
    by_name = {case.name: case for case in cases}
    missing = [name for name in split.all_cases() if name not in by_name]
    if missing:
        raise BundleError(
            f"continue_split {split.path} has {len(missing)} case(s) that are not in the source, or could not be "
            f"prepared, such as {missing[0]}."
        )

    def groups_of(*list_names: str) -> set[str]:
        return {by_name[name].group for list_name in list_names for name in split.cases(list_name)}

    held_out, trained_with_label = groups_of("validation", "test"), groups_of("labeled")
    if held_out & trained_with_label:
        leaking = next(name for name in split.labeled if by_name[name].group in held_out)
        raise BundleError(
            f"continue_split {split.path} trains on {leaking}, whose patient is in its validation or test list: have "
            "new lists drawn, or correct the groups."
        )
    settled = {*split.labeled, *split.validation, *split.test}
    joining: dict[str, list[str]] = {name: [] for name in LIST_NAMES}
    left_out: list[str] = []
    for case in sorted((case for case in cases if case.name not in settled), key=lambda case: case.name):
        if case.group in held_out:
            left_out.append(case.name)
        elif case.classes is None or (new_labels != "test" and not case.classes):
            joining["unlabeled"].append(case.name)
        else:
            joining["unlabeled" if new_labels != "labeled" and case.group in trained_with_label else new_labels].append(
                case.name
            )
    if num_labeled is not None:
        _draw_labeled(joining, split, num_labeled=num_labeled, seed=seed)
    # The other scans of a patient who is held out from now on.
    held_out = {by_name[name].group for name in (*joining["validation"], *joining["test"])}
    left_out += [name for name in joining["unlabeled"] if by_name[name].group in held_out]
    lists = {}
    for list_name in LIST_NAMES:
        present = set(joining[list_name]) - set(left_out) | set(split.cases(list_name)) & settled
        ordered = [name for name in split.cases(list_name) if name in present]
        lists[list_name] = ordered + sorted(present - set(ordered))
    return Lists(lists, left_out=sorted(left_out))


def _draw_labeled(joining: dict[str, list[str]], split: Split, *, num_labeled: int, seed: int) -> None:
    """Leave only so many of the new labels, and take the other cases as unlabeled ones."""
    least, most = len(split.labeled), len(split.labeled) + len(joining["labeled"])
    if not least <= num_labeled <= most:
        raise BundleError(
            f"num_labeled must be from {least} to {most}, the labeled cases of continue_split and the new labels with "
            f"foreground, got {num_labeled}."
        )
    order = np.random.default_rng((seed, 2)).permutation(joining["labeled"]).tolist()
    drawn, others = order[: num_labeled - least], order[num_labeled - least :]
    joining["labeled"], joining["unlabeled"] = sorted(drawn), sorted([*joining["unlabeled"], *others])


def write_continued(
    name: str, output_dir: Path, split: Split, continued: Lists, cases: Sequence[FoldCase]
) -> tuple[Path, list[str]]:
    """Write the lists that continue a split beside those that are there: ``split.json`` goes on as ``split_v2.json``.

    Args:
        name: name of the data set.
        output_dir: its folder.
        split: the split that is continued.
        continued: the lists, see :func:`continue_lists`.
        cases: all cases that are there.

    Returns:
        path of the file that has these lists, the newest one if it has them already; one line for each matter to know.

    Raises:
        BundleError: when another file continues the split already: what one of them tests the other might train on.
    """
    notes = []
    for list_name in LIST_NAMES:
        joined = sorted(set(continued.lists[list_name]) - set(split.cases(list_name)))
        if joined:
            notes.append(f"new in the {list_name} list: {some_of(joined)}.")
    unlabeled = set(continued.lists["unlabeled"])
    unused = [case.name for case in cases if case.classes is not None and case.name in unlabeled]
    if unused:
        notes.append(
            f"unlabeled though they have a label, as it is empty or was not drawn, or their patient is trained on: "
            f"{some_of(unused)}."
        )
    digest = hash_cases(continued.lists)
    if describe_split(split.path)["cases_hash"] == digest:
        return split.path, [*notes, f"these are the lists of {split.path}, which stays as it is."]
    versions = split_versions(output_dir, split.path)
    newest = versions[-1] if len(versions) > 1 else split.path
    if describe_split(newest)["cases_hash"] == digest:
        return newest, notes
    if not newest.samefile(split.path):
        raise BundleError(
            f"continue_split {split.path} was continued as {newest} already, which may test what would be "
            "trained on now: continue that one."
        )
    number = int(versions[-1].stem.rpartition("_v")[2]) + 1 if len(versions) > 1 else 2
    written = write_split(
        output_dir / f"{versions[0].stem}_v{number}.json",
        name=f"{re.sub(r'_v[0-9]+$', '', split.name)}_v{number}",
        description=f"{name}, continued from {split.path.name}: {continued.counts()}.",
        lists=continued.lists,
    )
    return written.path, notes
