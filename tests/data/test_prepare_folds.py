# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Lists of a split: folds by patient, balanced, seeded; the shipped protocols; pages of pictures."""

from __future__ import annotations

from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from conftest import assert_refused
from matplotlib.image import imread

from scripts.data.prepare.dataset import SplitSettings, _num_labeled
from scripts.data.prepare.folds import FoldCase, Lists, draw_lists, empty_label_notes, protocol_lists, shipped_splits
from scripts.data.prepare.reading import Source
from scripts.errors import BundleError
from scripts.evaluation.montage import _axial_view, draw_montage

KEYS = ("labeled", "unlabeled", "validation", "test")


def cohort(num_groups=20, seed=0):
    """Patients with one to three scans, some without a label, of two kinds of foreground."""
    generator = np.random.default_rng(seed)
    cases = []
    for group in range(num_groups):
        for scan in range(generator.integers(1, 4)):
            classes = None if scan == 2 else (1, 2) if group % 4 == 0 else (1,)
            cases.append(FoldCase(f"p{group:02d}_{scan}", f"p{group:02d}", classes, float(generator.uniform(1, 9))))
    return cases


@pytest.mark.parametrize("seed", range(4))
def test_patients_stay_together_and_each_is_tested_once(seed):
    cases = cohort()
    group_of = {case.name: case.group for case in cases}
    tested = Counter()
    for fold in range(4):
        drawn = draw_lists(cases, fold=fold, num_folds=4, num_labeled=5, num_validation=4, seed=seed)
        groups = {key: {group_of[name] for name in drawn.lists[key]} for key in KEYS}
        training = groups["labeled"] | groups["unlabeled"]
        assert not training & groups["test"] | training & groups["validation"] | groups["validation"] & groups["test"]
        everywhere = [name for key in KEYS for name in drawn.lists[key]] + list(drawn.left_out)
        assert sorted(everywhere) == sorted(case.name for case in cases)
        assert all(name.endswith("_2") for name in drawn.left_out)
        assert len(drawn.lists["labeled"]) == 5
        assert 4 <= len(drawn.lists["validation"]) <= 5
        tested.update(drawn.lists["test"])
    assert set(tested) == {case.name for case in cases if case.classes is not None}
    assert set(tested.values()) == {1}


def test_folds_are_balanced_in_number_classes_and_size():
    cases = [FoldCase(f"c{i:02d}", f"c{i:02d}", (1, 2) if i < 10 else (1,), float(i)) for i in range(50)]
    drawn = [draw_lists(cases, fold=fold, num_folds=5, num_labeled=4).lists["test"] for fold in range(5)]
    by_name = {case.name: case for case in cases}
    assert [len(names) for names in drawn] == [10] * 5
    assert [sum(by_name[name].classes == (1, 2) for name in names) for names in drawn] == [2] * 5
    means = [np.mean([by_name[name].foreground_mm3 for name in names]) for names in drawn]
    assert max(means) - min(means) < 4.1, "blocks of five neighbors differ by four at most"


def test_too_few_cases_for_the_validation_are_refused():
    cases = [FoldCase(f"c{i}", f"c{i}", (1,)) for i in range(4)]
    with pytest.raises(BundleError, match=r"num_validation must be at most 2, .*got 3"):
        draw_lists(cases, fold=0, num_folds=0, labeled=["c0", "c1"], num_validation=3)
    assert draw_lists(cases, fold=0, num_folds=0, labeled=["c0", "c1"], num_validation=2).lists["validation"] == [
        "c2",
        "c3",
    ]


def test_the_seed_decides():
    cases = cohort()
    first, same, other = (draw_lists(cases, fold=0, num_folds=4, num_labeled=5, seed=seed).lists for seed in (1, 1, 2))
    assert first == same
    assert first != other
    assert draw_lists(cases[::-1], fold=0, num_folds=4, num_labeled=5, seed=1).lists == first


def test_fewer_labeled_cases_are_among_the_more():
    few, many = (draw_lists(cohort(), fold=0, num_folds=4, num_labeled=n).lists["labeled"] for n in (3, 9))
    assert set(few) < set(many)


def test_number_of_labeled_cases_by_default():
    full = [FoldCase(f"c{i}", f"c{i}", (1,)) for i in range(20)]
    assert len(draw_lists(full, fold=0, num_folds=4).lists["labeled"]) == 3, "a fifth of fifteen"
    assert len(draw_lists(full, fold=0, num_folds=0).lists["labeled"]) == 20, "every label is for the training"
    some = full + [FoldCase(f"u{i}", f"u{i}") for i in range(30)]
    lists = draw_lists(some, fold=0, num_folds=4).lists
    assert [len(lists[key]) for key in KEYS] == [15, 30, 0, 5]


def test_all_folds_have_the_labels_of_one_rule():
    cases = [FoldCase(f"c{i}", f"c{i}", (1,)) for i in range(10)]
    # Without a label, and out of the training in the fold that tests this patient.
    cases.append(FoldCase("u0", "c0"))
    lists = [draw_lists(cases, fold=fold, num_folds=5).lists for fold in range(5)]
    assert [len(each["labeled"]) for each in lists] == [8] * 5
    assert sorted(len(each["unlabeled"]) for each in lists) == [0, 1, 1, 1, 1]


def test_no_test_list_is_advised_where_there_is_none():
    with pytest.raises(BundleError, match=r"got 99; held out for test and validation: 0\.$"):
        draw_lists(cohort(), fold=0, num_folds=0, num_labeled=99)


def test_empty_labels_are_tested_but_never_trained_with():
    cases = [FoldCase(f"c{i}", f"c{i}", (1,) if i < 6 else ()) for i in range(12)]
    with assert_refused("num_labeled must be from 1 to [2-4], the training cases with foreground"):
        draw_lists(cases, fold=0, num_folds=2, num_labeled=6)
    tested = [name for fold in (0, 1) for name in draw_lists(cases, fold=fold, num_folds=2).lists["test"]]
    assert sorted(tested) == sorted(case.name for case in cases)


@pytest.mark.parametrize("seed", range(4))
def test_empty_labels_are_never_drawn_for_the_validation(seed):
    cases = [FoldCase(f"c{i:02d}", f"c{i:02d}", (1,) if i < 6 else ()) for i in range(16)]
    lists = draw_lists(cases, fold=0, num_folds=0, num_validation=4, seed=seed).lists
    assert len(lists["validation"]) == 4
    assert set(lists["validation"]) < {f"c{i:02d}" for i in range(6)}
    assert set(lists["unlabeled"]) == {f"c{i:02d}" for i in range(6, 16)}
    with assert_refused("num_validation must be at most 6, the cases with foreground in their label .*, got 7"):
        draw_lists(cases, fold=0, num_folds=0, num_validation=7, seed=seed)


def test_an_empty_label_of_a_patient_in_the_validation_list_is_left_out():
    cases = [FoldCase(f"p{i}_{j}", f"p{i}", () if j else (1,)) for i in range(3) for j in range(2)]
    drawn = draw_lists(cases, fold=0, num_folds=0, num_validation=2)
    validated = [name.removesuffix("_0") for name in drawn.lists["validation"]]
    assert len(validated) == 2
    assert drawn.left_out == [f"{patient}_1" for patient in validated]
    assert len(drawn.lists["unlabeled"]) == 1


def test_where_empty_labels_went_is_told_in_one_note():
    cases = [FoldCase("a", "a", (1,)), FoldCase("b", "b"), *(FoldCase(f"e{i}", f"e{i}", ()) for i in range(4))]
    lists = {"labeled": ["a"], "unlabeled": ["b", "e0", "e1"], "validation": [], "test": ["e2"]}
    assert empty_label_notes(cases, Lists(lists, left_out=["e3"])) == [
        "4 labels are empty, such as e0: 2 unlabeled, 1 in the test list, 1 in no list."
    ]
    assert empty_label_notes(cases[:3], Lists(lists)) == ["1 label is empty, such as e0: 1 unlabeled."]
    assert empty_label_notes(cases[:2], Lists(lists)) == []


@pytest.mark.parametrize(("fold", "num_labeled"), [(0, 8), (3, 16), (2, 4)])
def test_protocol_of_the_left_atrium(fold, num_labeled):
    shipped = shipped_splits("left_atrium")[fold]
    drawn = protocol_lists(
        "left_atrium", fold=fold, num_labeled=num_labeled, found=shipped.all_cases(), withdrawn=frozenset()
    )
    assert tuple(drawn.lists["labeled"]) == shipped.labeled[:num_labeled]
    assert tuple(drawn.lists["labeled"] + drawn.lists["unlabeled"]) == shipped.labeled + shipped.unlabeled
    assert tuple(drawn.lists["test"]) == shipped.test


def test_protocol_needs_its_cases():
    found = shipped_splits("left_atrium")[0].all_cases()
    assert protocol_lists("left_atrium", fold=0, num_labeled=8, found=found[1:], withdrawn=frozenset()) is None
    with assert_refused("fold must be from 0 to 4 in the protocol of left_atrium, got 5"):
        protocol_lists("left_atrium", fold=5, num_labeled=8, found=found, withdrawn=frozenset())
    with assert_refused("num_labeled must be from 1 to 80 in left_atrium_fold0_16, got 81"):
        protocol_lists("left_atrium", fold=0, num_labeled=81, found=found, withdrawn=frozenset())


@pytest.mark.parametrize(
    ("options", "labeled"),
    [({}, 16), ({"num_folds": 0}, None), ({"num_folds": 0, "num_labeled": 8}, 8), ({"num_labeled": 8}, 8)],
)
def test_without_folds_a_protocol_leaves_every_label_to_the_training(options, labeled):
    found = Source([], protocol="left_atrium", num_labeled=16)
    assert _num_labeled(found, SplitSettings(**options)) == labeled


# --- montage ----------------------------------------------------------------------------------------------------------


def test_montage_has_every_case_and_draws_outlines(tmp_path):
    image = np.zeros((20, 16, 6), dtype=np.int16)
    label = np.zeros(image.shape, dtype=np.uint8)
    label[5:15, 4:12, 2:4] = 1
    for name, volume in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(volume, np.diag([-1.0, 1.0, 2.0, 1.0])), tmp_path / f"{name}.nii.gz")
    paths = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    pages = draw_montage({f"case $ {i}": paths for i in range(31)}, tmp_path / "pages")
    assert [page.name for page in pages] == ["montage_01.png", "montage_02.png"]
    green = [outlined_pixels(page) for page in pages]
    assert green[0] > 20 * green[1] > 0
    bare = draw_montage({"a": (paths[0], None)}, tmp_path / "bare")
    assert outlined_pixels(bare[0]) == 0


def outlined_pixels(page):
    red, green, blue = np.moveaxis(imread(page)[..., :3], -1, 0)
    return int(((green > red + 0.3) & (green > blue + 0.05)).sum())


def test_montage_puts_the_front_up_and_the_right_to_the_right(tmp_path):
    # Bright where x and y of RAS are high: in the stored order of LPS that is the first corner.
    image = np.zeros((20, 20, 4), dtype=np.int16)
    image[:8, :8] = 1000
    nib.save(nib.Nifti1Image(image, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "image.nii.gz")
    picture = imread(draw_montage({"a": (tmp_path / "image.nii.gz", None)}, tmp_path)[0])[..., 0]
    rows, columns = (np.array([1, 3]) * size // 4 for size in picture.shape)
    assert picture[rows[0] + 10, columns[1]] > 0.9
    assert picture[rows[1], columns[0]] < 0.1
    assert picture[rows[1], columns[1]] < 0.1
    assert _axial_view("a", tmp_path / "image.nii.gz", None).sides == ("L", "R")
