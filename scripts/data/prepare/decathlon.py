# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Tasks of the Medical Segmentation Decathlon: a folder with dataset.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy.typing as npt
from monai.apps import DecathlonDataset, download_url
from monai.apps.utils import HashCheckError

from ...errors import BundleError, one_line
from .reading import Source, SourceCase, Volumes, read_image, read_label, stem

DESCRIPTION_FILE = "dataset.json"


def download(task: str, folder: Path) -> Path:
    """Download a task by MONAI's own function, which verifies its checksum.

    Args:
        task: name of the task, such as Task04_Hippocampus.
        folder: folder for the file.

    Returns:
        The tar file.

    Raises:
        BundleError: when there is no such task, no internet, or the file is not the one that was published.
    """
    if task not in DecathlonDataset.resource:
        raise BundleError(f"task must be one of {', '.join(sorted(DecathlonDataset.resource))}, got {task!r}.")
    path = folder / f"{task}.tar"
    url = DecathlonDataset.resource[task]
    # MONAI logs a failure of its own before it raises: one line is enough.
    monai_logger = logging.getLogger("monai.apps")
    level = monai_logger.level
    monai_logger.setLevel(logging.CRITICAL)
    try:
        download_url(url, path, hash_val=DecathlonDataset.md5[task], hash_type="md5")
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise BundleError(
            f"{task} cannot be downloaded from {url} ({reason}): without internet, get the file elsewhere and give "
            "it by --source."
        ) from error
    except (HashCheckError, RuntimeError) as error:
        raise BundleError(f"{task}: {one_line(error)}") from error
    finally:
        monai_logger.setLevel(level)
    if not path.is_file():
        raise BundleError(f"{task} was downloaded, but cannot be written to {path}.")
    return path


def find_decathlon(source: Path, *, channel: int | None = None, test_images: bool = False) -> Source:
    """Find the cases of a task.

    Args:
        source: folder of the task, with dataset.json, or the folder above it.
        channel: which channel of images with several, from 0; None allows images of one channel only.
        test_images: add the test images of the task, which have no label, as unlabeled cases.

    Returns:
        The cases, named as their image files.

    Raises:
        BundleError: when there is no dataset.json, or it does not list images and labels.
    """
    folder = task_folder(source)
    if folder is None:
        raise BundleError(f"source {source} holds no {DESCRIPTION_FILE}: the folder or tar file of a task is expected.")
    return find_listed(folder, channel=channel, test_images=test_images)


def task_folder(source: Path) -> Path | None:
    """Find the folder with dataset.json: the source, or the only folder in it that has one; None without any."""
    if (source / DESCRIPTION_FILE).is_file():
        return source
    folders = sorted(folder for folder in source.iterdir() if (folder / DESCRIPTION_FILE).is_file())
    if len(folders) > 1:
        raise BundleError(
            f"source {source} holds {len(folders)} tasks, such as {folders[0].name}: give the folder of one."
        )
    return folders[0] if folders else None


def find_listed(
    source: Path,
    *,
    channel: int | None = None,
    test_images: bool = False,
    convert: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
) -> Source:
    """Find the cases that dataset.json lists; see :func:`find_decathlon`.

    Args:
        source: folder with dataset.json.
        channel: see there.
        test_images: see there.
        convert: maps the values of a label file to classes; None keeps them.

    Returns:
        The cases.
    """
    path = source / DESCRIPTION_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(str(entry["image"]), str(entry["label"])) for entry in content["training"]]
        # Some tasks list test images by name, some as objects.
        others = [str(entry["image"] if isinstance(entry, dict) else entry) for entry in content.get("test", [])]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f'{path} must be JSON with "training": [{{"image": ..., "label": ...}}], got {error!r}.'
        ) from None
    entries = [*pairs, *((image, "") for image in others if test_images)]
    cases, problems = [], []
    for image, label in entries:
        name = stem(Path(image))
        if name is None:
            problems.append(f"{image}: must be a NIfTI file.")
            continue
        read = partial(_read, source, image, label, channel=channel, convert=convert)
        files = tuple(source / file for file in (image, label) if file)
        cases.append(SourceCase(name, read, has_label=bool(label), files=files))
    return Source(cases, problems)


def _read(
    source: Path,
    image: str,
    label: str,
    *,
    channel: int | None,
    convert: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None,
) -> Volumes:
    volume = read_image(source / image, source=source, channel=channel)
    return Volumes(volume, read_label(source / label, volume, source=source, convert=convert) if label else None)
