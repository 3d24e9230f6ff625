# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Batches are a function of seed and iteration, whatever draws them."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, RandFlipd, RandSpatialCropd, ToTensord

from scripts.data.two_stream import IterationSampler, TwoStreamLoader

SIZE, CROP = 6, 3


def make_dataset(num_cases, *keys, kind=Dataset):
    """Volumes in which every voxel tells its case and its place: equal crops are the same crop of the same case."""
    voxels = np.arange(SIZE**3, dtype=np.float32).reshape(1, SIZE, SIZE, SIZE)
    data = [dict.fromkeys(keys, voxels + 1000 * case) for case in range(num_cases)]
    transform = Compose(
        [
            ToTensord(keys),
            RandSpatialCropd(keys, roi_size=(CROP, CROP, CROP), random_size=False),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
        ]
    )
    return kind(data, transform, **({"progress": False, "num_workers": 0} if kind is CacheDataset else {}))


def make_loader(num_unlabeled=7, **options):
    unlabeled = make_dataset(num_unlabeled, "unlabeled")
    return TwoStreamLoader(make_dataset(5, "image", "label"), unlabeled, **{"seed": 3, **options})


def take(loader, count, start=0):
    loader.start_at(start)
    return list(islice(iter(loader), count))


def assert_equal_batches(given, wanted):
    assert len(given) == len(wanted) > 0
    for a, b in zip(given, wanted, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])), key


def cases_of(batch, key):
    return [int(crop.flatten()[0]) // 1000 for crop in batch[key]]


def test_shapes_and_keys():
    for batch in take(make_loader(labeled_batch_size=2, unlabeled_batch_size=3), 3):
        assert {key: tuple(value.shape) for key, value in batch.items()} == {
            "image": (2, 1, CROP, CROP, CROP),
            "label": (2, 1, CROP, CROP, CROP),
            "unlabeled": (3, 1, CROP, CROP, CROP),
        }
        # Image and label are cropped and flipped alike.
        assert torch.equal(batch["image"], batch["label"])


def test_only_the_unlabeled_volume_leaves_the_unlabeled_stream():
    unlabeled = make_dataset(4, "unlabeled", "label", "image")
    loader = TwoStreamLoader(make_dataset(5, "image", "label"), unlabeled, seed=3)
    assert_equal_batches(take(loader, 3), take(make_loader(num_unlabeled=4), 3))


def test_a_batch_depends_on_the_iteration_alone():
    whole = take(make_loader(), 9)
    for start in (1, 4, 8):
        assert_equal_batches(take(make_loader(), 9 - start, start), whole[start:])
    # Also on a loader that was used before.
    loader = make_loader()
    take(loader, 5)
    assert_equal_batches(take(loader, 2, 3), whole[3:5])
    assert_equal_batches(take(loader, 2), whole[:2])


def test_a_batch_does_not_depend_on_random_states_outside():
    whole = take(make_loader(), 3)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert_equal_batches(take(make_loader(), 3), whole)


def test_a_batch_does_not_depend_on_the_cache():
    cached = TwoStreamLoader(
        make_dataset(5, "image", "label", kind=CacheDataset), make_dataset(7, "unlabeled", kind=CacheDataset), seed=3
    )
    assert_equal_batches(take(cached, 4), take(make_loader(), 4))


@pytest.mark.parametrize("start", [0, 3])
def test_workers_do_not_matter(start):
    assert_equal_batches(take(make_loader(num_workers=2), 5, start), take(make_loader(), 5, start))


def test_random_states_outside_are_left_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for num_workers in (0, 1):
        take(make_loader(num_workers=num_workers), 3)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert random.getstate() == states[2]


def test_seeds_differ():
    one, other = (take(make_loader(seed=seed), 4) for seed in (3, 4))
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True))
    assert any(not torch.equal(a["unlabeled"], b["unlabeled"]) for a, b in zip(one, other, strict=True))


def test_seeds_draw_other_crops_of_the_same_case():
    one, other = (
        take(TwoStreamLoader(make_dataset(1, "image", "label"), labeled_batch_size=1, seed=seed), 20) for seed in (3, 4)
    )
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True))


def test_crops_of_one_case_differ_between_epochs():
    batches = take(TwoStreamLoader(make_dataset(1, "image", "label"), labeled_batch_size=1), 20)
    # 4 * 4 * 4 places, mirrored or not.
    assert len({tuple(batch["image"].flatten().tolist()) for batch in batches}) > 10


def test_crops_of_one_batch_differ():
    batch = take(TwoStreamLoader(make_dataset(1, "image", "label"), labeled_batch_size=8), 1)[0]
    assert len({tuple(crop.flatten().tolist()) for crop in batch["image"]}) > 4


def test_labeled_crops_do_not_depend_on_unlabeled_ones():
    # The supervised control sees the same labeled crops in the same order as every other method.
    wanted = [{key: batch[key] for key in ("image", "label")} for batch in take(make_loader(), 6)]
    for options in ({"num_unlabeled": 2}, {"unlabeled_batch_size": 4}, {"unlabeled_batch_size": 0}):
        given = [{key: batch[key] for key in ("image", "label")} for batch in take(make_loader(**options), 6)]
        assert_equal_batches(given, wanted)


@pytest.mark.parametrize("options", [{"unlabeled_batch_size": 0}, {"num_unlabeled": 0}])
def test_without_unlabeled_cases_there_is_no_such_key(options, caplog):
    for batch in take(make_loader(**options), 2):
        assert set(batch) == {"image", "label"}
    # Nobody asked for what is missing where the size of its batches is 0.
    assert ("there is no unlabeled case" in caplog.text) == ("num_unlabeled" in options)


def test_unlabeled_may_be_missing():
    assert set(take(TwoStreamLoader(make_dataset(5, "image", "label")), 1)[0]) == {"image", "label"}


@pytest.mark.parametrize("num_labeled", [0, 5])
def test_without_labels_the_unlabeled_crops_are_the_same(num_labeled):
    loader = TwoStreamLoader(
        make_dataset(num_labeled, "image", "label"), make_dataset(7, "unlabeled"), labeled_batch_size=0, seed=3
    )
    assert_equal_batches(take(loader, 4), [{"unlabeled": batch["unlabeled"]} for batch in take(make_loader(), 4)])


def test_each_epoch_is_a_permutation():
    batches = take(make_loader(labeled_batch_size=2, unlabeled_batch_size=3), 14)
    labeled = [case for batch in batches for case in cases_of(batch, "image")]
    unlabeled = [case for batch in batches for case in cases_of(batch, "unlabeled")]
    # 28 slots of five cases and 42 of seven: an epoch may end inside a batch.
    for cases, size in ((labeled, 5), (unlabeled, 7)):
        epochs = [cases[first : first + size] for first in range(0, len(cases) - size + 1, size)]
        assert len(epochs) > 4
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert any(epoch != epochs[0] for epoch in epochs)


# --- the sampler ------------------------------------------------------------------------------------------------------


def make_sampler(num_cases=5, batch_size=2, seed=0, stream=0, **options):
    return IterationSampler(num_cases, batch_size=batch_size, seed=seed, stream=stream, **options)


def test_sampler_is_a_function_of_the_iteration():
    sampler = make_sampler()
    whole = list(islice(iter(sampler), 8))
    assert whole == [sampler.batch(iteration) for iteration in range(8)]
    assert list(islice(iter(make_sampler(start_iteration=5)), 3)) == whole[5:]
    assert all(len(batch) == 2 for batch in whole)


def test_sampler_gives_every_slot_a_seed_of_its_own():
    slots = [slot for batch in islice(iter(make_sampler()), 500) for slot in batch]
    assert len({seed for _, seed in slots}) == len(slots)
    assert all(0 <= seed < 2**32 for _, seed in slots)


def test_streams_are_independent():
    labeled, unlabeled = (list(islice(iter(make_sampler(20, stream=stream)), 10)) for stream in (0, 1))
    assert [[case for case, _ in batch] for batch in labeled] != [[case for case, _ in batch] for batch in unlabeled]
    assert not {seed for batch in labeled for _, seed in batch} & {seed for batch in unlabeled for _, seed in batch}


def test_a_batch_may_be_larger_than_the_data():
    cases = [case for case, _ in make_sampler(2, batch_size=5).batch(0)]
    assert sorted(cases[:2]) == sorted(cases[2:4]) == [0, 1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batch_of_one(world_size):
    single = make_sampler(batch_size=2 * world_size)
    ranks = [make_sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    for iteration in range(7):
        assert [slot for rank in ranks for slot in rank.batch(iteration)] == single.batch(iteration)


def test_loaders_of_two_processes_share_the_batch_of_one(monkeypatch):
    wanted = take(make_loader(labeled_batch_size=2, unlabeled_batch_size=4), 3)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        parts.append(take(make_loader(labeled_batch_size=1, unlabeled_batch_size=2), 3))
    given = [
        {key: torch.cat([torch.as_tensor(part[key]) for part in pair]) for key in pair[0]}
        for pair in zip(*parts, strict=True)
    ]
    assert_equal_batches(given, wanted)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_labeled", "options", "message"),
    [
        (0, {}, "the list labeled of the split must hold at least one case, and it is empty"),
        (0, {}, "labeled_batch_size 0 trains without"),
        (1, {"labeled_batch_size": -1}, "labeled_batch_size must be at least 0, got -1"),
        (1, {"labeled_batch_size": 0}, "labeled and unlabeled are both switched off or empty"),
        (1, {"unlabeled_batch_size": -1}, "unlabeled_batch_size must be at least 0, got -1"),
    ],
)
def test_arguments_are_refused(num_labeled, options, message):
    with pytest.raises(ValueError, match=message):
        TwoStreamLoader(make_dataset(num_labeled, "image", "label"), **options)
