# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Split files and the cases they name: the schema, the shipped files, safe paths, and no label of an unlabeled case."""

from __future__ import annotations

import json
import logging
import re
import shutil
from itertools import combinations
from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.data.boxes import write_boxes
from scripts.data.cases import evaluated_cases, load_cases, unlabeled_pool
from scripts.data.phantom import generate_phantom_dataset
from scripts.data.splits import LIST_NAMES, hash_cases, read_split, write_split
from scripts.errors import BundleError

SPLITS_DIR = Path(__file__).parents[2] / "configs" / "splits"
SPLIT = {
    "version": 1,
    "name": "tiny",
    "description": "Six cases.",
    "image": "images/{case}.nii.gz",
    "label": "labels/{case}.nii.gz",
    "labeled": ["a"],
    "unlabeled": ["b", "c"],
    "validation": ["d"],
    "test": ["e", "f"],
}


def write_split_text(folder, **changes):
    content = {key: value for key, value in (SPLIT | changes).items() if value is not ...}
    path = folder / "split.json"
    path.write_text(json.dumps(content))
    return path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def save_label(path, foreground, shape=(6, 7, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.zeros(shape, dtype=np.uint8)
    label[foreground] = 1
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), path)


@pytest.fixture
def dataset(tmp_path):
    """A folder with the (empty) files of SPLIT: all images, and the labels of all but the unlabeled cases."""
    folder = tmp_path / "dataset"
    touch(folder, *(f"images/{case}.nii.gz" for case in "abcdef"), *(f"labels/{case}.nii.gz" for case in "adef"))
    return folder


def test_read_split_gives_every_field(tmp_path):
    path = write_split_text(tmp_path, seed=3)
    split = read_split(str(path))
    assert (split.version, split.name, split.description, split.seed) == (1, "tiny", "Six cases.", 3)
    assert (split.labeled, split.unlabeled, split.validation, split.test) == (("a",), ("b", "c"), ("d",), ("e", "f"))
    assert split.path == path
    assert split.image_path("a") == "images/a.nii.gz"
    assert split.label_path("a") == "labels/a.nii.gz"
    assert split.all_cases() == tuple("abcdef")
    assert read_split(write_split_text(tmp_path)).seed is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 5}, "unknown key 'folds', allowed: version, name"),
        ({"test": ...}, "missing key 'test'"),
        ({"name": ...}, "missing key 'name'"),
        ({"version": 2}, "version must be 1, got 2"),
        ({"version": "1"}, 'version must be an integer, got str "1"'),
        ({"version": True}, "version must be an integer, got bool true"),
        ({"name": None}, "name must be a string, got NoneType null"),
        ({"seed": "0"}, 'seed must be an integer, got str "0"'),
        ({"labeled": "a"}, 'labeled must be a list of strings, got str "a"'),
        ({"labeled": ["a", 1, None]}, "labeled must be a list of strings, got a list with NoneType, int"),
        ({"image": "images/a.nii.gz"}, r"image must contain \{case\}, got 'images/a.nii.gz'"),
        ({"label": "images/{case}.nii.gz"}, r"image and label must differ, both are 'images/\{case\}"),
        ({"image": "/data/{case}.nii.gz"}, r"image must stay in dataset_dir .* got '/data/"),
        ({"label": "../{case}.nii.gz"}, r"label must stay in dataset_dir .* got '\.\./"),
        ({"label": "C:\\{case}.nii.gz"}, "label must stay in dataset_dir"),
        ({"labeled": ["a", "a"]}, "labeled has case 'a' 2 times"),
        ({"test": ["e", "a"]}, "case 'a' is in two lists: labeled and test"),
        ({"unlabeled": ["b", " "]}, "unlabeled has an empty case id"),
        ({"unlabeled": ["../b"]}, r"unlabeled: case id must stay in dataset_dir .* got '\.\./b'"),
        ({"unlabeled": ["x\\..\\b"]}, "unlabeled: case id must stay in dataset_dir"),
        ({"unlabeled": ["/etc/b"]}, "unlabeled: case id must stay in dataset_dir"),
        ({"unlabeled": ["b\0"]}, "unlabeled: case id must stay in dataset_dir"),
    ],
)
def test_each_problem_of_the_schema_is_named(changes, message, tmp_path):
    path = write_split_text(tmp_path, **changes)
    with pytest.raises(BundleError, match=message) as caught:
        read_split(path)
    assert str(caught.value).splitlines()[0] == f"{path}: 1 problem:"
    assert len(str(caught.value).splitlines()) == 2


def test_all_problems_of_the_schema_are_named_at_once(tmp_path):
    path = write_split_text(tmp_path, version=3, folds=1, name=..., labeled=["a", "b"], test=["", "e"])
    with pytest.raises(BundleError) as caught:
        read_split(path)
    first, *problems = str(caught.value).splitlines()
    assert first == f"{path}: 5 problems:"
    assert problems[1:] == [
        "- missing key 'name'",
        "- version must be 1, got 3",
        "- case 'b' is in two lists: labeled and unlabeled",
        "- test has an empty case id",
    ]


def test_dots_inside_a_name_are_no_way_out(tmp_path):
    assert read_split(write_split_text(tmp_path, labeled=["a..b", "site1/a"])).labeled == ("a..b", "site1/a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object with version, name, .* got a list"),
        ('{"labeled": ["a"], "labeled": ["b"]}', "key 'labeled' is given twice"),
        (None, "split_file: .*split.json not found"),
    ],
)
def test_what_is_not_a_split_file(text, message, tmp_path):
    path = tmp_path / "split.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BundleError, match=message):
        read_split(path)


def test_folder_as_split_file(tmp_path):
    with pytest.raises(BundleError, match=r"split_file: .* cannot be read"):
        read_split(tmp_path)


SHIPPED = {
    "hippocampus_16": [16, 132, 20, 40],
    "hippocampus_4": [4, 144, 20, 40],
    "hippocampus_192": [16, 0, 0, 192],
    **{f"hippocampus_fold{fold}_16": [16, 150, 0, 42] for fold in range(3)},
    **{f"hippocampus_fold{fold}_16": [16, 151, 0, 41] for fold in (3, 4)},
    "left_atrium_dev_16": [16, 48, 0, 16],
    "left_atrium_dev_4": [4, 60, 0, 16],
    "left_atrium_dev_64": [16, 0, 0, 64],
    **{f"left_atrium_fold{fold}_16": [16, 64, 0, 20] for fold in range(5)},
    **{f"left_atrium_fold{fold}_8": [8, 72, 0, 20] for fold in range(5)},
    **{f"pancreas_fold{fold}_12": [12, 50, 0, 20] for fold in (0, 1)},
    **{f"pancreas_fold{fold}_12": [12, 49, 0, 21] for fold in (2, 3)},
}


def test_every_shipped_split_is_known():
    assert sorted(path.stem for path in SPLITS_DIR.glob("*.json")) == sorted(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_split(name):
    split = read_split(SPLITS_DIR / f"{name}.json")
    assert split.name == name
    assert [len(split.cases(list_name)) for list_name in LIST_NAMES] == SHIPPED[name]
    assert split.description.endswith(".")
    text = split.path.read_text(encoding="ascii")
    content = json.loads(text)
    assert text == json.dumps(content, indent=4) + "\n"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_split_carries_the_hash_of_its_cases(name):
    assert read_split(SPLITS_DIR / f"{name}.json").cases_hash is not None


def test_hash_is_the_documented_one():
    # echo -n '{"labeled": ["a"], "unlabeled": ["b", "c"], "validation": ["d"], "test": ["e", "f"]}' | sha256sum
    assert hash_cases(SPLIT) == hash_cases({**SPLIT, "name": "other"}) == "df0a56237b6cfebe"


@pytest.mark.parametrize(
    "changes",
    [
        {"unlabeled": ["b"]},
        {"unlabeled": ["c", "b"]},
        {"unlabeled": ["b"], "test": ["c", "e", "f"]},
        {"test": ["e", "x"]},
    ],
)
def test_training_refuses_a_split_whose_cases_changed(changes, dataset, tmp_path):
    digest = hash_cases(SPLIT)
    assert read_split(write_split_text(tmp_path, cases_hash=digest)).cases_hash == digest
    message = f"the cases were changed after the file was written: cases_hash is '{digest}', but theirs is"
    with pytest.raises(BundleError, match=message):
        load_cases(dataset, write_split_text(tmp_path, cases_hash=digest, **changes))
    load_cases(dataset, write_split_text(tmp_path, cases_hash=..., **changes), lists=["labeled"])


def test_write_split_writes_once(tmp_path):
    lists = {key: SPLIT[key] for key in LIST_NAMES}
    arguments = {"name": "tiny", "description": "Six cases.", "lists": lists, "seed": 3}
    split = write_split(tmp_path / "split.json", **arguments)
    assert (split.seed, split.cases_hash, split.image) == (3, hash_cases(SPLIT), "images/{case}.nii.gz")
    before = split.path.read_text()
    assert write_split(tmp_path / "split.json", **{**arguments, "description": "Again."}) == split
    for other, difference in (
        ({"test": ["e"]}, "gone: f"),
        ({"test": [*lists["test"], "x", "y"]}, "new: x, y"),
        ({"test": ["x"]}, "new: x; gone: e, f"),
        ({"test": lists["validation"], "validation": lists["test"]}, "the same in other lists"),
    ):
        with pytest.raises(BundleError, match=rf"is already there with other cases \({difference}\), and a split is"):
            write_split(tmp_path / "split.json", **{**arguments, "lists": {**lists, **other}})
    assert split.path.read_text() == before
    with pytest.raises(BundleError, match="case 'a' is in two lists"):
        write_split(tmp_path / "other.json", **{**arguments, "lists": {**lists, "test": ["a"]}})
    assert not (tmp_path / "other.json").exists()


def test_no_new_split_is_written_beside_what_continues_an_earlier_one(tmp_path):
    lists = {key: SPLIT[key] for key in LIST_NAMES}
    arguments = {"name": "tiny", "description": "Six cases.", "lists": lists}
    for name in ("split", "split_v2", "split_v10", "split_fold0_v2"):
        write_split(tmp_path / f"{name}.json", **arguments)
    new = {**arguments, "lists": {**lists, "test": ["e"]}}
    with pytest.raises(BundleError, match=r"move it away with what continues it \(split_v2\.json, split_v10\.json\)"):
        write_split(tmp_path / "split.json", **new)
    (tmp_path / "split.json").unlink()
    with pytest.raises(BundleError) as caught:
        write_split(tmp_path / "split.json", **new)
    assert str(caught.value) == (
        f"{tmp_path / 'split.json'} is not written, because what continues an earlier one is beside it (split_v2.json, "
        "split_v10.json): move these away too for new lists, or let what is new join theirs by `--continue_split "
        f"{tmp_path / 'split_v10.json'}`."
    )
    assert not (tmp_path / "split.json").exists()
    for name in ("split_v2", "split_v10"):
        (tmp_path / f"{name}.json").unlink()
    assert write_split(tmp_path / "split.json", **new).test == ("e",)


@pytest.mark.parametrize(
    ("pattern", "count"), [("hippocampus_fold*_16", 208), ("left_atrium_fold*_16", 100), ("pancreas_fold*_12", 82)]
)
def test_folds_test_every_case_once(pattern, count):
    splits = [read_split(path) for path in SPLITS_DIR.glob(f"{pattern}.json")]
    assert len({case for split in splits for case in split.test}) == count == sum(len(split.test) for split in splits)
    assert len({frozenset(split.all_cases()) for split in splits}) == 1


def test_fewer_labels_are_a_part_of_the_more():
    for fold in range(5):
        more, fewer = (read_split(SPLITS_DIR / f"left_atrium_fold{fold}_{number}.json") for number in (16, 8))
        assert more.labeled[:8] == fewer.labeled
        assert more.labeled[8:] + more.unlabeled == fewer.unlabeled
        assert more.test == fewer.test


@pytest.mark.parametrize("case", ["./a", "x/./a", "x//a", "a/"])
def test_one_case_has_one_name(tmp_path, case):
    with pytest.raises(BundleError, match=f"test: case id must be '.*', got {case!r}"):
        read_split(write_split_text(tmp_path, test=[case]))


@pytest.mark.parametrize("name", ["hippocampus", "left_atrium_dev"])
def test_fewer_labels_of_the_same_split(name):
    more, fewer = (read_split(SPLITS_DIR / f"{name}_{number}.json") for number in (16, 4))
    assert more.labeled[:4] == fewer.labeled
    assert set(more.labeled[4:] + more.unlabeled) == set(fewer.unlabeled)
    assert (more.validation, more.test) == (fewer.validation, fewer.test)


def test_development_split_holds_no_test_case_of_its_fold():
    development, fold = (read_split(SPLITS_DIR / f"left_atrium_{name}.json") for name in ("dev_16", "fold0_16"))
    assert development.all_cases() == fold.labeled + fold.unlabeled
    assert not set(development.all_cases()) & set(fold.test)


@pytest.mark.parametrize(
    ("large", "small"), [("left_atrium_dev_64", "left_atrium_dev_16"), ("hippocampus_192", "hippocampus_16")]
)
def test_split_with_a_large_test_has_the_same_labeled_cases(large, small):
    large, small = (read_split(SPLITS_DIR / f"{name}.json") for name in (large, small))
    assert large.labeled == small.labeled
    assert large.test == small.unlabeled + small.validation + small.test


def test_load_cases_gives_the_files(dataset, tmp_path):
    cases = load_cases(dataset, write_split_text(tmp_path), lists=LIST_NAMES)
    assert {name: [entry["case"] for entry in entries] for name, entries in cases.items()} == {
        "labeled": ["a"],
        "unlabeled": ["b", "c"],
        "validation": ["d"],
        "test": ["e", "f"],
    }
    assert cases["labeled"] == [
        {"image": str(dataset / "images/a.nii.gz"), "label": str(dataset / "labels/a.nii.gz"), "case": "a"}
    ]
    assert load_cases(str(dataset), tmp_path / "split.json") == cases


def test_unlabeled_cases_never_have_a_label(dataset, tmp_path):
    touch(dataset, "labels/b.nii.gz", "labels/c.nii.gz")
    cases = load_cases(dataset, write_split_text(tmp_path), lists=LIST_NAMES)
    assert cases["unlabeled"] == [
        {"unlabeled": str(dataset / f"images/{case}.nii.gz"), "case": case} for case in ("b", "c")
    ]
    assert "labels" not in json.dumps([list(entry.values()) for entry in cases["unlabeled"]])


@pytest.mark.parametrize(
    "lists", [lists for count in range(1, 5) for lists in combinations(LIST_NAMES, count)], ids="-".join
)
def test_only_the_lists_asked_for_must_exist(lists, dataset, tmp_path):
    split = read_split(write_split_text(tmp_path))
    for list_name in set(LIST_NAMES) - set(lists):
        for case in split.cases(list_name):
            (dataset / f"images/{case}.nii.gz").unlink()
            (dataset / f"labels/{case}.nii.gz").unlink(missing_ok=True)
    assert list(load_cases(dataset, split.path, lists=lists)) == list(LIST_NAMES)
    if len(lists) < 4:
        with pytest.raises(BundleError, match="not found"):
            load_cases(dataset, split.path, lists=LIST_NAMES)


def test_unknown_list(dataset, tmp_path):
    with pytest.raises(BundleError, match="lists must be of labeled, unlabeled, validation, test, got 'train'"):
        load_cases(dataset, write_split_text(tmp_path), lists=["train"])


def test_missing_files_are_named_together(dataset, tmp_path):
    (dataset / "images/c.nii.gz").unlink()
    (dataset / "labels/d.nii.gz").unlink()
    with pytest.raises(BundleError, match=r"2 files of .* not found in .*: images/c\.nii\.gz, labels/d\.nii\.gz\.$"):
        load_cases(dataset, write_split_text(tmp_path))


def test_of_many_missing_files_ten_are_named(dataset, tmp_path):
    split_path = write_split_text(tmp_path, unlabeled=[f"u{index:02d}" for index in range(12)])
    with pytest.raises(BundleError, match=r"12 files .*images/u09\.nii\.gz and 2 more \(12 in all\)") as caught:
        load_cases(dataset, split_path)
    assert "u10" not in str(caught.value)


@pytest.mark.parametrize("made", [False, True])
def test_no_data_tells_what_to_do(made, tmp_path):
    folder = tmp_path / "nothing"
    if made:
        folder.mkdir()
    split_path = write_split_text(tmp_path, image="scans/{case}.nii")
    with pytest.raises(BundleError) as caught:
        load_cases(folder, split_path)
    message = str(caught.value)
    assert message.startswith(f"dataset_dir: {folder} {'is empty' if made else 'does not exist'};")
    assert "scans/{case}.nii and labels/{case}.nii.gz" in message
    assert f"`python -m scripts check --dataset_dir {folder} --split_file {split_path}`" in message
    assert f"`python -m scripts phantom --output_dir {folder}`" in message
    assert "docs/data.md" in message
    assert "\n" not in message


def test_no_data_and_no_split_tells_of_the_folder_first(tmp_path):
    with pytest.raises(BundleError, match=r"dataset_dir: .* does not exist; expected are images/\{case\}\.nii\.gz"):
        load_cases(tmp_path / "nothing", tmp_path / "nothing" / "split.json")


def test_file_as_folder(tmp_path):
    split_path = write_split_text(tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        load_cases(split_path, split_path)


def test_symbolic_links_must_stay_in_the_folder(dataset, tmp_path):
    split_path = write_split_text(tmp_path)
    touch(tmp_path, "elsewhere/secret.nii.gz")
    for name, target in (("b", "../../elsewhere/secret.nii.gz"), ("c", "d.nii.gz")):
        (dataset / f"images/{name}.nii.gz").unlink()
        (dataset / f"images/{name}.nii.gz").symlink_to(target)
    with pytest.raises(BundleError, match=r"every file must lie in .* these lead out: images/b\.nii\.gz\.$"):
        load_cases(dataset, split_path)


def test_folder_may_itself_be_a_symbolic_link(dataset, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(dataset, target_is_directory=True)
    assert load_cases(link, write_split_text(tmp_path))["labeled"][0]["image"] == str(link / "images/a.nii.gz")
    # But a folder inside of it may not lead elsewhere.
    shutil.move(dataset / "labels", tmp_path / "labels")
    (dataset / "labels").symlink_to(tmp_path / "labels", target_is_directory=True)
    with pytest.raises(BundleError, match=r"these lead out: labels/a\.nii\.gz, labels/d\.nii\.gz"):
        load_cases(link, tmp_path / "split.json")


@pytest.mark.parametrize("made", [False, True])
def test_missing_phantom_is_generated_once(made, tmp_path, caplog):
    folder = tmp_path / "phantom"
    if made:
        folder.mkdir()
    with caplog.at_level(logging.INFO, logger="scripts.data.cases"):
        cases = load_cases(folder, folder / "split.json", phantom_dir=tmp_path / "x" / ".." / "phantom")
        again = load_cases(folder, folder / "split.json", phantom_dir=folder)
    assert [len(entries) for entries in cases.values()] == [3, 6, 1, 2]
    assert again == cases
    assert len([record for record in caplog.records if record.name == "scripts.data.cases"]) == 1


def test_other_folder_is_not_filled_with_phantoms(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        load_cases(tmp_path / "mine", tmp_path / "mine" / "split.json", phantom_dir=tmp_path / "phantom")
    assert not any(tmp_path.iterdir())


def test_split_of_other_cases_does_not_generate_phantoms(tmp_path):
    folder = tmp_path / "phantom"
    with pytest.raises(BundleError, match="does not exist"):
        load_cases(folder, write_split_text(tmp_path), phantom_dir=folder)
    assert not folder.exists()


def test_split_of_phantom_cases_kept_elsewhere_generates_them(tmp_path):
    folder = tmp_path / "phantom"
    lists = {"labeled": ["phantom_011"], "unlabeled": ["phantom_000"], "validation": ["phantom_001"], "test": []}
    cases = load_cases(folder, write_split_text(tmp_path, **lists), phantom_dir=folder)
    assert cases["labeled"][0]["image"] == str(folder / "images/phantom_011.nii.gz")


def test_boxes_hold_the_foreground(dataset, tmp_path, caplog):
    split_path = write_split_text(tmp_path)
    save_label(dataset / "labels/a.nii.gz", np.s_[1:3, 2:7, 4:5])
    save_label(dataset / "labels/b.nii.gz", np.s_[:, :, :])
    save_label(dataset / "labels/d.nii.gz", np.s_[0, 0, 0])
    save_label(dataset / "labels/e.nii.gz", ([1, 5], [6, 0], [3, 4]))
    save_label(dataset / "labels/f.nii.gz", np.s_[2:4, 3:4, 5:8, 0], shape=(6, 7, 8, 1))
    assert write_boxes(dataset, split_path) == dataset / "boxes.json"
    expected = {
        "a": [[1, 2, 4], [3, 7, 5]],
        "b": [[0, 0, 0], [6, 7, 8]],  # unlabeled: this label is read for its box only
        "d": [[0, 0, 0], [1, 1, 1]],
        "e": [[1, 0, 3], [6, 7, 5]],
        "f": [[2, 3, 5], [4, 4, 8]],
    }
    assert json.loads((dataset / "boxes.json").read_text()) == expected
    cases = load_cases(dataset, split_path, lists=["labeled", "test"], uses_boxes=True)
    assert [entry["box"] for name in ("labeled", "test") for entry in cases[name]] == [
        expected[case] for case in ("a", "e", "f")
    ]
    reason = (
        "has no box of c: without a label file, or with an empty one, a box must be added by hand, or uses_boxes be "
        "set to false."
    )
    assert caplog.messages == [f"{dataset / 'boxes.json'} {reason}"]
    with pytest.raises(BundleError, match=reason):
        load_cases(dataset, split_path, uses_boxes=True)
    assert "box" not in load_cases(dataset, split_path)["labeled"][0]


def test_box_adds_no_label_to_an_unlabeled_case(tmp_path):
    split_path = generate_phantom_dataset(tmp_path, num_cases=4, size=32)
    write_boxes(tmp_path, split_path)
    (entry,) = load_cases(tmp_path, split_path, uses_boxes=True)["unlabeled"]
    assert set(entry) == {"unlabeled", "case", "box"}


def test_boxes_are_not_overwritten_unasked(tmp_path):
    split_path = generate_phantom_dataset(tmp_path, num_cases=4, size=32)
    boxes_path = write_boxes(tmp_path, split_path)
    content = boxes_path.read_text()
    boxes_path.write_text("{}")
    with pytest.raises(BundleError, match=r"boxes\.json is already there; --overwrite true"):
        write_boxes(tmp_path, split_path)
    assert boxes_path.read_text() == "{}"
    write_boxes(tmp_path, split_path, overwrite=True)
    assert boxes_path.read_text() == content


def test_boxes_by_hand_are_kept(tmp_path, caplog):
    split_path = generate_phantom_dataset(tmp_path, num_cases=4, size=32)
    boxes_path = write_boxes(tmp_path, split_path)
    boxes = json.loads(boxes_path.read_text())
    first, second, *_ = boxes
    (tmp_path / f"labels/{first}.nii.gz").unlink()
    by_hand = {first: [[1, 2, 3], [9, 8, 7]], "of_another_split": [[0, 0, 0], [4, 4, 4]]}
    boxes_path.write_text(json.dumps(boxes | by_hand | {second: [1]}))
    write_boxes(tmp_path, split_path, overwrite=True)
    assert json.loads(boxes_path.read_text()) == boxes | by_hand
    assert not caplog.messages, "every case has a box"
    for text, message in (
        ('{"a": ', r"overwrite: .*boxes\.json is not JSON"),
        ("[]", r"overwrite: .*boxes\.json must be a JSON object of boxes, got a list: mend it by hand"),
        (json.dumps(boxes | {first: [[1.0, 2, 3], [9, 8, 7]]}), f"but does not for {first}: mend it by hand"),
    ):
        boxes_path.write_text(text)
        with pytest.raises(BundleError, match=message):
            write_boxes(tmp_path, split_path, overwrite=True)
        assert boxes_path.read_text() == text
    with pytest.raises(BundleError, match=f"but does not for {first}; mend it by hand"):
        load_cases(tmp_path, split_path, uses_boxes=True)


def test_an_empty_label_is_as_none_for_the_boxes(dataset, tmp_path, caplog):
    split_path = write_split_text(tmp_path)
    for case in "abcdef":
        save_label(dataset / f"labels/{case}.nii.gz", np.s_[:0] if case in "be" else np.s_[1, 1, 1])
    boxes_path = write_boxes(dataset, split_path)
    boxes = {case: [[1, 1, 1], [2, 2, 2]] for case in "acdf"}
    assert json.loads(boxes_path.read_text()) == boxes
    reason = "has no box of b, e: without a label file, or with an empty one, a box must be added by hand, or"
    (warning,) = caplog.messages
    assert warning.startswith(f"{boxes_path} {reason}")
    with pytest.raises(BundleError, match=r"no box of e; `.*` writes it; .* or with an empty one, a box must be"):
        load_cases(dataset, split_path, lists=["test"], uses_boxes=True)
    by_hand = {case: [[1, 2, 3], [4, 5, 6]] for case in "be"}
    boxes_path.write_text(json.dumps(boxes | by_hand))
    caplog.clear()
    write_boxes(dataset, split_path, overwrite=True)
    assert json.loads(boxes_path.read_text()) == boxes | by_hand
    assert not caplog.messages, "every case has a box"


def test_no_box_is_taken_from_another_grid_than_that_of_the_image(dataset, tmp_path):
    save_label(dataset / "images/a.nii.gz", np.s_[:], shape=(6, 7, 9))
    save_label(dataset / "labels/a.nii.gz", np.s_[1, 1, 1])
    for case in "def":
        save_label(dataset / f"labels/{case}.nii.gz", np.s_[1, 1, 1])
    with pytest.raises(BundleError, match=r"of a \(.*has shape \[6, 7, 8\], but its image has \[6, 7, 9\]: they must"):
        write_boxes(dataset, write_split_text(tmp_path))


def test_labels_without_a_box(dataset, tmp_path):
    split_path = write_split_text(tmp_path)
    save_label(dataset / "labels/d.nii.gz", np.s_[1, 1, 1, 1], shape=(4, 4, 4, 2))
    save_label(dataset / "labels/e.nii.gz", np.s_[1, 1, 1])
    (dataset / "labels/b.nii.gz").symlink_to(split_path)
    with pytest.raises(BundleError) as caught:
        write_boxes(dataset, split_path)
    message = str(caught.value)
    assert "a (" in message  # an empty file
    assert "b (its label leads out of the folder)" in message
    assert "d (its label must be 3D, got shape (4, 4, 4, 2))" in message
    assert "f (" in message  # an empty file
    assert ", e (" not in message
    assert not (dataset / "boxes.json").exists()


def test_boxes_need_labels(dataset, tmp_path):
    for case in "abdef":
        save_label(dataset / f"labels/{case}.nii.gz", np.s_[:0])
    with pytest.raises(BundleError, match=r"no case of .* has a label labels/.* with foreground in"):
        write_boxes(dataset, write_split_text(tmp_path))
    shutil.rmtree(dataset / "labels")
    with pytest.raises(BundleError, match=r"no case of .* has a label labels/"):
        write_boxes(dataset, write_split_text(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"boxes\.json not found; `python -m scripts boxes"),
        ("{", "uses_boxes: .* is not JSON"),
        ("[]", "must be a JSON object of boxes, got a list: mend it by hand, or move it away"),
        ("{}", "has no box of a;"),
        ('{"a": [[0, 0, 0], [1, 1]]}', r"must hold \[\[x0, y0, z0\], \[x1, y1, z1\]\] .* not for a;"),
        ('{"a": [[0, 0, 0]]}', "does not for a;"),
        ('{"a": "box"}', "does not for a;"),
        ('{"a": [[0, 0, 0], [1, 1, 0]]}', "with 0 <= start < stop, but does not for a;"),
        ('{"a": [[0, -1, 0], [1, 1, 1]]}', "does not for a;"),
        ('{"a": [[0, 0, 0], [1, 1, 1.5]]}', "does not for a;"),
    ],
)
def test_broken_boxes_file(text, message, dataset, tmp_path):
    if text is not None:
        (dataset / "boxes.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        load_cases(dataset, write_split_text(tmp_path), lists=["labeled"], uses_boxes=True)


# --- the cases of an evaluation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists", [["validation"], ["test", "validation"], ["labeled", "unlabeled"], "test"])
def test_an_evaluation_is_of_the_test_list_alone(lists):
    split = {"validation": [{"case": "a"}], "test": [{"case": "b"}]}
    assert evaluated_cases(lambda: split, ["test"]) == split["test"]
    with pytest.raises(BundleError, match=rf"^lists must be \['test'\] in an .*, got {re.escape(repr(lists))}: "):
        evaluated_cases(lambda: split, lists)


# --- the unlabeled pool -----------------------------------------------------------------------------------------------


def never():
    raise AssertionError("the split is not needed")


def test_unlabeled_pool_is_that_of_the_split():
    cases = [{"unlabeled": "a", "case": "a"}]
    assert unlabeled_pool(lambda: {"unlabeled": cases}, pairs=[], pairs_are_given=False) == cases


def test_given_pairs_have_no_unlabeled_pool():
    assert unlabeled_pool(never, pairs=[{"image": "a", "label": "b"}], pairs_are_given=True) == []


@pytest.mark.parametrize("pairs_are_given", [True, False])
def test_unlabeled_pool_of_a_folder_leaves_out_what_is_labeled(tmp_path, pairs_are_given):
    (tmp_path / "studies" / "labels").mkdir(parents=True)
    for name in ("a.nii.gz", "b.nii", "c.nii.gz", ".d.nii", "readme.txt", "labels/e.nii"):
        (tmp_path / "studies" / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "studies")
    pairs = [{"image": str(tmp_path / "link/a.nii.gz"), "label": "x"}]
    options = {"pairs": pairs, "pairs_are_given": pairs_are_given, "unlabeled_dir": tmp_path / "studies"}
    assert unlabeled_pool(never, **options) == [
        {"unlabeled": str(tmp_path / "studies" / name)} for name in ("b.nii", "c.nii.gz")
    ]


def test_annotation_may_come_to_its_end_where_pairs_are_given(tmp_path):
    (tmp_path / "a.nii.gz").write_text("")
    options = {"pairs": [{"image": str(tmp_path / "a.nii.gz"), "label": "x"}], "unlabeled_dir": tmp_path}
    assert unlabeled_pool(never, pairs_are_given=True, **options) == []
    with pytest.raises(BundleError, match="must hold NIfTI volumes of no labeled, validation or test case, got none"):
        unlabeled_pool(never, pairs_are_given=False, **options)


@pytest.mark.parametrize("original", ["a.nii.gz", "a.nii"])
def test_copies_of_used_cases_are_no_unlabeled_ones(tmp_path, caplog, original):
    for folder in ("prepared", "originals"):
        (tmp_path / folder).mkdir()
    for name in (original, "b.nii.gz"):
        (tmp_path / "originals" / name).write_text("")
    (tmp_path / "prepared" / "a.nii.gz").write_text("")
    with caplog.at_level("INFO"):
        pool = unlabeled_pool(
            never,
            pairs=[{"image": str(tmp_path / "prepared/a.nii.gz")}],
            pairs_are_given=True,
            unlabeled_dir=tmp_path / "originals",
        )
    assert pool == [{"unlabeled": str(tmp_path / "originals/b.nii.gz")}]
    assert "1 of 2 volumes left out" in caplog.text


def test_copies_are_known_however_a_letter_with_an_accent_is_written(tmp_path):
    for name in ("Mu\u0308ller.nii.gz", "other.nii.gz"):
        (tmp_path / name).write_text("")
    pairs = [{"image": str(tmp_path / "prepared/M\u00fcller.nii.gz")}]
    pool = unlabeled_pool(never, pairs=pairs, pairs_are_given=True, unlabeled_dir=tmp_path)
    assert pool == [{"unlabeled": str(tmp_path / "other.nii.gz")}]


def test_cases_with_a_folder_of_their_own_are_known_by_their_name(tmp_path):
    for name in ("case_1.nii.gz", "case_2.nii.gz"):
        (tmp_path / name).write_text("")
    pairs = [{"image": str(tmp_path / "prepared/site/case_1/image.nii.gz"), "case": "site/case_1"}]
    pool = unlabeled_pool(never, pairs=pairs, pairs_are_given=False, unlabeled_dir=tmp_path)
    assert pool == [{"unlabeled": str(tmp_path / "case_2.nii.gz")}]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("none", r"unlabeled_dir must be a folder, got .*none\."),
        ("empty", "must hold NIfTI volumes of no labeled, validation or test case, got none"),
        ("capitals", r"unlabeled_dir .*capitals: B\.NII would be left out"),
    ],
)
def test_unlabeled_folder_is_refused(tmp_path, folder, message):
    (tmp_path / "a.nii").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "capitals").mkdir()
    (tmp_path / "capitals" / "B.NII").write_text("")
    pairs = [{"image": str(tmp_path / "a.nii")}]
    with pytest.raises(BundleError, match=message):
        unlabeled_pool(never, pairs=pairs, pairs_are_given=True, unlabeled_dir=tmp_path / folder)
