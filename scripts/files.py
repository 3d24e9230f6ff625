# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, written under a temporary name, then renamed; paths that keep their meaning."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import BundleError

#: The folder of the bundle, and that of its configurations.
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
#: What a training writes down of itself in its folder: facts first, its configuration, and how to segment with it.
FACTS_FILE, CONFIGURATION_FILE, INFERENCE_FILE = "run.json", "run_config.json", "inference.json"
#: The packages whose versions a run writes down.
_KNOWN_PACKAGES = {__name__.partition(".")[0], "monai", "torch"} | sys.stdlib_module_names
#: The mask of a process is read by changing it, which two threads must not do at once.
_UMASK_LOCK = threading.Lock()


def is_in_run(folder: Path) -> bool:
    """Tell whether a folder is that of a training, or lies in one.

    Args:
        folder: any path; a link lies where it stands, not where it leads.

    Returns:
        whether a run has written down its facts there.
    """
    return any((parent / FACTS_FILE).is_file() for parent in (folder, folder.absolute().parent))


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that a reader, or a process killed meanwhile, never leaves or sees half of it.

    Args:
        path: the file to write; its folder is made when it is missing.

    Yields:
        A temporary path in the same folder with the same suffix. It takes the place of ``path`` in one step when the
        block ends, and is deleted when the block fails.

    Raises:
        OSError: when the file cannot be written, as on a full disk or without permission; names the file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner may read; a replaced file has the usual permissions.
        with _UMASK_LOCK:
            umask = os.umask(0)
            os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        # torch reports what the system said in words of its own.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError) and cause.errno is not None and cause.filename is None:
            raise OSError(cause.errno, cause.strerror, str(target)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file in one step.

    Args:
        path: the file; its folder is made when it is missing.
        text: its content.

    Returns:
        the path.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: str | os.PathLike[str], content: Any, *, default: Callable[[Any], Any] | None = None) -> Path:
    """Write a JSON file in one step.

    Args:
        path: the file; its folder is made when it is missing.
        content: what JSON can hold.
        default: makes what JSON can hold of anything else.

    Returns:
        the path.

    Raises:
        TypeError: when the content holds something else and there is no default; an older file stays.
    """
    return write_text(path, json.dumps(content, indent=4, default=default) + "\n")


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds an object, as those of runs, grids and studies do.

    Args:
        path: the file.

    Returns:
        the object.

    Raises:
        BundleError: when it is no JSON or holds something else; names the file.
        OSError: when there is no such file or it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    # Of JSON and of UTF-8.
    except ValueError as error:
        raise BundleError(f"{path} is damaged: it cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is damaged: it must hold a JSON object, got a {type(content).__name__}.")
    return content


def check_home(name: str, value: str) -> None:
    """Refuse a path to a home that no shell has replaced.

    Args:
        name: name of the argument.
        value: a path.

    Raises:
        BundleError: when it begins with "~".
    """
    if value.startswith("~"):
        raise BundleError(f"{name} must be a path without ~, got {value}: write {Path.home()} out.")


def check_path(name: str, value: str) -> None:
    """Refuse a path that MONAI would read as another one.

    Args:
        name: name of the argument.
        value: a path, or an expression that begins with "$".

    Raises:
        BundleError: when it holds "#", by which configurations separate keys, or see :func:`check_home`.
    """
    check_home(name, value)
    if "#" in value and not value.startswith("$"):
        raise BundleError(f"{name} must be a path without #, which MONAI reads as ::, got {value}.")


def check_literal_path(name: str, value: str) -> None:
    """Refuse a path that MONAI would read as another one, or compute.

    Args:
        name: name of the argument.
        value: a path.

    Raises:
        BundleError: see :func:`check_path`, or when it begins as an expression does.
    """
    check_path(name, value)
    if value.startswith(("@", "%", "$")):
        raise BundleError(
            f"{name} must be a path, and MONAI would compute {value}: write {Path(value).absolute()} instead."
        )


def check_writable(name: str, folder: Path) -> None:
    """Refuse a folder in which no file can be written, before hours are spent on what should be.

    Args:
        name: name of the argument.
        folder: the folder; it need not be there yet.

    Raises:
        BundleError: when a file is in its place or above it, or when the user has no permission for it or for the
            folder it would be made in.
    """
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise BundleError(f"{name} {folder} cannot be written: {existing} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BundleError(f"{name} {folder} cannot be written: no permission for {existing}.")


def code_hash(instance: object) -> str | None:
    """Tell whether two runs of a method from elsewhere, of which no version is known, had the same code.

    Args:
        instance: the method, or another object.

    Returns:
        SHA-256 of the files of its classes; None where all are of this bundle, whose commit a run writes down, with its
            changes.
    """
    code = b""
    # One class of each file, in the order of inheritance.
    for name, cls in {cls.__module__: cls for cls in type(instance).__mro__}.items():
        if name.partition(".")[0] not in _KNOWN_PACKAGES:
            # A class that was typed into a notebook has no file.
            with suppress(OSError, TypeError):
                code += Path(inspect.getfile(cls)).read_bytes()
    return hashlib.sha256(code).hexdigest() if code else None


def file_hash(path: str | Path) -> str:
    """Hash a file, to tell whether two of them are the same.

    Args:
        path: the file.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
