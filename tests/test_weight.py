# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values and refusals of the weight of a loss term."""

from __future__ import annotations

import math
import pickle
import re
from typing import get_args

import pytest

from scripts.schedules import Ramp, Weight


@pytest.mark.parametrize(
    ("ramp", "start", "middle"),
    [
        ("constant", 0.5, 0.5),
        ("linear", 0.0, 0.25),
        ("sigmoid", 0.5 * math.exp(-5), 0.5 * math.exp(-1.25)),
        ("stepped_sigmoid", 0.5 * math.exp(-5), 0.5 * math.exp(-1.25)),
        ("paper_literal", 0.5 * math.exp(4), 0.5 * math.e),
    ],
)
def test_values_of_each_ramp(ramp, start, middle):
    weight = Weight(0.5, ramp, 6000)
    assert [weight(step) for step in (0, 3000, 6000, 9000)] == pytest.approx([start, middle, 0.5, 0.5])
    assert isinstance(weight(0), float)


def test_every_ramp_is_in_the_table_above():
    assert set(get_args(Ramp)) == {"constant", "linear", "sigmoid", "stepped_sigmoid", "paper_literal"}


def test_contrastive_weight_of_the_paper_and_of_its_code():
    assert Weight(0.1, "paper_literal", 6000)(0) == pytest.approx(5.46, abs=0.01)
    assert Weight(0.1, "stepped_sigmoid", 6000)(0) == pytest.approx(6.7e-4, abs=1e-5)
    assert Weight(0.1, "stepped_sigmoid", 6000)(149) == Weight(0.1, "stepped_sigmoid", 6000)(0)


def test_default_is_constant():
    weight = Weight(2)
    assert (weight.final, weight.ramp, weight.length) == (2.0, "constant", 0)
    assert [weight(step) for step in (0, 1, 10**9)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("ramp", get_args(Ramp))
def test_length_zero_is_no_ramp(ramp):
    assert Weight(0.3, ramp, 0)(0) == 0.3


@pytest.mark.parametrize("ramp", get_args(Ramp))
def test_zero_is_switched_off(ramp):
    weight = Weight(0.0, ramp, 10)
    assert not weight
    assert [weight(step) for step in (0, 5, 10)] == [0.0, 0.0, 0.0]
    assert Weight(1e-6, ramp, 10)


def test_a_ramp_from_zero_is_switched_on():
    # A term whose weight is 0 at the first step only must not be left out.
    weight = Weight(1.0, "linear", 10)
    assert weight(0) == 0.0
    assert weight


def test_of_takes_numbers_and_weights():
    weight = Weight(0.1, "sigmoid", 10)
    assert Weight.of(weight, "w") is weight
    for number in (3, 3.0):
        assert Weight.of(number, "w")(0) == Weight.of(number, "w")(99) == 3.0
    assert not Weight.of(0, "w")


def test_it_has_no_state():
    weight = Weight(1.0, "linear", 4)
    assert [weight(step) for step in (3, 0, 3)] == [0.75, 0.0, 0.75]
    assert pickle.loads(pickle.dumps(weight))(3) == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1,), r"final must be at least 0.*, got -0\.1"),
        ((math.nan,), "final must be at least 0.*, got nan"),
        ((math.inf,), "final must be at least 0.*, got inf"),
        (
            (1.0, "cosine"),
            "ramp must be one of constant, linear, sigmoid, stepped_sigmoid, paper_literal, got 'cosine'",
        ),
        ((1.0, "linear", -1), "length must be at least 0, got -1"),
        ((1.0, "sigmoid"), "length is missing: steps until the end of the sigmoid ramp"),
    ],
)
def test_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Weight(*arguments)


def test_negative_number_and_step_are_refused():
    with pytest.raises(ValueError, match=r"distance_weight must be at least 0.*, got -1"):
        Weight.of(-1, "distance_weight")
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        Weight(1.0)(-1)


@pytest.mark.parametrize("value", ["abc", (0, 5), None])
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(
        ValueError, match=f"^distance_weight must be at least 0 and finite, got {re.escape(repr(value))}"
    ):
        Weight.of(value, "distance_weight")
