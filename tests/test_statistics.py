"""Intervals and paired tests against scipy."""

import numpy as np
import pytest
from scipy import stats

from synth.base.errors import SynthError
from synth.metrics.statistics import bootstrap_ci, paired_difference


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_interval_equals_scipys_percentile_bootstrap(statistic) -> None:
    values = np.random.default_rng(0).gamma(2, size=40)
    ours = bootstrap_ci(values, statistic, n=20000, seed=1, level=0.9)
    theirs = stats.bootstrap(
        (values,), statistic, n_resamples=20000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    # Two Monte-Carlo quantiles of 20 000 draws each: about 2 % of the interval apart at most.
    np.testing.assert_allclose(ours, theirs, atol=0.03 * (theirs.high - theirs.low))


def test_interval_of_a_mean_is_the_normal_one_and_covers() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    error = values.std() / 20
    low, high = bootstrap_ci(values)
    assert (low, high) == bootstrap_ci(values)  # a seed, not a mood
    np.testing.assert_allclose(
        (low, high), values.mean() + np.array([-1.96, 1.96]) * error, atol=0.2 * error
    )
    hits = 0
    for seed in range(200):
        low, high = bootstrap_ci(rng.normal(size=50), n=500, seed=seed)
        hits += low <= 0 <= high
    # 95 % nominal, about 94 % at n = 50; four standard errors of 200 trials below that.
    assert hits / 200 > 0.87


def test_paired_difference_equals_wilcoxon() -> None:
    rng = np.random.default_rng(0)
    b = rng.random(25)
    a = b + rng.normal(0.05, 0.1, 25)
    got = paired_difference(a, b)
    assert got.mean == pytest.approx((a - b).mean())
    assert got.p_value == stats.wilcoxon(a, b).pvalue
    assert (got.low, got.high) == bootstrap_ci(a - b)
    assert got.n == 25
    back = paired_difference(b, a)
    assert back.mean == -got.mean
    assert back.p_value == pytest.approx(got.p_value)


def test_no_difference_is_no_evidence() -> None:
    same = np.linspace(0, 1, 9)
    got = paired_difference(same, same)
    assert (got.mean, got.low, got.high, got.p_value) == (0, 0, 0, 1)


def test_refusals() -> None:
    with pytest.raises(SynthError, match="1 of 3 values are NaN"):
        bootstrap_ci(np.array([1, np.nan, 2]))
    with pytest.raises(SynthError, match="two values or more"):
        bootstrap_ci(np.array([1.0]))
    with pytest.raises(SynthError, match="differ in number"):
        paired_difference(np.ones(3), np.ones(4))
