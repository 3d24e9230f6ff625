# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Cases with their deterministic transforms done once: kept in bounded memory and, by option, on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from multiprocessing.pool import ThreadPool
from typing import Any

import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from monai.transforms.traits import RandomizableTrait
from monai.transforms.transform import Transform
from monai.transforms.utils import reset_ops_id
from monai.utils.misc import str2bool
from torch.utils.data import get_worker_info
from tqdm import tqdm

from ..errors import BundleError, innermost
from .disk_cache import DiskCache, case_key, transforms_key

_logger = logging.getLogger(__name__)


class UnreadableCaseError(BundleError):
    """A case that cannot be read, or breaks the rules of what can be trained on, in a list that may hold such."""


class CachedDataset(CacheDataset):
    """MONAI's ``CacheDataset`` for lists of any length, with a cache on disk.

    A list of up to ``cache_num`` cases is prepared at once, so that a broken file is known before the first step. Of a
    longer one the first ``cache_num`` cases stay in memory once they were drawn, and the others are prepared, or read
    from the disk, whenever they are drawn: neither start nor memory grows with the list. Nor does memory grow with the
    volumes: from the first case on that would pass ``cache_memory_gigabytes``, no further one stays, which is logged.

    Args:
        data: the cases as dictionaries with paths.
        transform: what is done with a case; the results before the first random transform are kept.
        cache_num: how many cases stay in memory at most; workers of a loader share them out.
        cache_rate: share of the cases that stay in memory, within ``cache_num``.
        cache_memory_gigabytes: how much memory, in units of 10^9 bytes, the volumes of the cases that stay take at
            most; workers share it out as well.
        disk_cache: where prepared cases are kept on disk, None for nowhere.
        skip_unreadable: raise ``UnreadableCaseError`` when a case is drawn that cannot be read or breaks a rule of
            :class:`scripts.data.loading.LoadCased`, in place of refusing it at once; a text like "true" is understood.
        **kwargs: see ``monai.data.CacheDataset``.

    Raises:
        BundleError: when a case of those that are prepared at once cannot be used, or the transforms cannot be told
            apart on disk.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose | Sequence[Callable[..., Any]],
        *,
        cache_num: int = 256,
        cache_rate: float = 1.0,
        cache_memory_gigabytes: float = 8,
        disk_cache: DiskCache | None = None,
        skip_unreadable: bool | str = False,
        **kwargs: Any,
    ) -> None:
        transform = transform if isinstance(transform, Compose) else Compose(transform)
        self.cache_memory_gigabytes = cache_memory_gigabytes
        self.disk_cache = disk_cache
        self.skip_unreadable = str2bool(skip_unreadable)
        self._first_random = transform.get_index_of_first(
            lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        )
        self._transforms_key = transforms_key(transform.transforms[: self._first_random]) if disk_cache else ""
        super().__init__(
            data,
            transform,
            cache_num=cache_num,
            cache_rate=cache_rate,
            runtime_cache=int(len(data) * cache_rate) > cache_num,
            **kwargs,
        )

    def set_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Take another list of cases; see ``monai.data.CacheDataset``."""
        self._kept_bytes: list[int] = []
        self._is_full = False
        super().set_data(data)

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        # MONAI's own would hold all the cases before one of them can be let go.
        indices = range(self.cache_num) if indices is None else indices
        self._cache = [None] * len(indices)
        with ThreadPool(self.num_workers) as pool:
            items = pool.imap(self._load_cache_item, indices)
            show = self.progress and len(indices) > 0
            for index, item in enumerate(tqdm(items, "Loading dataset", total=len(indices), disable=not show)):
                self._keep(index, item)
        return self._cache

    def _load_cache_item(self, idx: int) -> Any:
        key = case_key(self.data[idx], self._transforms_key) if self.disk_cache else ""
        item = self.disk_cache.load(key) if self.disk_cache else None
        if item is not None:
            return item
        try:
            item = super()._load_cache_item(idx)
        except Exception as error:
            refusal = innermost(error)
            if not self.skip_unreadable or not isinstance(refusal, BundleError):
                raise
            return UnreadableCaseError(str(refusal))
        if self.disk_cache:
            # The inverse of a transform looks for its own number, which it has in this process alone.
            item = reset_ops_id(item)
            self.disk_cache.save(key, item)
        return item

    def _transform(self, index: int) -> Any:
        index %= len(self)
        item = self._cache[index] if index < self.cache_num else None
        is_kept = item is not None
        if item is None:
            item = self._load_cache_item(index)
            is_kept = index < self.cache_num // _num_sharing() and self._keep(index, item)
        if isinstance(item, UnreadableCaseError):
            raise UnreadableCaseError(str(item))
        if self._first_random is None:
            return item
        return self.transform(deepcopy(item) if is_kept else item, start=self._first_random)

    def _keep(self, index: int, item: Any) -> bool:
        if self._is_full:
            return False
        num_bytes = _num_bytes(item)
        if sum(self._kept_bytes) + num_bytes > self.cache_memory_gigabytes * 1e9 / _num_sharing():
            self._is_full = True
            _logger.warning(
                "cache_memory_gigabytes %g: %d of %d cases stay in memory, the others are prepared at each use.",
                self.cache_memory_gigabytes,
                len(self._kept_bytes),
                len(self.data),
            )
            return False
        self._kept_bytes.append(num_bytes)
        self._cache[index] = item
        return True


def _num_sharing() -> int:
    """Count the processes that each keep cases of their own."""
    worker = get_worker_info()
    return worker.num_workers if worker else 1


def _num_bytes(item: Any) -> int:
    volumes = item.values() if isinstance(item, Mapping) else ()
    # A crop that is no copy keeps the memory of the whole volume.
    return sum(volume.untyped_storage().nbytes() for volume in volumes if isinstance(volume, torch.Tensor))
