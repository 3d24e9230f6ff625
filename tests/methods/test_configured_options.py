# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The numbers in the overlays of the methods that mix crops, and of the controls: docs/methods.md names each."""

from __future__ import annotations

import pytest
from conftest import ROOT, assert_refused
from monai.bundle import ConfigParser
from tiny_pair import TinyPair, TinyStudent
from torch import nn

ITERATIONS = 1700
_MIXED = {"copy_paste.unlabeled_weight": 0.5, "box_fraction": 2 / 3, "teacher.decay": 0.99}
OPTIONS = {
    "bcp": {**_MIXED, "pretrain_iterations": 200, "teacher.mode": "training"},
    "sdcl": {
        **_MIXED,
        "pretrain_iterations": 383,
        "teacher.mode": "training",
        "distance.unlabeled_weight": 0.5,
        "distance_weight": 0.5,
        "entropy.unlabeled_weight": 0.5,
        "entropy_weight": 0.05,
    },
    "dual_copy_paste": {
        **_MIXED,
        "pretrain_iterations": 340,
        "teacher.mode": "evaluation",
        "consistency.mode": "voxel",
        "consistency_weight": 1.0,
    },
    "dual_mean_teacher": {
        "box_fraction": 2 / 3,
        "teacher.decay": 0.99,
        "teacher.mode": "evaluation",
        "supervised.dice_weight": 1.0,
        "supervised.cross_entropy_weight": 1.0,
        "pseudo_label.dice_weight": 0.0,
        "pseudo_label.cross_entropy_weight": 1.0,
        # At its full height after two fifths of the run.
        "pseudo_label_weight": 1.0,
    },
    "supervised_dual": {"rectification_weight": 0.0},
    "supervised_dual_rectified": {"rectification.threshold": 0.6, "rectification_weight": 0.5},
}


class TinySingle(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = TinyStudent(0, 2)


def configured(name, network=None):
    parser = ConfigParser(
        ConfigParser.load_config_files([str(ROOT / f"configs/{file}.json") for file in ("train", f"method_{name}")])
    )
    parser["network"] = network or (TinySingle() if name == "bcp" else TinyPair())
    parser["iterations"] = ITERATIONS
    return parser.get_parsed_content("method_def")


@pytest.mark.parametrize("name", OPTIONS)
def test_configured_options(name):
    method = configured(name)
    for path, expected in OPTIONS[name].items():
        value = method
        for attribute in path.split("."):
            value = getattr(value, attribute)
        if path.endswith("_weight") and callable(value):
            value = value(ITERATIONS)
        assert value == (expected if isinstance(expected, str) else pytest.approx(expected)), path


def test_the_ramp_of_the_pseudo_labels_takes_two_fifths_of_the_run():
    weight = configured("dual_mean_teacher").pseudo_label_weight
    assert weight(0) < 0.01
    assert weight(ITERATIONS * 2 // 5 - 50) < weight(ITERATIONS * 2 // 5) == 1.0


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/method_*.json")), ids=lambda file: file.stem)
def test_the_network_of_another_method_is_refused(file):
    with assert_refused("needs a network with [a-z_ ]+, got Identity: name the file of one method alone", ValueError):
        configured(file.stem.removeprefix("method_"), nn.Identity())
