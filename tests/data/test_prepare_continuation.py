# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Continuation of a split: what has come since joins it, and nobody who was tested is trained on."""

from __future__ import annotations

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from scripts.__main__ import main
from scripts.data.prepare.continuation import continue_lists, read_continued_split, write_continued
from scripts.data.prepare.folds import FoldCase, draw_lists
from scripts.data.splits import LIST_NAMES, hash_cases, read_split, write_split
from scripts.errors import BundleError


def cohort(num_labeled, num_cases=30):
    """Patients of two scans each; the first so many cases have a label."""
    return [
        FoldCase(f"c{number:02d}", f"p{number // 2:02d}", (1,) if number < num_labeled else None)
        for number in range(num_cases)
    ]


@pytest.fixture
def split(tmp_path):
    drawn = draw_lists(cohort(10), fold=0, num_folds=5, num_validation=2)
    return write_split(tmp_path / "split.json", name="s", description="Drawn.", lists=drawn.lists)


@pytest.mark.parametrize("new_labels", ["labeled", "validation", "test"])
def test_no_patient_changes_sides(split, new_labels):
    cases = [*cohort(17), FoldCase("y", "p99", (1,)), FoldCase("z", "p98")]
    group_of = {case.name: case.group for case in cases}
    lists = continue_lists(cases, split, new_labels=new_labels).lists
    for name in ("labeled", "validation", "test"):
        assert lists[name][: len(split.cases(name))] == list(split.cases(name))
    assert "y" in lists[new_labels]
    assert "z" in lists["unlabeled"]
    everywhere = [case for name in LIST_NAMES for case in lists[name]]
    assert len(set(everywhere)) == len(everywhere)
    trained, held_out = (
        {group_of[case] for name in names for case in lists[name]}
        for names in (("labeled", "unlabeled"), ("validation", "test"))
    )
    assert not trained & held_out


def test_new_labels_become_labeled_cases(split):
    drawn = continue_lists(cohort(17), split)
    assert sorted(set(drawn.lists["labeled"]) - set(split.labeled)) == [f"c{number}" for number in range(10, 17)]
    assert set(drawn.lists["unlabeled"]) == set(split.unlabeled) - set(drawn.lists["labeled"])
    assert drawn.left_out == []


def test_only_so_many_new_labels_are_drawn(split):
    number = len(split.labeled) + 3
    first, same, other = (continue_lists(cohort(20), split, num_labeled=number, seed=seed).lists for seed in (1, 1, 2))
    assert first == same
    assert first["labeled"] != other["labeled"]
    assert len(first["labeled"]) == number
    assert len(first["unlabeled"]) == len(split.unlabeled) - 3
    for wrong in (len(split.labeled) - 1, len(split.labeled) + 11):
        with pytest.raises(BundleError, match=rf"num_labeled must be from {len(split.labeled)} to .*got {wrong}"):
            continue_lists(cohort(20), split, num_labeled=wrong)


def test_a_tested_patient_leaves_the_training(split):
    # c16 has a label now, c17 of the same patient has none.
    drawn = continue_lists(cohort(17), split, new_labels="test")
    assert set(drawn.lists["test"]) == {*split.test, *(f"c{number}" for number in range(10, 17))}
    assert drawn.left_out == ["c17"]
    assert "c17" not in drawn.lists["unlabeled"]


def test_a_new_scan_of_a_tested_patient_is_left_out(split):
    tested = next(case for case in cohort(10) if case.name in split.test)
    trained = next(case for case in cohort(10) if case.name in split.labeled)
    cases = [*cohort(10), FoldCase("t", tested.group, (1,)), FoldCase("l", trained.group, (1,))]
    drawn = continue_lists(cases, split)
    assert drawn.left_out == ["t"]
    assert "l" in drawn.lists["labeled"]
    # Nor is a patient tested who is trained on with a label.
    assert "l" in continue_lists(cases, split, new_labels="test").lists["unlabeled"]


def test_patients_that_become_known_do_not_leak(tmp_path, split):
    tested, labeled = split.test[0], split.labeled[0]
    cases = [
        dataclasses.replace(case, group=tested) if case.name in (tested, "c20", "c21") else case for case in cohort(21)
    ]
    drawn = continue_lists(cases, split)
    assert {"c20", "c21"} <= set(split.unlabeled)
    assert drawn.left_out == ["c20", "c21"]
    cases = [dataclasses.replace(case, group=tested) if case.name in (tested, labeled) else case for case in cases]
    with pytest.raises(BundleError, match=rf"trains on {labeled}, whose patient is in its validation or test list"):
        continue_lists(cases, split)


def test_withdrawn_cases_are_left_out(split):
    read = read_continued_split(split.path, withdrawn={split.unlabeled[0], split.test[0]})
    assert (read.unlabeled, read.test) == (split.unlabeled[1:], split.test[1:])
    cases = [case for case in cohort(10) if case.name in read.all_cases()]
    assert continue_lists(cases, read).lists["unlabeled"] == list(read.unlabeled)


def test_what_stays_unlabeled_is_told(split, tmp_path):
    trained = next(case for case in cohort(10) if case.name in split.labeled)
    cases = [*cohort(10), FoldCase("new", trained.group, (1,))]
    path, notes = write_continued("s", tmp_path, split, continue_lists(cases, split, new_labels="test"), cases)
    assert path == tmp_path / "split_v2.json"
    assert notes[0] == "new in the unlabeled list: new."
    assert notes[1].startswith("unlabeled though they have a label")
    assert notes[1].endswith(": new.")


def test_only_the_newest_split_is_continued(split, tmp_path):
    second, _ = write_continued("s", tmp_path, split, continue_lists(cohort(12), split), cohort(12))
    read = read_continued_split(second)
    third, _ = write_continued("s", tmp_path, read, continue_lists(cohort(14), read), cohort(14))
    assert third == tmp_path / "split_v3.json"
    # The lists of the second one, once more: the third goes on.
    with pytest.raises(BundleError, match=r"was continued as .*split_v3\.json already"):
        write_continued("s", tmp_path, split, continue_lists(cohort(12), split), cohort(12))


def test_an_empty_label_is_not_trained_on(split):
    cases = [*cohort(10), FoldCase("e", "p99", ())]
    for new_labels in ("labeled", "validation"):
        assert "e" in continue_lists(cases, split, new_labels=new_labels).lists["unlabeled"]
    assert "e" in continue_lists(cases, split, new_labels="test").lists["test"]


def test_cases_that_are_gone_are_refused(split):
    with pytest.raises(
        BundleError,
        match=r"split\.json has 1 case\(s\) that are not in the source, or could not be prepared, such as c29\.",
    ):
        continue_lists(cohort(10, num_cases=29), split)
    with pytest.raises(BundleError, match="new_labels must be labeled, validation or test, got 'training'"):
        continue_lists(cohort(10), split, new_labels="training")


def make_source(folder, names, labels):
    for number, name in enumerate(names):
        voxels = np.random.default_rng(number).normal(size=(32, 32, 32)).astype(np.float32)
        label = np.zeros(voxels.shape, np.uint8)
        label[8:16, 8:16, 8 : 12 + number] = 1
        for part, data in (("images", voxels), ("labels", label)):
            path = folder / part / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if part == "images" or name in labels:
                nib.save(nib.Nifti1Image(data, np.eye(4)), path)


def prepare(tmp_path, *words):
    source, output = tmp_path / "source", tmp_path / "data"
    main([str(word) for word in ("prepare", "folder", "--source", source, "--output_dir", output, *words)])


def test_annotation_goes_on(tmp_path, capsys):
    split_file = tmp_path / "data/split.json"
    make_source(tmp_path / "source", "abcdef", labels="abcd")
    prepare(tmp_path, "--num_folds", 2)
    first, text = read_split(split_file), split_file.read_text()
    make_source(tmp_path / "source", "abcdefg", labels="abcdeg")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        prepare(tmp_path, "--num_folds", 2)
    assert f"`--continue_split {split_file}` lets what is new join its lists" in capsys.readouterr().err
    for _ in range(2):
        prepare(tmp_path, "--continue_split", split_file)
        output = capsys.readouterr().out
        assert "new in the labeled list: e, g." in output
        assert str(tmp_path / "data/split_v2.json") in output
    second = read_split(tmp_path / "data/split_v2.json")
    assert second.labeled == (*first.labeled, "e", "g")
    assert second.test == first.test
    assert second.unlabeled == ("f",)
    assert second.cases_hash == hash_cases({name: second.cases(name) for name in LIST_NAMES})
    assert split_file.read_text() == text
    # The next labels, those of the test.
    make_source(tmp_path / "source", "abcdefg", labels="abcdefg")
    prepare(tmp_path, "--continue_split", second.path, "--new_labels", "test")
    third = read_split(tmp_path / "data/split_v3.json")
    assert third.test == (*first.test, "f")
    assert third.description == "folder, continued from split_v2.json: 4 labeled, 0 unlabeled, 0 validation, 3 test."
    capsys.readouterr()
    prepare(tmp_path, "--continue_split", third.path)
    assert f"these are the lists of {third.path}, which stays as it is." in capsys.readouterr().out
    # The first one again would train on what the third one tests.
    for words, message in (
        (["--continue_split", split_file], f"continue_split {split_file} was continued as {third.path} already"),
        (["--num_folds", 2], f"`--continue_split {third.path}` lets what is new join its lists"),
    ):
        with pytest.raises(SystemExit):
            prepare(tmp_path, *words)
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "data").glob("split*.json")) == [
        "split.json",
        "split_v2.json",
        "split_v3.json",
    ]


def test_a_table_that_is_added_keeps_patients_on_their_side(tmp_path, capsys):
    split_file, table, settings = tmp_path / "data/split.json", tmp_path / "cases.csv", tmp_path / "data/prepared.json"
    make_source(tmp_path / "source", "abcdef", labels="abcd")
    prepare(tmp_path, "--num_folds", 2)
    first = read_split(split_file)
    # g is another scan of one who is tested, h of one who is trained on; e turns out to be one of the former.
    make_source(tmp_path / "source", "abcdefgh", labels="abcdgh")

    def write_table(group_of):
        rows = [
            f"images/{name}.nii.gz,{f'labels/{name}.nii.gz' if name in 'abcdgh' else ''},{group_of.get(name, '')}"
            for name in "abcdefgh"
        ]
        table.write_text("\n".join(["image,label,group", *rows]))

    words = ["--continue_split", split_file, "--table", table]
    before = settings.read_text()
    write_table({first.labeled[0]: "p", first.test[0]: "p"})
    with pytest.raises(SystemExit):
        prepare(tmp_path, *words)
    message = f"trains on {first.labeled[0]}, whose patient is in its validation or test list"
    assert message in capsys.readouterr().err
    assert settings.read_text() == before
    # Lists that would be drawn anew are refused, and nothing holds the folder to the table.
    with pytest.raises(SystemExit):
        prepare(tmp_path, "--num_folds", 2, "--table", table)
    assert "is already there with other cases" in capsys.readouterr().err
    assert settings.read_text() == before
    write_table({first.test[0]: "p", "g": "p", "e": "p", first.labeled[0]: "q", "h": "q"})
    prepare(tmp_path, *words)
    assert "2 cases are in no list of the split (their patient is in the validation or the" in capsys.readouterr().out
    second = read_split(tmp_path / "data/split_v2.json")
    assert (second.labeled, second.unlabeled, second.test) == ((*first.labeled, "h"), ("f",), first.test)
    # Without it g would be trained on.
    with pytest.raises(SystemExit):
        prepare(tmp_path, "--continue_split", second.path)
    assert "choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--continue_split", "other.json"], "continue_split other.json does not exist."),
        (["--new_labels", "test"], "new_labels is of --continue_split, which is missing."),
        (
            ["--continue_split", "{}", "--new_labels", "new"],
            "new_labels must be labeled, validation or test, got 'new'",
        ),
        (["--continue_split", "{}", "--fold", 0], "fold must not be given with continue_split, whose cases"),
        (["--continue_split", "{}", "--num_folds", 0], "num_folds must not be given with continue_split, whose cases"),
        (["--continue_split", "{}", "--labeled", "a"], "labeled must not be given with continue_split, whose cases"),
        (
            ["--continue_split", "{}", "--new_labels", "test", "--num_labeled", 1],
            "num_labeled must not be given with new",
        ),
        (["--continue_split", "{}", "--num_labeled", 9], "num_labeled must be from 1 to 2, the labeled cases of"),
    ],
)
def test_mistakes_cost_one_line(words, message, tmp_path, capsys):
    make_source(tmp_path / "source", "abc", labels="ab")
    split = {"version": 1, "name": "s", "description": "By hand.", "image": "images/{case}.nii.gz"}
    split |= {"label": "labels/{case}.nii.gz", "labeled": ["a"], "unlabeled": ["b", "c"], "validation": [], "test": []}
    (tmp_path / "hand.json").write_text(json.dumps(split))
    with pytest.raises(SystemExit) as refusal:
        prepare(tmp_path, *(str(word).format(tmp_path / "hand.json") for word in words))
    assert refusal.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    split["image"] = "scans/{case}.nii.gz"
    (tmp_path / "hand.json").write_text(json.dumps(split))
    with pytest.raises(SystemExit):
        prepare(tmp_path, "--continue_split", tmp_path / "hand.json")
    assert "continue_split must be of a data set with images/{case}.nii.gz" in capsys.readouterr().err
