# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Whole scans with networks that were trained on crops: the organ is found first, then segmented as in a crop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import CommonKeys
from monai.utils.type_conversion import convert_to_dst_type
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from .data.geometry import is_larger_than_trained, patient_axes

#: A box of voxels: a slice for each axis.
Region = tuple[slice, ...]
#: How large a piece must be, of the largest one, to be an organ and no mistake.
_LEAST_SHARE = 0.5
_logger = logging.getLogger(__name__)


class OrganInferer(Inferer):
    """Finds the organ in a scan that is larger than the volumes of the training, and segments its surroundings alone.

    Where all volumes of a training are crops around the organ, gray values are normalized over its surroundings, and
    the network has seen nothing else. On a whole scan both differ. So windows, each normalized by itself, find the
    organ; the box around it, with the margin that the volumes of the training have, is normalized and segmented; and
    once more with the box around what that has found. What is beyond is background.

    Pieces of at least half the size of the largest one are organs of their own, so that neither of two is lost; boxes
    that overlap are joined.

    Args:
        inferer: segments a volume of the training's size, and the boxes at last.
        window_inferer: segments by windows, each of which it gives to the network.
        num_classes: classes with the background, the first channels that the network predicts.
        trained_extent: the largest extent in mm, along x, y and z, of the volumes of the training; larger is what
            :func:`scripts.data.geometry.is_larger_than_trained` says.
        trained_margin: from the organ to the border of these volumes in mm, along x, y and z.
        normalize: normalizes the volume under "image" of a dictionary, as the preprocessing does; None leaves the gray
            values as they are.
    """

    def __init__(
        self,
        inferer: Inferer,
        window_inferer: Inferer,
        *,
        num_classes: int,
        trained_extent: Sequence[float],
        trained_margin: Sequence[float],
        normalize: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.window_inferer = window_inferer
        self.num_classes = num_classes
        self.trained_extent = trained_extent
        self.trained_margin = np.asarray(trained_margin)
        self.normalize = normalize

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Predict a volume.

        Args:
            inputs: one volume with its affine, (1, C, X, Y, Z).
            network: predicts probabilities, the background first, (B, C', X, Y, Z).
            *args: handed to the network.
            **kwargs: handed to the network.

        Returns:
            probabilities, (1, C', X, Y, Z); beyond the boxes 1 for the background and 0 for the rest.

        Raises:
            ValueError: when it is not one volume with its affine.
        """
        if len(inputs) != 1 or not isinstance(inputs, MetaTensor):
            raise ValueError(f"inputs must be one volume with its affine, got {type(inputs)} {tuple(inputs.shape)}.")
        affine = inputs.affine.reshape(4, 4).cpu().numpy()
        if not is_larger_than_trained(affine, inputs.shape[2:], self.trained_extent):
            return self.inferer(inputs, network, *args, **kwargs)
        scan = inputs.as_tensor()
        # Along the axes of the array.
        margin = np.empty(3)
        margin[patient_axes(affine)] = self.trained_margin
        margin_voxels = np.ceil(margin / voxel_sizes(affine)).astype(int)

        def predict(volume: torch.Tensor) -> torch.Tensor:
            return network(volume, *args, **kwargs)

        found = self.window_inferer(scan, lambda windows: predict(self._normalized(windows)))
        for infer in (self.window_inferer, self.inferer):
            regions = self._regions(found, margin_voxels)
            if not regions:
                _logger.warning("no organ was found to crop to: the volume is segmented as it is.")
                return self.inferer(inputs, network, *args, **kwargs)
            found = self._predict_regions(scan, regions, infer, predict)
        sizes = ", ".join("x".join(str(side.stop - side.start) for side in region) for region in regions)
        _logger.info("cropped to %s of %s voxels", sizes, "x".join(map(str, scan.shape[2:])))
        return convert_to_dst_type(found, inputs, device=found.device)[0]

    def _normalized(self, volumes: torch.Tensor) -> torch.Tensor:
        if self.normalize is None:
            return volumes
        # MONAI's transform writes into what it is given.
        return torch.stack([self.normalize({CommonKeys.IMAGE: volume.clone()})[CommonKeys.IMAGE] for volume in volumes])

    def _regions(self, found: torch.Tensor, margin_voxels: NDArray[np.intp]) -> list[Region]:
        return organ_regions(found[0, : self.num_classes].argmax(dim=0).cpu().numpy() > 0, margin_voxels)

    def _predict_regions(
        self, scan: torch.Tensor, regions: Sequence[Region], infer: Inferer, network: Callable[[torch.Tensor], Any]
    ) -> torch.Tensor:
        result: torch.Tensor | None = None
        for region in regions:
            place = (slice(None), slice(None), *region)
            predicted = infer(self._normalized(scan[place]), network)
            if result is None:
                result = predicted.new_zeros((*predicted.shape[:2], *scan.shape[2:]))
                result[:, 0] = 1
            result[place] = predicted
        assert result is not None
        return result


def organ_regions(foreground: NDArray[np.bool_], margin: Sequence[int] | NDArray[np.intp]) -> list[Region]:
    """Put a box around each organ.

    Args:
        foreground: where the network has found one, (X, Y, Z).
        margin: voxels along each axis by which a box grows on both sides, as far as the volume goes.

    Returns:
        boxes without a common voxel, around all pieces that have at least half the voxels of the largest.
    """
    pieces, _ = ndimage.label(foreground, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())[1:]
    regions: list[Region] = []
    for box, size in zip(ndimage.find_objects(pieces), sizes, strict=True):
        if size < _LEAST_SHARE * sizes.max():
            continue
        region = tuple(
            slice(max(0, side.start - more), min(length, side.stop + more))
            for side, more, length in zip(box, map(int, margin), foreground.shape, strict=True)
        )
        # The box of two may reach into a third.
        while joined := [other for other in regions if _overlap(region, other)]:
            regions = [other for other in regions if other not in joined]
            region = _around([region, *joined])
        regions.append(region)
    return regions


def _overlap(first: Region, second: Region) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))


def _around(regions: Sequence[Region]) -> Region:
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*regions, strict=True)
    )
