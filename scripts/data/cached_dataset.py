# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Cases with their deterministic transforms done once: kept in bounded memory and, by option, on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Compose
from monai.transforms.traits import RandomizableTrait
from monai.transforms.transform import Transform
from monai.transforms.utils import reset_ops_id
from monai.utils.misc import str2bool
from torch.utils.data import get_worker_info

from ..errors import BundleError
from .disk_cache import DiskCache, case_key, transforms_key


class UnreadableCaseError(BundleError):
    """A case that cannot be read, or breaks the rules of what can be trained on, in a list that may hold such."""


class CachedDataset(CacheDataset):
    """MONAI's ``CacheDataset`` for lists of any length, with a cache on disk.

    A list of up to ``cache_num`` cases is prepared at once, so that a broken file is known before the first step. Of a
    longer one the first ``cache_num`` cases stay in memory once they were drawn, and the others are prepared, or read
    from the disk, whenever they are drawn: neither start nor memory grows with the list.

    Args:
        data: the cases as dictionaries with paths.
        transform: what is done with a case; the results before the first random transform are kept.
        cache_num: how many cases stay in memory at most; workers of a loader share them out.
        cache_rate: share of the cases that stay in memory, within ``cache_num``.
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
        disk_cache: DiskCache | None = None,
        skip_unreadable: bool | str = False,
        **kwargs: Any,
    ) -> None:
        transform = transform if isinstance(transform, Compose) else Compose(transform)
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

    def _load_cache_item(self, idx: int) -> Any:
        key = case_key(self.data[idx], self._transforms_key) if self.disk_cache else ""
        item = self.disk_cache.load(key) if self.disk_cache else None
        if item is not None:
            return item
        try:
            item = super()._load_cache_item(idx)
        except Exception as error:
            reason = refusal_behind(error)
            if reason is None or not self.skip_unreadable:
                raise
            return UnreadableCaseError(reason)
        if self.disk_cache:
            # The inverse of a transform looks for its own number, which it has in this process alone.
            item = reset_ops_id(item)
            self.disk_cache.save(key, item)
        return item

    def _transform(self, index: int) -> Any:
        index %= len(self)
        item = self._cache[index] if index < self.cache_num else None
        is_kept = item is not None or index < self._num_kept()
        if item is None:
            item = self._load_cache_item(index)
            if is_kept:
                self._cache[index] = item
        if isinstance(item, UnreadableCaseError):
            raise UnreadableCaseError(str(item))
        if self._first_random is None:
            return item
        return self.transform(deepcopy(item) if is_kept else item, start=self._first_random)

    def _num_kept(self) -> int:
        worker = get_worker_info()
        return self.cache_num // worker.num_workers if worker else self.cache_num


def refusal_behind(error: BaseException | None) -> str | None:
    """Find what the bundle says of a case behind the exceptions that MONAI wraps around it.

    Args:
        error: what was raised when the case was read.

    Returns:
        the text of the ``BundleError``, None where there is none.
    """
    while error is not None and not isinstance(error, BundleError):
        error = error.__cause__
    return None if error is None else str(error)
