# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Segmentation of NIfTI volumes and DICOM series with the bundle's inference workflow."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import CommonKeys
from monai.utils.misc import str2bool
from pydicom import dcmread
from tqdm import tqdm

from .console import mistakes_in_one_line, silence_libraries
from .data.dicom import DicomSeries, NoSeriesError, find_series, read_series
from .data.dicom_seg import check_references, write_dicom_seg
from .data.splits import is_inside
from .errors import BundleError, is_out_of_memory, one_line
from .evaluation.label_maps import case_file_name
from .evaluation.metrics import foreground_names
from .files import CONFIGS, ROOT, check_literal_path, check_writable
from .inference_configuration import checked_configuration, is_onnx
from .nifti import VOLUME_SUFFIXES, check_capitals, is_same_grid, volume_name, volumes_in

_LOGGING_FILE = str(CONFIGS / "logging.conf")
#: Those that configs/metadata.json is of.
_WEIGHTS = ROOT / "models/model.pt"
_INPUTS = "a NIfTI file, a folder of them, or a folder with DICOM series in it or in its subfolders"
#: Names converted series in messages, as the files are gone afterwards.
_NAMED_DATA = "$[{'image': volume, 'case': Path(volume).stem} for volume in @datalist]"
_logger = logging.getLogger(__name__)


def predict_volumes(
    source: str | Path,
    output_dir: str | Path,
    config_file: Sequence[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    model: str | None = None,
    dicom_seg: bool = False,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
    logging_file: str | bool = _LOGGING_FILE,
) -> None:
    """Segment volumes: a NIfTI label map for each, in its geometry, and a DICOM SEG for each series on demand.

    NIfTI volumes go into the inference workflow as they are. DICOM series are converted into a temporary folder within
    ``output_dir`` first. A label map of a series is named after its folder, relative to ``source``.

    Args:
        source: a NIfTI file, a folder of them, or a folder with DICOM series in it or in its subfolders; DICOM is
            looked for when the folder itself has no NIfTI file.
        output_dir: folder of the label maps.
        config_file: configuration files, see :func:`scripts.inference_configuration.inference_configs`.
        overrides: values by key of the configuration, such as ``ckpt_path``.
        model: TorchScript or ONNX export of ``network_def``, instead of the configured network and its weights.
        dicom_seg: write a DICOM SEG beside the label map of each DICOM series.
        class_names: names of the foreground classes for the DICOM SEG; by default those of the data overlay, or of
            metadata.json with the weights of the bundle.
        overwrite: replace files that are there.
        logging_file: configuration of logging, False for none.

    Raises:
        BundleError: when an argument is not allowed, and at the end when a volume could not be segmented.
    """
    path, output = Path(source), Path(output_dir)
    for name, place in (("input", path), ("output_dir", output)):
        check_literal_path(name, str(place))
    given = dict(overrides or {})
    checked_configuration(config_file, given, model, arguments=inspect.signature(predict_volumes).parameters)
    series = _name_series(path, _series_at(path))
    _check_places(path, output, series)
    if not series and dicom_seg:
        raise BundleError(f"dicom_seg needs DICOM series as input, got the NIfTI volumes of {source}.")
    if class_names is not None and not dicom_seg:
        raise BundleError("class_names are the names in a DICOM SEG: they need dicom_seg.")
    if model is not None:
        given["network_def"] = (
            {"_target_": "scripts.networks.onnx_network.OnnxNetwork", "path": model}
            if is_onnx(model)
            else {"_target_": "torch.jit.load", "f": model, "map_location": "@device"}
        )
        given["load_pretrain"] = False
    silence_libraries()
    with _volumes_of(path, output, series) as folder:
        with mistakes_in_one_line():
            workflow = ConfigWorkflow(
                config_file=list(config_file),
                meta_file=str(CONFIGS / "metadata.json"),
                logging_file=logging_file,
                workflow_type="infer",
                # A volume may take minutes, so its windows have a progress bar with the time left.
                **{"bundle_root": str(CONFIGS.parent), "progress": sys.stderr.isatty(), **given},
                **({"dataset#data": _NAMED_DATA} if series else {}),
                dataset_dir=str(folder),
                output_dir=str(output),
                overwrite=overwrite,
            )
            workflow.initialize()
            workflow.parser.get_parsed_content("settings")
            if model is not None:
                _check_model(model, workflow.parser)
        if not series:
            with mistakes_in_one_line():
                workflow.run()
            return
        _tell_of_volumes(path, output)
        names = None
        if dicom_seg:
            names = _class_names(class_names, workflow.parser, model)
        _run_on_series(workflow, series, folder, output, class_names=names)


def _run_on_series(
    workflow: ConfigWorkflow,
    series: Mapping[str, DicomSeries],
    folder: Path,
    output: Path,
    *,
    class_names: Sequence[str] | None,
) -> None:
    """Convert the series into ``folder``, segment them, and write a DICOM SEG of each where there are class names."""
    parser = workflow.parser
    maps, postfix, suffix = (parser.get_parsed_content(key) for key in ("maps", "output_postfix", "output_ext"))
    volumes = [{"image": str(folder / f"{name}.nii")} for name in series]
    maps.check([item["image"] for item in volumes], str(folder))
    segs = {} if class_names is None else {name: output / f"{name}_{postfix}.dcm" for name in series}
    maps.refuse_taken([path.name for path in segs.values() if os.path.lexists(path)])
    unfinished = {volume_name(item["image"]) for item in maps.unfinished(volumes)}
    # Their label maps are there, from a run that was stopped before, or that wrote no DICOM SEG.
    without_seg = [name for name, path in segs.items() if name not in unfinished and not path.exists()]
    wanted = {name: entry for name, entry in series.items() if name in unfinished or name in without_seg}
    files = _convert(wanted, folder, for_seg=class_names is not None)
    problems = []
    if len(files) < len(wanted):
        problems.append(
            f"{len(wanted) - len(files)} of {len(series)} DICOM series cannot be segmented, see the lines above."
        )
    if files:
        writer = _SegWriter(files, output, postfix, class_names or (), version=str(parser["_meta_#version"]))
        for name in without_seg:
            if name in files:
                writer.write_of_file(name, output / f"{name}_{postfix}{suffix}", nib.load(folder / f"{name}.nii"))
        try:
            with mistakes_in_one_line():
                if class_names is not None:
                    parser.get_parsed_content("evaluator").add_event_handler(Events.ITERATION_COMPLETED, writer)
                workflow.run()
        except BundleError as error:
            problems.append(str(error))
        if writer.num_failed:
            problems.append(f"{writer.num_failed} DICOM SEG cannot be written, see the lines above.")
    if problems:
        raise BundleError(" ".join(problems))


def _convert(series: Mapping[str, DicomSeries], folder: Path, *, for_seg: bool) -> dict[str, list[str]]:
    """Write each series as NIfTI; report those that cannot be read; return the sorted files of the others."""
    files = {}
    for name, entry in tqdm(series.items(), desc="reading DICOM", unit="series", disable=None):
        try:
            volume = read_series(entry)
            if for_seg:
                check_references(volume.datasets)
        except BundleError as error:
            _logger.error("%s cannot be segmented: %s", name, error)
            continue
        nib.save(volume.to_nifti(), folder / f"{name}.nii")
        files[name] = [str(dataset.filename) for dataset in volume.datasets]
    return files


class _SegWriter:
    """Writes a DICOM SEG when a volume is done; one that fails is reported, and the others go on.

    The headers of the source are read again here: those of all series together may not fit into memory.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[str]],
        output: Path,
        postfix: str,
        class_names: Sequence[str],
        *,
        version: str,
    ) -> None:
        self.files = files
        self.output = output
        self.postfix = postfix
        self.class_names = class_names
        self.version = version
        self.num_failed = 0

    def __call__(self, engine: Engine) -> None:
        for item in engine.state.output:  # type: ignore[union-attr]
            name = volume_name(item[CommonKeys.IMAGE].meta["filename_or_obj"])
            self.write(name, item[CommonKeys.PRED][0].cpu().numpy())

    def write_of_file(self, name: str, path: Path, volume: Any) -> None:
        """Write the DICOM SEG of a label map from an earlier run, if it is still that of the series.

        Args:
            name: of the series.
            path: file of the label map.
            volume: the series as NIfTI.
        """
        label_map: Any = nib.load(path)
        # Of another patient, it must not go into this one's study.
        is_older = path.stat().st_mtime_ns < max(os.stat(file).st_mtime_ns for file in self.files[name])
        if is_older or label_map.shape != volume.shape or not is_same_grid(label_map.affine, volume.affine):
            self.num_failed += 1
            reason = "is older than the series" if is_older else "lies on another grid than the series"
            _logger.error(
                "the DICOM SEG of %s cannot be written: %s %s, which may have been replaced: delete it, or make all "
                "anew by --overwrite true in the place of --skip_existing.",
                name,
                path,
                reason,
            )
            return
        self.write(name, np.asanyarray(label_map.dataobj))

    def write(self, name: str, label_map: np.ndarray) -> None:
        """Write the DICOM SEG of one series.

        Args:
            name: of the series.
            label_map: class indices, (X, Y, Z), in the geometry of the series.
        """
        try:
            write_dicom_seg(
                self.output / f"{name}_{self.postfix}.dcm",
                label_map.astype(np.uint8),
                [dcmread(path, stop_before_pixels=True) for path in self.files[name]],
                self.class_names,
                version=self.version,
            )
        # Headers break the rules of DICOM in as many ways as there are scanners.
        except Exception as error:
            self.num_failed += 1
            _logger.error("the DICOM SEG of %s cannot be written: %s", name, one_line(error))


# --- what was given ---------------------------------------------------------------------------------------------------


def _series_at(path: Path) -> list[DicomSeries]:
    """Find the DICOM series of the input; none when the input is NIfTI."""
    if path.is_file():
        check_capitals("input", path)
    if path.is_file() and path.name.endswith(VOLUME_SUFFIXES):
        return []
    if not path.is_dir():
        raise BundleError(f"input must be {_INPUTS}, got {path}.")
    if volumes_in(path):
        check_capitals("input", path)
        return []
    try:
        return find_series(path, follow_links=True)
    except NoSeriesError as error:
        check_capitals("input", path)
        raise BundleError(f"input must be {_INPUTS}, and there is none of them in {path}.") from error


def _tell_of_volumes(path: Path, output: Path) -> None:
    """Warn of NIfTI volumes below a folder of DICOM series, but for hidden ones and those of the output."""
    volumes = [
        file.relative_to(path)
        for file in sorted(path.rglob("*.nii*"))
        if file.name.endswith(VOLUME_SUFFIXES) and not is_inside(file, output)
    ]
    volumes = [file for file in volumes if not any(part.startswith(".") for part in file.parts)]
    if volumes:
        _logger.warning(
            "input %s holds DICOM series: NIfTI volumes in its subfolders are passed over, such as %s (%d in all).",
            path,
            volumes[0],
            len(volumes),
        )


def _name_series(root: Path, found: Sequence[DicomSeries]) -> dict[str, DicomSeries]:
    """Name series after their folders, and after their numbers where a folder has several."""
    series_in = Counter(series.folder for series in found)
    same_number = Counter((series.folder, series.number) for series in found)
    named: dict[str, DicomSeries] = {}
    for series in found:
        words = list(series.folder.relative_to(root).parts) or [root.resolve().name.lstrip(".") or "series"]
        if series_in[series.folder] > 1:
            is_unique = same_number[series.folder, series.number] == 1
            words.append(str(series.number) if is_unique else case_file_name(series.uid or "without_uid"))
        name = "_".join(words)
        if name in named:
            raise BundleError(
                f"the DICOM series in {named[name].folder} and {series.folder} would both be named {name}: "
                "rename one of the folders."
            )
        named[name] = series
    return named


def _check_places(path: Path, output: Path, series: Mapping[str, DicomSeries]) -> None:
    check_writable("output_dir", output)
    folders = {file.parent for entry in series.values() for file in (*entry.files, *entry.damaged)}
    if series and output.resolve() in {folder.resolve() for folder in (path, *folders)}:
        raise BundleError(
            f"output_dir must be another folder than those of the DICOM series, got {output}: "
            "the label maps would mix with the images."
        )


def _check_model(model: str, parser: ConfigParser) -> None:
    """Make sure that an exported network can be read, takes the windows, and has a channel for each class."""
    kind = "an ONNX" if is_onnx(model) else "a TorchScript"
    try:
        network = parser.get_parsed_content("network")
    # A file of something else makes torch and ONNX Runtime raise errors of many classes.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BundleError(f"model {model} cannot be read as {kind} file.") from error
    if str2bool(parser.get_parsed_content("save_uncertainty")):
        raise BundleError(f"save_uncertainty needs --ckpt_path: {kind} file gives class probabilities alone.")
    in_channels, num_classes, patch_size, device = (
        parser.get_parsed_content(key) for key in ("in_channels", "num_classes", "patch_size", "device")
    )
    try:
        with torch.inference_mode():
            out_channels = network(torch.zeros(1, in_channels, *patch_size, device=device)).shape[1]
    # An export may be for windows of one size alone, which each of the two says in its own way.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BundleError(
            f"model {model} does not take windows of {patch_size} voxels and {in_channels} channel(s)."
        ) from error
    if out_channels != num_classes:
        raise BundleError(f"model {model} has {out_channels} classes, num_classes is {num_classes}.")


def _class_names(given: Sequence[str] | None, parser: ConfigParser, model: str | None) -> list[str]:
    """Take the names as they are given, or those of the data overlay, or those of the weights of the metadata."""
    num_classes = parser.get_parsed_content("num_classes")
    if given is not None:
        names = list(given)
    elif "class_names" in parser:
        names = parser.get_parsed_content("class_names")
    elif model is None and Path(parser.get_parsed_content("ckpt_path")).resolve() == _WEIGHTS.resolve():
        channels = parser["_meta_#network_data_format#outputs#pred#channel_def"]
        names = [channels[str(index)] for index in range(1, len(channels))]
    else:
        raise BundleError("dicom_seg needs the names of the classes: by --class_names, or by --data of a data set.")
    return foreground_names(num_classes, names)


# --- around the run ---------------------------------------------------------------------------------------------------


@contextmanager
def _volumes_of(path: Path, output: Path, series: Mapping[str, DicomSeries]) -> Iterator[Path]:
    """Give the input itself when it is NIfTI, otherwise a temporary folder beside the label maps."""
    if not series:
        yield path
        return
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix=".dicom_") as folder:
        yield Path(folder)
