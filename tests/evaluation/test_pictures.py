# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Pictures are written whole, show the right slices in the right proportions, and are not blank."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import assert_is_picture
from matplotlib.image import imread

from scripts.errors import BundleError
from scripts.evaluation.canvas import new_figure
from scripts.evaluation.pictures import case_picture, draw_panel, select_views


def ellipsoid(center, radii, shape=(40, 32, 20)):
    grid = np.indices(shape)
    return sum(((grid[axis] - center[axis]) / radii[axis]) ** 2 for axis in range(3)) <= 1


@pytest.fixture
def case():
    reference = ellipsoid((20, 16, 10), (9, 7, 5)).astype(np.uint8)
    prediction = ellipsoid((23, 16, 10), (9, 7, 5)).astype(np.uint8)
    image = 100 * reference + np.random.default_rng(0).normal(scale=10, size=reference.shape)
    return image, reference, prediction


def count_reddish_and_bluish(pixels):
    red, green, blue = (pixels[..., channel] for channel in range(3))
    # The outline of the first class is green, so green bounds the blue.
    return np.count_nonzero(red > blue + 0.3), np.count_nonzero((blue > red + 0.3) & (blue > green + 0.2))


def test_case_picture(case, tmp_path):
    path = case_picture(
        *case, tmp_path / "new" / "a.png", "case a$_$b", affine=np.diag([1, 1, 2, 1]), class_names=["atrium"]
    )
    assert path == tmp_path / "new" / "a.png"
    pixels = assert_is_picture(path, width=1237)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]
    reddish, bluish = count_reddish_and_bluish(pixels)
    assert reddish > 1000
    assert bluish > 1000


def test_the_difference_shows_each_kind_of_error_in_its_color(case, tmp_path):
    image, reference, _ = case
    nothing = np.zeros_like(reference)
    missed = count_reddish_and_bluish(imread(case_picture(image, reference, nothing, tmp_path / "m.png", "missed")))
    invented = count_reddish_and_bluish(imread(case_picture(image, nothing, reference, tmp_path / "i.png", "invented")))
    assert missed[1] > 20 * missed[0]
    assert invented[0] > 20 * invented[1]


def test_without_a_reference_there_are_half_the_panels(case, tmp_path):
    image, _, prediction = case
    assert_is_picture(case_picture(image, None, prediction, tmp_path / "v.png", "volume"), width=643)


@pytest.mark.parametrize("kind", ["empty", "full", "constant", "nan", "many-classes"])
def test_unusual_volumes_are_drawn(case, tmp_path, kind):
    image, reference, prediction = case
    if kind == "empty":
        reference, prediction = np.zeros_like(reference), np.zeros_like(reference)
    elif kind == "full":
        prediction = np.ones_like(reference)
    elif kind == "constant":
        image = np.zeros_like(image)
    elif kind == "nan":
        image = np.full_like(image, np.nan)
    else:
        prediction = (np.indices(reference.shape)[0] // 2).astype(np.int64)
    assert_is_picture(case_picture(image, reference, prediction, tmp_path / "u.png", kind))


def test_views_show_the_largest_slices_with_the_proportions_of_the_voxels(case):
    image, reference, prediction = case
    views = select_views(image, reference, prediction, affine=np.diag([0.5, 1.0, 2.0, 1.0]))
    assert [view.name for view in views] == ["axial, z = 10", "coronal, y = 16", "sagittal, x = 20"]
    assert [view.aspect for view in views] == [2.0, 4.0, 2.0]
    # x 11..32 and y 9..23 of both, with at least 16 voxels around, leave nothing out of so small a volume.
    assert [view.image.shape for view in views] == [(32, 40), (20, 40), (20, 32)]
    np.testing.assert_array_equal(views[0].reference, reference[:, :, 10].T)
    np.testing.assert_array_equal(views[2].prediction, prediction[20].T)


def test_views_are_cut_to_the_surroundings():
    labels = np.zeros((100, 100, 100), dtype=np.uint8)
    labels[50:54, 40:90, 0:10] = 1
    views = select_views(labels, labels, labels)
    # 16 + 4 + 16 along x; 25 + 50 and the 10 to the end along y; 10 + 16 from the start along z.
    assert [view.image.shape for view in views] == [(85, 36), (26, 36), (26, 85)]


def test_several_views_are_spread_over_the_reference(case):
    image, reference, prediction = case
    names = [view.name for view in select_views(image, reference, prediction, num_slices=3)]
    # z from 5 to 15 in parts of four, four and three slices.
    assert names[:3] == ["axial, z = 7", "axial, z = 11", "axial, z = 14"]
    assert len(names) == 9


def test_an_affine_turns_the_volume_to_the_planes_of_the_body():
    # Array axes: superior to inferior in steps of 3 mm, left to right, posterior to anterior.
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 2.0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
    labels = np.zeros((8, 10, 12), dtype=np.uint8)
    labels[1, 4, 6] = 1
    views = select_views(labels, None, labels, affine=affine)
    assert [view.name for view in views] == ["axial, z = 6", "coronal, y = 6", "sagittal, x = 4"]
    assert [view.aspect for view in views] == [2.0, 3.0, 1.5]
    assert views[1].prediction[6, 4] == 1


def test_pictures_tell_the_sides_of_the_body(case):
    assert [view.sides for view in select_views(*case)] == [None] * 3
    turned = select_views(*case, affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert [view.sides for view in turned] == [("L", "R"), ("L", "R"), ("P", "A")]
    # The left of the body is where the first axis, which runs to the left here, ends.
    np.testing.assert_array_equal(turned[0].image[0, 0], select_views(*case)[0].image[-1, -1])
    axes = new_figure(2, 2).subplots()
    draw_panel(axes, turned[2], "prediction")
    assert [text.get_text() for text in axes.texts] == ["P", "A"]


def test_case_picture_refuses(case, tmp_path):
    image, reference, prediction = case
    with pytest.raises(BundleError, match=r"one shape \(X, Y, Z\), got \(40, 32, 20\), \(40, 32, 20\), \(39, 32, 20\)"):
        case_picture(image, reference[1:], prediction, tmp_path / "a.png", "a")
    with pytest.raises(BundleError, match="num_slices must be at least 1, got 0"):
        case_picture(image, reference, prediction, tmp_path / "a.png", "a", num_slices=0)
    with pytest.raises(BundleError, match=r"prediction must hold whole numbers of at least 0, got 0\.8: is it a label"):
        case_picture(image, reference, 0.8 * prediction, tmp_path / "a.png", "a")
    with pytest.raises(BundleError, match="reference must hold whole numbers of at least 0, got -1"):
        case_picture(image, reference.astype(int) - 1, prediction, tmp_path / "a.png", "a")
    assert not list(tmp_path.iterdir())
