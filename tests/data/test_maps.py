# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Volumes to segment are listed, and what is written of them is checked, before a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from nifti_files import make_volumes, save

from scripts.data.maps import InferenceMaps
from scripts.errors import BundleError

INFERENCE = Path(__file__).resolve().parents[2] / "configs" / "inference.json"


def list_volumes(dataset_dir, output_dir, **options):
    """List volumes as the shipped inference configuration does, and check them."""
    config = ConfigParser(ConfigParser.load_config_file(INFERENCE))
    config["dataset_dir"] = dataset_dir
    datalist = config.get_parsed_content("datalist")
    InferenceMaps(output_dir, **options).check(datalist, dataset_dir)
    return datalist


def test_volumes_of_a_folder(tmp_path, caplog):
    folder = tmp_path / "images"
    (folder / "more.nii").mkdir(parents=True)
    make_volumes(folder, "b.nii.gz", "a.nii", "c.nii.gz", "._a.nii")
    make_volumes(folder / "more.nii", "d.nii")
    (folder / "lost.nii").symlink_to(tmp_path / "no share")
    (folder / "readme.txt").write_text("no volume")
    # What only looks like a volume fails with a line of its own; left out, it would be missed in silence.
    names = ("a.nii", "b.nii.gz", "c.nii.gz", "lost.nii", "more.nii")
    assert list_volumes(str(folder), str(tmp_path / "out")) == [str(folder / name) for name in names]
    assert not (tmp_path / "out").exists()
    # A scan in another format would be missed in silence.
    (message,) = caplog.messages
    start = f"dataset_dir {folder}: what is no NIfTI volume is passed over, such as"
    assert message == f"{start} readme.txt (1 in all)."
    caplog.clear()
    (folder / "readme.txt").unlink()
    (folder / "more").mkdir()
    list_volumes(str(folder), str(folder / "more" / "out"))
    assert caplog.messages == []
    list_volumes(str(folder), str(tmp_path / "out"))
    assert caplog.messages == [f"{start} more/ (1 in all)."]


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    make_volumes(tmp_path, "a.nii")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(
        BundleError, match=rf"^output_dir {tmp_path}/out/b cannot be written: no permission for {tmp_path}\.$"
    ):
        list_volumes(str(tmp_path), str(tmp_path / "out/b"))


def test_one_file(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    assert list_volumes(str(path), str(tmp_path / "out")) == [str(path)]


def test_nothing_to_segment(tmp_path):
    (tmp_path / "readme.txt").write_text("no volume")
    for place in (tmp_path, tmp_path / "readme.txt"):
        with pytest.raises(BundleError, match=rf"dataset_dir {place} holds no volume: files that end in .nii.gz or"):
            list_volumes(str(place), str(tmp_path / "out"))


def test_no_volume_is_left_out_for_its_capitals(tmp_path):
    make_volumes(tmp_path, "a.nii.gz", "b.nii.gz")
    path = (tmp_path / "b.nii.gz").rename(tmp_path / "B.NII.gz")
    (tmp_path / "._c.NII").touch()
    for place in (tmp_path, path):
        with pytest.raises(BundleError, match=rf"dataset_dir {place}: B\.NII\.gz would be left out, .*: rename it\."):
            list_volumes(str(place), str(tmp_path / "out"))


def test_missing_folder(tmp_path):
    with pytest.raises(BundleError, match=r"dataset_dir .*/none does not exist: it must be a NIfTI file or a folder"):
        list_volumes(str(tmp_path / "none"), str(tmp_path))


def test_a_list_of_other_files(tmp_path):
    with pytest.raises(BundleError, match=r"datalist must hold paths that end in \.nii\.gz or \.nii, got b\.mha"):
        InferenceMaps(str(tmp_path / "out")).check(["a.nii", "b.mha"], str(tmp_path))


def test_two_volumes_of_one_name(tmp_path):
    folder = make_volumes(tmp_path, "a.nii", "a.nii.gz")
    with pytest.raises(BundleError, match=r"a\.nii and a\.nii\.gz would both write a_seg\.nii\.gz: rename one"):
        list_volumes(folder, str(tmp_path / "out"), overwrite=True)


@pytest.mark.parametrize("overwrite", [False, "false"])
def test_label_maps_are_not_overwritten(tmp_path, overwrite):
    folder, output = make_volumes(tmp_path, "a.nii", "b.nii.gz", "c.nii"), tmp_path / "out"
    output.mkdir()
    make_volumes(output, "b_seg.nii.gz", "c_seg.nii.gz", "z_seg.nii.gz")
    with pytest.raises(BundleError) as caught:
        list_volumes(folder, str(output), overwrite=overwrite)
    assert str(caught.value) == (
        f"output_dir {output} already holds 2 of the files to write, such as b_seg.nii.gz: go on with the others by "
        "--skip_existing true, if they are of the same weights and options, replace them by --overwrite true, or "
        "choose another --output_dir."
    )
    # Under another name nothing is lost.
    assert len(list_volumes(folder, str(output), output_postfix="new", overwrite=overwrite)) == 3


@pytest.mark.parametrize("overwrite", [True, "true", "True"])
def test_label_maps_are_overwritten_on_request(tmp_path, overwrite):
    folder, output = make_volumes(tmp_path, "a.nii"), tmp_path / "out"
    output.mkdir()
    make_volumes(output, "a_seg.nii.gz")
    assert len(list_volumes(folder, str(output), overwrite=overwrite)) == 1


def test_other_files_in_the_output_folder_do_not_matter(tmp_path):
    folder, output = make_volumes(tmp_path, "a.nii"), tmp_path / "out"
    output.mkdir()
    for name in ("b_seg.nii.gz", "a_seg.png", "a_seg.nii", "a_probabilities.nii.gz", "a_uncertainty.nii.gz"):
        (output / name).write_text("")
    assert list_volumes(folder, str(output)) == [str(tmp_path / "a.nii")]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a_seg.nii", {"output_ext": ".nii"}),
        ("a_probabilities.nii.gz", {"save_probabilities": True}),
        ("a_uncertainty.nii.gz", {"save_uncertainty": "true"}),
        ("a_uncertainty.nii", {"save_probabilities": True, "save_uncertainty": True, "output_ext": ".nii"}),
    ],
)
def test_every_file_to_write_is_looked_at(tmp_path, name, options):
    folder, output = make_volumes(tmp_path, "a.nii.gz"), tmp_path / "out"
    output.mkdir()
    (output / name).write_text("mine")
    assert len(list_volumes(folder, str(output))) == 1
    with pytest.raises(BundleError, match=f"already holds 1 of the files to write, such as {name}: go on with"):
        list_volumes(folder, str(output), **options)
    assert len(list_volumes(folder, str(output), **options, overwrite=True)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_postfix": ""}, "output_postfix must be a string of letters, digits and any of . _ + -, got ''."),
        ({"output_postfix": 0}, "output_postfix must be a string of letters, digits and any of . _ + -, got 0."),
        ({"output_postfix": None}, "output_postfix must be a string of letters, digits and any of . _ + -, got None."),
        (
            {"output_postfix": "../a"},
            "output_postfix must be a string of letters, digits and any of . _ + -, got '../a'",
        ),
        ({"output_postfix": "probabilities"}, "output_postfix must not be probabilities or uncertainty, the names of"),
        ({"output_postfix": "Uncertainty"}, "of the other maps, got 'Uncertainty'."),
        ({"output_ext": ".mha"}, "output_ext must be .nii.gz or .nii, got '.mha'."),
        ({"output_ext": ""}, "output_ext must be .nii.gz or .nii, got ''."),
        ({"output_ext": "nii"}, "output_ext must be .nii.gz or .nii, got 'nii'."),
    ],
)
def test_options(tmp_path, options, message):
    folder = make_volumes(tmp_path, "a.nii")
    with pytest.raises(BundleError, match=re.escape(message)):
        list_volumes(folder, str(tmp_path / "out"), **{"overwrite": True, **options})


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_folder_of_the_volumes_is_no_output_folder(tmp_path, overwrite):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    make_volumes(folder, "a.nii")
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, folder / "a.nii"):
        for output in (folder, folder / "more" / "..", tmp_path / "link"):
            with pytest.raises(BundleError, match="output_dir must be another folder than that of the volumes, got"):
                list_volumes(str(place), str(output), overwrite=overwrite)
        assert len(list_volumes(str(place), str(folder / "more"), overwrite=overwrite)) == 1


def test_a_link_to_a_volume_is_not_written_through(tmp_path):
    folder, output = make_volumes(tmp_path, "a.nii.gz", "b.nii.gz"), tmp_path / "out"
    output.mkdir()
    (output / "b_seg.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    with pytest.raises(BundleError, match=r"output_dir .*: b_seg\.nii\.gz is a link to one of the volumes"):
        list_volumes(folder, str(output), overwrite=True)


def test_a_file_is_no_output_folder(tmp_path):
    folder = make_volumes(tmp_path, "a.nii")
    with pytest.raises(BundleError, match=r"output_dir .*a\.nii cannot be written: .*a\.nii is a file\."):
        list_volumes(folder, str(tmp_path / "a.nii"))


def test_two_volumes_whose_different_maps_share_a_name(tmp_path):
    folder = make_volumes(tmp_path, "a.nii", "a_b.nii")
    options = {"output_postfix": "b_uncertainty", "overwrite": True}
    assert len(list_volumes(folder, str(tmp_path / "out"), **options)) == 2
    with pytest.raises(BundleError, match=r"a\.nii and a_b\.nii would both write a_b_uncertainty\.nii\.gz"):
        list_volumes(folder, str(tmp_path / "out"), **options, save_uncertainty=True)


def test_maps_of_other_weights_are_warned_of(tmp_path, caplog):
    make_volumes(tmp_path, "a.nii", "b.nii", "c.nii")
    output, weights = tmp_path / "out", tmp_path / "model.pt"
    output.mkdir()
    make_volumes(output, "a_seg.nii.gz", "b_seg.nii.gz")
    weights.write_text("weights")
    os.utime(output / "a_seg.nii.gz", (100, 100))
    data = [{"image": str(tmp_path / f"{name}.nii")} for name in "abc"]
    for seconds, number in ((50, 0), (200, 1)):
        os.utime(weights, (seconds, seconds))
        caplog.clear()
        maps = InferenceMaps(str(output), skip_existing=True, weights_file=str(weights))
        assert [item["image"] for item in maps.unfinished(data)] == [str(tmp_path / "c.nii")]
        message = f"output_dir {output}: 1 of the maps that are there, such as a_seg.nii.gz, are older than the weights"
        assert sum(line.startswith(message) for line in caplog.messages) == number
        assert sum("older than the weights" in line for line in caplog.messages) == number
