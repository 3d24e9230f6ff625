# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""All measurements of speed and memory in one report."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..configuration import read_configuration
from ..console import mistakes_in_one_line
from ..errors import BundleError
from ..evaluation.wording import markdown_table
from ..files import CONFIGS, write_json, write_text
from ..handlers.run_comparison import check_preprocessing
from ..studies.cases import Case
from .inference import DEFAULT, measure_inference
from .measuring import describe_machine
from .pool import SMALLEST_POOL, measure_pools, measure_starts
from .step import measure_steps

PARTS = ("step", "inference", "start", "pools")
#: How the columns of the tables are called and written.
_COLUMNS: dict[Hashable, tuple[str, str]] = {
    "seconds": ("seconds", "{:.1f}"),
    "ratio": ("times faster", "{:.2f}"),
    "loss_share": ("losses", "{:.1%}"),
    "peak_mebibytes": ("peak memory [MiB]", "{:.0f}"),
    "seconds_to_first_iteration": ("seconds to the end of the first iteration", "{:.1f}"),
    "seconds_to_first_step": ("seconds to the first step", "{:.1f}"),
    "seconds_per_iteration": ("seconds of an iteration", "{:.2f}"),
    "waiting_share": ("not the step", "{:.1%}"),
    "dice": ("Dice [%]", "{:.2f}"),
    "agreement": ("same label [% of voxels]", "{:.3f}"),
}
#: Crop and steps of the paper on the left atrium, where no data set says otherwise.
_SIZES = {"patch_size": [112, 112, 80], "strides": [18, 18, 4]}
#: The figures that count, in their order.
_SUMMARY = ("step", "inference", "memory", "waiting")
_REPORT = "benchmark.json"
_TRAINING = str(CONFIGS / "train.json")


def run_benchmark(
    output_dir: str | Path,
    cases: Callable[[], Sequence[Case]],
    config_file: Sequence[str],
    *,
    training_overlays: Sequence[str] = (),
    training_data: Mapping[str, str] | None = None,
    parts: Sequence[str] = PARTS,
    patch_size: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    num_steps: int = 3,
    pool_sizes: Sequence[int] = (100, 1000, 10000),
    ckpt_path: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    show: Callable[[str], None] = print,
) -> str:
    """Measure, and write ``benchmark.json`` and ``benchmark.md``, anew after each part.

    A time on a shared machine says little; the ratios of times that were measured one after the other say more.

    Args:
        output_dir: folder of the report and of the label maps.
        cases: gives the volumes for the inference, when all arguments were found to be allowed.
        config_file: configuration of the inference, see
            :func:`scripts.inference_configuration.inference_configs`; what follows the first file is of the data set.
        training_overlays: names of the configurations behind ``train`` for the short trainings of the part "start".
        training_data: dataset_dir and split_file of these; by default generated volumes.
        parts: what to measure, of :data:`PARTS`.
        patch_size: crop of the training and window of the inference; by default those of the data set, or else the
            paper's for the left atrium.
        strides: steps of the window in the protocol; by default likewise.
        num_steps: steps of training in each mode, after one that warms up.
        pool_sizes: numbers of cases of the pools.
        ckpt_path: weights of the dual network for the inference; without, only its time and memory count.
        device: where to measure; by default a GPU if there is one.
        overwrite: replace the report of an earlier call.
        show: takes each line of the report as it is ready.

    Returns:
        the figures that count in one line: how much faster than the baseline a step and an inference are, and the
        memory of a step.

    Raises:
        BundleError: before anything is measured, when a part, device or size of a pool is not allowed, the weights do
            not exist or are those of a run with another preprocessing, or the folder holds a report; later, when the
            weights are not those of the networks or a measurement ran out of memory. What was measured until then is in
            the report.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise BundleError(f"parts must be of {', '.join(PARTS)}, got {unknown[0]!r}.")
    if not pool_sizes or min(pool_sizes) < SMALLEST_POOL:
        raise BundleError(f"pool_sizes must be numbers of at least {SMALLEST_POOL}, got {list(pool_sizes)}.")
    if ckpt_path is not None and not Path(ckpt_path).is_file():
        raise BundleError(f"ckpt_path {ckpt_path} not found.")
    if ckpt_path is not None and "inference" in parts:
        check_preprocessing(ckpt_path, dict(read_configuration(config_file).get()), remedy="the --data of the run")
    output = Path(output_dir)
    if (output / _REPORT).exists() and not overwrite:
        raise BundleError(f"{output / _REPORT} exists: replace it by --overwrite true, or choose another --output_dir.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = _SIZES | dict(read_configuration(config_file[1:]).get())
    patch_size, strides = patch_size or sizes["patch_size"], strides or sizes["strides"]
    overrides = {"device": device, "patch_size": list(patch_size)}
    _check_settings({**overrides, **({"strides": list(strides)} if "inference" in parts else {})})
    # Only what is segmented needs a test list: a training on a whole data set has none.
    volumes = cases() if "inference" in parts else []
    facts: dict[str, Any] = {"machine": describe_machine(device), "patch_size": list(patch_size)}
    header = "".join(f"- {name}: {value}\n" for name, value in facts["machine"].items())
    texts: list[str] = []
    summary: dict[str, str] = {}

    def add(title: str, table: pd.DataFrame, **figures: str) -> None:
        texts.append(f"## {title}\n\n{_markdown(table)}\n")
        show(texts[-1])
        summary.update(figures)
        line = _in_one_line(summary)
        write_json(output / _REPORT, {**facts, "summary": line})
        write_text(output / "benchmark.md", "\n".join(["# Benchmark\n", header, *texts, line + "\n"]))

    for name, value in facts["machine"].items():
        show(f"{name}: {value}")
    if "step" in parts:
        steps = pd.DataFrame(measure_steps([_TRAINING], num_steps=num_steps, overrides=overrides))
        steps.insert(3, "ratio", steps["seconds"].iloc[0] / steps["seconds"])
        facts["step"] = steps.to_dict("records")
        ratio, peak = steps.set_index("mode").loc["bundle", ["ratio", "peak_mebibytes"]]
        figures = {"step": f"{ratio:.1f}x", "memory": f"{peak / 1024:.1f} GiB"}
        add("A step of training, both networks, 2 + 2 crops", steps, **figures)
    if "inference" in parts:
        modes = measure_inference(
            volumes, config_file, output / "maps", strides=strides, ckpt_path=ckpt_path, overrides=overrides
        )
        facts |= {"cases": [case.name for case in volumes], "strides": list(strides)}
        facts["inference"] = modes.to_dict("records")
        ratio = modes.set_index("mode").loc[DEFAULT, "ratio"]
        add(f"Inference of {len(volumes)} volume(s)", modes, inference=f"{ratio:.1f}x")
    if "start" in parts:
        data = {**training_data, **overrides} if training_data else {"device": device}
        starts = measure_starts(training_overlays, overrides=data)
        facts["start"] = starts.to_dict("records")
        add("Two short trainings on one data set", starts, waiting=f"{starts['waiting_share'].iloc[-1]:.1%}")
    if "pools" in parts:
        pools = measure_pools(pool_sizes, overrides={"device": device})
        facts["pools"] = pools.to_dict("records")
        add("Short trainings on pools of several sizes", pools)
    return _in_one_line(summary)


def _check_settings(overrides: Mapping[str, Any]) -> None:
    with mistakes_in_one_line():
        read_configuration(_TRAINING, overrides).get_parsed_content("settings")


def _in_one_line(summary: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {summary[name]}" for name in _SUMMARY if name in summary)


def _markdown(table: pd.DataFrame) -> str:
    def text(name: Hashable, value: Any) -> str:
        return _COLUMNS[name][1].format(value) if name in _COLUMNS and value is not None else str(value)

    headings = [_COLUMNS[name][0] if name in _COLUMNS else name for name in table]
    rows = table.to_dict("records")
    return markdown_table(headings, [[text(name, value) for name, value in row.items()] for row in rows])
