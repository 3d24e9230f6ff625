# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes: made from voxels and geometry, read with one clear error, written whole or not at all."""

from __future__ import annotations

import functools
import gzip
import itertools
import logging
import os
import zlib
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import ImageWriter, MetaTensor, NibabelWriter
from monai.data.utils import correct_nifti_header_if_necessary
from monai.transforms import SaveImaged
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.spatialimages import HeaderDataError

from .errors import BundleError, one_line
from .files import replacing

_logger = logging.getLogger(__name__)
#: How the names of NIfTI files end.
VOLUME_SUFFIXES = (".nii.gz", ".nii")
#: The code of NIfTI for millimeters, and those for other units.
_MILLIMETER = 2
_OTHER_UNITS = {1: "meter", 3: "micron"}
#: By how much two affines may differ, as the headers of files round them.
_AFFINE_TOLERANCE = 1e-3
#: By how much of a voxel sform and qform may place a voxel apart, as the quaternions of a qform round.
_FORM_TOLERANCE = 0.1
#: By how much a label may miss a whole number, as the scaling of a file rounds it.
_ROUNDING = 1e-4
#: Bytes that are unpacked at a time.
_PIECE = 2**20


def volume_name(path: str | os.PathLike[str]) -> str:
    """Strip the folder and the NIfTI suffix of a file.

    Args:
        path: path of a NIfTI file.

    Returns:
        its name without ".nii" or ".nii.gz".
    """
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), Path(name).stem)


def volumes_in(folder: Path) -> list[Path]:
    """List the NIfTI files of a folder, but for hidden ones.

    Args:
        folder: a folder that exists.

    Returns:
        their paths, sorted.
    """
    return [path for path in sorted(folder.glob("[!.]*")) if path.name.endswith(VOLUME_SUFFIXES)]


def tell_of_others(argument: str, folder: Path, known: Collection[Path] = ()) -> None:
    """Warn of what lies beside the volumes of a folder: scans in another format, or in subfolders, would be missed.

    Args:
        argument: what to call the folder in the message.
        folder: a folder that exists.
        known: files and folders; a subfolder that holds one of them is not told of.
    """
    # As they are named, not as links lead: a subfolder may be one.
    holding = {os.path.relpath(path, folder).split(os.sep)[0] for path in known}
    others = [
        f"{path.name}{'/' * path.is_dir()}"
        for path in sorted(folder.glob("[!.]*"))
        if not path.name.endswith(VOLUME_SUFFIXES) and path.name not in holding
    ]
    if others:
        _logger.warning(
            "%s %s: what is no NIfTI volume is passed over, such as %s (%d in all).",
            argument,
            folder,
            others[0],
            len(others),
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


def make_nifti(voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> nib.Nifti1Image:
    """Put voxels and geometry into a NIfTI image.

    Args:
        voxels: (X, Y, Z).
        affine: voxel indices to mm, 4x4.

    Returns:
        the image, its affine in both the qform and the sform.
    """
    # Named, as nibabel refuses to choose 64-bit integers by itself.
    volume = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    volume.header.set_xyzt_units(_MILLIMETER)
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    return volume


def rounded(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Round fractions; whole numbers keep their type, of which ``numpy.rint`` makes floats.

    Args:
        values: any numbers.

    Returns:
        whole ones of the same shape.
    """
    return np.rint(values) if values.dtype.kind == "f" else values


def unfit_labels(values: npt.NDArray[Any], highest: int) -> npt.NDArray[Any]:
    """Find values that are no labels.

    Args:
        values: the values of a label map.
        highest: the highest label.

    Returns:
        those that are no whole number from 0 to ``highest``, but for what the scaling of a file rounds.
    """
    labels = rounded(values)
    is_whole = np.abs(values.astype(np.float64) - labels) <= _ROUNDING
    return values[~(is_whole & (labels >= 0) & (labels <= highest))]


def check_geometry(volume: Any, name: str) -> None:
    """Refuse a volume of which it is not certain where its voxels lie, and warn of one that says nothing or two things.

    Where the sform disagrees with the sizes of the voxels in the header, MONAI takes the qform in the place of the
    affine that nibabel and other programs take.

    Args:
        volume: an image of nibabel, of which the header alone is read.
        name: what to call it in the message.

    Raises:
        BundleError: for sizes in another unit than mm, which MONAI does not read, or an affine that cannot be inverted
            or that MONAI would replace.
    """
    if "sform_code" in volume.header and not (volume.header["sform_code"] or volume.header["qform_code"]):
        warn_of_lost_axes(volume.get_filename() or name, "sform and qform are 0")
    # The lower bits are for space; a code without a meaning is read as mm, as no code is.
    unit = _OTHER_UNITS.get(int(volume.header["xyzt_units"]) % 8) if "xyzt_units" in volume.header else None
    if unit is not None:
        raise BundleError(f"{name} must have sizes in mm, its header has the unit {unit}: write it anew in mm.")
    affine = np.asarray(volume.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise BundleError(f"{name} must have an affine that can be inverted, got {affine.tolist()}.")
    # A copy, as MONAI corrects the header itself.
    corrected = correct_nifti_header_if_necessary(type(volume)(volume.dataobj, volume.affine, volume.header.copy()))
    if not np.allclose(corrected.affine, affine, atol=_AFFINE_TOLERANCE):
        of_affine, of_header = voxel_sizes(affine).round(4), np.round(volume.header.get_zooms()[:3], 4)
        raise BundleError(
            f"{name} must have one geometry: its affine has voxels of {of_affine.tolist()} mm, its header of "
            f"{of_header.tolist()} mm."
        )
    if forms_disagree(volume):
        _warn_of_two_forms(volume.get_filename() or name)


def forms_disagree(volume: Any) -> bool:
    """Tell whether the sform and the qform of a volume place its voxels differently.

    nibabel and MONAI take the sform; ITK, and with it 3D Slicer and ITK-SNAP, takes the qform of some such files.

    Args:
        volume: an image of nibabel, of which the header alone is read.

    Returns:
        True when both are given, and a voxel lies apart by more than a rounding, or the qform cannot be read.
    """
    header = volume.header
    if "sform_code" not in header or not (header["sform_code"] and header["qform_code"]):
        return False
    corners = np.array(list(itertools.product(*((0, size - 1) for size in (*volume.shape, 1, 1)[:3]))))
    try:
        apart = apply_affine(header.get_sform(), corners) - apply_affine(header.get_qform(), corners)
    except (ValueError, HeaderDataError):
        return True
    # Not greater: a qform may be no number.
    return not np.linalg.norm(apart, axis=1).max() <= _FORM_TOLERANCE * voxel_sizes(volume.affine).min()


@functools.cache
def _warn_of_two_forms(file: str) -> None:
    _logger.warning(
        "%s has a sform and a qform that place its voxels differently: the sform is taken here, other programs (3D "
        "Slicer, ITK-SNAP) may take the qform, and show it and its label map elsewhere, or mirrored.",
        file,
    )


@functools.cache
def warn_of_lost_axes(file: str, reason: str) -> None:
    """Warn, once a file, of a volume whose header does not say where its axes point.

    Args:
        file: the file.
        reason: what its header has, or lacks.
    """
    _logger.warning(
        "%s does not tell the directions of its axes (%s): left and right may be exchanged, also in pictures.",
        file,
        reason,
    )


def is_same_grid(affine: npt.ArrayLike, image_affine: npt.ArrayLike) -> bool:
    """Tell whether the voxels of two volumes of one shape lie at the same places.

    Args:
        affine: voxel indices to mm, 4x4.
        image_affine: that of the other one.

    Returns:
        True when they differ by no more than a rounding.
    """
    return _difference(affine, image_affine) <= _AFFINE_TOLERANCE


def check_same_grid(affine: npt.ArrayLike, image_affine: npt.ArrayLike, name: str) -> None:
    """Refuse a label map whose voxels lie elsewhere than those of its image.

    Args:
        affine: voxel indices to mm of the label map, 4x4.
        image_affine: that of its image.
        name: what to call the label map in the message.

    Raises:
        BundleError: when they differ by more than a rounding.
    """
    if not is_same_grid(affine, image_affine):
        raise BundleError(
            f"{name} has another affine than its image (they differ by up to {_difference(affine, image_affine):g}): "
            "both must lie on one grid."
        )


def _difference(affine: npt.ArrayLike, image_affine: npt.ArrayLike) -> float:
    return float(np.abs(np.asarray(affine) - np.asarray(image_affine)).max())


def check_file(path: str | os.PathLike[str], name: str) -> None:
    """Refuse a NIfTI file whose content readers would take for another one; other formats are passed over.

    Args:
        path: the file.
        name: what to call it in the message.

    Raises:
        BundleError: when a compressed file is damaged, also where its voxels can be read; when its values are colors or
            complex; or when it is not certain where its voxels lie, see :func:`check_geometry`.
    """
    if not os.fspath(path).lower().endswith(VOLUME_SUFFIXES):
        return
    check_compression(path, name)
    volume: Any = nib.load(path)
    if volume.get_data_dtype().kind not in "biuf":
        raise BundleError(f"{name} must hold numbers, got {volume.get_data_dtype()}.")
    check_geometry(volume, name)


def check_compression(path: str | os.PathLike[str], name: str) -> None:
    """Read a compressed file to its end, where its checksum stands: readers of volumes stop before it.

    A process does it once for a file that does not change.

    Args:
        path: the file; one whose name does not end in ``.gz`` is passed over.
        name: what to call it in the message.

    Raises:
        BundleError: when the content is not that which was written, or cannot be read.
    """
    if not os.fspath(path).lower().endswith(".gz"):
        return
    try:
        status = os.stat(path)
        _unpack(os.fspath(path), status.st_size, status.st_mtime_ns)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BundleError(f"{name} cannot be read to its end, the file is damaged: {one_line(error)}") from error
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror}.") from error


@functools.lru_cache(maxsize=2**16)
def _unpack(path: str, size: int, time_ns: int) -> None:
    with gzip.open(path) as stream:
        while stream.read(_PIECE):
            pass


def check_finite(path: str | os.PathLike[str], name: str) -> None:
    """Refuse a NIfTI file with values that are not finite, which a window of gray values would hide.

    Args:
        path: the file.
        name: what to call it in the message.

    Raises:
        BundleError: when there is one.
    """
    volume: Any = nib.load(path)
    # Integers are finite, and whole scans of them large.
    if volume.get_data_dtype().kind == "f" and not np.isfinite(np.asanyarray(volume.dataobj)).all():
        raise BundleError(f"{name} holds values that are not finite.")


def check_volume(volume: torch.Tensor, name: str, *, channels: int | None = None) -> None:
    """Refuse a loaded volume of which no network can make anything.

    Args:
        volume: (C, X, Y, Z).
        name: what to call it in the message.
        channels: how many it must have, None for any number.

    Raises:
        BundleError: when it has other axes or channels, or values that are not finite.
    """
    if volume.ndim != 4:
        raise BundleError(f"{name} must be a 3D volume, got shape {list(volume.shape[1:])}.")
    if channels is not None and volume.shape[0] != channels:
        raise BundleError(f"{name} must have {channels} channel(s), got {volume.shape[0]}.")
    if not torch.isfinite(volume).all():
        raise BundleError(f"{name} holds values that are not finite.")


def read_nifti(path: str | os.PathLike[str], name: str = "") -> nib.Nifti1Image:
    """Read a volume.

    Args:
        path: NIfTI file.
        name: what to call it in the message.

    Returns:
        the volume with its voxels in memory, in the type of their scaled values, without axes of length 1 behind the
            third.

    Raises:
        BundleError: when it cannot be read, or holds colors or complex numbers.
    """
    try:
        volume: Any = nib.load(path)
        voxels = np.asanyarray(volume.dataobj)
        if voxels.dtype.kind not in "biuf":
            raise ValueError(f"its voxels must be numbers, got {voxels.dtype}")
        return nib.squeeze_image(nib.Nifti1Image(voxels, volume.affine, volume.header, dtype=voxels.dtype))
    except Exception as error:  # a broken file makes nibabel raise errors of a dozen unrelated classes
        raise BundleError(f"{name} {path} cannot be read as NIfTI: {one_line(error)}".strip()) from error


def write_nifti(volume: nib.Nifti1Image, path: str | os.PathLike[str]) -> None:
    """Write a volume in one step: a reader finds the old file or the new one, never half of it.

    Args:
        volume: the volume; equal volumes give equal bytes.
        path: file that ends in ``.nii.gz`` or ``.nii``; its folder is made when it is missing.

    Raises:
        OSError: when it cannot be written; names the file.
    """
    with replacing(path) as temporary:
        # Not by nibabel.save, which tells the format by the end of the name. Without a time the bytes repeat.
        content = volume.to_bytes()
        if os.fspath(path).endswith(".gz"):
            content = gzip.compress(content, compresslevel=1, mtime=0)
        temporary.write_bytes(content)


def write_volume(volume: MetaTensor, path: str | os.PathLike[str], dtype: type) -> None:
    """Write a volume of the pipeline in the geometry of its file.

    Args:
        volume: (1, X, Y, Z) with its affine.
        path: see :func:`write_nifti`.
        dtype: type of the voxels in the file.

    Raises:
        OSError: when it cannot be written; names the file.
    """
    writer = _WholeFileWriter(output_dtype=dtype)
    writer.set_data_array(volume, channel_dim=0, squeeze_end_dims=False)
    writer.set_metadata(volume.meta, resample=False)
    writer.write(path)


class _WholeFileWriter(NibabelWriter):
    def write(self, filename: Any, verbose: bool = False, **obj_kwargs: Any) -> None:
        ImageWriter.write(self, filename, verbose=verbose)
        # The channels are the last axis by now. MONAI would drop axes of the volume of size 1 with that of one channel.
        voxels = self.data_obj[..., 0] if self.data_obj.shape[-1] == 1 else self.data_obj
        volume = self.create_backend_obj(voxels, affine=self.affine, dtype=self.output_dtype, **obj_kwargs)
        volume.set_qform(volume.affine, code=1)
        volume.set_sform(volume.affine, code=1)
        volume.header.set_xyzt_units(_MILLIMETER)
        write_nifti(volume, filename)


class WholeFiles:
    """Lets a ``SaveImaged`` write files that are whole or not there, of volumes of any size, with one clear error.

    Args:
        save: the transform; it is changed.
    """

    def __init__(self, save: SaveImaged) -> None:
        self.save = save
        save.saver.writers = (_WholeFileWriter,)
        save.saver.data_kwargs["squeeze_end_dims"] = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the volumes of a case.

        Args:
            data: dictionary of the case; volumes are (C, X, Y, Z).

        Returns:
            the same.

        Raises:
            BundleError: when a file cannot be written; says why.
        """
        try:
            result: dict[Hashable, Any] = self.save(data)
        # MONAI puts the error of its writer, traceback and all, into the text of another one.
        except RuntimeError as error:
            raise BundleError(f"a map cannot be written: {str(error).strip().splitlines()[-1]}") from None
        return result
