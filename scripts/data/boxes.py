# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Boxes around what the labels of a data set show: written to boxes.json, read from it, cropped to."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop
from monai.transforms.croppad.dictionary import Cropd
from monai.transforms.utils import generate_spatial_bounding_box
from nibabel.affines import apply_affine

from ..errors import BundleError, one_line
from ..files import write_json
from ..nifti import read_nifti, rounded
from .loading import check_grids
from .splits import Split, is_inside, kind_of, read_json, read_split, require_dataset_dir, some_of

_logger = logging.getLogger(__name__)
#: Where a case has its box, ``[[x0, y0, z0], [x1, y1, z1]]`` in voxels of the file with exclusive ends.
BOX_KEY = "box"
BOXES_FILE_NAME = "boxes.json"
_NO_LABEL = "without a label file, or with an empty one, a box must be added by hand, or uses_boxes be set to false"
_BY_HAND = "mend it by hand, or move it away"
_FORM = "must hold [[x0, y0, z0], [x1, y1, z1]] with 0 <= start < stop"


class CropToBoxd(Cropd):
    """Crop volumes to the box of their case, widened by a margin; the box is in voxels of the file.

    The pancreas protocol of the literature crops every volume to the surroundings of its reference label. Here only
    the six numbers of the box come along, never the label, see :func:`write_boxes`. The transform
    may come after reorientation and resampling, since the box is mapped through the affine of the file.

    Args:
        keys: keys of the volumes.
        margin: voxels, of the volume at this point of the pipeline, by which the box grows on each side.
        allow_missing_keys: leave out keys that are not there.

    Raises:
        ValueError: when the margin is negative.
    """

    def __init__(self, keys: KeysCollection, *, margin: int = 25, allow_missing_keys: bool = True) -> None:
        if margin < 0:
            raise ValueError(f"margin must be at least 0 voxels, got {margin}.")
        super().__init__(keys, cropper=Crop(), allow_missing_keys=allow_missing_keys)
        self.margin = margin

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Crop the volumes of a case.

        Args:
            data: dictionary of the case with its box.
            lazy: not used: cropping is done at once.

        Returns:
            the dictionary with cropped volumes; their inverse is recorded.

        Raises:
            BundleError: when the case has no box, or one that ends beyond its volume.
        """
        result = dict(data)
        if BOX_KEY not in result:
            raise BundleError(
                f"uses_boxes needs a {BOX_KEY} for each case, which cases that are given as pairs do not have: "
                "crop the volumes beforehand, set uses_boxes to false, and have no crop of your own in a configuration."
            )
        volumes: dict[Hashable, MetaTensor] = {key: result[key] for key in self.key_iterator(result)}
        if volumes:
            # One crop for all: the affines of image and label may differ by a rounding, their crops must not.
            slices = self._slices(result, next(iter(volumes.values())))
            result |= {key: self.cropper(volume, slices=slices) for key, volume in volumes.items()}
        return result

    def _check_box(self, data: Mapping[Hashable, Any], volume: MetaTensor) -> None:
        stop, size = data[BOX_KEY][1], [int(length) for length in volume.meta["spatial_shape"]]
        if any(end > length for end, length in zip(stop, size, strict=False)):
            raise BundleError(
                f"the box of {data.get('case', 'a case')} ends at voxel {list(stop)}, but its volume has {size}: "
                "boxes.json is of another version of the data; python -m scripts boxes --overwrite true writes it "
                "anew, but for cases without a label or with an empty one, whose boxes are mended by hand."
            )

    def _slices(self, data: Mapping[Hashable, Any], volume: MetaTensor) -> tuple[slice, ...]:
        self._check_box(data, volume)
        box = np.asarray(data[BOX_KEY], dtype=float)
        original = np.asarray(volume.meta["original_affine"], dtype=float)
        to_here = np.linalg.inv(volume.affine.cpu().numpy()) @ original
        # Outer faces of the box: half a voxel beyond the centers of its first and last voxel.
        corners = apply_affine(to_here, np.stack([box[0] - 0.5, box[1] - 0.5]))
        size = np.asarray(volume.shape[1:])
        # A face on the border of a voxel must not take in the next one for a rounding of the affine.
        start = np.floor(corners.min(axis=0) + 0.5 + 1e-6).astype(int) - self.margin
        stop = np.ceil(corners.max(axis=0) + 0.5 - 1e-6).astype(int) + self.margin
        start, stop = np.clip(start, 0, size), np.clip(stop, 0, size)
        return tuple(Crop.compute_slices(roi_start=start.tolist(), roi_end=stop.tolist()))


def write_boxes(dataset_dir: str | Path, split_file: str | Path, overwrite: bool = False) -> Path:
    """Write the bounding box of every case's foreground to ``boxes.json`` in the data set's folder.

    This reads the **reference labels, those of unlabeled and of test cases too**, wherever a label file is there. It is
    how the pancreas protocol of the literature crops: every CT around its own reference label. Only the six numbers of
    a box reach the training, never a label; all the same they tell where the organ is, so results with boxes compare
    only to results with boxes. Cases without a label file, or with an empty one, keep the box that the file has, such
    as one that was added by hand, or get none; a warning names them.

    Args:
        dataset_dir: folder of the data set.
        split_file: path of the split file.
        overwrite: replace the boxes of cases with a label in a ``boxes.json`` that is already there.

    Returns:
        Path of ``boxes.json``: for each case id ``[[x0, y0, z0], [x1, y1, z1]]`` in voxels of the file as it is stored
        (before any reorientation), without margin, the stop exclusive.

    Raises:
        BundleError: when the file is already there, or it or a box in it that is kept is broken, no case has a label
            with foreground, or a label is broken or lies on another grid than its image.
    """
    dataset_path = Path(dataset_dir).expanduser()
    require_dataset_dir(dataset_path, Path(split_file).expanduser())
    split = read_split(split_file)
    boxes_path = dataset_path / BOXES_FILE_NAME
    if boxes_path.exists() and not overwrite:
        raise BundleError(f"{boxes_path} is already there; --overwrite true replaces the boxes of cases with a label.")
    present = _read_boxes(boxes_path, "overwrite") if boxes_path.exists() else {}
    boxes: dict[str, list[list[int]]] = {}
    problems = []
    for case in split.all_cases():
        label_path = dataset_path / split.label_path(case)
        if not is_inside(label_path, dataset_path):
            problems.append(f"{case} (its label leads out of the folder)")
        elif label_path.is_file():
            try:
                image_path = dataset_path / split.image_path(case)
                check_grids(image_path, label_path)
                if box := _foreground_box(label_path):
                    boxes[case] = box
            except Exception as error:  # a broken file makes nibabel raise errors of a dozen unrelated classes
                problems.append(f"{case} ({one_line(error)})")
    if problems:
        raise BundleError(f"dataset_dir: no box can be made in {dataset_path} of {some_of(problems)}.")
    if not boxes:
        raise BundleError(
            f"dataset_dir: no case of {split_file} has a label {split.label} with foreground in {dataset_path}."
        )
    boxes = present | boxes
    broken = [case for case, box in boxes.items() if not _is_box(box)]
    if broken:
        raise BundleError(f"overwrite: {boxes_path} {_FORM}, but does not for {some_of(broken)}: {_BY_HAND}.")
    write_json(boxes_path, boxes)
    without = [case for case in split.all_cases() if case not in boxes]
    if without:
        _logger.warning("%s has no box of %s: %s.", boxes_path, some_of(without), _NO_LABEL)
    return boxes_path


def read_boxes(dataset_path: Path, split: Split, cases: Sequence[str]) -> dict[str, list[list[int]]]:
    """Read the boxes of cases, as :func:`write_boxes` wrote them.

    Args:
        dataset_path: folder of the data set.
        split: the split, for the message.
        cases: ids of the cases.

    Returns:
        the box of each.

    Raises:
        BundleError: when the file is missing, or broken, or has no box of one of these cases.
    """
    boxes_path = dataset_path / BOXES_FILE_NAME
    command = f"python -m scripts boxes --dataset_dir {dataset_path} --split_file {split.path}"
    remedy = f"`{command}{' --overwrite true' * boxes_path.exists()}` writes it"
    if not boxes_path.is_file():
        raise BundleError(f"uses_boxes: {boxes_path} not found; {remedy}.")
    boxes = _read_boxes(boxes_path, "uses_boxes")
    without = [case for case in cases if case not in boxes]
    has_label = {case: (dataset_path / split.label_path(case)).is_file() for case in cases}
    unlabeled = [case for case in without if not has_label[case]]
    if unlabeled:
        raise BundleError(f"uses_boxes: {boxes_path} has no box of {some_of(unlabeled)}: {_NO_LABEL}.")
    if without:
        raise BundleError(f"uses_boxes: {boxes_path} has no box of {some_of(without)}; {remedy}; {_NO_LABEL}.")
    broken = [case for case in cases if not _is_box(boxes[case])]
    if broken:
        by_hand = [case for case in broken if not has_label[case]]
        named, remedy = (by_hand, _BY_HAND) if by_hand else (broken, remedy)
        raise BundleError(f"uses_boxes: {boxes_path} {_FORM}, but does not for {some_of(named)}; {remedy}.")
    return boxes


def _read_boxes(boxes_path: Path, argument: str) -> dict[str, Any]:
    boxes = read_json(boxes_path, argument)
    if not isinstance(boxes, dict):
        raise BundleError(f"{argument}: {boxes_path} must be a JSON object of boxes, got {kind_of(boxes)}: {_BY_HAND}.")
    return boxes


def _is_box(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 2):
        return False
    if not all(isinstance(corner, list) and len(corner) == 3 for corner in value):
        return False
    if not all(type(number) is int for corner in value for number in corner):
        return False
    return all(0 <= start < stop for start, stop in zip(*value, strict=True))


def _foreground_box(label_path: Path) -> list[list[int]] | None:
    label = np.asanyarray(read_nifti(label_path).dataobj)
    if label.ndim != 3:
        raise ValueError(f"its label must be 3D, got shape {label.shape}")
    start, stop = generate_spatial_bounding_box(rounded(label)[None])
    if not any(stop):
        return None
    return [[int(number) for number in start], [int(number) for number in stop]]
