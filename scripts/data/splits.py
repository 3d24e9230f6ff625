# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Split files: which case is labeled, unlabeled, for validation or for the test, and where its files are.

A split file is JSON; a case is in exactly one list, and the two patterns are relative to the data set's folder::

    {"version": 1, "name": "...", "description": "...",
     "image": "images/{case}.nii.gz", "label": "labels/{case}.nii.gz",
     "labeled": [...], "unlabeled": [...], "validation": [...], "test": [...]}

``seed`` may be added to say how the lists were drawn, and ``cases_hash``, by which a change of the lists is noticed. A
file is written once and kept, never computed at run time.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import BundleError
from ..files import ROOT, write_json

LIST_NAMES = ("labeled", "unlabeled", "validation", "test")
IMAGE_PATTERN, LABEL_PATTERN = "images/{case}.nii.gz", "labels/{case}.nii.gz"
_TYPES: dict[str, type] = {"version": int, "name": str, "description": str, "image": str, "label": str}
_TYPES |= dict.fromkeys(LIST_NAMES, list)
_OPTIONAL_TYPES: dict[str, type] = {"seed": int, "cases_hash": str}
_TYPE_NAMES = {int: "an integer", str: "a string", list: "a list of strings"}
_MAX_NAMED = 10
_SAME_CASES = "the same in other lists"


class SplitError(BundleError):
    """A split file that does not keep the schema.

    Args:
        split_file: the file, as the user named it.
        problems: every problem found, one line each.
    """

    def __init__(self, split_file: str | Path, problems: Sequence[str]) -> None:
        super().__init__(split_file, problems)
        self.split_file = split_file
        self.problems = list(problems)

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}"
        return "\n".join([f"{self.split_file}: {count}:", *(f"- {problem}" for problem in self.problems)])


@dataclass(frozen=True)
class Split:
    """One split file, checked.

    Attributes:
        version: version of the schema, 1.
        name: short name, as the file's.
        description: one sentence for people.
        image: pattern of the image's path, relative to the data set's folder, with ``{case}``.
        label: pattern of the label's path, relative to the data set's folder, with ``{case}``.
        labeled: ids of the cases trained on with their label.
        unlabeled: ids of the cases trained on without one.
        validation: ids of the cases which choose the checkpoint.
        test: ids of the cases nobody looks at before the end.
        path: the file it was read from.
        seed: the seed the lists were drawn with, if they were drawn.
        cases_hash: see :func:`hash_cases`, if the file carries it.
    """

    version: int
    name: str
    description: str
    image: str
    label: str
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    path: Path
    seed: int | None = None
    cases_hash: str | None = None

    def cases(self, list_name: str) -> tuple[str, ...]:
        """Return the ids in one of the four lists.

        Args:
            list_name: ``labeled``, ``unlabeled``, ``validation`` or ``test``.

        Returns:
            The ids, in the order of the file.

        Raises:
            BundleError: when there is no such list.
        """
        if list_name not in LIST_NAMES:
            raise BundleError(f"lists must be of {', '.join(LIST_NAMES)}, got {list_name!r}.")
        cases: tuple[str, ...] = getattr(self, list_name)
        return cases

    def all_cases(self) -> tuple[str, ...]:
        """Return the ids in all four lists, in the order of the lists."""
        return tuple(case for list_name in LIST_NAMES for case in self.cases(list_name))

    def image_path(self, case: str) -> str:
        """Return the path of a case's image, relative to the data set's folder."""
        return self.image.replace("{case}", case)

    def label_path(self, case: str) -> str:
        """Return the path of a case's label, relative to the data set's folder."""
        return self.label.replace("{case}", case)


def read_split(split_file: str | Path) -> Split:
    """Read a split file and check all of its schema.

    Args:
        split_file: path of the JSON file.

    Returns:
        The split.

    Raises:
        BundleError: when the file is missing, is not JSON or breaks the schema; every problem of the schema is named
            at once, one line each.
    """
    path = Path(split_file).expanduser()
    repeated: list[str] = []

    def collect_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # JSON keeps the last of two equal keys in silence: half of a list would be lost.
        keys = [key for key, _ in pairs]
        repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return dict(pairs)

    content = read_json(path, "split_file", object_pairs_hook=collect_keys)
    if not isinstance(content, dict):
        raise SplitError(split_file, [f"must be a JSON object with {', '.join(_TYPES)}, got {kind_of(content)}"])
    problems = [f"key {key!r} is given twice" for key in repeated] + _schema_problems(content)
    if problems:
        raise SplitError(split_file, problems)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return Split(path=path, **values)


def hash_cases(lists: Mapping[str, Sequence[str]]) -> str:
    """Hash the four lists of a split, so that a later change of them is noticed.

    Args:
        lists: the ids of each list; a list that is not there counts as empty.

    Returns:
        The first 16 hexadecimal digits of the SHA-256 of the four lists as JSON; the order of the ids counts.
    """
    content = {list_name: list(lists.get(list_name, ())) for list_name in LIST_NAMES}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _difference_of(split: Split, lists: Mapping[str, Sequence[str]]) -> str:
    """Name some of the cases that a split and new lists have not in common."""
    before, now = (
        {case for list_name in LIST_NAMES for case in cases(list_name)}
        for cases in (split.cases, lambda list_name: lists.get(list_name, ()))
    )
    differences = {"new": sorted(now - before), "gone": sorted(before - now)}
    words = [f"{word}: {', '.join(some[:5])}{', ...' * (len(some) > 5)}" for word, some in differences.items() if some]
    return "; ".join(words) or _SAME_CASES


def write_split(
    split_file: str | Path, *, name: str, description: str, lists: Mapping[str, Sequence[str]], seed: int | None = None
) -> Split:
    """Write a split file with the hash of its cases; one that is there stays as it is.

    Args:
        split_file: path of the JSON file.
        name: short name.
        description: one sentence for people.
        lists: the ids of each list; a list that is not there is empty.
        seed: the seed that the lists were drawn with, if they were drawn.

    Returns:
        The split, as the file has it.

    Raises:
        BundleError: when a file with other lists is there already, or one that continues an earlier file of this name,
            or the new one would break the schema.
    """
    path = Path(split_file).expanduser()
    digest = hash_cases(lists)
    versions = split_versions(path.parent, path)
    continuations = some_of([version.name for version in versions[1:]])
    if path.exists():
        present = read_split(path)
        if hash_cases({list_name: present.cases(list_name) for list_name in LIST_NAMES}) != digest:
            difference = _difference_of(present, lists)
            together = f" with what continues it ({continuations})" if continuations else ""
            advice = (
                f"`--continue_split {versions[-1]}` lets what is new join its lists, in a further file; or move it away"
                f"{together} for new lists, whose test cases may be such as earlier runs were trained on."
            )
            if difference == _SAME_CASES:
                advice += (
                    " Where labels alone were changed, by which the cases are dealt, keep it and go on with it, after "
                    f"`python -m scripts check --dataset_dir {path.parent} --split_file {path}`."
                )
            raise BundleError(
                f"{path} is already there with other cases ({difference}), and a split is written once, because "
                f"trained runs depend on it: {advice}"
            )
        return present
    if continuations and path == versions[0]:
        raise BundleError(
            f"{path} is not written, because what continues an earlier one is beside it ({continuations}): move these "
            f"away too for new lists, or let what is new join theirs by `--continue_split {versions[-1]}`."
        )
    content: dict[str, Any] = {"version": 1, "name": name, "description": description}
    content |= {} if seed is None else {"seed": seed}
    content |= {"image": IMAGE_PATTERN, "label": LABEL_PATTERN}
    content |= {list_name: list(lists.get(list_name, ())) for list_name in LIST_NAMES}
    content["cases_hash"] = digest
    problems = _schema_problems(content)
    if problems:
        raise SplitError(path, problems)
    write_json(path, content)
    return read_split(path)


def split_versions(folder: Path, split_file: Path) -> list[Path]:
    """List a split file and what continues it: ``split.json``, then ``split_v2.json`` and so on of a folder.

    Args:
        folder: folder of the data set.
        split_file: the split file, or one that continues it.

    Returns:
        the paths in the order of their numbers, the first one whether it is there or not.
    """
    stem = re.sub(r"_v\d+$", "", split_file.stem)
    numbers = {path: re.fullmatch(rf"{re.escape(stem)}_v(\d+)", path.stem) for path in folder.glob("*_v*.json")}
    found = {int(number[1]): path for path, number in numbers.items() if number}
    return [folder / f"{stem}.json", *(found[number] for number in sorted(found))]


def describe_split(split_file: str | Path) -> dict[str, Any]:
    """Return which split a run used, so that it can be found again.

    Args:
        split_file: path of the split file.

    Returns:
        Its name and the hash of its four lists, see :func:`hash_cases`.
    """
    split = read_split(split_file)
    return {"name": split.name, "cases_hash": hash_cases({name: split.cases(name) for name in LIST_NAMES})}


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path stays in a folder once symbolic links and ``..`` are resolved."""
    # Not Path.resolve, which fails in a loop of links.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _schema_problems(content: dict[str, Any]) -> list[str]:
    known = _TYPES | _OPTIONAL_TYPES
    problems = [f"unknown key {key!r}, allowed: {', '.join(known)}" for key in content if key not in known]
    problems += [f"missing key {key!r}" for key in _TYPES if key not in content]
    well_typed = {}
    for key, expected in known.items():
        if key not in content:
            continue
        value = content[key]
        # bool is an int to Python, and not a version to anyone.
        fits = isinstance(value, expected) and not isinstance(value, bool)
        if fits and expected is list:
            fits = all(isinstance(case, str) for case in value)
        if fits:
            well_typed[key] = value
        else:
            problems.append(f"{key} must be {_TYPE_NAMES[expected]}, got {kind_of(value)}")
    if well_typed.get("version", 1) != 1:
        problems.append(f"version must be 1, got {well_typed['version']}")
    for key in ("image", "label"):
        if key in well_typed:
            problems += _pattern_problems(key, well_typed[key])
    if "image" in well_typed and well_typed["image"] == well_typed.get("label"):
        problems.append(f"image and label must differ, both are {well_typed['image']!r}")
    lists = {name: well_typed[name] for name in LIST_NAMES if name in well_typed}
    digest = well_typed.get("cases_hash")
    if digest is not None and len(lists) == len(LIST_NAMES) and digest != hash_cases(lists):
        problems.append(
            f"the cases were changed after the file was written: cases_hash is {digest!r}, but theirs is "
            f"{hash_cases(lists)!r}; a changed split is a new one: give it another name, and this hash or none"
        )
    return problems + _list_problems(lists)


def _pattern_problems(key: str, pattern: str) -> list[str]:
    problems = []
    if "{case}" not in pattern:
        problems.append(f"{key} must contain {{case}}, got {pattern!r}")
    if leads_out(pattern):
        problems.append(f"{key} must stay in dataset_dir (relative, without '..'), got {pattern!r}")
    return problems


def _list_problems(lists: dict[str, list[str]]) -> list[str]:
    problems = []
    first_list: dict[str, str] = {}
    for list_name, cases in lists.items():
        for case, count in Counter(cases).items():
            if not case.strip():
                problems.append(f"{list_name} has an empty case id")
                continue
            if leads_out(case):
                problems.append(f"{list_name}: case id must stay in dataset_dir (relative, without '..'), got {case!r}")
            elif starts_formula(case):
                problems.append(f"{list_name}: case id must not begin with =, +, - or @, got {case!r}")
            elif posixpath.normpath(case) != case:
                problems.append(f"{list_name}: case id must be {posixpath.normpath(case)!r}, got {case!r}")
            if count > 1:
                problems.append(f"{list_name} has case {case!r} {count} times")
            if case in first_list:
                problems.append(f"case {case!r} is in two lists: {first_list[case]} and {list_name}")
            first_list.setdefault(case, list_name)
    return problems


def leads_out(text: str) -> bool:
    """Return whether a part of a path may lead out of its folder, or is no path at all on some system."""
    # Both notations, so that a split means the same on every system. An unprintable character (a null byte) is no path.
    windows = PureWindowsPath(text)
    absolute = PurePosixPath(text).is_absolute() or bool(windows.drive or windows.root)
    return absolute or ".." in windows.parts or not text.isprintable()


def composed(name: str) -> str:
    """Write a letter and its accent as one character, which some systems store as two.

    Args:
        name: name of a file or a case.

    Returns:
        the name by which it is known on every system.
    """
    return unicodedata.normalize("NFC", name)


def starts_formula(text: str) -> bool:
    """Return whether a spreadsheet that opens a table takes a text for a formula."""
    return text.startswith(("=", "+", "-", "@"))


def kind_of(value: Any) -> str:
    """Describe a value of a JSON file that is not of the type it must be."""
    if isinstance(value, list):
        others = {type(item).__name__ for item in value if not isinstance(item, str)}
        return f"a list with {', '.join(sorted(others))}" if others else "a list"
    return f"{type(value).__name__} {json.dumps(value)[:40]}"


def read_json(path: Path, argument: str, object_pairs_hook: Callable[..., Any] | None = None) -> Any:
    """Read a JSON file that an argument names; a BundleError tells of one that is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=object_pairs_hook)
    except FileNotFoundError:
        raise BundleError(f"{argument}: {path} not found.") from None
    except OSError as error:
        raise BundleError(f"{argument}: {path} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # of JSON and of UTF-8
        raise BundleError(f"{argument}: {path} is not JSON ({error}).") from error


def require_dataset_dir(dataset_path: Path, split_path: Path) -> None:
    """Refuse a folder without data by a BundleError, which tells where they come from."""
    if dataset_path.is_dir() and any(dataset_path.iterdir()):
        return
    image, label = IMAGE_PATTERN, LABEL_PATTERN
    if split_path.is_file():
        split = read_split(split_path)
        image, label = split.image, split.label
    # A package of one task has the model card alone.
    page = "docs/data.md" if (ROOT / "docs/data.md").is_file() else "docs/README.md"
    state = "is empty" if dataset_path.is_dir() else "is not a folder" if dataset_path.exists() else "does not exist"
    raise BundleError(
        f"dataset_dir: {dataset_path} {state}; expected are {image} and {label} for the cases of {split_path}. "
        f"{page} tells where the data are obtained, `python -m scripts check --dataset_dir "
        f"{shlex.quote(str(dataset_path))} --split_file {shlex.quote(str(split_path))}` verifies them, "
        f"`python -m scripts phantom --output_dir {shlex.quote(str(dataset_path))}` makes a generated data set."
    )


def some_of(items: Sequence[str]) -> str:
    """Name the first of many."""
    named = ", ".join(items[:_MAX_NAMED])
    return named if len(items) <= _MAX_NAMED else f"{named} and {len(items) - _MAX_NAMED} more ({len(items)} in all)"
