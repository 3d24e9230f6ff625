# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""DICOM series as volumes: found in a folder, checked slice by slice, put into one array with its geometry."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import UID, CTImageStorage

from ..errors import BundleError, one_line
from ..nifti import make_nifti

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_HEADER_TAGS = (
    "SOPClassUID",
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "PatientID",
    "StudyInstanceUID",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)
_GEOMETRY_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
#: Directions and pixel sizes of slices that agree: they are written with six digits or more.
_SAME = 1e-4
#: How far a slice may be from its place in an even stack, in slice distances: scanners round positions to 0.1 mm.
_UNEVEN = 0.1
#: How far a slice may be shifted sideways, in pixels.
_SHIFTED = 0.5


class NoSeriesError(BundleError):
    """A folder without a DICOM image."""


@dataclass(frozen=True)
class DicomSeries:
    """The image files of one series.

    Args:
        folder: folder of the files; where they lie in several, the folder of those.
        uid: SeriesInstanceUID; empty where an anonymization took it away.
        number: SeriesNumber, 0 when there is none.
        modality: such as ``CT`` or ``MR``.
        description: SeriesDescription.
        files: files of its images, sorted by name.
        damaged: DICOM files of the same folders whose header cannot be read, so that they may belong to this series.
    """

    folder: Path
    uid: str = ""
    number: int = 0
    modality: str = ""
    description: str = ""
    files: tuple[Path, ...] = ()
    damaged: tuple[Path, ...] = ()

    def __str__(self) -> str:
        words = [word for word in (self.modality, self.description) if word]
        return f"{self.uid or 'without UID'} ({', '.join([*words, f'{len(self.files)} files'])})"


@dataclass(frozen=True, eq=False)
class DicomVolume:
    """A DICOM series as one array.

    Args:
        voxels: rescaled values (Hounsfield units for CT), (columns, rows, slices); int16 where that is exact, otherwise
            float32.
        affine: from voxel indices to millimeters in the RAS space of NIfTI, (4, 4).
        datasets: headers of the slices without their pixels, in the order of ``voxels``.
    """

    voxels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    datasets: tuple[Dataset, ...] = field(repr=False)

    def to_nifti(self) -> nib.Nifti1Image:
        """Put voxels and geometry into a NIfTI image.

        Returns:
            The image, its affine in both the qform and the sform.
        """
        return make_nifti(self.voxels, self.affine)


def find_series(folder: str | Path, *, follow_links: bool = False) -> list[DicomSeries]:
    """Find the image series of a folder and its subfolders.

    Hidden files, files of other formats and DICOM objects that are no images (DICOMDIR, segmentations, structure sets,
    reports) are passed over. A series whose slices an export has spread over several folders is one entry; copies of
    slices, and other phases of a series, in another folder are an entry of their own.

    Args:
        folder: folder to search.
        follow_links: search linked folders, too, which may lie elsewhere.

    Returns:
        The series, sorted by folder, series number and UID.

    Raises:
        BundleError: when the folder does not exist or there is no DICOM image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BundleError(f"{root} must be a folder with DICOM files, and there is no such folder.")
    unreadable: list[OSError] = []
    parts = [part for place in _folders(root, follow_links, unreadable.append) for part in _parts_of(place)]
    # What lies there may be a series, or slices of another.
    closed = [Path(error.filename) for error in unreadable]
    found = [_with_closed(series, closed) for series in _joined(parts)]
    found += [DicomSeries(path, damaged=(path,)) for path in closed]
    if not found:
        raise NoSeriesError(f"{root} holds no DICOM image: files of a CT or MR series are expected.")
    return sorted(found, key=lambda series: (series.folder, series.number, series.uid))


def read_series(source: str | Path | DicomSeries) -> DicomVolume:
    """Read a series as one volume; what is no even stack of parallel slices is refused.

    Args:
        source: a series of :func:`find_series`, or a folder in which there is one series.

    Returns:
        Its voxels, geometry and headers. Slices are sorted along the normal of their plane, so that the axes of the
        array are right-handed.

    Raises:
        BundleError: when there is no series or more than one, or the series cannot be read as a volume; names the
            folder, what is wrong and what is allowed.
    """
    series = source if isinstance(source, DicomSeries) else _only_series(source)
    if series.damaged:
        raise _refusal(
            series, f"{_names(series, series.damaged)} cannot be read as DICOM; it may be truncated, or closed to you"
        )
    slices = [_read_slice(series, path) for path in series.files]
    datasets = [dataset for dataset, _ in slices]
    if len(slices) < 2:
        raise _refusal(series, "it has one slice, a volume needs at least two")
    _check_same_plane(series, datasets)
    positions = np.array([dataset.ImagePositionPatient for dataset in datasets], dtype=np.float64)
    row, column = np.array(datasets[0].ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    # Rounded to few digits they are not quite of length 1.
    row, column, normal = (vector / np.linalg.norm(vector) for vector in (row, column, np.cross(row, column)))
    order = np.argsort(positions @ normal, kind="stable")
    files = [series.files[index] for index in order]
    height, width = (float(size) for size in datasets[0].PixelSpacing)
    distance = _check_stack(series, files, positions[order], normal, min(height, width))

    # Pixel spacing names the distance of rows first; a row runs along the first axis of the array.
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([row * width, column * height, normal * distance])
    affine[:3, 3] = positions[order[0]]
    # DICOM's x and y point to the left and to the back of the patient, those of NIfTI to the right and the front.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    voxels = np.stack([slices[index][1] for index in order], axis=-1)
    return DicomVolume(voxels, affine, tuple(datasets[index] for index in order))


# --- files ------------------------------------------------------------------------------------------------------------


def _with_closed(series: DicomSeries, closed: Sequence[Path]) -> DicomSeries:
    """Add the folders that cannot be searched beside those over which the slices of a series are spread."""
    if len({path.parent for path in series.files}) < 2:
        return series
    beside = [path for path in closed if path.is_relative_to(series.folder)]
    return replace(series, damaged=(*series.damaged, *beside))


def _folders(root: Path, follow_links: bool, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, _ in os.walk(root, followlinks=follow_links, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # Links may lead back.
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        yield Path(place)


class _Part(NamedTuple):
    """What of a series lies in one folder."""

    series: DicomSeries
    #: What all parts of a series have in common; empty where nothing tells that folders belong together.
    identity: tuple[str, ...]
    #: Where its slices lie; empty for one that does not say it.
    places: tuple[tuple[float, ...], ...]
    #: Normal of their plane.
    normal: npt.NDArray[np.float64]


def _parts_of(folder: Path) -> list[_Part]:
    groups: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    damaged = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            if not path.is_file() or not _looks_like_dicom(path):
                continue
            with _quiet():
                header = dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS))
                is_image = _is_image(header)
                uid = str(header.get("SeriesInstanceUID") or "")
                # A value is converted when it is asked for.
                for tag in _HEADER_TAGS:
                    header.get(tag)
        # Damaged files make pydicom raise errors of many unrelated classes.
        except Exception:
            damaged.append(path)
            continue
        if is_image and "Rows" not in header:
            damaged.append(path)
        elif is_image:
            groups[uid].append((path, header))
    if damaged and not groups:
        return [_Part(DicomSeries(folder, damaged=tuple(damaged)), (), (), np.zeros(3))]
    return [_part(folder, uid, files, damaged) for uid, files in groups.items()]


def _part(folder: Path, uid: str, files: Sequence[tuple[Path, Dataset]], damaged: Sequence[Path]) -> _Part:
    header = files[0][1]
    series = DicomSeries(
        folder,
        uid,
        number=_whole(header.get("SeriesNumber")),
        modality=str(header.get("Modality") or ""),
        description=str(header.get("SeriesDescription") or ""),
        files=tuple(path for path, _ in files),
        damaged=tuple(damaged),
    )
    directions = _numbers(header, "ImageOrientationPatient", 6)
    alike = [str(header.get(tag)) for tag in ("PatientID", "StudyInstanceUID", "Rows", "Columns")]
    return _Part(
        series,
        (uid, *alike, str(np.round(directions, 3))) if uid and directions else (),
        tuple(_numbers(header, "ImagePositionPatient", 3) for _, header in files),
        np.cross(directions[:3], directions[3:]).astype(np.float64) if directions else np.zeros(3),
    )


def _numbers(header: Dataset, tag: str, count: int) -> tuple[float, ...]:
    """The numbers of a tag; none where it has not so many, or one that is not finite."""
    try:
        with _quiet():
            values = np.atleast_1d(np.array(header.get(tag), dtype=np.float64))
    # It may be no number, or damaged, of which pydicom makes errors of many unrelated classes.
    except Exception:
        return ()
    return tuple(values.tolist()) if values.shape == (count,) and np.isfinite(values).all() else ()


def _joined(parts: Sequence[_Part]) -> list[DicomSeries]:
    """Join the parts of a series that lie in several folders, unless they are copies or phases of one another."""
    groups: dict[tuple[str, ...], list[_Part]] = defaultdict(list)
    for number, part in enumerate(parts):
        groups[part.identity or (str(number),)].append(part)
    joined = []
    for group in groups.values():
        if len(group) == 1 or not _are_one_stack(group):
            joined += [part.series for part in group]
            continue
        joined.append(
            replace(
                group[0].series,
                folder=Path(os.path.commonpath([part.series.folder for part in group])),
                files=tuple(path for part in group for path in part.series.files),
                damaged=tuple(path for part in group for path in part.series.damaged),
            )
        )
    return joined


def _are_one_stack(parts: Sequence[_Part]) -> bool:
    """Tell slices that were spread over folders from copies, at the same places, and phases, stacks of their own."""
    places = [place for part in parts for place in part.places]
    # Two slices at one place within a folder are a mistake that reading refuses, whatever else there is.
    if not all(places) or len(set(places)) < sum(len(set(part.places)) for part in parts):
        return False
    heights = sorted((np.sort(np.array(part.places) @ parts[0].normal) for part in parts), key=lambda part: part[0])
    overlap = any(low[-1] > high[0] for low, high in itertools.pairwise(heights))
    return not (overlap and all(map(_is_stack, heights)))


def _is_stack(heights: npt.NDArray[np.float64]) -> bool:
    gaps = np.diff(heights)
    return len(gaps) > 1 and float(gaps.max() - gaps.min()) <= _UNEVEN * float(gaps.mean())


def _looks_like_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM" or path.suffix.lower() in _DICOM_SUFFIXES


def _is_image(header: Dataset) -> bool:
    """Tell images from other objects by their class; by their rows where the class is private or was taken away."""
    kind = UID(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    return "Image Storage" in kind.name if kind.name != str(kind) else "Rows" in header


def _whole(value: Any) -> int:
    """A number of a header; 0 where it has none, or what stands there is no number."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _only_series(folder: str | Path) -> DicomSeries:
    found = find_series(folder)
    if len(found) > 1:
        listed = "; ".join(f"{series} in {series.folder.name}" for series in found)
        raise BundleError(f"{folder} holds {len(found)} series where one is expected: {listed}.")
    return found[0]


# --- slices -----------------------------------------------------------------------------------------------------------


def _read_slice(series: DicomSeries, path: Path) -> tuple[Dataset, npt.NDArray[Any]]:
    """Read one file: its header without the pixels, and its rescaled values, (columns, rows)."""
    try:
        with _quiet():
            dataset = dcmread(path)
            _check_slice(series, path, dataset)
            values = _compact(apply_modality_lut(pixel_array(dataset), dataset))
            del dataset.PixelData
    except BundleError:
        raise
    # Damaged files make pydicom and the decoders raise errors of many unrelated classes.
    except Exception as error:
        reason = one_line(error)
        raise _refusal(
            series, f"{_name(series, path)} cannot be read, the file may be truncated or damaged: {reason}"
        ) from error
    return dataset, values.T


def _check_slice(series: DicomSeries, path: Path, dataset: Dataset) -> None:
    name = _name(series, path)
    if "SharedFunctionalGroupsSequence" in dataset or int(dataset.get("NumberOfFrames") or 1) > 1:
        raise _refusal(
            series, f"{name} is a multi-frame image, only files of one slice each can be read: convert it first"
        )
    color = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    if dataset.get("SamplesPerPixel", 1) != 1 or not color.startswith("MONOCHROME"):
        raise _refusal(series, f"{name} is a color image ({color}), only one gray value a pixel can be read")
    # Hounsfield units are the same however they are shown; values without a unit are stored the other way round.
    is_ct = dataset.get("Modality") == "CT" or dataset.get("SOPClassUID") == CTImageStorage
    if color == "MONOCHROME1" and not is_ct:
        raise _refusal(
            series, f"{name} is MONOCHROME1, its lowest values are the brightest: convert it to MONOCHROME2 first"
        )
    # Tags may be there and empty.
    missing = [tag for tag in _GEOMETRY_TAGS if dataset.get(tag) in (None, "")]
    if missing:
        raise _refusal(series, f"{name} lacks {', '.join(missing)}, without which it has no place in a volume")
    for tag, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        if not _numbers(dataset, tag, count):
            raise _refusal(series, f"{tag} of {name} must be {count} numbers, got {dataset[tag].value}")
    directions = np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=100 * _SAME):
        raise _refusal(
            series,
            f"ImageOrientationPatient of {name} must be two unit vectors at right angles, got "
            f"{_decimals(dataset.ImageOrientationPatient)}",
        )
    if not all(size > 0 for size in dataset.PixelSpacing):
        raise _refusal(
            series, f"PixelSpacing of {name} must be two sizes above 0 mm, got {_decimals(dataset.PixelSpacing)}"
        )
    if "PixelData" not in dataset:
        raise _refusal(series, f"{name} has no pixels; the file may be truncated")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not _can_decode(syntax):
        raise _refusal(series, f"{name} is compressed ({syntax.name}) and no decoder is there: pip install python-gdcm")


def _can_decode(syntax: UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _compact(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    limits = np.iinfo(np.int16)
    is_exact = values.min() >= limits.min and values.max() <= limits.max and np.array_equal(values, np.rint(values))
    return values.astype(np.int16 if is_exact else np.float32)


# --- the stack --------------------------------------------------------------------------------------------------------


def _check_same_plane(series: DicomSeries, datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for path, dataset in zip(series.files, datasets):
        for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            expected, value = first[name].value, dataset[name].value
            if not np.allclose(np.array(value, np.float64), np.array(expected, np.float64), atol=_SAME, rtol=0):
                raise _refusal(
                    series,
                    f"{name} must be the same in all files, got {_decimals(expected)} in "
                    f"{_name(series, series.files[0])} and {_decimals(value)} in {_name(series, path)}",
                )


def _check_stack(
    series: DicomSeries, files: Sequence[Path], positions: npt.NDArray[Any], normal: npt.NDArray[Any], pixel_mm: float
) -> float:
    """Make sure that sorted slices lie evenly and straight above each other; return their distance in mm."""
    heights = positions @ normal
    gaps = np.diff(heights)
    closest = int(gaps.argmin())
    if gaps[closest] <= _SAME:
        raise _refusal(
            series,
            f"{_names(series, files[closest : closest + 2])} are at the same position ({heights[closest]:.2f} mm); "
            "each position may be there once: separate the phases, echoes or copies into folders and series",
        )
    shifts = np.linalg.norm(positions - positions[0] - np.outer(heights - heights[0], normal), axis=1)
    if shifts.max() > _SHIFTED * pixel_mm:
        worst = int(shifts.argmax())
        angle = math.degrees(math.atan2(shifts[worst], heights[worst] - heights[0]))
        raise _refusal(
            series,
            f"its slices are shifted sideways by up to {shifts[worst]:.1f} mm, as a gantry tilt of {angle:.1f} degrees "
            "does; they must lie straight above each other: resample the series first",
        )
    distance = float(heights[-1] - heights[0]) / len(gaps)
    if np.abs(heights - heights[0] - distance * np.arange(len(heights))).max() > _UNEVEN * distance:
        usual = float(np.median(gaps))
        odd = int(np.abs(gaps - usual).argmax())
        raise _refusal(
            series,
            f"the slices at {heights[odd]:.2f} mm and {heights[odd + 1]:.2f} mm "
            f"({_names(series, files[odd : odd + 2])}) are {gaps[odd]:.2f} mm apart where {usual:.2f} mm are usual; "
            "distances must be even: a slice may be missing",
        )
    return distance


# --- words ------------------------------------------------------------------------------------------------------------


def _refusal(series: DicomSeries, problem: str) -> BundleError:
    return BundleError(f"{series.folder}, DICOM series {series}: {problem}.")


def _name(series: DicomSeries, path: Path) -> str:
    """The name of a file, with its folder where the series has several, or of the folder itself."""
    return path.name if path == series.folder else path.relative_to(series.folder).as_posix()


def _names(series: DicomSeries, files: Sequence[Path]) -> str:
    shown = " and ".join(_name(series, path) for path in files[:2])
    return f"{shown} and {len(files) - 2} more" if len(files) > 2 else shown


def _decimals(value: Any) -> str:
    numbers = np.atleast_1d(np.array(value, dtype=np.float64))
    return f"[{', '.join(f'{number:g}' for number in numbers)}]" if numbers.size > 1 else f"{numbers[0]:g}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from warning about each tag that breaks a rule without harm: most scanners write some."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
