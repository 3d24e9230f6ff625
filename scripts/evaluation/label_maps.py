# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The files of a case: what they are called, how its label map is written, and how volumes are read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImage
from monai.utils import CommonKeys

from ..errors import BundleError

CASE_KEY = "case"
_SUFFIX = ".nii.gz"


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
            name = Path(str(path)).name
            return re.sub(r"\.nii(\.gz)?$", "", name) if ".nii" in name else Path(name).stem
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
    safe = re.sub(r"[^\w.+-]+", "_", case)[:100].strip(".")
    return safe if safe and safe == case else f"{safe or 'case'}_{hashlib.sha256(case.encode()).hexdigest()[:8]}"


def label_map_path(folder: str | os.PathLike[str], case: str) -> Path:
    """Tell where the label map of a case is kept.

    Args:
        folder: folder of the label maps.
        case: name of the case.

    Returns:
        path of the NIfTI file, which need not exist.
    """
    return Path(folder) / f"{case_file_name(case)}{_SUFFIX}"


def read_nifti(path: str | os.PathLike[str], name: str = "") -> nib.Nifti1Image:
    """Read a volume.

    Args:
        path: NIfTI file.
        name: what to call it in the message.

    Returns:
        the volume with its voxels in memory, in the type of their scaled values.

    Raises:
        BundleError: when it cannot be read.
    """
    try:
        volume: Any = nib.load(path)
        voxels = np.asanyarray(volume.dataobj)
        return nib.Nifti1Image(voxels, volume.affine, volume.header, dtype=voxels.dtype)
    except Exception as error:  # a broken file makes nibabel raise errors of a dozen unrelated classes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{name} {path} cannot be read as NIfTI: {reason}".strip()) from error


class SaveLabelMapd(MapTransform):
    """Write label maps under the names of their cases, however the files of the data set are called.

    Args:
        keys: keys of the label maps, (1, X, Y, Z).
        output_dir: folder of the files.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | os.PathLike[str]) -> None:
        super().__init__(keys)
        self.output_dir = Path(output_dir)
        self._save = SaveImage(
            output_ext=_SUFFIX, output_dtype=np.uint8, resample=False, separate_folder=False, print_log=False
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the maps of a case.

        Args:
            data: dictionary of the case.

        Returns:
            the same.
        """
        result = dict(data)
        path = label_map_path(self.output_dir, case_name(result))
        path.parent.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(result):
            self._save(result[key], filename=str(path).removesuffix(_SUFFIX))
        return result
