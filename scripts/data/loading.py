# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Load the volumes of a case and refuse what cannot be trained on."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapTransform
from monai.utils import CommonKeys

from ..errors import BundleError, is_out_of_memory, root_cause
from ..nifti import VOLUME_SUFFIXES, check_file, check_same_grid, check_volume, unfit_labels

_logger = logging.getLogger(__name__)


def check_grids(image_path: Path, label_path: Path) -> None:
    """Refuse a label on another grid than its image, by their headers alone.

    Args:
        image_path: NIfTI image.
        label_path: its label.

    Raises:
        BundleError: when the grids differ; names the file. What cannot be read is left to its loading.
    """
    try:
        files: list[Any] = [nib.load(path) for path in (label_path, image_path)]
    # As many ways to fail as there are readers.
    except Exception as error:
        _logger.debug("%s, %s: %s", image_path, label_path, error)
        return
    label, image = files
    _check_grid(label.shape[:3], image.shape[:3], label.affine, image.affine, str(label_path))


def check_cases(cases: Collection[Mapping[str, Any]], *, num_classes: int, in_channels: int = 1) -> None:
    """Read every image and label once, so that a damaged one is refused before the hours that the others take.

    Args:
        cases: dictionaries with the paths of a NIfTI image and its label.
        num_classes: see :class:`LoadCased`.
        in_channels: see :class:`LoadCased`.

    Raises:
        BundleError: for the first case that cannot be evaluated, see :class:`LoadCased`; names the file.
    """
    _logger.info("reading all %d cases first, as a damaged one would end what comes after", len(cases))
    keys = [CommonKeys.IMAGE, CommonKeys.LABEL]
    load = LoadCased(keys, num_classes=num_classes, in_channels=in_channels)
    for case in cases:
        load({key: str(case[key]) for key in keys})


def _check_grid(shape: Sequence[int], image_shape: Sequence[int], affine: Any, image_affine: Any, path: str) -> None:
    if tuple(shape) != tuple(image_shape):
        raise BundleError(f"{path} has shape {list(shape)}, but its image has {list(image_shape)}: they must agree.")
    check_same_grid(affine, image_affine, path)


class LoadCased(MapTransform):
    """Load volumes channel first, and check that they can be trained on.

    A label that lies on another grid than its image, or holds 255 where 1 is meant, would train silently.

    Args:
        keys: keys of the paths; those that a case does not have are left out.
        num_classes: classes with the background; a label holds 0 to num_classes - 1.
        in_channels: channels that an image must have.
    """

    def __init__(self, keys: KeysCollection, *, num_classes: int, in_channels: int = 1) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self._load = {key: Compose([LoadImaged(keys=key), EnsureChannelFirstd(keys=key)]) for key in self.keys}

    def __reduce__(self) -> tuple[Any, ...]:
        # Its options alone: the readers remember the last file, which would make two equal transforms differ.
        options = {name: getattr(self, name) for name in ("num_classes", "in_channels")}
        return partial(type(self), self.keys, **options), ()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load a case.

        Args:
            data: dictionary with paths.

        Returns:
            the dictionary with volumes (C, X, Y, Z) in the place of the paths.

        Raises:
            BundleError: when a file is no NIfTI, cannot be read, is not a volume, holds values that are not finite, or
                when a label does not fit its image or its classes; names the file.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            path = result[key]
            # MONAI reads other formats, too: NRRD in another space than that of its header.
            if not str(path).lower().endswith(VOLUME_SUFFIXES):
                raise BundleError(f"{path} must end in .nii.gz or .nii: `prepare folder` makes NIfTI of other formats.")
            try:
                # Before the readers, which fail at colors with words of their own.
                check_file(path, str(path))
                result = self._load[key](result)
            except BundleError:
                raise
            # Files fail in as many ways as there are readers.
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise BundleError(f"{path} cannot be read: {root_cause(error)}") from error
            check_volume(result[key], str(path), channels=1 if key == CommonKeys.LABEL else self.in_channels)
        if CommonKeys.LABEL in result and CommonKeys.IMAGE in result:
            self._check_label(result[CommonKeys.LABEL], result[CommonKeys.IMAGE], str(data[CommonKeys.LABEL]))
            result[CommonKeys.LABEL] = result[CommonKeys.LABEL].round()
            # A rounding must not turn the two to different axes, as it could near 45 degrees.
            result[CommonKeys.LABEL].affine = result[CommonKeys.IMAGE].affine
        return result

    def _check_label(self, label: MetaTensor, image: MetaTensor, path: str) -> None:
        _check_grid(label.shape[1:], image.shape[1:], label.affine, image.affine, path)
        unfit = unfit_labels(label.unique().numpy(), highest=self.num_classes - 1)
        if unfit.size:
            found = ", ".join(f"{value:.7g}" for value in unfit[:8].tolist())
            raise BundleError(
                f"{path} must hold whole numbers from 0 to {self.num_classes - 1} (num_classes {self.num_classes}), "
                f"got {found}{', ...' if len(unfit) > 8 else ''}."
            )
