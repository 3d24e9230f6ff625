# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Volumes to segment: read one by one, a bad one reported and passed over."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.transforms import Compose, SaveImaged
from monai.utils import CommonKeys, MetaKeys
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import BundleError, root_cause
from ..nifti import WholeFiles, check_file, check_finite, check_volume
from .geometry import class_volume_warnings, geometry_warnings

_logger = logging.getLogger(__name__)


class ReadableVolumes(IterableDataset):
    """Reads and transforms volumes one by one; one that cannot be read is reported, and the others go on.

    Args:
        data: dictionaries with the path of a volume under "image", and under "case" what to call it where that is not
            its path.
        transform: preprocessing of one dictionary.
        in_channels: channels that the network takes; None skips the check.
        trained_spacing: see :func:`scripts.data.geometry.geometry_warnings`.
        trained_extent: see there.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any] | None = None,
        *,
        in_channels: int | None = None,
        trained_spacing: Sequence[float] | None = None,
        trained_extent: Sequence[float] | None = None,
    ) -> None:
        self.data = data
        self.transform = transform if transform is not None else Compose()
        self.in_channels = in_channels
        self.trained_spacing = trained_spacing
        self.trained_extent = trained_extent
        # Shared, since worker processes read the volumes where the loader has some.
        self._num_failed = multiprocessing.Value("i", 0)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        start = time.monotonic()
        for position in range(first, len(self.data), step):
            item = self.data[position]
            left = ""
            if position > first:
                pace = (time.monotonic() - start) / (position - first)
                left = f" ({timedelta(seconds=round(pace * (len(self.data) - position)))} left)"
            _logger.info("volume %d of %d: %s%s", position + 1, len(self.data), _called(item), left)
            volume = self._read(item)
            if volume is not None:
                yield volume

    def _read(self, item: Mapping[str, Any]) -> Any:
        try:
            if isinstance(item["image"], str | Path):
                check_file(item["image"], "it")
            volume = self.transform(dict(item))
            check_volume(volume["image"], "it", channels=self.in_channels)
            if volume["image"].min() == volume["image"].max():
                raise BundleError("it has one gray value alone, at least within the window of the configuration.")
            self._check_values(item, volume["image"])
        # Files fail in as many ways as there are readers: whatever it was, the other volumes can be segmented.
        except Exception as error:
            with self._num_failed.get_lock():
                self._num_failed.value += 1
            _logger.error("%s cannot be segmented: %s", _called(item), root_cause(error))
            return None
        return volume

    def _check_values(self, item: Mapping[str, Any], image: torch.Tensor) -> None:
        meta = getattr(image, "meta", {})
        affine, shape = meta.get(MetaKeys.ORIGINAL_AFFINE), meta.get(MetaKeys.SPATIAL_SHAPE)
        if affine is not None and shape is not None:
            # What the transforms clip or drop is in the file alone.
            check_finite(item["image"], "it")
            trained = {"trained_spacing": self.trained_spacing, "trained_extent": self.trained_extent}
            for warning in geometry_warnings(_called(item), affine, shape, **trained):
                _logger.warning("%s", warning)

    def finish(self) -> None:
        """Say at the end of a run how many volumes failed.

        Raises:
            BundleError: when at least one volume could not be segmented, so that the exit code tells it.
        """
        failed, self._num_failed.value = self._num_failed.value, 0
        if failed:
            raise BundleError(f"{failed} of {len(self.data)} volumes could not be segmented, see the lines above.")


def segment_volumes(
    evaluator: Any,
    data: Sequence[Mapping[str, Any]],
    transform: Callable[[Any], Any],
    postprocessing: Compose,
    *,
    in_channels: int,
    num_classes: int,
    trained_spacing: Sequence[float] | None = None,
    trained_extent: Sequence[float] | None = None,
    trained_class_volumes: Sequence[Sequence[float]] | None = None,
) -> None:
    """Run an evaluator on volumes so that a bad one is reported, and the others go on.

    Args:
        evaluator: a ``monai.engines.Evaluator``; its own data loader gives the number of worker processes.
        data: see :class:`ReadableVolumes`.
        transform: preprocessing of one dictionary.
        postprocessing: that of the evaluator; the files that it writes are from now on whole or not there.
        in_channels: channels that the network takes.
        num_classes: number of classes with the background.
        trained_spacing: see :func:`scripts.data.geometry.geometry_warnings`.
        trained_extent: see there.
        trained_class_volumes: see :func:`scripts.data.geometry.class_volume_warnings`.

    Raises:
        BundleError: at the end, when at least one volume could not be segmented.
    """
    if not data:
        return
    # In the place of MONAI's transforms, which applications know and leave out where they write the maps themselves.
    postprocessing.transforms = tuple(
        WholeFiles(step) if isinstance(step, SaveImaged) else step for step in postprocessing.transforms
    )
    volumes = ReadableVolumes(
        data, transform, in_channels=in_channels, trained_spacing=trained_spacing, trained_extent=trained_extent
    )
    evaluator.data_loader = DataLoader(volumes, batch_size=1, num_workers=evaluator.data_loader.num_workers)
    names = {str(item["image"]): _called(item) for item in data}
    # How many volumes can be read is not known beforehand.
    evaluator.state.epoch_length = None

    def warn(engine: Engine) -> None:
        for item in engine.state.output:  # type: ignore[union-attr]
            label_map, path = item[CommonKeys.PRED], item[CommonKeys.IMAGE].meta["filename_or_obj"]
            for warning in class_volume_warnings(
                names.get(path, path),
                label_map[0].cpu().numpy(),
                label_map.affine,
                num_classes=num_classes,
                trained_class_volumes=trained_class_volumes,
            ):
                _logger.warning("%s", warning)

    with evaluator.add_event_handler(Events.ITERATION_COMPLETED, warn):
        evaluator.run()
    volumes.finish()


def _called(item: Mapping[str, Any]) -> str:
    return str(item.get("case", item["image"]))
