# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Crop a volume to a box that is known of its case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop
from monai.transforms.croppad.dictionary import Cropd

from ..errors import BundleError


#: Where a case has its box, ``[[x0, y0, z0], [x1, y1, z1]]`` in voxels of the file with exclusive ends.
BOX_KEY = "box"


class CropToBoxd(Cropd):
    """Crop volumes to the box of their case, widened by a margin; the box is in voxels of the file.

    The pancreas protocol of the literature crops every volume to the surroundings of its reference label. Here only
    the six numbers of the box come along, never the label, see :func:`scripts.data.splits.write_boxes`. The transform
    may come after reorientation and resampling, since the box is mapped through the affine of the file.

    Args:
        keys: keys of the volumes.
        margin: voxels, of the volume at this point of the pipeline, by which the box grows on each side.
        allow_missing_keys: leave out keys that are not there.

    Raises:
        ValueError: when the margin is negative.
    """

    def __init__(
        self, keys: KeysCollection, *, margin: int = 25, allow_missing_keys: bool = True
    ) -> None:
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
        """
        result = dict(data)
        if BOX_KEY not in result:
            raise BundleError(
                f"uses_boxes needs a {BOX_KEY} for each case, which cases that are given as pairs do not have: "
                "crop the volumes beforehand and set uses_boxes to false and crop#_disabled_ to true."
            )
        for key in self.key_iterator(result):
            volume: MetaTensor = result[key]
            self._check_box(result, volume)
            start, stop = self._map(np.asarray(result[BOX_KEY], dtype=float), volume)
            slices = Crop.compute_slices(roi_start=start.tolist(), roi_end=stop.tolist())
            result[key] = self.cropper(volume, slices=slices)
        return result

    def _check_box(self, data: Mapping[Hashable, Any], volume: MetaTensor) -> None:
        stop, size = data[BOX_KEY][1], [int(length) for length in volume.meta["spatial_shape"]]
        if any(end > length for end, length in zip(stop, size, strict=False)):
            raise BundleError(
                f"the box of {data.get('case', 'a case')} ends at voxel {list(stop)}, but its volume has {size}: "
                "boxes.json is of another version of the data; write it anew by python -m scripts boxes."
            )

    def _map(self, box: np.ndarray, volume: MetaTensor) -> tuple[np.ndarray, np.ndarray]:
        original = np.asarray(volume.meta["original_affine"], dtype=float)
        to_here = np.linalg.inv(volume.affine.cpu().numpy()) @ original
        # Outer faces of the box: half a voxel beyond the centers of its first and last voxel.
        corners = nib.affines.apply_affine(to_here, np.stack([box[0] - 0.5, box[1] - 0.5]))
        size = np.asarray(volume.shape[1:])
        start = np.floor(corners.min(axis=0) + 0.5).astype(int) - self.margin
        stop = np.ceil(corners.max(axis=0) + 0.5 - 1e-6).astype(int) + self.margin
        return np.clip(start, 0, size), np.clip(stop, 0, size)
