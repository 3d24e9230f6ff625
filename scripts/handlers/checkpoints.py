# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from which a run goes on as if it had never stopped."""

from __future__ import annotations

import itertools
import logging
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.utils import manual_seed
from monai.engines import Evaluator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..errors import BundleError
from ..files import CONFIGURATION_FILE, read_json_object, replacing
from ..parallel import from_first_process, is_main_process, process_rank, wait_for_processes
from ..weights import DamagedFileError, read_tensors, write_tensors
from .history import last_iteration
from .run_directory import RunDirectory

_FORMAT = 2


class Checkpoints:
    """Saves the state of a run and its models, and resumes a run of one process bit-equally on a CPU.

    A run can be resumed with another number of processes. The first process takes over the random state; the others
    draw anew.

    Into the folder of the run it writes ``checkpoints/checkpoint_<iteration>.pt`` (the last ones, with networks,
    optimizer, schedule, iteration, best metric and random states; the order of the data follows from the iteration),
    ``model_final.pt`` (the deployed network after the last iteration) and ``model.pt`` (the one with the best
    validation metric, where there are validation cases).

    Attach it as the first handler: it restores before others start. It saves after all others, so that a checkpoint
    holds what validation and the learning-rate schedule changed in its iteration.

    Args:
        run_directory: folder of the run.
        method: the training method with its network.
        network: the deployed network, saved bare.
        optimizer: the optimizer.
        lr_scheduler: the schedule of the learning rate.
        auxiliary_optimizer: the optimizer of what the method trains beside its networks, if it does.
        evaluator: the validation engine, whose key metric chooses ``model.pt``.
        interval: iterations between two checkpoints.
        num_kept: how many checkpoints stay.

    Raises:
        ValueError: when a number is out of range, or the schedule needs a metric.
    """

    def __init__(
        self,
        run_directory: RunDirectory,
        method: nn.Module,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: LRScheduler,
        *,
        auxiliary_optimizer: torch.optim.Optimizer | None = None,
        evaluator: Evaluator,
        interval: int = 200,
        num_kept: int = 2,
    ) -> None:
        for name, value in (("interval", interval), ("num_kept", num_kept)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            raise ValueError("lr_scheduler must step without a metric, got ReduceLROnPlateau.")
        self.run_directory = run_directory
        self.method = method
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.auxiliary_optimizer = auxiliary_optimizer
        self.evaluator = evaluator
        self.interval = interval
        self.num_kept = num_kept
        self.best_metric: float | None = None
        self.best_iteration = 0
        self._best_weights: dict[str, Any] | None = None
        self.iteration = 0
        self._started = False
        self._begun = False
        self._logger = logging.getLogger(__name__)

    def attach(self, engine: Any) -> None:
        """Register with the trainer.

        Args:
            engine: a :class:`scripts.trainer.SemiSupervisedTrainer`.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        self.evaluator.add_event_handler(Events.COMPLETED, self._keep_best)

    def _start(self, engine: Any) -> None:
        if self._started:
            return
        self._started = True
        self.run_directory.enter()
        if self.run_directory.resume:
            content = self._newest_readable() if self.run_directory.checkpoints() else None
            if content is None:
                self._refuse_lost_checkpoints()
            self._check_agreement(content["iteration"] if content else 0)
            if content:
                self._restore(engine, content)
            else:
                self._logger.info("no checkpoint in %s yet: the run begins anew", self.run_directory.path)
        # Added now and not in attach: events reach handlers in the order in which they were added.
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self._save)

    def _refuse_lost_checkpoints(self) -> None:
        folder = self.run_directory.path
        configuration = folder / CONFIGURATION_FILE
        begun = read_json_object(configuration) if configuration.is_file() else {}
        interval = begun.get("checkpoint_interval")
        recorded = last_iteration(folder / "history.csv")
        # One that was stopped while it wrote its first checkpoint has none, either.
        if recorded > (interval if isinstance(interval, int) else self.interval):
            raise BundleError(
                f"the run in {folder} has {recorded} iterations in history.csv, and its checkpoints are gone: copy "
                "them back, begin it anew by --overwrite true, or move the folder away."
            )

    def _count(self, engine: Any) -> None:
        # Before any other handler of the iteration writes, in this process or in another.
        if not self._begun:
            self.run_directory.begin()
            wait_for_processes()
            self._begun = True
        engine.data_loader.write_unreadable()
        self.iteration = engine.state.iteration

    def _save(self, engine: Any) -> None:
        if not is_main_process():
            return
        content = {
            "format": _FORMAT,
            "iteration": engine.state.iteration,
            "best_metric": self.best_metric,
            "best_iteration": self.best_iteration,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "auxiliary_optimizer": self.auxiliary_optimizer.state_dict() if self.auxiliary_optimizer else None,
            "grad_scaler": engine.grad_scaler.state_dict(),
            "random": _random_state(),
        }
        self._write_best()
        checkpoint = self.run_directory.path / "checkpoints" / f"checkpoint_{engine.state.iteration:08d}.pt"
        write_tensors(checkpoint, content)
        kept = [path for path in self.run_directory.checkpoints() if path.name <= checkpoint.name][: self.num_kept]
        # Newer ones could not be read when the run was resumed, and would be kept in the place of those that can.
        for path in set(self.run_directory.checkpoints()).difference(kept):
            path.unlink()

    def _finish(self, engine: Any) -> None:
        if engine.state.iteration % self.interval:
            self._save(engine)
        if is_main_process():
            self._write_best()
            write_tensors(self.run_directory.path / "model_final.pt", _weights_on_cpu(self.network))
            if self.best_metric is not None:
                self._logger.info("best validation: %.4f at iteration %d", self.best_metric, self.best_iteration)
            self._logger.info(
                "finished at iteration %d: %s", engine.state.iteration, self.run_directory.path / "model_final.pt"
            )

    def _keep_best(self, evaluator: Any) -> None:
        name = evaluator.state.key_metric_name
        metric, details = evaluator.state.metrics.get(name), evaluator.state.metric_details.get(name)
        # MONAI's mean over no value at all is 0.
        if metric is None or not math.isfinite(metric) or (details is not None and details.isnan().all()):
            return
        if self.best_metric is not None and metric <= self.best_metric:
            return
        self.best_metric, self.best_iteration = float(metric), self.iteration
        if is_main_process():
            self._best_weights = {name: value.clone() for name, value in _weights_on_cpu(self.network).items()}

    def _write_best(self) -> None:
        # With a checkpoint and not before: a run that was stopped goes on from there, and may take another way.
        if self._best_weights is not None:
            write_tensors(self.run_directory.path / "model.pt", self._best_weights)
            self._best_weights = None

    def _restore(self, engine: Any, content: Mapping[str, Any]) -> None:
        try:
            self.method.load_state_dict(content["method"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.lr_scheduler.load_state_dict(content["lr_scheduler"])
            auxiliary = content["auxiliary_optimizer"]
            if (auxiliary is None) != (self.auxiliary_optimizer is None):
                raise ValueError("one of them has no auxiliary optimizer")
            if self.auxiliary_optimizer is not None:
                self.auxiliary_optimizer.load_state_dict(auxiliary)
        except (RuntimeError, ValueError, KeyError) as error:
            raise BundleError(
                f"the checkpoint in {self.run_directory.path} is of another method or network than the configured one: "
                f"resume with the configuration files of the run ({str(error).splitlines()[0]})"
            ) from error
        engine.grad_scaler.load_state_dict(content["grad_scaler"])
        self.best_metric, self.best_iteration = content["best_metric"], content["best_iteration"]
        self.iteration = engine.state.iteration = content["iteration"]
        engine.state.epoch = self.iteration // engine.state.epoch_length
        engine.data_loader.start_at(self.iteration)
        _restore_random_state(content["random"], self.iteration)
        if not is_main_process():
            # The checkpoint is of the main process: the others must draw another dropout, and not that of their start.
            manual_seed((torch.initial_seed() + self.iteration + process_rank()) % 2**32)
        self._logger.info("resumed at iteration %d of %s", self.iteration, self.run_directory.path)

    def _check_agreement(self, iteration: int) -> None:
        """Refuse processes that would go on from different iterations: nothing would make them equal again."""
        device = next(self.network.parameters()).device
        first = int(from_first_process(torch.tensor(iteration, device=device)))
        if first != iteration:
            raise BundleError(
                f"output_dir {self.run_directory.path}: process {process_rank()} would go on from iteration "
                f"{iteration}, the first one from {first}: resume when all see the same files."
            )

    def _newest_readable(self) -> dict[str, Any]:
        for path in self.run_directory.checkpoints():
            try:
                content = read_tensors(path)
            except DamagedFileError as error:
                self._logger.warning("checkpoint %s: taking the one before it", error)
                continue
            if not isinstance(content, dict) or content.get("format") != _FORMAT:
                raise BundleError(f"{path} is no checkpoint that this version reads (format {_FORMAT}).")
            return content
        raise BundleError(
            f"output_dir {self.run_directory.path} holds no readable checkpoint to resume: "
            "start anew by --overwrite true."
        )


class PublishedWeights:
    """Puts the deployed network where the bundle's weights are, when a run is complete.

    For programs that train a bundle and go on with its ``models/model.pt``, such as MONAI Label. The weights that were
    there become ``model_previous_1.pt``, with the next number that is free: the first are those that the bundle had.

    Args:
        path: file of the bundle's weights.
        network: the deployed network, saved bare.
        spacing: voxel sizes in mm of the training, None for those of each file.
        inference_file: the configuration that goes on with the weights.

    Raises:
        BundleError: when that configuration has another spacing: it would feed the weights other volumes.
    """

    def __init__(self, path: str, network: nn.Module, *, spacing: Sequence[float] | None, inference_file: str) -> None:
        self.path = Path(path)
        self.network = network
        expected = read_json_object(inference_file).get("spacing")
        # A text like 1,1,1 of the command line makes a tuple.
        if (list(spacing) if spacing else spacing) != expected:
            raise BundleError(
                f"spacing is {spacing} in this training, but {expected} in {inference_file}, which would go on with "
                "its weights: train in the bundle of one task, as python -m scripts package makes it."
            )

    def attach(self, engine: Any) -> None:
        """Register with the trainer.

        Args:
            engine: a :class:`scripts.trainer.SemiSupervisedTrainer`.
        """
        engine.add_event_handler(Events.COMPLETED, self._publish)

    def _publish(self, engine: Any) -> None:
        if not is_main_process():
            return
        if self.path.is_file():
            names = (
                self.path.with_name(f"{self.path.stem}_previous_{n}{self.path.suffix}") for n in itertools.count(1)
            )
            with replacing(next(name for name in names if not name.exists())) as temporary:
                shutil.copyfile(self.path, temporary)
        write_tensors(self.path, _weights_on_cpu(self.network))


def _weights_on_cpu(network: nn.Module) -> dict[str, Any]:
    # MONAI's exports load a file of weights where it was saved: on a machine without that GPU they would fail.
    state = network.state_dict()
    for name in state:
        state[name] = state[name].cpu()
    return state


def _random_state() -> dict[str, Any]:
    """Collect the states of all random generators in types that ``torch.load(weights_only=True)`` reads."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def _restore_random_state(state: dict[str, Any], iteration: int) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        else:
            # With other cards it is not known which was which; the seed of the start would repeat the first draws.
            torch.cuda.manual_seed_all(torch.initial_seed() + iteration)
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
