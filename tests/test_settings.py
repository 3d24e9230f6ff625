# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused
from torch.optim import lr_scheduler as schedules

from scripts.errors import BundleError
from scripts.settings import check_evaluated_checkpoint, check_learning_rate, check_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", 0),
        ("iterations", 1.5),
        ("iterations", "abc"),
        ("val_interval", 0),
        ("checkpoint_interval", -1),
        ("labeled_batch_size", -1),
        ("labeled_batch_size", "two"),
        ("num_workers", -1),
        ("num_classes", "two"),
        ("num_classes", 1),
        ("seed", -1),
        ("seed", "abc"),
        ("cache_rate", 2),
        ("cache_num", -1),
        ("cache_dir", 3),
        ("cache_dir", ""),
        ("cache_dir", "null"),
        ("uses_boxes", "no"),
        ("keep_memory", "maybe"),
        ("spacing", "null"),
        ("cache_memory_gigabytes", 0),
        ("cache_gigabytes", 0),
        ("cache_gigabytes", "many"),
        ("skip_unreadable", "maybe"),
        ("precision", "bf16"),
        ("device", "cuda:99"),
        ("device", "gpu"),
        ("patch_size", [32, 32]),
        ("patch_size", [32, 32, 40]),
        ("patch_size", [32, 32, -16]),
        ("patch_size", 32),
        ("strides", [16, 16]),
        ("strides", 16),
        ("spacing", [1, 1]),
        ("spacing", [0, 1, 1]),
        ("spacing", "abc"),
        ("val_overlap", 1.5),
        ("foreground_share", 1),
        ("foreground_share", -0.1),
        ("resume", "maybe"),
        ("channels_last", "yes"),
        ("deterministic", "no"),
        ("class_names", "organ"),
        ("class_names", ["kidney", "kidney"]),
        ("class_names", ["kidney", " "]),
        ("normalization", "layer"),
        ("trained_margin", [1, 2]),
        ("trained_margin", [1, 2, -1]),
        ("crop_to_organs", True),
        ("trained_class_volumes", [1, 2]),
        ("trained_class_volumes", [[1, 2, 3]]),
        ("trained_class_volumes", [[2, 1]]),
        ("trained_class_volumes", [[-1, 1]]),
        ("trained_class_volumes", "[[1,2]"),
        ("test_time_views", None),
        ("test_time_views", {"turn": [0, 0, 0.25]}),
        ("test_time_views", [{}]),
        ("test_time_views", [{"turn": [0, 0.25]}]),
        ("test_time_views", [{"turn": [0, 0, "0.25"]}]),
        ("test_time_views", [{"turn": [0, 0, 15]}]),
        ("test_time_views", [{"size": 1.1}, {"size": 0}]),
        ("test_time_views", [{"size": 110}]),
        ("test_time_views", [{"size": [1.1, 1.1, 1.1]}]),
        ("test_time_views", [{"size": 1.1, "flip": 0}]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(name, value):
    with assert_refused(rf"^{name} must be .+, got "):
        check_settings(**{name: value})


def test_all_wrong_settings_are_named_at_once():
    with assert_refused(r"iterations must be .*; patch_size must be .*; seed must be "):
        check_settings(iterations=0, patch_size=[1, 2], seed=None, num_classes=2)


def test_names_must_fit_the_classes():
    with assert_refused(
        r"trained_class_volumes must be for the 2 class\(es\) without the background, got \[\[1, 2\]\]"
    ):
        check_settings(num_classes=3, trained_class_volumes=[[1, 2]])
    check_settings(num_classes=3, trained_class_volumes=[[1, 2], [0, 0.5]])
    with assert_refused(r"class_names must name the 2 class\(es\) without the background, got \['organ'\]"):
        check_settings(num_classes=3, class_names=["organ"])


def test_cropping_to_the_organ_needs_the_sizes_of_a_training():
    sizes = {"whole_volume": False, "trained_extent": [100, 90, 80], "trained_margin": [0, 5, 5.5]}
    check_settings(crop_to_organs=1, **sizes)
    check_settings(crop_to_organs=0, whole_volume=True, trained_extent=None, trained_margin=None)
    for name in ("trained_extent", "trained_margin"):
        with assert_refused(f"^crop_to_organs needs {name} in mm, as the inference.json of a run has it, got None.$"):
            check_settings(crop_to_organs=2, **{**sizes, name: None})
    check_settings(crop_to_organs=1, largest_component=True, **sizes)
    with assert_refused("^crop_to_organs must be at most 1 where largest_component is true"):
        check_settings(crop_to_organs=2, largest_component="true", **sizes)
    with assert_refused("^crop_to_organs must be 0 where whole_volume is true.$"):
        check_settings(crop_to_organs=1, **{**sizes, "whole_volume": "true"})


def test_allowed_settings_pass():
    allowed = {
        "iterations": 6000,
        "unlabeled_batch_size": 0,
        "spacing": [1, 1.25, 2],
        "patch_size": (96, 96, 96),
        "precision": "auto",
        "device": "cpu",
        "resume": "true",
        "channels_last": "false",
        "uses_boxes": False,
        "overwrite": False,
        "class_names": ["a", "b"],
        "num_classes": 3,
    }
    assert check_settings(**allowed) is None
    assert check_settings(spacing=None) is None
    # One wrong value among them is found, so the others were looked at and passed.
    with assert_refused(r"^seed must be [^;]*$"):
        check_settings(**allowed, seed=-1)


@pytest.mark.parametrize(("key", "value"), [("seed", "abc"), ("deterministic", "maybe")])
def test_what_is_set_at_the_very_beginning_costs_one_line_too(key, value, phantom_dir, tmp_path):
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "training",
        "--config_file",
        str(ROOT / "configs/train.json"),
    ]
    command += ["--dataset_dir", str(phantom_dir), "--output_dir", str(tmp_path / "run"), f"--{key}", value]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {key} must be ")
    assert not (tmp_path / "run").exists()


def test_windows_leave_no_voxel_out():
    check_settings(patch_size=[32, 16, 64], strides=[32, 16, 1])
    with pytest.raises(
        BundleError, match=r"^strides must be at most the patch_size \[32, 16, 64\], got \[32, 17, 1\]: "
    ):
        check_settings(patch_size=[32, 16, 64], strides=[32, 17, 1])


def test_the_best_weights_need_cases_that_choose_them():
    check_evaluated_checkpoint("model.pt", 1)
    check_evaluated_checkpoint("model_final.pt", 0)
    with pytest.raises(
        BundleError, match=r"^evaluated_checkpoint model\.pt is chosen by validation cases, and the split"
    ):
        check_evaluated_checkpoint("model.pt", 0)


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda of: schedules.StepLR(of, step_size=0), "StepLR fails at iteration 1 of 9: ZeroDivisionError: "),
        (lambda of: schedules.StepLR(of, step_size=7, gamma="x"), "StepLR fails at iteration 7 of 9: TypeError: "),
        (lambda of: schedules.OneCycleLR(of, 0.1, total_steps=5), "OneCycleLR fails at iteration 6 of 9: ValueError: "),
        (lambda of: schedules.LambdaLR(of, lambda step: 4 - step), r"5 of 9: .* becomes \[-0\.1\d*\]$"),
        (lambda of: schedules.LambdaLR(of, lambda step: math.inf if step == 8 else 1), r"8 of 9: .* becomes \[inf\]$"),
        (lambda of: schedules.LambdaLR(of, lambda step: (6 - step) ** 0.9), "7 of 9: TypeError: .* 'complex'$"),
    ],
)
def test_a_schedule_that_would_fail_in_the_midst_of_a_training_is_refused(schedule, message):
    with pytest.raises(BundleError, match=f"^lr_scheduler .*{message}"):
        check_learning_rate(schedule(optimizer()), 9)


class Keeping(schedules.LambdaLR):
    def __init__(self, of, kept):
        self.kept = kept
        super().__init__(of, lambda step: 1.0)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda of: schedules.LambdaLR(of, lambda step: np.exp(-step)), r"_last_lr = \[np\.float64\(0\.1\)\]"),
        (lambda of: schedules.LambdaLR(of, lambda step: np.exp(5.0 - step) if step > 5 else 1.0), "_last_lr = "),
        (lambda of: Keeping(of, lambda step: step), "kept = <function "),
        (lambda of: Keeping(of, threading.Lock()), "kept = <unlocked _th"),
    ],
)
def test_a_schedule_that_a_checkpoint_cannot_give_back_is_refused(schedule, message):
    with pytest.raises(
        BundleError,
        match=f"^lr_scheduler (LambdaLR|Keeping) or its optimizer keeps {message}.*, which a checkpoint cannot",
    ):
        check_learning_rate(schedule(optimizer()), 9)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda of: schedules.StepLR(of, step_size=3),
        lambda of: schedules.MultiStepLR(of, [2, 6]),
        lambda of: schedules.PolynomialLR(of, total_iters=9, power=0.9),
        lambda of: schedules.OneCycleLR(of, 0.1, total_steps=10),
        # Behind the last iteration, with a rate that trains nothing, a little below 0.
        lambda of: schedules.OneCycleLR(of, 0.1, total_steps=9, anneal_strategy="linear"),
        lambda of: schedules.SequentialLR(of, [schedules.ConstantLR(of), schedules.ExponentialLR(of, 0.9)], [4]),
    ],
)
def test_a_schedule_that_was_followed_to_its_end_begins_as_if_it_was_not(schedule):
    rates = []
    for check in (lambda *_: None, check_learning_rate):
        of = optimizer()
        steps = schedule(of)
        before = copy.deepcopy((of.state_dict(), steps.state_dict()))
        check(steps, 9)
        assert (of.state_dict(), steps.state_dict()) == before
        rates.append([])
        for _ in range(9):
            of.step()
            steps.step()
            rates[-1].append((of.param_groups[0]["lr"], of.param_groups[0]["momentum"]))
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


@pytest.mark.parametrize(
    ("schedule", "iterations", "first"),
    [
        (lambda of: schedules.PolynomialLR(of, total_iters=4), 5, 5),
        (lambda of: schedules.PolynomialLR(of, total_iters=4), 50, 5),
        (lambda of: schedules.PolynomialLR(of, total_iters=4), 4, None),
        # It comes to 0 in the midst, and rises again.
        (lambda of: schedules.CosineAnnealingLR(of, T_max=4), 8, None),
        (lambda of: schedules.LambdaLR(of, lambda step: 0), 3, 1),
        (lambda of: schedules.ConstantLR(of), 50, None),
    ],
)
def test_iterations_that_train_nothing_are_warned_of(schedule, iterations, first, caplog):
    check_learning_rate(schedule(optimizer()), iterations)
    message = f"the learning rate is 0 from iteration {first} of {iterations} on, which trains nothing"
    assert [message in line for line in caplog.messages] == [True] * (first is not None)


def test_a_schedule_that_needs_a_metric_or_is_not_of_torch_is_not_followed():
    class Own:
        steps = 0

        def step(self):
            self.steps += 1

    of, own = optimizer(), Own()
    plateau = schedules.ReduceLROnPlateau(of)
    # Without a metric its step would fail.
    with pytest.raises(TypeError, match="metrics"):
        plateau.step()
    before = copy.deepcopy((of.state_dict(), plateau.state_dict()))
    for schedule in (plateau, own):
        check_learning_rate(schedule, 9)
    assert (of.state_dict(), plateau.state_dict()) == before
    assert own.steps == 0
