"""Intervals of means, and tests of paired scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from synth.base.errors import SynthError

BLOCK = 256  # resamples drawn at a time, which bounds the memory


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of a - b over the cases that both scored."""

    mean: float
    low: float
    """Lower end of the bootstrap interval of the mean."""
    high: float
    p_value: float
    """Two-sided Wilcoxon signed-rank; 1 if no case differs."""
    n: int


def bootstrap_ci(
    values: np.ndarray,
    statistic: Callable[..., np.ndarray] = np.mean,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of a statistic that takes `axis`."""
    values = _finite(values)
    rng = np.random.default_rng(seed)
    found = []
    for first in range(0, n, BLOCK):
        picks = rng.integers(len(values), size=(min(BLOCK, n - first), len(values)))
        found.append(statistic(values[picks], axis=1))
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a: np.ndarray, b: np.ndarray, *, seed: int = 0, level: float = 0.95
) -> PairedDifference:
    """Compare two scores of the same cases in the same order: mean of a - b, interval, p."""
    if np.shape(a) != np.shape(b):
        raise SynthError(
            f"paired scores differ in number: {np.shape(a)} vs {np.shape(b)}",
            hint="keep the cases that both models scored, in one order",
        )
    difference = _finite(np.asarray(a, float) - np.asarray(b, float))
    low, high = bootstrap_ci(difference, seed=seed, level=level)
    # scipy's test is undefined without a single difference.
    p = float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
    return PairedDifference(
        mean=float(difference.mean()), low=low, high=high, p_value=p, n=len(difference)
    )


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2:
        raise SynthError(
            f"an interval needs two values or more in one row, got shape {values.shape}",
            hint="score more cases",
        )
    if not np.isfinite(values).all():
        raise SynthError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} values are NaN or Inf",
            hint="leave them out yourself, and report over how many cases the mean is",
        )
    return values
