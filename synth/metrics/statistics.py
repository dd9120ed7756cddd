"""Intervals and tests of means and paired differences, the same for every evaluation.

Pure functions of one number a case, mostly a paired difference. Cases of one patient are not
independent, so an interval draws patients, and a test is given patients' means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from synth.base.errors import SynthError

ALPHA = 0.05
POWER = 0.8
LEAST_PATIENTS = 6
"""With 5 the smallest two-sided signed-rank p is 2 / 2⁵ = 0.0625."""
SAME = 12  # decimals: differences of scores that agree to these are ties, not noise of rounding
BLOCK = 256  # resamples at a time, which bounds the memory


@dataclass(frozen=True, kw_only=True)
class SignedRank:
    """Wilcoxon's signed-rank test with Pratt's ranks."""

    p_value: float
    """Two-sided; 1 if no difference is other than zero."""
    effect: float
    """Matched-pairs rank-biserial correlation, −1 to 1; 0 if there is no difference."""
    positive: int
    zero: int
    negative: int


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Bootstrap intervals of the mean and of the median difference."""

    mean: tuple[float, float]
    median: tuple[float, float]


def signed_rank(differences: np.ndarray) -> SignedRank:
    """Test whether differences are symmetric about zero (Wilcoxon 1945, zeros as Pratt 1959).

    Zeros are ranked with the others and then left out. The effect is (W₊ − W₋) / (W₊ + W₋) (Kerby
    2014).
    """
    d = np.round(_finite(differences), SAME)
    ranks = stats.rankdata(np.abs(d)) * (d != 0)
    total = float(ranks.sum())
    return SignedRank(
        # scipy's test is undefined without a single difference.
        p_value=float(stats.wilcoxon(d, zero_method="pratt").pvalue) if total else 1.0,
        effect=float((ranks * np.sign(d)).sum()) / total if total else 0.0,
        positive=int((d > 0).sum()),
        zero=int((d == 0).sum()),
        negative=int((d < 0).sum()),
    )


def intervals(
    differences: np.ndarray,
    patients: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 1 - ALPHA,
) -> Intervals | None:
    """Bootstrap the mean and median over cases by drawing patients; None for a single patient.

    Without `patients` every case is of another one.
    Percentiles are those of Hesterberg (2015), "What teachers should know about the bootstrap":
    widened as Student's t is against the normal, since plain ones are too narrow for few patients.
    From twelve strongly skewed differences they still cover 88 % instead of 95.
    """
    d = _finite(differences)
    groups, count = _groups(patients, d)
    if count < 2:
        return None
    order = np.argsort(d, kind="stable")
    sums, sizes = np.bincount(groups, d, count), np.bincount(groups, minlength=count)
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    for first in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - first)
        picks = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        drawn = np.bincount(picks.ravel(), minlength=size * count).astype(float)
        drawn = drawn.reshape(size, count)  # how often each patient was drawn
        medians = _weighted_median(d[order], drawn[:, groups[order]])
        found.append(np.stack([drawn @ sums / (drawn @ sizes), medians]))
    t = stats.t.ppf((1 + level) / 2, count - 1)
    tail = float(stats.norm.cdf(-np.sqrt(count / (count - 1)) * t))
    low, high = np.quantile(np.concatenate(found, axis=1), [tail, 1 - tail], axis=1)
    return Intervals(mean=(float(low[0]), float(high[0])), median=(float(low[1]), float(high[1])))


def patient_means(differences: np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """Return the mean difference of each patient, in order of first appearance."""
    d = _finite(differences)
    groups, count = _groups(patients, d)
    return np.bincount(groups, d, count) / np.bincount(groups, minlength=count)


def standard_error(differences: np.ndarray, patients: Sequence[str] | None = None) -> float:
    """Cluster-robust standard error of the mean; SD / √n when every patient has one case."""
    d = _finite(differences)
    groups, count = _groups(patients, d)
    if count < 2:
        return np.nan
    sums = np.bincount(groups, d - d.mean(), count)
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(d))


def training_error(by_run: Mapping[tuple[int | None, int | None], float]) -> tuple[float, int]:
    """Return the standard error that luck in training adds to a mean over runs, and its freedom.

    `by_run` is (fold, seed) → mean difference. Seeds of one fold differ in luck alone. With a seed
    a fold the folds stand in, whose cases differ too: too wide rather than too narrow. (nan, 0) for
    a single run, of whose luck nothing is known.
    """
    folds: dict[int | None, list[float]] = {}
    for (fold, _), value in by_run.items():
        folds.setdefault(fold, []).append(value)
    count = len(by_run)
    freedom = count - len(folds)
    if freedom:
        within = sum(float(((np.array(own) - np.mean(own)) ** 2).sum()) for own in folds.values())
        return float(np.sqrt(within / freedom / count)), freedom
    if count > 1:
        return float(np.std(list(by_run.values()), ddof=1) / np.sqrt(count)), count - 1
    return np.nan, 0


def combined(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Add independent standard errors (error, freedom); freedom by Satterthwaite (1946)."""
    squares = np.array([error**2 for error, _ in parts])
    total = float(squares.sum())
    shares = sum(float(s) ** 2 / f for s, (_, f) in zip(squares, parts, strict=True) if s)
    return total**0.5, total**2 / shares if shares else float(min(f for _, f in parts))


def t_interval(
    mean: float, error: float, freedom: float, *, level: float = 1 - ALPHA
) -> tuple[float, float]:
    """Return Student's interval of a mean."""
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return mean - reach, mean + reach


def detectable(
    error: float, patients: float, *, power: float = POWER, alpha: float = ALPHA
) -> float:
    """Return the mean difference that a two-sided t-test of so many patients finds with `power`.

    `error` is the standard error of the mean. For many patients this is (z₀.₉₇₅ + z₀.₈) · error =
    2.80 · error; for few it is larger (non-central t).
    """
    if patients < 2 or not np.isfinite(error):
        return np.nan
    freedom = patients - 1
    critical = stats.t.ppf(1 - alpha / 2, freedom)

    def lacking(shift: float) -> float:
        # The other tail would find the wrong sign; at 80 % it holds less than one in 10⁵.
        return float(stats.nct.sf(critical, freedom, shift)) - power

    return error * float(optimize.brentq(lacking, 0, 1.5 * critical + 3))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of a family (Holm 1979); a nan (no test was possible) is left out."""
    p = np.asarray(p_values, float)
    tested = np.flatnonzero(~np.isnan(p))
    adjusted = np.full(len(p), np.nan)
    worst = 0.0
    for rank, index in enumerate(tested[np.argsort(p[tested], kind="stable")]):
        worst = max(worst, min(1.0, (len(tested) - rank) * float(p[index])))
        adjusted[index] = worst
    return adjusted.tolist()


def ranks(scores: np.ndarray, higher_is_better: Sequence[bool]) -> np.ndarray:
    """Rank arms case by case as BraTS does: (arms, cases, metrics) → (arms, cases), 1 is best.

    On every case and metric (a metric of a region counts as one) the arms are ranked, ties share
    the mean rank, and a score that does not exist comes last; the ranks of a case are averaged.
    """
    signed = np.where(np.asarray(higher_is_better), -scores, scores)
    signed = np.where(np.isnan(signed), np.inf, np.round(signed, SAME))
    return stats.rankdata(signed, axis=0).mean(axis=2)


def rank_test(
    ours: np.ndarray,
    theirs: np.ndarray,
    patients: Sequence[str],
    *,
    seed: int = 0,
    permutations: int = 20_000,
) -> float:
    """Return the two-sided p of a difference in mean rank, by exchanging the arms patient-wise.

    All exchanges are tried where there are no more than `permutations` of them.
    """
    d = _finite(np.asarray(ours, float) - np.asarray(theirs, float))
    groups, count = _groups(patients, d)
    if count < 2:
        return 1.0  # both exchanges are as far apart
    return float(
        stats.permutation_test(  # of one sample: its signs are exchanged
            (np.bincount(groups, d, count),), np.sum, permutation_type="samples",
            n_resamples=permutations, batch=BLOCK, rng=seed,
        ).pvalue
    )  # fmt: skip


def _weighted_median(ordered: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of values repeated `weights` (resamples, cases) times; values ascend."""
    reached = weights.cumsum(axis=1)
    half = reached[:, -1:] / 2
    below = (reached < half).sum(axis=1)
    above = (reached <= half).sum(axis=1)  # the next one, where half is reached exactly
    return (ordered[below] + ordered[above]) / 2


def _groups(patients: Sequence[str] | None, d: np.ndarray) -> tuple[np.ndarray, int]:
    if patients is None:
        return np.arange(len(d)), len(d)
    if len(patients) != len(d):
        raise SynthError(
            f"{len(patients)} patients for {len(d)} differences", hint="name one for each case"
        )
    number = {name: i for i, name in enumerate(dict.fromkeys(patients))}
    return np.array([number[name] for name in patients], int), len(number)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise SynthError(
            f"expected a row of finite numbers, got {int((~np.isfinite(values)).sum())} others in "
            f"shape {values.shape}",
            hint="leave pairs with NaN or Inf out, and say how many",
        )
    return values
