# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Prepared cases come back from the disk as they went there, and never for another file or another pipeline."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest
import torch
from conftest import assert_refused
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad, NormalizeIntensityd, Spacingd

from scripts.data.disk_cache import DiskCache, case_key, transforms_key
from scripts.data.loading import LoadCased


def pipeline(spacing=(1.0, 1.0, 1.0), num_classes=2):
    keys = ["image", "label"]
    return [
        LoadCased(keys, num_classes=num_classes),
        Spacingd(keys, pixdim=spacing, mode=["bilinear", "nearest"]),
        NormalizeIntensityd("image"),
    ]


@pytest.fixture
def case(phantom_dir):
    names = {"image": "images/phantom_000.nii.gz", "label": "labels/phantom_000.nii.gz"}
    return {**{key: str(phantom_dir / name) for key, name in names.items()}, "case": "a", "box": [[1, 2, 3], [4, 5, 6]]}


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache", gigabytes=1)


def assert_same(given, wanted):
    """Equal values of equal types; tuples and lists count as the same, and so do texts and members of text enums."""
    if isinstance(wanted, MetaTensor):
        assert isinstance(given, MetaTensor)
        assert_same(given.as_tensor(), wanted.as_tensor())
        assert_same(given.meta, wanted.meta)
        assert_same(given.applied_operations, wanted.applied_operations)
        assert_same(given.affine, wanted.affine)
    elif isinstance(wanted, torch.Tensor):
        assert given.dtype == wanted.dtype
        assert torch.equal(given, wanted)
    elif isinstance(wanted, np.ndarray):
        assert given.dtype == wanted.dtype
        np.testing.assert_array_equal(given, wanted)
    elif isinstance(wanted, dict):
        assert given.keys() == wanted.keys()
        for key in wanted:
            assert_same(given[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(given) == len(wanted)
        for pair in zip(given, wanted, strict=True):
            assert_same(*pair)
    else:
        assert given == wanted or (given != given and wanted != wanted)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_case_comes_back_with_its_metadata(case, cache):
    item = Compose(pipeline())(case)
    assert cache.load("0") is None
    cache.save("0", item)
    given = cache.load("0")
    assert_same(given, item)
    assert given["image"].meta["filename_or_obj"] == case["image"]
    assert len(given["image"].applied_operations) == 1


def test_a_read_case_may_be_changed(cache):
    cache.save("0", {"a": torch.zeros(3)})
    cache.load("0")["a"] += 1
    assert cache.load("0")["a"].sum() == 0


def test_a_part_of_a_volume_is_kept_alone(cache):
    cache.save("0", {"a": torch.zeros(1, 100, 100)[:, :2]})
    assert (cache.folder / "0.pt").stat().st_size < 10_000
    assert_same(cache.load("0"), {"a": torch.zeros(1, 2, 100)})


def test_files_are_read_without_running_code(cache):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(cache.folder / "ran"),)

    torch.save({"description": "{}", "tensors": [Evil()]}, cache.folder / "0.pt")
    assert cache.load("0") is None
    assert not (cache.folder / "ran").exists()


def test_what_is_no_data_is_refused(cache):
    with assert_refused("cache_dir cannot keep what the transforms make of a case: Object of type object"):
        cache.save("0", {"a": object()})


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_a_damaged_file_is_named_and_replaced(how, cache, caplog):
    item = {"a": torch.arange(1000.0)}
    cache.save("0", item)
    path = cache.folder / "0.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content[:500] if how == "cut" else content)
    assert cache.load("0") is None
    assert f"{path} is damaged" in caplog.text
    cache.save("0", item)
    assert_same(cache.load("0"), item)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
def test_a_file_that_the_system_does_not_read_is_passed_over(cache, caplog, monkeypatch, number):
    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    cache.save("0", {"a": torch.ones(2)})
    monkeypatch.setattr("scripts.data.disk_cache.read_tensors", refuse)
    assert cache.load("0") is None
    assert f"{os.strerror(number)}: '{cache.folder / '0.pt'}'; the case is prepared anew" in caplog.text


def test_two_runs_share_a_folder(cache):
    other = DiskCache(cache.folder, gigabytes=1)
    cache.save("0", {"a": torch.ones(2)})
    other.save("0", {"a": torch.ones(2)})
    other.save("1", {"a": torch.zeros(2)})
    assert_same(cache.load("1"), {"a": torch.zeros(2)})
    # No temporary file is left.
    assert sorted(path.name for path in cache.folder.iterdir()) == ["0.pt", "1.pt"]


# --- the bound --------------------------------------------------------------------------------------------------------


def test_a_full_folder_takes_no_more_and_says_so_once(tmp_path, caplog):
    cache = DiskCache(tmp_path, gigabytes=1e-4)
    for key in range(5):
        cache.save(str(key), {"a": torch.zeros(10_000)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt", "1.pt"]
    assert caplog.text.count("is full (cache_gigabytes 0.0001)") == 1
    assert cache.load("1") is not None
    assert cache.load("4") is None


def test_leftovers_of_killed_runs_go_after_a_day(tmp_path):
    key = "0123456789abcdef" * 4
    names = (f".{key}.x1_y.pt", f".{key}.x2_y.pt", f"{key}.pt", ".mine.x1_y.pt")
    old, young, case, foreign = (tmp_path / name for name in names)
    for path in (old, young, case, foreign):
        path.write_bytes(b"half")
    for path in (old, case, foreign):
        os.utime(path, (time.time() - 90_000,) * 2)
    DiskCache(tmp_path, gigabytes=1)
    assert sorted(tmp_path.iterdir()) == sorted((young, case, foreign))


def test_the_bound_counts_what_others_wrote(tmp_path, caplog):
    first, second = DiskCache(tmp_path, gigabytes=1e-4), DiskCache(tmp_path, gigabytes=1e-4)
    first.save("0", {"a": torch.zeros(20_000)})
    second.save("1", {"a": torch.zeros(20_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["0.pt"]
    assert "is full" in caplog.text


def test_the_folder_is_counted_once_for_many_cases(tmp_path, monkeypatch):
    counts, scan = [], os.scandir
    monkeypatch.setattr("scripts.data.disk_cache.os.scandir", lambda path: counts.append(path) or scan(path))
    cache = DiskCache(tmp_path, gigabytes=0.01)
    for key in range(40):
        cache.save(str(key), {"a": torch.zeros(5_000)})
    assert len(list(tmp_path.iterdir())) == 40
    # 40 files of 21 kB in steps of 100 kB.
    assert 8 <= len(counts) <= 12


def test_a_full_disk_stops_no_run_and_is_said_once(cache, caplog, monkeypatch):
    def no_space(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.data.disk_cache.replacing", no_space)
    cache.save("0", {"a": torch.zeros(2)})
    cache.save("1", {"a": torch.zeros(2)})
    assert caplog.text.count("cannot be written (No space left on device)") == 1


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with assert_refused("cache_dir .*file cannot be written: .*file is a file"):
        DiskCache(tmp_path / "file", gigabytes=1)
    (tmp_path / "link").symlink_to(tmp_path / "purged")
    with assert_refused("cache_dir .*link cannot be made: File exists"):
        DiskCache(tmp_path / "link", gigabytes=1)


# --- what finds a case again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["content", "time", "path", "box", "transforms"])
def test_another_case_has_another_key(change, tmp_path):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(b"1234")
    os.utime(path, ns=(0, 0))
    entry, transforms = {"image": str(path), "box": [1, 2]}, "0"
    before = case_key(entry, transforms)
    assert case_key(dict(entry), transforms) == before
    if change == "content":
        path.write_bytes(b"12345")
        os.utime(path, ns=(0, 0))
    elif change == "time":
        os.utime(path, ns=(0, 1))
    elif change == "path":
        entry["image"] = str(path.rename(tmp_path / "other.nii.gz"))
    elif change == "box":
        entry["box"] = [1, 3]
    else:
        transforms = "1"
    assert case_key(entry, transforms) != before


def test_one_relative_path_of_two_folders_is_two_files(tmp_path, monkeypatch):
    keys = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.nii").write_text("")
        os.utime(tmp_path / name / "image.nii", ns=(0, 0))
        monkeypatch.chdir(tmp_path / name)
        keys.append(case_key({"image": "image.nii"}, "0"))
    assert keys[0] != keys[1]


def test_a_changed_file_of_a_series_is_seen(tmp_path):
    (tmp_path / "slice").write_text("1")
    before = case_key({"image": str(tmp_path)}, "0")
    (tmp_path / "slice").write_text("12")
    assert case_key({"image": str(tmp_path)}, "0") != before


def test_a_case_called_like_a_folder_does_not_hang_on_what_is_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"image": "image.nii", "case": "results"}
    before = case_key(entry, "0")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table").write_text("1")
    assert case_key(entry, "0") == before
    assert case_key({**entry, "case": "other"}, "0") != before


def test_transforms_are_told_apart_by_every_option():
    keys = {
        transforms_key(steps)
        for steps in (pipeline(), pipeline()[:-1], pipeline(spacing=(1.0, 1.0, 2.0)), pipeline(num_classes=3))
    }
    assert len(keys) == 4


def test_transforms_are_the_same_after_use_and_made_anew(case):
    transforms = pipeline()
    before = transforms_key(transforms)
    chain = Compose(transforms)
    chain.set_random_state(seed=5)
    chain(case)
    assert transforms_key(transforms) == before
    assert transforms_key(pipeline()) == before


def test_a_function_without_a_name_is_refused():
    with assert_refused("cache_dir needs transforms that can be told apart by their options"):
        transforms_key([Lambdad("image", func=lambda image: image + 1)])
