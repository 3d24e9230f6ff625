# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The upper bound's list of cases: every training case with its label."""

from __future__ import annotations

import json

import pytest

from scripts.data.boxes import write_boxes
from scripts.data.cases import describe_cases, load_cases
from scripts.data.phantom import generate_phantom_dataset
from scripts.data.splits import LIST_NAMES
from scripts.errors import BundleError


@pytest.fixture
def dataset(tmp_path):
    """A folder with empty files whose split has ids that are not in order, and labels of all cases."""
    split = {
        "version": 1,
        "name": "tiny",
        "description": "Six cases.",
        "image": "images/{case}.nii.gz",
        "label": "labels/{case}.nii.gz",
        "labeled": ["d", "b"],
        "unlabeled": ["c", "a"],
        "validation": ["e"],
        "test": ["f"],
    }
    for case in "abcdef":
        for kind in ("images", "labels"):
            path = tmp_path / kind / f"{case}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    (tmp_path / "split.json").write_text(json.dumps(split))
    return tmp_path


def load(folder, **options):
    return load_cases(folder, folder / "split.json", **options)


def test_all_training_cases_are_labeled_in_the_order_of_their_ids(dataset):
    cases = load(dataset, all_labeled=True)
    assert cases["labeled"] == [
        {"image": str(dataset / f"images/{case}.nii.gz"), "label": str(dataset / f"labels/{case}.nii.gz"), "case": case}
        for case in "abcd"
    ]
    assert cases["unlabeled"] == []
    assert list(cases) == list(LIST_NAMES)


def test_other_lists_stay(dataset):
    with_option, without = load(dataset, all_labeled=True, lists=LIST_NAMES), load(dataset, lists=LIST_NAMES)
    for name in ("validation", "test"):
        assert with_option[name] == without[name]
    assert [entry["case"] for entry in without["labeled"]] == ["d", "b"]
    assert [entry["case"] for entry in without["unlabeled"]] == ["c", "a"]


@pytest.mark.parametrize("lists", [["labeled", "validation"], ["labeled", "unlabeled", "validation"]])
def test_labels_of_the_unlabeled_are_required(dataset, lists):
    for case in "ac":
        (dataset / f"labels/{case}.nii.gz").unlink()
    load(dataset, lists=lists)
    with pytest.raises(BundleError, match=r"2 files of .*: labels/a\.nii\.gz, labels/c\.nii\.gz\.$"):
        load(dataset, lists=lists, all_labeled=True)


def test_evaluation_needs_the_test_list_alone(dataset):
    """An upper bound is evaluated where no training case is left."""
    for case in "abcde":
        (dataset / f"images/{case}.nii.gz").unlink()
        (dataset / f"labels/{case}.nii.gz").unlink()
    cases = load(dataset, lists=["test"], all_labeled=True)
    assert cases["test"] == [
        {"image": str(dataset / "images/f.nii.gz"), "label": str(dataset / "labels/f.nii.gz"), "case": "f"}
    ]


def test_boxes_come_with_every_labeled_case(tmp_path):
    split_path = generate_phantom_dataset(tmp_path, num_cases=4, size=32, num_labeled=1)
    write_boxes(tmp_path, split_path)
    cases = load(tmp_path, all_labeled=True, uses_boxes=True)
    assert len(cases["labeled"]) >= 2
    assert all(entry.keys() == {"image", "label", "case", "box"} for entry in cases["labeled"])


def test_description_tells_the_runs_apart(dataset):
    with_option, without = (describe_cases(load(dataset, all_labeled=choice)) for choice in (True, False))
    assert with_option.startswith("4 labeled, 0 unlabeled, ")
    assert without.startswith("2 labeled, 2 unlabeled, ")
    assert with_option.split()[-1] != without.split()[-1]


def test_cases_without_an_id_are_known_by_the_names_of_their_files():
    def described(folder, name="b"):
        pair = {"image": f"{folder}/a.nii.gz", "label": f"{folder}/labels/a.nii.gz"}
        return describe_cases({"labeled": [pair], "unlabeled": [{"unlabeled": f"{folder}/{name}.nii.gz"}]})

    assert described("/data/scans") == described("scans")
    assert described("scans") != described("scans", name="c")


@pytest.mark.parametrize("name", ["method_upper_bound_vnet", "method_upper_bound_dual"])
def test_configured_upper_bound(name, make_workflow, phantom_dir, tmp_path):
    workflow = make_workflow("train", name, dataset_dir=str(phantom_dir), output_dir=str(tmp_path / "run"))
    cases = workflow.parser.get_parsed_content("cases")()
    ids = [entry["case"] for entry in cases["labeled"]]
    assert len(ids) == 4
    assert ids == sorted(ids)
    assert cases["unlabeled"] == []
    assert workflow.parser.get_parsed_content("unlabeled_batch_size") == 0
