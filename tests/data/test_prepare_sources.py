# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Preparation of each data set through the command line: equal voxels, right geometry, the split that is promised."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import unicodedata
from urllib.error import URLError

import h5py
import nibabel as nib
import nrrd
import numpy as np
import pytest
from conftest import ROOT
from dicom_series import write_series

from scripts.__main__ import main
from scripts.data.prepare import conversion
from scripts.data.prepare.dataset import SplitSettings
from scripts.data.prepare.folder import find_folder
from scripts.data.prepare.folds import shipped_splits
from scripts.data.prepare.reading import Volumes, resample
from scripts.data.splits import LIST_NAMES, read_split
from scripts.errors import BundleError

SHAPE = (10, 9, 8)
LPS = {
    "space": "left-posterior-superior",
    "space directions": np.diag([0.625, 0.625, 1.25]),
    "space origin": np.array([5.0, -6.0, 7.0]),
}


@pytest.fixture
def prepare(tmp_path, capsys):
    """Run the command; give its exit code and its lines."""

    def call(name, *words, source="source", output="prepared"):
        words = ["prepare", name, "--output_dir", tmp_path / output, *words]
        words += [] if source is None else ["--source", tmp_path / source]
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, (captured.out + captured.err).splitlines()

    return call


def voxels_of(path):
    return np.asanyarray(nib.load(path).dataobj)


def volumes(seed, shape=SHAPE, num_classes=2):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 200, size=shape).astype(np.int16)
    label = np.zeros(shape, dtype=np.uint8)
    label[2:6, 3:7, 1:5] = generator.integers(1, num_classes, size=(4, 4, 4)) if num_classes > 2 else 1
    return image, label


def save(path, voxels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)


def make_pairs(source, names, num_classes=2, labels="labels", images="images"):
    for seed, name in enumerate(names):
        image, label = volumes(seed, num_classes=num_classes)
        save(source / images / f"{name}.nii.gz", image)
        if labels is not None:
            save(source / labels / f"{name}.nii.gz", label)


# --- left atrium ------------------------------------------------------------------------------------------------------


def make_nrrd(folder, seed=0, shape=SHAPE):
    image, label = volumes(seed, shape)
    folder.mkdir(parents=True)
    nrrd.write(str(folder / "lgemri.nrrd"), image.astype(np.uint8), LPS)
    nrrd.write(str(folder / "laendo.nrrd"), label * np.uint8(255), LPS)
    return image, label


def make_h5(folder, seed=0):
    image, label = volumes(seed)
    folder.mkdir(parents=True)
    with h5py.File(folder / "mri_norm2.h5", "w") as file:
        file["image"], file["label"] = image / np.float32(7), label.astype(np.uint8)
    return image / np.float32(7), label


def test_nrrd_keeps_voxels_and_place(tmp_path, prepare):
    for seed in range(5):
        make_nrrd(tmp_path / "source" / "Training Set" / f"ID{seed}", seed)
    code, lines = prepare("left_atrium", "--num_labeled", 2)
    assert code == 0
    assert lines[-1].endswith("no problem found")
    for seed in range(5):
        image, label = volumes(seed)
        path = tmp_path / "prepared/images" / f"la_ID{seed}.nii.gz"
        np.testing.assert_array_equal(voxels_of(path), image)
        assert nib.load(path).get_data_dtype() == np.uint8
        # Left and back of NRRD are right and front of NIfTI.
        expected = [[-0.625, 0, 0, -5], [0, -0.625, 0, 6], [0, 0, 1.25, 7], [0, 0, 0, 1]]
        np.testing.assert_allclose(nib.load(path).affine, expected)
        np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labels" / path.name), label)
    assert (tmp_path / "prepared/montage/montage_01.png").stat().st_size > 5000


def test_h5_keeps_voxels(tmp_path, prepare):
    made = [make_h5(tmp_path / "source" / f"ID{seed}", seed) for seed in range(5)]
    assert prepare("left_atrium", "--num_labeled", 2)[0] == 0
    for seed, (image, label) in enumerate(made):
        path = tmp_path / "prepared/images" / f"la_ID{seed}.nii.gz"
        assert voxels_of(path).dtype == np.float32
        np.testing.assert_array_equal(voxels_of(path), image)
        np.testing.assert_allclose(nib.load(path).header.get_zooms(), 0.625)
        np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labels" / path.name), label)


def test_crop_to_label_is_the_literatures(tmp_path, prepare):
    source = tmp_path / "source"
    for seed in range(5):
        make_nrrd(source / f"ID{seed}", seed, shape=(180, 150, 6))
    assert prepare("left_atrium", "--num_labeled", 2, "--crop_to_label", "true")[0] == 0
    image, _ = volumes(0, (180, 150, 6))
    volume = nib.load(tmp_path / "prepared/images/la_ID0.nii.gz")
    # The label is 4 wide and begins at 2: (112 - 3) // 2 and a margin of 10 to 19 on the far side, the border before.
    assert volume.shape[2] == 6
    assert all(5 + 54 + 10 <= size <= 5 + 54 + 19 for size, last in zip(volume.shape[:2], (5, 6)) if last == 5)
    np.testing.assert_array_equal(np.asanyarray(volume.dataobj), image[: volume.shape[0], : volume.shape[1]])
    assert prepare("left_atrium", "--num_labeled", 2, "--crop_to_label", "true", output="again")[0] == 0
    assert nib.load(tmp_path / "again/images/la_ID0.nii.gz").shape == volume.shape


def test_both_forms_and_a_second_crop_are_refused(tmp_path, prepare):
    make_nrrd(tmp_path / "source" / "A")
    make_h5(tmp_path / "source" / "B")
    assert "choose by --form nrrd or h5" in prepare("left_atrium")[1][-1]
    words = ["--form", "h5", "--crop_to_label", "true"]
    assert "mri_norm2.h5 is cropped around its label already" in prepare("left_atrium", *words)[1][-1]
    assert "form must be one of nrrd, h5, got 'npy'" in prepare("left_atrium", "--form", "npy")[1][-1]
    assert not (tmp_path / "prepared").exists()


def test_the_protocol_of_the_literature(tmp_path, prepare):
    for number, case in enumerate(shipped_splits("left_atrium")[0].all_cases()):
        make_h5(tmp_path / "source" / case.removeprefix("la_"), number)
    assert prepare("left_atrium", "--fold", 3, "--num_labeled", 8)[0] == 0
    split = read_split(tmp_path / "prepared/split_fold3_8.json")
    shipped = read_split(ROOT / "configs/splits/left_atrium_fold3_8.json")
    assert [split.cases(key) for key in LIST_NAMES] == [shipped.cases(key) for key in LIST_NAMES]
    assert split.cases_hash == shipped.cases_hash
    # Not of the protocol, whose number of labeled cases is not that of the list.
    assert prepare("left_atrium", "--fold", 3, "--labeled", ",".join(shipped.labeled[:2]))[0] == 0
    assert len(read_split(tmp_path / "prepared/split_fold3_2.json").labeled) == 2
    assert split.seed is None


def test_without_all_cases_there_is_no_protocol(tmp_path, prepare):
    for seed in range(5):
        make_h5(tmp_path / "source" / f"ID{seed}", seed)
    code, lines = prepare("left_atrium", "--num_labeled", 2, "--seed", 4)
    assert code == 0
    assert "lacks 100 cases of the protocol" in lines[0]
    assert read_split(tmp_path / "prepared/split.json").seed == 4


# --- pancreas ---------------------------------------------------------------------------------------------------------


def organ(shape=(24, 20, 16)):
    """An organ in fat, beside muscle, at a place that no flip maps onto itself."""
    label = np.zeros(shape, dtype=np.uint8)
    label[4:9, 3:8, 2:6] = 1
    values = np.full(shape, -100)
    values[15:] = 40
    values[label > 0] = 90
    return values, label


def make_nih(source, numbers, flip=None):
    values, label = organ()
    for number in numbers:
        case = f"PANCREAS_{number:04d}"
        stored = (values + 1024 + number % 3).astype(np.uint16)
        write_series(source / "Pancreas-CT" / case / "study" / "series", stored)
        stored_label = label if flip is None else np.flip(label, axis=flip)
        # The label tells the directions of its axes, RAS here and LPS in the series, but no place.
        affine = np.diag([2.5, 1.5, 3.0, 1.0])
        save(source / "TCIA_pancreas_labels" / f"label{number:04d}.nii.gz", stored_label[::-1, ::-1], affine)
    return values, label


def test_labels_are_brought_onto_their_series(tmp_path, prepare):
    values, label = make_nih(tmp_path / "source", range(1, 5))
    code, lines = prepare("pancreas", "--num_labeled", 2, "--num_folds", 2)
    assert code == 1, "equal images are a leak"
    assert not any("flipped" in line for line in lines)
    image = nib.load(tmp_path / "prepared/images/PANCREAS_0002.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), values + 2)
    np.testing.assert_allclose(image.affine, [[-2.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
    written = nib.load(tmp_path / "prepared/labels/PANCREAS_0002.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), label)
    np.testing.assert_array_equal(written.affine, image.affine)


@pytest.mark.parametrize(("flip", "name"), [(1, "y"), (2, "z"), ((0, 2), "x and z")])
def test_a_label_whose_header_is_wrong_is_flipped_with_a_note(flip, name, tmp_path, prepare):
    _, label = make_nih(tmp_path / "source", range(1, 4), flip=flip)
    _, lines = prepare("pancreas", "--num_labeled", 1, "--num_folds", 2)
    assert f"PANCREAS_0001: label flipped along {name}, where it fits the series." in lines
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labels/PANCREAS_0001.nii.gz"), label)


def test_of_two_labels_of_a_series_none_is_taken(tmp_path, prepare):
    make_nih(tmp_path / "source", range(1, 4))
    save(tmp_path / "source/older/label0002.nii.gz", organ()[1])
    _, lines = prepare("pancreas", "--num_labeled", 1, "--num_folds", 2)
    found = "older/label0002.nii.gz", "TCIA_pancreas_labels/label0002.nii.gz"
    assert any(
        line.startswith("PANCREAS_0002: one label is needed") and all(x in line for x in found) for line in lines
    )
    assert {path.name for path in (tmp_path / "prepared/images").iterdir()} == {
        "PANCREAS_0001.nii.gz",
        "PANCREAS_0003.nii.gz",
    }


def test_two_labels_of_what_is_not_there_are_no_problem(tmp_path, prepare):
    make_nih(tmp_path / "source", range(1, 4))
    for number in (7, 25):
        for folder in ("older", "newer"):
            save(tmp_path / "source" / folder / f"label{number:04d}.nii.gz", organ()[1])
    _, lines = prepare("pancreas", "--num_labeled", 1, "--num_folds", 2)
    assert not any("one label is needed" in line for line in lines)
    assert any(line.startswith("1 label files have no DICOM folder, such as that of PANCREAS_0007") for line in lines)


def test_withdrawn_cases_are_in_no_split(tmp_path, prepare, monkeypatch):
    # An older download: one of the two is still there.
    for number in (number for number in range(1, 83) if number != 25):
        path = tmp_path / "source" / f"PANCREAS_{number:04d}/study/series/1.dcm"
        path.parent.mkdir(parents=True)
        path.touch()
        (tmp_path / "source" / f"label{number:04d}.nii.gz").touch()

    def read(folder, label_path, source):
        image, label = (nib.Nifti1Image(part, np.eye(4)) for part in volumes(int(folder.name[-4:])))
        return Volumes(image, label)

    monkeypatch.setattr("scripts.data.prepare.pancreas._read_nih", read)
    code, lines = prepare("pancreas", "--fold", "all", "--num_labeled", 12)
    assert code == 0
    assert any("withdrawn by the publisher of the data): PANCREAS_0025, PANCREAS_0070." in line for line in lines)
    tested = set()
    for fold, shipped in shipped_splits("pancreas").items():
        split = read_split(tmp_path / "prepared" / f"split_fold{fold}_12.json")
        gone = {"PANCREAS_0025", "PANCREAS_0070"}
        assert split.test == tuple(case for case in shipped.test if case not in gone)
        assert len(split.all_cases()) == 80
        assert not gone & set(split.all_cases())
        tested |= set(split.test)
    assert len(tested) == 80
    code, lines = prepare("pancreas", "--num_folds", 8, output="drawn")
    assert code == 0
    assert any("withdrawn by the publisher of the data): PANCREAS_0070." in line for line in lines)


def test_spacing_resamples_image_and_label(tmp_path, prepare):
    make_nih(tmp_path / "source", range(1, 3))
    prepare("pancreas", "--num_labeled", 1, "--num_folds", 2, "--spacing", 1)
    image, label = (nib.load(tmp_path / "prepared" / name / "PANCREAS_0001.nii.gz") for name in ("images", "labels"))
    np.testing.assert_allclose(image.header.get_zooms(), 1, atol=1e-5)
    np.testing.assert_array_equal(image.affine, label.affine)
    assert image.get_data_dtype() == np.int16
    assert image.shape == label.shape
    # 5 x 5 x 4 voxels of 2.5 x 1.5 x 3 mm.
    assert abs(np.count_nonzero(np.asanyarray(label.dataobj)) / (5 * 5 * 4 * 2.5 * 1.5 * 3) - 1) < 0.12
    assert np.asanyarray(image.dataobj).min() == -99, "no value may come from beyond the volume"


def test_spacing_is_that_of_the_patient_in_any_order_of_axes(tmp_path):
    image, label = (nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])) for voxels in volumes(0))
    turned = [volume.as_reoriented([[2, 1], [0, -1], [1, 1]]) for volume in (image, label)]
    for pair in ((image, label), turned):
        resampled = resample(Volumes(*pair), [1.0, 1.5, 3.0])
        for volume in (resampled.image, resampled.label):
            np.testing.assert_allclose(nib.as_closest_canonical(volume).header.get_zooms(), [1, 1.5, 3], atol=1e-5)


@pytest.mark.parametrize(("tumor", "values"), [("merge", {0, 1}), ("keep", {0, 1, 2})])
def test_tumor_of_the_decathlons_pancreas(tumor, values, tmp_path, prepare):
    make_task(tmp_path / "source" / "Task07_Pancreas", [f"pancreas_{i:03d}" for i in range(5)], num_classes=3)
    assert prepare("pancreas", "--tumor", tumor)[0] == 0
    assert set(np.unique(voxels_of(tmp_path / "prepared/labels/pancreas_000.nii.gz"))) == values


# --- decathlon --------------------------------------------------------------------------------------------------------


def make_task(folder, names, num_classes=2, test=()):
    make_pairs(folder, names, num_classes=num_classes, images="imagesTr", labels="labelsTr")
    make_pairs(folder, test, images="imagesTs", labels=None)
    content = {
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("is_archive", [False, True], ids=["folder", "tar"])
def test_a_task_as_folder_or_tar(is_archive, tmp_path, prepare):
    names = [f"hippocampus_{i:03d}" for i in range(10)]
    make_task(tmp_path / "source" / "Task04", names, num_classes=3)
    if is_archive:
        with tarfile.open(tmp_path / "Task04.tar", "w") as tar:
            tar.add(tmp_path / "source" / "Task04", "Task04")
    words = ["--fold", "all", "--num_labeled", 2, "--num_validation", 2]
    assert prepare("decathlon", *words, source="Task04.tar" if is_archive else "source/Task04")[0] == 0
    image, label = volumes(3, num_classes=3)
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/images/hippocampus_003.nii.gz"), image)
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labels/hippocampus_003.nii.gz"), label)
    splits = [read_split(tmp_path / "prepared" / f"split_fold{fold}_2.json") for fold in range(5)]
    assert sorted(case for split in splits for case in split.test) == names
    assert [len(splits[0].cases(key)) for key in ("labeled", "unlabeled", "validation", "test")] == [2, 4, 2, 2]


def test_another_archive_is_refused(tmp_path, prepare):
    for task in ("Task02", "Task04"):
        make_task(tmp_path / task / task, [f"{task}_{i}" for i in range(5)])
        with tarfile.open(tmp_path / f"{task}.tar", "w") as tar:
            tar.add(tmp_path / task / task, task)
    assert prepare("decathlon", source="Task02.tar")[0] == 0
    status, lines = prepare("decathlon", source="Task04.tar")[:2]
    assert status == 1
    assert "Task02.tar" in lines[-1]
    assert "choose another folder" in lines[-1]
    assert prepare("decathlon", source="Task02.tar")[0] == 0
    # The same cases, unpacked by the user.
    assert prepare("decathlon", source="Task02/Task02")[0] == 0


def test_a_corrected_archive_of_the_same_name_is_unpacked_anew(tmp_path, prepare):
    make_task(tmp_path / "task/Task02", [f"a{i}" for i in range(5)])
    for folder, expected in (("Task02/imagesTr", 1), ("Task02", 0)):
        with tarfile.open(tmp_path / "Task02.tar", "w") as tar:
            tar.add(tmp_path / "task" / folder, folder)
        code, lines = prepare("decathlon", source="Task02.tar")
        assert code == expected, lines


def test_of_two_labels_of_a_case_none_is_taken(tmp_path, prepare):
    make_pairs(tmp_path / "source", "abcd")
    save(tmp_path / "source/labels/b.nii", volumes(8)[1])
    code, lines = prepare("folder", "--num_folds", 2)
    assert code == 1
    assert any("b: one label is needed, got b.nii and b.nii.gz in labels." in line for line in lines)
    assert set(read_split(tmp_path / "prepared/split.json").all_cases()) == set("acd")


def test_test_images_are_unlabeled(tmp_path, prepare):
    make_task(tmp_path / "source", [f"a{i}" for i in range(5)], test=["x", "y"])
    assert prepare("decathlon", "--test_images", "true")[0] == 1, "x and y are copies of a0 and a1"
    assert {"x", "y"} <= set(read_split(tmp_path / "prepared/split.json").unlabeled)


def test_one_of_several_channels(tmp_path, prepare):
    make_task(tmp_path / "source", ["a", "b"])
    images = [np.stack([volumes(i)[0], volumes(i + 9)[0]], axis=-1) for i in range(2)]
    for name, image in zip("ab", images):
        save(tmp_path / "source/imagesTr" / f"{name}.nii.gz", image)
    code, lines = prepare("decathlon", "--num_folds", 2)
    assert code == 1
    assert sum("must be a 3D volume of one channel, got shape (10, 9, 8, 2)" in line for line in lines) == 2
    assert lines[-3].startswith("error: none of the 2 cases")
    assert prepare("decathlon", "--num_folds", 2, "--channel", 1, output="second")[0] == 0
    np.testing.assert_array_equal(voxels_of(tmp_path / "second/images/a.nii.gz"), images[0][..., 1])


def test_download_without_internet_is_one_line(tmp_path, prepare, monkeypatch):
    def refuse(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("scripts.data.prepare.decathlon.download_url", refuse)
    code, lines = prepare("decathlon", "--task", "Task04_Hippocampus", source=None)
    assert code == 1
    assert len(lines) == 1
    assert "Task04_Hippocampus cannot be downloaded" in lines[0]
    assert "no route to host" in lines[0]
    assert "task must be one of Task01_BrainTumour" in prepare("decathlon", "--task", "Task99", source=None)[1][-1]
    assert not (tmp_path / "prepared").exists()


def test_download_is_verified_by_its_checksum(tmp_path, prepare, monkeypatch):
    (tmp_path / "wrong.tar").write_bytes(b"not the published file")
    table = {"Task04_Hippocampus": (tmp_path / "wrong.tar").as_uri()}
    monkeypatch.setattr("scripts.data.prepare.decathlon.DecathlonDataset.resource", table)
    code, lines = prepare("decathlon", "--task", "Task04_Hippocampus", source=None)
    assert code == 1
    assert "md5 hash check of downloaded file failed" in lines[-1]
    assert not list((tmp_path).glob("prepared/*.tar"))


# --- folder -----------------------------------------------------------------------------------------------------------


def test_a_tenth_of_the_labels(tmp_path, prepare):
    make_pairs(tmp_path / "source", [f"p{i:02d}" for i in range(20)])
    for i in range(18):
        (tmp_path / "source/labels" / f"p{i:02d}.nii.gz").unlink()
    assert prepare("folder", "--num_folds", 2)[0] == 0
    split = read_split(tmp_path / "prepared/split.json")
    assert len(split.labeled) == len(split.test) == 1
    assert set(split.labeled + split.test) == {"p18", "p19"}
    assert split.unlabeled == tuple(f"p{i:02d}" for i in range(18))


@pytest.mark.parametrize("is_archive", [False, True], ids=["folder", "tar"])
def test_the_folder_above_the_data(is_archive, tmp_path, prepare):
    make_pairs(tmp_path / "above/scans", "ab")
    (tmp_path / "above/papers").mkdir()
    if is_archive:
        with tarfile.open(tmp_path / "scans.tar", "w") as tar:
            tar.add(tmp_path / "above/scans", "scans")
    code, lines = prepare("folder", "--num_folds", 2, source="scans.tar" if is_archive else "above")
    assert code == 0, lines
    assert set(read_split(tmp_path / "prepared/split.json").all_cases()) == {"a", "b"}
    assert any("Taken is scans/, the only folder of the source with images/ and labels/." in line for line in lines)


def test_a_case_in_dicom_with_both_folders_is_not_the_data(tmp_path):
    for name in ("p1/images", "p1/labels", "p2/series"):
        write_series(tmp_path / name, volumes(0)[0])
    (tmp_path / "labels").mkdir()
    assert [case.name for case in find_folder(tmp_path).cases] == ["p1", "p2"]


def test_a_folder_images_of_a_case_in_dicom_is_not_that_of_the_data(tmp_path):
    for name in ("p1/images", "p2/series"):
        write_series(tmp_path / name, volumes(0)[0])
    assert [case.name for case in find_folder(tmp_path).cases] == ["p1", "p2"]


def test_a_label_near_45_degrees_is_not_turned_for_a_rounding(tmp_path, prepare):
    source = tmp_path / "source"
    make_pairs(source, "ab")
    for kind, degrees in (("images", 44.99), ("labels", 45.01)):
        angle = np.radians(degrees)
        affine = np.eye(4)
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        save(source / kind / "a.nii.gz", volumes(0)[kind == "labels"], affine)
    assert prepare("folder", "--num_folds", 2)[0] == 0
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labels/a.nii.gz"), volumes(0)[1])


def test_labels_turned_otherwise_are_brought_onto_their_image(tmp_path, prepare):
    source = tmp_path / "source"
    make_pairs(source, "ab")
    _, label = volumes(0)
    turned = nib.as_closest_canonical(nib.Nifti1Image(label, np.diag([1.0, 1.0, 2.0, 1.0])))
    turned = turned.as_reoriented([[1, -1], [0, 1], [2, -1]])
    nib.save(turned, source / "labels" / "a.nii.gz")
    assert prepare("folder", "--num_folds", 2)[0] == 0
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labels/a.nii.gz"), label)


def test_dicom_folders_names_and_masks_of_255(tmp_path, prepare):
    values, label = organ()
    for number, name in enumerate(["Jürgen 1", "子 2", "c"]):
        write_series(tmp_path / "source" / name, (values + 1024 + number).astype(np.uint16))
        affine = np.array([[-2.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
        # The umlaut in two letters, as one system stores it.
        decomposed = unicodedata.normalize("NFD", name)
        save(tmp_path / "source/labels" / f"{decomposed}.nii.gz", label * np.uint8(255), affine)
    assert prepare("folder", "--num_folds", 3, "--num_labeled", 1)[0] == 0
    assert set(read_split(tmp_path / "prepared/split.json").all_cases()) == {"Jürgen 1", "子 2", "c"}
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/images/Jürgen 1.nii.gz"), values)
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labels/Jürgen 1.nii.gz"), label)


def test_a_label_in_another_format_makes_no_unlabeled_case(tmp_path, prepare):
    make_pairs(tmp_path / "source", "abcdef")
    labels = tmp_path / "source/labels"
    (labels / "a.nii.gz").rename(labels / "a.mha")
    (labels / "b.nii.gz").unlink()
    (labels / "b").mkdir()
    (labels / "c.nii.gz").rename(labels / "c.seg.nrrd")
    (labels / "d.nii.gz").unlink()
    (labels / "e.json").write_text("{}")
    (labels / "readme.txt").write_text("mine")
    code, lines = prepare("folder", "--num_folds", 0)
    assert code == 1
    for name, file in (("a", "a.mha"), ("b", "b"), ("c", "c.seg.nrrd")):
        assert any(f"{name}: labels/{file} is no label map in NIfTI or NRRD" in line for line in lines), name
    assert any("1 file is no volume and passed over, such as labels/readme.txt." in line for line in lines)
    # e has its label beside a file of another kind; d has none, and is unlabeled.
    assert set(read_split(tmp_path / "prepared/split.json").all_cases()) == {"d", "e", "f"}
    assert read_split(tmp_path / "prepared/split.json").unlabeled == ("d",)


def test_a_label_in_another_format_belongs_to_the_case_of_the_longest_name(tmp_path, prepare):
    make_pairs(tmp_path / "source", ["p1", "p1.t2", "Jürgen", "z"])
    labels = tmp_path / "source/labels"
    (labels / "p1.t2.nii.gz").rename(labels / "p1.t2.mha")
    (labels / "Jürgen.nii.gz").rename(labels / unicodedata.normalize("NFD", "Jürgen.mha"))
    code, lines = prepare("folder", "--num_folds", 0)
    assert code == 1
    for name in ("p1.t2", "Jürgen"):
        assert any(f"{name}: labels/" in unicodedata.normalize("NFC", line) for line in lines), name
    assert set(read_split(tmp_path / "prepared/split.json").all_cases()) == {"p1", "z"}


def test_empty_labels_are_told_of_and_not_validated_on(tmp_path, prepare):
    make_pairs(tmp_path / "source", "abcdef")
    for name in "ef":
        save(tmp_path / f"source/labels/{name}.nii.gz", np.zeros(SHAPE, np.uint8))
    code, lines = prepare("folder", "--num_folds", 0, "--num_validation", 3)
    assert code == 0, lines
    assert "2 labels are empty, such as e: 2 unlabeled." in lines
    assert set(read_split(tmp_path / "prepared/split.json").validation) < set("abcd")


def test_a_table_keeps_patients_together(tmp_path, prepare):
    source = tmp_path / "source"
    rows = ["image,label,group"]
    for number in range(12):
        image, label = volumes(number)
        # One name for all images, in folders of their own; every third has no label.
        save(source / f"scan{number:02d}" / "ct.nii.gz", image)
        save(source / f"scan{number:02d}" / "mask.nii.gz", label)
        mask = "" if number % 3 == 2 else f"scan{number:02d}/mask.nii.gz"
        rows.append(f"scan{number:02d}/ct.nii.gz,{mask},patient {number // 3}")
    (tmp_path / "cases.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    words = ["--table", tmp_path / "cases.csv", "--num_folds", 2, "--fold", "all", "--num_labeled", 2]
    code, lines = prepare("folder", *words)
    assert code == 0
    patients = {f"scan{number:02d}_ct": number // 3 for number in range(12)}
    tested = []
    for fold in range(2):
        split = read_split(tmp_path / "prepared" / f"split_fold{fold}_2.json")
        training = {patients[case] for case in split.labeled + split.unlabeled}
        assert len(split.test) == 4
        assert not training & {patients[case] for case in split.test}
        tested += split.test
    assert sorted(tested) == sorted(case for i, case in enumerate(patients) if i % 3 != 2)
    assert any("are in no list of the split (their patient is in the validation or the test list)" in x for x in lines)


def test_a_split_that_fails_tells_of_the_cases_that_lack_for_it(tmp_path, prepare):
    # Names of nnU-Net: no label is found for any image.
    make_pairs(tmp_path / "source", [f"x{i}" for i in range(6)])
    for path in (tmp_path / "source" / "images").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    status, lines = prepare("folder")[:2]
    assert status == 1
    assert lines[-7] == f"error: none of the 6 cases in {tmp_path / 'source'} could be prepared:"
    assert lines[-6].startswith("- x0: labels/x0.nii.gz has no image, or is it of x0_0000? Give both one name, or ")


@pytest.mark.parametrize("names", ["12_1,007", "12_1", "1e5", "3"])
def test_labeled_cases_whose_names_look_like_numbers(tmp_path, prepare, names):
    make_pairs(tmp_path / "source", ["12_1", "007", "1e5", "3", "a", "b"])
    code, lines = prepare("folder", "--labeled", names, "--num_folds", 2)
    assert code == 0, lines
    assert sorted(read_split(tmp_path / "prepared/split.json").labeled) == sorted(names.split(","))


def test_labeled_cases_by_name(tmp_path, prepare):
    make_pairs(tmp_path / "source", [f"{i:02d}" for i in range(6)])
    assert prepare("folder", "--labeled", "01,04", "--fold", "all", "--num_folds", 2)[0] == 0
    splits = [read_split(tmp_path / "prepared" / f"split_fold{fold}_2.json") for fold in range(2)]
    assert all(split.labeled == ("01", "04") for split in splits)
    assert sorted(splits[0].test + splits[1].test) == ["00", "02", "03", "05"]
    (tmp_path / "names.txt").write_text("00\n05\n00\n")
    assert prepare("folder", "--labeled", tmp_path / "names.txt")[1][-1].endswith("different names, got '00' twice.")
    (tmp_path / "names.txt").write_text("00\n05\n")
    assert prepare("folder", "--labeled", tmp_path / "names.txt", "--num_folds", 2)[0] == 0
    # Longer than any name of a file may be.
    many = ",".join(f"patient-{number}" for number in range(100))
    assert "labeled must name cases" in prepare("folder", "--labeled", many, "--num_folds", 2)[1][-1]
    assert read_split(tmp_path / "prepared/split.json").labeled == ("00", "05")
    assert "must not both be given" in prepare("folder", "--labeled", "00", "--num_labeled", 1)[1][-1]


@pytest.mark.parametrize("words", [["--num_labeled", "4"], ["--labeled", "a,b,c,d"], []])
def test_every_label_is_for_the_training_without_folds(tmp_path, prepare, words):
    make_pairs(tmp_path / "source", "abcdefg")
    for name in "efg":
        (tmp_path / f"source/labels/{name}.nii.gz").unlink()
    if words[:1] == ["--num_labeled"]:
        refusal = prepare("folder", "--num_folds", 4, *words)[1][-1]
        assert "num_labeled must be from 1 to 3" in refusal
        assert "got 4; held out for test and validation: 1 (num_folds 0 leaves the test list empty)." in refusal
    code, lines = prepare("folder", "--num_folds", 0, *words)
    assert code == 0, lines
    split = read_split(tmp_path / "prepared/split.json")
    assert (split.labeled, split.unlabeled) == (tuple("abcd"), tuple("efg"))
    assert (split.validation, split.test) == ((), ())
    assert (split.name, "no test list" in split.description) == ("folder_4", True)


# --- the command ------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path, prepare, monkeypatch):
    make_pairs(tmp_path / "source", "abcd")
    assert prepare("folder", "--num_folds", 2)[0] == 0
    (tmp_path / "prepared/labels/c.nii.gz").unlink()
    written = []
    write = conversion.write_nifti
    monkeypatch.setattr(
        conversion, "write_nifti", lambda volume, path: (written.append(path.name), write(volume, path))
    )
    assert prepare("folder", "--num_folds", 2)[0] == 0
    assert written == ["c.nii.gz", "c.nii.gz"]


def test_a_prepared_file_that_was_damaged_since_costs_a_line(tmp_path, prepare):
    make_pairs(tmp_path / "source", "abcd")
    prepare("folder", "--num_folds", 2)
    image, label = (tmp_path / "prepared" / kind / "b.nii.gz" for kind in ("images", "labels"))
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    code, lines = prepare("folder", "--num_folds", 2)
    assert code == 1
    assert any(line.startswith("b: image images/b.nii.gz cannot be read") for line in lines), lines
    image.write_bytes(content)
    label.write_bytes(label.read_bytes()[:40])
    code, lines = prepare("folder", "--num_folds", 2)
    assert code == 1
    assert lines[-1].endswith(f"delete {label}, and it is prepared again."), lines


def test_a_source_that_was_mended_later_is_told_of(tmp_path, prepare):
    make_pairs(tmp_path / "source", "abc")
    # A series may lie some folders below its patient.
    slices = tmp_path / "source" / "images" / "d" / "study" / "series"
    write_series(slices, volumes(3)[0])
    prepare("folder", "--num_folds", 2)
    (slices.parent / ".DS_Store").touch()
    (slices.parent / ".thumbnails").mkdir()
    (slices.parent / ".thumbnails" / "1.png").touch()
    _, lines = prepare("folder", "--num_folds", 2)
    assert not any("is not what" in line for line in lines)
    made = (tmp_path / "prepared/images/a.nii.gz").stat().st_mtime
    label, slice_ = tmp_path / "source/labels/b.nii.gz", next(slices.iterdir())
    save(label, volumes(7)[1])
    for path in (label, slice_):
        os.utime(path, (made + 60, made + 60))
    _, lines = prepare("folder", "--num_folds", 2)
    assert any("of 2 cases, such as b, the source is not what they were prepared of: delete" in x for x in lines)
    (tmp_path / "prepared/images/b.nii.gz").unlink()
    prepare("folder", "--num_folds", 2)
    assert np.array_equal(voxels_of(tmp_path / "prepared/labels/b.nii.gz"), voxels_of(label))


@pytest.mark.parametrize("name", ["decathlon", "left_atrium"])
def test_another_source_of_a_published_data_set_is_told_of(name, tmp_path, prepare):
    folder = tmp_path / "source"
    if name == "decathlon":
        make_pairs(folder, "ab")
        entries = [{"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"} for case in "ab"]
        (folder / "dataset.json").write_text(json.dumps({"training": entries}))
    else:
        for seed in range(2):
            make_nrrd(folder / f"ID{seed}", seed)
    status, lines = prepare(name, "--num_folds", 2, "--num_labeled", 1)
    assert status == 0
    assert not any("is not what" in line for line in lines)
    file = next(path for path in sorted(folder.rglob("*")) if path.suffix in (".gz", ".nrrd"))
    os.utime(file, (0, 0))
    _, lines = prepare(name, "--num_folds", 2, "--num_labeled", 1)
    assert any("of 1 case, such as " in line and "is not what they were prepared of" in line for line in lines)


def test_another_source_with_files_of_the_same_names_is_told_of(tmp_path, prepare):
    make_pairs(tmp_path / "source", "ab")
    prepare("folder", "--num_folds", 2)
    (tmp_path / "source").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "source")
    _, lines = prepare("folder", "--num_folds", 2)
    assert not any("is not what" in line for line in lines)
    image = tmp_path / "source/images/b.nii.gz"
    save(image, volumes(7)[0])
    os.utime(image, (0, 0))
    _, lines = prepare("folder", "--num_folds", 2)
    assert any("of 1 case, such as b, the source is not what they were prepared of" in line for line in lines)


def test_a_label_of_the_same_size_and_an_older_date_is_told_of(tmp_path, prepare):
    make_pairs(tmp_path / "source", "ab")
    prepare("folder", "--num_folds", 2)
    label = tmp_path / "source/labels/b.nii.gz"
    os.utime(label, (label.stat().st_mtime - 3600,) * 2)
    _, lines = prepare("folder", "--num_folds", 2)
    assert any("of 1 case, such as b, the source is not what they were prepared of" in line for line in lines)


def test_a_killed_run_leaves_no_half_file(tmp_path, prepare, monkeypatch):
    make_pairs(tmp_path / "source", "abcd")

    def kill(volume, path):
        if path.name == "c.nii.gz":
            raise OSError(28, "No space left on device", str(path))
        write(volume, path)

    write = conversion.write_nifti
    monkeypatch.setattr(conversion, "write_nifti", kill)
    code, lines = prepare("folder", "--num_folds", 2, "--jobs", 1)
    assert code == 1
    assert "No space left on device" in lines[-1]
    assert {path.name for path in (tmp_path / "prepared/images").iterdir()} <= {f"{x}.nii.gz" for x in "abd"}
    monkeypatch.setattr(conversion, "write_nifti", write)
    assert prepare("folder", "--num_folds", 2)[0] == 0


def test_a_folder_keeps_one_kind_of_preparation(tmp_path, prepare):
    make_pairs(tmp_path / "source", "abcd")
    assert prepare("folder", "--num_folds", 2)[0] == 0
    assert "choose another folder" in prepare("folder", "--num_folds", 2, "--spacing", 2)[1][-1]
    (tmp_path / "prepared/prepared.json").unlink()
    assert "that were not prepared here" in prepare("folder", "--num_folds", 2)[1][-1]


def test_a_table_in_another_place_is_the_same_preparation(tmp_path, prepare):
    make_pairs(tmp_path / "source", "ab")
    for name in ("cases.csv", "moved.csv"):
        (tmp_path / name).write_text("image,label,group\nimages/a.nii.gz,labels/a.nii.gz,\n")
    words = ["--num_folds", 0, "--num_labeled", 1]
    assert prepare("folder", *words, "--table", tmp_path / "cases.csv")[0] == 0
    for _ in range(2):
        assert prepare("folder", *words, "--table", tmp_path / "moved.csv")[0] == 0
    assert "choose another folder" in prepare("folder", *words)[1][-1]


def test_a_split_is_written_once(tmp_path, prepare):
    make_pairs(tmp_path / "source", "abcdef")
    assert prepare("folder", "--num_folds", 2, "--num_labeled", 1)[0] == 0
    before = (tmp_path / "prepared/split.json").read_text()
    line = prepare("folder", "--num_folds", 2, "--num_labeled", 2)[1][-1]
    assert "(the same in other lists)" in line
    check = f"check --dataset_dir {tmp_path / 'prepared'} --split_file {tmp_path / 'prepared/split.json'}`."
    assert "Where labels alone were changed" in line
    assert line.endswith(check)
    assert prepare("folder", "--num_folds", 2, "--num_labeled", 1)[0] == 0
    assert (tmp_path / "prepared/split.json").read_text() == before
    # What was mended in the source since then is told as well where the split stands in the way.
    make_pairs(tmp_path / "source", "g")
    label = tmp_path / "source/labels/a.nii.gz"
    label.write_bytes((tmp_path / "source/labels/b.nii.gz").read_bytes())
    lines = prepare("folder", "--num_folds", 2, "--num_labeled", 1)[1]
    assert lines[-2].startswith(
        f"error: {tmp_path / 'prepared/split.json'} is already there with other cases (new: g), "
    )
    assert lines[-1].startswith("- of 1 case, such as a, the source is not what they were prepared of: delete")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["liver"], "name must be one of left_atrium, pancreas, decathlon, folder, got 'liver'."),
        (["folder", "--tumor", "keep"], "--tumor is no option of folder; allowed are --table and those of all."),
        (["left_atrium", "--tabel", "x"], "--tabel is no argument of prepare. Did you mean --table?"),
        (["pancreas", "--tumor", "cut"], "tumor must be one of merge, keep, got 'cut'."),
        (["decathlon", "--channel", "-1"], "channel must be a whole number of at least 0, got -1."),
        (["folder", "--fold", "7"], "fold must be from 0 to 1, got 7."),
        (["folder", "--num_folds", "1"], "num_folds must be 0 or at least 2, got 1."),
        (["folder", "--num_folds", "0", "--fold", "all"], "fold must not be given with num_folds 0, got 'all'."),
        (["folder", "--num_folds", "3"], "num_folds is 3, but there are 2 groups (patients) with a label to deal; "),
        (["folder", "--num_labeled", "2"], "num_labeled must be from 1 to 1, the training cases with foreground"),
        (["folder", "--labeled", "z"], "labeled must name cases of the source, got z: no such case."),
        (["folder", "--labeled", "b,case_10"], "got case_10: no such case. Did you mean case_1?"),
        (["folder", "--spacing", "0"], "spacing must be one or three sizes above 0 mm, got 0."),
        (["folder", "--spacing", "1,2"], "spacing must be one or three sizes above 0 mm, got (1, 2)."),
        (["folder", "--jobs", "0"], "jobs must be a whole number of at least 1, got 0."),
        (["decathlon"], "holds no dataset.json"),
        (["left_atrium"], "holds no */lgemri.nrrd or */mri_norm2.h5"),
        (["pancreas"], "holds neither PANCREAS_0001/**/*.dcm nor dataset.json"),
    ],
)
def test_mistakes_cost_one_line(words, message, tmp_path, prepare):
    make_pairs(tmp_path / "source", ["case_1", "b"])
    if "--num_folds" not in words:
        words = [*words, "--num_folds", "2"]
    code, lines = prepare(*words)
    assert code == 1
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fold", 7], "fold must be from 0 to 1, got 7."),
        (["--labeled", "z"], "labeled must name cases of the source, got z: no such case."),
        (["--num_folds", 5], "num_folds is 5, but there are 2 groups"),
        (["--num_labeled", 9], "num_labeled must be from 1 to 1"),
        (["--num_validation", 2], "num_validation must be at most 1"),
    ],
)
def test_a_split_that_cannot_be_is_refused_before_the_work(words, message, tmp_path, prepare):
    make_pairs(tmp_path / "source", "ab")
    (tmp_path / "source" / "labels" / "c.nii.gz").touch()
    words = words if "--num_folds" in words else [*words, "--num_folds", 2]
    code, lines = prepare("folder", *words)
    assert code == 1
    assert any(message in line for line in lines)
    assert not (tmp_path / "prepared").exists()


def test_split_settings_that_do_not_go_together():
    with pytest.raises(BundleError, match="fold must not be given with num_folds 0, got 'all'"):
        SplitSettings(fold="all", num_folds=0)


def test_source_and_output(tmp_path, prepare):
    make_pairs(tmp_path / "source", "ab")
    assert "does not exist" in prepare("folder", source="nothing")[1][-1]
    assert "must not lie in source" in prepare("folder", output="source/prepared")[1][-1]
    assert "source must be given, or task" in prepare("folder", source=None)[1][-1]
