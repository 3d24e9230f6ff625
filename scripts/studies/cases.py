# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The cases of a study: read from a split, segmented as a user would, compared with their references."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.bundle import ConfigParser
from monai.utils import CommonKeys
from monai.utils.misc import str2bool
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation, ornt_transform
from nibabel.processing import resample_from_to
from scipy import ndimage

from ..console import mistakes_in_one_line
from ..data.cases import load_cases
from ..data.loading import check_cases
from ..errors import BundleError
from ..evaluation.label_maps import case_file_name
from ..evaluation.metrics import evaluate_case
from ..files import file_hash, read_json_object, write_json
from ..inference_configuration import checked_configuration
from ..locks import locked_folder
from ..nifti import read_nifti
from ..predict import predict_volumes
from ..weights import check_weights

_STUDY_FILE = "study.json"
_LOCK_FILE = ".study.lock"
#: Keys of the configuration that a study sets itself.
_OWN_KEYS = (
    "dataset_dir",
    "datalist",
    "output_dir",
    "overwrite",
    "skip_existing",
    "output_postfix",
    "output_ext",
    "save_probabilities",
    "save_uncertainty",
)
#: Keys that change no figure beyond rounding: where and how fast it is computed. Weights are known by their content.
_WITHOUT_EFFECT = ("ckpt_path", "device", "keep_memory", "progress", "stitching_device", "sw_batch_size")


class Case(NamedTuple):
    """One case of the test list: its name, and the files of its image and its reference label map."""

    name: str
    image: Path
    label: Path


class Study(NamedTuple):
    """A study that was claimed: its folder and cases, and the files, overrides and content of its configuration."""

    folder: Path
    cases: Sequence[Case]
    config_file: Sequence[str]
    overrides: Mapping[str, Any]
    parser: ConfigParser


def study_cases(
    dataset_dir: str, split_file: str, *, num_cases: int | None = None, phantom_dir: str | Path | None = None
) -> list[Case]:
    """List the cases of the test list.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file.
        num_cases: the first so many cases; None takes all.
        phantom_dir: see :func:`scripts.data.cases.load_cases`.

    Returns:
        the cases in the order of the split.

    Raises:
        BundleError: when the split or a file is not as it should be, or the list is empty.
    """
    entries = load_cases(dataset_dir, split_file, lists=("test",), phantom_dir=phantom_dir)["test"][:num_cases]
    return [Case(entry["case"], Path(entry["image"]), Path(entry["label"])) for entry in entries]


@contextmanager
def claimed_study(
    output_dir: str | Path,
    cases: Sequence[Case],
    config_file: Sequence[str],
    overrides: Mapping[str, Any],
    *,
    arguments: Iterable[str],
    **settings: Any,
) -> Iterator[Study]:
    """Make sure that a folder is free, or holds the beginning of this very study; keep other processes out of it.

    Args:
        output_dir: folder of the study; ``study.json`` in it tells which study it is.
        cases: its cases.
        config_file: see :func:`scripts.inference_configuration.inference_configs`.
        overrides: values by key of the configuration.
        arguments: see :func:`scripts.configuration.check_overrides`.
        **settings: what else changes its figures, such as the seed.

    Yields:
        the study.

    Raises:
        BundleError: when an override is of a key that a study sets itself, or when the folder holds something else, or
            a study of other cases, weights, configuration or settings, or one that another process is at work on, or
            when a setting of the configuration is not allowed, or the weights are missing or of another network.
    """
    for name in overrides:
        if name in _OWN_KEYS:
            raise BundleError(f"--{name} must not be given: a study sets {', '.join(_OWN_KEYS)} itself.")
    parser = checked_configuration(config_file, overrides, arguments=arguments)
    _check_settings_and_weights(parser)
    weights = Path(parser.get_parsed_content("ckpt_path"))
    configuration = {name: value for name, value in parser.get().items() if name not in _WITHOUT_EFFECT}
    content = {
        "cases": _digest("\n".join(f"{case.name} {_identity(case.image)} {_identity(case.label)}" for case in cases)),
        "weights": file_hash(weights)[:16] if weights.is_file() else None,
        "configuration": _digest(json.dumps(configuration, sort_keys=True, default=str)),
        **settings,
    }
    folder = Path(output_dir)
    file = folder / _STUDY_FILE
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"output_dir must be a folder, but {folder} is a file.")
    if _is_begun(folder) and not file.is_file():
        raise BundleError(f"output_dir {folder} holds files that are not of this study: choose another.")
    with locked_folder(folder / _LOCK_FILE):
        # Of a study that was refused before it made anything, nothing must stay the same.
        if _is_begun(folder):
            try:
                known = read_json_object(file)
            except BundleError as error:
                raise BundleError(f"{error} Choose another --output_dir.") from error
            other = [name for name, value in content.items() if known.get(name) != value]
            if other:
                raise BundleError(f"output_dir {folder} holds a study of other {', '.join(other)}: choose another.")
        else:
            write_json(file, content)
        yield Study(folder, cases, config_file, overrides, parser)


def _check_settings_and_weights(parser: ConfigParser) -> None:
    """Refuse what an inference refuses at its beginning, which would leave a study that no other can take over."""
    with mistakes_in_one_line():
        parser.get_parsed_content("settings")
        if str2bool(parser.get_parsed_content("load_pretrain")):
            check_weights(parser.get_parsed_content("ckpt_path"), parser.get_parsed_content("network_def"))


def _is_begun(folder: Path) -> bool:
    return folder.is_dir() and any(path.name not in (_STUDY_FILE, _LOCK_FILE) for path in folder.iterdir())


def segment(study: Study, volumes: Iterable[nib.Nifti1Image], folder: Path, **options: Any) -> None:
    """Write volumes to files and segment them with the bundle's inference workflow.

    Args:
        study: the study.
        volumes: an image for each of its cases, one after the other.
        folder: the files go to its subfolder ``volumes``, the maps to ``maps``; whole maps of an earlier call of the
            same study are kept.
        **options: values by key of the configuration, beside the overrides of the study.
    """
    source = folder / "volumes"
    source.mkdir(parents=True, exist_ok=True)
    files = []
    for case, volume in zip(study.cases, volumes, strict=True):
        files.append(str(source / f"{case_file_name(case.name)}.nii.gz"))
        nib.save(volume, files[-1])
    settings = {**study.overrides, **options, "datalist": files, "skip_existing": True}
    # The study knows its weights by their content, not by their age.
    settings |= {"maps#weights_file": None}
    predict_volumes(source, folder / "maps", study.config_file, overrides=settings, logging_file=False)


def segmented(folder: Path, case: Case, kind: str = "seg") -> nib.Nifti1Image:
    """Open what :func:`segment` made of a case.

    Args:
        folder: its folder.
        case: the case.
        kind: "seg" for the label map, "probabilities" or "uncertainty" where they were asked for.

    Returns:
        the volume.
    """
    return read_nifti(folder / "maps" / f"{case_file_name(case.name)}_{kind}.nii.gz")


def segmented_volume(folder: Path, case: Case) -> nib.Nifti1Image:
    """Open what :func:`segment` segmented.

    Args:
        folder: its folder.
        case: the case.

    Returns:
        the volume.
    """
    return read_nifti(folder / "volumes" / f"{case_file_name(case.name)}.nii.gz")


def check_references(study: Study) -> None:
    """Make sure that each reference lies on the grid of its image, and holds classes, as an evaluation does.

    Args:
        study: the study.

    Raises:
        BundleError: for the first that does not; names the file.
    """
    options = {name: study.parser.get_parsed_content(name) for name in ("num_classes", "in_channels")}
    check_cases([{CommonKeys.IMAGE: case.image, CommonKeys.LABEL: case.label} for case in study.cases], **options)


def measure_on_reference(
    prediction: nib.Nifti1Image, reference: nib.Nifti1Image, num_classes: int
) -> list[dict[str, Any]]:
    """Bring a label map back to the grid of the reference and measure it there.

    Args:
        prediction: predicted label map, on any grid.
        reference: reference label map.
        num_classes: number of classes with the background.

    Returns:
        see :func:`scripts.evaluation.metrics.evaluate_case`.
    """
    prediction = carried_to_grid(prediction, reference.shape, reference.affine)
    # Of the affine, as everywhere: the sizes in the header of a file may say something else.
    spacing = voxel_sizes(reference.affine).tolist()
    return evaluate_case(label_array(prediction), label_array(reference), num_classes, spacing)


def carried_to_grid(labels: nib.Nifti1Image, shape: Sequence[int], affine: Any) -> nib.Nifti1Image:
    """Take the label of the nearest voxel for each voxel of another grid of the same field of view, or of a part of it.

    Args:
        labels: label map, (X, Y, Z).
        shape: voxels of the other grid along each axis.
        affine: its voxel indices to mm, 4x4.

    Returns:
        the label map there; itself, with other axes, where only these differ.
    """
    # Axes first, and exactly.
    axes = ornt_transform(io_orientation(labels.affine), io_orientation(affine))
    labels = labels.as_reoriented(axes)
    if labels.shape == tuple(shape) and np.allclose(labels.affine, affine, atol=1e-4):
        return labels
    # A voxel on the border that rounding moves outside would be background by the default mode.
    return resample_from_to(labels, (tuple(shape), affine), order=0, mode="nearest")


def check_margin(margin_mm: float) -> None:
    """Refuse a distance that is none.

    Args:
        margin_mm: the distance in mm.

    Raises:
        BundleError: when it is no number above 0.
    """
    if type(margin_mm) not in (int, float) or not 0 < margin_mm < math.inf:
        raise BundleError(f"margin_mm must be a number above 0, got {margin_mm!r}.")


def near_foreground(foreground: npt.NDArray[np.bool_], affine: Any, margin_mm: float) -> npt.NDArray[np.bool_]:
    """Find the voxels within a distance of the foreground; none where there is no foreground.

    Args:
        foreground: which voxels are foreground, (X, Y, Z).
        affine: voxel indices to mm, 4x4.
        margin_mm: the distance in mm.

    Returns:
        which voxels are near, the foreground itself among them, (X, Y, Z).
    """
    if not foreground.any():
        return foreground
    distance: Any = ndimage.distance_transform_edt(~foreground, sampling=voxel_sizes(affine))
    near: npt.NDArray[np.bool_] = distance <= margin_mm
    return near


def label_array(volume: nib.Nifti1Image) -> npt.NDArray[np.int64]:
    """Take the class indices of a label map.

    Args:
        volume: label map, (X, Y, Z).

    Returns:
        whole numbers, (X, Y, Z).
    """
    return np.rint(np.asanyarray(volume.dataobj)).astype(np.int64)


def _identity(path: Path) -> str:
    # A data set that is prepared anew has the same paths.
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
