# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The cases of a run: the files of a split's lists, or unlabeled volumes of a folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from monai.utils.misc import str2bool

from ..errors import BundleError
from ..nifti import check_capitals, tell_of_others, volume_name, volumes_in
from .boxes import BOX_KEY, read_boxes
from .phantom import SPLIT_FILE_NAME, ensure_phantom_dataset, is_phantom_case
from .splits import LIST_NAMES, composed, read_split, require_dataset_dir, some_of

logger = logging.getLogger(__name__)


def load_cases(
    dataset_dir: str | Path,
    split_file: str | Path,
    lists: Sequence[str] = ("labeled", "unlabeled", "validation"),
    phantom_dir: str | Path | None = None,
    uses_boxes: bool | str = False,
    all_labeled: bool | str = False,
    skip_unreadable: bool | str = False,
) -> dict[str, list[dict[str, Any]]]:
    """List the files of a split's cases, as the dictionaries that MONAI's data sets take.

    A labeled, validation or test case is ``{"image": path, "label": path, "case": id}``. An unlabeled one is
    ``{"unlabeled": path, "case": id}`` and nothing else, so that no label of it can be read later on.

    Args:
        dataset_dir: folder of the data set, which the patterns of the split are relative to.
        split_file: path of the split file.
        lists: the lists that the run uses; files of the other lists need not exist.
        phantom_dir: when ``dataset_dir`` is this very folder and holds no data yet, the default phantom data set is
            generated there first. A split of other cases never fills it.
        uses_boxes: add ``"box"``, ``[[x0, y0, z0], [x1, y1, z1]]`` in voxels of the file, the stop exclusive, from the
            data set's ``boxes.json``, see :func:`scripts.data.boxes.write_boxes`; a text like "true" is understood.
        all_labeled: train on the unlabeled cases with their labels too, which must be there: the upper bound that the
            literature reports. They join the labeled list, in the order of their ids; none stays unlabeled.
        skip_unreadable: let files of labeled and unlabeled cases be missing: the training passes over them like over
            those that cannot be read; a text like "true" is understood.

    Returns:
        For each of the four lists its cases in the order of the file.

    Raises:
        BundleError: when the split breaks the schema, the folder is missing or empty, a path leads out of it, a file
            of a list that the run uses is missing (all are named at once), or a box is, or the run uses the test list
            and it is empty.
    """
    dataset_path, split_path = Path(dataset_dir).expanduser(), Path(split_file).expanduser()
    if phantom_dir is not None and dataset_path.resolve() == Path(phantom_dir).expanduser().resolve():
        _fill_phantom_dir(dataset_path, split_path)
    require_dataset_dir(dataset_path, split_path)
    split = read_split(split_path)
    if str2bool(all_labeled):
        split = replace(split, labeled=tuple(sorted(split.labeled + split.unlabeled)), unlabeled=())
    used = sum((split.cases(list_name) for list_name in lists), ())
    boxes = read_boxes(dataset_path, split, cases=used) if str2bool(uses_boxes) else {}
    required = set(lists) - ({"labeled", "unlabeled"} if str2bool(skip_unreadable) else set())
    # Once and as texts: pools are large, and is_inside takes longer than all the rest.
    root = os.path.join(os.path.realpath(dataset_path), "")

    cases: dict[str, list[dict[str, Any]]] = {}
    outside, missing = [], []
    for list_name in LIST_NAMES:
        cases[list_name] = []
        for case in split.cases(list_name):
            if list_name == "unlabeled":
                relative_paths = {"unlabeled": split.image_path(case)}
            else:
                relative_paths = {"image": split.image_path(case), "label": split.label_path(case)}
            entry: dict[str, Any] = {key: str(dataset_path / path) for key, path in relative_paths.items()}
            for key, relative_path in relative_paths.items():
                if not os.path.realpath(entry[key]).startswith(root):
                    outside.append(relative_path)
                elif list_name in required and not os.path.isfile(entry[key]):
                    missing.append(relative_path)
            entry["case"] = case
            if case in boxes:
                entry[BOX_KEY] = boxes[case]
            cases[list_name].append(entry)
    if outside:
        raise BundleError(
            f"dataset_dir: every file must lie in {dataset_path}, but these lead out: {some_of(outside)}."
        )
    if "test" in lists and not cases["test"]:
        raise BundleError(f"split_file {split_path} has no test case.")
    if missing:
        raise BundleError(
            f"dataset_dir: {_files(len(missing))} of {split_path} not found in {dataset_path}: {some_of(missing)}."
        )
    return cases


def evaluated_cases(
    load_split: Callable[[], Mapping[str, list[dict[str, Any]]]], lists: Sequence[str]
) -> list[dict[str, Any]]:
    """List the cases that an evaluation measures, which are those of the test list.

    Args:
        load_split: gives what :func:`load_cases` gives.
        lists: the lists that the evaluation was given: with others it would say that it is of the test cases.

    Returns:
        the test cases.

    Raises:
        BundleError: when ``lists`` is anything else but the test list.
    """
    if lists != ["test"]:
        raise BundleError(
            f"lists must be ['test'] in an evaluation, got {lists!r}: measure other cases by a split_file that has "
            "them as its test list."
        )
    return load_split()["test"]


def describe_cases(cases: dict[str, list[dict[str, Any]]]) -> str:
    """Describe in one line which cases a training uses, to see whether two runs used the same.

    Args:
        cases: what :func:`load_cases` gives.

    Returns:
        The numbers of labeled and unlabeled cases and a hash of their ids, or of the names of their files where they
        have none: the folder may have moved.
    """
    lists = (("labeled", "image"), ("unlabeled", "unlabeled"))
    ids = [[entry.get("case") or composed(volume_name(entry[key])) for entry in cases[name]] for name, key in lists]
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]
    return f"{len(ids[0])} labeled, {len(ids[1])} unlabeled, {digest}"


def unlabeled_pool(
    load_split: Callable[[], Mapping[str, list[dict[str, Any]]]],
    *,
    pairs: Sequence[Mapping[str, Any]],
    pairs_are_given: bool,
    unlabeled_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """List the unlabeled cases: those of a folder, those of the split, or none.

    Args:
        load_split: gives what :func:`load_cases` gives; called only when the split is needed.
        pairs: the cases that the run trains on with labels, or that validate or test it; their images are left out of
            the folder's.
        pairs_are_given: whether these pairs come from outside, as MONAI Label's do, and not from the split: then its
            unlabeled cases are those of another data set, and are not used.
        unlabeled_dir: folder of NIfTI volumes to take instead; its subfolders are not searched.

    Returns:
        The unlabeled cases as dictionaries that MONAI's data sets take.

    Raises:
        BundleError: when the folder does not exist, holds no further volume, or one that its capitals would hide.
    """
    if not unlabeled_dir:
        return [] if pairs_are_given else load_split()["unlabeled"]
    folder = Path(unlabeled_dir).expanduser()
    if not folder.is_dir():
        raise BundleError(f"unlabeled_dir must be a folder, got {folder}.")
    # By name, too: a prepared data set holds copies of the files of the folder.
    used = {Path(pair["image"]).resolve() for pair in pairs}
    names = {composed(volume_name(pair["image"])) for pair in pairs}
    # The files of a case may be called alike in a folder of its own.
    names |= {composed(PurePosixPath(pair["case"]).name) for pair in pairs if "case" in pair}
    check_capitals("unlabeled_dir", folder)
    tell_of_others("unlabeled_dir", folder)
    volumes = volumes_in(folder)
    cases = [
        {"unlabeled": str(path)}
        for path in volumes
        if path.resolve() not in used and composed(volume_name(path)) not in names
    ]
    if len(cases) < len(volumes):
        logger.info(
            "unlabeled_dir %s: %d of %d volumes left out, as they are called like labeled, validation or test cases.",
            folder,
            len(volumes) - len(cases),
            len(volumes),
        )
    # Where pairs are given, annotation may have come to its end: then every volume of the folder has a label.
    if not cases and not (pairs_are_given and volumes):
        raise BundleError(
            f"unlabeled_dir {folder} must hold NIfTI volumes of no labeled, validation or test case, got none."
        )
    return cases


def _fill_phantom_dir(dataset_path: Path, split_path: Path) -> None:
    is_own_split = split_path.resolve() == (dataset_path / SPLIT_FILE_NAME).resolve()
    # A split of real cases was given but not its dataset_dir: volumes of a phantom would only hide that.
    if not is_own_split and not (
        split_path.is_file() and all(map(is_phantom_case, read_split(split_path).all_cases()))
    ):
        return
    if ensure_phantom_dataset(dataset_path):
        logger.info("dataset_dir %s held no data: a generated phantom data set was written there.", dataset_path)


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"
