# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a segmentation loses when its images are not like those of the training."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from monai.bundle import ConfigParser
from monai.transforms import GaussianSmooth, RandBiasField
from nibabel.affines import voxel_sizes
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.processing import resample_from_to

from ..data.geometry import class_volume_warnings, geometry_warnings
from ..errors import BundleError
from ..evaluation.canvas import light_grid, new_figure, save_figure
from ..evaluation.case_report import read_metrics
from ..evaluation.wording import markdown_table, mean_and_deviation, plural
from ..files import write_text
from ..nifti import read_nifti
from ..settings import check_settings
from .cases import (
    Study,
    check_references,
    claimed_study,
    label_array,
    measure_on_reference,
    segment,
    segmented,
    segmented_volume,
    study_cases,
)

Change = Callable[[nib.Nifti1Image, np.random.RandomState], nib.Nifti1Image]
_logger = logging.getLogger(__name__)


def _with(volume: nib.Nifti1Image, voxels: Any, affine: Any = None) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(voxels, dtype=np.float32), volume.affine if affine is None else affine)


def _noise(share: float) -> Change:
    def change(volume: nib.Nifti1Image, random: np.random.RandomState) -> nib.Nifti1Image:
        voxels = volume.get_fdata(dtype=np.float32)
        return _with(volume, voxels + random.normal(0, share * voxels.std(), voxels.shape))

    return change


def _bias_field(volume: nib.Nifti1Image, random: np.random.RandomState) -> nib.Nifti1Image:
    field = RandBiasField(prob=1.0, coeff_range=(0.0, 0.1))
    field.set_random_state(state=random)
    # The field multiplies: it belongs on values that start at 0.
    voxels = volume.get_fdata(dtype=np.float32)
    least = voxels.min()
    return _with(volume, field((voxels - least)[None])[0] + least)


def _blur(sigma_mm: float) -> Change:
    def change(volume: nib.Nifti1Image, random: np.random.RandomState) -> nib.Nifti1Image:
        sigma = [sigma_mm / float(size) for size in voxel_sizes(volume.affine)]
        return _with(volume, GaussianSmooth(sigma=sigma)(volume.get_fdata(dtype=np.float32)[None])[0])

    return change


def _orientation(codes: str) -> Change:
    def change(volume: nib.Nifti1Image, random: np.random.RandomState) -> nib.Nifti1Image:
        return volume.as_reoriented(ornt_transform(io_orientation(volume.affine), axcodes2ornt(codes)))

    return change


def _spacing(factor: float) -> Change:
    def change(volume: nib.Nifti1Image, random: np.random.RandomState) -> nib.Nifti1Image:
        # Along the axes of the file, which may be oblique to those of the patient.
        shape = tuple(math.ceil((size - 1) / factor) + 1 for size in volume.shape)
        grid = shape, volume.affine @ np.diag([factor, factor, factor, 1.0])
        return resample_from_to(volume, grid, order=1, mode="nearest")

    return change


def _field_of_view(of_air: bool) -> Change:
    def change(volume: nib.Nifti1Image, random: np.random.RandomState) -> nib.Nifti1Image:
        voxels = volume.get_fdata(dtype=np.float32)
        margins = [size // 2 for size in voxels.shape]
        affine = volume.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ margins
        filling = {"mode": "constant", "constant_values": voxels.min()} if of_air else {"mode": "reflect"}
        return _with(volume, np.pad(voxels, [(margin, margin) for margin in margins], **filling), affine)

    return change


def _intensity(factor: float, offset: float) -> Change:
    def change(volume: nib.Nifti1Image, random: np.random.RandomState) -> nib.Nifti1Image:
        return _with(volume, factor * volume.get_fdata(dtype=np.float32) + offset)

    return change


def _inverted(volume: nib.Nifti1Image, random: np.random.RandomState) -> nib.Nifti1Image:
    voxels = volume.get_fdata(dtype=np.float32)
    return _with(volume, voxels.max() + voxels.min() - voxels)


#: Every change by its name; the words after it are for the table.
CHANGES: dict[str, tuple[str, Change]] = {
    "none": ("the files as they are", lambda volume, random: volume),
    "noise_10": ("Gaussian noise, 10 % of the standard deviation of the volume", _noise(0.1)),
    "noise_30": ("Gaussian noise, 30 %", _noise(0.3)),
    "bias_field": ("bias field of third degree, of the default strength of MONAI", _bias_field),
    "blur_1mm": ("Gaussian blur, sigma 1 mm", _blur(1.0)),
    "blur_2mm": ("Gaussian blur, sigma 2 mm", _blur(2.0)),
    "axes_lpi": ("axes flipped, stored as LPI", _orientation("LPI")),
    "axes_sar": ("axes permuted, stored as SAR", _orientation("SAR")),
    "spacing_150": ("voxels 1.5 times as large along each axis", _spacing(1.5)),
    "field_of_view": ("twice the size along each axis, filled with reflected tissue", _field_of_view(of_air=False)),
    "field_of_air": (
        "twice the size along each axis, filled with air: the least gray value",
        _field_of_view(of_air=True),
    ),
    "intensity_10": ("gray values times 10, plus 100", _intensity(10.0, 100.0)),
    "inverted": ("gray values inverted: what was bright is dark", _inverted),
}


def study_robustness(
    dataset_dir: str,
    split_file: str,
    output_dir: str,
    config_file: Sequence[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    changes: Sequence[str] | None = None,
    num_cases: int | None = None,
    seed: int = 0,
) -> Path:
    """Segment the test cases as they are and changed in several ways, and compare both with the references.

    Every change writes ``<change>.csv`` when it is done; a study that was stopped goes on with the next change, and
    one that is complete is drawn again. ``study.json`` keeps apart studies of other cases, weights or configurations.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file; the test list counts.
        output_dir: folder of the tables, the picture and the label maps.
        config_file: see :func:`scripts.inference_configuration.inference_configs`.
        overrides: values by key of that configuration, such as ckpt_path.
        changes: names of :data:`CHANGES`; "none" is always among them. By default all.
        num_cases: the first so many cases of the list.
        seed: of noise and bias fields.

    Returns:
        the summary, ``robustness.md``.

    Raises:
        BundleError: when an argument is not allowed.
    """
    unknown = [name for name in changes or () if name not in CHANGES]
    if unknown:
        raise BundleError(f"changes must be of {', '.join(CHANGES)}, got {unknown[0]!r}.")
    check_settings(seed=seed)
    cases = study_cases(dataset_dir, split_file, num_cases=num_cases)
    arguments = inspect.signature(study_robustness).parameters
    with claimed_study(output_dir, cases, config_file, overrides or {}, arguments=arguments, seed=seed) as study:
        in_channels = study.parser.get_parsed_content("in_channels")
        if in_channels != 1:
            raise BundleError(
                f"in_channels must be 1, as the changes are of volumes with one channel, got {in_channels}."
            )
        # Before the hours of the networks.
        check_references(study)
        output, tables = study.folder, []
        for name in CHANGES:
            path = output / f"{name}.csv"
            # What an earlier call has measured stays in the table.
            if not (changes is None or name in ("none", *changes) or path.is_file()):
                continue
            if not path.is_file():
                _logger.info("%s: %s", name, CHANGES[name][0])
                _segment_changed(study, name, seed)
                write_text(path, _measure(study, output / name).to_csv(index=False))
            table = read_metrics(path)
            if set(table.get("case", ())) != {case.name for case in cases}:
                raise BundleError(f"output_dir {output}: {path.name} is of other cases; choose another --output_dir.")
            tables.append(table.assign(change=name))
        table = pd.concat(tables)
        _draw(table, output / "robustness.png")
        return write_text(output / "robustness.md", _summarize(table, len(cases)))


def _segment_changed(study: Study, name: str, seed: int) -> None:
    change = CHANGES[name][1]
    volumes = (
        change(read_nifti(case.image), np.random.RandomState([seed, index])) for index, case in enumerate(study.cases)
    )
    segment(study, volumes, study.folder / name)


def _measure(study: Study, folder: Path) -> pd.DataFrame:
    num_classes = study.parser.get_parsed_content("num_classes")
    rows = []
    for case in study.cases:
        prediction = segmented(folder, case)
        try:
            measured = measure_on_reference(prediction, read_nifti(case.label), num_classes)
        except BundleError as error:
            raise BundleError(f"case {case.name!r}: {error}") from error
        warned = _is_warned_of(segmented_volume(folder, case), prediction, study.parser)
        rows += [{"case": case.name, **row, "warned": warned} for row in measured]
    return pd.DataFrame(rows)


def _is_warned_of(volume: nib.Nifti1Image, prediction: nib.Nifti1Image, parser: ConfigParser) -> bool:
    """Whether inference tells its user to check this volume or its label map."""
    trained, of_classes = (
        {key: parser.get_parsed_content(key) for key in keys}
        for keys in (("trained_spacing", "trained_extent"), ("num_classes", "trained_class_volumes"))
    )
    return bool(
        geometry_warnings("", volume.affine, volume.shape, **trained)
        or class_volume_warnings("", label_array(prediction), prediction.affine, **of_classes)
    )


def _summarize(table: pd.DataFrame, num_cases: int) -> str:
    per_case = table.groupby(["change", "case"], sort=False)[["dice", "hd95_mm"]].mean()
    plain = per_case.loc["none"]
    heading = ("Change", "Dice [%]", "difference", "worst case", "95HD [mm]", "missed", "warned of")
    rows = []
    for name in dict.fromkeys(table["change"]):
        cases = per_case.loc[name]
        changed = table[table["change"] == name]
        missed = int((changed["status"] == "missed").sum())
        warned = int(changed.groupby("case")["warned"].any().sum())
        difference = 100 * (cases["dice"] - plain["dice"]).mean()
        row = (
            CHANGES[name][0],
            mean_and_deviation(cases["dice"].mean(), cases["dice"].std(), percent=True),
            "" if name == "none" else f"{difference:+.2f}",
            f"{100 * cases['dice'].min():.2f}",
            mean_and_deviation(cases["hd95_mm"].mean(), cases["hd95_mm"].std(), percent=False),
            str(missed),
            f"{warned} of {num_cases}",
        )
        rows.append(row)
    return (
        f"Mean and standard deviation over {num_cases} test {plural('case', num_cases)}, each the mean of its classes; "
        "95HD over the cases where a class was found; warned of are the volumes of which inference says to check them. "
        "What is found beyond the field of view of the reference does not count."
        f"\n\n{markdown_table(heading, rows)}\n"
    )


def _draw(table: pd.DataFrame, path: Path) -> Path:
    names = list(dict.fromkeys(table["change"]))
    samples = [100 * table[table["change"] == name].groupby("case")["dice"].mean().to_numpy() for name in names]
    figure = new_figure(8, 1.1 + 0.34 * len(names), layout="constrained")
    axes = figure.subplots()
    axes.boxplot(samples, orientation="horizontal", tick_labels=names, widths=0.6)
    axes.invert_yaxis()
    axes.set_xlabel("Dice [%]")
    light_grid(axes, axis="x")
    return save_figure(figure, path)
