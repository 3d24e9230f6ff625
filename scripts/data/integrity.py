# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Checks of a data set against its split file, to be run once before the first training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import BundleError, one_line
from ..nifti import check_compression, check_geometry, check_same_grid, rounded, unfit_labels
from .geometry import patient_axes
from .splits import LIST_NAMES, Split, SplitError, is_inside, read_split, some_of


@dataclass
class _Findings:
    """What was seen in the files of one case. A field that could not be found out is None."""

    case: str
    list_name: str
    problems: list[str] = field(default_factory=list)
    digest: str | None = None
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    intensity_range: tuple[float, float] | None = None
    label_values: tuple[int, ...] = ()
    foreground_share: float | None = None


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        problems: one line each, which starts with the case or the file; none when all is well.
        summary: lines of a table with one line a list, for people to compare with what they expect: cases, how many
            of them could be read, range of the shapes in voxels and of the spacing in mm, both along x, y and z of the
            patient, range of the intensities, and the mean share of foreground voxels (the unlabeled cases have none to
            show); below them a line for each class that some of the labeled cases have and others have not, and one for
            validation cases without foreground. Empty when no file was read.
    """

    problems: list[str]
    summary: list[str] = field(default_factory=list)


def check_dataset(
    dataset_dir: str | Path,
    split_file: str | Path,
    num_classes: int | None = None,
    lists: Sequence[str] | None = None,
    jobs: int = 2,
) -> Report:
    """Check all that a training takes for granted about its files, and describe them.

    Checked are: the schema of the split; that each file exists, stays in the folder and can be read to its end; that
    images are 3D (a fourth dimension of one is tolerated), finite and not constant; that a label has its image's shape
    and affine (to 1e-3) and holds class indices; that a labeled case has foreground; and that no two cases have the
    same image, which between two lists is a leak. The label of an unlabeled case is not looked at.

    Args:
        dataset_dir: folder of the data set.
        split_file: path of the split file.
        num_classes: number of classes with the background; label values must be below. When None, the values must
            be 0, 1, 2, ... without a gap over all cases.
        lists: lists to check and to describe, all four when None; the files of the others are not read.
        jobs: number of cases read at the same time.

    Returns:
        The problems and the summary.

    Raises:
        BundleError: when ``num_classes``, ``lists`` or ``jobs`` is out of its range, or the split file is not JSON.
    """
    if num_classes is not None and num_classes < 2:
        raise BundleError(f"num_classes must be at least 2, got {num_classes}.")
    try:
        split = read_split(split_file)
    except SplitError as error:
        return Report([f"{split_file}: {problem}" for problem in error.problems])
    dataset_path = Path(dataset_dir).expanduser()
    if not dataset_path.is_dir():
        return Report([f"{dataset_dir}: is not a folder."])
    # A list that is named twice must not make its cases duplicates of themselves.
    names = list(dict.fromkeys(LIST_NAMES if lists is None else lists))
    all_findings = _inspect_all(dataset_path, split, lists=names, num_classes=num_classes, jobs=jobs)
    problems = [problem for findings in all_findings for problem in findings.problems]
    if num_classes is None:
        problems += _gap_problems(all_findings, split_file)
    problems += _class_problems(all_findings, split_file)
    problems += _duplicate_problems(all_findings)
    lines = [*_summary_lines(all_findings, lists=names), *_lacking_lines(all_findings), *_empty_lines(all_findings)]
    return Report(problems, lines)


def _inspect_all(
    dataset_path: Path, split: Split, lists: Sequence[str], num_classes: int | None, jobs: int
) -> list[_Findings]:
    if jobs < 1:
        raise BundleError(f"jobs must be at least 1, got {jobs}.")
    todo = [(case, list_name) for list_name in lists for case in split.cases(list_name)]

    def inspect(item: tuple[str, str]) -> _Findings:
        return _inspect_case(dataset_path, split, case=item[0], list_name=item[1], num_classes=num_classes)

    # Threads do: unpacking and numpy let go of the interpreter's lock, and a volume need not be sent between processes.
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        return list(tqdm(pool.map(inspect, todo), total=len(todo), desc="check", unit="case", disable=None))


def _inspect_case(dataset_path: Path, split: Split, case: str, list_name: str, num_classes: int | None) -> _Findings:
    findings = _Findings(case=case, list_name=list_name)
    image = _load(findings, "image", dataset_path, split.image_path(case))
    if image is not None:
        _inspect_image(findings, *image)
    if list_name != "unlabeled":
        label = _load(findings, "label", dataset_path, split.label_path(case))
        if label is not None:
            _inspect_label(findings, *label, image=image, num_classes=num_classes)
    return findings


def _load(
    findings: _Findings, role: str, dataset_path: Path, relative_path: str
) -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """Read one file: its voxels in 3D and its affine, or None and a problem noted."""
    path = dataset_path / relative_path
    start = f"{findings.case}: {role} {relative_path}"
    if not is_inside(path, dataset_path):
        findings.problems.append(f"{start} leads out of {dataset_path}")
        return None
    if not path.is_file():
        findings.problems.append(f"{start} not found")
        return None
    try:
        file: Any = nibabel.load(path)
        voxels = np.asanyarray(file.dataobj)
        affine = np.asarray(file.affine, dtype=np.float64)
        if voxels.dtype.kind not in "biuf":
            raise ValueError(f"its voxels must be numbers, got {voxels.dtype}")
        finite = bool(np.isfinite(voxels).all())
    except Exception as error:  # a broken file makes nibabel raise errors of a dozen unrelated classes
        reason = one_line(error)
        findings.problems.append(f"{start} cannot be read ({type(error).__name__}: {reason})")
        return None
    if voxels.ndim == 4 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or not voxels.size:
        findings.problems.append(f"{start} must be 3D, got shape {voxels.shape}")
        return None
    if not finite:
        count = int(np.count_nonzero(~np.isfinite(voxels)))
        findings.problems.append(f"{start} has {count} non-finite value{'s' * (count != 1)}")
        return None
    try:
        check_compression(path, start)
        check_geometry(file, start)
    except BundleError as error:
        findings.problems.append(str(error).rstrip("."))
        return None
    return voxels, affine


def _inspect_image(findings: _Findings, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    axes = patient_axes(affine)
    findings.shape = tuple(int(number) for number in np.array(voxels.shape)[axes])
    findings.spacing_mm = tuple(float(number) for number in nibabel.affines.voxel_sizes(affine)[axes])
    findings.intensity_range = (float(voxels.min()), float(voxels.max()))
    if findings.intensity_range[0] == findings.intensity_range[1]:
        findings.problems.append(f"{findings.case}: image is constant, {findings.intensity_range[0]:g} everywhere")
    # In one data type, so that a copy that was stored in another is found as well.
    content = hashlib.blake2b(np.ascontiguousarray(voxels, dtype=np.float32).tobytes(), digest_size=16)
    findings.digest = f"{voxels.shape} {content.hexdigest()}"


def _inspect_label(
    findings: _Findings,
    voxels: NDArray[Any],
    affine: NDArray[np.float64],
    image: tuple[NDArray[Any], NDArray[np.float64]] | None,
    num_classes: int | None,
) -> None:
    start = f"{findings.case}: label"
    if image is not None:
        image_voxels, image_affine = image
        if voxels.shape != image_voxels.shape:
            findings.problems.append(f"{start} has shape {voxels.shape}, its image {image_voxels.shape}")
        try:
            check_same_grid(affine, image_affine, start)
        except BundleError as error:
            findings.problems.append(str(error).rstrip("."))
    highest = 255 if num_classes is None else num_classes - 1
    values = np.unique(voxels)
    unfit = unfit_labels(values, highest)
    if unfit.size:
        findings.problems.append(f"{start} values must be integers from 0 to {highest}, got {_some_numbers(unfit)}")
        return
    voxels = rounded(voxels)
    findings.label_values = tuple(int(value) for value in np.unique(rounded(values)))
    findings.foreground_share = float(np.count_nonzero(voxels)) / voxels.size
    if findings.list_name == "labeled" and not findings.foreground_share:
        findings.problems.append(f"{start} has no foreground")


def _gap_problems(all_findings: Sequence[_Findings], split_file: str | Path) -> list[str]:
    values = {value for findings in all_findings for value in findings.label_values}
    absent = sorted(set(range(max(values, default=0) + 1)) - values)
    if not values or not absent:
        return []
    beyond = [findings.case for findings in all_findings if max(findings.label_values, default=0) > absent[0]]
    return [
        f"{split_file}: label values must be 0, 1, 2, ... without a gap, "
        f"but over all cases they are {_some_numbers(sorted(values))}, without {_some_numbers(absent)}; "
        f"above {absent[0]} in {', '.join(beyond[:5])}{', ...' * (len(beyond) > 5)}"
    ]


def _class_problems(all_findings: Sequence[_Findings], split_file: str | Path) -> list[str]:
    """Classes of other cases that a training cannot learn, as no labeled case has them."""
    labeled = [set(findings.label_values) for findings in all_findings if findings.list_name == "labeled"]
    # Of a label that could not be read, its own problem tells.
    if not labeled or not all(labeled):
        return []
    missing = sorted({value for findings in all_findings for value in findings.label_values}.difference(*labeled))
    return [f"{split_file}: no labeled case has {_some_numbers(missing)}, which others have"] if missing else []


def _duplicate_problems(all_findings: Iterable[_Findings]) -> list[str]:
    problems = []
    first_with: dict[str, _Findings] = {}
    for findings in all_findings:
        if findings.digest is None:
            continue
        first = first_with.setdefault(findings.digest, findings)
        if first is findings:
            continue
        same = f"{findings.case}: has the same image as {first.case}"
        if first.list_name == findings.list_name:
            problems.append(f"{same}, both in the list {first.list_name}")
        else:
            problems.append(f"{same}, a leak between the lists {first.list_name} and {findings.list_name}")
    return problems


def _summary_lines(all_findings: Sequence[_Findings], lists: Sequence[str]) -> list[str]:
    rows = [("list", "cases", "read", "shape (x, y, z)", "spacing in mm (x, y, z)", "intensity", "foreground")]
    for list_name in lists:
        listed = [findings for findings in all_findings if findings.list_name == list_name]
        shapes = [findings.shape for findings in listed if findings.shape is not None]
        spacings = [findings.spacing_mm for findings in listed if findings.spacing_mm is not None]
        ranges = [findings.intensity_range for findings in listed if findings.intensity_range is not None]
        shares = [findings.foreground_share for findings in listed if findings.foreground_share is not None]
        intensity = f"{min(low for low, _ in ranges):.4g} to {max(high for _, high in ranges):.4g}" if ranges else "-"
        rows.append(
            (
                list_name,
                str(len(listed)),
                str(len(ranges)),
                _range_text(shapes, lambda number: f"{number:.0f}"),
                _range_text(spacings, lambda number: f"{number:.3g}"),
                intensity,
                f"{np.mean(shares):.2%}" if shares else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _lacking_lines(all_findings: Sequence[_Findings]) -> list[str]:
    """Classes that some labeled cases lack: an organ that was not drawn in them is trained on as background."""
    drawn = {
        findings.case: set(findings.label_values) - {0}
        for findings in all_findings
        if findings.list_name == "labeled" and findings.foreground_share
    }
    lines = []
    for value in sorted(set().union(*drawn.values())):
        lacking = [case for case, values in drawn.items() if value not in values]
        if lacking:
            lines.append(
                f"class {value} is in {len(drawn) - len(lacking)} of {len(drawn)} labeled cases, and background in "
                f"{some_of(lacking)}"
            )
    return lines


def _empty_lines(all_findings: Sequence[_Findings]) -> list[str]:
    """Validation cases without foreground, by which a network that finds nothing wins."""
    empty = [
        findings.case
        for findings in all_findings
        if findings.list_name == "validation" and findings.foreground_share == 0
    ]
    if not empty:
        return []
    return [
        f"no foreground for validation in {some_of(empty)}: Dice is 1 where nothing is found, which chooses model.pt"
    ]


def _range_text(rows: Sequence[Sequence[float]], to_text: Callable[[float], str]) -> str:
    """Lowest and highest of each column: ``(60, 61, 64) to (68, 68, 67)``, or one of them when they are equal."""
    if not rows:
        return "-"
    lowest, highest = (
        f"({', '.join(to_text(float(choose(column))) for column in zip(*rows, strict=True))})" for choose in (min, max)
    )
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _some_numbers(numbers: Sequence[Any] | NDArray[Any]) -> str:
    shown = ", ".join(f"{number:g}" for number in numbers[:5])
    return shown if len(numbers) <= 5 else f"{shown}, ... ({len(numbers)} values)"
