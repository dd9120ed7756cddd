"""Intervals, tests and ranks against enumeration, closed forms, simulations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from synth.base.errors import SynthError
from synth.metrics import statistics

# --- the signed-rank test ------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [True, False])
def test_p_counts_signs_with_ties_and_zeros_and_without(ties: bool) -> None:
    """Pratt: zeros get ranks, and are then left out."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        d = rng.integers(-3, 6, 9) / 10 if ties else rng.normal(0.4, 1, 9)
        ranks = stats.rankdata(np.abs(d))[d != 0]
        total = ranks.sum()
        observed = abs(2 * ranks[d[d != 0] > 0].sum() - total)
        signs = itertools.product((-1, 1), repeat=len(ranks))
        as_far = [abs(np.dot(s, ranks)) >= observed - 1e-9 for s in signs]
        assert statistics.signed_rank(d).p_value == pytest.approx(np.mean(as_far), rel=1e-12)


def test_p_of_many_is_the_normal_one_of_signs_given_the_ranks() -> None:
    d = np.round(np.random.default_rng(0).normal(0.05, 1, 400), 1)  # many ties, some zeros
    assert (d == 0).sum() > 5
    ranks = stats.rankdata(np.abs(d)) * (d != 0)  # each has the sign of a coin
    z = (ranks * np.sign(d)).sum() / np.sqrt((ranks**2).sum())
    assert statistics.signed_rank(d).p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
    assert statistics.signed_rank(np.zeros(9)).p_value == 1


def test_effect_is_one_minus_two_shares_of_ranks() -> None:
    assert statistics.signed_rank(np.array([1.0, 2, 3])).effect == 1
    found = statistics.signed_rank(np.array([1.0, -2, 3, 0]))  # Pratt's ranks 2, 3, 4
    assert found.effect == pytest.approx((2 + 4 - 3) / 9)
    assert (found.positive, found.zero, found.negative) == (2, 1, 1)
    back = statistics.signed_rank(-np.array([1.0, -2, 3, 0]))
    assert (back.effect, back.p_value) == (-found.effect, found.p_value)


def test_noise_of_rounding_is_a_tie() -> None:
    d = np.array([0.3 - 0.2, 0.2 - 0.1, -0.1, 0.1 + 0.2 - 0.3])
    found = statistics.signed_rank(d)
    assert (found.positive, found.zero, found.negative) == (2, 1, 1)
    assert found.effect == pytest.approx(1 / 3)


def test_holm_by_hand() -> None:
    adjusted = statistics.holm([0.01, 0.04, math.nan, 0.03, 0.005])
    # Sorted .005 × 4, .01 × 3, .03 × 2, .04 × 1 → never below the one before.
    np.testing.assert_allclose(adjusted, [0.03, 0.06, math.nan, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


# --- intervals -----------------------------------------------------------------------------------


def test_interval_is_that_of_cases_drawn_by_hand() -> None:
    """The same draws, each patient's cases written out as often as it was drawn."""
    d = np.array([0.1, -0.2, 0.4, 0.0, 0.25, 0.3, -0.1])
    patients = ["a", "b", "b", "c", "d", "a", "e"]
    found = statistics.intervals(d, patients, seed=3, resamples=200)
    cases = {p: [x for x, q in zip(d, patients, strict=True) if p == q] for p in "abcde"}
    picks = np.random.default_rng(3).integers(5, size=(200, 5))
    drawn = [np.concatenate([cases["abcde"[i]] for i in row]) for row in picks]
    tail = stats.norm.cdf(-np.sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    for statistic, interval in ((np.mean, found.mean), (np.median, found.median)):
        expected = np.quantile([statistic(x) for x in drawn], [tail, 1 - tail])
        np.testing.assert_allclose(interval, expected, atol=1e-12)


def simulated(patients: int, each: int, sims: int, *, shared: float, effect: float, seed: int):
    """Differences of patients with `each` cases; a share of the variance is the patient's."""
    rng = np.random.default_rng(seed)
    names = [str(i // each) for i in range(patients * each)]
    for _ in range(sims):
        own = rng.normal(0, math.sqrt(shared), patients).repeat(each)
        yield effect + own + rng.normal(0, math.sqrt(1 - shared), len(names)), names


@pytest.mark.parametrize(("patients", "each", "shared"), [(12, 1, 0.0), (10, 4, 0.8)])
def test_intervals_cover_a_known_effect(patients: int, each: int, shared: float) -> None:
    sims, hits, naive = 400, 0, 0
    for d, names in simulated(patients, each, sims, shared=shared, effect=0.3, seed=1):
        low, high = statistics.intervals(d, names, resamples=400).mean
        hits += low <= 0.3 <= high
        low, high = statistics.intervals(d, resamples=400).mean
        naive += low <= 0.3 <= high
    # Binomial sd at 95 % of 400 is 1.1 %; 400 resamples add noise to the ends.
    assert 0.915 <= hits / sims <= 0.985
    if shared:
        assert naive / sims < 0.8  # cases as if they were patients


def test_the_test_keeps_its_level_and_finds_what_is_there() -> None:
    for effect, low, high in ((0.0, 0.02, 0.08), (1.0, 0.75, 1.0)):
        found = [
            statistics.signed_rank(statistics.patient_means(d, names)).p_value < 0.05
            for d, names in simulated(12, 2, 400, shared=0.5, effect=effect, seed=5)
        ]
        assert low <= np.mean(found) <= high


def test_standard_error_has_its_closed_forms() -> None:
    d = np.random.default_rng(0).normal(size=30)
    assert statistics.standard_error(d) == pytest.approx(d.std(ddof=1) / math.sqrt(30))
    twice = np.repeat(d, 3)  # three equal cases a patient know no more than one
    names = [str(i // 3) for i in range(90)]
    assert statistics.standard_error(twice, names) == pytest.approx(d.std(ddof=1) / math.sqrt(30))


def test_detectable_effect_is_found_in_four_of_five_samples() -> None:
    for n in (6, 12, 40):
        shift = statistics.detectable(1 / math.sqrt(n), n)
        draws = np.random.default_rng(n).normal(shift, 1, (20_000, n))
        found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
        assert found.mean() == pytest.approx(0.8, abs=0.009)  # three binomial sd
    # The normal closed form, and the sample sizes it gives for a difference of .009.
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert statistics.detectable(1.0, 100_000) == pytest.approx(z, rel=1e-4)
    for n, sd in ((38, 0.02), (241, 0.05), (967, 0.10)):
        assert statistics.detectable(sd / math.sqrt(n), n) == pytest.approx(0.009, rel=0.04)
    assert math.isnan(statistics.detectable(math.nan, 1))


# --- ranks ---------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    scores = np.array([  # (arms, cases, metrics): Dice, HD95
        [[0.9, 5.0], [0.5, math.nan]],
        [[0.9, 7.0], [0.6, 300.0]],
        [[0.8, 2.0], [0.7, math.nan]],
    ])  # fmt: skip
    expected = [[(1.5 + 2) / 2, (3 + 2.5) / 2], [(1.5 + 3) / 2, (2 + 1) / 2], [2, (1 + 2.5) / 2]]
    np.testing.assert_allclose(statistics.ranks(scores, [True, False]), expected)


def test_rank_test_counts_all_exchanges_of_patients() -> None:
    ours, theirs = np.array([1.0] * 6), np.array([2.0] * 6)
    assert statistics.rank_test(ours, theirs, list("abcdef")) == 2 / 2**6
    assert statistics.rank_test(ours, theirs, list("aabbcc")) == 2 / 2**3
    assert statistics.rank_test(ours, ours, list("abcdef")) == 1
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(0.6, 1, 14), np.zeros(14)
    names = [str(i) for i in range(14)]
    every = statistics.rank_test(ours, theirs, names)
    some = statistics.rank_test(ours, theirs, names, permutations=5000)
    assert some == pytest.approx(every, abs=3 * math.sqrt(every * (1 - every) / 5000))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_what_is_no_row_of_finite_numbers_is_refused(values) -> None:
    with pytest.raises(SynthError, match="finite numbers"):
        statistics.signed_rank(np.array(values))
    with pytest.raises(SynthError, match="patients for"):
        statistics.intervals(np.ones(3), ["a"])


def test_the_error_of_training_in_closed_form() -> None:
    runs = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 7.0, (1, 1): 7.0}
    assert statistics.training_error(runs) == (pytest.approx((2 / 2 / 4) ** 0.5), 2)
    apart = {(0, 0): 1.0, (1, 0): 3.0}  # folds stand in for seeds
    assert statistics.training_error(apart) == (pytest.approx(1.0), 1)
    assert math.isnan(statistics.training_error({(0, 0): 1.0})[0])
    error, freedom = statistics.combined([(3.0, 10), (4.0, 2)])
    assert error == 5
    assert freedom == pytest.approx(25**2 / (81 / 10 + 256 / 2))
    low, high = statistics.t_interval(1.0, 2.0, 4)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 4, loc=1, scale=2))
