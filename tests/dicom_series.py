# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Small DICOM series for the tests."""

from __future__ import annotations

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def write_series(
    folder,
    stored,
    *,
    orientation=AXIAL,
    origin=(-10.0, -20.0, 30.0),
    pixel_spacing=(1.5, 2.5),
    distance=3.0,
    slope=1,
    intercept=-1024,
    number=3,
    prefix="IM",
    edit=lambda dataset, index: None,
):
    """Write a CT series, the last slice first, so that neither names nor numbers give the order.

    Args:
        folder: where to write; made when missing.
        stored: stored values, uint16, (columns, rows, slices).
        orientation: directions of the rows and of the columns.
        origin: position of the first voxel in DICOM's patient space.
        pixel_spacing: distance of the rows and of the columns in mm.
        distance: distance of the slices in mm.
        slope: rescale slope, a number or one for each slice.
        intercept: rescale intercept.
        number: series number.
        prefix: start of the file names.
        edit: changes the dataset of a slice, called with it and the index of the slice.

    Returns:
        the paths of the files in the order of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column = (np.array(direction) for direction in orientation)
    step = np.cross(row, column) * distance
    study, series, frame = (generate_uid() for _ in range(3))
    count = stored.shape[2]
    slopes = np.broadcast_to(slope, count)
    paths = [folder / f"{prefix}{count - index:03d}.dcm" for index in range(count)]
    for index, path in enumerate(paths):
        dataset = Dataset()
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.PatientName, dataset.PatientID = "Müller^Jörg", "17"
        dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.StudyID = ""
        dataset.StudyDate = dataset.StudyTime = dataset.ReferringPhysicianName = dataset.Manufacturer = ""
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.Modality, dataset.SeriesDescription, dataset.SeriesNumber = "CT", "Körper 3.0", number
        dataset.InstanceNumber = index + 1
        dataset.Rows, dataset.Columns = stored.shape[1], stored.shape[0]
        dataset.ImageOrientationPatient = [f"{value:.8f}" for value in (*row, *column)]
        dataset.ImagePositionPatient = [f"{value:.8f}" for value in np.array(origin) + index * step]
        dataset.PixelSpacing = list(pixel_spacing)
        dataset.SliceThickness = distance
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = float(slopes[index]), intercept
        dataset.PixelData = np.ascontiguousarray(stored[:, :, index].T, dtype="<u2").tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        edit(dataset, index)
        dataset.save_as(path, enforce_file_format=True)
    return paths
