# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The geometry of the volumes of a training is what inference compares others with."""

from __future__ import annotations

import functools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt

from scripts.configuration import TRAINED_KEYS
from scripts.data.geometry import class_volume_warnings, geometry_warnings, is_larger_than_trained, volume_geometry


@pytest.mark.parametrize("axes", ["RAS", "SPL"])
def test_the_volumes_of_a_training_are_measured(tmp_path, axes, caplog):
    data = []
    for name, shape, spacing in (("a", (6, 5, 4), [1, 1, 2]), ("b", (4, 5, 6), [1, 1.44, 2])):
        volume = nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([*spacing, 1]))
        nib.save(volume.as_reoriented(axcodes2ornt(axes)), tmp_path / f"{name}.nii")
        data.append({"image" if name == "a" else "unlabeled": str(tmp_path / f"{name}.nii")})
    expected = {"trained_spacing": [1, 1.2, 2], "trained_extent": [6, 7.2, 12]}
    expected |= {"trained_margin": None, "trained_class_volumes": None}
    assert volume_geometry([*data, {"image": str(tmp_path / "missing.nii")}], num_classes=2) == expected
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.diag([1, 1, 3.2, 1])), tmp_path / "c.nii")
    data.append({"image": str(tmp_path / "c.nii")})
    assert volume_geometry(data, num_classes=2, spacing_mm=[1, 1, 1]) == {**expected, "trained_spacing": None}
    assert caplog.messages == []
    assert volume_geometry(data, num_classes=2) == {**expected, "trained_spacing": None}
    assert caplog.messages == [
        "the volumes of the training have voxels of 1x1x2 mm to 1x1.44x3.2 mm and are not resampled: give them one "
        "size by --spacing."
    ]
    assert volume_geometry([], num_classes=2) == dict.fromkeys(TRAINED_KEYS)


def test_geometry_of_a_training_on_boxes_is_that_of_what_it_sees(tmp_path):
    # Voxel axes y, x, z with 3, 2 and 5 mm.
    affine = np.array([[0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((20, 30, 8), np.uint8), affine), tmp_path / "a.nii")
    data = [{"image": str(tmp_path / "a.nii"), "box": [[5, 10, 2], [9, 15, 6]]}]
    measure = functools.partial(volume_geometry, data, num_classes=2)
    assert measure()["trained_extent"] == [60, 60, 40]
    # 5, 4 and 4 voxels of the box, and the margin on both sides, but no more than there is.
    assert measure(box_margin=1)["trained_extent"] == [10 + 4, 12 + 6, 20 + 10]
    assert measure(box_margin=4)["trained_extent"] == [10 + 16, 12 + 24, 40]
    assert measure(box_margin=4, spacing_mm=[1, 1, 1])["trained_extent"] == [18, 20, 28]


def test_the_margin_around_what_was_labeled_is_measured(tmp_path):
    # Voxel axes z, x, y with 5, 2 and 3 mm.
    affine = np.array([[0, 2.0, 0, 0], [0, 0, 3.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    data = []
    # Two classes in one box; of the empty one there is no box.
    for name, places in (("a", [(4, 3, 1), (9, 19, 3)]), ("b", [(5, 8, 0)]), ("empty", [])):
        voxels = np.zeros((20, 30, 8), np.uint8)
        for number, place in enumerate(places, start=1):
            voxels[place] = number
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii")
        data.append({"image": str(tmp_path / f"{name}.nii"), "label": str(tmp_path / f"{name}.nii")})
    measure = functools.partial(volume_geometry, data, num_classes=3)
    # Along x 3, 10, 8 and 21 voxels, along y 1, 4, 0 and 7, along z 4, 10, 5 and 14.
    assert measure()["trained_margin"] == [2 * 9, 3 * 2.5, 5 * 7.5]
    assert volume_geometry(data[-1:], num_classes=3)["trained_margin"] is None
    for item in data:
        item["box"] = [[5, 10, 2], [9, 15, 6]]
    # The training has seen no more than the margin around the box.
    assert measure(box_margin=2)["trained_margin"] == [4, 6, 10]
    assert measure(box_margin=2, spacing_mm=[1, 1, 10])["trained_margin"] == [2, 2, 20]


def test_a_volume_half_as_large_again_is_larger(tmp_path):
    affine = np.array([[0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    extent = [40, 40, 40]
    assert not is_larger_than_trained(affine, (20, 30, 12), extent)
    for shape in ((21, 30, 12), (20, 31, 12), (20, 30, 13)):
        assert is_larger_than_trained(affine, shape, extent)
        options = {"trained_spacing": None, "trained_extent": extent}
        assert len(geometry_warnings("a.nii", affine, shape, **options)) == 1


@pytest.mark.parametrize(
    ("number", "num_images", "num_labels"), [(0, 0, 0), (64, 64, 64), (65, 65, 33), (250, 250, 63), (10000, 250, 64)]
)
def test_of_a_large_pool_some_headers_are_read(number, num_images, num_labels, monkeypatch):
    read = []
    monkeypatch.setattr(nib, "load", lambda path: read.append(path) or nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)))
    data = [{"image": f"image{number}", "label": f"label{number}"} for number in range(number)]
    assert volume_geometry(data, num_classes=2)["trained_extent"] == ([2, 2, 2] if number else None)
    images, labels = ([path for path in read if path.startswith(kind)] for kind in ("image", "label"))
    assert (len(images), len(labels)) == (num_images, num_labels)
    if number == 10000:
        assert (images[-1], labels[-1]) == ("image9960", "label9891")


def test_what_was_labeled_in_a_training_is_measured_in_millilitres(tmp_path):
    data = []
    # Of the second class one case has nothing; scaled labels are rounded.
    for name, numbers, dtype in (("a", (100, 0), np.uint8), ("b", (40, 7), np.float32)):
        voxels = np.zeros(1000, dtype)
        voxels[: numbers[0]] = 1
        voxels[500 : 500 + numbers[1]] = 2 + (1e-6 if dtype == np.float32 else 0)
        # Voxels of 4 x 2 x 1 mm, oblique to nothing but stored in another order.
        affine = np.array([[0, -2.0, 0, 5], [4.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]])
        nib.save(nib.Nifti1Image(voxels.reshape(10, 10, 10), affine), tmp_path / f"{name}.nii")
        data.append({"image": str(tmp_path / f"{name}.nii"), "label": str(tmp_path / f"{name}.nii")})
    data.append({"unlabeled": str(tmp_path / "a.nii")})
    (tmp_path / "broken.nii").write_bytes(b"none")
    data.append({"image": str(tmp_path / "a.nii"), "label": str(tmp_path / "broken.nii")})
    assert volume_geometry(data, num_classes=3)["trained_class_volumes"] == [[0.32, 0.8], [0, 0.056]]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((80, 50), []),
        ((81, 50), []),
        ((79, 50), ["class 1 fills 0.079 ml, in the labels of the training 0.1 to 0.2 ml"]),
        ((250, 50), []),
        ((251, 62), ["class 1 fills 0.251 ml, in the labels of the training 0.1 to 0.2 ml"]),
        # A class that some cases of the training have not may be missing.
        ((100, 0), []),
        ((0, 63), ["class 1 fills 0 ml, in the", "class 2 fills 0.063 ml, in the labels of the training 0 to 0.05 ml"]),
        ((0, 0), ["nothing was found, the label map is empty"]),
    ],
)
def test_classes_that_are_smaller_or_larger_than_in_the_training_are_told(numbers, expected):
    label_map = np.zeros((10, 10, 10), np.uint8)
    label_map.flat[: numbers[0]], label_map.flat[500 : 500 + numbers[1]] = 1, 2
    trained = [[0.1, 0.2], [0, 0.05]]
    told = class_volume_warnings("a.nii", label_map, np.eye(4), num_classes=3, trained_class_volumes=trained)
    assert len(told) == len(expected)
    for line, start in zip(told, expected, strict=True):
        assert line.startswith(f"a.nii: {start}")
    # Without a training to compare with, an empty map alone.
    told = class_volume_warnings("a.nii", label_map, np.eye(4), num_classes=3, trained_class_volumes=None)
    assert len(told) == (numbers == (0, 0))
