# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Folders in which one process at a time may work, as far as the file system can tell."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from .errors import BundleError

try:
    import fcntl
except ImportError:  # Windows, whose locks are of another kind
    fcntl = None  # type: ignore[assignment]

_logger = logging.getLogger(__name__)


class FolderInUseError(BundleError):
    """Another process is at work in a folder."""


def lock_folder(path: Path, *, wait_seconds: float = 0.0) -> BaseFileLock | None:
    """Keep other processes out of a folder, until the lock is released or this process ends.

    Args:
        path: the file to lock, in the folder; made when it is missing, as the folder is.
        wait_seconds: how long to wait for another process.

    Returns:
        the lock; None, with a warning, where the file system has no locks.

    Raises:
        FolderInUseError: when another process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=wait_seconds)
    except (Timeout, NotImplementedError) as error:
        # The same in both cases: a file system without locks, too, ends in a time-out.
        if _is_locked(path):
            raise FolderInUseError(f"another process is at work on {path.parent}.") from error
        _logger.warning("%s cannot be locked: see to it that no other process works in it.", path.parent)
        return None
    return lock


@contextmanager
def locked_folder(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keep other processes out of a folder for the time of a block.

    Args:
        path: see :func:`lock_folder`.
        wait_seconds: see there.

    Yields:
        nothing.

    Raises:
        FolderInUseError: see there.
    """
    lock = lock_folder(path, wait_seconds=wait_seconds)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _is_locked(path: Path) -> bool:
    """Tell a file that another process has locked from one in a file system without locks."""
    if fcntl is None:
        return True
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
