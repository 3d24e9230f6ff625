# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Tar files of a source, unpacked so that nothing gets out of the folder."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from ...errors import BundleError
from ..splits import is_inside

_CHUNK_BYTES = 2**20


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar file; what was unpacked before is not unpacked again.

    Args:
        archive: tar file, also a compressed one.
        folder: folder to unpack into; it appears when all is unpacked.

    Returns:
        The folder.

    Raises:
        BundleError: when the file is broken, or holds links or paths that lead out of the folder.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    # Its own permissions are the usual ones, those of a temporary folder are the owner's alone.
    content = temporary / "content"
    content.mkdir()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise BundleError(
                        f"{archive}: {member.name} is a link or a device, only files and folders are unpacked."
                    )
                target = content / member.name
                if not is_inside(target, content):
                    raise BundleError(f"{archive}: {member.name} leads out of the folder to unpack into.")
                _write(tar, member, target)
            # The checksum of a compressed file stands behind all that tar reads.
            while tar.fileobj is not None and tar.fileobj.read(_CHUNK_BYTES):
                pass
        os.replace(content, folder)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        # The system names the file where the disk is full; a broken archive does not.
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise BundleError(
            f"{archive} cannot be unpacked, the download may be incomplete, or bytes follow its end: {error}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one file or folder, without owner and permissions: not every Python 3.10 and 3.11 can extract so safely."""
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
    os.utime(target, (member.mtime, member.mtime))
