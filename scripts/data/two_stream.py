# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Batches of labeled and of unlabeled crops as a pure function of seed and iteration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, list_data_collate
from torch.utils.data import DataLoader, Sampler, get_worker_info

from ..errors import BundleError, innermost, is_out_of_memory
from ..parallel import num_processes, process_rank
from .cached_dataset import UnreadableCaseError

_LABELED_STREAM, _UNLABELED_STREAM = 0, 1
_logger = logging.getLogger(__name__)


class IterationSampler(Sampler):
    """Endless batches of (case index, random seed), each a function of seed, stream and iteration alone.

    The cases run through one permutation after the other; every slot of every batch has a random seed of its own for
    its crop and augmentation. Nothing has to be remembered to resume: iteration 4000 draws the same batch whether or
    not the 3999 before it were drawn in this process, with any number of workers.

    Args:
        num_cases: number of cases of the stream.
        batch_size: slots of one batch of one process.
        seed: seed of the run.
        stream: number of the stream, so that two streams of one run draw differently.
        start_iteration: first iteration to draw, from 0.
        rank: number of this process.
        world_size: number of processes; together they draw one batch of ``world_size * batch_size`` slots.
    """

    def __init__(
        self,
        num_cases: int,
        *,
        batch_size: int,
        seed: int,
        stream: int,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_cases = num_cases
        self.batch_size = batch_size
        self.seed = seed
        self.stream = stream
        self.start_iteration = start_iteration
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        iteration = self.start_iteration
        while True:
            yield self.batch(iteration)
            iteration += 1

    def batch(self, iteration: int) -> list[tuple[int, int]]:
        """Draw the batch of one iteration.

        Args:
            iteration: number of the iteration, from 0.

        Returns:
            ``batch_size`` pairs of case index and random seed.
        """
        first = (iteration * self.world_size + self.rank) * self.batch_size
        return [self._slot(position) for position in range(first, first + self.batch_size)]

    def _slot(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.num_cases)
        permutation = _permutation(self.num_cases, (self.seed, self.stream, epoch))
        # A fourth number keeps the seeds of the slots apart from those of the permutations.
        seed = np.random.SeedSequence((self.seed, self.stream, position, 1)).generate_state(1)[0]
        return int(permutation[place]), int(seed)


# All slots of an epoch lie in one permutation: that of many thousand cases is not drawn anew for each.
@lru_cache(maxsize=4)
def _permutation(num_cases: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num_cases)


class _SeededDataset(torch.utils.data.Dataset):
    """A MONAI dataset whose random transforms are seeded anew for every sample.

    A sample comes with what was said of the cases that could not be read in its place. Where the dataset holds such,
    the first readable case of a permutation takes the slot, which the seed of the slot alone decides.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[str]]:
        try:
            return self._draw(*key)
        except Exception as error:
            # What a worker process raises arrives as the text of a traceback: a refusal is handed over as a sample.
            refusal = innermost(error)
            if is_out_of_memory(error):
                # A worker process hands over the text and the class alone.
                raise MemoryError(str(refusal)) from error
            if not get_worker_info() or not isinstance(refusal, BundleError):
                raise
            return BundleError(str(refusal)), []

    def _draw(self, index: int, seed: int) -> tuple[Any, list[str]]:
        reasons: list[str] = []
        for case in self._candidates(index, seed):
            self.dataset.transform.set_random_state(seed=seed)
            try:
                return self.dataset[case], reasons
            except UnreadableCaseError as error:
                reasons.append(str(error))
        raise BundleError(f"none of the {len(self.dataset)} cases of a list can be read; the first: {reasons[0]}")

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        yield index
        yield from np.random.default_rng(seed).permutation(len(self.dataset)).tolist()


def _collate(samples: Sequence[tuple[Any, list[str]]]) -> tuple[Any, list[str]]:
    for sample, _ in samples:
        if isinstance(sample, BundleError):
            return sample, []
    return list_data_collate([sample for sample, _ in samples]), [text for _, reasons in samples for text in reasons]


class TwoStreamLoader:
    """Endless loader of batches with a labeled and an unlabeled part.

    A batch is ``{"image": (B_l, C, X, Y, Z), "label": (B_l, 1, X, Y, Z), "unlabeled": (B_u, C, X, Y, Z)}``. Without
    unlabeled cases the last key is missing and a method trains on the labeled part alone; where nobody has drawn a
    label, as in one hospital of several that train together, the first two are missing.

    Args:
        labeled: dataset whose items hold "image" and "label".
        unlabeled: dataset whose items hold "unlabeled"; None or an empty one switches the stream off.
        labeled_batch_size: labeled crops of a batch and process; 0 switches the stream off.
        unlabeled_batch_size: unlabeled crops of a batch and process; 0 switches the stream off.
        seed: seed of the order, of the crops and of the augmentation.
        num_workers: processes that prepare batches for each stream; 0 prepares them in this process.
        unreadable_file: text file that lists the cases which were passed over since they could not be read, one a
            line, see :class:`scripts.data.cached_dataset.CachedDataset` and :meth:`write_unreadable`; each is logged
            once too.

    Raises:
        ValueError: when there is no labeled case although ``labeled_batch_size`` asks for some, no case at all, or a
            batch size is out of range.
    """

    def __init__(
        self,
        labeled: CacheDataset | Dataset,
        unlabeled: CacheDataset | Dataset | None = None,
        *,
        labeled_batch_size: int = 2,
        unlabeled_batch_size: int = 2,
        seed: int = 0,
        num_workers: int = 0,
        unreadable_file: str | Path | None = None,
    ) -> None:
        if labeled_batch_size < 0:
            raise ValueError(f"labeled_batch_size must be at least 0, got {labeled_batch_size}.")
        if len(labeled) == 0 and labeled_batch_size:
            raise ValueError(
                "the list labeled of the split must hold at least one case, and it is empty; labeled_batch_size 0 "
                "trains without."
            )
        if unlabeled_batch_size < 0:
            raise ValueError(f"unlabeled_batch_size must be at least 0, got {unlabeled_batch_size}.")
        self.labeled = labeled if labeled_batch_size else None
        self.unlabeled = unlabeled if unlabeled is not None and len(unlabeled) > 0 and unlabeled_batch_size else None
        if self.labeled is None and self.unlabeled is None:
            raise ValueError("labeled and unlabeled are both switched off or empty: there is nothing to train on.")
        if unlabeled_batch_size and self.unlabeled is None:
            _logger.warning(
                "unlabeled_batch_size is %d, but there is no unlabeled case: the method trains on the labeled ones "
                "alone, without the terms that need others.",
                unlabeled_batch_size,
            )
        self.labeled_batch_size = labeled_batch_size
        self.unlabeled_batch_size = unlabeled_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.unreadable_file = None if unreadable_file is None else Path(unreadable_file)
        self.start_iteration = 0
        self._reported: set[str] = set()
        self._unwritten: list[str] = []

    def start_at(self, iteration: int) -> None:
        """Choose the iteration with which the next pass over this loader begins.

        Args:
            iteration: number of iterations that are done already.
        """
        self.start_iteration = iteration

    def __iter__(self) -> Iterator[dict[str, Any]]:
        streams: list[Iterable[tuple[dict[str, Any], list[str]]]] = []
        if self.labeled is not None:
            streams.append(self._batches(self.labeled, batch_size=self.labeled_batch_size, stream=_LABELED_STREAM))
        if self.unlabeled is not None:
            unlabeled = self._batches(self.unlabeled, batch_size=self.unlabeled_batch_size, stream=_UNLABELED_STREAM)
            streams.append(({"unlabeled": batch["unlabeled"]}, reasons) for batch, reasons in unlabeled)
        for parts in zip(*streams):
            for _, reasons in parts:
                self._report(reasons)
            yield {key: value for batch, _ in parts for key, value in batch.items()}

    def _report(self, reasons: Iterable[str]) -> None:
        for text in reasons:
            # File names need not be of UTF-8, which logs and lists are.
            reason = text.encode(errors="backslashreplace").decode()
            if reason in self._reported:
                continue
            self._reported.add(reason)
            _logger.warning("a case is passed over: %s", reason)
            self._unwritten.append(reason)

    def write_unreadable(self) -> None:
        """Write the cases that were passed over since the last call into ``unreadable_file``.

        Not done while batches are drawn: before its first iteration has ended a run may not write into its folder.
        """
        reasons, self._unwritten = self._unwritten, []
        if self.unreadable_file is None or not reasons:
            return
        # A resumed run has written them already, and another process may have.
        known = self.unreadable_file.read_text(encoding="utf-8").splitlines() if self.unreadable_file.exists() else []
        self.unreadable_file.parent.mkdir(parents=True, exist_ok=True)
        with self.unreadable_file.open("a", encoding="utf-8") as file:
            file.writelines(f"{reason}\n" for reason in reasons if reason not in known)

    def _batches(self, dataset: Dataset, *, batch_size: int, stream: int) -> Iterator[tuple[dict[str, Any], list[str]]]:
        sampler = IterationSampler(
            len(dataset),
            batch_size=batch_size,
            seed=self.seed,
            stream=stream,
            start_iteration=self.start_iteration,
            rank=process_rank(),
            world_size=num_processes(),
        )
        loader = DataLoader(
            _SeededDataset(dataset),
            batch_sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_collate,
            persistent_workers=self.num_workers > 0,
            # A generator of its own: the loader would draw from torch's global one, and a resumed run would differ.
            generator=torch.Generator(),
        )
        for batch, reasons in loader:
            if isinstance(batch, BundleError):
                raise batch
            yield batch, reasons
