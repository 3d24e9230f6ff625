# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Whole scans with networks that were trained on crops: the organ is found first, then segmented as in a crop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import NormalizeIntensity
from monai.utils import ImageMetaKey, convert_to_dst_type, convert_to_tensor
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from .data.geometry import is_larger_than_trained, patient_axes

#: A box of voxels: a slice for each axis.
Region = tuple[slice, ...]
#: How much evidence a piece must have, of that with most of it, to be an organ and no mistake.
_LEAST_SHARE = 0.5
_logger = logging.getLogger(__name__)


class OrganInferer(Inferer):
    """Finds the organ in a scan that is larger than the volumes of the training, and segments its surroundings alone.

    Where all volumes of a training are crops around the organ, gray values are normalized over its surroundings, and
    the network has seen nothing else. On a whole scan both differ. So windows, each normalized by itself, find the
    organ; the box around it, with the margin that the volumes of the training have, is normalized and segmented; and
    once more with the box around what that has found. What is beyond is background. Where nothing is found, by the
    windows or in the first box, the scan is segmented as it is.

    Networks of crops draw an organ into any surroundings, but are surer of one that is there. The evidence of a piece
    is how much more likely it is than the background, summed over its voxels. Of the pieces with at least half as much
    of it as the one with most, the box is around the surest: that with most evidence a voxel. Around others, too, that
    have at least half as much evidence of a class as the piece with most of it, if the box is no larger than the
    volumes of the training; what does not fit is another organ, where more than one is asked for. Where boxes overlap,
    that of the surest piece counts.

    Args:
        inferer: segments a volume of the training's size, and the boxes at last.
        window_inferer: segments by windows, each of which it gives to the network.
        num_classes: classes with the background, the first channels that the network predicts.
        trained_extent: the largest extent in mm, along x, y and z, of the volumes of the training; larger is what
            :func:`scripts.data.geometry.is_larger_than_trained` says.
        trained_margin: from the organ to the border of these volumes in mm, along x, y and z.
        num_organs: boxes at most.
        normalize: what the preprocessing normalizes with; None leaves the gray values as they are, as does one by
            numbers that are given.

    Raises:
        ValueError: when it normalizes otherwise than by mean and deviation: the second time that would be another one.
    """

    def __init__(
        self,
        inferer: Inferer,
        window_inferer: Inferer,
        *,
        num_classes: int,
        trained_extent: Sequence[float],
        trained_margin: Sequence[float],
        num_organs: int = 1,
        normalize: Any = None,
    ) -> None:
        super().__init__()
        self.inferer = inferer
        self.window_inferer = window_inferer
        self.num_classes = num_classes
        self.trained_extent = trained_extent
        self.trained_margin = trained_margin
        self.num_organs = num_organs
        self.normalizer = None if normalize is None else _volume_normalizer(normalize)

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
        scan, name = inputs.as_tensor(), _file_of(inputs)
        margin, largest = (_in_voxels(length, affine) for length in (self.trained_margin, self.trained_extent))

        def predict(volume: torch.Tensor) -> torch.Tensor:
            return network(volume, *args, **kwargs)

        found = self.window_inferer(scan, lambda windows: predict(self._normalized(windows)))
        for infer in (self.window_inferer, self.inferer):
            label_map = found[0, : self.num_classes].argmax(dim=0).byte().cpu().numpy()
            evidence = (1 - 2 * found[0, 0].float()).cpu().numpy()
            # As large as the scan for every class.
            del found
            regions = organ_regions(label_map, evidence, margin, largest, self.num_organs)
            if not regions:
                _logger.warning("%s: no organ was found to crop to, it is segmented as it is: check the result.", name)
                return self.inferer(inputs, network, *args, **kwargs)
            found = self._predict_regions(scan, regions, infer, predict)
        boxes = ", ".join("x".join(f"{side.start}-{side.stop}" for side in region) for region in regions)
        size = "x".join(map(str, scan.shape[2:]))
        # Something else may look like it.
        _logger.warning("%s: cropped to voxels %s of %s: check that it is the organ.", name, boxes, size)
        # Whoever brings it back to the grid of the file asks it where it is from.
        origin = MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
        return convert_to_dst_type(found, origin, device=found.device)[0]

    def _normalized(self, volumes: torch.Tensor) -> torch.Tensor:
        if self.normalizer is None:
            return volumes
        # MONAI's transform writes into what it is given.
        normalized = [self.normalizer(volume.clone()) for volume in volumes]
        return torch.stack([convert_to_tensor(volume, track_meta=False) for volume in normalized])

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


def _volume_normalizer(transform: Any) -> NormalizeIntensity | None:
    """Take what normalizes a volume by its own mean and deviation; None where both are given."""
    normalizer = getattr(transform, "normalizer", None)
    if isinstance(normalizer, NormalizeIntensity):
        given = [number is not None for number in (normalizer.subtrahend, normalizer.divisor)]
        if not any(given):
            return normalizer
        if all(given):
            return None
    raise ValueError(
        "crop_to_organs needs normalize to be NormalizeIntensityd with both subtrahend and divisor or without, or "
        f"switched off, got {type(transform).__name__}."
    )


def _file_of(volume: MetaTensor) -> str:
    """Take the file that a batch of one volume is from."""
    file = volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "a volume")
    return str(file[0] if isinstance(file, list) else file)


def _in_voxels(lengths: Sequence[float], affine: NDArray[np.float64]) -> NDArray[np.intp]:
    """Turn mm along x, y and z of the patient into voxels along the axes of the array."""
    along_axes = np.empty(3)
    along_axes[patient_axes(affine)] = lengths
    return np.ceil(along_axes / voxel_sizes(affine)).astype(int)


def organ_regions(
    label_map: NDArray[Any],
    evidence: NDArray[Any],
    margin: Sequence[int] | NDArray[np.intp],
    largest: Sequence[int] | NDArray[np.intp],
    num_organs: int = 1,
) -> list[Region]:
    """Put boxes around the organs of a scan.

    Args:
        label_map: class indices that the network has found, (X, Y, Z).
        evidence: how much more likely the foreground is than the background, (X, Y, Z).
        margin: voxels along each axis by which a box grows on both sides, as far as the volume goes.
        largest: voxels along each axis of the largest box around several pieces.
        num_organs: boxes at most.

    Returns:
        boxes around pieces that have at least half as much evidence of a class as the piece with most of it; at last
        the surest of those that have at least half as much of all.
    """
    pieces, number = ndimage.label(label_map, structure=np.ones((3, 3, 3)))
    found = [label_map == index for index in np.unique(label_map) if index > 0]
    if not found:
        return []
    sums = [np.bincount(pieces[mask], evidence[mask], minlength=number + 1)[1:] for mask in found]
    kept = np.any([(of_class > 0) & (of_class >= _LEAST_SHARE * of_class.max()) for of_class in sums], axis=0)
    boxes = ndimage.find_objects(pieces)
    evident = np.sum(sums, axis=0)
    small = evident < _LEAST_SHARE * evident.max()
    sureness = evident / np.bincount(pieces.ravel())[1:]
    order = np.lexsort((-evident, -sureness, small))
    regions: list[Region] = []
    for piece in order[kept[order]]:
        region = tuple(
            slice(max(0, side.start - more), min(length, side.stop + more))
            for side, more, length in zip(boxes[piece], map(int, margin), label_map.shape, strict=True)
        )
        for place, other in enumerate(regions):
            both = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(region, other, strict=True))
            if all(side.stop - side.start <= length for side, length in zip(both, largest, strict=True)):
                regions[place] = both
                break
        else:
            if len(regions) < num_organs:
                regions.append(region)
    return regions[::-1]
