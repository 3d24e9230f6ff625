# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Label maps of an evaluation are kept under the names of their cases."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import assert_refused
from monai.data import MetaTensor

from scripts.evaluation.label_maps import SaveLabelMapd, case_file_name, check_labels_dir, label_map_path


def make_item(case, value, affine):
    label = torch.full((1, 3, 4, 5), value)
    return {"case": case, "pred": MetaTensor(label, affine=affine, meta={"filename_or_obj": "/data/x/imaging.nii.gz"})}


def test_cases_whose_files_have_one_name_are_kept_apart(tmp_path):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    save = SaveLabelMapd("pred", tmp_path / "evaluation" / "labels")
    cases = ["one", "a/001", "b/001", "a_001", "v1.2"]
    for value, case in enumerate(cases):
        item = make_item(case, value, affine)
        assert save(item).keys() == item.keys()
    paths = [label_map_path(tmp_path / "evaluation" / "labels", case) for case in cases]
    assert sorted(paths) == sorted((tmp_path / "evaluation" / "labels").iterdir())
    for value, path in enumerate(paths):
        volume = nib.load(path)
        assert volume.shape == (3, 4, 5)
        assert volume.get_data_dtype() == np.uint8
        assert np.array_equal(volume.affine, affine)
        assert (np.asarray(volume.dataobj) == value).all()


@pytest.mark.parametrize("case", ["case_001", "A-1+b.nii", "über"])
def test_a_safe_name_stays(case):
    assert case_file_name(case) == case


@pytest.mark.parametrize(
    ("case", "pattern"),
    [
        ("../up: x", r"_up_x_\w{8}"),
        ("", r"case_\w{8}"),
        ("..", r"case_\w{8}"),
        (300 * "a", r"a{100}_\w{8}"),
        # Three bytes each, of which a name of a file holds 255.
        (78 * "肝", r"肝{70}_\w{8}"),
    ],
)
def test_any_other_name_becomes_one_of_its_own(case, pattern):
    assert re.fullmatch(pattern, case_file_name(case))
    assert case_file_name(case) != case_file_name(case + " ")


@pytest.mark.parametrize("key", ["image", "label", "unlabeled"])
def test_label_maps_take_no_place_of_a_file_of_the_data_set(tmp_path, key):
    def cases():
        return {"test": [{"case": "a", key: str(tmp_path / "data" / "a.nii.gz")}], "labeled": []}

    (tmp_path / "link").symlink_to(tmp_path / "data")
    for folder in (tmp_path / "data", tmp_path / "maps" / ".." / "data", tmp_path / "link"):
        with assert_refused(r"labels_dir .*: a label map would replace .*a\.nii\.gz, a file of the data set"):
            check_labels_dir(str(folder), cases, own_dir=str(tmp_path), overwrite=True)
    check_labels_dir(str(tmp_path / "maps"), cases, own_dir=str(tmp_path / "run"))


def test_label_maps_of_others_are_replaced_by_permission_alone(tmp_path):
    folder, cases = tmp_path / "maps", lambda: {"test": [{"case": "a"}], "labeled": []}
    folder.mkdir()
    (folder / "b.nii.gz").touch()
    check_labels_dir(str(folder), cases, own_dir=str(tmp_path / "run"))
    (folder / "a.nii.gz").touch()
    for own_dir in ("run", "maps/run", "ma"):
        with assert_refused(r"labels_dir .* already holds a\.nii\.gz: replace it by --overwrite true, or"):
            check_labels_dir(str(folder), cases, own_dir=str(tmp_path / own_dir), overwrite="false")
    check_labels_dir(str(folder), cases, own_dir=str(tmp_path / "run"), overwrite="true")
    # A folder that is only named as that of an evaluation may hold maps that somebody has corrected.
    (tmp_path / "link").symlink_to(folder)
    own_dirs = (tmp_path, folder, tmp_path / "link")
    for own_dir in own_dirs:
        with assert_refused(r"already holds a\.nii\.gz: replace it by --overwrite true, or"):
            check_labels_dir(str(folder), cases, own_dir=str(own_dir))
    # Those of the run itself stay from one that was stopped.
    (tmp_path / "run.json").touch()
    for own_dir in own_dirs:
        check_labels_dir(str(folder), cases, own_dir=str(own_dir))
    # Also on another disk.
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "run.json").touch()
    (tmp_path / "run.json").unlink()
    (tmp_path / "training" / "evaluation").symlink_to(tmp_path)
    check_labels_dir(str(folder), cases, own_dir=str(tmp_path / "training" / "evaluation"))


def test_without_label_maps_no_case_is_looked_up(tmp_path):
    check_labels_dir(None, lambda: pytest.fail("cases were looked up"), own_dir=str(tmp_path))
