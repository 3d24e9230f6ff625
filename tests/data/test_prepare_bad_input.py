# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Bad cases: each costs one clear line, and the good ones are prepared all the same."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import unicodedata

import h5py
import nibabel as nib
import nrrd
import numpy as np
import pytest
from conftest import assert_refused
from dicom_series import write_series
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from scripts.__main__ import main
from scripts.data.dicom import read_series
from scripts.data.prepare.archive import unpack
from scripts.data.prepare.folder import find_folder
from scripts.data.prepare.folds import shipped_splits
from scripts.data.prepare.reading import read_image

SHAPE = (12, 11, 6)


def save(path, voxels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def volumes(seed):
    image = np.random.default_rng(seed).integers(0, 1000, size=SHAPE).astype(np.int16)
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[2:6, 3:7, 1:4] = 1
    return image, label


@pytest.fixture
def source(tmp_path):
    """Three good cases and a place for a bad one."""
    for seed, name in enumerate(["good a", "gut ä", "good c"]):
        image, label = volumes(seed)
        save(tmp_path / "source/images" / f"{name}.nii.gz", image)
        save(tmp_path / "source/labels" / f"{name}.nii.gz", label)
    return tmp_path / "source"


@pytest.fixture
def bad_lines(tmp_path, capsys):
    """Prepare, expect that the three good cases and only these are there, and give the lines about the bad one."""

    def call(name="folder", source="source", **options):
        words = [name, "--source", tmp_path / source, "--output_dir", tmp_path / "prepared", "--num_folds", 3]
        words += [word for key, value in options.items() for word in (f"--{key}", value)]
        with pytest.raises(SystemExit) as caught:
            main(["prepare", *(str(word) for word in words)])
        assert caught.value.code == 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        written = {path.name for path in (tmp_path / "prepared/images").iterdir()}
        assert written == {"good a.nii.gz", "gut ä.nii.gz", "good c.nii.gz"}
        assert len(json.loads((tmp_path / "prepared/split.json").read_text())["test"]) == 1
        assert captured.err.splitlines()[-1].startswith("error: 3 of 4 cases are prepared")
        starts = ("bad", "'bad", "'=bad", "source/bad", "cases.csv")
        lines = [line for line in captured.out.splitlines() if line.startswith(starts)]
        assert len(lines) == 1, captured.out
        return lines[0]

    return call


def test_a_truncated_download(source, bad_lines):
    image, label = volumes(9)
    save(source / "images/bad.nii.gz", image)
    save(source / "labels/bad.nii.gz", label)
    content = (source / "images/bad.nii.gz").read_bytes()
    (source / "images/bad.nii.gz").write_bytes(content[: len(content) // 2])
    assert "bad.nii.gz cannot be read to its end, the file is damaged" in bad_lines()


def test_a_name_that_no_split_takes(source, bad_lines):
    image, label = volumes(9)
    save(source / "images/bad\u200b.nii.gz", image)
    save(source / "labels/bad\u200b.nii.gz", label)
    assert bad_lines().startswith("'bad\\u200b': no name for a case; rename the file")


def test_a_truncated_h5(tmp_path, capsys):
    for seed in range(4):
        image, label = volumes(seed)
        path = tmp_path / "source" / f"ID{seed}" / "mri_norm2.h5"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            file["image"], file["label"] = image.astype(np.float32), label
    path.write_bytes(path.read_bytes()[:1000])
    words = ["--source", tmp_path / "source", "--output_dir", tmp_path / "out", "--num_folds", 3, "--num_labeled", 1]
    with pytest.raises(SystemExit):
        main(["prepare", "left_atrium", *(str(word) for word in words)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("la_ID3: ")]
    assert len(lines) == 1
    assert "cannot be read, the file may be truncated" in lines[0]
    assert len(list((tmp_path / "out/images").iterdir())) == 3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda label: (label[:-1], None), "the label has shape (11, 11, 6), its image (12, 11, 6): they must agree."),
        (lambda label: (label, np.diag([1, 1, 1.5, 1])), "the label has another affine than its image (they differ by"),
        (lambda label: (label * np.float32(0.5), None), "must hold whole numbers from 0 to 255, got 0.5."),
        (lambda label: (label[0], None), "must be a 3D volume of one channel, got shape (11, 6)."),
    ],
    ids=["shape", "affine", "values", "dimensions"],
)
def test_a_label_that_does_not_fit(edit, message, source, bad_lines):
    image, label = volumes(9)
    save(source / "images/bad.nii.gz", image)
    save(source / "labels/bad.nii.gz", *edit(label))
    assert message in bad_lines()


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_label_on_the_other_geometry_of_its_image_is_not_mirrored(which, source, bad_lines):
    sform, qform = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    qform[0, 3] = SHAPE[0] - 1
    files = dict(zip(("image", "label"), (nib.Nifti1Image(voxels, qform) for voxels in volumes(9)), strict=True))
    files[which].set_sform(sform, code=2)
    files[which].set_qform(qform, code=1)
    for kind, file in files.items():
        nib.save(file, source / f"{kind}s/bad.nii.gz")
    assert f"and the sform and the qform of the {which} place it differently" in bad_lines()


def test_a_label_with_both_geometries_of_its_image_is_taken(tmp_path):
    sform, qform = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    image, label = volumes(9)
    for kind, voxels in (("images", image), ("labels", label)):
        file = nib.Nifti1Image(voxels, sform)
        file.set_sform(sform, code=2)
        file.set_qform(qform, code=1)
        (tmp_path / kind).mkdir()
        nib.save(file, tmp_path / kind / "a.nii.gz")
    (case,) = find_folder(tmp_path).cases
    np.testing.assert_array_equal(case.read().label.dataobj, label)


def test_a_label_that_scaling_rounds_is_taken(source, capsys, tmp_path):
    image, label = volumes(9)
    save(source / "images/rounded.nii.gz", image)
    save(source / "labels/rounded.nii.gz", label * np.float32(0.9999999))
    main(["prepare", "folder", "--source", str(source), "--output_dir", str(tmp_path / "out"), "--num_folds", "0"])
    stored = nib.load(tmp_path / "out/labels/rounded.nii.gz").get_fdata()
    np.testing.assert_array_equal(stored, label)


def test_voxels_in_another_file(source, bad_lines, tmp_path):
    (tmp_path / "secret.raw").write_bytes(bytes(range(60)))
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 5 4 3\nspacings: 1 1 1\nencoding: raw\n"
    (source / "images/bad.nrrd").write_text(header + "data file: ../../secret.raw\n")
    assert "bad.nrrd must hold its voxels itself, got a header that names another file" in bad_lines()


def test_a_name_that_is_a_formula(source, bad_lines):
    image, label = volumes(9)
    save(source / "images/=bad.nii.gz", image)
    save(source / "labels/=bad.nii.gz", label)
    assert "not beginning with =, +, - or @" in bad_lines()


def test_values_that_are_not_finite(source, bad_lines):
    image = volumes(9)[0].astype(np.float32)
    image[3, 3, 3] = np.nan
    save(source / "images/bad.nii.gz", image)
    assert "holds values that are not finite" in bad_lines()


def test_a_label_without_image(source, bad_lines):
    save(source / "labels/bad.nii.gz", volumes(9)[1])
    assert bad_lines() == "bad: labels/bad.nii.gz has no image."


def test_a_label_whose_image_has_a_longer_name(source, bad_lines):
    image, label = volumes(9)[:2]
    save(source / "images/bad_0000.nii.gz", image)
    save(source / "labels/bad.nii.gz", label)
    # Without its label it must not become an unlabeled case.
    assert bad_lines() == (
        "bad: labels/bad.nii.gz has no image, or is it of bad_0000? Give both one name, or name them in a --table."
    )


@pytest.mark.parametrize("label", ["bad-seg", "bad.seg", "seg-bad", "BAD", "Seg_Bad"])
def test_a_label_of_a_similar_name_makes_no_unlabeled_case(label, tmp_path):
    for name in ("images/bad", "images/good", "labels/good", f"labels/{label}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    found = find_folder(tmp_path)
    assert [case.name for case in found.cases] == ["good"]
    assert len(found.problems) == 1
    assert "has no image, or is it of bad? Give both one name" in found.problems[0]


@pytest.mark.parametrize(
    ("images", "labels", "cases", "unlabeled"),
    [
        ("a_post, b", "a, a_post, b", "a_post, b", ""),
        ("a, b", "a, a_old, b, b_old", "a, b", ""),
        ("p1, p1_b", "p1, p1_b_label", "p1", ""),
        ("case_0000, case_0001, b", "case", "b", "b"),
        ("case1, b", "case, 1, se", "b, case1", "b, case1"),
    ],
)
def test_images_with_a_label_of_their_own_are_never_withheld(images, labels, cases, unlabeled, tmp_path):
    for kind, names in (("images", images), ("labels", labels)):
        (tmp_path / kind).mkdir()
        for name in names.split(", "):
            (tmp_path / kind / f"{name}.nii.gz").touch()
    found = find_folder(tmp_path).cases
    assert ", ".join(case.name for case in found) == cases
    assert ", ".join(case.name for case in found if not case.has_label) == unlabeled


def test_an_image_in_two_files(source, tmp_path, capsys):
    image = volumes(9)[0]
    for name in ("images/bad.nii.gz", "images/bad.nii"):
        save(source / name, image)
    with pytest.raises(SystemExit):
        main(["prepare", "folder", "--source", str(source), "--output_dir", str(tmp_path / "out"), "--num_folds", "3"])
    files = f"{source / 'images/bad.nii'}, {source / 'images/bad.nii.gz'}"
    told = f"several cases of the source have this name, {files}: rename or remove all but one."
    assert told in capsys.readouterr().out


def shift(dataset, index):
    dataset.ImagePositionPatient = [-10, -20 + index, 30 + 3 * index]


@pytest.mark.parametrize("kind", ["missing", "mixed", "tilted", "truncated", "undecodable"])
def test_a_bad_series(kind, source, bad_lines):
    folder = source / "images/bad"
    stored = np.random.default_rng(9).integers(0, 1000, size=(40, 36, 4)).astype(np.uint16)
    paths = write_series(folder, stored, edit=shift if kind == "tilted" else lambda dataset, index: None)
    if kind == "missing":
        paths[2].unlink()
    elif kind == "mixed":
        write_series(folder, stored, prefix="SECOND", number=4)
    elif kind == "truncated":
        paths[1].write_bytes(paths[1].read_bytes()[:-60])
    elif kind == "undecodable":
        dataset = dcmread(paths[1])
        dataset.compress(JPEG2000Lossless)
        dataset.save_as(paths[1])
        content = paths[1].read_bytes()
        # The start of the code stream is gone, so that no decoder can read it.
        paths[1].write_bytes(content.replace(b"\xff\x4f\xff\x51", b"\x00\x00\x00\x00"))
    messages = {
        "missing": "a slice may be missing",
        "mixed": "holds 2 series where one is expected",
        "tilted": "as a gantry tilt of",
        "truncated": "the file may be truncated",
        "undecodable": "cannot be read",
    }
    assert messages[kind] in bad_lines()


def test_a_volume_beside_the_slices_of_a_series_is_passed_over(tmp_path, capsys):
    stored = np.random.default_rng(9).integers(0, 1000, size=(40, 36, 4)).astype(np.uint16)
    for number, name in enumerate(("p1", "p2")):
        write_series(tmp_path / "scans" / name, stored + number)
        image = read_series(tmp_path / "scans" / name).to_nifti()
        label = np.zeros(image.shape, np.uint8)
        label[5:9, 5:9, 1:3] = 1
        save(tmp_path / "scans/labels" / f"{name}.nii.gz", label, image.affine)
    save(tmp_path / "scans/p1/roi.nii.gz", np.zeros((3, 3, 3), np.uint8))
    words = ["prepare", "folder", "--source", str(tmp_path / "scans"), "--output_dir", str(tmp_path / "out")]
    main([*words, "--num_folds", "0"])
    assert len(list((tmp_path / "out/images").iterdir())) == 2
    line = "passed over beside DICOM: p1/roi.nii.gz; a label belongs into labels/, such as labels/p1.nii.gz."
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("images", ["", "images/"], ids=["source", "images"])
def test_a_label_in_the_folder_of_a_series_is_told_of(images, tmp_path):
    stored = np.zeros((4, 4, 4), np.uint16)
    for name in ("pat10/CT", "pat12", "pat13"):
        write_series(tmp_path / images / name, stored)
    for name in ("pat10/label.nii.gz", "pat13/label.nrrd"):
        (tmp_path / images / name).touch()
    found = find_folder(tmp_path)
    assert [case.name for case in found.cases if not case.has_label] == ["pat10", "pat12", "pat13"]
    assert found.notes == [
        f"passed over beside DICOM: {images}pat10/label.nii.gz, {images}pat13/label.nrrd; a label belongs into "
        "labels/, such as labels/pat10.nii.gz."
    ]


def test_scans_of_one_patient_are_told_of(tmp_path):
    def of(patient):
        return lambda dataset, index: setattr(dataset, "PatientID", patient)

    for name, patient in (("before", "7"), ("after", "7"), ("other", "8"), ("another", "8"), ("unknown", "")):
        write_series(tmp_path / "images" / name, np.zeros((4, 4, 4), np.uint16), edit=of(patient))
    # Nor has the list of an export a patient.
    write_series(tmp_path / "images/before", np.zeros((4, 4, 1), np.uint16), prefix="DICOMDIR", edit=of(""))
    (tmp_path / "images/broken").mkdir()
    (tmp_path / "images/broken/1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 9)
    found = find_folder(tmp_path)
    assert found.notes == [
        "cases with one PatientID: after and before; another and other. Give those of a patient one group in a "
        "--table, or they may be trained on and tested."
    ]
    # An anonymization leaves one for all.
    for name in ("other", "another", "unknown", "broken"):
        shutil.rmtree(tmp_path / "images" / name)
    assert find_folder(tmp_path).notes == []


def test_a_folder_without_dicom_has_no_volume_beside_it(tmp_path):
    (tmp_path / "images/p1").mkdir(parents=True)
    (tmp_path / "images/p1/scan.nii.gz").touch()
    assert find_folder(tmp_path).notes == []


def test_compressed_slices_are_read(source, capsys, tmp_path):
    stored = np.random.default_rng(9).integers(0, 1000, size=(40, 36, 4)).astype(np.uint16)

    def compress(dataset, index):
        dataset.compress(JPEG2000Lossless)

    write_series(source / "images/packed", stored, edit=compress)
    main(["prepare", "folder", "--source", str(source), "--output_dir", str(tmp_path / "out"), "--num_folds", "3"])
    image = nib.load(tmp_path / "out/images/packed.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), stored.astype(int) - 1024)


def test_a_link_out_of_the_source(source, bad_lines, tmp_path):
    save(tmp_path / "elsewhere/secret.nii.gz", volumes(9)[0])
    os.symlink(tmp_path / "elsewhere/secret.nii.gz", source / "images/bad.nii.gz")
    assert "leads out of" in bad_lines()


def test_a_slice_that_is_a_link_out_of_the_source(source, bad_lines, tmp_path):
    stored = np.random.default_rng(9).integers(0, 1000, size=(40, 36, 4)).astype(np.uint16)
    (source / "images/bad").mkdir()
    for path in write_series(tmp_path / "elsewhere", stored):
        os.symlink(path, source / "images/bad" / path.name)
    assert "leads out of" in bad_lines()


def test_a_table_that_leads_out(source, bad_lines, tmp_path):
    save(tmp_path / "elsewhere/secret.nii.gz", volumes(9)[0])
    rows = [f"images/{name}.nii.gz,labels/{name}.nii.gz," for name in ("good a", "gut ä", "good c")]
    (tmp_path / "cases.csv").write_text("\n".join(["image,label,group", "", *rows, "../elsewhere/secret.nii.gz,,"]))
    assert "cases.csv, line 6: paths must be relative and stay in" in bad_lines(table=tmp_path / "cases.csv")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("images/good c.nii.gz,labels/good c.nii.gz,", "line 7: good c.nii.gz stands in line 5 already; a file is the"),
        ("images/bad.nii.gz,labels/good a.nii.gz,", "line 7: good a.nii.gz stands in line 3 already; a file is the"),
        ("images/bad.nii.gz,images/bad.nii.gz,", "line 7: image and label are one file, bad.nii.gz."),
    ],
)
def test_a_table_that_names_a_file_twice(row, message, source, bad_lines, tmp_path):
    save(source / "images/bad.nii.gz", volumes(9)[0])
    rows = [f"images/{name}.nii.gz,labels/{name}.nii.gz," for name in ("good a", "gut ä", "good c")]
    # Empty rows, as spreadsheets write them, are none.
    (tmp_path / "cases.csv").write_text("\n".join(["image,label,group", "", *rows, ",,", row, ",,"]))
    assert f"cases.csv, {message}" in bad_lines(table=tmp_path / "cases.csv")


def test_a_table_without_its_columns(source, tmp_path, capsys):
    (tmp_path / "cases.csv").write_text("scan;mask\n")
    words = ["--source", source, "--output_dir", tmp_path / "out", "--table", tmp_path / "cases.csv"]
    with pytest.raises(SystemExit):
        main(["prepare", "folder", *(str(word) for word in words)])
    assert "must have the columns image, label, group, got scan;mask." in capsys.readouterr().err


def test_a_table_that_is_not_there(source):
    with assert_refused(
        r"^table cases\.csv not found: it is looked for from the working folder, .*not from the source"
    ):
        find_folder(source, table="cases.csv")


def test_umlauts_of_a_table_may_be_stored_as_two_characters(tmp_path):
    stored = unicodedata.normalize("NFD", "Müller")
    image, label = volumes(0)
    save(tmp_path / stored / f"{stored}.nii.gz", image)
    save(tmp_path / "labels" / f"{stored}.nii.gz", label)
    table = tmp_path / "cases.csv"
    table.write_text("image,label,group\nMüller/Müller.nii.gz,labels/Müller.nii.gz,\n", encoding="utf-8")
    (case,) = find_folder(tmp_path, table=str(table)).cases
    assert case.name == "Müller"
    np.testing.assert_array_equal(case.read().label.dataobj, label)


def test_a_table_without_a_row(source, tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text("image,label,group\n")
    with assert_refused(rf"^table {table} has no row below its columns\.$"):
        find_folder(source, table=str(table))


def test_a_task_whose_list_leads_out(source, bad_lines, tmp_path):
    save(tmp_path / "elsewhere/bad.nii.gz", volumes(9)[0])
    names = [f"images/{name}.nii.gz" for name in ("good a", "gut ä", "good c")] + ["../elsewhere/bad.nii.gz"]
    entries = [{"image": name, "label": name.replace("images", "labels")} for name in names]
    (source / "dataset.json").write_text(json.dumps({"training": entries}))
    assert "leads out of" in bad_lines(name="decathlon")


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2"])
def test_an_archive_with_a_wrong_bit(suffix, tmp_path):
    (tmp_path / "scan.raw").write_bytes(np.random.default_rng(0).integers(0, 99, 30_000, dtype=np.uint8).tobytes())
    archive = tmp_path / f"scans.tar.{suffix}"
    with tarfile.open(archive, f"w:{suffix}") as tar:
        tar.add(tmp_path / "scan.raw", "scan.raw")
    assert (unpack(archive, tmp_path / "good") / "scan.raw").read_bytes() == (tmp_path / "scan.raw").read_bytes()
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "good").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert not list(tmp_path.glob(".good*"))
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with assert_refused(rf"^{archive} cannot be unpacked, the download may be incomplete, or bytes follow its end: "):
        unpack(archive, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("kind", ["link", "outside", "absolute", "truncated"])
def test_a_bad_archive(kind, source, tmp_path, capsys):
    archive = tmp_path / "task.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "task")
        if kind == "link":
            member = tarfile.TarInfo("task/images/x.nii.gz")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
        elif kind == "outside":
            tar.add(source / "images/good a.nii.gz", "../outside.nii.gz")
        elif kind == "absolute":
            member = tar.gettarinfo(source / "images/good a.nii.gz")
            member.name = str(tmp_path / "a/outside.nii.gz")
            with (source / "images/good a.nii.gz").open("rb") as file:
                tar.addfile(member, file)
    if kind == "truncated":
        archive.write_bytes(archive.read_bytes()[:-900])
    with pytest.raises(SystemExit):
        main(["prepare", "folder", "--source", str(archive), "--output_dir", str(tmp_path / "a/out")])
    messages = {"link": "x.nii.gz is a link or a device", "truncated": "may be incomplete"}
    messages |= dict.fromkeys(("outside", "absolute"), "outside.nii.gz leads out of the folder to unpack into")
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert messages[kind] in error
    assert not (tmp_path / "a/outside.nii.gz").exists()
    assert list((tmp_path / "a").rglob("*.nii.gz")) == []


def test_a_case_of_the_protocol_that_fails_holds_the_split_back(tmp_path, capsys):
    for number, case in enumerate(shipped_splits("left_atrium")[0].all_cases()):
        path = tmp_path / "source" / case.removeprefix("la_") / "mri_norm2.h5"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            file["image"], file["label"] = volumes(number)[0].astype(np.float32), volumes(number)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    words = ["prepare", "left_atrium", "--source", str(tmp_path / "source"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(words)
    assert "1 cases of the protocol could not be prepared" in capsys.readouterr().err
    assert len(list((tmp_path / "out/images").iterdir())) == 99
    assert not (tmp_path / "out/split.json").exists()
    path.write_bytes(whole)
    main(words)
    assert (tmp_path / "out/split.json").exists()


def test_nothing_but_bad_cases_tells_why_of_each(tmp_path, capsys):
    images = tmp_path / "source/images"
    images.mkdir(parents=True)
    (images / "first.nii.gz").write_bytes(b"\x1f\x8b cut")
    (images / "second.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    for name in ("first", "second"):
        save(tmp_path / "source/labels" / f"{name}.nii.gz", volumes(0)[1])
    words = ["prepare", "folder", "--source", str(tmp_path / "source"), "--output_dir", str(tmp_path / "prepared")]
    with pytest.raises(SystemExit):
        main([*words, "--num_folds", "2"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: none of the 2 cases in ")
    assert sorted(line.split(":")[0] for line in lines[1:]) == ["- first", "- second"]


def test_volumes_without_their_folders_are_explained(tmp_path, capsys):
    image, _ = volumes(0)
    save(tmp_path / "flat" / "a.nii.gz", image)
    with pytest.raises(SystemExit):
        main(["prepare", "folder", "--source", str(tmp_path / "flat"), "--output_dir", str(tmp_path / "prepared")])
    message = capsys.readouterr().err
    assert message.startswith(f"error: source {tmp_path / 'flat'} holds volumes themselves: put the images into ")
    assert message.count("\n") == 1


@pytest.mark.parametrize("folder", ["p1", "p1/before"])
def test_folders_of_patients_with_volumes_are_explained(folder, tmp_path, capsys):
    image, _ = volumes(0)
    save(tmp_path / "patients" / folder / "t1.nii.gz", image)
    (tmp_path / "patients" / "p1" / "t1.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["prepare", "folder", "--source", str(tmp_path / "patients"), "--output_dir", str(tmp_path / "prepared")])
    message = capsys.readouterr().err
    assert "has no images/, so that its folders must be DICOM series, but p1 holds NIfTI or NRRD files" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--num_folds", "0"]])
def test_cases_without_any_label_are_told_of(words, tmp_path, capsys):
    save(tmp_path / "source/images/a.nii.gz", volumes(0)[0])
    with pytest.raises(SystemExit):
        main(["prepare", "folder", "--source", str(tmp_path / "source"), "--output_dir", str(tmp_path / "out"), *words])
    message = capsys.readouterr().err
    assert message.startswith("error: source: none of 1 cases has a label: labels/ must hold files that are named as")
    assert message.count("\n") == 1


def test_a_folder_in_which_nothing_was_prepared_takes_other_options(tmp_path, capsys):
    image, label = volumes(0)
    save(tmp_path / "source/images/a.nii.gz", image)
    save(tmp_path / "source/labels/a.nii.gz", label[:5])
    words = ["prepare", "folder", "--source", str(tmp_path / "source"), "--output_dir", str(tmp_path / "prepared")]
    words += ["--num_folds", "0", "--num_labeled", "1"]
    with pytest.raises(SystemExit):
        main(words)
    assert "none of the 1 cases" in capsys.readouterr().err
    save(tmp_path / "source/labels/a.nii.gz", label)
    main([*words, "--spacing", "2"])
    assert (tmp_path / "prepared/images/a.nii.gz").is_file()


def test_a_prepared_folder_stays_one_when_the_next_source_fails(source, tmp_path, capsys):
    words = ["--output_dir", str(tmp_path / "prepared"), "--num_folds", "0"]
    main(["prepare", "folder", "--source", str(source), *words])
    (tmp_path / "wrong/images").mkdir(parents=True)
    (tmp_path / "wrong/images/x.nii.gz").write_bytes(b"\x1f\x8b cut")
    with pytest.raises(SystemExit):
        main(["prepare", "folder", "--source", str(tmp_path / "wrong"), *words])
    main(["prepare", "folder", "--source", str(source), *words])


@pytest.mark.parametrize("name", ["images/good a.nii.gz", "cut.tar.gz"])
def test_a_file_that_is_no_archive(name, source, tmp_path, capsys):
    file = source / name
    if name == "cut.tar.gz":
        file.write_bytes(b"\x1f\x8b cut")
    with pytest.raises(SystemExit):
        main(["prepare", "folder", "--source", str(file), "--output_dir", str(tmp_path / "out")])
    assert capsys.readouterr().err == f"error: source must be a folder or a whole tar file, which {file} is not.\n"
    assert not (tmp_path / "out").exists()


def test_two_geometries_in_one_header(source, bad_lines):
    image, label = volumes(9)
    volume = nib.Nifti1Image(image, np.eye(4))
    volume.header.set_qform(np.diag([0.7, 0.7, 3.0, 1.0]), code=1)
    volume.header.set_sform(np.eye(4), code=1)
    nib.save(volume, source / "images/bad.nii.gz")
    save(source / "labels/bad.nii.gz", label)
    assert "bad.nii.gz must have one geometry: its affine has voxels of" in bad_lines()


def test_sizes_in_meters(source, bad_lines):
    image, label = volumes(9)
    volume = nib.Nifti1Image(image, np.diag([0.001, 0.001, 0.001, 1]))
    volume.header.set_xyzt_units("meter")
    nib.save(volume, source / "images/bad.nii.gz")
    save(source / "labels/bad.nii.gz", label)
    assert "bad.nii.gz must have sizes in mm, its header has the unit meter" in bad_lines()


@pytest.mark.parametrize("unit", ['space units: "um" "um" "um"', 'units: "m" "m" "m"'])
def test_sizes_of_nrrd_in_another_unit(unit, source, bad_lines):
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 5 4 3\nencoding: raw\n"
    space = (
        "spacings: 1 1 1\n"
        if unit.startswith("units")
        else ("space: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n")
    )
    (source / "images/bad.nrrd").write_bytes(f"{header}{space}{unit}\n\n".encode() + bytes(range(60)))
    assert "bad.nrrd must have sizes in mm, its header has the unit" in bad_lines()


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4, 3)])
def test_nrrd_of_other_dimensions(shape, source, bad_lines):
    nrrd.write(str(source / "images/bad.nrrd"), np.zeros(shape, np.uint8), {"spacings": np.ones(len(shape))})
    assert f"bad.nrrd must be a 3D volume of one channel, got shape {shape}." in bad_lines()


def test_nrrd_without_directions_is_warned_of(tmp_path, caplog):
    path = tmp_path / "a.nrrd"
    nrrd.write(str(path), np.ones((5, 4, 3), np.uint8), {"spacings": [1.0, 1.0, 2.0]})
    np.testing.assert_array_equal(read_image(path, source=tmp_path).affine, np.diag([1, 1, 2, 1]))
    assert caplog.messages == [
        f"{path} does not tell the directions of its axes (no space directions): left and right may be exchanged, also "
        "in pictures."
    ]


def test_a_unit_that_means_nothing_is_passed_over(source, tmp_path):
    volume = nib.load(source / "images/good a.nii.gz")
    voxels = np.asarray(volume.dataobj)
    volume.header["xyzt_units"] = 4
    nib.save(nib.Nifti1Image(voxels, None, volume.header), source / "images/good a.nii.gz")
    main(["prepare", "folder", "--source", str(source), "--output_dir", str(tmp_path / "out"), "--num_folds", "0"])
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out/images/good a.nii.gz").dataobj), voxels)


def test_colors(source, bad_lines):
    colors = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(source / "images/bad.nii.gz", colors)
    assert "bad.nii.gz must hold one number a voxel, got colors" in bad_lines()


def test_complex_numbers(source, bad_lines):
    image, label = volumes(9)
    save(source / "images/bad.nii.gz", image.astype(np.complex64))
    save(source / "labels/bad.nii.gz", label)
    assert "bad.nii.gz must hold one number a voxel, got complex64" in bad_lines()
