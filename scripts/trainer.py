# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""One optimization step of semi-supervised training; knows no method."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys, ImageMetaKey, convert_to_tensor
from monai.utils.misc import str2bool
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .errors import BundleError
from .parallel import mean_over_processes
from .precision import Precision, autocast, check_patch_size, resolve_precision

#: Scale of the gradient below which it is not the range of float16 that makes it infinite.
_LEAST_SCALE = 2.0**-14
#: What MONAI's trainer takes and the iteration of this one does not use, and what does it here, if anything.
_UNUSED = {
    "amp": "precision",
    "amp_kwargs": "precision",
    "accumulation_steps": "labeled_batch_size and unlabeled_batch_size",
    "compile": None,
    "compile_kwargs": None,
    "prepare_batch": None,
    "to_kwargs": None,
}


class NonFiniteLossError(BundleError):
    """A loss was infinite or not a number; names the iteration, the terms and the cases of the batch."""


class SemiSupervisedTrainer(SupervisedTrainer):
    """Trainer of a :class:`scripts.methods.base.Method` on batches with a labeled and an unlabeled part.

    An iteration moves the batch to the device, computes the method's loss under autocast, refuses a loss that is not
    finite, and steps the optimizer. Everything else (learning rate, log, validation, checkpoints) is a handler. After
    every iteration ``state.output`` holds one dictionary, as MONAI's handlers expect it, with the labeled images, their
    labels (None without any) and the loss, and ``state.terms`` every term and weight of the method by name, each
    the mean over the processes.

    Args:
        device: where to train.
        max_epochs: number of epochs of ``epoch_length`` iterations.
        train_data_loader: endless iterable of batches, see :class:`scripts.data.two_stream.TwoStreamLoader`.
        network: the deployed network that ``method`` holds.
        method: the method, or its wrapper for distributed training.
        optimizer: optimizer of what the method lists as ``trainable_parameters``.
        auxiliary_optimizer: optimizer of what a method trains beside its networks, such as a discriminator. With one,
            every iteration ends in a second step: ``method(batch, step, auxiliary=True)`` gives its loss.
        precision: see :func:`scripts.precision.resolve_precision`; "float16" scales the gradient.
        channels_last: hand the images over in the memory format channels_last_3d, which is faster on CPUs and on GPUs
            with tensor cores where the weights are in that format too.
        **kwargs: see ``monai.engines.SupervisedTrainer``; what an iteration here does not use, such as ``amp`` or
            ``accumulation_steps``, is refused.

    Raises:
        BundleError: when ``precision`` is not allowed, the device cannot compute in it, a keyword would have no effect,
            or there is no ``auxiliary_optimizer`` for a method that needs one.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        method: nn.Module,
        optimizer: Optimizer,
        *,
        auxiliary_optimizer: Optimizer | None = None,
        precision: Precision = "float32",
        channels_last: bool | str = False,
        **kwargs: Any,
    ) -> None:
        device = torch.device(device)
        precision = resolve_precision(precision, device)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=method,
            decollate=False,
            **_used(kwargs),
        )
        self.method = method
        if auxiliary_optimizer is None and self._bare_method.auxiliary_parameters():
            raise BundleError(
                f"auxiliary_optimizer must be an optimizer for {type(self._bare_method).__name__}, which trains more "
                "than its networks, got None."
            )
        self.auxiliary_optimizer = auxiliary_optimizer
        self.precision = precision
        self.dtype: torch.dtype = getattr(torch, precision)
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.memory_format = torch.channels_last_3d if str2bool(channels_last) else torch.contiguous_format
        self.state.terms = {}

    def run(self) -> None:  # type: ignore[override]
        """Train until ``state.max_epochs``, with the batches that follow those of the last run."""
        loader: Any = self.data_loader
        loader.start_at(self.state.iteration)
        super().run()

    def _iteration(self, engine: SupervisedTrainer, batchdata: Mapping[str, Any]) -> list[dict]:  # type: ignore[override]
        batch = {
            key: convert_to_tensor(batchdata[key]).to(
                engine.state.device, non_blocking=engine.non_blocking, memory_format=self.memory_format
            )
            # Whatever else a case has is not for the method.
            for key in (CommonKeys.IMAGE, CommonKeys.LABEL, "unlabeled")
            if key in batchdata
        }
        method = self._bare_method
        method.check_batch_sizes(len(batch.get(CommonKeys.LABEL, ())), len(batch.get("unlabeled", ())))
        check_patch_size(next(iter(batch.values())).shape[2:], self.precision, engine.state.device)
        step = engine.state.iteration - 1
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        output = self._forward(batch, step)
        engine.state.output = [
            {
                CommonKeys.IMAGE: batch.get(CommonKeys.IMAGE),
                CommonKeys.LABEL: batch.get(CommonKeys.LABEL),
                CommonKeys.LOSS: output["loss"].detach(),
            }
        ]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.state.terms = self._numbers(output)
        self._refuse_non_finite(batchdata)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self._backward(output["loss"], self.optimizer, "gradient_norm")
        self._refuse_non_finite(batchdata)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.grad_scaler.step(self.optimizer)
        if self.auxiliary_optimizer is not None:
            # The step of the networks may have left gradients in the auxiliary part.
            self.auxiliary_optimizer.zero_grad(set_to_none=True)
            output = self._forward(batch, step, auxiliary=True)
            engine.state.terms |= {f"auxiliary_{name}": value for name, value in self._numbers(output).items()}
            self._refuse_non_finite(batchdata)
            self._backward(output["loss"], self.auxiliary_optimizer, "auxiliary_gradient_norm")
            self._refuse_non_finite(batchdata)
            self.grad_scaler.step(self.auxiliary_optimizer)
        self.grad_scaler.update()
        method.after_step(step)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    @property
    def _bare_method(self) -> Any:
        return self.method.module if isinstance(self.method, DistributedDataParallel) else self.method

    def _forward(self, batch: Mapping[str, torch.Tensor], step: int, **kwargs: bool) -> dict[str, torch.Tensor]:
        try:
            with autocast(self.state.device, self.dtype):
                output: dict[str, torch.Tensor] = self.method(batch, step, **kwargs)
        except ValueError as error:
            # PyTorch's batch and instance normalization: the statistics of one value say nothing.
            if not str(error).startswith("Expected more than 1"):
                raise
            size = list(next(iter(batch.values())).shape[2:])
            raise BundleError(
                f"patch_size {size} leaves a single voxel in the deepest map, which normalization cannot train on: "
                "take at least 32 along one axis."
            ) from error
        return output

    def _numbers(self, output: Mapping[str, Any]) -> dict[str, float]:
        # One transfer for all terms: each would be a synchronization of its own on a GPU. As means, they are of the
        # whole batch, and a process whose terms are finite stops with the one whose terms are not. Weights are equal.
        terms = {name: value.detach().float() for name, value in output.items() if isinstance(value, torch.Tensor)}
        means = dict(zip(terms, mean_over_processes(torch.stack(list(terms.values()))).tolist(), strict=True))
        return {name: means.get(name, value) for name, value in output.items()}

    def _backward(self, loss: torch.Tensor, optimizer: Optimizer, name: str) -> None:
        self.grad_scaler.scale(loss).backward()
        if self.grad_scaler.is_enabled():
            # An infinite gradient costs a step and halves the scale. Where no scale helps, every step is left out.
            scale = self.state.terms["gradient_scale"] = self.grad_scaler.get_scale()
            if scale < _LEAST_SCALE:
                self.state.terms[name] = math.nan
        else:
            # A gradient can be infinite where the loss is not, and would be in the weights of the next checkpoint.
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            self.state.terms[name] = float(torch.nn.utils.get_total_norm(gradients))

    def _refuse_non_finite(self, batch: Mapping[str, Any]) -> None:
        broken = [f"{name} = {value}" for name, value in self.state.terms.items() if not math.isfinite(value)]
        if not broken:
            return
        cases = [
            str(name)
            for key in (CommonKeys.IMAGE, "unlabeled")
            if hasattr(batch.get(key), "meta")
            for name in dict.fromkeys(batch[key].meta.get(ImageMetaKey.FILENAME_OR_OBJ, []))
        ]
        raise NonFiniteLossError(
            f"iteration {self.state.iteration}: {', '.join(broken)} on {', '.join(cases) or 'unnamed cases'}; "
            "the last checkpoint is untouched. Check these cases, or lower the learning rate."
        )


def _used(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse what would have no effect, and leave it out where it is the default."""
    parameters = inspect.signature(SupervisedTrainer).parameters
    for name, instead in _UNUSED.items():
        # As texts, since false of a command line is one.
        if name in kwargs and str(kwargs[name]).lower() != str(parameters[name].default).lower():
            hint = f" Give {instead} instead." if instead else ""
            raise BundleError(f"{name} has no effect on this trainer and must be left out, got {kwargs[name]!r}.{hint}")
    return {name: value for name, value in kwargs.items() if name not in _UNUSED}
