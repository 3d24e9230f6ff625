# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""DICOM series as volumes: values, geometry, and one line for each series that is no volume."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import assert_refused
from dicom_series import write_series
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    MRImageStorage,
    RLELossless,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from scripts.data.dicom import find_series, read_series
from scripts.errors import BundleError

SHAPE = (9, 7, 5)


@pytest.fixture
def stored():
    return np.random.default_rng(0).integers(0, 3000, size=SHAPE).astype(np.uint16)


def assert_series_refused(folder, message):
    with assert_refused(message):
        read_series(folder)


# --- values and geometry ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["CT", ""])
def test_units_of_a_ct_do_not_depend_on_how_it_is_shown(modality, stored, tmp_path):
    def edit(dataset, index):
        # Taken away with what could name the patient, in some series.
        dataset.PhotometricInterpretation, dataset.Modality = "MONOCHROME1", modality

    write_series(tmp_path, stored, edit=edit)
    np.testing.assert_array_equal(read_series(tmp_path).voxels, stored.astype(int) - 1024)


@pytest.mark.parametrize("angles", [(0, 0, 0), (90, 0, 90), (20, -35, 50)], ids=["axial", "turned", "oblique"])
def test_voxels_are_where_dicom_puts_them(angles, stored, tmp_path):
    row, column, normal = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().T
    write_series(tmp_path, stored, orientation=(row, column))
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.voxels, stored.astype(int) - 1024)
    assert volume.voxels.dtype == np.int16
    # Equation C.7.6.2.1-1 of the standard: rows are 1.5 mm apart, columns 2.5 mm, slices 3 mm.
    for i, j, k in np.ndindex(*SHAPE):
        left_posterior_superior = np.array([-10, -20, 30]) + 2.5 * i * row + 1.5 * j * column + 3 * k * normal
        expected = left_posterior_superior * [-1, -1, 1]
        np.testing.assert_allclose((volume.affine @ [i, j, k, 1])[:3], expected, atol=1e-5)


def test_rounded_directions_keep_the_distances(stored, tmp_path):
    def edit(dataset, index):
        dataset.ImageOrientationPatient = [0.71, 0.71, 0, -0.71, 0.71, 0]

    half = np.sqrt(0.5)
    write_series(tmp_path, stored, orientation=((half, half, 0), (-half, half, 0)), edit=edit)
    np.testing.assert_allclose(nib.affines.voxel_sizes(read_series(tmp_path).affine), [2.5, 1.5, 3], atol=1e-5)


def test_nifti_has_the_values_and_the_geometry(stored, tmp_path):
    write_series(tmp_path / "series", stored)
    volume = read_series(tmp_path / "series")
    nib.save(volume.to_nifti(), tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume.voxels)
    for affine in (image.get_sform(), image.get_qform()):
        np.testing.assert_allclose(affine, [[-2.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(2, -1000, np.int16), (0.25, 0, np.float32), ([1, 2, 3, 4, 5], 0, np.int16), (100, 0, np.float32)],
    ids=["whole", "fraction", "one a slice", "beyond int16"],
)
def test_values_are_rescaled_exactly(slope, intercept, dtype, stored, tmp_path):
    write_series(tmp_path, stored, slope=slope, intercept=intercept)
    voxels = read_series(tmp_path).voxels
    assert voxels.dtype == dtype
    np.testing.assert_array_equal(voxels, stored * np.array(slope, float) + intercept)


def test_without_rescaling_the_stored_values_are_taken(stored, tmp_path):
    def edit(dataset, index):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    write_series(tmp_path, stored, edit=edit)
    np.testing.assert_array_equal(read_series(tmp_path).voxels, stored)


def test_jpeg_2000_is_decoded(tmp_path):
    stored = np.random.default_rng(0).integers(0, 3000, size=(40, 48, 3)).astype(np.uint16)
    paths = write_series(tmp_path, stored)
    for path in paths:
        dataset = dcmread(path)
        dataset.compress(JPEG2000Lossless)
        dataset.save_as(path)
    assert dcmread(paths[0]).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_series(tmp_path).voxels, stored.astype(int) - 1024)


def test_headers_are_sorted_and_without_pixels(stored, tmp_path):
    paths = write_series(tmp_path, stored)
    datasets = read_series(tmp_path).datasets
    assert [dataset.filename for dataset in datasets] == [str(path) for path in paths]
    assert [dataset.InstanceNumber for dataset in datasets] == [1, 2, 3, 4, 5]
    assert not any("PixelData" in dataset for dataset in datasets)


def test_positions_that_a_scanner_rounds_are_even_enough(stored, tmp_path):
    def edit(dataset, index):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, round(float(z), 1)]

    write_series(tmp_path, stored, distance=0.625, edit=edit)
    np.testing.assert_allclose(read_series(tmp_path).affine[2, 2], 0.625, atol=0.02)


def test_a_shift_of_less_than_half_a_pixel_is_straight_enough(stored, tmp_path):
    write_series(tmp_path, stored, edit=move(3, by=(0.7, 0, 0)))
    assert read_series(tmp_path).voxels.shape[2] == 5


# --- folders ----------------------------------------------------------------------------------------------------------


def test_series_are_found_and_other_files_are_passed_over(stored, tmp_path):
    root = tmp_path / "Größe 1 mm"
    later = write_series(root / "b folder", stored, number=7)
    write_series(root / "b folder", stored, number=5, prefix="CT ä ")
    write_series(root / "a", stored)
    write_series(root / ".hidden", stored)
    (root / "b folder/notes.txt").write_text("no image")
    (root / "b folder/empty").touch()
    (root / "b folder/._IM001.dcm").write_bytes(b"resource fork")
    for name, kind in (("seg.dcm", SegmentationStorage), ("plan.dcm", RTStructureSetStorage)):
        dataset = dcmread(later[0])
        dataset.SOPClassUID, dataset.SOPInstanceUID = kind, generate_uid()
        dataset.save_as(root / "b folder" / name)
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.FileSetID = "MEDIA"
    directory.save_as(root / "DICOMDIR", enforce_file_format=True)

    found = find_series(root)
    assert [(series.folder.name, series.number, len(series.files)) for series in found] == [
        ("a", 3, 5),
        ("b folder", 5, 5),
        ("b folder", 7, 5),
    ]
    assert found[2].files == tuple(sorted(later))
    assert not any(series.damaged for series in found)
    assert str(found[1]) == f"{found[1].uid} (CT, Körper 3.0, 5 files)"
    np.testing.assert_array_equal(read_series(found[1]).voxels, stored.astype(int) - 1024)


def spread(paths, *folders):
    """Move every n-th file of a series into one of n folders."""
    for number, path in enumerate(paths):
        folder = folders[number % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)


def test_a_series_in_several_folders_is_one_volume(stored, tmp_path):
    root = tmp_path / "export"
    spread(write_series(root / "s", stored), root / "s/0", root / "s/1", root / "s/1/more")
    write_series(root / "t/0", stored + 1, number=4)
    joined, other = find_series(root)
    assert (joined.folder, len(joined.files)) == (root / "s", 5)
    assert (other.folder, other.number) == (root / "t/0", 4)
    np.testing.assert_array_equal(read_series(joined).voxels, stored.astype(int) - 1024)
    np.testing.assert_array_equal(read_series(root / "s").voxels, stored.astype(int) - 1024)


def test_a_missing_slice_of_several_folders_is_named_with_its_folder(stored, tmp_path):
    paths = write_series(tmp_path, stored)
    spread(paths, tmp_path / "0", tmp_path / "1")
    (tmp_path / "0" / paths[2].name).unlink()
    assert_series_refused(tmp_path, rf"\(1/{paths[1].name} and 1/{paths[3].name}\) are 6\.00 mm apart where")


def test_a_damaged_file_in_one_of_several_folders_is_not_passed_over(stored, tmp_path):
    spread(write_series(tmp_path, stored), tmp_path / "0", tmp_path / "1")
    (tmp_path / "1" / "lost.dcm").write_text("no header")
    assert_series_refused(tmp_path, r"1/lost\.dcm cannot be read as DICOM; it may be truncated")


def test_copies_and_phases_in_other_folders_stay_volumes_of_their_own(stored, tmp_path):
    paths = write_series(tmp_path / "first", stored)
    (tmp_path / "copy").mkdir()
    for path in paths[:4]:
        shutil.copy(path, tmp_path / "copy")
    found = find_series(tmp_path)
    assert [(series.folder.name, len(series.files)) for series in found] == [("copy", 4), ("first", 5)]
    assert len({series.uid for series in found}) == 1


def test_folders_without_a_uid_are_not_joined(stored, tmp_path):
    def edit(dataset, index):
        dataset.SeriesInstanceUID = ""

    spread(write_series(tmp_path, stored, edit=edit), tmp_path / "0", tmp_path / "1")
    assert [series.folder.name for series in find_series(tmp_path)] == ["0", "1"]


def test_anonymized_series_are_read(stored, tmp_path):
    def edit(dataset, index):
        dataset.SeriesInstanceUID = dataset.StudyInstanceUID = ""
        dataset.SeriesNumber = None

    write_series(tmp_path, stored, edit=edit)
    (series,) = find_series(tmp_path)
    assert (series.uid, series.number) == ("", 0)
    np.testing.assert_array_equal(read_series(series).voxels, stored.astype(int) - 1024)


@pytest.mark.parametrize("value", ["A1", "1\\2", "  "])
def test_a_series_number_that_is_none_counts_as_0(value, stored, tmp_path):
    def edit(dataset, index):
        dataset.add_new("SeriesNumber", "LO", value)

    write_series(tmp_path, stored, edit=edit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (series,) = find_series(tmp_path)
    assert series.number == 0


def test_no_series(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    assert_series_refused(
        tmp_path, f"^{re.escape(str(tmp_path))} holds no DICOM image: files of a CT or MR series are expected"
    )
    assert_series_refused(tmp_path / "none", "none must be a folder with DICOM files, and there is no such folder")
    assert_series_refused(tmp_path / "notes.txt", "must be a folder with DICOM files")


def test_several_series_are_named(stored, tmp_path):
    write_series(tmp_path, stored, number=1)
    write_series(tmp_path, stored, number=2, prefix="B")
    first, second = (re.escape(str(series)) for series in find_series(tmp_path))
    assert_series_refused(tmp_path, f"holds 2 series where one is expected: {first} in .*; {second} in")


# --- what is no volume ------------------------------------------------------------------------------------------------


def move(index, *, by):
    """Give an edit that moves one slice."""

    def edit(dataset, this):
        if this == index:
            dataset.ImagePositionPatient = [float(a) + b for a, b in zip(dataset.ImagePositionPatient, by)]

    return edit


def tilt(dataset, index):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, float(y) + index * 3 * np.tan(np.radians(12)), z]


def change(**values):
    """Give an edit that sets tags of the third slice; None takes a tag away."""

    def edit(dataset, index):
        if index == 2:
            for name, value in values.items():
                if value is None:
                    delattr(dataset, name)
                else:
                    setattr(dataset, name, value)

    return edit


def compressed(dataset, index):
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (move(1, by=(0, 0, 1)), "slices at 30.00 mm and 34.00 mm .* are 4.00 mm apart where 3.00 mm are usual"),
        (move(1, by=(0, 0, 3)), "IM003.dcm and IM004.dcm are at the same position .36.00 mm.; each position may be"),
        (move(1, by=(0, 5, 0)), "shifted sideways by up to 5.0 mm"),
        # Half of the smaller side of a pixel is 0.75 mm.
        (move(3, by=(0.8, 0, 0)), "shifted sideways by up to 0.8 mm"),
        (tilt, "shifted sideways by up to 2.6 mm, as a gantry tilt of 12.0 degrees does; they must lie straight"),
        (change(Rows=14, Columns=9, PixelData=bytes(252)), "Rows must be the same in all files, got 7 in .* and 14 in"),
        (change(PixelSpacing=[1, 2.5]), r"PixelSpacing must be the same in all files, got \[1.5, 2.5\] in IM001"),
        (
            change(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
            r"ImageOrientationPatient must be the same in all files, got .* and \[0, 1, 0, 1, 0, 0\] in IM003.dcm",
        ),
        (change(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "must be two unit vectors at right angles, got"),
        (change(PixelSpacing=[0, 1]), r"PixelSpacing of IM003.dcm must be two sizes above 0 mm, got \[0, 1\]"),
        (change(PixelSpacing=None, ImagePositionPatient=None), "lacks ImagePositionPatient, PixelSpacing, without"),
        (change(ImagePositionPatient=""), "IM003.dcm lacks ImagePositionPatient"),
        (change(PixelData=None), "IM003.dcm has no pixels; the file may be truncated"),
        (
            change(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0),
            r"IM003.dcm is a color image \(RGB\), only one gray value a pixel can be read",
        ),
        (
            change(PhotometricInterpretation="MONOCHROME1", Modality="MR", SOPClassUID=MRImageStorage),
            "IM003.dcm is MONOCHROME1, its lowest values are",
        ),
        (change(PhotometricInterpretation="PALETTE COLOR"), r"is a color image \(PALETTE COLOR\)"),
        (change(NumberOfFrames=2), "IM003.dcm is a multi-frame image, only files of one slice each"),
        (
            change(SOPClassUID=EnhancedCTImageStorage, SharedFunctionalGroupsSequence=[Dataset()]),
            "IM003.dcm is a multi-frame image",
        ),
        (compressed, "is compressed .JPEG Lossless.* and no decoder is there: pip install python-gdcm"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value[:24],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_volume_is_refused(edit, message, stored, tmp_path, monkeypatch):
    monkeypatch.setattr("pydicom.config.settings.writing_validation_mode", 0)
    write_series(tmp_path, stored, edit=edit)
    assert_series_refused(
        tmp_path, f"^{re.escape(str(tmp_path))}, DICOM series [0-9.]+ .CT, Körper 3.0, 5 files.: .*{message}"
    )


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_slice(missing, stored, tmp_path):
    paths = write_series(tmp_path, stored)
    paths[missing].unlink()
    before, after = 30 + 3 * (missing - 1), 30 + 3 * (missing + 1)
    assert_series_refused(
        tmp_path, f"slices at {before}.00 mm and {after}.00 mm .* are 6.00 mm apart where 3.00 mm are usual"
    )


def test_a_missing_slice_among_many(tmp_path):
    paths = write_series(tmp_path, np.zeros((2, 2, 200), np.uint16), distance=0.5)
    paths[1].unlink()
    assert_series_refused(tmp_path, "slices at 30.00 mm and 31.00 mm .* are 1.00 mm apart where 0.50 mm are usual")


def test_one_slice(stored, tmp_path):
    write_series(tmp_path, stored[:, :, :1])
    assert_series_refused(tmp_path, "it has one slice, a volume needs at least two")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.97])
def test_a_truncated_file(share, stored, tmp_path):
    # The last slice: without the file, the stack would still be even.
    path = write_series(tmp_path, stored)[-1]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert_series_refused(tmp_path, f"{path.name} .*truncated")


def test_a_header_with_a_broken_number(stored, tmp_path):
    path = write_series(tmp_path, stored)[2]
    content = path.read_bytes()
    assert content.count(b"-1024") == 1
    path.write_bytes(content.replace(b"-1024", b"-1o24"))
    assert_series_refused(tmp_path, "IM003.dcm cannot be read, the file may be truncated or damaged: ")


def rewrite(path, before, after):
    """Replace bytes that a file has once by as many others."""
    content = path.read_bytes()
    assert (content.count(before), len(before)) == (1, len(after))
    path.write_bytes(content.replace(before, after))


@pytest.mark.parametrize(
    ("position", "shown"), [(rb"0,5\0,5\36,0", "['0,5', '0,5', '36,0']"), (rb"nan\-20\36.0", "[nan, -20, 36.0]")]
)
def test_a_position_that_is_no_place(position, shown, stored, tmp_path):
    def edit(dataset, index):
        if index == 2:
            dataset.ImagePositionPatient = ["-10", "-20", "36.0"]

    path = write_series(tmp_path, stored, edit=edit)[2]
    rewrite(path, rb"-10\-20\36.0", position)
    assert_series_refused(tmp_path, re.escape(f"ImagePositionPatient of IM003.dcm must be 3 numbers, got {shown}."))


def test_a_header_with_a_broken_type(stored, tmp_path):
    for path in write_series(tmp_path, stored):
        # That of Columns, (0028,0011).
        rewrite(path, b"\x28\x00\x11\x00US", b"\x28\x00\x11\x00UX")
    assert_series_refused(tmp_path, r"IM001\.dcm and IM002\.dcm and 3 more cannot be read as DICOM")


def test_a_file_that_is_no_dicom_in_spite_of_its_name(stored, tmp_path):
    write_series(tmp_path, stored)
    (tmp_path / "x.dcm").write_text("text")
    assert_series_refused(tmp_path, "x.dcm cannot be read as DICOM; it may be truncated")
    for path in tmp_path.glob("IM*"):
        path.unlink()
    assert_series_refused(tmp_path, "without UID .0 files.: x.dcm cannot be read as DICOM")


@pytest.mark.parametrize(("tag", "values"), [("ImagePositionPatient", [1, 2]), ("PixelSpacing", [1.5])])
def test_geometry_of_too_few_numbers(tag, values, stored, tmp_path):
    def edit(dataset, index):
        if index == 2:
            setattr(dataset, tag, values)

    write_series(tmp_path, stored, edit=edit)
    assert_series_refused(tmp_path, rf"{tag} of IM\d+\.dcm must be \d numbers, got")


def test_linked_folders_are_searched_on_request(stored, tmp_path):
    write_series(tmp_path / "archive", stored)
    (tmp_path / "study" / "loop").mkdir(parents=True)
    (tmp_path / "study" / "patient").symlink_to(tmp_path / "archive")
    (tmp_path / "study" / "again").symlink_to(tmp_path / "archive")
    (tmp_path / "study" / "loop" / "back").symlink_to(tmp_path / "study")
    with pytest.raises(BundleError, match="holds no DICOM image"):
        find_series(tmp_path / "study")
    (series,) = find_series(tmp_path / "study", follow_links=True)
    assert len(series.files) == 5


def close_folders(monkeypatch):
    """Refuse to list folders called closed, as the system does those of others."""
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_that_cannot_be_searched_is_a_series_that_cannot_be_read(stored, tmp_path, monkeypatch):
    write_series(tmp_path / "series", stored)
    (tmp_path / "closed").mkdir()
    close_folders(monkeypatch)
    closed, series = find_series(tmp_path)
    assert len(series.files) == 5
    with pytest.raises(BundleError, match=rf"{tmp_path / 'closed'}, .*: closed cannot be read as DICOM"):
        read_series(closed)


def test_a_series_spread_beside_a_closed_folder_is_not_whole(stored, tmp_path, monkeypatch):
    write_series(tmp_path / "patient/all", stored)
    for number, path in enumerate(sorted((tmp_path / "patient/all").iterdir())):
        folder = tmp_path / f"patient/part{number % 2}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    write_series(tmp_path / "other", stored)
    (tmp_path / "patient/all").rename(tmp_path / "patient/closed")
    close_folders(monkeypatch)
    other, spread, closed = sorted(find_series(tmp_path), key=lambda series: len(series.folder.parts))
    assert read_series(other).voxels.shape == stored.shape
    for series in (spread, closed):
        with pytest.raises(BundleError, match=r": closed cannot be read as DICOM; it may be truncated, or closed"):
            read_series(series)


def test_a_file_that_cannot_be_opened_costs_its_own_series(stored, tmp_path, monkeypatch):
    for name in ("first", "second"):
        write_series(tmp_path / name, stored)
    (tmp_path / "first/notes.txt").write_text("closed")
    opened = Path.open

    def refuse(path, *arguments, **options):
        if path.name == "notes.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    first, second = find_series(tmp_path)
    assert read_series(second).voxels.shape == stored.shape
    with pytest.raises(BundleError, match=r"notes\.txt cannot be read as DICOM"):
        read_series(first)


def one_uid(**changes):
    """Give an edit that puts all series into one of a careless anonymization."""

    def edit(dataset, index):
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3", "1.2.4"
        for name, value in changes.items():
            setattr(dataset, name, value)

    return edit


def test_patients_of_one_uid_stay_volumes_of_their_own(stored, tmp_path):
    write_series(tmp_path / "a", stored, edit=one_uid(PatientID="a"))
    write_series(tmp_path / "b", stored, origin=(-10, -20, 45), edit=one_uid(PatientID="b"))
    assert [series.folder.name for series in find_series(tmp_path)] == ["a", "b"]
    # The same of one patient are the lower and the upper half of a series.
    write_series(tmp_path / "b", stored, origin=(-10, -20, 45), edit=one_uid(PatientID="a"))
    (joined,) = find_series(tmp_path)
    assert read_series(joined).voxels.shape == (9, 7, 10)


def test_phases_and_scouts_of_one_uid_stay_volumes_of_their_own(stored, tmp_path):
    write_series(tmp_path / "a", stored, edit=one_uid())
    write_series(tmp_path / "b", stored, origin=(-10, -20, 31.5), edit=one_uid())
    write_series(tmp_path / "scout", stored[..., :2], orientation=((1, 0, 0), (0, 0, -1)), edit=one_uid())
    found = find_series(tmp_path)
    assert [(series.folder.name, len(series.files)) for series in found] == [("a", 5), ("b", 5), ("scout", 2)]


@pytest.mark.parametrize("position", [[5.0], [1, 2], None])
def test_a_position_that_is_none_costs_its_series_alone(position, stored, tmp_path):
    write_series(tmp_path, stored)
    write_series(tmp_path, stored[..., :2], prefix="capture", number=9, edit=one_uid(ImagePositionPatient=position))
    good, bad = find_series(tmp_path)
    np.testing.assert_array_equal(read_series(good).voxels, stored.astype(int) - 1024)
    with assert_refused("ImagePositionPatient"):
        read_series(bad)
