# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The command line of the bundle's tools: ``python -m scripts COMMAND``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
from monai.utils.misc import str2bool
from rich.console import Console
from rich.markup import escape

from .data.integrity import check_dataset
from .data.phantom import generate_phantom_dataset
from .data.splits import write_boxes
from .errors import BundleError
from .evaluation.pictures import case_picture

_console = Console(highlight=False, soft_wrap=True)


def phantom(
    output_dir: str,
    num_cases: int = 12,
    size: int = 64,
    modality: str = "mri",
    num_classes: int = 2,
    num_labeled: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Generate volumes with smooth organs, their labels and a split file.

    Args:
        output_dir: folder for images/, labels/ and split.json.
        num_cases: number of volumes.
        size: edge length in voxels, or three of them.
        modality: "mri" or "ct" (in Hounsfield units).
        num_classes: classes with the background.
        num_labeled: labeled cases of the split; by default a quarter of all.
        seed: seed of the shapes and of the noise.
        overwrite: replace a data set that is there.
    """
    split = generate_phantom_dataset(
        _text("output_dir", output_dir),
        num_cases=num_cases,
        size=size,
        modality=_text("modality", modality),  # type: ignore[arg-type]
        num_classes=num_classes,
        num_labeled=num_labeled,
        seed=seed,
        overwrite=_truth("overwrite", overwrite),
    )
    _console.print(f"{num_cases} cases and their split file: {escape(str(split))}")


def check(
    dataset_dir: str,
    split_file: str | None = None,
    num_classes: int | None = None,
    lists: str | list[str] | None = None,
    jobs: int = 2,
) -> None:
    """Verify a data set before training: one line a problem, exit code 0 only when there is none.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file; by default split.json in that folder.
        num_classes: classes with the background; without it, label values must be without gaps.
        lists: which lists of the split to check and to describe, such as labeled,unlabeled; by default all four.
        jobs: volumes that are read at the same time.
    """
    folder = _text("dataset_dir", dataset_dir)
    report = check_dataset(
        folder,
        str(Path(folder) / "split.json") if split_file is None else _text("split_file", split_file),
        num_classes=None if num_classes is None else _whole_number("num_classes", num_classes, at_least=2),
        lists=None if lists is None else _texts("lists", lists),
        jobs=_whole_number("jobs", jobs, at_least=1),
    )
    for problem in report.problems:
        _console.print(escape(problem))
    if report.problems:
        raise BundleError(f"{len(report.problems)} problem(s) in {folder}.")
    for line in report.summary:
        _console.print(escape(line))
    _console.print("no problem found")


def boxes(dataset_dir: str, split_file: str, overwrite: bool = False) -> None:
    """Write the box of each case's reference label to boxes.json, as the pancreas protocol needs it.

    It uses the reference labels of all cases, also of unlabeled and of test cases, as the literature does; only the
    six numbers of a box reach the training.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file.
        overwrite: replace a boxes.json that is there.
    """
    path = write_boxes(
        _text("dataset_dir", dataset_dir), _text("split_file", split_file), overwrite=_truth("overwrite", overwrite)
    )
    _console.print(escape(str(path)))


def picture(image: str, prediction: str, output: str, reference: str | None = None, num_slices: int = 1) -> None:
    """Draw a case: image, reference, prediction, and where the two differ.

    Args:
        image: NIfTI file of the volume.
        prediction: NIfTI file of its predicted label map.
        output: PNG file to write, its name ends in .png.
        reference: NIfTI file of its reference label map, if there is one.
        num_slices: slices in each of the three planes.
    """
    volumes = {"image": _text("image", image), "prediction": _text("prediction", prediction)}
    if reference is not None:
        volumes["reference"] = _text("reference", reference)
    target = Path(_text("output", output))
    for name, path in volumes.items():
        if Path(path).resolve() == target.resolve():
            raise BundleError(f"output must be another file than {name}, got {output} for both.")
    if target.suffix.lower() != ".png":
        raise BundleError(f"output must end in .png, got {output}.")
    count = _whole_number("num_slices", num_slices, at_least=1)
    loaded = {name: _read_volume(name, path) for name, path in volumes.items()}
    _, affine = loaded["image"]
    case_picture(
        loaded["image"][0],
        loaded["reference"][0] if reference is not None else None,
        loaded["prediction"][0],
        target,
        Path(image).name,
        num_slices=count,
        affine=affine,
    )
    _console.print(escape(output))


def _read_volume(name: str, path: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        volume: Any = nib.load(path)
        return np.asanyarray(volume.dataobj), volume.affine
    except Exception as error:  # a broken file makes nibabel raise errors of a dozen unrelated classes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{name} {path} cannot be read as NIfTI: {reason}") from error


# Fire turns words into whatever Python they look like, so each argument is looked at before it is used.


def _whole_number(name: str, value: Any, *, at_least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise BundleError(f"{name} must be a whole number of at least {at_least}, got {value!r}.")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BundleError(f"{name} must be a text, got {value!r}.")
    return value


def _texts(name: str, value: Any) -> list[str]:
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not words or not all(isinstance(word, str) for word in words):
        raise BundleError(f"{name} must be texts with commas between them, got {value!r}.")
    return [word.strip() for word in words]


def _truth(name: str, value: Any) -> bool:
    try:
        return str2bool(value)
    except ValueError:
        raise BundleError(f"{name} must be true or false, got {value!r}.") from None


def main(arguments: Any = None) -> None:
    """Run a command and report a mistake in one line.

    Args:
        arguments: the words of the command line, by default those of this process.
    """
    try:
        fire.Fire(
            {"phantom": phantom, "check": check, "boxes": boxes, "picture": picture},
            command=arguments,
            name="python -m scripts",
        )
    # An OSError names the file and the reason: a folder that cannot be made, a full disk.
    except (BundleError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
