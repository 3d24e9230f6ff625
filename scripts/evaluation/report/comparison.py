# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Paired tests of each method against one of them, over the cases that both were evaluated on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from .grid import GridResults

#: Metrics of which more is better; of the others, all distances, less is.
HIGHER_IS_BETTER = ("dice", "jaccard")


def compare(grid: GridResults, reference: str, metric: str) -> pd.DataFrame:
    """Test each method against the reference method by the Wilcoxon signed-rank test over cases.

    Only what both methods have counts, see :func:`paired_differences`. The p values are corrected for their number by
    Holm's procedure, those of the upper bounds apart: they ask another question.

    Args:
        grid: the grid of runs.
        reference: name of an evaluated method.
        metric: name of a metric.

    Returns:
        A row for each other evaluated method with the columns ``method``, ``upper_bound``, ``cases``, ``pairs`` (of the
        same case, class, split and seed), ``mean_difference`` and ``median_difference`` over the cases (method minus
        reference), ``better`` and ``worse`` (numbers of cases), ``p`` and ``p_holm`` (NaN without a common case).
    """
    rows = []
    for method in grid.evaluated_methods:
        if method != reference:
            pairs = paired_differences(grid, method, reference, metric)
            # Means over classes and seeds leave rounding residues where two methods agree, which would be ranked.
            difference = pairs.groupby(level="case", sort=False).mean().round(12)
            gain = difference if metric in HIGHER_IS_BETTER else -difference
            rows.append(
                {
                    "method": method,
                    "upper_bound": method in grid.upper_bounds,
                    "cases": len(difference),
                    "pairs": len(pairs),
                    "mean_difference": difference.mean(),
                    "median_difference": difference.median(),
                    "better": int((gain > 0).sum()),
                    "worse": int((gain < 0).sum()),
                    "p": signed_rank_p(difference.to_numpy()),
                }
            )
    names = ["method", "upper_bound", "cases", "pairs", "mean_difference", "median_difference", "better", "worse", "p"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(p_holm=table.groupby("upper_bound")["p"].transform(lambda p_values: holm(p_values.tolist())))


def paired_differences(grid: GridResults, method: str, reference: str, metric: str) -> pd.Series:
    """Differences of a metric between two methods, for each case and class of the runs that both have.

    A distance counts where both found the class: a method that misses a difficult one must not gain from what the
    other one measures there. Runs and classes of one case are no independent observations, so that a test takes their
    mean.

    Args:
        grid: the grid of runs.
        method: name of an evaluated method.
        reference: name of another one.
        metric: name of a metric.

    Returns:
        Method minus reference; the index is case and class, which come again in every common split and seed.
    """
    ours, theirs = grid.evaluated(method), grid.evaluated(reference)
    differences = [ours[run].values[metric] - theirs[run].values[metric] for run in ours if run in theirs]
    if not differences:
        index = pd.MultiIndex.from_arrays([[], []], names=["case", "class"])
        return pd.Series(index=index, dtype=float)
    return pd.concat(differences).dropna()


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test that the differences are symmetric around zero.

    Args:
        differences: one number a case; zeros are left out by the test.

    Returns:
        The p value: 1 when all differences are zero, NaN when there are none.
    """
    if differences.size == 0:
        return float("nan")
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's step-down procedure.

    With m of them in ascending order, ``corrected_k = max over i <= k of min(1, (m - i + 1) p_i)``.

    Args:
        p_values: p values; NaN, a test that was not made, stays NaN and does not count.

    Returns:
        The corrected values in the given order.
    """
    values = np.asarray(p_values, dtype=float)
    # NaN is sorted to the end.
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]
    corrected = np.full(values.shape, np.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, factors * values[order]))
    return corrected.tolist()
