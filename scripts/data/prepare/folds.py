# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Lists of a split: those of a shipped protocol, or folds drawn by patient, with a seed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import BundleError
from ...files import CONFIGS
from ..splits import LIST_NAMES, Split, read_split

_SPLITS_DIR = CONFIGS / "splits"
_DEFAULT_SHARE = 0.2


@dataclass(frozen=True)
class FoldCase:
    """What the folds are drawn by.

    Attributes:
        name: id of the case.
        group: cases of one group stay on one side.
        classes: foreground classes in its label; None for a case without a label.
        foreground_mm3: volume of its foreground.
    """

    name: str
    group: str
    classes: tuple[int, ...] | None = None
    foreground_mm3: float = 0.0


@dataclass(frozen=True)
class Lists:
    """The four lists of a split, and the cases in none of them.

    Attributes:
        lists: the ids of each list.
        left_out: cases in none of them: of drawn lists those of a patient in the validation or the test list without a
            label, or in the validation list with an empty one; of a protocol those that were withdrawn from the data
            set.
    """

    lists: Mapping[str, Sequence[str]]
    left_out: Sequence[str] = ()

    def counts(self) -> str:
        """Tell how many cases each list has."""
        return ", ".join(f"{len(self.lists[name])} {name}" for name in LIST_NAMES)


def draw_lists(
    cases: Sequence[FoldCase],
    *,
    fold: int,
    num_folds: int,
    num_labeled: int | None = None,
    labeled: Sequence[str] = (),
    num_validation: int = 0,
    seed: int = 0,
) -> Lists:
    """Draw the lists of one of k folds; the test lists of all folds cover every group with a label once.

    Without folds the test list is empty, and every case with a label is there for the training.

    Groups are dealt to the folds so that each fold gets as many cases, as many of each set of classes, and as large and
    as small foregrounds as the others. The labeled cases of a smaller number are among those of a larger one.

    Args:
        cases: all cases; those without a label become unlabeled.
        fold: whose cases are the test list, from 0.
        num_folds: number of folds; 0 for an empty test list, with ``fold`` 0.
        num_labeled: labeled cases; None takes a fifth where all cases have a label and there are folds, otherwise all
            labeled ones.
        labeled: the labeled cases by name instead; their groups are in no test and no validation list.
        num_validation: cases for the validation, at least, since groups stay together; all have foreground.
        seed: seed of all that is drawn.

    Returns:
        The lists, their ids sorted.

    Raises:
        BundleError: when there are too few cases, or one of ``labeled`` is not there or has no foreground.
    """
    if not 0 <= fold < max(1, num_folds):
        raise BundleError(f"fold must be from 0 to {max(1, num_folds) - 1}, got {fold}.")
    by_name = {case.name: case for case in cases}
    unknown = [name for name in labeled if name not in by_name or not by_name[name].classes]
    if unknown:
        raise BundleError(f"labeled must name cases with foreground in their label, got {', '.join(unknown[:5])}.")
    kept = {by_name[name].group for name in labeled}
    groups: dict[str, list[FoldCase]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.name):
        groups[case.group].append(case)
    dealt = {
        name: [case for case in members if case.classes is not None]
        for name, members in groups.items()
        if name not in kept and any(case.classes is not None for case in members)
    }
    if len(dealt) < num_folds:
        raise BundleError(
            f"num_folds is {num_folds}, but there are {len(dealt)} groups (patients) with a label to deal"
            f"{'; 0 leaves the test list empty' if dealt else ''}."
        )
    number_of = _deal(dealt, num_folds=num_folds, seed=seed) if num_folds else {}
    tested = {name for name, number in number_of.items() if number == fold}
    validated: set[str] = set()
    # The best network must not be chosen by an empty label: one that finds nothing would have a Dice of 1 there.
    usable = {name: [case.name for case in members if case.classes] for name, members in dealt.items()}
    order = np.random.default_rng((seed, 1)).permutation(sorted(dealt.keys() - tested)).tolist()
    order = [name for name in order if usable[name]]
    while sum(len(usable[name]) for name in validated) < num_validation and order:
        validated.add(order.pop())
    validation = [case for name in validated for case in usable[name]]
    if len(validation) < num_validation:
        raise BundleError(
            f"num_validation must be at most {len(validation)}, the cases with foreground in their label that are left "
            f"for it, got {num_validation}."
        )
    test = [case.name for name in tested for case in dealt[name]]
    trained = [case for name, members in groups.items() if name not in tested | validated for case in members]
    held_out = f"held out for test and validation: {len(test) + len(validation)}"
    if tested:
        held_out += " (num_folds 0 leaves the test list empty)"
    if num_labeled is None and num_folds and all(case.classes is not None for case in cases):
        # Of all cases, not of those of this fold: else one fold would have a fifth of the labels, another one all.
        num_labeled = max(1, round(_DEFAULT_SHARE * len(trained)))
    chosen = _choose_labeled(trained, labeled=labeled, num_labeled=num_labeled, held_out=held_out, seed=seed)
    return Lists(
        {
            "labeled": sorted(chosen),
            "unlabeled": sorted(case.name for case in trained if case.name not in chosen),
            "validation": sorted(validation),
            "test": sorted(test),
        },
        # An unlabeled scan of a patient who is tested would leak into the training.
        left_out=sorted({case.name for name in tested | validated for case in groups[name]} - {*test, *validation}),
    )


def empty_label_notes(cases: Iterable[FoldCase], lists: Lists) -> list[str]:
    """Tell where the cases with an empty label went.

    Args:
        cases: all cases.
        lists: the lists that were drawn of them.

    Returns:
        One line, or none when no label is empty.
    """
    empty = {case.name for case in cases if case.classes == ()}
    if not empty:
        return []
    places = {"unlabeled": lists.lists["unlabeled"], "in the test list": lists.lists["test"]}
    places["in no list"] = lists.left_out
    counts = {place: len(empty.intersection(names)) for place, names in places.items()}
    verb = "label is" if len(empty) == 1 else "labels are"
    went = ", ".join(f"{count} {place}" for place, count in counts.items() if count)
    return [f"{len(empty)} {verb} empty, such as {min(empty)}: {went}."]


def protocol_lists(
    protocol: str, *, fold: int, num_labeled: int, found: Collection[str], withdrawn: Collection[str]
) -> Lists | None:
    """Give the lists of a shipped split, when the source holds its cases.

    Args:
        protocol: prefix of the names of the split files.
        fold: number of the fold.
        num_labeled: the first so many cases of the training list are the labeled ones.
        found: cases of the source.
        withdrawn: cases that are left out, whether the source holds them or not.

    Returns:
        The lists, or None when a case is missing from the source.

    Raises:
        BundleError: when the protocol has no such fold, or not so many training cases.
    """
    splits = shipped_splits(protocol)
    if fold not in splits:
        raise BundleError(f"fold must be from 0 to {len(splits) - 1} in the protocol of {protocol}, got {fold}.")
    split = splits[fold]
    if set(split.all_cases()) - set(withdrawn) - set(found):
        return None
    training = split.labeled + split.unlabeled
    if not 1 <= num_labeled <= len(training):
        raise BundleError(f"num_labeled must be from 1 to {len(training)} in {split.name}, got {num_labeled}.")
    lists = {
        "labeled": training[:num_labeled],
        "unlabeled": training[num_labeled:],
        "validation": split.validation,
        "test": split.test,
    }
    left_out = [name for name in split.all_cases() if name in withdrawn]
    return Lists({key: [name for name in lists[key] if name not in withdrawn] for key in LIST_NAMES}, left_out=left_out)


def shipped_splits(protocol: str) -> dict[int, Split]:
    """Read the shipped splits of a protocol: one for each fold, that with the most labeled cases."""
    splits: dict[int, Split] = {}
    for path in _SPLITS_DIR.glob(f"{protocol}_fold*.json"):
        parts = re.fullmatch(rf"{protocol}_fold(\d+)_\d+", path.stem)
        if parts:
            split, fold = read_split(path), int(parts[1])
            if fold not in splits or len(split.labeled) > len(splits[fold].labeled):
                splits[fold] = split
    return splits


def _deal(groups: Mapping[str, Sequence[FoldCase]], *, num_folds: int, seed: int) -> dict[str, int]:
    """Give every group the number of a fold.

    Groups are sorted by their classes and their foreground, and cut into blocks of as many as there are folds; the
    groups of a block go to different folds: the largest to the fold with the fewest cases, and by chance where that
    leaves a choice.
    """
    generator = np.random.default_rng((seed, 0))
    lots = dict(zip(sorted(groups), generator.permutation(len(groups)).tolist(), strict=True))

    def stratum(name: str) -> tuple[tuple[int, ...], float, int]:
        members = groups[name]
        classes = sorted({value for case in members for value in case.classes or ()})
        return tuple(classes), float(np.mean([case.foreground_mm3 for case in members])), lots[name]

    ordered = sorted(groups, key=stratum)
    counts = [0] * num_folds
    number_of: dict[str, int] = {}
    for start in range(0, len(ordered), num_folds):
        block = sorted(ordered[start : start + num_folds], key=lambda name: (-len(groups[name]), lots[name]))
        free = generator.permutation(num_folds).tolist()
        for name in block:
            number = min(free, key=lambda candidate: counts[candidate])
            free.remove(number)
            number_of[name] = number
            counts[number] += len(groups[name])
    return number_of


def _choose_labeled(
    trained: Sequence[FoldCase], *, labeled: Sequence[str], num_labeled: int | None, held_out: str, seed: int
) -> set[str]:
    if labeled:
        return set(labeled)
    usable = sorted(case.name for case in trained if case.classes)
    if not usable:
        raise BundleError(f"no training case has a label with foreground; {held_out}.")
    if num_labeled is None:
        num_labeled = len(usable)
    if not 1 <= num_labeled <= len(usable):
        raise BundleError(
            f"num_labeled must be from 1 to {len(usable)}, the training cases with foreground in their label, "
            f"got {num_labeled}; {held_out}."
        )
    return set(np.random.default_rng((seed, 2)).permutation(usable)[:num_labeled].tolist())
