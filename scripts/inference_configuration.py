# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The configuration of an inference: which files it has, and whether they and the weights fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from .configuration import (
    check_overrides,
    data_configurations,
    named_weights,
    overlay_names,
    read_configuration,
    read_configuration_file,
    require,
)
from .console import mistakes_in_one_line
from .errors import BundleError, one_of
from .files import CONFIGS, check_literal_path
from .handlers.run_comparison import check_preprocessing
from .settings import true_or_false


def inference_configs(data: str | None = None) -> list[str]:
    """Name the configuration files of an inference.

    Args:
        data: name of a data set that the bundle has an overlay for, such as ``left_atrium``.

    Returns:
        Paths of the files, a later one overriding an earlier one.

    Raises:
        BundleError: when there is no such overlay.
    """
    files = [CONFIGS / "inference.json"]
    if data is not None:
        known = overlay_names("data")
        if not known:
            raise BundleError("data names an overlay configs/data_<data>.json, and there is none: leave out --data.")
        require("data", data, known)
        files.append(CONFIGS / f"data_{data}.json")
    return [str(path) for path in files]


def checked_configuration(
    config_file: Sequence[str], overrides: Mapping[str, Any], model: str | None = None, *, arguments: Iterable[str]
) -> ConfigParser:
    """Read the configuration of an inference, whose files and weights are there, and that has the keys to override.

    Args:
        config_file: the files.
        overrides: values by key.
        model: file of an exported network, if it takes the place of network and weights.
        arguments: see :func:`scripts.configuration.check_overrides`.

    Returns:
        the configuration before anything in it is evaluated.

    Raises:
        BundleError: for the first file that is missing, or key that must not be given; or when the weights are those of
            a run with another preprocessing.
    """
    begins = False
    for file in config_file:
        content = read_configuration_file(file)
        begins = begins or {"run", "inferer"} <= content.keys()
        if not begins:
            others = [name for name in config_file if Path(name).resolve() != (CONFIGS / "inference.json").resolve()]
            raise BundleError(
                f"config_file must begin with the configuration of an inference: {CONFIGS / 'inference.json'},"
                f"{','.join(map(str, others))}."
            )
    for name, value in overrides.items():
        if name.endswith("_path") and not isinstance(value, str):
            raise BundleError(f"{name} must be a string, got {value!r}.")
    if "dataset_dir" in overrides:
        raise BundleError("dataset_dir is named by --input here.")
    for name, weights_file in (("model", model), ("ckpt_path", overrides.get("ckpt_path"))):
        if weights_file is not None:
            check_literal_path(name, weights_file)
    # An exported network takes the place of the weights of the files.
    exported = {} if model is None else {"ckpt_path": model}
    # At the command line, data may name the files.
    check_overrides({**overrides, **exported}, list(config_file), arguments=(*arguments, "data"))
    weights = [name for name in overrides if re.split("#|::", name)[0] in ("ckpt_path", "load_pretrain", "network_def")]
    if model is not None and weights:
        raise BundleError(f"model stands for network and weights, leave out --{weights[0]}.")
    for name, weights_file in (("model", model), ("ckpt_path", overrides.get("ckpt_path"))):
        if weights_file is not None and not Path(weights_file).is_file():
            raise BundleError(f"{name} {weights_file} does not exist.")
    parser = read_configuration(config_file, overrides)
    with mistakes_in_one_line():
        loads = true_or_false("load_pretrain", parser.get_parsed_content("load_pretrain"))
        weights_file = parser.get_parsed_content("ckpt_path")
    if model is None and loads and not Path(weights_file).is_file():
        known = _data_with_weights()
        hint = f" Weights are here for --data {one_of(known)}." if known else ""
        raise BundleError(
            f"ckpt_path {weights_file} does not exist: train first, or name a file of weights by --ckpt_path.{hint}"
        )
    # An exported network lies beside the weights that it was made of.
    # Read anew, as what was evaluated has no references left to compare.
    check_preprocessing(model or weights_file, dict(read_configuration(config_file, overrides).get()))
    if model is not None and is_onnx(model) and find_spec("onnxruntime") is None:
        raise BundleError(f"model {model} needs the package onnxruntime: pip install onnxruntime.")
    return parser


def _data_with_weights() -> list[str]:
    names = []
    for file, configuration in data_configurations().items():
        # In the bundle of one task the weights are those of inference.json.
        of_its_own = "ckpt_path" in read_configuration_file(CONFIGS / file)
        weights = named_weights(configuration)
        if of_its_own and weights is not None and weights.is_file():
            names.append(file.removeprefix("data_").removesuffix(".json"))
    return names


def is_onnx(model: str) -> bool:
    """Return whether an exported network is an ONNX file, by its name."""
    return Path(model).suffix == ".onnx"
