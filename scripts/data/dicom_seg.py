# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Label maps as DICOM SEG objects that refer to the series they were made from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ..errors import BundleError
from ..files import replacing

_MANUFACTURER = "dual-network segmentation bundle"
_REFERENCES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
#: Tags of the patient and the study that must be there, with or without a value.
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
)
#: Series numbers of segmentations lie above those that scanners give.
_SERIES_NUMBER_OFFSET = 1000


def check_references(datasets: Sequence[Dataset]) -> None:
    """Make sure that a DICOM SEG can refer to the images of a series.

    Args:
        datasets: headers of its slices.

    Raises:
        BundleError: when an identifier is missing, as after some anonymizations, or the slices differ in their study,
            series or frame of reference.
    """
    missing = [name for name in _REFERENCES if any(not dataset.get(name) for dataset in datasets)]
    if missing:
        raise BundleError(f"a DICOM SEG refers to {', '.join(missing)}, which the files lack: leave out --dicom_seg.")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if len({dataset[name].value for dataset in datasets}) > 1:
            raise BundleError(f"a DICOM SEG refers to one {name}, the files have several: leave out --dicom_seg.")


def write_dicom_seg(
    path: str | Path,
    labels: npt.NDArray[np.uint8],
    datasets: Sequence[Dataset],
    class_names: Sequence[str],
    *,
    version: str,
) -> None:
    """Write a label map as a binary DICOM SEG in the geometry of its source series.

    A class without a voxel keeps its segment, without frames. Names that are terms of the DICOM context group for
    anatomical structures, such as "left atrium" or "pancreas", get their SNOMED CT code, others a local one.

    Args:
        path: file to write.
        labels: class indices, (columns, rows, slices).
        datasets: headers of the slices in the order of ``labels``.
        class_names: names of the foreground classes in the order of their labels.
        version: version of the bundle.
    """
    source = datasets[0]
    datasets = [_completed(dataset, datasets) for dataset in datasets]
    with warnings.catch_warnings():
        # Of a name without a family name, which it would show in a log.
        warnings.filterwarnings("ignore", message=r"The string .* is unlikely to represent the intended person name")
        segmentation = hd.seg.Segmentation(
            source_images=datasets,
            # DICOM puts the slice first and the row before the column.
            pixel_array=np.ascontiguousarray(labels.transpose(2, 1, 0)),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe(number, name, version) for number, name in enumerate(class_names, start=1)],
            series_instance_uid=generate_uid(),
            series_number=_SERIES_NUMBER_OFFSET + int(source.get("SeriesNumber") or 0),
            series_description=f"Segmentation: {', '.join(class_names)}"[:64],
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=_MANUFACTURER,
            manufacturer_model_name=_MANUFACTURER,
            software_versions=version,
            device_serial_number="0",
            content_label="SEGMENTATION",
        )
    # Names of classes may have letters that the character set of the source lacks.
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def _completed(dataset: Dataset, datasets: Sequence[Dataset]) -> Dataset:
    """Fill in what anonymization takes away and a DICOM SEG copies: texts may be empty, the thickness may not."""
    completed = Dataset()
    completed.update(dataset)
    completed.file_meta = dataset.file_meta
    for name in _MAY_BE_EMPTY:
        if name not in completed:
            setattr(completed, name, "")
    if not completed.get("SliceThickness"):
        first, second = (np.array(each.ImagePositionPatient, dtype=np.float64) for each in datasets[:2])
        completed.SliceThickness = float(np.linalg.norm(second - first))
    return completed


def _describe(number: int, name: str, version: str) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.CID7150.AnatomicalStructure,
        segmented_property_type=_code(number, name),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=_MANUFACTURER, family=codes.CID7162.ArtificialIntelligence, version=version
        ),
    )


def _code(number: int, name: str) -> Code:
    term = "".join(word.capitalize() for word in name.replace("_", " ").split())
    if term in codes.CID7192.dir():
        code: Code = getattr(codes.CID7192, term)
        return code
    return Code(value=f"class-{number}", scheme_designator="99LOCAL", meaning=name[:64])
