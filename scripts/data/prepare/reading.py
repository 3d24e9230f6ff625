# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Cases of a source, and the readers of their volumes: NIfTI, NRRD, DICOM; whatever is wrong costs one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from monai.transforms import Spacing

from ...errors import BundleError, one_line
from ...nifti import (
    check_compression,
    check_geometry,
    check_same_grid,
    forms_disagree,
    is_same_grid,
    make_nifti,
    rounded,
    unfit_labels,
    warn_of_lost_axes,
)
from ..dicom import read_series
from ..splits import composed, is_inside

_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
#: Where a volume keeps whether the two geometries of its file disagree, of which one is left.
_TWO_FORMS = "forms_disagree"
#: Space of an NRRD file, and what its axes must be multiplied by to point to the right, the front and the top.
_NRRD_SPACES = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}
#: What NRRD files call them, or nothing.
_MILLIMETERS = {"mm", "millimeter", "millimeters", ""}


@dataclass(frozen=True)
class Volumes:
    """What was read of one case.

    Attributes:
        image: the image, 3D.
        label: its label map on the grid of the image, uint8; None where there is none.
        note: what people should know about this case, in one line; empty when all is usual.
    """

    image: nib.Nifti1Image
    label: nib.Nifti1Image | None = None
    note: str = ""


@dataclass(frozen=True)
class SourceCase:
    """One case of a source, not read yet.

    Attributes:
        name: id of the case.
        read: reads its volumes; raises an error that names what is wrong.
        has_label: whether there will be a label.
        group: cases of one group, such as a patient, stay on one side of a split; by default each is its own.
        files: files of the source that may be mended later, or folders of them.
    """

    name: str
    read: Callable[[], Volumes]
    has_label: bool = True
    group: str = ""
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Source:
    """The cases of a source.

    Attributes:
        cases: those that can be read, as far as the names of the files tell.
        problems: one line for each that cannot.
        notes: one line for each matter that people should know.
        protocol: prefix of the names of the shipped splits for these cases, such as left_atrium; empty without any.
        withdrawn: cases that the publisher of the data took back: left out of every split.
        num_folds: folds of the protocol, or the usual five.
        num_labeled: labeled cases of the protocol; None without one.
    """

    cases: Sequence[SourceCase]
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    protocol: str = ""
    withdrawn: frozenset[str] = field(default_factory=frozenset)
    num_folds: int = 5
    num_labeled: int | None = None


def stem(path: Path) -> str | None:
    """Strip the folder and the suffix of a volume file.

    Args:
        path: any file.

    Returns:
        Its name without suffix, with composed letters: one system stores an umlaut as one letter, another as two. None
        when it is hidden or no NIfTI or NRRD file.
    """
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None or path.name.startswith("."):
        return None
    return composed(path.name[: -len(suffix)])


def walk(folder: Path) -> Iterator[Path]:
    """List all files below a folder in a fixed order; hidden ones and linked folders are passed over."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def require_inside(path: Path, source: Path) -> Path:
    """Refuse a path that leads out of the source, by ``..`` or by a symbolic link.

    Args:
        path: the path to look at.
        source: folder of the source.

    Returns:
        The path.

    Raises:
        BundleError: when it leads out.
    """
    if not is_inside(path, source):
        raise BundleError(f"{path} leads out of {source}.")
    return path


def read_dicom(folder: Path, *, source: Path) -> nib.Nifti1Image:
    """Read a folder of one DICOM series, none of whose files is a link that leads out of the source.

    Args:
        folder: the folder.
        source: folder which it must not lead out of.

    Returns:
        The image, 3D.

    Raises:
        BundleError: when it leads out, or see :func:`scripts.data.dicom.read_series`.
    """
    volume = read_series(require_inside(folder, source))
    for dataset in volume.datasets:
        require_inside(Path(dataset.filename), source)
    return volume.to_nifti()


def read_image(path: Path, *, source: Path, channel: int | None = None, ignore_affine: bool = False) -> nib.Nifti1Image:
    """Read an image.

    Args:
        path: NIfTI or NRRD file, or folder of one DICOM series.
        source: folder which it must not lead out of.
        channel: which channel of a 4D NIfTI file; None allows one channel only.
        ignore_affine: allow a NIfTI file whose affine and header tell of different voxels.

    Returns:
        The image, 3D, in the integer type of the file, int16 where that is exact, or float32.

    Raises:
        BundleError: when it cannot be read, is not 3D, holds values that are no numbers or not finite, or when it is
            not certain where its voxels lie.
    """
    if path.is_dir():
        return read_dicom(path, source=source)
    require_inside(path, source)
    voxels, affine, has_two_forms = _read_file(path, ignore_affine=ignore_affine)
    voxels = _only_channel(voxels, path, channel=channel)
    if not np.isfinite(voxels).all():
        raise BundleError(f"{path} holds values that are not finite.")
    image = make_nifti(_compact(voxels), affine)
    image.extra[_TWO_FORMS] = has_two_forms
    return image


def read_label(
    path: Path,
    image: nib.Nifti1Image,
    *,
    source: Path,
    convert: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
) -> nib.Nifti1Image:
    """Read a label map and bring it into the order of axes of its image.

    Args:
        path: NIfTI or NRRD file.
        image: its image, which has the same grid.
        source: folder which it must not lead out of.
        convert: maps the values of the file to classes; None takes them for classes, and a map of 0 and 255 for a mask.

    Returns:
        The label map, uint8, with the affine of the image.

    Raises:
        BundleError: when it cannot be read, does not hold classes, or lies on another grid than the image.
    """
    require_inside(path, source)
    voxels, affine, has_two_forms = _read_file(path)
    label = make_nifti(to_classes(_only_channel(voxels, path), path, convert=convert), affine)
    label.extra[_TWO_FORMS] = has_two_forms
    return on_grid(label, image)


def to_classes(
    voxels: npt.NDArray[Any], path: Path, *, convert: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None
) -> npt.NDArray[np.uint8]:
    """Turn the values of a label file into class indices; see :func:`read_label`."""
    unfit = unfit_labels(np.unique(voxels), highest=255)
    if unfit.size:
        found = ", ".join(f"{value:.7g}" for value in unfit[:5])
        raise BundleError(f"{path} must hold whole numbers from 0 to 255, got {found}{', ...' * (len(unfit) > 5)}.")
    voxels = rounded(voxels)
    values = np.unique(voxels)
    if convert is not None:
        voxels = convert(voxels)
    elif set(values.tolist()) <= {0, 255}:
        voxels = voxels > 0
    return voxels.astype(np.uint8)


def on_grid(label: nib.Nifti1Image, image: nib.Nifti1Image, *, ignore_affine: bool = False) -> nib.Nifti1Image:
    """Flip and permute the axes of a label map so that it lies on the grid of its image, voxel for voxel.

    Args:
        label: the label map.
        image: its image.
        ignore_affine: take only the directions of the axes from the label's affine, not its origin and spacing.

    Returns:
        The label map with the affine of the image.

    Raises:
        BundleError: when the two do not have one grid, or it is not certain, see
            :func:`scripts.nifti.forms_disagree`.
    """
    if not ignore_affine and not is_same_grid(label.affine, image.affine):
        _check_forms(label, image)
    turned = label
    # A rounding must not turn what lies there already, as it could near 45 degrees.
    if label.shape != image.shape or not is_same_grid(label.affine, image.affine):
        orientations = [nib.orientations.io_orientation(volume.affine) for volume in (label, image)]
        turned = label.as_reoriented(nib.orientations.ornt_transform(*orientations))
    if turned.shape != image.shape:
        raise BundleError(f"the label has shape {turned.shape}, its image {image.shape}: they must agree.")
    if not ignore_affine:
        check_same_grid(turned.affine, image.affine, "the label")
    return make_nifti(np.asanyarray(turned.dataobj), image.affine)


def _check_forms(label: nib.Nifti1Image, image: nib.Nifti1Image) -> None:
    """Refuse to turn a label where it was perhaps drawn on the other geometry of the image."""
    for volume, name in ((image, "the image"), (label, "the label")):
        if volume.extra.get(_TWO_FORMS):
            raise BundleError(
                f"the label has another affine than its image, and the sform and the qform of {name} place it "
                "differently, so that the two may be mirrored: write both files with one geometry, on one grid."
            )


def resample(volumes: Volumes, spacing_mm: Sequence[float]) -> Volumes:
    """Bring a case to another spacing: the image linearly, the label to the nearest neighbor, as the training does.

    Args:
        volumes: the case.
        spacing_mm: size of a voxel along x, y and z of the patient, whatever the order of the axes in the file.

    Returns:
        The case; whole numbers, such as Hounsfield units, stay whole.
    """
    image = _resample(volumes.image, spacing_mm, mode="bilinear")
    label = None if volumes.label is None else _resample(volumes.label, spacing_mm, mode="nearest")
    return Volumes(image, label, volumes.note)


def _resample(volume: nib.Nifti1Image, spacing_mm: Sequence[float], *, mode: str) -> nib.Nifti1Image:
    voxels = np.asanyarray(volume.dataobj)
    axes = nib.orientations.io_orientation(volume.affine)[:, 0].astype(int)
    resampled: Any = Spacing(pixdim=[spacing_mm[axis] for axis in axes], mode=mode)(
        MetaTensor(voxels[None].astype(np.float32), affine=volume.affine)
    )
    values = resampled[0].numpy()
    if np.issubdtype(voxels.dtype, np.integer):
        values = np.rint(values).astype(voxels.dtype)
    return make_nifti(values, resampled.affine.numpy().astype(np.float64))


def _read_file(path: Path, *, ignore_affine: bool = False) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64], bool]:
    """Read voxels, affine, and whether the file has another geometry beside that of the affine."""
    try:
        if path.name.lower().endswith(".nrrd"):
            return *_read_nrrd(path), False
        check_compression(path, str(path))
        file: Any = nib.load(path)
        if not ignore_affine:
            check_geometry(file, str(path))
        return np.asanyarray(file.dataobj), np.asarray(file.affine, dtype=np.float64), forms_disagree(file)
    except BundleError:
        raise
    except FileNotFoundError:
        raise BundleError(f"{path} not found.") from None
    except Exception as error:  # broken files make the readers raise errors of a dozen unrelated classes
        reason = one_line(error)
        raise BundleError(f"{path} cannot be read, the file may be truncated: {reason}") from error


def _read_nrrd(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    detached = nrrd.read_header(str(path)).keys() & {"data file", "datafile"}
    if detached:
        # It may lie anywhere.
        raise BundleError(f"{path} must hold its voxels itself, got a header that names another file for them.")
    voxels, header = nrrd.read(str(path))
    if voxels.ndim != 3:
        raise BundleError(f"{path} must be a 3D volume of one channel, got shape {voxels.shape}.")
    given = header.get("space units", ()) if "space directions" in header else header.get("units", ())
    units = {str(unit).strip('" ').lower() for unit in given} - _MILLIMETERS
    if units:
        raise BundleError(f"{path} must have sizes in mm, its header has the unit {', '.join(sorted(units))}.")
    affine = np.eye(4)
    if "space directions" in header:
        space = str(header.get("space", "")).lower()
        if space not in _NRRD_SPACES:
            raise BundleError(f"{path}: its space must be one of {', '.join(_NRRD_SPACES)}, got {space!r}.")
        affine[:3, :3] = np.asarray(header["space directions"], dtype=np.float64).T
        affine[:3, 3] = header.get("space origin", np.zeros(3))
        affine[:3] *= np.array(_NRRD_SPACES[space])[:, None]
    elif "spacings" in header:
        warn_of_lost_axes(str(path), "no space directions")
        affine[:3, :3] = np.diag(header["spacings"])
    else:
        raise BundleError(f"{path} tells neither space directions nor spacings.")
    if not np.isfinite(affine).all():
        raise BundleError(f"{path} must have three axes with directions, got {header.get('space directions')}.")
    return voxels, affine


def _only_channel(voxels: npt.NDArray[Any], path: Path, *, channel: int | None = None) -> npt.NDArray[Any]:
    if voxels.ndim == 4 and voxels.shape[-1] == 1 and not channel:
        voxels = voxels[..., 0]
    if voxels.ndim == 4 and channel is not None:
        if not 0 <= channel < voxels.shape[-1]:
            raise BundleError(f"channel must be from 0 to {voxels.shape[-1] - 1} in {path}, got {channel}.")
        voxels = voxels[..., channel]
    if voxels.dtype.kind not in "biuf":
        kind = "colors" if voxels.dtype.fields else voxels.dtype
        raise BundleError(f"{path} must hold one number a voxel, got {kind}.")
    if voxels.ndim != 3 or not voxels.size:
        raise BundleError(f"{path} must be a 3D volume of one channel, got shape {voxels.shape}.")
    return voxels


def _compact(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Keep integers; store as int16 what is whole and fits into it, anything else as float32."""
    if voxels.dtype in (np.uint8, np.int16, np.uint16):
        return voxels
    limits = np.iinfo(np.int16)
    is_whole = np.issubdtype(voxels.dtype, np.integer) or np.array_equal(voxels, np.rint(voxels))
    # Files of 32-bit numbers keep their type: they were standardized, or would lose it only by chance.
    if voxels.dtype != np.float32 and is_whole and voxels.min() >= limits.min and voxels.max() <= limits.max:
        return voxels.astype(np.int16)
    return voxels.astype(np.float32)
