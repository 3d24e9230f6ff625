# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Files are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from scripts.console import describe_mistake
from scripts.files import replacing, write_json


def test_a_file_is_written_with_its_folder(tmp_path):
    target = tmp_path / "run" / "pictures" / "a.png"
    with replacing(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_the_old_file_stays_until_the_end(tmp_path):
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")
    # Whoever opened the old file goes on reading it.
    with target.open("rb") as reader:
        with replacing(target) as temporary:
            temporary.write_bytes(b"new")
            assert target.read_bytes() == b"old"
        assert target.read_bytes() == b"new"
        assert reader.read() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path, error):
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")

    def fail():
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_of_a_first_write_leaves_nothing(tmp_path):
    def fail():
        with replacing(tmp_path / "model.pt") as temporary:
            temporary.write_bytes(b"half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_replaces_the_temporary_file(tmp_path):
    # Some writers make their file anew instead of writing into the one that is there.
    target = tmp_path / "a.csv"
    with replacing(target) as temporary:
        temporary.unlink()
        temporary.write_text("new")
    assert target.read_text() == "new"


@pytest.fixture
def small_files_only():
    """For one test, the system refuses to write more than 10 kB into a file, as it does where a disk is full."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_by_torch(path, content):
    with path.open("wb") as stream:
        torch.save(content, stream)


@pytest.mark.parametrize(
    ("write", "content"), [(Path.write_bytes, bytes(20_000)), (write_by_torch, torch.zeros(20_000))]
)
def test_a_file_that_cannot_be_written_is_named_in_one_line(tmp_path, small_files_only, write, content):
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")

    def fail():
        with replacing(target) as temporary:
            write(temporary, content)

    with pytest.raises(OSError, match="File too large") as caught:
        fail()
    assert describe_mistake(caught.value) == f"{target}: File too large"
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_in_which_nothing_can_be_written_costs_one_line_with_the_file(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".model.0y_z33uv.pt"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError) as caught, replacing(tmp_path / "model.pt"):
        pass
    assert describe_mistake(caught.value) == f"{tmp_path / 'model.pt'}: Permission denied"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_the_usual_ones(tmp_path):
    umask = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
        # The process keeps its mask.
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(umask)


def test_a_path_may_be_a_string(tmp_path):
    with replacing(str(tmp_path / "split.json")) as temporary:
        temporary.write_text("{}")
    assert (tmp_path / "split.json").read_text() == "{}"


def test_two_writers_do_not_meet(tmp_path):
    target = tmp_path / "a.txt"
    with replacing(target) as first, replacing(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    # The outer block ends last.
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "folder" / "file.json"
    assert write_json(path, {"a": "ü"}) == path
    assert path.read_bytes() == b'{\n    "a": "\\u00fc"\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": "ü"}
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]
    write_json(path, {"a": tmp_path}, default=str)
    assert json.loads(path.read_text()) == {"a": str(tmp_path)}
