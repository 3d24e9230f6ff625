# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Every mistake a data set can have, made in a small phantom data set and found again."""

from __future__ import annotations

import json
import shutil

import nibabel
import numpy as np
import pytest

from scripts.data.integrity import check_dataset
from scripts.data.phantom import generate_phantom_dataset
from scripts.errors import BundleError

# With 6 cases: labeled 000, 001; unlabeled 002, 003; validation 004; test 005.
LABELED, OTHER_LABELED, UNLABELED, VALIDATION, TEST = (f"phantom_00{index}" for index in (0, 1, 2, 4, 5))


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    generate_phantom_dataset(folder, num_cases=6, size=32, num_classes=3)
    return folder


@pytest.fixture
def folder(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "dataset")


def change(folder, role, case, function, affine=None):
    """Put ``function(voxels)`` in place of a file's voxels."""
    path = folder / role / f"{case}.nii.gz"
    file = nibabel.load(path)
    changed = function(np.array(file.dataobj))
    nibabel.save(nibabel.Nifti1Image(changed, file.affine if affine is None else affine(file.affine)), path)


def change_split(folder, **changes):
    path = folder / "split.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def check(folder, **kwargs):
    return check_dataset(folder, folder / "split.json", **kwargs).problems


def with_value(value, dtype=None):
    def put(voxels):
        voxels = voxels.astype(dtype or voxels.dtype)
        voxels[0, 0, 0] = value
        return voxels

    return put


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 3}, {"num_classes": 4}, {"jobs": 1}, {"lists": ["labeled"]}])
def test_clean_data_set_has_no_problem(clean, kwargs):
    assert check(clean, **kwargs) == []


def test_the_lists_are_as_the_tests_here_take_them(clean):
    split = json.loads((clean / "split.json").read_text())
    assert split["labeled"] == [LABELED, OTHER_LABELED]
    assert split["unlabeled"] == [UNLABELED, "phantom_003"]
    assert (split["validation"], split["test"]) == ([VALIDATION], [TEST])


def test_schema(folder):
    change_split(folder, version=2, labeled=[TEST])
    assert check(folder) == [
        f"{folder / 'split.json'}: version must be 1, got 2",
        f"{folder / 'split.json'}: case '{TEST}' is in two lists: labeled and test",
    ]


def test_missing_files(folder):
    (folder / "images" / f"{UNLABELED}.nii.gz").unlink()
    (folder / "labels" / f"{UNLABELED}.nii.gz").unlink()  # nobody asks for that one
    (folder / "labels" / f"{TEST}.nii.gz").unlink()
    assert check(folder) == [
        f"{UNLABELED}: image images/{UNLABELED}.nii.gz not found",
        f"{TEST}: label labels/{TEST}.nii.gz not found",
    ]
    assert check(folder, lists=["labeled", "validation"]) == []


def test_missing_folder(clean, tmp_path):
    report = check_dataset(tmp_path / "none", clean / "split.json")
    assert report.problems == [f"{tmp_path / 'none'}: is not a folder."]
    assert report.summary == []


def test_file_outside_of_the_folder(folder):
    path = folder / "images" / f"{LABELED}.nii.gz"
    shutil.move(path, folder.parent / "outside.nii.gz")
    path.symlink_to(folder.parent / "outside.nii.gz")
    assert check(folder) == [f"{LABELED}: image images/{LABELED}.nii.gz leads out of {folder}"]


@pytest.mark.parametrize("role", ["image", "label"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.7])
def test_truncated_file(folder, role, kept):
    path = folder / f"{role}s" / f"{LABELED}.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    (problem,) = check(folder)
    assert problem.startswith(f"{LABELED}: {role} {role}s/{LABELED}.nii.gz cannot be read (")
    assert "\n" not in problem


def test_a_wrong_checksum(folder):
    path = folder / "images" / f"{LABELED}.nii.gz"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert np.asanyarray(nibabel.load(path).dataobj).size
    (problem,) = check(folder)
    assert problem.startswith(
        f"{LABELED}: image images/{LABELED}.nii.gz cannot be read to its end, the file is damaged"
    )


def test_what_is_no_nifti_at_all(folder):
    (folder / "images" / f"{TEST}.nii.gz").write_text("no volume")
    (problem,) = check(folder)
    assert problem.startswith(f"{TEST}: image images/{TEST}.nii.gz cannot be read (")


def test_dimensions(folder):
    for role in ("images", "labels"):
        change(folder, role, LABELED, lambda voxels: voxels[..., None])
    assert check(folder) == []
    change(folder, "images", TEST, lambda voxels: np.stack([voxels, voxels], axis=-1))
    change(folder, "labels", VALIDATION, lambda voxels: voxels[:, :, 0])
    shape = nibabel.load(folder / "images" / f"{TEST}.nii.gz").shape
    flat = nibabel.load(folder / "labels" / f"{VALIDATION}.nii.gz").shape
    assert check(folder) == [
        f"{VALIDATION}: label labels/{VALIDATION}.nii.gz must be 3D, got shape {flat}",
        f"{TEST}: image images/{TEST}.nii.gz must be 3D, got shape {shape}",
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values(folder, value):
    change(folder, "images", UNLABELED, with_value(value, dtype=np.float32))
    change(folder, "labels", TEST, with_value(value, dtype=np.float32))
    assert check(folder) == [
        f"{UNLABELED}: image images/{UNLABELED}.nii.gz has 1 non-finite value",
        f"{TEST}: label labels/{TEST}.nii.gz has 1 non-finite value",
    ]


def test_constant_image(folder):
    change(folder, "images", UNLABELED, lambda voxels: np.full_like(voxels, 7))
    assert check(folder) == [f"{UNLABELED}: image is constant, 7 everywhere"]


def test_label_of_another_shape(folder):
    change(folder, "labels", LABELED, lambda voxels: voxels[1:])
    image, label = (nibabel.load(folder / role / f"{LABELED}.nii.gz").shape for role in ("images", "labels"))
    assert check(folder) == [f"{LABELED}: label has shape {label}, its image {image}"]


def test_label_of_another_affine(folder):
    def moved(millimeters):
        shift = np.zeros((4, 4))
        shift[0, 3] = millimeters
        return lambda affine: affine + shift

    change(folder, "labels", LABELED, lambda voxels: voxels, affine=moved(5e-4))
    assert check(folder) == []
    change(folder, "labels", LABELED, lambda voxels: voxels, affine=moved(2.0))
    (problem,) = check(folder)
    assert problem.startswith(f"{LABELED}: label has another affine than its image (they differ by up to 2")


def test_label_values_that_are_no_integers(folder):
    change(folder, "labels", LABELED, with_value(0.5, dtype=np.float32))
    change(folder, "labels", TEST, with_value(2.0, dtype=np.float32))  # an integer, whatever its type
    assert check(folder) == [f"{LABELED}: label values must be integers from 0 to 255, got 0.5"]


def test_many_wrong_label_values_are_counted(folder):
    change(folder, "labels", LABELED, lambda voxels: np.linspace(0, 1, voxels.size, dtype="f4").reshape(voxels.shape))
    (problem,) = check(folder)
    assert "..." in problem
    assert problem.endswith(" values)")


def test_label_values_outside_of_the_classes(folder):
    change(folder, "labels", LABELED, with_value(-1, dtype=np.int16))
    change(folder, "labels", TEST, with_value(300, dtype=np.int16))
    assert check(folder, num_classes=3) == [
        f"{LABELED}: label values must be integers from 0 to 2, got -1",
        f"{TEST}: label values must be integers from 0 to 2, got 300",
    ]
    assert check(folder) == [
        f"{LABELED}: label values must be integers from 0 to 255, got -1",
        f"{TEST}: label values must be integers from 0 to 255, got 300",
    ]
    assert check(folder, num_classes=2)[0] == f"{LABELED}: label values must be integers from 0 to 1, got -1, 2"


def test_gap_in_the_label_values(folder):
    change(folder, "labels", LABELED, with_value(5))
    assert check(folder) == [
        f"{folder / 'split.json'}: label values must be 0, 1, 2, ... without a gap, "
        f"but over all cases they are 0, 1, 2, 5, without 3, 4; above 3 in {LABELED}"
    ]
    assert check(folder, num_classes=6) == []


def test_class_that_only_one_case_has_is_no_gap(folder):
    change(folder, "labels", LABELED, with_value(3))
    change(folder, "labels", OTHER_LABELED, with_value(4))
    assert check(folder) == []


def test_only_a_labeled_case_must_have_foreground(folder):
    for case in (LABELED, VALIDATION, TEST):
        change(folder, "labels", case, np.zeros_like)
    assert check(folder) == [f"{LABELED}: label has no foreground"]
    line = f"no foreground for validation in {VALIDATION}: Dice is 1 where nothing is found, which chooses model.pt"
    assert check_dataset(folder, folder / "split.json").summary[-1] == line


def test_label_of_an_unlabeled_case_is_not_looked_at(folder):
    (folder / "labels" / f"{UNLABELED}.nii.gz").write_text("no volume")
    assert check(folder) == []


def test_leak_between_lists(folder):
    for role in ("images", "labels"):
        shutil.copy(folder / role / f"{LABELED}.nii.gz", folder / role / f"{TEST}.nii.gz")
    # Stored in another data type it is the same image still.
    change(folder, "images", TEST, lambda voxels: voxels.astype(np.float32))
    assert check(folder) == [f"{TEST}: has the same image as {LABELED}, a leak between the lists labeled and test"]


def test_duplicate_in_one_list(folder):
    for role in ("images", "labels"):
        shutil.copy(folder / role / f"{LABELED}.nii.gz", folder / role / f"{OTHER_LABELED}.nii.gz")
    assert check(folder) == [f"{OTHER_LABELED}: has the same image as {LABELED}, both in the list labeled"]


def test_one_different_voxel_is_no_duplicate(folder):
    for role in ("images", "labels"):
        shutil.copy(folder / role / f"{LABELED}.nii.gz", folder / role / f"{TEST}.nii.gz")
    change(folder, "images", TEST, with_value(999))
    assert check(folder) == []


def test_problems_come_in_the_order_of_the_lists(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    problems = check(folder, jobs=4)
    assert [problem.split(":")[0] for problem in problems] == [f"phantom_{index:03d}" for index in range(6)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"lists": ["train"]}, "lists must be of labeled, unlabeled, validation, test, got 'train'"),
    ],
)
def test_wrong_arguments(clean, kwargs, message):
    with pytest.raises(BundleError, match=message):
        check(clean, **kwargs)


def save(folder, case, image, label, spacing_mm):
    for role, voxels in (("images", image), ("labels", label)):
        (folder / role).mkdir(exist_ok=True)
        file = nibabel.Nifti1Image(voxels, np.diag([*spacing_mm, 1.0]))
        nibabel.save(file, folder / role / f"{case}.nii.gz")


def test_summary_of_worked_numbers(tmp_path):
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    label = np.zeros((2, 3, 4), dtype=np.uint8)
    label[0, 0] = 1  # 4 of 24 voxels
    save(tmp_path, "a", image - 10, label, spacing_mm=(1.0, 1.0, 2.0))
    larger = np.zeros((4, 3, 4), dtype=np.uint8)
    larger[:2] = 1  # half of the voxels
    save(tmp_path, "b", np.concatenate([image, image]), larger, spacing_mm=(0.5, 1.0, 2.5))
    save(tmp_path, "c", image, label, spacing_mm=(1.0, 1.0, 1.0))
    split = {"version": 1, "name": "n", "description": "d", "image": "images/{case}.nii.gz"}
    split |= {"label": "labels/{case}.nii.gz", "labeled": ["a", "b", "gone"], "unlabeled": ["c"]}
    (tmp_path / "split.json").write_text(json.dumps(split | {"validation": [], "test": []}))
    lines = check_dataset(tmp_path, tmp_path / "split.json").summary
    assert [" ".join(line.split()) for line in lines] == [
        "list cases read shape (x, y, z) spacing in mm (x, y, z) intensity foreground",
        "labeled 3 2 (2, 3, 4) to (4, 3, 4) (0.5, 1, 2) to (1, 1, 2.5) -10 to 23 33.33%",
        "unlabeled 1 1 (2, 3, 4) (1, 1, 1) 0 to 23 -",
        "validation 0 0 - - - -",
        "test 0 0 - - - -",
    ]
    assert len({line.index(word) for line, word in zip(lines[:2], ("cases", "3"), strict=True)}) == 1


def test_shapes_and_spacings_are_those_along_the_axes_of_the_patient(tmp_path):
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for case, axes in (("a", "RAS"), ("b", "SPL")):
        save(tmp_path, case, image + ord(case), (image > 20).astype(np.uint8), spacing_mm=(1.0, 1.5, 2.0))
        for role in ("images", "labels"):
            path = tmp_path / role / f"{case}.nii.gz"
            file = nibabel.load(path).as_reoriented(nibabel.orientations.axcodes2ornt(axes))
            nibabel.save(nibabel.Nifti1Image(np.array(file.dataobj).astype(np.int16), file.affine), path)
    split = {"version": 1, "name": "n", "description": "d", "image": "images/{case}.nii.gz"}
    split |= {"label": "labels/{case}.nii.gz", "labeled": ["a", "b"], "unlabeled": [], "validation": [], "test": []}
    (tmp_path / "split.json").write_text(json.dumps(split))
    report = check_dataset(tmp_path, tmp_path / "split.json")
    assert report.problems == []
    assert "  (2, 3, 4)        (1, 1.5, 2)  " in report.summary[1]


def test_only_the_chosen_lists_are_read_each_file_once_and_described(clean, monkeypatch):
    read = []
    load = nibabel.load

    def note(path):
        read.append(f"{path.parent.name}/{path.name}")
        return load(path)

    monkeypatch.setattr(nibabel, "load", note)
    # A list that is named twice counts once.
    report = check_dataset(clean, clean / "split.json", lists=["unlabeled", "test", "unlabeled"])
    assert report.problems == []
    assert sorted(read) == [f"images/phantom_00{index}.nii.gz" for index in (2, 3, 5)] + [f"labels/{TEST}.nii.gz"]
    assert [line.split()[:3] for line in report.summary] == [
        ["list", "cases", "read"],
        ["unlabeled", "2", "2"],
        ["test", "1", "1"],
    ]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_affine_that_cannot_be_inverted(folder, value):
    def spoil(affine):
        affine[0, 0] = value
        return affine

    path = folder / "images" / f"{UNLABELED}.nii.gz"
    file = nibabel.load(path)
    volume = nibabel.Nifti1Image(np.asarray(file.dataobj), None)
    volume.header["sform_code"] = 1
    volume.header["srow_x"], volume.header["srow_y"], volume.header["srow_z"] = spoil(np.eye(4))[:3]
    nibabel.save(volume, path)
    (problem,) = check(folder)
    assert problem.startswith(f"{UNLABELED}: image images/{UNLABELED}.nii.gz must have an affine that can be inverted")


def test_two_geometries_in_one_file(folder):
    """Its sform tells of other voxels than its header."""
    volume = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32), None)
    volume.header["sform_code"] = 1
    volume.header["srow_x"], volume.header["srow_y"], volume.header["srow_z"] = np.diag([-2, 3, 2.5, 1])[:3]
    nibabel.save(volume, folder / "images" / f"{UNLABELED}.nii.gz")
    (problem,) = check(folder)
    assert problem.startswith(
        f"{UNLABELED}: image images/{UNLABELED}.nii.gz must have one geometry: its affine has voxels"
    )


def test_a_class_that_no_labeled_case_has(folder):
    change(folder, "labels", TEST, with_value(3))
    for num_classes in (None, 4):
        assert check(folder, num_classes=num_classes) == [
            f"{folder / 'split.json'}: no labeled case has 3, which others have"
        ]
    assert check(folder, lists=["labeled"]) == check(folder, lists=["test"], num_classes=4) == []


def test_a_class_that_was_not_drawn_in_a_labeled_case_is_told_of(folder):
    summary = check_dataset(folder, folder / "split.json").summary
    # Where it was not drawn in a case that no network is trained on with its label, nothing is learned of it.
    for case in (OTHER_LABELED, VALIDATION, TEST):
        change(folder, "labels", case, lambda voxels: np.where(voxels == 2, 0, voxels))
    lines = check_dataset(folder, folder / "split.json").summary
    assert len(lines) == len(summary) + 1
    assert lines[-1] == f"class 2 is in 1 of 2 labeled cases, and background in {OTHER_LABELED}"


def test_complex_voxels(folder):
    change(folder, "images", UNLABELED, lambda voxels: voxels.astype(np.complex64))
    (problem,) = check(folder)
    assert "cannot be read (ValueError: its voxels must be numbers, got complex64)" in problem
