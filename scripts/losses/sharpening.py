# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Soft pseudo-labels: class probabilities pushed towards their largest."""

from __future__ import annotations

import torch


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that does not sharpen.

    Args:
        temperature: above 0 and at most 1.

    Raises:
        ValueError: when it is outside that range.
    """
    if not 0 < temperature <= 1:
        raise ValueError(f"temperature must be above 0 and at most 1, got {temperature!r}.")


def sharpen(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Raise probabilities to a power and scale them to sum to 1 again.

    .. math:: \hat p_i(c) = \frac{p_i(c)^{1 / T}}{\sum_k p_i(k)^{1 / T}}

    The pseudo-labels of MC-Net (https://arxiv.org/abs/2103.02911) and MCF. Temperature 1 changes nothing; towards 0
    the result becomes the arg-max. The gradient passes through.

    Args:
        probabilities: of each class, (B, C, X, Y, Z).
        temperature: T, above 0 and at most 1.

    Returns:
        sharpened probabilities in float32, (B, C, X, Y, Z).

    Raises:
        ValueError: when the temperature is outside its range.
    """
    check_temperature(temperature)
    probabilities = probabilities.float()
    # The fraction does not change when all classes are scaled alike; with the largest at 1, no sum underflows to 0.
    largest = probabilities.detach().amax(dim=1, keepdim=True)
    powers = (probabilities / largest).pow(1 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)
