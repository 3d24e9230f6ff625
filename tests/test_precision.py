# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Which number format is chosen on which hardware."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import SMALL, assert_refused

from scripts.precision import check_patch_size, resolve_precision


@pytest.fixture
def capabilities(monkeypatch):
    """Pretend that the processor has these instructions and no others."""

    def pretend(*names):
        known = {"cpu_name": "A processor", "avx2": True, "avx512_bf16": False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**known, **dict.fromkeys(names, True)})

    return pretend


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_auto_takes_bfloat16_where_the_processor_has_it(capabilities, instruction):
    capabilities(instruction)
    assert resolve_precision("auto", "cpu") == "bfloat16"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"


@pytest.mark.parametrize("instructions", [(), ("avx512_f", "avx512_bw", "avx512_vnni")])
def test_auto_takes_float32_on_other_processors(capabilities, instructions):
    capabilities(*instructions)
    assert resolve_precision("auto", "cpu") == "float32"
    with assert_refused("precision 'bfloat16' needs .* which A processor lacks; choose 'auto' or 'float32'"):
        resolve_precision("bfloat16", "cpu")


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", "bfloat16"), ("cuda:1", "float16")])
def test_auto_is_that_of_the_gpu_which_computes(monkeypatch, device, expected):
    current = []

    @contextlib.contextmanager
    def on(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1].index == 0)
    assert resolve_precision("auto", device) == expected
    assert resolve_precision("float16", device) == "float16"
    if expected == "bfloat16":
        assert resolve_precision("bfloat16", device) == "bfloat16"
    else:
        with assert_refused("precision 'bfloat16' needs a GPU of the Ampere generation or later, which cuda:1 is not"):
            resolve_precision("bfloat16", device)


def test_auto_on_any_other_device_is_float32(capabilities):
    capabilities("bf16")
    assert resolve_precision("auto", torch.device("mps")) == "float32"


def test_what_is_asked_for_stays(capabilities):
    capabilities("avx512_bf16")
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("float16", "cuda") == "float16"


def test_mistakes_are_refused():
    with assert_refused("precision must be one of auto, float32, bfloat16, float16, got 'half'"):
        resolve_precision("half", "cpu")
    with assert_refused("precision 'float16' needs a GPU"):
        resolve_precision("float16", "cpu")


def test_shipped_configuration_records_what_was_chosen(capabilities, make_workflow, phantom_dir):
    capabilities()
    workflow = make_workflow("train", dataset_dir=str(phantom_dir), **{**SMALL, "precision": "auto"})
    workflow.initialize()
    assert workflow.parser.get_parsed_content("run_directory").settings["precision"] == "float32"
    assert workflow.trainer.dtype == torch.float32
    assert workflow.evaluator.inferer.dtype == torch.float32


def test_short_patches_are_refused_where_their_gradients_would_be_wrong():
    with assert_refused(r"must start with at least 32 for precision 'bfloat16' .* got \[16, 32, 48\]"):
        check_patch_size([16, 32, 48], "bfloat16", "cpu")
    for size, precision, device in (
        ([32, 16, 16], "bfloat16", "cpu"),
        ([16, 32, 48], "float32", "cpu"),
        ([16, 32, 48], "bfloat16", "cuda:0"),
    ):
        check_patch_size(size, precision, device)
