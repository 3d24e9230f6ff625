# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Values and refusals of the weight schedules."""

from __future__ import annotations

import math

import pytest

from scripts.schedules import constant, linear_ramp_up, paper_literal_ramp, sigmoid_ramp_up, stepped_sigmoid_ramp_up

SCHEDULES = [sigmoid_ramp_up, stepped_sigmoid_ramp_up, paper_literal_ramp, linear_ramp_up, constant]


def test_sigmoid_values():
    assert sigmoid_ramp_up(0, length=6000) == pytest.approx(6.738e-3, rel=1e-4)
    assert sigmoid_ramp_up(3000, length=6000) == pytest.approx(math.exp(-1.25))
    assert sigmoid_ramp_up(6000, length=6000) == 1
    assert sigmoid_ramp_up(9999, length=6000) == 1


def test_stepped_values():
    # 40 stairs of 150 steps.
    for step in (0, 1, 149):
        assert stepped_sigmoid_ramp_up(step, length=6000) == pytest.approx(math.exp(-5))
    for step in (150, 299):
        assert stepped_sigmoid_ramp_up(step, length=6000) == pytest.approx(math.exp(-5 * (39 / 40) ** 2))
    assert stepped_sigmoid_ramp_up(5999, length=6000) == pytest.approx(math.exp(-5 / 40**2))
    assert stepped_sigmoid_ramp_up(6000, length=6000) == stepped_sigmoid_ramp_up(8000, length=6000) == 1
    assert len({stepped_sigmoid_ramp_up(step, length=6000) for step in range(7000)}) == 41
    # 0.1 times this at sixths of the training: stairs 0, 6, 13, 20, 26, 33 and 40.
    weights = [0.1 * stepped_sigmoid_ramp_up(step, length=6000) for step in range(0, 6001, 1000)]
    assert weights == pytest.approx([0.0007, 0.0027, 0.0102, 0.0287, 0.0542, 0.0858, 0.1], abs=1e-4)


def test_stepped_with_another_interval():
    assert stepped_sigmoid_ramp_up(77, length=100, interval=1) == sigmoid_ramp_up(77, length=100)
    assert stepped_sigmoid_ramp_up(99, length=100, interval=30) == sigmoid_ramp_up(90, length=100)
    assert stepped_sigmoid_ramp_up(119, length=100, interval=30) < 1 == stepped_sigmoid_ramp_up(120, 100, interval=30)


def test_paper_literal_values():
    assert 0.1 * paper_literal_ramp(0, length=6000) == pytest.approx(5.46, abs=1e-2)
    assert 0.1 * paper_literal_ramp(3000, length=6000) == pytest.approx(0.1 * math.e)
    assert paper_literal_ramp(6000, length=6000) == paper_literal_ramp(7000, length=6000) == 1


def test_linear_and_constant_values():
    assert [linear_ramp_up(step, length=4) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [constant(step) for step in (0, 1, 10**6)] == [1, 1, 1]
    assert constant(0, length=100) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_length_zero_is_no_ramp(schedule):
    assert schedule(0, length=0) == schedule(10, length=0) == 1
    assert isinstance(schedule(0, length=0), float)


@pytest.mark.parametrize("schedule", [sigmoid_ramp_up, stepped_sigmoid_ramp_up, linear_ramp_up])
def test_ramps_never_fall(schedule):
    values = [schedule(step, length=500) for step in range(700)]
    assert values == sorted(values)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_negative_arguments_are_refused(schedule):
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        schedule(-1, length=10)
    with pytest.raises(ValueError, match="length must be at least 0, got -10"):
        schedule(0, length=-10)


def test_interval_is_refused_below_one():
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        stepped_sigmoid_ramp_up(0, length=10, interval=0)
