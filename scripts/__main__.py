# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The command line of the bundle's tools: ``python -m scripts COMMAND``."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import numpy as np
from fire.decorators import SetParseFns
from rich.console import Console

from . import arguments
from .benchmark.benchmark import run_benchmark
from .console import check_arguments, silence_libraries
from .data.boxes import write_boxes
from .data.dicom import read_series
from .data.integrity import check_dataset
from .data.phantom import generate_phantom_dataset
from .data.prepare.conversion import image_path, label_path
from .data.prepare.dataset import SplitSettings, prepare_dataset
from .data.prepare.reading import on_grid
from .errors import BundleError
from .evaluation.montage import draw_montage
from .evaluation.pictures import case_picture
from .evaluation.report.report import write_report
from .export import extract_network
from .files import ROOT
from .grid.definition import define_grid
from .grid.execution import run_cell, run_grid
from .grid.methods import method_names
from .nifti import check_geometry, read_nifti
from .packaging.package import Package, write_package
from .packaging.run import run_package
from .packaging.task import task_package
from .predict import predict_volumes
from .settings import true_or_false
from .studies.calibration import calibrate_weights
from .studies.cases import study_cases
from .studies.robustness import study_robustness
from .studies.uncertainty import study_uncertainty

_PHANTOM_DIR = ROOT / "data" / "phantom"
_console = Console(emoji=False, highlight=False)


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
        arguments.text("output_dir", output_dir),
        num_cases=num_cases,
        size=size,
        modality=arguments.text("modality", modality),  # type: ignore[arg-type]
        num_classes=num_classes,
        num_labeled=num_labeled,
        seed=seed,
        overwrite=true_or_false("overwrite", overwrite),
    )
    _console.out(f"{num_cases} cases and their split file: {split}")


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
    folder = arguments.text("dataset_dir", dataset_dir)
    report = check_dataset(
        folder,
        str(Path(folder) / "split.json") if split_file is None else arguments.text("split_file", split_file),
        num_classes=arguments.optional(arguments.whole_number, "num_classes", num_classes, at_least=2),
        lists=arguments.optional(arguments.texts, "lists", lists),
        jobs=arguments.whole_number("jobs", jobs, at_least=1),
    )
    for problem in report.problems:
        _console.out(problem)
    if report.problems:
        raise BundleError(f"{len(report.problems)} problem(s) in {folder}.")
    for line in report.summary:
        _console.out(line)
    _console.out("no problem found")


# Names of cases, such as 007 or 12_1, are not numbers.
@SetParseFns(labeled=str)
def prepare(
    name: str,
    output_dir: str,
    source: str | None = None,
    fold: int | str | None = None,
    num_folds: int | None = None,
    num_labeled: int | None = None,
    labeled: str | None = None,
    num_validation: int = 0,
    seed: int = 0,
    spacing: float | list[float] | None = None,
    jobs: int = 2,
    crop_to_label: bool | None = None,
    form: str | None = None,
    tumor: str | None = None,
    task: str | None = None,
    channel: int | None = None,
    test_images: bool | None = None,
    table: str | None = None,
    continue_split: str | None = None,
    new_labels: str | None = None,
) -> None:
    """Turn a data set as it comes from its source into images/, labels/ and split files, check it and draw it.

    What was prepared before is kept, so that a run which was stopped goes on by the same command. A case that cannot be
    read costs one line and exit code 1; the others are prepared.

    Args:
        name: left_atrium, pancreas, decathlon, or folder for data of your own.
        output_dir: folder of the data set.
        source: folder or tar file as it was downloaded.
        fold: fold whose split is written as split_fold<K>_<N>.json, or all; without it split.json of fold 0.
        num_folds: folds by patient, drawn with the seed; left_atrium and pancreas have those of the literature. 0 for
            no test list, so that every case with a label is there for the training.
        num_labeled: number of labeled cases.
        labeled: the labeled cases by name, with commas between them, or a text file with one a line.
        num_validation: cases of the validation list.
        seed: seed of what is drawn.
        spacing: size of a voxel in mm to resample to, one number or three; without it the files keep theirs.
        jobs: cases that are converted at the same time.
        crop_to_label: left_atrium: crop around the atrium as the literature does. This uses the REFERENCE LABEL, AT
            TEST TIME TOO; results compare only to results with the same crop.
        form: left_atrium: nrrd or h5, where the source has both.
        tumor: pancreas: merge the tumor of Task07 into the pancreas (the default) or keep it as a class.
        task: decathlon: task to download instead of a source, such as Task04_Hippocampus.
        channel: decathlon: which channel of images with several, from 0.
        test_images: decathlon: add the test images, which have no label, to the unlabeled cases.
        table: folder: CSV file with the columns image, label, group instead of images/ and labels/.
        continue_split: split file whose cases stay in their lists; what has come since joins them in a further file.
        new_labels: with continue_split: list that new labels join, labeled (the default), validation or test.
    """
    folder = Path(arguments.text("output_dir", output_dir))
    splits = SplitSettings(
        fold=fold if fold is None or fold == "all" else arguments.whole_number("fold", fold, at_least=0),
        num_folds=arguments.optional(arguments.whole_number, "num_folds", num_folds, at_least=0),
        num_labeled=arguments.optional(arguments.whole_number, "num_labeled", num_labeled, at_least=1),
        labeled=() if labeled is None else arguments.case_names("labeled", labeled),
        num_validation=arguments.whole_number("num_validation", num_validation, at_least=0),
        seed=arguments.whole_number("seed", seed, at_least=0),
        continue_split=None if continue_split is None else Path(arguments.text("continue_split", continue_split)),
        new_labels=arguments.optional(arguments.text, "new_labels", new_labels),
    )
    # Only what was given: an option of another data set is refused.
    options: dict[str, Any] = {}
    for key, flag in (("crop_to_label", crop_to_label), ("test_images", test_images)):
        options |= {} if flag is None else {key: true_or_false(key, flag)}
    for key, text in (("form", form), ("tumor", tumor), ("task", task), ("table", table)):
        options |= {} if text is None else {key: arguments.text(key, text)}
    options |= {} if channel is None else {"channel": arguments.whole_number("channel", channel, at_least=0)}
    jobs = arguments.whole_number("jobs", jobs, at_least=1)
    prepared = prepare_dataset(
        arguments.text("name", name),
        None if source is None else Path(arguments.text("source", source)),
        folder,
        splits=splits,
        spacing_mm=arguments.optional(arguments.spacing_mm, "spacing", spacing),
        jobs=jobs,
        **options,
    )
    for line in (*prepared.problems, *prepared.notes):
        _console.out(line)
    # The split files of several folds have the same cases.
    findings = check_dataset(folder, prepared.split_files[0], jobs=jobs)
    for line in (*findings.problems, *findings.summary):
        _console.out(line)
    pictures = {
        case: (image_path(folder, case), label_path(folder, case) if has_label else None)
        for case, has_label in prepared.cases.items()
    }
    for path in (*prepared.split_files, *draw_montage(pictures, folder / "montage", jobs=jobs)):
        _console.out(path)
    num_problems = len(prepared.problems) + len(findings.problems)
    if num_problems:
        raise BundleError(
            f"{len(prepared.cases)} of {prepared.num_found} cases are prepared in {folder}; "
            f"{num_problems} problem(s), see the lines above."
        )
    _console.out(f"{len(prepared.cases)} cases are prepared in {folder}, no problem found")


def boxes(dataset_dir: str, split_file: str, overwrite: bool = False) -> None:
    """Write the box of each case's reference label to boxes.json, as the pancreas protocol needs it.

    It uses the reference labels of all cases, also of unlabeled and of test cases, as the literature does; only the
    six numbers of a box reach the training.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file.
        overwrite: replace the boxes of cases with a label in a boxes.json that is there.
    """
    path = write_boxes(
        arguments.text("dataset_dir", dataset_dir),
        arguments.text("split_file", split_file),
        overwrite=true_or_false("overwrite", overwrite),
    )
    _console.out(path)


def picture(
    image: str, prediction: str, output: str, reference: str | None = None, num_slices: int = 1, overwrite: bool = False
) -> None:
    """Draw a case: image, reference, prediction, and where the two differ.

    Args:
        image: NIfTI file of the volume, or folder of its DICOM series.
        prediction: NIfTI file of its predicted label map.
        output: PNG file to write, its name ends in .png.
        reference: NIfTI file of its reference label map, if there is one.
        num_slices: slices in each of the three planes.
        overwrite: replace a picture that is there.
    """
    volumes = {"image": arguments.text("image", image), "prediction": arguments.text("prediction", prediction)}
    if reference is not None:
        volumes["reference"] = arguments.text("reference", reference)
    target = Path(arguments.text("output", output))
    for name, path in volumes.items():
        if Path(path).resolve() == target.resolve():
            raise BundleError(f"output must be another file than {name}, got {output} for both.")
    if target.suffix.lower() != ".png":
        raise BundleError(f"output must end in .png, got {output}.")
    replace = true_or_false("overwrite", overwrite)
    if target.exists() and not replace:
        raise BundleError(f"output {output} is there already: replace it by --overwrite true, or choose another.")
    count = arguments.whole_number("num_slices", num_slices, at_least=1)
    loaded = {
        name: read_series(path).to_nifti() if name == "image" and Path(path).is_dir() else read_nifti(path, name)
        for name, path in volumes.items()
    }
    for name in list(volumes)[1:]:
        check_geometry(loaded[name], f"{name} {volumes[name]}")
        try:
            loaded[name] = on_grid(loaded[name], loaded["image"])
        except BundleError as error:
            raise BundleError(f"{name} {volumes[name]} does not fit the image: {error}") from error
    voxels = {name: np.asanyarray(volume.dataobj) for name, volume in loaded.items()}
    case_picture(
        voxels["image"],
        voxels.get("reference"),
        voxels["prediction"],
        target,
        Path(image).name,
        num_slices=count,
        affine=loaded["image"].affine,
    )
    _console.out(output)


def predict(
    input: str,
    output_dir: str,
    data: str | None = None,
    config_file: str | list[str] | None = None,
    model: str | None = None,
    dicom_seg: bool = False,
    class_names: str | list[str] | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> None:
    """Segment NIfTI volumes or DICOM series: a label map for each, and a DICOM SEG on demand.

    Args:
        input: a NIfTI file, a folder of them, or a folder with DICOM series in it or in its subfolders.
        output_dir: folder of the label maps, ``<case>_seg.nii.gz``.
        data: data set whose spacing, intensities, patch and classes the network was trained with, such as left_atrium.
        config_file: configuration files instead of configs/inference.json and that of data.
        model: TorchScript (.ts) or ONNX (.onnx) file of the network, instead of --ckpt_path.
        dicom_seg: write a DICOM SEG beside the label map of each DICOM series.
        class_names: names of the foreground classes in the DICOM SEG, with commas between; by default those of data.
        overwrite: replace files that are there.
        overrides: values by key of the configuration, such as --ckpt_path FILE or --patch_size "[96,96,96]".
    """
    predict_volumes(
        arguments.text("input", input),
        arguments.text("output_dir", output_dir),
        arguments.inference_files(data, config_file),
        overrides=overrides,
        model=arguments.optional(arguments.text, "model", model),
        dicom_seg=true_or_false("dicom_seg", dicom_seg),
        class_names=arguments.optional(arguments.texts, "class_names", class_names),
        overwrite=true_or_false("overwrite", overwrite),
    )
    _console.out(output_dir)


def crossval(
    data: str,
    methods: str | list[str],
    output_dir: str,
    folds: int | list[int] | None = None,
    seeds: int | list[int] = 0,
    recipe: str = "budget",
    dataset_dir: str | None = None,
    split_file: str | None = None,
    num_labeled: int | None = None,
    jobs: int | None = None,
    launcher: str | None = None,
    relaunch: bool = False,
    reference: str | None = None,
    **overrides: Any,
) -> None:
    """Train and evaluate methods by folds by seeds, each as a run of its own, and report them in one table.

    A grid that was stopped goes on by the same command; the folder takes further methods, folds and seeds. A run that
    fails is reported and does not stop the others.

    Args:
        data: name of the data overlay, such as hippocampus for configs/data_hippocampus.json.
        methods: names such as supervised_vnet,mean_teacher,dual_network; supervised is short for the first of these,
            all stands for every one of the bundle; a path ending in .json is an overlay of your own.
        output_dir: folder of the grid.
        folds: numbers such as 0,1; without it the one split that the data overlay names.
        seeds: numbers such as 0,1.
        recipe: what all methods share: budget, paper, ...; original for each method's own on these data.
        dataset_dir: folder of the data set; by default that of the data overlay.
        split_file: split file of your own, with {fold} for the number of the fold.
        num_labeled: labeled cases of the bundle's split files.
        jobs: runs at the same time on this machine; by default 1.
        launcher: command that takes a run elsewhere, such as "sbatch --gres=gpu:1 --wrap {command}".
        relaunch: with a launcher, hand over again what was handed over and has not begun, since it was cancelled.
        reference: method that the report compares the others with.
        overrides: further keys of the configuration for all runs, such as --iterations 3000.
    """
    chosen = arguments.texts("methods", methods)
    grid = define_grid(
        arguments.text("data", data),
        method_names() if chosen == ["all"] else chosen,
        folds=arguments.optional(arguments.whole_numbers, "folds", folds),
        seeds=arguments.whole_numbers("seeds", seeds),
        recipe=arguments.text("recipe", recipe),
        dataset_dir=arguments.optional(arguments.text, "dataset_dir", dataset_dir),
        split_file=arguments.optional(arguments.text, "split_file", split_file),
        num_labeled=arguments.optional(arguments.whole_number, "num_labeled", num_labeled, at_least=1),
        overrides=overrides,
    )
    folder = arguments.text("output_dir", output_dir)
    everything = grid.joined(folder)
    reference = arguments.optional(arguments.method_name, "reference", reference)
    if reference is not None and reference not in everything.methods:
        raise BundleError(f"reference must be one of {', '.join(everything.methods)}, got {reference!r}.")
    failed = run_grid(
        grid,
        folder,
        jobs=arguments.optional(arguments.whole_number, "jobs", jobs, at_least=1),
        launcher=arguments.optional(arguments.text, "launcher", launcher),
        relaunch=true_or_false("relaunch", relaunch),
        console=_console,
    )
    problems = []
    if failed:
        problems.append(f"{len(failed)} of the runs failed: {', '.join(cell.name for cell in failed)}.")
    if any(cell.evaluated for cell in everything.cells(folder)):
        try:
            report(folder, reference=reference)
        except (BundleError, OSError) as error:
            problems.append(f"No report: {error}")
    if problems:
        raise BundleError(" ".join(problems))


def cell(cell_dir: str) -> None:
    """Train and evaluate one run of a grid; crossval and its launcher call this.

    Args:
        cell_dir: folder of the run, GRID/cells/METHOD/SPLIT_seedN.
    """
    if not run_cell(arguments.text("cell_dir", cell_dir)):
        raise SystemExit(1)


def report(output_dir: str, reference: str | None = None) -> None:
    """Report a grid of runs: tables, tests, learning curves and pictures, as Markdown, CSV, LaTeX, PNG and HTML.

    Args:
        output_dir: folder of the grid; the report goes to its folder report.
        reference: method that the others are compared with; by default the dual network.
    """
    path = write_report(
        arguments.text("output_dir", output_dir),
        reference=arguments.optional(arguments.method_name, "reference", reference),
    )
    _console.out(f"report: {path}")


def robustness(
    dataset_dir: str,
    split_file: str,
    output_dir: str,
    data: str | None = None,
    config_file: str | list[str] | None = None,
    changes: str | list[str] | None = None,
    num_cases: int | None = None,
    seed: int = 0,
    **overrides: Any,
) -> None:
    """Measure what a segmentation loses on noise, blur, other axes, spacings, fields of view and gray values.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file; the test list counts.
        output_dir: folder of the table, the picture and the label maps; a study that was stopped goes on.
        data: data set whose spacing, intensities, patch and classes the network was trained with, such as left_atrium.
        config_file: configuration files instead of configs/inference.json and that of data.
        changes: which changes of the images, with commas between; by default all.
        num_cases: the first so many test cases; by default all.
        seed: of noise and bias fields.
        overrides: values by key of the inference configuration, such as --ckpt_path FILE.
    """
    path = study_robustness(
        arguments.text("dataset_dir", dataset_dir),
        arguments.text("split_file", split_file),
        arguments.text("output_dir", output_dir),
        arguments.inference_files(data, config_file),
        overrides=overrides,
        changes=arguments.optional(arguments.texts, "changes", changes),
        num_cases=arguments.optional(arguments.whole_number, "num_cases", num_cases, at_least=1),
        seed=arguments.whole_number("seed", seed, at_least=0),
    )
    _console.out(path.read_text(encoding="utf-8"))


def uncertainty(
    dataset_dir: str,
    split_file: str,
    output_dir: str,
    data: str | None = None,
    config_file: str | list[str] | None = None,
    num_cases: int | None = None,
    margin_mm: float = 5.0,
    **overrides: Any,
) -> None:
    """Measure whether the disagreement of both networks tells where and when a segmentation is wrong.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file; the test list counts.
        output_dir: folder of the table, the picture and the maps; a study that was stopped goes on.
        data: data set whose spacing, intensities, patch and classes the network was trained with, such as left_atrium.
        config_file: configuration files instead of configs/inference.json and that of data.
        num_cases: the first so many test cases; by default all.
        margin_mm: count voxels within this distance of the foreground beside all.
        overrides: values by key of the inference configuration, such as --ckpt_path FILE.
    """
    path = study_uncertainty(
        arguments.text("dataset_dir", dataset_dir),
        arguments.text("split_file", split_file),
        arguments.text("output_dir", output_dir),
        arguments.inference_files(data, config_file),
        overrides=overrides,
        num_cases=arguments.optional(arguments.whole_number, "num_cases", num_cases, at_least=1),
        margin_mm=margin_mm,
    )
    _console.out(path.read_text(encoding="utf-8"))


def benchmark(
    output_dir: str,
    parts: str | list[str] = "step,inference,start,pools",
    data: str | None = None,
    dataset_dir: str | None = None,
    split_file: str | None = None,
    num_cases: int = 1,
    patch_size: list[int] | tuple[int, ...] | None = None,
    strides: list[int] | tuple[int, ...] | None = None,
    num_steps: int = 3,
    pool_sizes: int | list[int] | tuple[int, ...] = (100, 1000, 10000),
    ckpt_path: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> None:
    """Measure speed and memory of training and inference, as ratios to plain float32 on the same machine.

    Args:
        output_dir: folder of benchmark.md, benchmark.json and the label maps.
        parts: what to measure: step, inference, start (of short trainings on the data set, with and without a cache
            on disk), and pools (short trainings on pools of pool_sizes cases).
        data: data set whose spacing, intensities and classes the weights were trained with, such as left_atrium.
        dataset_dir: folder of the data set whose test cases the inference segments and on whose training cases the
            part start trains; by default phantom volumes.
        split_file: its split file; by default split.json in that folder.
        num_cases: test cases to segment.
        patch_size: crop of the training and window of the inference; by default those of data, without data the paper's
            112x112x80.
        strides: steps of the window in the protocol with which the inference is compared; by default those of data,
            without data the paper's 18x18x4.
        num_steps: steps of training in each mode, after one that warms up.
        pool_sizes: numbers of cases, each at least 10.
        ckpt_path: weights of the dual network for the inference; without, only its time and memory are measured.
        device: such as cpu or cuda:0; by default a GPU if there is one.
        overwrite: replace the report of an earlier call.
    """
    folder = str(_PHANTOM_DIR) if dataset_dir is None else arguments.text("dataset_dir", dataset_dir)
    splits = str(Path(folder) / "split.json") if split_file is None else arguments.text("split_file", split_file)
    names, number = arguments.texts("parts", parts), arguments.whole_number("num_cases", num_cases, at_least=1)
    overlay = arguments.optional(arguments.text, "data", data)
    line = run_benchmark(
        arguments.text("output_dir", output_dir),
        lambda: study_cases(folder, splits, num_cases=number, phantom_dir=_PHANTOM_DIR),
        arguments.inference_files(overlay, None),
        training_overlays=[f"data_{overlay}"] if overlay and dataset_dir else [],
        training_data={"dataset_dir": folder, "split_file": splits} if dataset_dir else None,
        parts=names,
        patch_size=arguments.optional(arguments.three_sizes, "patch_size", patch_size),
        strides=arguments.optional(arguments.three_sizes, "strides", strides),
        num_steps=arguments.whole_number("num_steps", num_steps, at_least=1),
        pool_sizes=arguments.whole_numbers("pool_sizes", pool_sizes),
        ckpt_path=arguments.optional(arguments.text, "ckpt_path", ckpt_path),
        device=arguments.optional(arguments.text, "device", device),
        overwrite=true_or_false("overwrite", overwrite),
        show=_console.out,
    )
    _console.out(line)


def package(
    task: str,
    output_dir: str = "dist",
    weights: str | None = None,
    without_weights: bool = False,
    data: str | None = None,
    triton: bool = False,
    large_files_url: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the bundle of one task as the MONAI Model Zoo takes it: a folder and a zip file.

    Args:
        task: left_atrium, pancreas or hippocampus.
        output_dir: where NAME/, NAME_vVERSION.zip and, with triton, triton/NAME/ go.
        weights: weights of the network; by default the file that this bundle has for the task.
        without_weights: write a bundle that has to be trained first.
        data: data overlay with which the weights were trained, such as left_atrium_small; by default that of the task.
        triton: write a model repository for NVIDIA's Triton inference server too.
        large_files_url: address of a folder that serves NAME/models/model.pt; weights above 25 MB are then named in
            large_files.yml and left out.
        overwrite: replace what an earlier call left.
    """
    bundle = task_package(
        arguments.text("task", task),
        weights=arguments.optional(arguments.text, "weights", weights),
        without_weights=true_or_false("without_weights", without_weights),
        data=arguments.optional(arguments.text, "data", data),
    )
    _write_package(bundle, output_dir, triton, large_files_url, overwrite)


def package_run(
    run_dir: str,
    name: str,
    modality: str,
    data_source: str,
    authors: str,
    output_dir: str = "dist",
    weights: str | None = None,
    version: str = "0.1.0",
    triton: bool = False,
    large_files_url: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the bundle of a run on data of one's own, for MONAI Label, MONAI Deploy, 3D Slicer or other machines.

    Args:
        run_dir: folder of the run.
        name: name of the bundle, such as spleen_ct_segmentation.
        modality: MR, CT or another pair of letters by which DICOM names a type of image.
        data_source: where the data are from, for the page of the bundle.
        authors: who trained it, for the page of the bundle.
        output_dir: where NAME/, NAME_vVERSION.zip and, with triton, triton/NAME/ go.
        weights: weights of the network; by default those that the evaluation of the run takes.
        version: version of the bundle.
        triton: write a model repository for NVIDIA's Triton inference server too.
        large_files_url: address of a folder that serves NAME/models/model.pt; weights above 25 MB are then named in
            large_files.yml and left out.
        overwrite: replace what an earlier call left.
    """
    bundle = run_package(
        arguments.text("run_dir", run_dir),
        arguments.text("name", name),
        modality=arguments.text("modality", modality),
        data_source=arguments.free_text("data_source", data_source),
        authors=arguments.free_text("authors", authors),
        weights=arguments.optional(arguments.text, "weights", weights),
        version=arguments.free_text("version", version),
    )
    _write_package(bundle, output_dir, triton, large_files_url, overwrite)


def extract(ckpt_path: str, network: str, output: str, overwrite: bool = False) -> None:
    """Take one of the two networks out of the weights of the dual network.

    Args:
        ckpt_path: weights of the dual network.
        network: vnet or resnet_vnet.
        output: file of weights to write; method_supervised_vnet.json and method_supervised_resnet_vnet.json take it.
        overwrite: replace a file that is there.
    """
    path = arguments.text("output", output)
    extract_network(
        arguments.text("ckpt_path", ckpt_path),
        arguments.text("network", network),
        path,
        overwrite=true_or_false("overwrite", overwrite),
    )
    _console.out(path)


def calibrate(
    dataset_dir: str,
    split_file: str,
    output: str,
    data: str | None = None,
    config_file: str | list[str] | None = None,
    lists: str | list[str] = "validation",
    fit: str = "both",
    margin_mm: float | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> None:
    """Write weights whose probabilities are calibrated, and whose borders lie where they are likeliest.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file.
        output: file of weights to write.
        data: data set whose spacing, intensities, patch and classes the network was trained with, such as left_atrium.
        config_file: configuration files instead of configs/inference.json and that of data.
        lists: lists of the split whose cases count: labeled, validation, test.
        fit: both; scale, for how sure the probabilities are; or bias, for where the borders of the classes lie.
        margin_mm: count voxels within this distance of the foreground alone; by default all.
        overwrite: replace a file that is there.
        overrides: values by key of the inference configuration, such as --ckpt_path FILE.
    """
    text = calibrate_weights(
        arguments.text("dataset_dir", dataset_dir),
        arguments.text("split_file", split_file),
        arguments.text("output", output),
        arguments.inference_files(data, config_file),
        overrides=overrides,
        lists=arguments.texts("lists", lists),
        fit=arguments.text("fit", fit),
        margin_mm=margin_mm,
        overwrite=true_or_false("overwrite", overwrite),
    )
    _console.out(text)
    _console.out(arguments.text("output", output))


def _write_package(bundle: Package, output_dir: Any, triton: Any, large_files_url: Any, overwrite: Any) -> None:
    paths = write_package(
        bundle,
        arguments.text("output_dir", output_dir),
        triton=true_or_false("triton", triton),
        large_files_url=arguments.optional(arguments.text, "large_files_url", large_files_url),
        overwrite=true_or_false("overwrite", overwrite),
    )
    for path in paths:
        _console.out(path)


def main(words: Any = None) -> None:
    """Run a command and report a mistake in one line.

    Args:
        words: the words of the command line, by default those of this process.
    """
    functions: list[Callable[..., Any]] = [phantom, check, prepare, boxes, picture, predict, extract, calibrate]
    functions += [package, package_run, crossval, cell, report, robustness, uncertainty, benchmark]
    commands = {function.__name__: function for function in functions}
    # A path may hold what the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Who stops this process must stop the training of a cell too, and leave no temporary folder behind.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    words = list(sys.argv[1:] if words is None else words)
    silence_libraries()
    try:
        # Fire runs a command with the arguments that it knows, and complains of the others afterwards.
        if words and words[0] in commands:
            check_arguments(words[0], commands[words[0]], words[1:])
        fire.Fire(commands, command=words, name="python -m scripts")
    except BundleError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    # A folder that cannot be made, a full disk.
    except OSError as error:
        # Of two files the second is the one to be written, the first a temporary one.
        path = error.filename2 or error.filename
        sys.stderr.write(f"error: {f'{path}: {error.strerror}' if path and error.strerror else error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write(
            "stopped; crossval, prepare, robustness and uncertainty go on by the same command, predict with "
            "--skip_existing true\n"
        )
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
