# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A folder of prepared cases, so that a later run does not prepare them again."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor

from ..errors import BundleError
from ..files import check_writable, replacing
from ..weights import DamagedFileError, read_tensors

#: To be raised when a transform of this bundle changes what it makes of a case.
_FORMAT = 1
_BYTES_PER_GIGABYTE = 10**9
_SECONDS_OF_A_DAY = 24 * 60 * 60
#: Temporary file of a case: its key between a dot and what makes the name unique.
_LEFTOVER = re.compile(r"\.[0-9a-f]{64}\.\w+\.pt")
_logger = logging.getLogger(__name__)


class DiskCache:
    """Keeps what the deterministic transforms make of a case in a folder that runs may share.

    A case is found again by its entry in the list of cases, by path, size and modification time of its files, by the
    transforms with all their options, and by the versions of MONAI, torch and NumPy: when one of these changes, the
    case is prepared anew. The code of a transform is not among them. Files are written in one step, read without
    running code, and checked; a damaged one is prepared anew. No case is ever deleted: a full cache takes no further
    case, since a run that goes through all its cases again and again would only read each of them after it was thrown
    out.

    Args:
        folder: where the files are; it is made when it is missing, and may be deleted whenever no run uses it.
        gigabytes: how large the folder may become, in units of 10^9 bytes. Processes that write at one time may each
            go beyond it by a hundredth.

    Raises:
        BundleError: when the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, gigabytes: float) -> None:
        self.folder = Path(folder).expanduser()
        self.gigabytes = gigabytes
        self._closed = False
        self._allowance = 0
        try:
            check_writable("cache_dir", self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        # Of a full disk, a link to nothing, or a folder of somebody else above it.
        except OSError as error:
            raise BundleError(f"cache_dir {self.folder} cannot be made: {error.strerror}.") from None
        self._remove_leftovers()

    def load(self, key: str) -> Any:
        """Read a case.

        Args:
            key: what :func:`case_key` gives for it.

        Returns:
            what was kept, or None where there is nothing that can be read.
        """
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            content = read_tensors(path)
            return _unpack(json.loads(content["description"]), content["tensors"])
        # A file in a folder that is shared may be somebody else's, or its server be away.
        except (DamagedFileError, OSError) as error:
            _logger.warning("cache_dir: %s; the case is prepared anew.", error)
            return None

    def save(self, key: str, item: Any) -> None:
        """Keep a case, unless the folder is full or cannot be written: that is said once, and is no error.

        Args:
            key: what :func:`case_key` gives for it.
            item: tensors, arrays, numbers and texts in dictionaries and lists.

        Raises:
            BundleError: when the item holds anything else.
        """
        if self._closed:
            return
        tensors: list[torch.Tensor] = []
        try:
            description = json.dumps(_pack(item, tensors))
        except TypeError as error:
            raise BundleError(f"cache_dir cannot keep what the transforms make of a case: {error}.") from error
        buffer = io.BytesIO()
        torch.save({"description": description, "tensors": tensors}, buffer)
        try:
            if not self._has_room(buffer.tell()):
                self._close(f"is full (cache_gigabytes {self.gigabytes:g})")
                return
            with replacing(self._path(key)) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OSError as error:
            self._close(f"cannot be written ({error.strerror})")

    def _has_room(self, size: int) -> bool:
        # Other processes write too. To count a folder of many thousand cases for each new one would take longer than
        # to prepare it, so each count allows for some of them.
        if size > self._allowance:
            bound = int(self.gigabytes * _BYTES_PER_GIGABYTE)
            self._allowance = min(bound - self._count(), max(size, bound // 100))
        if size > self._allowance:
            return False
        self._allowance -= size
        return True

    def _count(self) -> int:
        total = 0
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # A temporary file was renamed meanwhile.
                total += entry.stat().st_size
        return total

    def _remove_leftovers(self) -> None:
        """Take away what runs that were killed while they wrote have left, so that it does not fill the folder."""
        for path in self.folder.glob(".*.pt"):
            with suppress(OSError):
                if _LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > _SECONDS_OF_A_DAY:
                    path.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.pt"

    def _close(self, reason: str) -> None:
        if self._closed:  # by another thread, meanwhile
            return
        self._closed = True
        _logger.warning("cache_dir %s %s: further cases are prepared anew each time.", self.folder, reason)


class _OptionsPickler(pickle.Pickler):
    """Writes transforms to be hashed, never to be read: all their options, but no state of a random generator."""

    def persistent_id(self, obj: Any) -> str | None:
        return "random state" if isinstance(obj, np.random.RandomState) else None


def transforms_key(transforms: Sequence[Any]) -> str:
    """Hash transforms with all their options.

    Args:
        transforms: deterministic transforms.

    Returns:
        64 hexadecimal digits, the same in every process.

    Raises:
        BundleError: when a transform cannot be told from another, as one with a function that has no name.
    """
    buffer = io.BytesIO()
    try:
        _OptionsPickler(buffer, protocol=5).dump(list(transforms))
    # Each class that cannot be pickled says so in its own way.
    except Exception as error:
        raise BundleError(f"cache_dir needs transforms that can be told apart by their options: {error}.") from error
    versions = (_FORMAT, monai.__version__, torch.__version__, np.__version__)
    return hashlib.sha256(repr(versions).encode() + buffer.getvalue()).hexdigest()


def case_key(entry: Mapping[str, Any], transforms: str) -> str:
    """Name a case as its files are now, prepared by certain transforms.

    Args:
        entry: the case as the list of cases has it, with paths, and other values such as its box.
        transforms: what :func:`transforms_key` gives for the transforms.

    Returns:
        64 hexadecimal digits.
    """
    # The name of a case is never a path, even where a file or a folder is called so.
    identified = {key: value if key == "case" else _identify(value) for key, value in entry.items()}
    content = json.dumps([transforms, identified], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _identify(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_identify(item) for item in value]
    if not isinstance(value, (str, os.PathLike)) or not os.path.exists(value):
        return value
    if os.path.isdir(value):
        return [str(value), [_identify(path) for path in sorted(Path(value).iterdir())]]
    status = os.stat(value)
    # The path as it was given becomes part of the metadata of the volume.
    return [str(value), os.path.abspath(value), status.st_size, status.st_mtime_ns]


# The metadata of a volume are some hundred small arrays and texts. torch reads each of them as slowly as a volume, and
# arrays only by permission: as one text of JSON they cost nothing.


def _pack(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Describe an item in what JSON knows, with its tensors aside."""
    if isinstance(value, MetaTensor):
        return {"volume": [_pack(part, tensors) for part in (value.as_tensor(), value.meta, value.applied_operations)]}
    if isinstance(value, torch.Tensor):
        # A part of a larger tensor would be written with all the rest of it.
        tensors.append(value.clone(memory_format=torch.contiguous_format))
        return {"tensor": len(tensors) - 1}
    if isinstance(value, (np.ndarray, np.generic)):
        return {"array": [value.dtype.str, value.tolist()]}
    if isinstance(value, Mapping):
        return {"mapping": {key: _pack(item, tensors) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """Undo :func:`_pack`; tuples have become lists and numbers of NumPy arrays without axes."""
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "volume":
        tensor, meta, operations = _unpack(content, tensors)
        return MetaTensor(tensor, meta=meta, applied_operations=operations)
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return np.array(content[1], dtype=content[0])
    return {key: _unpack(item, tensors) for key, item in content.items()}
