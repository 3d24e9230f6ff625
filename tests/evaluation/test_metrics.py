# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The metrics against medpy and against values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from medpy.metric import binary
from scipy import ndimage

from scripts.errors import BundleError
from scripts.evaluation.metrics import METRIC_NAMES, evaluate_case, foreground_names, segmentation_metrics, surface

SPACINGS = [(1.0, 1.0, 1.0), (0.625, 0.625, 0.625), (0.7, 0.7, 2.5), (3.0, 1.25, 0.4)]
DISTANCE_NAMES = METRIC_NAMES[2:]


def blobs(seed, shape=(22, 19, 17), threshold=0.15):
    """Smooth random masks: ragged, of several components, and touching the border of the array."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.8)
    return noise > threshold * noise.std()


def ball(shape, center, radius):
    grid = np.indices(shape)
    return sum((grid[axis] - center[axis]) ** 2 for axis in range(3)) <= radius**2


def empty(shape=(8, 8, 8)):
    return np.zeros(shape, dtype=bool)


def box(*slices, shape=(12, 12, 12)):
    mask = np.zeros(shape, dtype=bool)
    mask[slices] = True
    return mask


def assert_equals_medpy(prediction, reference, spacing):
    values = segmentation_metrics(prediction, reference, spacing)
    expected = {
        "dice": binary.dc(prediction, reference),
        "jaccard": binary.jc(prediction, reference),
        "hd95_voxel": binary.hd95(prediction, reference),
        "asd_voxel": binary.asd(prediction, reference),
        "hd95_mm": binary.hd95(prediction, reference, voxelspacing=spacing),
        "asd_mm": binary.asd(prediction, reference, voxelspacing=spacing),
    }
    assert values.pop("status") == "found"
    assert values == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(6))
def test_random_blobs_equal_medpy(seed, spacing):
    prediction, reference = blobs(seed), blobs(seed + 100, threshold=0.4)
    assert_equals_medpy(prediction, reference, spacing)
    assert_equals_medpy(reference, prediction, spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        pytest.param(ball((30, 30, 30), (14, 15, 15), 9), ball((30, 30, 30), (16, 15, 13), 8), id="balls"),
        pytest.param(ball((30, 30, 30), (0, 15, 29), 9), ball((30, 30, 30), (3, 15, 27), 8), id="cut-by-the-border"),
        pytest.param(np.ones((9, 8, 7), dtype=bool), ball((9, 8, 7), (4, 4, 3), 3), id="the-whole-array"),
        pytest.param(
            np.ones((9, 8, 7), dtype=bool), box(np.s_[:], np.s_[:4], np.s_[:], shape=(9, 8, 7)), id="half-of-the-array"
        ),
        pytest.param(
            box(0, 0, 0, shape=(11, 10, 9)), box(10, 9, 8, shape=(11, 10, 9)), id="single-voxels-in-two-corners"
        ),
        pytest.param(
            box(np.s_[2:9], np.s_[2:9], np.s_[5]), box(np.s_[2:9], np.s_[2:9], np.s_[2:9]), id="sheet-in-a-cube"
        ),
    ],
)
def test_shapes_equal_medpy(prediction, reference, spacing):
    assert_equals_medpy(prediction, reference, spacing)
    assert_equals_medpy(reference, prediction, spacing)


def test_two_voxels_three_apart():
    values = segmentation_metrics(box(2, 5, 5), box(5, 5, 5), (2.0, 1.0, 1.0))
    assert values == {
        "dice": 0.0,
        "jaccard": 0.0,
        "hd95_voxel": 3.0,
        "asd_voxel": 3.0,
        "hd95_mm": 6.0,
        "asd_mm": 6.0,
        "status": "found",
    }


def test_diagonal_offset_is_measured_along_the_diagonal_in_mm():
    values = segmentation_metrics(box(2, 2, 2), box(3, 4, 4), (2.0, 1.5, 0.5))
    assert values["asd_voxel"] == pytest.approx(3.0)  # sqrt(1 + 4 + 4)
    assert values["asd_mm"] == pytest.approx(math.sqrt(4 + 9 + 1))


def test_cube_of_two_inside_a_cube_of_four():
    prediction = box(np.s_[4:6], np.s_[4:6], np.s_[4:6])
    reference = box(np.s_[3:7], np.s_[3:7], np.s_[3:7])
    values, exchanged = (
        segmentation_metrics(*masks, (2.0, 2.0, 2.0)) for masks in ((prediction, reference), (reference, prediction))
    )
    for result in (values, exchanged):
        assert result["dice"] == pytest.approx(16 / 72)
        assert result["jaccard"] == pytest.approx(8 / 64)
        # Of the 64 pooled distances in order, position 0.95 * 63 = 59.85 lies between two corners.
        assert result["hd95_voxel"] == pytest.approx(math.sqrt(3))
        assert result["hd95_mm"] == pytest.approx(2 * math.sqrt(3))
    # The small cube is its own surface, and each of its voxels is one step from the face of the large one.
    assert (values["asd_voxel"], values["asd_mm"]) == (1.0, 2.0)
    # 24 face voxels, 24 edge voxels and 8 corners of the large cube.
    mean = (24 + 24 * math.sqrt(2) + 8 * math.sqrt(3)) / 56
    assert exchanged["asd_voxel"] == pytest.approx(mean)
    assert exchanged["asd_mm"] == pytest.approx(2 * mean)


def test_hausdorff_distance_pools_both_directions():
    # One distance of 0 one way; 0, 1, ..., 9 the other: position 0.95 * 10 = 9.5 of [0, 0, 1, ..., 9] is 8.5.
    prediction, reference = box(0, 0, 0), box(np.s_[0:10], 0, 0)
    values = segmentation_metrics(prediction, reference, (2.0, 1.0, 1.0))
    exchanged = segmentation_metrics(reference, prediction, (2.0, 1.0, 1.0))
    assert values["hd95_voxel"] == exchanged["hd95_voxel"] == pytest.approx(8.5)
    assert values["hd95_mm"] == exchanged["hd95_mm"] == pytest.approx(17.0)
    assert (values["asd_voxel"], values["asd_mm"]) == (0.0, 0.0)
    assert (exchanged["asd_voxel"], exchanged["asd_mm"]) == (4.5, 9.0)


def test_equal_masks():
    mask = blobs(3)
    values = segmentation_metrics(mask, mask, (1.0, 2.0, 3.0))
    assert values == {
        "dice": 1.0,
        "jaccard": 1.0,
        "hd95_voxel": 0.0,
        "asd_voxel": 0.0,
        "hd95_mm": 0.0,
        "asd_mm": 0.0,
        "status": "found",
    }


def test_surface_has_face_neighbors_only_and_ends_at_the_border():
    assert np.count_nonzero(surface(np.ones((3, 3, 3), dtype=bool))) == 26
    cross = box(5, 5, 5) | box(4, 5, 5) | box(6, 5, 5) | box(5, 4, 5) | box(5, 6, 5) | box(5, 5, 4) | box(5, 5, 6)
    assert not surface(cross)[5, 5, 5]


def test_moving_both_masks_changes_nothing():
    prediction, reference = blobs(1)[:12, :12, :12], blobs(2)[:12, :12, :12]
    wide = [np.pad(mask, ((9, 3), (0, 14), (5, 5))) for mask in (prediction, reference)]
    assert segmentation_metrics(*wide, (1, 2, 3)) == segmentation_metrics(prediction, reference, (1, 2, 3))


@pytest.mark.parametrize(
    ("prediction", "reference", "overlap", "status"),
    [
        (empty(), empty(), 1.0, "absent"),
        (empty(), box(3, 3, 3, shape=(8, 8, 8)), 0.0, "missed"),
        (box(3, 3, 3, shape=(8, 8, 8)), empty(), 0.0, "false_positive"),
    ],
)
def test_empty_masks(prediction, reference, overlap, status):
    values = segmentation_metrics(prediction, reference, (1, 1, 1))
    assert values["dice"] == values["jaccard"] == overlap
    assert values["status"] == status
    assert all(math.isnan(values[name]) for name in DISTANCE_NAMES)


def test_evaluate_case_gives_a_row_for_each_foreground_class():
    reference = np.zeros((6, 6, 6), dtype=np.uint8)
    reference[0:2], reference[2:4] = 1, 2
    prediction = np.zeros((6, 6, 6), dtype=np.int64)
    prediction[0:1], prediction[4:6] = 1, 3
    rows = evaluate_case(prediction, reference, 4, (1.0, 1.0, 1.0), ["left", "right", "vessel"])
    assert [row["class"] for row in rows] == ["left", "right", "vessel"]
    assert [row["status"] for row in rows] == ["found", "missed", "false_positive"]
    assert [row["dice"] for row in rows] == pytest.approx([2 / 3, 0, 0])
    assert [row["jaccard"] for row in rows] == pytest.approx([1 / 2, 0, 0])
    assert set(rows[0]) == {"class", "status", *METRIC_NAMES}


def test_evaluate_case_takes_whole_floating_point_numbers_and_numbers_the_classes():
    labels = np.zeros((4, 4, 4), dtype=np.float32)
    labels[1, 1, 1] = 2.0
    rows = evaluate_case(labels, labels, 3, (1, 1, 1))
    assert [(row["class"], row["status"]) for row in rows] == [("1", "absent"), ("2", "found")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": np.zeros((4, 4, 5))}, r"one shape \(X, Y, Z\), got \(4, 4, 5\) and \(4, 4, 4\)"),
        ({"prediction": np.zeros((1, 4, 4, 4)), "reference": np.zeros((1, 4, 4, 4))}, r"\(X, Y, Z\)"),
        ({"prediction": np.full((4, 4, 4), 0.5)}, "prediction must hold whole numbers"),
        ({"prediction": np.full((4, 4, 4), np.nan)}, "prediction must hold whole numbers"),
        ({"reference": np.full((4, 4, 4), 3)}, "reference must hold labels from 0 to 2, got values from 3 to 3"),
        ({"reference": np.full((4, 4, 4), -1)}, "reference must hold labels from 0 to 2"),
        ({"prediction": np.zeros((0, 4, 4)), "reference": np.zeros((0, 4, 4))}, "prediction must have voxels"),
        ({"spacing_mm": (1, 1)}, r"spacing_mm must be 3 positive numbers, one an axis, got \[1.0, 1.0\]"),
        ({"spacing_mm": (1, 0, 1)}, "spacing_mm must be 3 positive numbers"),
        ({"spacing_mm": (1, 1, math.nan)}, "spacing_mm must be 3 positive numbers"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"class_names": ["one"]}, r"a list of 2 different names, one a foreground class, got \['one'\]"),
        ({"class_names": ["one", "one"]}, "a list of 2 different names"),
        ({"class_names": "ab"}, "a list of 2 different names"),
    ],
)
def test_evaluate_case_refuses(changes, message):
    arguments = {
        "prediction": np.zeros((4, 4, 4)),
        "reference": np.zeros((4, 4, 4)),
        "num_classes": 3,
        "spacing_mm": (1, 1, 1),
    }
    with pytest.raises(BundleError, match=message):
        evaluate_case(**{**arguments, **changes})


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(BundleError, match=r"one shape, got \(2, 2\) and \(2, 3\)"):
        segmentation_metrics(np.ones((2, 2)), np.ones((2, 3)), (1, 1))


def test_names_of_classes():
    assert foreground_names(3) == ["1", "2"]
    assert foreground_names(3, ("head", "body")) == ["head", "body"]
