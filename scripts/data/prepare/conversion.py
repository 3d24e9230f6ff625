# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Conversion of a source's cases into images/ and labels/: in parallel, resumable, a bad case costs one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import BundleError, one_line
from ...nifti import write_nifti
from ..splits import IMAGE_PATTERN, LABEL_PATTERN, is_inside
from .reading import SourceCase, resample, walk

#: The files that each case was made of, with their sizes and dates; a line a case, so that it is appended to.
_SOURCES_FILE = "prepared_from.jsonl"


def convert_cases(
    cases: Sequence[SourceCase], output_dir: Path, *, spacing_mm: Sequence[float] | None = None, jobs: int = 2
) -> tuple[list[str], list[str]]:
    """Convert the cases that are not there yet.

    Args:
        cases: cases of the source.
        output_dir: folder of the data set.
        spacing_mm: spacing to resample to; None keeps that of the files.
        jobs: cases converted at the same time.

    Returns:
        One line for each case that could not be converted, which starts with its name, and one for each note.

    Raises:
        OSError: When a file cannot be written: the other ones could not either.
    """
    todo = [case for case in cases if not is_done(case, output_dir)]
    problems: dict[str, str] = {}
    notes: dict[str, str] = {}
    # Threads do: unpacking, numpy and the decoders let go of the interpreter's lock, and no volume need be sent between
    # processes.
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = {pool.submit(_convert, case, output_dir, spacing_mm): case for case in todo}
        done = len(cases) - len(todo)
        bar = tqdm(as_completed(futures), "prepare", total=len(cases), initial=done, unit="case", disable=None)
        try:
            for future in bar:
                case = futures[future]
                try:
                    note = future.result()
                except BundleError as error:
                    problems[case.name] = str(error)
                else:
                    notes |= {case.name: note} if note else {}
                    with (output_dir / _SOURCES_FILE).open("a", encoding="utf-8") as record:
                        record.write(json.dumps({"case": case.name, "files": _states(case)}) + "\n")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [f"{name}: {problems[name]}" for name in sorted(problems)], [
        f"{name}: {notes[name]}" for name in sorted(notes)
    ]


def image_path(output_dir: Path, case: str) -> Path:
    """Return where the image of a case is written."""
    return output_dir / IMAGE_PATTERN.replace("{case}", case)


def label_path(output_dir: Path, case: str) -> Path:
    """Return where the label of a case is written."""
    return output_dir / LABEL_PATTERN.replace("{case}", case)


def is_done(case: SourceCase, output_dir: Path) -> bool:
    """Return whether a case is there; its files have been renamed to their place as a whole."""
    return image_path(output_dir, case.name).is_file() and (
        not case.has_label or label_path(output_dir, case.name).is_file()
    )


def outdated_cases(cases: Sequence[SourceCase], output_dir: Path) -> list[str]:
    """Name the cases whose source is not what they were made of.

    Args:
        cases: cases that are there.
        output_dir: folder of the data set.

    Returns:
        those of which a file of the source was written later, or has another size or date than it had.
    """
    record = output_dir / _SOURCES_FILE
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    states = dict(entry for line in lines if (entry := _entry_of(line)))
    return [case.name for case in cases if _differs(case, states.get(case.name)) or _is_newer(case, output_dir)]


def _entry_of(line: str) -> tuple[str, list[list[Any]]] | None:
    try:
        entry = json.loads(line)
        return entry["case"], entry["files"]
    # A line that was being written when the process was killed.
    except (ValueError, KeyError, TypeError):
        return None


def _is_newer(case: SourceCase, output_dir: Path) -> bool:
    made = [image_path(output_dir, case.name), *[label_path(output_dir, case.name)] * case.has_label]
    written = [file.stat().st_mtime for file in _files_of(case)]
    return bool(written) and max(written) > min(path.stat().st_mtime for path in made)


def _differs(case: SourceCase, recorded: list[list[Any]] | None) -> bool:
    return recorded is not None and recorded != _states(case)


def _states(case: SourceCase) -> list[list[Any]]:
    # In whole seconds, as archives and other file systems keep them.
    return sorted(
        [file.name, status.st_size, int(status.st_mtime)] for file in _files_of(case) for status in [file.stat()]
    )


def _files_of(case: SourceCase) -> list[Path]:
    # A series of DICOM may lie some folders below that of its patient.
    files = [file for path in case.files for file in (walk(path) if path.is_dir() else [path])]
    # Of a broken link nothing can be said.
    return [file for file in files if file.exists()]


def _convert(case: SourceCase, output_dir: Path, spacing_mm: Sequence[float] | None) -> str:
    try:
        volumes = case.read()
        if spacing_mm is not None:
            volumes = resample(volumes, spacing_mm)
    except BundleError:
        raise
    except Exception as error:  # what no reader foresaw must not stop the other cases either
        raise BundleError(one_line(error)) from error
    targets = {image_path(output_dir, case.name): volumes.image}
    if volumes.label is not None:
        targets[label_path(output_dir, case.name)] = volumes.label
    for path, volume in targets.items():
        if not is_inside(path, output_dir):
            raise BundleError(f"{path} leads out of {output_dir}.")
        write_nifti(volume, path)
    return volumes.note
