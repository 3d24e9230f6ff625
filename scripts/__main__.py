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

from .data.integrity import check_dataset, summary
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
        output_dir,
        num_cases=num_cases,
        size=size,
        modality=modality,  # type: ignore[arg-type]
        num_classes=num_classes,
        num_labeled=num_labeled,
        seed=seed,
        overwrite=str2bool(overwrite),
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
        lists: which lists of the split to check, such as labeled,unlabeled; by default all four.
        jobs: volumes that are read at the same time.
    """
    split = split_file or str(Path(dataset_dir) / "split.json")
    chosen = lists.split(",") if isinstance(lists, str) else lists
    problems = check_dataset(dataset_dir, split, num_classes=num_classes, lists=chosen, jobs=jobs)
    for problem in problems:
        _console.print(escape(problem))
    if problems:
        raise BundleError(f"{len(problems)} problem(s) in {dataset_dir}.")
    for line in summary(dataset_dir, split, jobs=jobs):
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
    _console.print(escape(str(write_boxes(dataset_dir, split_file, overwrite=str2bool(overwrite)))))


def picture(image: str, prediction: str, output: str, reference: str | None = None, num_slices: int = 1) -> None:
    """Draw a case: image, reference, prediction, and where the two differ.

    Args:
        image: NIfTI file of the volume.
        prediction: NIfTI file of its predicted label map.
        output: PNG file to write.
        reference: NIfTI file of its reference label map, if there is one.
        num_slices: slices in each of the three planes.
    """
    volumes = {"image": image, "prediction": prediction, **({"reference": reference} if reference else {})}
    loaded = {name: _read_volume(name, path) for name, path in volumes.items()}
    _, affine = loaded["image"]
    case_picture(
        loaded["image"][0],
        loaded["reference"][0] if reference else None,
        loaded["prediction"][0],
        output,
        Path(image).name,
        num_slices=num_slices,
        affine=affine,
    )
    _console.print(escape(output))


def _read_volume(name: str, path: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        volume: Any = nib.load(path)
        return np.asanyarray(volume.dataobj), volume.affine
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise BundleError(f"{name} {path} cannot be read as NIfTI: {str(error).splitlines()[0]}") from error


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
    except BundleError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
