# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The command line of the tools: what it writes, its exit codes, and one line for each mistake."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from dicom_series import write_series
from matplotlib.image import imread

from scripts.__main__ import main
from scripts.data.dicom import read_series


@pytest.fixture
def fails(capsys):
    """Call the command line, expect exit code 1 and one line of error, and give the line."""

    def call(*words):
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert caught.value.code == 1
        error = capsys.readouterr().err.strip().splitlines()
        # A progress bar may stand before it.
        assert error[-1].startswith("error: ")
        assert not any("Traceback" in line for line in error)
        return error[-1].removeprefix("error: ")

    return call


@pytest.fixture
def folder(phantom_dir, tmp_path):
    return shutil.copytree(phantom_dir, tmp_path / "data")


def table_of(text):
    return [line.split()[0] for line in text.splitlines() if line.strip()]


# --- phantom ----------------------------------------------------------------------------------------------------------


def test_phantom(tmp_path, capsys):
    words = ["phantom", "--output_dir", str(tmp_path / "new"), "--num_cases", "4", "--size", "32,32,48"]
    assert main(words) is None
    assert f"4 cases and their split file: {tmp_path / 'new' / 'split.json'}" in capsys.readouterr().out
    assert len(list((tmp_path / "new" / "images").iterdir())) == 4
    main([*words, "--overwrite", "true"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_cases", "two"], "num_cases must be an integer of at least 4, got 'two'."),
        (["--size", "small"], "size must be an integer of at least 32, got 'small'."),
        (["--num_classes", "two"], "num_classes must be an integer from 2 to 5, got 'two'."),
        (["--modality", "[ct]"], "modality must be a string, got ['ct']."),
        (["--overwrite", "perhaps"], "overwrite must be true or false, got 'perhaps'."),
        (["--overwrite", "2"], "overwrite must be true or false, got 2."),
    ],
)
def test_phantom_refuses(words, message, tmp_path, fails):
    assert fails("phantom", "--output_dir", tmp_path / "new", *words) == message
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made(tmp_path, fails):
    (tmp_path / "file").write_text("mine")
    message = fails("phantom", "--output_dir", tmp_path / "file" / "new", "--num_cases", 4, "--size", 32)
    assert str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "mine"


def test_an_argument_without_its_value(fails):
    assert fails("phantom", "--output_dir") == "output_dir must be a string, got True."


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_of_all_lists(phantom_dir, capsys):
    main(["check", "--dataset_dir", str(phantom_dir), "--num_classes", "2"])
    output = capsys.readouterr().out
    assert table_of(output) == ["list", "labeled", "unlabeled", "validation", "test", "no"]
    assert output.splitlines()[-1] == "no problem found"


@pytest.mark.parametrize(
    ("lists", "shown"),
    [("labeled", ["labeled"]), ("labeled,test", ["labeled", "test"]), ("[test, labeled]", ["test", "labeled"])],
)
def test_check_of_some_lists_reads_no_other(lists, shown, folder, capsys):
    split = json.loads((folder / "split.json").read_text())
    for case in split["unlabeled"] + split["validation"]:
        (folder / "images" / f"{case}.nii.gz").unlink()
    main(["check", "--dataset_dir", str(folder), "--lists", lists])
    assert table_of(capsys.readouterr().out) == ["list", *shown, "no"]


def test_check_tells_problems(folder, fails, capsys):
    for name in ("images/phantom_000.nii.gz", "labels/phantom_001.nii.gz"):
        (folder / name).unlink()
    split_file = shutil.move(folder / "split.json", folder.parent / "mine.json")
    with pytest.raises(SystemExit) as caught:
        main(["check", "--dataset_dir", str(folder), "--split_file", str(split_file)])
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "phantom_000: image images/phantom_000.nii.gz not found",
        "phantom_001: label labels/phantom_001.nii.gz not found",
    ]
    assert captured.err.strip().splitlines()[-1] == f"error: 2 problem(s) in {folder}."
    assert fails("check", "--dataset_dir", folder) == f"split_file: {folder / 'split.json'} not found."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_classes", "two"], "num_classes must be a whole number of at least 2, got 'two'."),
        (["--num_classes", "2.0"], "num_classes must be a whole number of at least 2, got 2.0."),
        (["--num_classes", "1"], "num_classes must be a whole number of at least 2, got 1."),
        (["--num_classes"], "num_classes must be a whole number of at least 2, got True."),
        (["--jobs", "x"], "jobs must be a whole number of at least 1, got 'x'."),
        (["--jobs", "0"], "jobs must be a whole number of at least 1, got 0."),
        (["--lists", "labeled,7"], "lists must be strings with commas between them, got ('labeled', 7)."),
        (["--lists"], "lists must be strings with commas between them, got True."),
        (["--lists", "test,labeled,test"], "lists must be different names, got 'test' twice."),
        (["--lists", "train"], "lists must be of labeled, unlabeled, validation, test, got 'train'."),
        (["--split_file", "7"], "split_file must be a string, got the number 7: write a path with ./ in front of it."),
    ],
)
def test_check_refuses(words, message, phantom_dir, fails):
    assert fails("check", "--dataset_dir", phantom_dir, *words) == message


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_boxes(folder, capsys, fails):
    words = ["boxes", "--dataset_dir", str(folder), "--split_file", str(folder / "split.json")]
    main(words)
    assert capsys.readouterr().out.strip() == str(folder / "boxes.json")
    assert len(json.loads((folder / "boxes.json").read_text())) == 6
    assert "boxes.json is already there; --overwrite true replaces the boxes of cases with a label" in fails(*words)
    assert fails(*words, "--overwrite", "x") == "overwrite must be true or false, got 'x'."
    main([*words, "--overwrite", "true"])


# --- picture ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def volumes(phantom_dir):
    image, label = (phantom_dir / folder / "phantom_000.nii.gz" for folder in ("images", "labels"))
    return ["--image", str(image), "--prediction", str(label)]


@pytest.mark.parametrize("name", ["a.png", "new/A.PNG"])
def test_picture(name, volumes, tmp_path, capsys):
    main(["picture", *volumes, "--reference", volumes[-1], "--output", str(tmp_path / name), "--num_slices", "2"])
    assert capsys.readouterr().out.strip() == str(tmp_path / name)
    assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_a_picture_of_a_series_is_that_of_its_volume(volumes, tmp_path):
    stored = np.random.default_rng(0).integers(0, 2000, (12, 10, 6)).astype(np.uint16)
    write_series(tmp_path / "series", stored)
    volume = read_series(tmp_path / "series").to_nifti()
    nib.save(volume, tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image((volume.get_fdata() > 0).astype(np.uint8), volume.affine), tmp_path / "label.nii.gz")
    for image in ("series", "image.nii.gz"):
        words = ["--image", str(tmp_path / image), "--prediction", str(tmp_path / "label.nii.gz")]
        main(["picture", *words, "--output", str(tmp_path / f"{image}.png")])
    drawn = [imread(tmp_path / f"{image}.png") for image in ("series", "image.nii.gz")]
    # The titles are the names.
    assert np.array_equal(drawn[0][80:], drawn[1][80:])


def test_a_picture_is_replaced_on_demand_only(volumes, tmp_path, fails):
    target = tmp_path / "a.png"
    target.write_text("mine")
    assert fails("picture", *volumes, "--output", target).startswith(f"output {target} is there already: ")
    assert target.read_text() == "mine"
    main(["picture", *volumes, "--output", str(target), "--overwrite", "true"])
    assert target.read_bytes()[:4] == b"\x89PNG"


def test_a_misspelled_flag_is_refused_where_no_picture_is_there(volumes, tmp_path, fails):
    assert fails("picture", *volumes, "--output", tmp_path / "a.png", "--overwrite", "yse").startswith("overwrite must")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.nii.gz", "png", ".png"])
def test_a_picture_ends_in_png(name, volumes, tmp_path, fails):
    (tmp_path / name).write_text("mine")
    assert fails("picture", *volumes, "--output", tmp_path / name) == f"output must end in .png, got {tmp_path / name}."
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["image", "prediction", "reference"])
def test_a_picture_replaces_none_of_its_volumes(name, volumes, tmp_path, fails):
    volume = tmp_path / "a.png"
    volume.write_text("mine")
    (tmp_path / "link.png").symlink_to(volume)
    words = {"--image": volumes[1], "--prediction": volumes[3], "--reference": volumes[3], f"--{name}": volume}
    arguments = [word for pair in words.items() for word in pair]
    for output in (volume, tmp_path / "link.png"):
        message = fails("picture", *arguments, "--output", output)
        assert message == f"output must be another file than {name}, got {output} for both."
    assert volume.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_slices", "x"], "num_slices must be a whole number of at least 1, got 'x'."),
        (["--num_slices", "0"], "num_slices must be a whole number of at least 1, got 0."),
        (["--reference", "7"], "reference must be a string, got the number 7: write a path with ./ in front of it."),
        (["--reference", ""], "reference must be a string, got ''."),
        (["--reference", "none.nii"], "reference none.nii cannot be read as NIfTI: "),
    ],
)
def test_picture_refuses(words, message, volumes, tmp_path, fails):
    assert fails("picture", *volumes, "--output", tmp_path / "a.png", *words).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_picture_of_maps_stored_otherwise(volumes, tmp_path, fails):
    words = dict(zip(volumes[::2], volumes[1::2], strict=True))
    label = nib.load(words["--prediction"])
    nib.save(label.as_reoriented([[0, -1], [2, 1], [1, 1]]), tmp_path / "turned.nii.gz")
    for name, file in (("plain", words["--prediction"]), ("turned", tmp_path / "turned.nii.gz")):
        main(
            [
                "picture",
                "--image",
                str(words["--image"]),
                "--prediction",
                str(file),
                "--output",
                f"{tmp_path / name}.png",
            ]
        )
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "turned.png").read_bytes()
    moved = label.affine.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(label.dataobj, moved), tmp_path / "moved.nii.gz")
    words["--prediction"] = tmp_path / "moved.nii.gz"
    message = fails("picture", *(word for pair in words.items() for word in pair), "--output", tmp_path / "a.png")
    assert message.startswith(f"prediction {tmp_path / 'moved.nii.gz'} does not fit the image: the label has another")
    header = label.header.copy()
    header.set_sform(np.diag([0.0, 1.0, 1.0, 1.0]), code=1)
    header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(label.dataobj, None, header), tmp_path / "moved.nii.gz")
    message = fails("picture", *(word for pair in words.items() for word in pair), "--output", tmp_path / "a.png")
    assert message.startswith(f"prediction {tmp_path / 'moved.nii.gz'} must have an affine that can be inverted")


def test_volumes_that_cannot_be_read(volumes, tmp_path, fails):
    content = gzip.compress(nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)).to_bytes())
    broken = {"empty.nii.gz": b"", "half.nii.gz": content[: len(content) // 2], "text.nii": b"no volume"}
    broken["archive.nii.gz"] = content[:12] + b"\xff\xff\xff" + content[15:]
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        message = fails("picture", "--image", tmp_path / name, *volumes[2:], "--output", tmp_path / "a.png")
        assert message.startswith(f"image {tmp_path / name} cannot be read as NIfTI: "), message
    assert not (tmp_path / "a.png").exists()


def test_a_picture_whose_place_is_a_folder(volumes, tmp_path, fails):
    (tmp_path / "a.png").mkdir()
    assert str(tmp_path / "a.png") in fails("picture", *volumes, "--output", tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# --- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["segment"], ["check"], ["check", "--dataset_dir", ".", "--sede", "3"]])
def test_what_is_not_understood_is_no_success(words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code in (1, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_case", "6"], "--num_case is no argument of phantom. Did you mean --num_cases?"),
        (["--num-case=6"], "--num_case is no argument of phantom. Did you mean --num_cases?"),
        (["--zebra"], "--zebra is no argument of phantom. It takes output_dir, "),
        (["a"] * 20, "phantom takes output_dir, "),
    ],
)
def test_a_command_does_nothing_before_its_arguments_are_known(words, message, tmp_path, fails):
    target = tmp_path / "data"
    main(["phantom", "--output_dir", str(target), "--num_cases", "4", "--size", "32"])
    before = {path: path.read_bytes() for path in target.rglob("*.*")}
    assert fails("phantom", "--output_dir", target, "--overwrite", "true", *words).startswith(message)
    assert {path: path.read_bytes() for path in target.rglob("*.*")} == before


def test_arguments_may_be_written_as_fire_reads_them(tmp_path):
    target = tmp_path / "data"
    main(["phantom", str(target), "-num-cases=4", "--size", "32", "--nooverwrite", "--", "--separator=+"])
    assert len(list((target / "images").iterdir())) == 4


@pytest.mark.parametrize("name", ["crossval", "predict", "robustness", "uncertainty"])
def test_help_tells_of_the_keys_of_the_configuration(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert re.search(r"Additional flags are accepted\.\n\s+\S.* (keys?) of the .*, such as --", text)
    assert "**" not in text


def test_who_is_stopped_leaves_no_temporary_folder(tmp_path):
    # As a queue or a container stops a process: within a context that has something to remove.
    code = (
        "import os, signal, sys, tempfile\n"
        "import scripts.__main__ as program\n"
        "def phantom(output_dir, **others):\n"
        "    with tempfile.TemporaryDirectory(dir=output_dir):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "program.phantom = phantom\n"
        "program.main(['phantom', '--output_dir', sys.argv[1]])\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=120, check=False)
    assert run.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
