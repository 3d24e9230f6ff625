# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The cases of a study: read from a split, segmented as a user would, compared with their references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation, ornt_transform
from nibabel.processing import resample_from_to

from ..data.splits import load_cases
from ..errors import BundleError
from ..evaluation.metrics import evaluate_case
from ..predict import predict_volumes


class Case(NamedTuple):
    """One case of the test list: its name, and the files of its image and its reference label map."""

    name: str
    image: Path
    label: Path


def study_cases(
    dataset_dir: str, split_file: str, *, num_cases: int | None = None, phantom_dir: str | Path | None = None
) -> list[Case]:
    """List the cases of the test list.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file.
        num_cases: the first so many cases; None takes all.
        phantom_dir: see :func:`scripts.data.splits.load_cases`.

    Returns:
        the cases in the order of the split.

    Raises:
        BundleError: when the split or a file is not as it should be, or the list is empty.
    """
    entries = load_cases(dataset_dir, split_file, lists=("test",), phantom_dir=phantom_dir)["test"][:num_cases]
    if not entries:
        raise BundleError(f"split_file {split_file} has no test case.")
    return [Case(entry["case"], Path(entry["image"]), Path(entry["label"])) for entry in entries]


def segment(
    volumes: Mapping[str, nib.Nifti1Image], folder: Path, config_file: Sequence[str], overrides: Mapping[str, Any]
) -> None:
    """Write volumes to files and segment them with the bundle's inference workflow.

    Args:
        volumes: image of each case by its name.
        folder: the files go to its subfolder ``volumes``, the maps to ``maps``; both are replaced.
        config_file: see :func:`scripts.predict.inference_configs`.
        overrides: values by key of the configuration.
    """
    source = folder / "volumes"
    source.mkdir(parents=True, exist_ok=True)
    for name, volume in volumes.items():
        nib.save(volume, source / f"{name}.nii.gz")
    predict_volumes(source, folder / "maps", config_file, overrides=overrides, overwrite=True, logging_file=False)


def read_map(path: Path) -> nib.Nifti1Image:
    """Open a volume that a workflow of this bundle wrote or a split lists.

    Args:
        path: NIfTI file.

    Returns:
        the volume.

    Raises:
        BundleError: when it cannot be read.
    """
    try:
        return nib.Nifti1Image.from_image(nib.load(path))
    except Exception as error:  # a broken file makes nibabel raise errors of a dozen unrelated classes
        raise BundleError(f"{path} cannot be read as NIfTI: {' '.join(str(error).split())}") from error


def compare(prediction: nib.Nifti1Image, reference: nib.Nifti1Image, num_classes: int) -> list[dict[str, Any]]:
    """Bring a label map back to the grid of the reference and measure it there.

    Args:
        prediction: predicted label map, on any grid.
        reference: reference label map.
        num_classes: number of classes with the background.

    Returns:
        see :func:`scripts.evaluation.metrics.evaluate_case`.
    """
    # Axes first, and exactly: resampling takes a voxel on the border that rounding moved outside for background.
    axes = ornt_transform(io_orientation(prediction.affine), io_orientation(reference.affine))
    prediction = prediction.as_reoriented(axes)
    if prediction.shape != reference.shape or not np.allclose(prediction.affine, reference.affine, atol=1e-4):
        prediction = resample_from_to(prediction, reference, order=0)
    return evaluate_case(label_array(prediction), label_array(reference), num_classes, reference.header.get_zooms()[:3])


def label_array(volume: nib.Nifti1Image) -> npt.NDArray[np.int64]:
    """Take the class indices of a label map.

    Args:
        volume: label map, (X, Y, Z).

    Returns:
        whole numbers, (X, Y, Z).
    """
    return np.rint(np.asanyarray(volume.dataobj)).astype(np.int64)
