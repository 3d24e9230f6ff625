# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of the contrast between tissues."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandHistogramShift, RandomizableTransform
from monai.transforms.utils_pytorch_numpy_unification import percentile
from monai.utils import CommonKeys

#: Percentiles of the gray values between which the curve has its points; values outside have the ends of the curve.
_ENDS = (0.5, 99.5)


class RandContrastCurved(RandomizableTransform, MapTransform):
    """Map the gray values of an image by a random curve, so that dark tissue can come out bright and the other way.

    The curve is linear between points with equal distances over the gray values and random heights; it need not rise.
    Mean and standard deviation of each channel stay. So networks learn to find an organ by its shape and borders where
    a scan of another protocol or time after the contrast agent has other gray values.
    ``monai.transforms.RandIntensityRemap`` is alike, but has no dictionary form, smooths its curve over numbers of
    distinct gray values, which normalized images have too many of, and draws it from a generator that no seed of a
    training reaches.

    Args:
        keys: keys of the images, (C, X, Y, Z); all of a dictionary and all channels get the same heights.
        prob: probability of a curve.
        num_points: points of the curve, at least 2.
        allow_missing_keys: whether a dictionary may lack some of the keys.

    Raises:
        ValueError: when num_points is less than 2.
    """

    def __init__(
        self,
        keys: KeysCollection = CommonKeys.IMAGE,
        *,
        prob: float = 0.1,
        num_points: int = 6,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if num_points < 2:
            raise ValueError(f"num_points must be at least 2, got {num_points}.")
        self.num_points = num_points
        self._interpolate = RandHistogramShift().interp

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Map the images of a dictionary, or leave them as they are.

        Args:
            data: dictionary with tensors of real numbers.

        Returns:
            the dictionary with the mapped images.
        """
        result = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return result
        heights = torch.as_tensor(self.R.uniform(size=self.num_points))
        for key in self.key_iterator(result):
            result[key] = torch.stack([self._mapped(channel, heights) for channel in result[key]])
        return result

    def _mapped(self, image: torch.Tensor, heights: torch.Tensor) -> torch.Tensor:
        low, high = (float(percentile(image, end)) for end in _ENDS)
        if low == high:
            return image
        mapped: Any = self._interpolate(image, torch.linspace(low, high, self.num_points).to(image), heights.to(image))
        return (mapped - mapped.mean()) / mapped.std() * image.std() + image.mean()
