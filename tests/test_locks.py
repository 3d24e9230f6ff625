# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""One process at a time works in a folder, where the file system can tell."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import pytest
from filelock import FileLock

from scripts.locks import FolderInUseError, lock_folder, locked_folder


def test_a_folder_is_locked_for_the_time_of_a_block(tmp_path):
    file = tmp_path / "cell" / ".lock"
    with (
        locked_folder(file),
        pytest.raises(FolderInUseError, match=rf"^another process is at work on {file.parent}\.$"),
    ):
        lock_folder(file)
    with FileLock(file), pytest.raises(FolderInUseError), locked_folder(file):
        pass
    lock = lock_folder(file)
    assert lock is not None
    lock.release()


def test_another_process_is_waited_for(tmp_path):
    file = tmp_path / ".lock"
    lock = lock_folder(file)
    release = threading.Timer(0.3, lock.release)
    release.start()
    with locked_folder(file, wait_seconds=10):
        assert not lock.is_locked
    release.join()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(code, tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    done = []
    with locked_folder(tmp_path / "cell" / ".lock"):
        done.append(True)
    assert done
    assert f"{tmp_path / 'cell'} cannot be locked: see to it that no other process works in it." in caplog.text
