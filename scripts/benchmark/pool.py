# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of short trainings: against the size of the pool, and beside the step itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.engines.utils import IterationEvents

from ..data.phantom import generate_phantom_dataset
from ..data.splits import IMAGE_PATTERN, LABEL_PATTERN, write_split
from ..files import CONFIGS, ROOT
from .measuring import measure_alone

_NUM_VOLUMES = 8
#: A tenth of the cases of a pool are labeled, at least one.
SMALLEST_POOL = 10
#: Overrides that make the step short, so that what grows with the pool is seen beside it.
_SMALL = {"patch_size": [32, 32, 32], "labeled_batch_size": 1, "unlabeled_batch_size": 1, "precision": "float32"}


@dataclass(frozen=True)
class WaitingMeasurement:
    """How long a training takes to begin, and how much of its time afterwards is the step.

    Attributes:
        seconds_to_first_step: from the start of the process to the beginning of its first step: libraries, checks,
            volumes.
        seconds_per_iteration: mean time from the end of one step to that of the next.
        seconds_per_step: mean time of the step alone: transfer, forward, backward and optimizer.
    """

    seconds_to_first_step: float
    seconds_per_iteration: float
    seconds_per_step: float

    @property
    def waiting_share(self) -> float:
        """Share of the time, 0 to 1, that is not the step: waiting for data, learning rate, log."""
        return 1 - self.seconds_per_step / self.seconds_per_iteration


@dataclass(frozen=True)
class _Training:
    """Seconds since the epoch at which a training began and each of its steps began and ended."""

    started: float
    step_starts: tuple[float, ...]
    step_ends: tuple[float, ...]


def measure_pools(
    sizes: Sequence[int] = (100, 1000, 10000), *, iterations: int = 4, overrides: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """Train shortly on pools of several sizes, each in a process of its own.

    Args:
        sizes: numbers of cases, each at least :data:`SMALLEST_POOL`; a tenth of them labeled.
        iterations: iterations of each training, at least 2.
        overrides: values by key of ``configs/train.json``, such as ``cache_num``.

    Returns:
        a row each: ``cases``, ``seconds_to_first_iteration`` from the start of the process to the end of its first
        iteration, ``seconds_per_iteration``, the mean of those after the first, and ``peak_mebibytes``, most memory
        that the process held at once.

    Raises:
        BundleError: when an override is refused.
    """
    rows = []
    for size in sizes:
        with TemporaryDirectory() as folder:
            make_pool(folder, size)
            options = {**_SMALL, "dataset_dir": folder, **(overrides or {})}
            training, peak = measure_alone(_train, [], iterations, options, time.time())
        first, *others = training.step_ends
        rows.append(
            {
                "cases": size,
                "seconds_to_first_iteration": first - training.started,
                "seconds_per_iteration": (others[-1] - first) / len(others),
                "peak_mebibytes": peak,
            }
        )
    return pd.DataFrame(rows)


def measure_waiting(
    overlays: Sequence[str] = (), *, iterations: int = 12, warm_up: int = 2, overrides: Mapping[str, Any] | None = None
) -> WaitingMeasurement:
    """Train shortly on volumes in memory and tell the step from all else; validation and checkpoints do not count.

    Args:
        overlays: names of configurations after ``train``, such as ``data_left_atrium``; none for phantom volumes.
        iterations: iterations of the training, more than ``warm_up``.
        warm_up: iterations at its beginning that do not count, at least 1.
        overrides: values by key of the configuration, such as ``dataset_dir``.

    Returns:
        The mean times.

    Raises:
        BundleError: when an override is refused.
    """
    with _phantoms_unless(overlays or "dataset_dir" in (overrides or {})) as options:
        options = {**options, **(overrides or {})}
        training = measure_alone(_train, list(overlays), iterations, options, time.time()).value
    measured = iterations - warm_up
    steps = [end - start for start, end in zip(training.step_starts, training.step_ends, strict=True)]
    return WaitingMeasurement(
        seconds_to_first_step=training.step_starts[0] - training.started,
        seconds_per_iteration=(training.step_ends[-1] - training.step_ends[warm_up - 1]) / measured,
        seconds_per_step=sum(steps[warm_up:]) / measured,
    )


def measure_starts(overlays: Sequence[str] = (), *, overrides: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Measure two short trainings on one data set, of which the second finds its volumes prepared on the disk.

    Args:
        overlays: see :func:`measure_waiting`.
        overrides: see :func:`measure_waiting`.

    Returns:
        a row each: ``start``, ``seconds_to_first_step``, ``seconds_per_iteration``, ``waiting_share``.
    """
    rows = []
    given = overrides or {}
    with TemporaryDirectory() as folder, _phantoms_unless(overlays or "dataset_dir" in given) as options:
        for start in ("first", "from the cache on disk"):
            waiting = measure_waiting(overlays, overrides={**options, **given, "cache_dir": folder})
            rows.append({"start": start, **asdict(waiting), "waiting_share": waiting.waiting_share})
    return pd.DataFrame(rows).drop(columns="seconds_per_step")


def make_pool(folder: str | Path, num_cases: int) -> None:
    """Make a data set of many cases out of a few phantom volumes, by hard links.

    Args:
        folder: empty or missing folder of the data set; ``split.json`` names a tenth of the cases labeled and the
            others unlabeled.
        num_cases: number of cases.
    """
    path = Path(folder)
    generate_phantom_dataset(path / "volumes", num_cases=_NUM_VOLUMES, size=32)
    cases = [f"case_{number:06d}" for number in range(num_cases)]
    for pattern in (IMAGE_PATTERN, LABEL_PATTERN):
        (path / pattern).parent.mkdir()
        for number, case in enumerate(cases):
            volume = pattern.format(case=f"phantom_{number % _NUM_VOLUMES:03d}")
            os.link(path / "volumes" / volume, path / pattern.format(case=case))
    num_labeled = num_cases // 10
    lists = {"labeled": cases[:num_labeled], "unlabeled": cases[num_labeled:]}
    description = f"{num_cases} cases of {_NUM_VOLUMES} generated volumes."
    write_split(path / "split.json", name=f"pool_{num_cases}", description=description, lists=lists)


@contextmanager
def _phantoms_unless(has_data: Any) -> Iterator[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        if not has_data:
            generate_phantom_dataset(Path(folder) / "data", num_cases=_NUM_VOLUMES, size=32)
        yield {} if has_data else {**_SMALL, "dataset_dir": f"{folder}/data"}


def _train(overlays: list[str], iterations: int, options: dict[str, Any], started: float) -> _Training:
    intervals = dict.fromkeys(("iterations", "val_interval", "checkpoint_interval", "log_interval"), iterations)
    with TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            config_file=[str(CONFIGS / f"{name}.json") for name in ("train", *overlays)],
            workflow_type="train",
            logging_file=False,
            bundle_root=str(ROOT),
            **{"output_dir": f"{folder}/run", **intervals, **options},
        )
        workflow.initialize()
        starts: list[float] = []
        ends: list[float] = []
        workflow.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: starts.append(time.time()))
        workflow.trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda: ends.append(time.time()))
        workflow.run()
        workflow.finalize()
    return _Training(started, tuple(starts), tuple(ends))
