# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A data set of one's own: a folder of images and labels, of DICOM series, or a table."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from pydicom import dcmread
from pydicom.misc import is_dicom

from ...errors import BundleError
from ..splits import composed, is_inside, some_of
from .reading import Source, SourceCase, Volumes, read_image, read_label, stem, walk

_COLUMNS = ("image", "label", "group")
_IMAGES, _LABELS = "images", "labels"
#: A segmentation of 3D Slicer, whose voxels are those of its segments alone, not those of the image.
_SLICER_SEGMENTATION = ".seg.nrrd"


@dataclass(frozen=True)
class _Row:
    image: Path
    label: Path | None = None
    group: str = ""


def find_folder(source: Path, *, table: str | None = None) -> Source:
    """Find the cases of a folder.

    Images are NIfTI or NRRD files, or folders of one DICOM series each.

    Args:
        source: folder with ``images/`` and ``labels/``, matched by name, or the folder above it; images without a
            label are unlabeled. Without ``images/``, each folder in it but ``labels/`` is a case in DICOM.
        table: CSV file with the columns image, label and group instead, its paths relative to the source; label and
            group may be empty. Cases of one group, such as a patient, stay on one side of a split.

    Returns:
        The cases, named as their image files or folders; where names repeat, with their folders before them.

    Raises:
        BundleError: when there is no image, or the table does not have these columns or no row.
    """
    above = source
    if table is None:
        source = _data_folder(source)
    rows, problems, notes = _list_folder(source) if table is None else _read_table(source, Path(table))
    if table is None:
        notes += _patient_notes(rows)
    if source != above:
        notes.append(f"Taken is {source.name}/, the only folder of the source with {_IMAGES}/ and {_LABELS}/.")
    counts = Counter(_name(row.image) for row in rows)
    cases = []
    for row in rows:
        name = _name(row.image)
        if counts[name] > 1:
            name = composed("_".join([*row.image.relative_to(source).parent.parts, name]))
        read = partial(_read, row, source=source)
        files = tuple(path for path in (row.image, row.label) if path is not None)
        cases.append(SourceCase(name, read, has_label=row.label is not None, group=row.group, files=files))
    if not cases and not problems and any(stem(path) is not None for path in _visible(source)):
        raise BundleError(
            f"source {source} holds volumes themselves: put the images into {source / _IMAGES} and the labels into "
            f"{source / _LABELS}, or name them in a --table."
        )
    if not cases and not problems:
        raise BundleError(f"source {source} holds no image: NIfTI or NRRD files, or folders of DICOM, are expected.")
    return Source(cases, problems, notes)


def _data_folder(source: Path) -> Path:
    """Find the folder with images/ and labels/: the only one in the source that has both, otherwise the source."""
    if (source / _IMAGES).is_dir() or (source / _LABELS).is_dir():
        return source
    # A case in DICOM may have a folder images/, too.
    folders = [path for path in _visible(source) if (path / _IMAGES).is_dir() and (path / _LABELS).is_dir()]
    return folders[0] if len(folders) == 1 else source


def _list_folder(source: Path) -> tuple[list[_Row], list[str], list[str]]:
    has_images = (source / _IMAGES).is_dir()
    entries = _visible(source / _IMAGES if has_images else source)
    beside: list[Path] = []
    for folder in (entry for entry in entries if entry != source / _LABELS):
        files_in = list(walk(folder))
        volumes = [path for path in files_in if stem(path) is not None]
        # Beside the slices of a series a volume is passed over.
        if volumes and any(path.is_file() and is_dicom(path) for path in files_in):
            beside += volumes
        elif volumes and not has_images:
            raise BundleError(
                f"source {source} has no {_IMAGES}/, so that its folders must be DICOM series, but {folder.name} holds "
                f"NIfTI or NRRD files and no DICOM: put them into {_IMAGES}/ and {_LABELS}/, or name them in a --table."
            )
    files: dict[str, list[Path]] = defaultdict(list)
    others: list[str] = []
    unread: list[Path] = []
    for path in _visible(source / _LABELS):
        if stem(path) is None or path.name.lower().endswith(_SLICER_SEGMENTATION):
            unread.append(path)
        else:
            files[_name(path)].append(path)
    repeated = {name: paths for name, paths in files.items() if len(paths) > 1}
    labels = {name: paths[0] for name, paths in files.items() if name not in repeated}
    images = []
    for path in entries:
        is_image = path.is_dir() if not has_images else path.is_dir() or stem(path) is not None
        if is_image and path != source / _LABELS:
            images.append(path)
        elif path.is_file():
            others.append(path.name)
    # A case whose label is there must not become an unlabeled one.
    unfit: dict[str, Path] = {}
    for path in unread:
        file = f"{composed(path.name)}."
        # Of cases called a and a.b, that of the longer name.
        case = max((name for name in map(_name, images) if file.startswith(f"{name}.")), key=len, default=None)
        if case is None:
            others.append(f"{_LABELS}/{path.name}")
        elif case not in labels and case not in repeated:
            unfit[case] = path
    named = {_name(path) for path in images}
    free = named.difference(labels, repeated, unfit)
    meant = {name: _alike(name, free) for name in labels if name not in named}
    withheld = {*repeated, *unfit, *chain.from_iterable(meant.values())}
    rows = [_Row(path, labels.pop(_name(path), None)) for path in images if _name(path) not in withheld]
    problems = [
        f"{name}: {_LABELS}/{path.name} is no label map in NIfTI or NRRD: export it as one, on the grid of the image."
        for name, path in sorted(unfit.items())
    ]
    for name, path in sorted(labels.items()):
        advice = f", or is it of {meant[name][0]}? Give both one name, or name them in a --table" if meant[name] else ""
        problems.append(f"{name}: {_LABELS}/{path.name} has no image{advice}.")
    problems += [
        f"{name}: one label is needed, got {' and '.join(path.name for path in paths)} in {_LABELS}."
        for name, paths in sorted(repeated.items())
    ]
    notes = []
    if others:
        verb = "is no volume" if len(others) == 1 else "are no volumes"
        notes = [f"{len(others)} file{'s' * (len(others) != 1)} {verb} and passed over, such as {others[0]}."]
    if beside:
        names = [path.relative_to(source).as_posix() for path in beside]
        case = _name(next(entry for entry in entries if entry in beside[0].parents))
        notes.append(
            f"passed over beside DICOM: {some_of(names)}; a label belongs into {_LABELS}/, such as "
            f"{_LABELS}/{case}.nii.gz."
        )
    return rows, problems, notes


def _patient_notes(rows: Iterable[_Row]) -> list[str]:
    """Tell of DICOM cases of one patient, each of which counts as a patient of its own without a table."""
    cases: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        cases[_patient(row.image)].append(_name(row.image))
    cases.pop("", None)
    shared = [" and ".join(names) for names in cases.values() if len(names) > 1]
    # One for all is what an anonymization leaves.
    if not shared or len(cases) == 1:
        return []
    return [
        f"cases with one PatientID: {'; '.join(shared[:10])}{'; ...' * (len(shared) > 10)}. Give those of a patient "
        "one group in a --table, or they may be trained on and tested."
    ]


def _patient(folder: Path) -> str:
    """PatientID of a series; empty where no file has one, or the reader will tell what is wrong."""
    files = (path for path in walk(folder) if path.is_file() and is_dicom(path))
    try:
        headers = (dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"]) for path in files)
        # A DICOMDIR has none.
        return next((str(header.PatientID) for header in headers if header.get("PatientID")), "")
    # A damaged file makes pydicom raise errors of many unrelated classes.
    except Exception:
        return ""


def _alike(label: str, images: Iterable[str]) -> list[str]:
    """Find images without a label that may be meant: exports add ``_0000`` to the one, ``-label`` to the other."""

    def parts(name: str) -> list[str]:
        return re.split(r"[_\-. ]+", name.casefold())

    def is_meant(name: str) -> bool:
        short, long = sorted((parts(label), parts(name)), key=len)
        return short in (long[: len(short)], long[-len(short) :])

    return sorted(filter(is_meant, images))


def _read_table(source: Path, table: Path) -> tuple[list[_Row], list[str], list[str]]:
    try:
        # A byte order mark is what spreadsheets begin with.
        text = table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BundleError(
            f"table {table} not found: it is looked for from the working folder, {Path.cwd()}, not from the source."
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"table {table} cannot be read as text in UTF-8: {error}.") from error
    reader = csv.DictReader(text.splitlines())
    columns = reader.fieldnames or ()
    if sorted(columns) != sorted(_COLUMNS):
        raise BundleError(
            f"table {table} must have the columns {', '.join(_COLUMNS)}, got {', '.join(columns) or 'none'}."
        )
    rows: list[_Row] = []
    problems = []
    line_of: dict[Path, int] = {}
    for line in reader:
        values = {column: (line[column] or "").strip() for column in _COLUMNS}
        # Spreadsheets write empty rows below the last one.
        if not any(values.values()) and None not in line:
            continue
        if not values["image"] or None in line:
            problems.append(f"{table.name}, line {reader.line_num}: needs an image; label and group may be empty.")
            continue
        paths = [Path(values[key]) for key in ("image", "label")]
        if any(path.is_absolute() or not is_inside(source / path, source) for path in paths):
            problems.append(f"{table.name}, line {reader.line_num}: paths must be relative and stay in {source}.")
            continue
        image, label = _stored(paths[0], source), _stored(paths[1], source) if values["label"] else None
        files = [path.resolve() for path in (image, label) if path is not None]
        if (repeated := next((file for file in files if file in line_of), None)) is not None:
            problems.append(
                f"{table.name}, line {reader.line_num}: {repeated.name} stands in line {line_of[repeated]} already; a "
                "file is the image or the label of one case."
            )
        elif len(set(files)) < len(files):
            problems.append(f"{table.name}, line {reader.line_num}: image and label are one file, {files[0].name}.")
        else:
            line_of |= dict.fromkeys(files, reader.line_num)
            rows.append(_Row(image, label, values["group"]))
    if not rows and not problems:
        raise BundleError(f"table {table} has no row below its columns.")
    return rows, problems, []


def _stored(path: Path, source: Path) -> Path:
    """Find the file of a table, which may write an umlaut as one letter where the system has stored two."""
    place = source
    for part in path.parts:
        alike = [] if (place / part).exists() else [p for p in _visible(place) if composed(p.name) == composed(part)]
        place = alike[0] if alike else place / part
    return place


def _read(row: _Row, *, source: Path) -> Volumes:
    image = read_image(row.image, source=source)
    return Volumes(image, None if row.label is None else read_label(row.label, image, source=source))


def _name(path: Path) -> str:
    return stem(path) or composed(path.name)


def _visible(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
