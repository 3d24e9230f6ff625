# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Loss weights as pure functions of the optimization step; multiply by the largest weight.

All take the step, counted from 0, and the length of the ramp in steps, and hold their last value after that length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal


def _progress(step: int, length: int) -> float:
    """Part of the ramp that has passed, from 0 to 1; a ramp of length 0 has always passed."""
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step!r}.")
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length!r}.")
    return 1.0 if length == 0 else min(step / length, 1.0)


def sigmoid_ramp_up(step: int, length: int) -> float:
    r"""Rise from exp(-5), about 0.0067, to 1 along :math:`\exp(-5 (1 - \min(t / T, 1))^2)`.

    The Gaussian ramp-up of "Temporal Ensembling for Semi-Supervised Learning", https://arxiv.org/abs/1610.02242.

    Args:
        step: optimization steps done so far, t.
        length: steps until the value is 1, T; 0 means no ramp.

    Returns:
        The factor, above 0 and at most 1.

    Raises:
        ValueError: when step or length is negative.
    """
    return math.exp(-5.0 * (1.0 - _progress(step, length)) ** 2)


def stepped_sigmoid_ramp_up(step: int, length: int, interval: int = 150) -> float:
    """Rise like :func:`sigmoid_ramp_up`, but in stairs: the value changes only at multiples of ``interval``.

    The form of the public code for https://arxiv.org/abs/2505.17690: 40 stairs of 150 steps for a length of 6000.
    The value 1 comes at the first multiple of the interval that is not below ``length``.

    Args:
        step: optimization steps done so far.
        length: steps until the value is 1; 0 means no ramp.
        interval: steps on one stair, at least 1.

    Returns:
        The factor, above 0 and at most 1.

    Raises:
        ValueError: when step or length is negative, or interval is below 1.
    """
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval!r}.")
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step!r}.")
    return sigmoid_ramp_up(step // interval * interval, length=length)


def paper_literal_ramp(step: int, length: int) -> float:
    r"""Fall from exp(4), about 54.6, to 1 along :math:`\exp(+4 (1 - \min(t / T, 1))^2)`.

    The weight of the contrastive loss as printed in https://arxiv.org/abs/2505.17690 is 0.1 times this, from 5.46 to
    0.1: it is strongest on the untrained features, and probably a slip of the sign. Kept to reproduce the text.

    Args:
        step: optimization steps done so far, t.
        length: steps until the value is 1, T; 0 means no ramp.

    Returns:
        The factor, at least 1.

    Raises:
        ValueError: when step or length is negative.
    """
    return math.exp(4.0 * (1.0 - _progress(step, length)) ** 2)


def linear_ramp_up(step: int, length: int) -> float:
    r"""Rise from 0 to 1 along :math:`\min(t / T, 1)`.

    Args:
        step: optimization steps done so far, t.
        length: steps until the value is 1, T; 0 means no ramp.

    Returns:
        The factor from 0 to 1.

    Raises:
        ValueError: when step or length is negative.
    """
    return _progress(step, length)


def constant(step: int, length: int = 0) -> float:
    """Stay at 1, for a weight without a ramp; takes what the ramps take, so that it can stand in their place.

    Args:
        step: optimization steps done so far; has no effect.
        length: has no effect.

    Returns:
        1.

    Raises:
        ValueError: when step or length is negative.
    """
    _progress(step, length)
    return 1.0


Ramp = Literal["constant", "linear", "sigmoid", "stepped_sigmoid", "paper_literal"]

_RAMPS: dict[Ramp, Callable[[int, int], float]] = {
    "constant": constant,
    "linear": linear_ramp_up,
    "sigmoid": sigmoid_ramp_up,
    "stepped_sigmoid": stepped_sigmoid_ramp_up,
    "paper_literal": paper_literal_ramp,
}


def _check_weight(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value!r}.")


class Weight:
    """The weight of a loss term over the run: ``final * ramp(step, length)``.

    Args:
        final: weight at the end of the ramp, at least 0; 0 switches the term off.
        ramp: "constant", "linear", "sigmoid", "stepped_sigmoid" or "paper_literal".
        length: steps until the end of the ramp; must be given with a ramp, where 0 is the full weight from the first
            step on.

    Raises:
        ValueError: when an argument is outside its range, or a ramp has no length.
    """

    def __init__(self, final: float, ramp: Ramp = "constant", length: int | None = None) -> None:
        _check_weight("final", final)
        if ramp not in _RAMPS:
            raise ValueError(f"ramp must be one of {', '.join(_RAMPS)}, got {ramp!r}.")
        if length is None and ramp != "constant":
            raise ValueError(f"length is missing: steps until the end of the {ramp} ramp.")
        if length is not None and length < 0:
            raise ValueError(f"length must be at least 0, got {length!r}.")
        self.final = float(final)
        self.ramp: Ramp = ramp
        self.length = length or 0

    @classmethod
    def of(cls, value: Weight | float, name: str) -> Weight:
        """Accept a plain number as a constant weight.

        Args:
            value: a weight, or a number of at least 0.
            name: the argument that it was given for, for the message.

        Returns:
            the weight.

        Raises:
            ValueError: when the number is negative or not finite.
        """
        if isinstance(value, Weight):
            return value
        _check_weight(name, value)
        return cls(value)

    def __repr__(self) -> str:
        return f"Weight({self.final}, {self.ramp}, {self.length})"

    def __bool__(self) -> bool:
        return self.final > 0

    def __call__(self, step: int) -> float:
        """Give the weight at a step.

        Args:
            step: optimization steps done so far.

        Returns:
            the weight.
        """
        return self.final * _RAMPS[self.ramp](step, self.length)
