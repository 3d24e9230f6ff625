# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The left atrium of the 2018 challenge: its own folders, and the files that the semi-supervised literature uses."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, get_args

import h5py
import numpy as np
import numpy.typing as npt

from ...errors import BundleError, one_line
from ...nifti import make_nifti
from .reading import Source, SourceCase, Volumes, on_grid, read_image, read_label, require_inside, to_classes, walk

Form = Literal["nrrd", "h5"]
_FILE_NAMES = {"nrrd": "lgemri.nrrd", "h5": "mri_norm2.h5"}
_LABEL_NAME = "laendo.nrrd"
_SPACING_MM = 0.625
#: The literature's crop: at least this many voxels in x and y, and a margin drawn from this range on each side.
_CROP_SIZE, _CROP_MARGINS = 112, (10, 20)


def find_left_atrium(source: Path, *, crop_to_label: bool = False, form: Form | None = None) -> Source:
    """Find the cases of the left atrium.

    Args:
        source: folder with ``*/lgemri.nrrd`` and ``*/laendo.nrrd``, or with ``*/mri_norm2.h5``, at any depth.
        crop_to_label: crop whole volumes in x and y around their reference label, with the margins of the literature.
            This uses the reference label, also of unlabeled and of test cases.
        form: which files to take where there are both; None takes those that are there.

    Returns:
        The cases, named la_ and the name of their folder.

    Raises:
        BundleError: when there is no case, files of both forms, or a crop of files that are cropped already.
    """
    if form is not None and form not in get_args(Form):
        raise BundleError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}.")
    files = {name: [path for path in walk(source) if path.name == file_name] for name, file_name in _FILE_NAMES.items()}
    forms = [name for name, paths in files.items() if paths and form in (None, name)]
    if not forms:
        wanted = " or ".join(f"*/{name}" for key, name in _FILE_NAMES.items() if form in (None, key))
        raise BundleError(f"source {source} holds no {wanted}.")
    if len(forms) > 1:
        raise BundleError(
            f"source {source} holds both {' and '.join(_FILE_NAMES.values())}: choose by --form nrrd or h5."
        )
    if forms == ["h5"] and crop_to_label:
        raise BundleError(
            f"crop_to_label is for whole volumes, {_FILE_NAMES['h5']} is cropped around its label already."
        )
    read = partial(_read_nrrd, crop_to_label=crop_to_label) if forms == ["nrrd"] else _read_h5
    cases = [
        SourceCase(
            name=f"la_{path.parent.name}",
            read=partial(read, path, source=source),
            has_label=forms == ["h5"] or (path.parent / _LABEL_NAME).exists(),
            files=(path, path.parent / _LABEL_NAME) if forms == ["nrrd"] else (path,),
        )
        for path in files[forms[0]]
    ]
    return Source(cases, protocol="left_atrium", num_labeled=16)


def _read_nrrd(path: Path, *, source: Path, crop_to_label: bool) -> Volumes:
    image = read_image(path, source=source)
    label_path = path.parent / _LABEL_NAME
    label = read_label(label_path, image, source=source, convert=_is_atrium) if label_path.exists() else None
    if not crop_to_label:
        return Volumes(image, label)
    if label is None:
        raise BundleError(f"crop_to_label needs {label_path}, which is not there.")
    box = _literature_box(np.asanyarray(label.dataobj) > 0, case=path.parent.name)
    return Volumes(image.slicer[box], label.slicer[box])


def _read_h5(path: Path, *, source: Path) -> Volumes:
    require_inside(path, source)
    try:
        with h5py.File(path) as file:
            voxels, classes = (np.asarray(file[name]) for name in ("image", "label"))
    except Exception as error:  # a truncated file makes the library raise errors of several classes
        reason = one_line(error)
        raise BundleError(f"{path} cannot be read, the file may be truncated: {reason}") from error
    if voxels.ndim != 3:
        raise BundleError(f"{path} must hold a 3D image, got shape {voxels.shape}.")
    if not np.isfinite(voxels).all():
        raise BundleError(f"{path} holds values that are not finite.")
    # The files tell no geometry; all volumes of the challenge have this spacing.
    affine = np.diag([_SPACING_MM] * 3 + [1.0])
    image = make_nifti(voxels.astype(np.float32), affine)
    return Volumes(image, on_grid(make_nifti(to_classes(classes, path), affine), image))


def _is_atrium(voxels: npt.NDArray[np.number]) -> npt.NDArray[np.bool_]:
    return voxels > 0


def _literature_box(foreground: npt.NDArray[np.bool_], *, case: str) -> tuple[slice, ...]:
    """The box of the label in x and y, widened to the crop size and by a random margin; all of z.

    The literature drew its margins without a seed; here they come from the name of the case.
    """
    if not foreground.any():
        raise BundleError("crop_to_label needs a label with foreground.")
    generator = np.random.default_rng(list(case.encode()))
    box = []
    for axis in (0, 1):
        occupied = np.flatnonzero(foreground.any(axis=(1 - axis, 2)))
        start, last = int(occupied[0]), int(occupied[-1])
        padding = max(_CROP_SIZE - (last - start), 0) // 2
        before, after = generator.integers(*_CROP_MARGINS, size=2)
        box.append(slice(max(start - before - padding, 0), min(last + after + padding, foreground.shape[axis])))
    return (*box, slice(None))
