# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Weights whose probabilities mean what they say: a scale and a bias for each class, fitted after the training."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from monai.bundle import ConfigParser
from monai.utils import CommonKeys
from torch import nn
from tqdm import tqdm

from ..console import mistakes_in_one_line
from ..data.cases import load_cases
from ..data.loading import check_cases
from ..errors import BundleError
from ..evaluation.wording import markdown_table
from ..inference_configuration import checked_configuration
from ..networks.layers import Head
from ..nifti import read_nifti
from ..weights import check_output, check_weights, write_tensors
from .cases import carried_to_grid, check_margin, label_array, near_foreground
from .uncertainty import calibration_bins, expected_calibration_error

Fit = Literal["both", "scale", "bias"]
_LISTS = ("labeled", "validation", "test")
#: What inference puts around the network.
_WITHOUT = {"crop_to_organs": "0", "test_time_views": "[]", "whole_volume": "false", "load_pretrain": "true"}
#: Of more voxels every n-th counts, so that a large case weighs no more than others.
_VOXELS_OF_A_CASE = 400_000


class Calibration(NamedTuple):
    """What a network's logits are multiplied by, and what is added to those of each class."""

    scale: float
    bias: tuple[float, ...]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute the calibrated probabilities: the mean of the softmaxes of all heads.

        Args:
            logits: of M heads, (N, M, C).

        Returns:
            logarithms of the probabilities, (N, C).
        """
        return _mean_log_softmax(logits, torch.tensor(self.scale), torch.tensor(self.bias))


def fit_calibration(logits: torch.Tensor, labels: torch.Tensor, fit: Fit = "both") -> Calibration:
    """Find the scale and the biases under which the labels are likeliest.

    Temperature scaling with a bias for each class: the vector scaling of "On Calibration of Modern Neural Networks"
    (https://arxiv.org/abs/1706.04599) with one temperature, the inverse of the scale, for all classes.

    Args:
        logits: of M heads, whose softmaxes are averaged, (N, M, C).
        labels: class indices, (N,).
        fit: "both"; "scale", which leaves the class of every voxel where there is one head; or "bias", which moves the
            borders.

    Returns:
        the calibration; the bias of the background is 0.

    Raises:
        BundleError: when a class has no voxel, or every voxel is so sure that no scale is the best one.
    """
    missing = sorted(set(range(logits.shape[2])) - set(labels.unique().tolist()))
    if missing:
        raise BundleError(f"these cases have no voxel of class {', '.join(map(str, missing))}: name other lists.")
    log_scale = torch.zeros((), requires_grad=fit != "bias")
    biases = torch.zeros(logits.shape[2] - 1, requires_grad=fit != "scale")
    optimizer = torch.optim.LBFGS(
        [value for value in (log_scale, biases) if value.requires_grad], max_iter=100, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        bias = torch.cat((biases.new_zeros(1), biases))
        value = nn.functional.nll_loss(_mean_log_softmax(logits, log_scale.exp(), bias), labels)
        value.backward()
        return value

    optimizer.step(loss)
    found = Calibration(log_scale.exp().item(), (0.0, *biases.tolist()))
    if not 0.01 < found.scale < 100:
        raise BundleError(f"no scale fits these cases, got {found.scale:g}: name other lists, or fit bias.")
    return found


def _mean_log_softmax(logits: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    scaled = (logits * scale + bias).log_softmax(dim=2)
    return scaled.logsumexp(dim=1) - math.log(logits.shape[1])


def calibrate_weights(
    dataset_dir: str,
    split_file: str,
    output: str | Path,
    config_file: Sequence[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    lists: Sequence[str] = ("validation",),
    fit: str = "both",
    margin_mm: float | None = None,
    overwrite: bool = False,
) -> str:
    """Fit a calibration on labeled cases, and write weights that hold it: their last layer is scaled and shifted.

    The weights go wherever weights of this network do, and cost nothing more. Voxels count on the grid of the network,
    whose logits are averaged over the windows, where inference averages probabilities.

    Args:
        dataset_dir: folder of the data set.
        split_file: its split file.
        output: file of the weights to write, in the precision of those that were read.
        config_file: see :func:`scripts.inference_configuration.inference_configs`.
        overrides: values by key of that configuration, such as ckpt_path.
        lists: lists of the split whose cases count: labeled, validation, test.
        fit: see :func:`fit_calibration`.
        margin_mm: count those within this distance of the foreground of prediction or reference alone; None counts all.
        overwrite: replace a file that is there.

    Returns:
        what was fitted, and the negative log-likelihood and expected calibration error before and after, as Markdown.

    Raises:
        BundleError: when an argument is not allowed, or the network is not made of heads of logits.
    """
    if fit not in get_args(Fit):
        raise BundleError(f"fit must be one of {', '.join(get_args(Fit))}, got {fit!r}.")
    if not lists or set(lists) - set(_LISTS):
        raise BundleError(f"lists must be some of {', '.join(_LISTS)}, got {', '.join(lists)!r}.")
    if margin_mm is not None:
        check_margin(margin_mm)
    listed = load_cases(dataset_dir, split_file, lists=lists)
    cases = [case for name in lists for case in listed[name]]
    if not cases:
        raise BundleError(f"split_file {split_file} has no case in {', '.join(lists)}: name another list by --lists.")
    arguments = inspect.signature(calibrate_weights).parameters
    parser = checked_configuration(config_file, overrides or {}, arguments=arguments)
    with mistakes_in_one_line():
        for name, value in _WITHOUT.items():
            if str(parser.get_parsed_content(name)).lower() != value:
                raise BundleError(f"{name} must be {value} here: a calibration is of the network alone.")
        parser.get_parsed_content("settings")
        ckpt_path = parser.get_parsed_content("ckpt_path")
        check_output(output, ckpt_path, overwrite=overwrite)
        network = parser.get_parsed_content("network")
        weights = check_weights(ckpt_path, network)
        options = {name: parser.get_parsed_content(name) for name in ("num_classes", "in_channels")}
        check_cases(cases, **options)
        network.load_state_dict(weights)
        heads = [layer for layer in network.eval().modules() if isinstance(layer, Head)]
        parts = [
            _voxels(case, parser, network, heads, margin_mm=margin_mm)
            for case in tqdm(cases, desc="cases", disable=not sys.stderr.isatty())
        ]
    logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    found = fit_calibration(logits, labels, fit)  # type: ignore[arg-type]
    with torch.no_grad():
        for head in heads:
            head.weight *= found.scale
            head.bias.mul_(found.scale).add_(head.bias.new_tensor(found.bias))
    written = {name: value.cpu().to(weights[name].dtype) for name, value in network.state_dict().items()}
    write_tensors(output, {name: value.contiguous() for name, value in written.items()})
    return _summarize(found, logits, labels, len(cases))


def _voxels(
    case: Mapping[str, Any], parser: ConfigParser, network: nn.Module, heads: Sequence[Head], *, margin_mm: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict a case: the logits of all heads and the labels of its voxels that count, (N, M, C) and (N,)."""
    image = parser.get_parsed_content("preprocessing")({CommonKeys.IMAGE: case[CommonKeys.IMAGE]})[CommonKeys.IMAGE]
    classes, device = parser.get_parsed_content("num_classes"), parser.get_parsed_content("device")

    def predict(windows: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hooks = [head.register_forward_hook(lambda layer, given, logits: seen.append(logits)) for head in heads]
        try:
            probabilities = network(windows)
        finally:
            for hook in hooks:
                hook.remove()
        if [logits.shape[1] for logits in seen] == [classes] * max(1, len(heads)):
            mean = torch.stack([logits.float().softmax(dim=1) for logits in seen]).mean(dim=0)
            if torch.allclose(mean, probabilities[:, :classes], atol=1e-4):
                return torch.cat(seen, dim=1).float()
        raise BundleError(
            f"{type(network).__name__} cannot be calibrated: its output is not the mean of the softmaxes of its heads."
        )

    with torch.inference_mode():
        predicted = parser.get_parsed_content("inferer")(image.as_tensor()[None].to(device), predict)
    logits = predicted[0].cpu().unflatten(0, (len(heads), classes))
    affine = image.affine.numpy()
    label = label_array(carried_to_grid(read_nifti(case[CommonKeys.LABEL]), logits.shape[2:], affine))
    counted: npt.NDArray[np.intp] = np.arange(label.size)
    if margin_mm is not None:
        foreground = (label > 0) | (logits.softmax(dim=1).mean(dim=0).argmax(dim=0) > 0).numpy()
        counted = np.flatnonzero(near_foreground(foreground, affine, margin_mm))
    counted = counted[:: max(1, math.ceil(len(counted) / _VOXELS_OF_A_CASE))]
    return logits.flatten(2)[..., counted].permute(2, 0, 1), torch.from_numpy(label.ravel()[counted])


def _summarize(found: Calibration, logits: torch.Tensor, labels: torch.Tensor, num_cases: int) -> str:
    rows = []
    for name, calibration in (("before", Calibration(1.0, (0.0,) * logits.shape[2])), ("after", found)):
        log_probabilities = calibration(logits)
        bins = calibration_bins(log_probabilities.exp().numpy().T, labels.numpy(), np.ones(len(labels), dtype=bool))
        likelihood = nn.functional.nll_loss(log_probabilities, labels).item()
        rows.append([name, f"{likelihood:.4f}", f"{expected_calibration_error(bins):.4f}"])
    biases = ", ".join(f"{bias:.4f}" for bias in found.bias)
    return (
        f"{num_cases} cases, {len(labels)} voxels: "
        f"logits times {found.scale:.4f}, plus {biases}.\n\n"
        f"{markdown_table(('', 'negative log-likelihood', 'expected calibration error'), rows)}\n"
    )
