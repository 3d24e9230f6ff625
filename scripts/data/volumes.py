# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Volumes to segment: checked before a run, read one by one, a bad one reported and passed over."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader
from monai.transforms import Compose, SaveImaged
from monai.utils import MetaKeys
from monai.utils.misc import str2bool
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import BundleError, root_cause
from ..nifti import WholeFiles, check_geometry

VOLUME_SUFFIXES = (".nii.gz", ".nii")
_OTHER_MAPS = ("probabilities", "uncertainty")
_POSTFIX = re.compile(r"[\w.+-]+")
#: How many times larger or smaller than in the training voxels may be without a warning.
_MAX_SPACING_RATIO = 1.25
#: How many times larger than in the training a volume may be along an axis without a warning.
_MAX_EXTENT_RATIO = 1.5
#: About how many headers tell of a training.
_NUM_HEADERS = 250
_logger = logging.getLogger(__name__)


def case_name(path: Path) -> str:
    """Strip the folder and the NIfTI suffix of a file.

    Args:
        path: path of a NIfTI file.

    Returns:
        its name without ".nii" or ".nii.gz".
    """
    return next((path.name[: -len(suffix)] for suffix in VOLUME_SUFFIXES if path.name.endswith(suffix)), path.stem)


def check_volumes(
    datalist: Sequence[str],
    dataset_dir: str,
    output_dir: str,
    *,
    output_postfix: str = "seg",
    output_ext: str = ".nii.gz",
    save_probabilities: bool | str = False,
    save_uncertainty: bool | str = False,
    overwrite: bool | str = False,
    skip_existing: bool | str = False,
) -> None:
    """Make sure that there are volumes to segment, and that writing their maps replaces no file unasked.

    The volumes themselves are never replaced: the maps go to another folder.

    Args:
        datalist: paths of the volumes.
        dataset_dir: where they were looked for: a folder (its subfolders are not searched), or one NIfTI file.
        output_dir: where the label maps will be written, as ``<case>_<output_postfix><output_ext>``.
        output_postfix: see there; not one of the names of the other maps.
        output_ext: ending of all maps, ``.nii.gz`` or ``.nii``.
        save_probabilities: whether ``<case>_probabilities`` will be written too.
        save_uncertainty: whether ``<case>_uncertainty`` will be written too.
        overwrite: replace maps that are there already.
        skip_existing: leave out volumes whose maps are there already, see :func:`unfinished_volumes`.

    Raises:
        BundleError: when an option is not allowed, there is no volume, one is overlooked for the capitals of its name,
            two volumes have one name, the output folder is that of the volumes, or a map would be overwritten.
    """
    if str2bool(overwrite) and str2bool(skip_existing):
        raise BundleError("overwrite and skip_existing exclude each other: give one of them.")
    _check_names(output_postfix, output_ext)

    unfit = [volume for volume in datalist if not str(volume).endswith(VOLUME_SUFFIXES)]
    if unfit:
        raise BundleError(f"datalist must hold paths that end in .nii.gz or .nii, got {unfit[0]}.")
    paths = [Path(volume) for volume in datalist]
    check_capitals("dataset_dir", Path(dataset_dir))
    if not paths and not Path(dataset_dir).exists():
        raise BundleError(f"dataset_dir {dataset_dir} does not exist: it must be a NIfTI file or a folder of them.")
    if not paths:
        raise BundleError(f"dataset_dir {dataset_dir} holds no volume: files that end in .nii.gz or .nii are expected.")
    output = Path(output_dir)
    if output.exists() and not output.is_dir():
        raise BundleError(f"output_dir must be a folder, got the file {output_dir}.")
    if output.resolve() in {path.parent.resolve() for path in paths}:
        raise BundleError(
            f"output_dir must be another folder than that of the volumes, got {output_dir} for both: "
            "the maps would mix with the volumes."
        )
    targets: dict[str, Path] = {}
    for path in paths:
        for postfix in postfixes:
            name = f"{case_name(path)}_{postfix}{output_ext}"
            other = targets.setdefault(name, path)
            if other != path:
                raise BundleError(f"{other.name} and {path.name} would both write {name}: rename one of them.")
    taken = [name for name in targets if os.path.lexists(output / name)]
    # A link in the output folder may lead back to a volume, which even overwrite must not replace.
    volumes = {path.resolve() for path in paths}
    linked = [name for name in taken if (output / name).resolve() in volumes]
    if linked:
        raise BundleError(f"output_dir {output_dir}: {linked[0]} is a link to one of the volumes.")
    if taken and not wanted["overwrite"] and not wanted["skip_existing"]:
        raise BundleError(
            f"output_dir {output_dir} already holds {len(taken)} of the files to write, such as {taken[0]}: "
            "go on with the others by --skip_existing true, replace them by --overwrite true, or choose another "
            "--output_dir."
        )


def check_capitals(argument: str, path: Path) -> None:
    """Refuse volumes that only the capitals of their names would keep from being found.

    Args:
        argument: what to call the path in the message.
        path: a file, or a folder of volumes.

    Raises:
        BundleError: for the first volume whose name ends in capitals.
    """
    names = sorted(file.name for file in path.glob("[!.]*")) if path.is_dir() else [path.name]
    for name in names:
        if name.lower().endswith(VOLUME_SUFFIXES) and not name.endswith(VOLUME_SUFFIXES):
            raise BundleError(
                f"{argument} {path}: {name} would be left out, as names must end in .nii.gz or .nii in small letters: "
                "rename it."
            )


def unfinished_volumes(
    data: Sequence[Mapping[str, Any]],
    output_dir: str,
    *,
    output_postfix: str = "seg",
    output_ext: str = ".nii.gz",
    save_probabilities: bool | str = False,
    save_uncertainty: bool | str = False,
    skip_existing: bool | str = False,
) -> list[Mapping[str, Any]]:
    """Leave out the volumes that an earlier run of the same inference has segmented.

    Args:
        data: dictionaries with the path of a volume under "image".
        output_dir: see :func:`check_volumes`, as the next ones.
        output_postfix: see there.
        output_ext: see there.
        save_probabilities: see there.
        save_uncertainty: see there.
        skip_existing: False keeps all.

    Returns:
        those of which a map is missing, or cannot be read, as one that was being written when the run stopped.
    """
    if not str2bool(skip_existing):
        return list(data)
    postfixes = [output_postfix, *(["probabilities"] * str2bool(save_probabilities))]
    postfixes += ["uncertainty"] * str2bool(save_uncertainty)
    unfinished = [
        item
        for item in data
        if not all(
            _is_readable(Path(output_dir) / f"{case_name(Path(item['image']))}_{postfix}{output_ext}")
            for postfix in postfixes
        )
    ]
    _logger.info("%d of %d volumes have their maps already.", len(data) - len(unfinished), len(data))
    return unfinished


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


class ReadableVolumes(IterableDataset):
    """Reads and transforms volumes one by one; one that cannot be read is reported, and the others go on.

    Args:
        data: dictionaries with the path of a volume under "image".
        transform: preprocessing of one dictionary.
        in_channels: channels that the network takes; None skips the check.
        trained_spacing: voxel sizes in mm, along x, y and z, of the files that the network was trained on; a volume of
            others is segmented with a warning. None skips it.
        trained_extent: largest extent in mm, along x, y and z, of the files that the network was trained on; a volume
            that is half as large again is segmented with a warning. None skips it.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any] | None = None,
        *,
        in_channels: int | None = None,
        trained_spacing: Sequence[float] | None = None,
        trained_extent: Sequence[float] | None = None,
    ) -> None:
        self.data = data
        self.transform = transform if transform is not None else Compose()
        self.in_channels = in_channels
        self.trained_spacing = trained_spacing
        self.trained_extent = trained_extent
        # Shared, since worker processes read the volumes where the loader has some.
        self._num_failed = multiprocessing.Value("i", 0)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        start = time.monotonic()
        for position in range(first, len(self.data), step):
            item = self.data[position]
            left = ""
            if position > first:
                pace = (time.monotonic() - start) / (position - first)
                left = f" ({timedelta(seconds=round(pace * (len(self.data) - position)))} left)"
            _logger.info("volume %d of %d: %s%s", position + 1, len(self.data), item["image"], left)
            volume = self._read(item)
            if volume is not None:
                yield volume

    def _read(self, item: Mapping[str, Any]) -> Any:
        try:
            volume = self.transform(dict(item))
            self._check(volume["image"])
            self._compare_geometry(item["image"], volume["image"])
        # Files fail in as many ways as there are readers: whatever it was, the other volumes can be segmented.
        except Exception as error:
            with self._num_failed.get_lock():
                self._num_failed.value += 1
            _logger.error("%s cannot be segmented: %s", item["image"], root_cause(error))
            return None
        return volume

    def _check(self, image: torch.Tensor) -> None:
        if image.ndim != 4:
            raise BundleError(f"it must be a 3D volume, got shape {list(image.shape[1:])}.")
        if self.in_channels is not None and image.shape[0] != self.in_channels:
            raise BundleError(f"it must have {self.in_channels} channel(s), got {image.shape[0]}.")
        if not torch.isfinite(image).all():
            raise BundleError("it holds values that are not finite.")

    def _compare_geometry(self, path: str, image: torch.Tensor) -> None:
        meta = getattr(image, "meta", {})
        affine, shape = meta.get(MetaKeys.ORIGINAL_AFFINE), meta.get(MetaKeys.SPATIAL_SHAPE)
        if affine is None or shape is None:
            return
        if path.endswith(VOLUME_SUFFIXES):
            check_geometry(nib.load(path), "it")
        spacing, extent = _sizes(affine, shape)
        if self.trained_spacing is not None:
            ratio = spacing / np.asarray(self.trained_spacing)
            if ratio.max() > _MAX_SPACING_RATIO or ratio.min() < 1 / _MAX_SPACING_RATIO:
                sizes = (_in_mm(spacing), _in_mm(self.trained_spacing))
                _logger.warning("%s has voxels of %s, the weights are for %s: check the result.", path, *sizes)
        if self.trained_extent is not None and (extent > _MAX_EXTENT_RATIO * np.asarray(self.trained_extent)).any():
            sizes = (_in_mm(extent), _in_mm(self.trained_extent))
            _logger.warning(
                "%s spans %s, the weights are for volumes of up to %s around the organ: check the result, crop the "
                "volume, or keep the largest component alone.",
                path,
                *sizes,
            )

    def finish(self) -> None:
        """Say at the end of a run how many volumes failed.

        Raises:
            BundleError: when at least one volume could not be segmented, so that the exit code tells it.
        """
        failed, self._num_failed.value = self._num_failed.value, 0
        if failed:
            raise BundleError(f"{failed} of {len(self.data)} volumes could not be segmented, see the lines above.")


def volume_geometry(
    data: Sequence[Mapping[str, Any]], *, box_margin: int | None = None, spacing_mm: Sequence[float] | None = None
) -> dict[str, list[float] | None]:
    """Describe the volumes of a training, so that inference can warn of others, see :class:`ReadableVolumes`.

    Args:
        data: dictionaries with the path of a volume under "image" or "unlabeled"; of a longer list the headers of
            every n-th are read, some 250. Files that cannot be read are left to the training.
        box_margin: voxels around the box of a case to which the training crops it, see
            :class:`scripts.data.boxes.CropToBoxd`; None where it sees the whole volumes.
        spacing_mm: voxels of the training, which the margin counts; None for those of each file.

    Returns:
        ``trained_spacing``, the geometric middle of the smallest and the largest voxels in mm along x, y and z, and
        ``trained_extent``, the largest extent. None for both without any header, and for the first where the volumes
        themselves differ by more than inference would warn of.
    """
    sizes = []
    for item in data[:: len(data) // _NUM_HEADERS + 1]:
        try:
            volume: Any = nib.load(item.get("image") or item["unlabeled"])
            spacing, extent = _sizes(volume.affine, volume.shape[:3])
            if box_margin is not None:
                _, of_box = _sizes(volume.affine, np.subtract(*item["box"][::-1]))
                extent = np.minimum(extent, of_box + 2 * box_margin * np.asarray(spacing_mm or spacing))
            sizes.append((spacing, extent))
        # As many ways to fail as there are readers.
        except Exception as error:
            _logger.debug("%s: %s", item, error)
    if not sizes:
        return {"trained_spacing": None, "trained_extent": None}
    spacings, extents = map(np.array, zip(*sizes, strict=True))
    smallest, largest = spacings.min(axis=0), spacings.max(axis=0)
    alike = (largest <= _MAX_SPACING_RATIO**2 * smallest).all()
    return {
        "trained_spacing": _rounded(np.sqrt(smallest * largest)) if alike else None,
        "trained_extent": _rounded(extents.max(axis=0)),
    }


def _sizes(affine: Any, shape: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxel sizes and extent in mm along x, y and z of a volume of any orientation."""
    axes = np.argsort(io_orientation(affine)[:, 0])
    spacing = voxel_sizes(affine)[axes]
    return spacing, spacing * np.asarray(shape)[axes]


def _rounded(sizes: Iterable[float]) -> list[float]:
    return [float(f"{size:.4g}") for size in sizes]


def _in_mm(sizes: Iterable[float]) -> str:
    return f"{'x'.join(f'{size:.4g}' for size in sizes)} mm"


def segment_volumes(
    evaluator: Any,
    data: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Any],
    postprocessing: Compose,
    *,
    in_channels: int,
    trained_spacing: Sequence[float] | None = None,
    trained_extent: Sequence[float] | None = None,
) -> None:
    """Run an evaluator on volumes so that a bad one is reported, and the others go on.

    Args:
        evaluator: a ``monai.engines.Evaluator``; its own data loader gives the number of worker processes.
        data: dictionaries with the path of a volume under "image".
        transform: preprocessing of one dictionary.
        postprocessing: that of the evaluator; the files that it writes are from now on whole or not there.
        in_channels: channels that the network takes.
        trained_spacing: see :class:`ReadableVolumes`.
        trained_extent: see :class:`ReadableVolumes`.

    Raises:
        BundleError: at the end, when at least one volume could not be segmented.
    """
    if not data:
        return
    # In the place of MONAI's transforms, which applications know and leave out where they write the maps themselves.
    postprocessing.transforms = tuple(
        WholeFiles(step) if isinstance(step, SaveImaged) else step for step in postprocessing.transforms
    )
    volumes = ReadableVolumes(
        data, transform, in_channels=in_channels, trained_spacing=trained_spacing, trained_extent=trained_extent
    )
    evaluator.data_loader = DataLoader(volumes, batch_size=1, num_workers=evaluator.data_loader.num_workers)
    # How many volumes can be read is not known beforehand.
    evaluator.state.epoch_length = None
    evaluator.run()
    volumes.finish()
