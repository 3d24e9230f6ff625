# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Where a case is kept changes nothing but the time: batches are equal, memory is bounded, files are read once."""

from __future__ import annotations

import gc
import re
from itertools import islice

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import assert_refused
from monai.data import NibabelReader
from monai.transforms import Compose, NormalizeIntensityd, RandFlipd, RandSpatialCropd, SpatialCropd

from scripts.console import describe_mistake
from scripts.data.cached_dataset import CachedDataset, UnreadableCaseError
from scripts.data.disk_cache import DiskCache
from scripts.data.loading import LoadCased
from scripts.data.two_stream import TwoStreamLoader
from scripts.errors import BundleError

NUM_CASES = 6
#: A prepared case is one volume of 6x7x8 voxels in float32.
GIGABYTES_PER_CASE = 4 * 6 * 7 * 8 / 1e9


@pytest.fixture
def cases(tmp_path):
    """Six small volumes, each with a path of its own."""
    random = np.random.default_rng(0)
    paths = [tmp_path / f"case_{number}.nii" for number in range(NUM_CASES)]
    for path in paths:
        nib.save(nib.Nifti1Image(random.normal(size=(6, 7, 8)).astype(np.float32), np.eye(4)), path)
    return [{"unlabeled": str(path), "case": path.stem} for path in paths]


@pytest.fixture
def reads(monkeypatch):
    """Paths of the volumes in the order in which they are read."""
    paths = []
    load = LoadCased.__call__

    def recorded(self, data):
        paths.append(data["unlabeled"])
        return load(self, data)

    monkeypatch.setattr(LoadCased, "__call__", recorded)
    return paths


def make_dataset(cases, **options):
    transform = Compose(
        [
            LoadCased(["unlabeled"], num_classes=2),
            NormalizeIntensityd("unlabeled"),
            RandSpatialCropd("unlabeled", roi_size=(4, 4, 4), random_size=False),
            RandFlipd("unlabeled", prob=0.5, spatial_axis=0),
        ]
    )
    return CachedDataset(cases, transform, progress=False, **options)


def take(dataset, count=8, **options):
    loader = TwoStreamLoader(dataset, dataset, labeled_batch_size=0, unlabeled_batch_size=2, seed=3, **options)
    batches = [batch["unlabeled"] for batch in islice(iter(loader), count)]
    file = options.get("unreadable_file")
    # A run writes into its folder only when its first iteration is done.
    assert file is None or options.get("num_workers") or not file.exists()
    loader.write_unreadable()
    return batches


def assert_equal_batches(given, wanted):
    for a, b in zip(given, wanted, strict=True):
        assert torch.equal(a.as_tensor(), b.as_tensor())
        assert a.meta["filename_or_obj"] == b.meta["filename_or_obj"]
        assert torch.equal(a.affine, b.affine)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"cache_num": 0},
        {"cache_num": 4},
        {"cache_memory_gigabytes": 3 * GIGABYTES_PER_CASE},
        {"cache_num": 4, "cache_memory_gigabytes": 3 * GIGABYTES_PER_CASE},
    ],
)
def test_batches_do_not_depend_on_the_memory(options, num_workers, cases):
    wanted = take(make_dataset(cases))
    assert_equal_batches(take(make_dataset(cases, **options), num_workers=num_workers), wanted)


def test_a_list_that_fits_is_read_at_once_and_only_once(cases, reads):
    dataset = make_dataset(cases, cache_num=NUM_CASES)
    assert sorted(reads) == [case["unlabeled"] for case in cases]
    take(dataset)
    assert len(reads) == NUM_CASES


def test_a_share_is_kept_as_before(cases, reads):
    dataset = make_dataset(cases, cache_rate=0.5)
    assert len(reads) == NUM_CASES // 2
    assert all(item is not None for item in dataset._cache)


def test_a_longer_list_starts_at_once_and_keeps_no_more_than_the_bound(cases, reads):
    dataset = make_dataset(cases, cache_num=4)
    assert reads == []
    take(dataset, count=2 * NUM_CASES)
    assert len(dataset._cache) == 4
    assert all(item is not None for item in dataset._cache)
    # Four epochs: the first four were read once, the others each time.
    assert [reads.count(case["unlabeled"]) for case in cases] == [1, 1, 1, 1, 4, 4]


def test_no_more_bytes_are_kept_than_the_bound(cases, reads, caplog):
    dataset = make_dataset(cases, cache_memory_gigabytes=3.5 * GIGABYTES_PER_CASE)
    # A broken file is still known before the first step.
    assert sorted(reads) == [case["unlabeled"] for case in cases]
    take(dataset, count=2 * NUM_CASES)
    assert [reads.count(case["unlabeled"]) for case in cases] == [1, 1, 1, 5, 5, 5]
    assert [message for message in caplog.messages if "cache_memory" in message] == [
        "cache_memory_gigabytes 4.704e-06: 3 of 6 cases stay in memory, the others are prepared at each use."
    ]


def test_a_bound_of_bytes_is_kept_as_a_longer_list_is_drawn(cases, reads, caplog):
    dataset = make_dataset(cases, cache_num=5, cache_memory_gigabytes=2 * GIGABYTES_PER_CASE)
    for _ in range(2):
        for index in (4, 5, 3, 2, 1, 0):
            dataset[index]
    assert [item is not None for item in dataset._cache] == [False, False, False, True, True]
    assert [reads.count(case["unlabeled"]) for case in cases] == [2, 2, 2, 1, 1, 2]
    assert caplog.text.count("2 of 6 cases stay in memory") == 1


def count_live_volumes():
    """Count the whole volumes that anything in this process still holds."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len({tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.shape == (1, 6, 7, 8)})


@pytest.mark.parametrize(
    ("options", "num_kept"),
    [
        ({}, NUM_CASES),
        ({"cache_num": 0}, 0),
        ({"cache_num": 4}, 4),
        ({"cache_memory_gigabytes": 3.5 * GIGABYTES_PER_CASE}, 3),
        ({"cache_num": 5, "cache_memory_gigabytes": 2.5 * GIGABYTES_PER_CASE}, 2),
    ],
)
def test_memory_does_not_grow_with_the_draws(options, num_kept, cases):
    before = count_live_volumes()
    dataset = make_dataset(cases, **options)
    for _ in range(2):
        take(dataset, count=4 * NUM_CASES)
        assert count_live_volumes() - before == num_kept


def test_a_crop_counts_with_the_memory_that_it_holds(cases):
    transform = Compose([LoadCased(["unlabeled"], num_classes=2), SpatialCropd("unlabeled", roi_slices=[slice(0, 2)])])
    dataset = CachedDataset(cases, transform, cache_memory_gigabytes=2 * GIGABYTES_PER_CASE, progress=False)
    assert dataset[0]["unlabeled"].shape == (1, 2, 7, 8)
    assert sum(item is not None for item in dataset._cache) == 2


@pytest.mark.parametrize(
    "options", [{"cache_num": 4}, {"cache_num": 5, "cache_memory_gigabytes": 4 * GIGABYTES_PER_CASE}]
)
def test_workers_share_the_bound(options, cases, monkeypatch):
    class Worker:
        num_workers = 2

    monkeypatch.setattr("scripts.data.cached_dataset.get_worker_info", Worker)
    dataset = make_dataset(cases, **options)
    for index in range(NUM_CASES):
        dataset[index]
    assert [item is not None for item in dataset._cache[:4]] == [True, True, False, False]


def test_negative_numbers_count_from_the_end(cases):
    dataset = make_dataset(cases, cache_num=2)
    assert dataset[-1]["case"] == "case_5"
    assert dataset[-NUM_CASES]["case"] == "case_0"


# --- disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_num", [0, NUM_CASES])
def test_batches_do_not_depend_on_the_disk(cache_num, cases, reads, tmp_path):
    wanted = take(make_dataset(cases, cache_num=0))
    cache = DiskCache(tmp_path / "cache", gigabytes=1)
    reads.clear()
    for _ in range(2):
        assert_equal_batches(take(make_dataset(cases, cache_num=cache_num, disk_cache=cache)), wanted)
    # The second time nothing was read but the cache.
    assert len(reads) == NUM_CASES


def test_a_changed_file_gives_no_old_volume(cases, tmp_path):
    cache = DiskCache(tmp_path / "cache", gigabytes=1)
    before = make_dataset(cases, disk_cache=cache)._load_cache_item(0)["unlabeled"]
    nib.save(nib.Nifti1Image(np.arange(6 * 7 * 9.0).reshape(6, 7, 9), np.eye(4)), cases[0]["unlabeled"])
    after = make_dataset(cases, disk_cache=cache)._load_cache_item(0)["unlabeled"]
    assert (before.shape, after.shape) == ((1, 6, 7, 8), (1, 6, 7, 9))


def test_a_full_disk_cache_changes_no_batch(cases, tmp_path, caplog):
    wanted = take(make_dataset(cases))
    cache = DiskCache(tmp_path / "cache", gigabytes=1e-5)
    assert_equal_batches(take(make_dataset(cases, cache_num=0, disk_cache=cache)), wanted)
    assert caplog.text.count("is full") == 1


# --- cases that cannot be read ----------------------------------------------------------------------------------------


def break_case(case, how):
    path = case["unlabeled"]
    if how == "missing":
        path = path.replace("case_", "none_")
    elif how == "cut":
        with open(path, "r+b") as file:
            file.truncate(400)
    else:
        nib.save(nib.Nifti1Image(np.full((6, 7, 8), np.nan, np.float32), np.eye(4)), path)
    return {**case, "unlabeled": path}


@pytest.mark.parametrize("cache_num", [0, NUM_CASES])
def test_an_unreadable_case_is_refused_by_default(cache_num, cases):
    cases[2] = break_case(cases[2], "cut")
    with assert_refused(r"case_2\.nii cannot be read"):
        take(make_dataset(cases, cache_num=cache_num))


@pytest.mark.parametrize("how", ["missing", "cut", "not finite"])
@pytest.mark.parametrize("cache_num", [0, NUM_CASES])
def test_an_unreadable_case_is_passed_over_by_option(cache_num, how, cases, tmp_path, caplog):
    wanted = take(make_dataset(cases))
    cases[2] = break_case(cases[2], how)
    listed = tmp_path / "unreadable.txt"
    dataset = make_dataset(cases, cache_num=cache_num, skip_unreadable="true")
    given = take(dataset, unreadable_file=listed)
    # Every slot of a readable case holds what it held, and those of the other hold one of them.
    replaced = 0
    for a, b in zip(given, wanted, strict=True):
        for slot, name in enumerate(b.meta["filename_or_obj"]):
            assert a.meta["filename_or_obj"][slot] != cases[2]["unlabeled"]
            if name.endswith("case_2.nii"):
                replaced += 1
            else:
                assert torch.equal(a[slot].as_tensor(), b[slot].as_tensor())
    assert replaced == 2
    lines = listed.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(cases[2]["unlabeled"])
    assert [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()] == [
        f"a case is passed over: {lines[0]}"
    ]


def test_the_case_that_takes_the_slot_depends_on_seed_and_iteration_alone(cases, tmp_path):
    cases[2], cases[4] = break_case(cases[2], "cut"), break_case(cases[4], "missing")
    listed = tmp_path / "unreadable.txt"
    wanted = take(make_dataset(cases, skip_unreadable=True), unreadable_file=listed)
    lines = listed.read_text().splitlines()
    again = take(make_dataset(cases, cache_num=0, skip_unreadable=True), num_workers=2, unreadable_file=listed)
    assert_equal_batches(again, wanted)
    # A second run over the same cases, as after a stop, lists none of them again.
    assert listed.read_text().splitlines() == lines
    assert len(lines) == 2


def test_a_case_whose_name_is_not_of_utf_8_is_listed_once(cases, tmp_path):
    listed, dataset = tmp_path / "run" / "unreadable.txt", make_dataset(cases)
    for _ in range(2):
        loader = TwoStreamLoader(dataset, dataset, labeled_batch_size=0, unreadable_file=listed)
        loader._report(["a_\udce9.nii cannot be read", "b.nii cannot be read"])
        loader.write_unreadable()
    assert listed.read_text().splitlines() == [r"a_\udce9.nii cannot be read", "b.nii cannot be read"]


def test_nothing_but_unreadable_cases_is_refused(cases):
    cases = [break_case(case, "missing") for case in cases]
    with assert_refused(r"none of the 6 cases of a list can be read; the first: .*none_\d\.nii cannot be read"):
        take(make_dataset(cases, skip_unreadable=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_case_that_is_refused_when_it_is_drawn_costs_one_line(cases, num_workers):
    cases = [break_case(case, "missing") for case in cases]
    with pytest.raises((BundleError, RuntimeError)) as caught:
        take(make_dataset(cases, cache_num=0), num_workers=num_workers)
    assert re.fullmatch(r"\S*none_\d\.nii cannot be read: .*", describe_mistake(caught.value))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_that_is_not_enough_is_no_unreadable_case(cases, monkeypatch, num_workers):
    def fail(*arguments):
        raise MemoryError("Unable to allocate 8.0 GiB")

    monkeypatch.setattr(NibabelReader, "get_data", fail)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        take(make_dataset(cases, cache_num=0, skip_unreadable=True), num_workers=num_workers)
    assert describe_mistake(caught.value).startswith("the memory of the device is not enough: ")


def test_a_mistake_of_a_transform_is_no_unreadable_case(cases, monkeypatch):
    def broken(self, data):
        raise KeyError("mine")

    monkeypatch.setattr(NormalizeIntensityd, "__call__", broken)
    with pytest.raises(RuntimeError) as caught:
        make_dataset(cases, skip_unreadable=True)
    assert not isinstance(caught.value, UnreadableCaseError)
