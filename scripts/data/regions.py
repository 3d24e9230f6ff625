# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Random crops of a training: their place is chosen first, augmentation sees their surroundings alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, MapTransform, Randomizable
from monai.utils import CommonKeys
from monai.utils.misc import str2bool
from nibabel.affines import apply_affine

from ..errors import BundleError

#: Where a case has the middle of its crop, in mm, between the two transforms.
_PLACE = "crop_place"


class RandRegiond(Randomizable, MapTransform):
    """Choose the place of a crop, and cut out its surroundings, as far as the volume has them.

    Without a ``foreground_share`` every place is as likely, and the same state of the random generator chooses the same
    place as ``monai.transforms.RandSpatialCropd``. With one, this share of the crops holds a random voxel of a random
    foreground class of the case, at any place within the crop. Without a random center the crop is always the middle of
    the volume, as that of ``monai.transforms.CenterSpatialCropd``.

    Args:
        keys: keys of the volumes, which lie on one grid.
        patch_size: voxels of the crop, X, Y, Z; fewer where a volume is smaller.
        region_size: voxels of the surroundings with the crop in their middle, X, Y, Z; at least those of the crop.
        foreground_share: at least 0 and below 1; cases without foreground have none.
        random_center: whether the place is random, as that of RandSpatialCropd; a text like "true" is understood.

    Raises:
        ValueError: when the region is smaller than the crop, or a share of crops is given that are all the same.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        patch_size: Sequence[int],
        region_size: Sequence[int],
        foreground_share: float = 0.0,
        random_center: bool | str = True,
    ) -> None:
        super().__init__(keys)
        if any(region < size for region, size in zip(region_size, patch_size, strict=True)):
            raise ValueError(f"region_size must be at least patch_size {list(patch_size)}, got {list(region_size)}.")
        self.random_center = str2bool(random_center)
        if foreground_share and not self.random_center:
            raise ValueError(f"foreground_share must be 0 without a random center, got {foreground_share}.")
        self.patch_size = np.asarray(patch_size)
        self.margin = (np.asarray(region_size) - self.patch_size) // 2
        self.foreground_share = foreground_share
        self._crop = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut the surroundings of a random crop out of each volume of a case.

        Args:
            data: dictionary of the case.

        Returns:
            the dictionary with the regions, and with the place of the crop for :class:`CropRegiond`.
        """
        result = dict(data)
        volume: MetaTensor = result[self.first_key(result)]
        shape = np.asarray(volume.shape[1:])
        size = np.minimum(self.patch_size, shape)
        start = self._choose(shape, size, result.get(CommonKeys.LABEL))
        result[_PLACE] = apply_affine(volume.affine.cpu().numpy(), start + (size - 1) / 2)
        # Moved inwards at the border, where it would be too short for a quarter turn of a patch that is no cube.
        region = np.minimum(self.patch_size + 2 * self.margin, shape)
        first = np.clip(start - self.margin, 0, shape - region)
        slices = self._crop.compute_slices(roi_start=first.tolist(), roi_end=(first + region).tolist())
        return result | {key: self._crop(result[key], slices=slices) for key in self.key_iterator(result)}

    def _choose(self, shape: npt.NDArray[Any], size: npt.NDArray[Any], label: Any) -> npt.NDArray[Any]:
        if not self.random_center:
            return shape // 2 - size // 2
        lowest, highest = np.zeros_like(shape), shape - size
        if self.foreground_share and self.R.random() < self.foreground_share:
            classes = np.asarray(label[0], dtype=np.uint8)
            # Slice by slice, as it counts in eight bytes a voxel.
            counts = np.sum([np.bincount(voxels.ravel(), minlength=256) for voxels in classes], axis=0)
            present = np.flatnonzero(counts[1:]) + 1
            if present.size:
                index = self.R.choice(present)
                number = self.R.randint(counts[index])
                voxel = np.array(np.unravel_index(np.flatnonzero(classes == index)[number], shape))
                lowest, highest = np.maximum(voxel - size + 1, 0), np.minimum(voxel, highest)
        # Drawn for the axes alone where there is a choice, as MONAI does.
        return np.array([self.R.randint(low, high + 1) if high > low else low for low, high in zip(lowest, highest)])


class CropRegiond(MapTransform):
    """Cut the crop out of its surroundings, at the place where augmentation has moved it.

    The place is found again by the affine of the volume, which the spatial transforms of MONAI keep.

    Args:
        keys: keys of the volumes.
        patch_size: voxels of the crop, X, Y, Z; fewer where a volume is smaller.
    """

    def __init__(self, keys: KeysCollection, *, patch_size: Sequence[int]) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.patch_size = np.asarray(patch_size)
        self._crop = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop the volumes of a case.

        Args:
            data: what :class:`RandRegiond` gave, after augmentation.

        Returns:
            the dictionary with the crops.

        Raises:
            BundleError: when no :class:`RandRegiond` came before.
        """
        result = dict(data)
        if _PLACE not in result:
            raise BundleError("CropRegiond needs a RandRegiond before it: train#preprocessing must hold train#region.")
        place = result.pop(_PLACE)
        volume: MetaTensor = result[self.first_key(result)]
        shape = np.asarray(volume.shape[1:])
        size = np.minimum(self.patch_size, shape)
        middle = apply_affine(np.linalg.inv(volume.affine.cpu().numpy()), place)
        start = np.clip(np.rint(middle - (size - 1) / 2).astype(int), 0, shape - size)
        slices = self._crop.compute_slices(roi_start=start.tolist(), roi_end=(start + size).tolist())
        return result | {key: self._crop(result[key], slices=slices) for key in self.key_iterator(result)}
