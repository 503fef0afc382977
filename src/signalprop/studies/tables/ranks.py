"""Mean ranks over tables, and Wilcoxon's signed-rank test of pairs (scipy's)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Mean rank of every method, 1 the best; equal scores share their ranks.

    Args:
        scores: (tables, methods), higher is better.

    Returns:
        (methods,).
    """
    from scipy.stats import rankdata

    # accuracies that differ by rounding are equal
    return rankdata(-np.asarray(scores).round(9), axis=1, method="average").mean(0)


def paired(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test over pairs; 1 where no pair differs."""
    from scipy.stats import wilcoxon

    differences = (np.asarray(first) - np.asarray(second)).round(9)
    # Pratt's way to count ties: they speak for neither
    return float(wilcoxon(differences, zero_method="pratt").pvalue) if differences.any() else 1.0
