# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The files of a case: what they are called, and how its label map is written."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import CommonKeys
from monai.utils.misc import str2bool

from ..errors import BundleError
from ..files import is_in_run
from ..nifti import volume_name, write_volume

CASE_KEY = "case"
_SUFFIX = ".nii.gz"
#: Of the 255 that a name may have, some are for the postfix, the suffix and a temporary file.
_MAX_BYTES = 210


def case_name(item: Mapping[Any, Any]) -> str:
    """Name a case of a data set.

    Args:
        item: dictionary of the case.

    Returns:
        what stands under ``case``, or else the file name of its image or label without the suffix.

    Raises:
        BundleError: when the item has neither.
    """
    if CASE_KEY in item:
        return str(item[CASE_KEY])
    for key in (CommonKeys.IMAGE, CommonKeys.LABEL):
        value = item.get(key)
        path = value.meta.get("filename_or_obj") if isinstance(value, MetaTensor) else None
        if path:
            return volume_name(str(path))
    raise BundleError(
        f"an evaluated item must have the key {CASE_KEY!r} or an image with a file name, got {list(item)}."
    )


def case_file_name(case: str) -> str:
    """Make a file name of the name of a case.

    Args:
        case: any text.

    Returns:
        The name itself where every file system takes it, otherwise a like one that no other case gets.
    """
    # File systems count bytes, of which a letter can have four.
    start = re.sub(r"[^\w.+-]+", "_", case)[:100].encode()[:_MAX_BYTES]
    safe = start.decode(errors="ignore").strip(".")
    return safe if safe and safe == case else f"{safe or 'case'}_{hashlib.sha256(case.encode()).hexdigest()[:8]}"


def label_map_path(folder: str | os.PathLike[str], case: str) -> Path:
    """Return where the label map of a case is kept.

    Args:
        folder: folder of the label maps.
        case: name of the case.

    Returns:
        path of the NIfTI file, which need not exist.
    """
    return Path(folder) / f"{case_file_name(case)}{_SUFFIX}"


def check_labels_dir(
    labels_dir: str | None,
    cases: Callable[[], Mapping[str, Sequence[Mapping[str, Any]]]],
    *,
    own_dir: str,
    overwrite: bool | str = False,
) -> None:
    """Make sure that no label map takes the place of a file of the data set, or unasked that of another label map.

    Args:
        labels_dir: folder where label maps will be written; None where none will be.
        cases: gives the cases of each list with the paths of their files, see :func:`scripts.data.cases.load_cases`;
            called unless labels_dir is None.
        own_dir: folder of a run or of its evaluation: where the run has written its ``run.json``, label maps are its
            own, and need no permission.
        overwrite: replace label maps that are there.

    Raises:
        BundleError: when a map of one of these cases would replace an image or a label, or, without overwrite, anything
            else but what the run has written.
    """
    if labels_dir is None:
        return
    items = [item for entries in cases().values() for item in entries]
    files = {os.path.realpath(item[key]) for item in items for key in ("image", "label", "unlabeled") if key in item}
    may_replace = str2bool(overwrite) or _is_of_run(Path(labels_dir), Path(own_dir))
    for item in items:
        path = label_map_path(labels_dir, str(item.get(CASE_KEY, "")))
        if os.path.realpath(path) in files:
            raise BundleError(f"labels_dir {labels_dir}: a label map would replace {path}, a file of the data set.")
        if os.path.lexists(path) and not may_replace:
            raise BundleError(
                f"labels_dir {labels_dir} already holds {path.name}: replace it by --overwrite true, or choose another "
                "--labels_dir."
            )


def _is_of_run(labels_dir: Path, own_dir: Path) -> bool:
    """Tell the folder of a run from one that only has been named like it."""
    # The folder of an evaluation may be a link to another disk: that of the run is where the link stands.
    return is_in_run(own_dir) and labels_dir.resolve().is_relative_to(own_dir.resolve())


class SaveLabelMapd(MapTransform):
    """Write label maps under the names of their cases, however the files of the data set are called.

    Args:
        keys: keys of the label maps, (1, X, Y, Z).
        output_dir: folder of the files.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | os.PathLike[str]) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the maps of a case.

        Args:
            data: dictionary of the case.

        Returns:
            the same.
        """
        result = dict(data)
        path = label_map_path(self.output_dir, case_name(result))
        for key in self.key_iterator(result):
            write_volume(result[key], path, np.uint8)
        return result
