# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The files that an inference writes: checked before it, and looked for when it goes on."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.utils.misc import str2bool

from ..errors import BundleError
from ..files import check_writable
from ..nifti import VOLUME_SUFFIXES, check_capitals, tell_of_others, volume_name

_OTHER_MAPS = ("probabilities", "uncertainty")
_POSTFIX = re.compile(r"[\w.+-]+")
_logger = logging.getLogger(__name__)


class InferenceMaps:
    """The maps that an inference writes into one folder, a label map and the wanted others for each volume.

    The volumes themselves are never replaced: the maps go to another folder. Nothing is looked at before a method is
    called.

    Args:
        output_dir: where the label maps will be written, as ``<case>_<output_postfix><output_ext>``.
        output_postfix: see there; not one of the names of the other maps.
        output_ext: ending of all maps, ``.nii.gz`` or ``.nii``.
        save_probabilities: whether ``<case>_probabilities`` will be written too.
        save_uncertainty: whether ``<case>_uncertainty`` will be written too.
        overwrite: replace maps that are there already.
        skip_existing: leave out volumes whose maps are there already, see :meth:`unfinished`.
        weights_file: file of the weights; maps that are older are warned of, as they are of others.
    """

    def __init__(
        self,
        output_dir: str,
        *,
        output_postfix: str = "seg",
        output_ext: str = ".nii.gz",
        save_probabilities: bool | str = False,
        save_uncertainty: bool | str = False,
        overwrite: bool | str = False,
        skip_existing: bool | str = False,
        weights_file: str | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.output_postfix = output_postfix
        self.output_ext = output_ext
        self.save_probabilities = save_probabilities
        self.save_uncertainty = save_uncertainty
        self.overwrite = overwrite
        self.skip_existing = skip_existing
        self.weights_file = weights_file

    def check(self, datalist: Sequence[str], dataset_dir: str) -> None:
        """Make sure that there are volumes to segment, and that writing their maps replaces no file unasked.

        Args:
            datalist: paths of the volumes.
            dataset_dir: where they were looked for: a folder (its subfolders are not searched), or one NIfTI file.

        Raises:
            BundleError: when an option is not allowed, there is no volume, one is overlooked for the capitals of its
                name, two volumes have one name, the output folder is that of the volumes, or a map would be
                overwritten.
        """
        if str2bool(self.overwrite) and str2bool(self.skip_existing):
            raise BundleError("overwrite and skip_existing exclude each other: give one of them.")
        _check_names(self.output_postfix, self.output_ext)
        volumes = _volumes(datalist, dataset_dir)
        if Path(dataset_dir).resolve() in {path.parent.resolve() for path in volumes}:
            tell_of_others("dataset_dir", Path(dataset_dir), known=[self.output_dir, *volumes])
        self._check_output_dir(volumes)
        self._check_targets(volumes)

    def unfinished(self, data: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Leave out the volumes that an earlier run of the same inference has segmented, with ``skip_existing``.

        Args:
            data: dictionaries with the path of a volume under "image".

        Returns:
            those of which a map is missing, or cannot be read, as one that was being written when the run stopped;
            all without ``skip_existing``.
        """
        if not str2bool(self.skip_existing):
            return list(data)
        unfinished, finished = [], []
        for item in data:
            maps = [self.output_dir / name for name in self._names(item["image"])]
            if all(map(_is_readable, maps)):
                finished += maps
            else:
                unfinished.append(item)
        _logger.info("%d of %d volumes have their maps already.", len(data) - len(unfinished), len(data))
        self._warn_of_other_weights(finished)
        return unfinished

    def _warn_of_other_weights(self, maps: Sequence[Path]) -> None:
        if self.weights_file is None or not os.path.isfile(self.weights_file):
            return
        written = os.stat(self.weights_file).st_mtime_ns
        older = [path for path in maps if path.stat().st_mtime_ns < written]
        if older:
            _logger.warning(
                "output_dir %s: %d of the maps that are there, such as %s, are older than the weights %s: if they "
                "are of others, make all anew by --overwrite true in the place of --skip_existing.",
                self.output_dir,
                len(older),
                older[0].name,
                self.weights_file,
            )

    def _check_output_dir(self, volumes: Sequence[Path]) -> None:
        check_writable("output_dir", self.output_dir)
        if self.output_dir.resolve() in {path.parent.resolve() for path in volumes}:
            raise BundleError(
                f"output_dir must be another folder than that of the volumes, got {self.output_dir} for both: "
                "the maps would mix with the volumes."
            )

    def _check_targets(self, volumes: Sequence[Path]) -> None:
        targets: dict[str, Path] = {}
        for path in volumes:
            for name in self._names(path):
                other = targets.setdefault(name, path)
                if other != path:
                    raise BundleError(f"{other.name} and {path.name} would both write {name}: rename one of them.")
        taken = [name for name in targets if os.path.lexists(self.output_dir / name)]
        # A link in the output folder may lead back to a volume, which even overwrite must not replace.
        originals = {path.resolve() for path in volumes}
        linked = [name for name in taken if (self.output_dir / name).resolve() in originals]
        if linked:
            raise BundleError(f"output_dir {self.output_dir}: {linked[0]} is a link to one of the volumes.")
        self.refuse_taken(taken)

    def refuse_taken(self, names: Sequence[str]) -> None:
        """Refuse to write over files that are there, unless an option says what becomes of them.

        Args:
            names: those of them that are there.

        Raises:
            BundleError: where there is one, and neither overwrite nor skip_existing is set.
        """
        if names and not str2bool(self.overwrite) and not str2bool(self.skip_existing):
            raise BundleError(
                f"output_dir {self.output_dir} already holds {len(names)} of the files to write, such as {names[0]}: "
                "go on with the others by --skip_existing true, if they are of the same weights and options, replace "
                "them by --overwrite true, or choose another --output_dir."
            )

    def _names(self, volume: str | Path) -> list[str]:
        wanted = zip(_OTHER_MAPS, (self.save_probabilities, self.save_uncertainty), strict=True)
        postfixes = [self.output_postfix, *(name for name, option in wanted if str2bool(option))]
        return [f"{volume_name(volume)}_{postfix}{self.output_ext}" for postfix in postfixes]


def _volumes(datalist: Sequence[str], dataset_dir: str) -> list[Path]:
    unfit = [volume for volume in datalist if not str(volume).endswith(VOLUME_SUFFIXES)]
    if unfit:
        raise BundleError(f"datalist must hold paths that end in .nii.gz or .nii, got {unfit[0]}.")
    check_capitals("dataset_dir", Path(dataset_dir))
    if not datalist and not Path(dataset_dir).exists():
        raise BundleError(f"dataset_dir {dataset_dir} does not exist: it must be a NIfTI file or a folder of them.")
    if not datalist:
        raise BundleError(f"dataset_dir {dataset_dir} holds no volume: files that end in .nii.gz or .nii are expected.")
    return [Path(volume) for volume in datalist]


def _is_readable(path: Path) -> bool:
    try:
        volume: Any = nib.load(path)
        np.asanyarray(volume.dataobj)
    # A file that is missing or cut fails in many ways.
    except Exception:
        return False
    return True


def _check_names(output_postfix: Any, output_ext: Any) -> None:
    if output_ext not in VOLUME_SUFFIXES:
        raise BundleError(f"output_ext must be {' or '.join(VOLUME_SUFFIXES)}, got {output_ext!r}.")
    # A number is refused as well: the writer takes 0 for no postfix.
    if not isinstance(output_postfix, str) or not _POSTFIX.fullmatch(output_postfix):
        raise BundleError(
            f"output_postfix must be a string of letters, digits and any of . _ + -, got {output_postfix!r}."
        )
    if output_postfix.lower() in _OTHER_MAPS:
        raise BundleError(
            f"output_postfix must not be {' or '.join(_OTHER_MAPS)}, the names of the other maps, "
            f"got {output_postfix!r}."
        )
