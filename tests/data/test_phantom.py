# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The generated data set: reproducible, with sound geometry, and never written over another."""

from __future__ import annotations

import json
import time

import nibabel
import numpy as np
import pytest

from scripts.data.phantom import ensure_phantom_dataset, generate_phantom_dataset, is_phantom_case
from scripts.data.splits import read_split
from scripts.errors import BundleError


def voxels(path):
    return np.asanyarray(nibabel.load(path).dataobj)


def all_bytes(folder):
    return {path.name: voxels(path).tobytes() for path in sorted((folder / "images").iterdir())}


def list_sizes(split_path):
    split = read_split(split_path)
    return [len(split.cases(name)) for name in ("labeled", "unlabeled", "validation", "test")]


@pytest.fixture(scope="module")
def mri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mri")
    generate_phantom_dataset(folder, num_cases=5, size=32, num_classes=3)
    return folder


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ct")
    generate_phantom_dataset(folder, num_cases=4, size=(48, 40, 32), modality="ct", num_classes=5)
    return folder


def test_same_seed_gives_the_same_voxels_for_any_number_of_cases(mri, tmp_path):
    generate_phantom_dataset(tmp_path, num_cases=4, size=32, num_classes=3)
    expected = all_bytes(mri)
    del expected["phantom_004.nii.gz"]
    assert all_bytes(tmp_path) == expected


def test_other_seed_and_other_case_give_other_voxels(mri, tmp_path):
    generate_phantom_dataset(tmp_path, num_cases=4, size=32, num_classes=3, seed=1)
    first, other = all_bytes(mri), all_bytes(tmp_path)
    assert not set(first.values()) & set(other.values())
    assert len(set(first.values())) == 5


@pytest.mark.parametrize(("name", "num_classes"), [("mri", 3), ("ct", 5)])
def test_labels_hold_every_class_and_share_the_geometry_of_the_image(name, num_classes, request):
    folder = request.getfixturevalue(name)
    for path in sorted((folder / "images").iterdir()):
        image, label = nibabel.load(path), nibabel.load(folder / "labels" / path.name)
        assert label.get_data_dtype() == np.uint8
        assert np.unique(label.dataobj).tolist() == list(range(num_classes))
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        # Both forms of the header agree, so that every reader sees the same geometry.
        np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-4)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert all(0.8 <= spacing <= 1.2 for spacing in image.header.get_zooms())


def test_orientations_spacings_and_sizes_vary(mri, ct):
    images = [nibabel.load(path) for path in sorted((mri / "images").iterdir())]
    codes = ["".join(nibabel.aff2axcodes(image.affine)) for image in images]
    assert codes == ["RAS", "LPS", "LAS", "PIR", "RAS"]
    assert len({image.header.get_zooms() for image in images}) == 5
    assert len({image.shape for image in images}) > 1
    assert all(30 <= number <= 34 for image in images for number in image.shape)
    for path in (ct / "images").iterdir():
        shape = nibabel.as_closest_canonical(nibabel.load(path)).shape
        assert all(abs(number - size) <= size // 16 for number, size in zip(shape, (48, 40, 32), strict=True))


def test_mri_is_positive_and_of_two_data_types(mri):
    images = [nibabel.load(path) for path in sorted((mri / "images").iterdir())]
    assert [image.get_data_dtype().name for image in images] == ["int16", "float32", "int16", "float32", "int16"]
    assert all(np.asanyarray(image.dataobj).min() >= 0 for image in images)


def test_ct_is_in_hounsfield_units(ct):
    for path in (ct / "images").iterdir():
        image, label = voxels(path), voxels(ct / "labels" / path.name)
        assert image.dtype == np.int16
        assert -1024 <= image.min() <= -950
        assert 250 < image.max() < 600
        # Organ 1 is painted with 110 HU; its rim is blurred with the 40 HU around it.
        assert 85 < image[label == 1].mean() < 115


def test_organ_stands_out_of_the_noise(tmp_path):
    generate_phantom_dataset(tmp_path, num_cases=4, modality="ct")
    image, label = (voxels(tmp_path / folder / "phantom_000.nii.gz").astype(float) for folder in ("images", "labels"))
    soft_tissue = image[(label == 0) & (image > -20) & (image < 100)]
    # Painted: (110 - 40) / 17 = 4.1 standard deviations; blur and texture take some of it.
    contrast_to_noise = (np.median(image[label == 1]) - np.median(soft_tissue)) / soft_tissue.std()
    assert 3.0 < contrast_to_noise < 5.0


@pytest.mark.parametrize("seed", range(4))
def test_smallest_phantom_still_has_every_organ(seed, tmp_path):
    generate_phantom_dataset(tmp_path, num_cases=4, size=32, num_classes=5, seed=seed)
    for path in (tmp_path / "labels").iterdir():
        assert (np.bincount(voxels(path).ravel(), minlength=5) > 10).all()


def test_default_set_is_quick(tmp_path):
    start = time.perf_counter()
    generate_phantom_dataset(tmp_path)
    assert time.perf_counter() - start < 5.0
    assert list_sizes(tmp_path / "split.json") == [3, 6, 1, 2]


@pytest.mark.parametrize(
    ("num_cases", "num_labeled", "expected"),
    [
        (4, None, [1, 1, 1, 1]),
        (5, None, [1, 2, 1, 1]),
        (8, None, [2, 4, 1, 1]),
        (8, 1, [1, 5, 1, 1]),
        (8, 5, [5, 1, 1, 1]),
    ],
)
def test_sizes_of_the_lists(num_cases, num_labeled, expected, tmp_path):
    split_path = generate_phantom_dataset(tmp_path, num_cases=num_cases, size=32, num_labeled=num_labeled)
    assert split_path == tmp_path / "split.json"
    assert list_sizes(split_path) == expected
    assert len(list((tmp_path / "labels").iterdir())) == num_cases


def test_finished_folder_is_refused(mri):
    before = (mri / "split.json").read_text()
    with pytest.raises(BundleError, match=r"already holds a split\.json; --overwrite true"):
        generate_phantom_dataset(mri, num_cases=4, size=32)
    assert (mri / "split.json").read_text() == before


def test_overwrite_leaves_no_old_case_and_no_foreign_file_behind(tmp_path):
    generate_phantom_dataset(tmp_path, num_cases=5, size=32)
    (tmp_path / "images" / "mine.nii.gz").touch()
    (tmp_path / "images" / ".phantom_001.nii.k3_x9a0b.gz").touch()
    generate_phantom_dataset(tmp_path, num_cases=4, size=32, overwrite=True)
    names = [path.name for path in sorted((tmp_path / "images").iterdir())]
    assert names == ["mine.nii.gz", *(f"phantom_{index:03d}.nii.gz" for index in range(4))]
    assert len(read_split(tmp_path / "split.json").all_cases()) == 4


def test_overwrite_never_replaces_another_data_set(tmp_path):
    split = {"version": 1, "name": "mine", "labeled": ["phantom_000"], "unlabeled": ["liver_1"]}
    for content in (json.dumps(split), "[]", "no JSON"):
        (tmp_path / "split.json").write_text(content)
        with pytest.raises(BundleError, match="holds another data set than phantoms: choose another folder"):
            generate_phantom_dataset(tmp_path, num_cases=4, size=32, overwrite=True)
        assert (tmp_path / "split.json").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


def test_wrong_argument_leaves_the_old_set_alone(tmp_path):
    generate_phantom_dataset(tmp_path, num_cases=4, size=32)
    with pytest.raises(BundleError, match="num_cases"):
        generate_phantom_dataset(tmp_path, num_cases=3, size=32, overwrite=True)
    assert (tmp_path / "split.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_cases": 3}, "num_cases must be an integer of at least 4, got 3"),
        ({"num_cases": 4.0}, r"num_cases must be an integer of at least 4, got 4\.0"),
        ({"size": 31}, "size must be an integer of at least 32, got 31"),
        ({"size": (64, 64, 16)}, "size must be an integer of at least 32, got 16"),
        ({"size": (64, 64)}, r"size must be one integer or three, got \(64, 64\)"),
        ({"size": "64"}, "size must be an integer of at least 32, got '64'"),
        ({"modality": "pet"}, "modality must be one of ct, mri, got 'pet'"),
        ({"num_classes": 1}, "num_classes must be an integer from 2 to 5, got 1"),
        ({"num_classes": 6}, "num_classes must be an integer from 2 to 5, got 6"),
        ({"num_labeled": 0}, "num_labeled must be an integer from 1 to 9, got 0"),
        ({"num_labeled": 10}, "num_labeled must be an integer from 1 to 9, got 10"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": True}, "seed must be an integer of at least 0, got True"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(BundleError, match=message):
        generate_phantom_dataset(tmp_path, **arguments)
    assert not any(tmp_path.iterdir())


def test_interrupted_set_is_finished_by_running_again(tmp_path):
    folder = tmp_path / "phantom"
    assert ensure_phantom_dataset(folder)
    complete = all_bytes(folder)
    # As a killed process leaves it: no split, volumes missing, a temporary file.
    (folder / "split.json").rename(folder / ".split.k3_x9a0b.json")
    (folder / "images" / "phantom_007.nii.gz").rename(folder / "images" / ".phantom_007.nii.k3_x9a0b.gz")
    (folder / "labels" / "phantom_011.nii.gz").unlink()
    assert ensure_phantom_dataset(folder)
    (folder / "images" / ".phantom_007.nii.k3_x9a0b.gz").unlink()
    assert all_bytes(folder) == complete
    assert not ensure_phantom_dataset(folder)


def test_folder_with_other_files_is_not_filled(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "case_1.nii.gz").touch()
    assert not ensure_phantom_dataset(tmp_path)
    assert not (tmp_path / "labels").exists()


def test_files_of_one_case_are_equal_byte_by_byte(mri, tmp_path):
    generate_phantom_dataset(tmp_path, num_cases=4, size=32, num_classes=3)
    for folder in ("images", "labels"):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert names == [f"phantom_{index:03d}.nii.gz" for index in range(4)]
        for name in names:
            assert (tmp_path / folder / name).read_bytes() == (mri / folder / name).read_bytes()


def test_a_failed_write_leaves_no_file(monkeypatch, tmp_path):
    def fail(image):
        raise OSError("no space left on device")

    monkeypatch.setattr(nibabel.Nifti1Image, "to_bytes", fail)
    with pytest.raises(OSError, match="no space left"):
        generate_phantom_dataset(tmp_path, num_cases=4, size=32)
    assert [path.name for path in tmp_path.rglob("*")] == ["images"]


def test_phantom_names():
    assert is_phantom_case("phantom_000")
    assert is_phantom_case("phantom_1000")
    assert not is_phantom_case("phantom_0")
    assert not is_phantom_case("la_phantom_000")
