# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The pancreas in CT: Pancreas-CT of the NIH, and Task07 of the Medical Segmentation Decathlon."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, find_objects

from ...errors import BundleError
from ...nifti import make_nifti
from .decathlon import DESCRIPTION_FILE, find_listed, task_folder
from .reading import Source, SourceCase, Volumes, on_grid, read_dicom, read_image, to_classes, walk

Tumor = Literal["merge", "keep"]
#: Taken back by the archive in 2020: both show the scan of case 2.
_WITHDRAWN = frozenset({"PANCREAS_0025", "PANCREAS_0070"})
_CASE_FOLDER = re.compile(r"PANCREAS_(\d{4})")
_LABEL_FILE = re.compile(r"label(\d{4})\.nii(\.gz)?")
_AXES = "xyz"
#: Voxels of the shell around a label; it fits where its inside is brighter than the shell, fat for the most part.
_SHELL_VOXELS = 3


def find_pancreas(source: Path, *, tumor: Tumor = "merge") -> Source:
    """Find the cases of the pancreas.

    Args:
        source: folder of Pancreas-CT with ``PANCREAS_0001/**/*.dcm`` and ``label0001.nii.gz``, at any depth, or
            the folder of Task07_Pancreas with dataset.json.
        tumor: merge the tumor of Task07 (2) into the pancreas (1), or keep it as a class of its own.

    Returns:
        The cases, named as in the source.

    Raises:
        BundleError: when there is no case.
    """
    if tumor not in get_args(Tumor):
        raise BundleError(f"tumor must be one of {', '.join(get_args(Tumor))}, got {tumor!r}.")
    task = task_folder(source)
    if task is None:
        return _find_nih(source)
    return find_listed(task, convert=_merge if tumor == "merge" else None)


def _find_nih(source: Path) -> Source:
    folders: dict[str, Path] = {}
    files: dict[str, list[Path]] = defaultdict(list)
    for path in walk(source):
        label = _LABEL_FILE.fullmatch(path.name)
        if label:
            files[f"PANCREAS_{label[1]}"].append(path)
        for folder in path.relative_to(source).parents:
            if _CASE_FOLDER.fullmatch(folder.name):
                folders.setdefault(folder.name, source / folder)
    if _CASE_FOLDER.fullmatch(source.name) and not folders:
        folders[source.name] = source
    if not folders:
        raise BundleError(f"source {source} holds neither PANCREAS_0001/**/*.dcm nor {DESCRIPTION_FILE}.")
    labels = {name: paths[0] for name, paths in files.items() if len(paths) == 1}
    problems = [f"{name}: label{name[-4:]}.nii.gz not found." for name in sorted(folders.keys() - files.keys())]
    problems += [
        f"{name}: one label is needed, got {' and '.join(str(path.relative_to(source)) for path in paths)}."
        for name, paths in sorted(files.items())
        if len(paths) > 1 and name in folders and name not in _WITHDRAWN
    ]
    lonely = sorted(files.keys() - folders.keys() - _WITHDRAWN)
    notes = [f"{len(lonely)} label files have no DICOM folder, such as that of {lonely[0]}."] if lonely else []
    cases = [
        SourceCase(
            name, partial(_read_nih, folders[name], labels[name], source=source), files=(folders[name], labels[name])
        )
        for name in sorted(folders.keys() & labels.keys())
    ]
    return Source(cases, problems, notes, protocol="pancreas", withdrawn=_WITHDRAWN, num_folds=4, num_labeled=12)


def _read_nih(folder: Path, label_path: Path, *, source: Path) -> Volumes:
    image = read_dicom(folder, source=source)
    stored = read_image(label_path, source=source, ignore_affine=True)
    classes = to_classes(np.asanyarray(stored.dataobj), label_path)
    # The labels tell the directions of their axes, but not the place of the scan.
    label = on_grid(make_nifti(classes, stored.affine), image, ignore_affine=True)
    flips = _fitting_flips(np.asanyarray(image.dataobj), np.asanyarray(label.dataobj) > 0)
    if not flips:
        return Volumes(image, label)
    flipped = np.flip(np.asanyarray(label.dataobj), axis=flips)
    names = " and ".join(_AXES[axis] for axis in flips)
    return Volumes(
        image, make_nifti(flipped, image.affine), note=f"label flipped along {names}, where it fits the series."
    )


def _fitting_flips(image: npt.NDArray[Any], foreground: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Return along which axes a label must be flipped to fit its image; none when the order of its header does.

    The pancreas lies in fat: in its right place, a label is brighter inside than around. The header is followed unless
    another order fits at least twice as well.
    """
    if not foreground.any():
        return ()
    box = find_objects(foreground.astype(np.uint8))[0]
    wide = tuple(slice(max(0, part.start - _SHELL_VOXELS), part.stop + _SHELL_VOXELS) for part in box)
    inside = foreground[wide]
    shell = binary_dilation(inside, iterations=_SHELL_VOXELS) & ~inside
    contrasts = {}
    for chosen in product((False, True), repeat=3):
        flips = tuple(axis for axis in range(3) if chosen[axis])
        values = np.flip(image, axis=flips)[wide]
        contrasts[flips] = float(values[inside].mean()) - float(values[shell].mean())
    best = max(contrasts, key=lambda flips: contrasts[flips])
    return best if contrasts[best] > 0 and contrasts[()] < contrasts[best] / 2 else ()


def _merge(voxels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return voxels > 0
