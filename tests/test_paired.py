"""Paired statistics against scipy, enumeration, closed forms, simulations; verdicts; pictures."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from scipy import stats

from synth.base.errors import SynthError
from synth.evaluate.comparison import as_json, compare, contrast_rows, verdict
from synth.evaluate.comparison_endpoints import Endpoint, contrast, pair
from synth.evaluate.comparison_pictures import BETTER, WORSE, forest, paired_lines
from synth.evaluate.segmentation_scores import REGIONS, RegionScore
from synth.metrics import paired_tests

# --- the signed-rank test ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 9, 17, 40])
def test_p_is_scipys_exact_one_without_ties(n: int) -> None:
    for seed in range(5):
        d = np.random.default_rng(seed).normal(0.4, 1, n)
        expected = stats.wilcoxon(d, method="exact").pvalue
        assert paired_tests.signed_rank(d).p_value == pytest.approx(expected, rel=1e-12)


def test_p_counts_signs_where_there_are_ties_and_zeros() -> None:
    """Pratt: zeros get ranks, and are then left out."""
    for seed in range(12):
        d = np.random.default_rng(seed).integers(-3, 6, 9) / 10
        ranks = stats.rankdata(np.abs(d))[d != 0]
        total = ranks.sum()
        observed = abs(2 * ranks[d[d != 0] > 0].sum() - total)
        signs = itertools.product((-1, 1), repeat=len(ranks))
        as_far = [abs(np.dot(s, ranks)) >= observed - 1e-9 for s in signs]
        assert paired_tests.signed_rank(d).p_value == pytest.approx(np.mean(as_far), rel=1e-12)


def test_p_of_many_is_scipys_approximation_with_pratt_and_joins_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    d = np.round(rng.normal(0.05, 1, 400), 1)  # many ties, some zeros
    assert (d == 0).sum() > 5
    expected = stats.wilcoxon(d, zero_method="pratt", method="asymptotic", correction=False).pvalue
    assert paired_tests.signed_rank(d).p_value == pytest.approx(expected, rel=1e-9)
    below = np.round(rng.normal(0.1, 1, paired_tests.EXACT_UP_TO), 1)
    near = stats.wilcoxon(below, zero_method="pratt", method="asymptotic").pvalue
    assert paired_tests.signed_rank(below).p_value == pytest.approx(near, abs=0.005)  # n = 200


def test_effect_is_one_minus_two_shares_of_ranks() -> None:
    assert paired_tests.signed_rank(np.array([1.0, 2, 3])).effect == 1
    found = paired_tests.signed_rank(np.array([1.0, -2, 3, 0]))  # Pratt's ranks 2, 3, 4
    assert found.effect == pytest.approx((2 + 4 - 3) / 9)
    assert (found.positive, found.zero, found.negative) == (2, 1, 1)
    back = paired_tests.signed_rank(-np.array([1.0, -2, 3, 0]))
    assert (back.effect, back.p_value) == (-found.effect, found.p_value)


def test_noise_of_rounding_is_a_tie() -> None:
    d = np.array([0.3 - 0.2, 0.2 - 0.1, -0.1, 0.1 + 0.2 - 0.3])
    found = paired_tests.signed_rank(d)
    assert (found.positive, found.zero, found.negative) == (2, 1, 1)
    assert found.effect == pytest.approx(1 / 3)


def test_holm_by_hand() -> None:
    adjusted = paired_tests.holm([0.01, 0.04, math.nan, 0.03, 0.005])
    # Sorted .005 × 4, .01 × 3, .03 × 2, .04 × 1 → never below the one before.
    np.testing.assert_allclose(adjusted, [0.03, 0.06, math.nan, 0.06, 0.02])
    assert paired_tests.holm([0.9, 0.8]) == [1.0, 1.0]
    assert paired_tests.holm([]) == []


# --- intervals -----------------------------------------------------------------------------------


def test_interval_is_that_of_cases_drawn_by_hand() -> None:
    """The same draws, each patient's cases written out as often as it was drawn."""
    d = np.array([0.1, -0.2, 0.4, 0.0, 0.25, 0.3, -0.1])
    patients = ["a", "b", "b", "c", "d", "a", "e"]
    found = paired_tests.intervals(d, patients, seed=3, resamples=200)
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
        low, high = paired_tests.intervals(d, names, resamples=400).mean
        hits += low <= 0.3 <= high
        low, high = paired_tests.intervals(d, [str(i) for i in range(len(d))], resamples=400).mean
        naive += low <= 0.3 <= high
    # Binomial sd at 95 % of 400 is 1.1 %; 400 resamples add noise to the ends.
    assert 0.915 <= hits / sims <= 0.985
    if shared:
        assert naive / sims < 0.8  # cases as if they were patients


def test_the_test_keeps_its_level_and_finds_what_is_there() -> None:
    for effect, low, high in ((0.0, 0.02, 0.08), (1.0, 0.75, 1.0)):
        found = [
            paired_tests.signed_rank(paired_tests.patient_means(d, names)).p_value < 0.05
            for d, names in simulated(12, 2, 400, shared=0.5, effect=effect, seed=5)
        ]
        assert low <= np.mean(found) <= high


def test_standard_error_has_its_closed_forms() -> None:
    d = np.random.default_rng(0).normal(size=30)
    alone = [str(i) for i in range(30)]
    assert paired_tests.standard_error(d, alone) == pytest.approx(d.std(ddof=1) / math.sqrt(30))
    twice = np.repeat(d, 3)  # three equal cases a patient know no more than one
    names = [str(i // 3) for i in range(90)]
    assert paired_tests.standard_error(twice, names) == pytest.approx(d.std(ddof=1) / math.sqrt(30))


def test_detectable_effect_is_found_in_four_of_five_samples() -> None:
    for n in (6, 12, 40):
        shift = paired_tests.detectable(1 / math.sqrt(n), n)
        draws = np.random.default_rng(n).normal(shift, 1, (20_000, n))
        found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
        assert found.mean() == pytest.approx(0.8, abs=0.009)  # three binomial sd
    # The normal closed form, and the sample sizes it gives for a difference of .009.
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert paired_tests.detectable(1.0, 100_000) == pytest.approx(z, rel=1e-4)
    for n, sd in ((38, 0.02), (241, 0.05), (967, 0.10)):
        assert paired_tests.detectable(sd / math.sqrt(n), n) == pytest.approx(0.009, rel=0.04)
    assert math.isnan(paired_tests.detectable(math.nan, 1))


# --- ranks ---------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    scores = np.array([  # (arms, cases, metrics): Dice, HD95
        [[0.9, 5.0], [0.5, math.nan]],
        [[0.9, 7.0], [0.6, 300.0]],
        [[0.8, 2.0], [0.7, math.nan]],
    ])  # fmt: skip
    expected = [[(1.5 + 2) / 2, (3 + 2.5) / 2], [(1.5 + 3) / 2, (2 + 1) / 2], [2, (1 + 2.5) / 2]]
    np.testing.assert_allclose(paired_tests.ranks(scores, [True, False]), expected)


def test_rank_test_counts_all_exchanges_of_patients() -> None:
    ours, theirs = np.array([1.0] * 6), np.array([2.0] * 6)
    assert paired_tests.rank_test(ours, theirs, list("abcdef")) == 2 / 2**6
    assert paired_tests.rank_test(ours, theirs, list("aabbcc")) == 2 / 2**3
    assert paired_tests.rank_test(ours, ours, list("abcdef")) == 1
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(0.6, 1, 14), np.zeros(14)
    names = [str(i) for i in range(14)]
    every = paired_tests.rank_test(ours, theirs, names)
    some = paired_tests.rank_test(ours, theirs, names, permutations=5000)
    assert some == pytest.approx(every, abs=3 * math.sqrt(every * (1 - every) / 5000))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_what_is_no_row_of_finite_numbers_is_refused(values) -> None:
    with pytest.raises(SynthError, match="finite numbers"):
        paired_tests.signed_rank(np.array(values))
    with pytest.raises(SynthError, match="patients for"):
        paired_tests.intervals(np.ones(3), ["a"])


# --- arms ----------------------------------------------------------------------------------------


def arm(
    shift: float,
    *,
    cases: int = 20,
    seeds=(None,),
    noise: float = 0.01,
    seed: int = 0,
    each: int = 1,
) -> list[RegionScore]:
    """Scores whose Dice is the case's own plus a shift; HD95 falls as Dice rises."""
    rng = np.random.default_rng(seed)
    rows = []
    for case, run, region in itertools.product(range(cases), seeds, REGIONS):
        own = np.random.default_rng(case).uniform(0.5, 0.8)
        dice = own + shift + rng.normal(0, noise)
        values = {
            "dice": dice,
            "hd95": 50 * (1 - dice),
            "lesion_dice": dice,
            "lesion_hd95": 1 / dice,
        }
        rows.append(
            RegionScore(
                case=f"c{case}", patient=f"p{case // each}", region=region, convention="2023",
                seed=run, values=values | {"nsd_1mm": dice**2},
            )
        )  # fmt: skip
    return rows


def test_a_gain_a_loss_and_nothing_are_said_in_words() -> None:
    arms = {"base": arm(0), "better": arm(0.05, seed=1), "worse": arm(-0.05, seed=2),
            "copies": arm(0), "other": arm(0, seed=7)}  # fmt: skip
    gain = compare(arms, "better", "base")
    assert gain.verdict.startswith(
        "better against base, mean Dice over WT, TC and ET (2023): a gain"
    )
    assert gain.primary.direction == 1
    assert gain.primary.mean == pytest.approx(0.05, abs=0.01)
    assert gain.primary.mean_interval[0] > 0
    assert "80 % power" in gain.verdict
    loss = compare(arms, "worse", "base")
    assert ": a loss of −0.0" in loss.verdict
    assert loss.primary.direction == -1
    same = compare(arms, "copies", "base")
    assert "no evidence that they differ, every difference is zero" in same.verdict
    assert (same.primary.p_value, same.primary.effect, same.primary.equal) == (1, 0, 20)
    assert same.primary.mean_interval == (0, 0)
    assert "no evidence that they differ, " in compare(arms, "other", "base").verdict
    assert gain.ranks["better"] == 1
    assert gain.ranks["worse"] == 5
    assert gain.rank_p < 0.001
    assert same.rank_p == 1


def test_less_is_better_for_distances() -> None:
    arms = {"base": arm(0), "better": arm(0.05, seed=1)}
    found = contrast(arms, "better", "base", Endpoint(region="WT", metric="hd95"))
    assert found.mean < 0
    assert (found.direction, found.better, found.worse) == (1, 20, 0)
    assert "a gain of −2." in verdict(found)


def test_seeds_are_averaged_within_a_case_and_are_no_cases() -> None:
    base, other = arm(0, seeds=(0, 1, 2), noise=0), arm(0.02, seeds=(0, 1, 2), noise=0.1, seed=1)
    pairs = pair(base, other, Endpoint())
    assert len(pairs.cases) == 20
    table = {(r.case, r.seed, r.region): r.values["dice"] for r in other}
    expected = [
        np.mean([table[case, s, r] for s in range(3) for r in REGIONS]) for case in pairs.cases
    ]
    np.testing.assert_allclose(pairs.treated, expected, rtol=1e-12)
    by_seed = [
        np.mean([table[c, s, r] for c in pairs.cases for r in REGIONS]) - pairs.control.mean()
        for s in range(3)
    ]
    np.testing.assert_allclose(list(pairs.by_seed.values()), by_seed, rtol=1e-9)
    found = contrast({"a": base, "b": other}, "b", "a", Endpoint())
    assert found.cases == found.better + found.equal + found.worse == 20
    assert found.runs == 3
    # A seed of one arm only takes no part.
    fewer = [r for r in other if (r.case, r.seed) != ("c3", 2)]
    assert compare({"a": base, "b": fewer}, "b", "a").unpaired == 1


def lucky(shift: float, luck: float, seeds: int, *, seed: int, folds: int = 1):
    """An arm whose trainings shift all their cases alike."""
    rng = np.random.default_rng(seed)
    rows = []
    for fold, run in itertools.product(range(folds), range(seeds)):
        own = arm(shift + rng.normal(0, luck), seeds=(run,), noise=0.01, seed=seed * 99 + run)
        rows += [replace(r, case=f"{fold}-{r.case}", patient=f"{fold}-{r.patient}", fold=fold)
                 for r in own]  # fmt: skip
    return rows


def test_luck_in_training_is_no_effect() -> None:
    """Equal arms, whose trainings differ by twice what cases do: cases alone cry wolf."""
    wolf = {"patients": 0, "both": 0}
    for k in range(60):
        arms = {"a": lucky(0, 0.02, 3, seed=2 * k + 1), "b": lucky(0, 0.02, 3, seed=2 * k + 2)}
        found = contrast(arms, "b", "a", Endpoint())
        low, high = found.patients_interval
        wolf["patients"] += not low <= 0 <= high
        wolf["both"] += found.direction != 0
    assert wolf["patients"] > 30  # of 60, where 3 were promised
    assert wolf["both"] <= 6
    # What is far larger than luck is still found.
    arms = {"a": lucky(0, 0.02, 3, seed=1), "b": lucky(0.2, 0.02, 3, seed=2)}
    found = contrast(arms, "b", "a", Endpoint())
    assert found.direction == 1
    assert "3 trainings of each arm" in verdict(found)


def test_from_one_training_nothing_is_concluded() -> None:
    arms = {"a": lucky(0, 0.02, 1, seed=1), "b": lucky(0.2, 0.02, 1, seed=2)}
    found = contrast(arms, "b", "a", Endpoint())
    assert found.direction == 0
    assert found.patients_interval[0] > 0.1
    assert "nothing can be said from one training of each arm, +0.1944" in verdict(found)


def test_the_error_of_training_in_closed_form() -> None:
    runs = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 7.0, (1, 1): 7.0}
    assert paired_tests.training_error(runs) == (pytest.approx((2 / 2 / 4) ** 0.5), 2)
    apart = {(0, 0): 1.0, (1, 0): 3.0}  # folds stand in for seeds
    assert paired_tests.training_error(apart) == (pytest.approx(1.0), 1)
    assert math.isnan(paired_tests.training_error({(0, 0): 1.0})[0])
    error, freedom = paired_tests.combined([(3.0, 10), (4.0, 2)])
    assert error == 5
    assert freedom == pytest.approx(25**2 / (81 / 10 + 256 / 2))
    low, high = paired_tests.t_interval(1.0, 2.0, 4)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 4, loc=1, scale=2))


def test_patients_are_what_is_tested() -> None:
    arms = {"base": arm(0, each=2), "other": arm(0.05, each=2, seed=1)}
    found = contrast(arms, "other", "base", Endpoint())
    assert (found.cases, found.patients) == (20, 10)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert found.better == 10


def changed(rows, case: str, metric: str, value: float, region: str = "ET") -> list[RegionScore]:
    return [
        replace(r, values={**r.values, metric: value})
        if (r.case, r.region) == (case, region)
        else r
        for r in rows
    ]


def test_numbers_that_do_not_exist_are_left_out_and_counted() -> None:
    base, other = arm(0), arm(0.05, seed=1)
    base, other = changed(base, "c1", "hd95", math.inf), changed(other, "c1", "hd95", math.inf)
    base = changed(base, "c2", "hd95", math.nan)
    endpoint = Endpoint(region="ET", metric="hd95")
    found = contrast({"base": base, "other": other}, "other", "base", endpoint)
    assert (found.cases, found.excluded, found.one_sided) == (18, 2, 1)
    assert math.isfinite(found.mean)
    assert "2 pairs without a number were left out; in 1 one arm only had one" in verdict(found)
    # The mean over regions is over those that both arms have: no region weighs in one arm only.
    mean = pair(base, other, Endpoint(metric="hd95"))
    assert len(mean.cases) == 20
    own = {r.region: r.values["hd95"] for r in base if r.case == "c2"}
    assert mean.control[2] == pytest.approx((own["WT"] + own["TC"]) / 2)
    nothing = [replace(r, values={**r.values, "dice": math.nan}) for r in base]
    found = contrast({"base": nothing, "other": other}, "other", "base", Endpoint())
    assert "no case has the number in both arms" in verdict(found)
    assert found.cases == 0


def test_too_few_patients_allow_no_statement() -> None:
    for cases in (1, 5):
        arms = {"base": arm(0, cases=cases), "other": arm(0.2, cases=cases, seed=1)}
        found = compare(arms, "other", "base")
        assert f"nothing can be said from {cases} cases" in found.verdict
        assert math.isnan(found.primary.p_value)
        assert found.primary.direction == 0
    six = {"base": arm(0, cases=6), "other": arm(0.2, cases=6, seed=1)}
    assert "a gain" in compare(six, "other", "base").verdict


def test_secondary_endpoints_are_adjusted_within_their_convention() -> None:
    base, other = arm(0), arm(0.004, seed=1)
    newer = [[replace(r, convention="2025") for r in rows] for rows in (base, other)]
    found = compare({"base": base + newer[0], "other": other + newer[1]}, "other", "base")
    for convention in ("2023", "2025"):
        family = [c for c in found.secondary if c.endpoint.convention == convention]
        assert len(family) == 15
        np.testing.assert_allclose(
            [c.p_holm for c in family], paired_tests.holm([c.p_value for c in family])
        )
    assert math.isnan(found.primary.p_holm)


def test_a_comparison_is_json_and_a_table() -> None:
    found = compare({"base": arm(0, cases=1), "other": arm(0.1, cases=1)}, "other", "base")
    values = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert values["primary"]["p_value"] is None
    assert values["primary"]["endpoint"] == {
        "region": "mean", "metric": "dice", "convention": "2023",
    }  # fmt: skip
    rows = contrast_rows([found.primary, *found.secondary])
    assert {len(row) for row in rows} == {12}
    assert rows[1][0] == "mean Dice over WT, TC and ET (2023)"


def test_arms_that_cannot_be_compared_are_refused() -> None:
    arms = {"base": arm(0), "other": [replace(r, seed=4) for r in arm(0)]}
    with pytest.raises(SynthError, match="no case and seed in common"):
        compare(arms, "other", "base")
    with pytest.raises(SynthError, match="no arm 'synth'"):
        compare(arms, "synth", "base")
    with pytest.raises(SynthError, match="two scores of WT"):
        compare({"base": arm(0) + arm(0), "other": arm(0)}, "other", "base")


# --- pictures ------------------------------------------------------------------------------------


def coloured(path: Path, colour: str) -> int:
    image = plt.imread(path)[..., :3]
    return int((np.abs(image - to_rgb(colour)).max(-1) < 0.02).sum())


def test_forest_shows_gains_green_and_losses_red(tmp_path: Path) -> None:
    arms = {"base": arm(0), "better": arm(0.05, seed=1), "worse": arm(-0.05, seed=2)}
    for name, shown, absent in (("better", BETTER, WORSE), ("worse", WORSE, BETTER)):
        found = compare(arms, name, "base")
        path = forest([found.primary, *found.secondary], tmp_path / f"{name}.png")
        assert coloured(path, shown) > 300
        assert coloured(path, absent) == 0
    with pytest.raises(SynthError, match="nothing to draw"):
        forest([replace(found.primary, mean=math.nan)], tmp_path / "none.png")


def test_lines_are_green_where_the_treatment_helped(tmp_path: Path) -> None:
    pairs = pair(arm(0), arm(0.2, seed=1), Endpoint())
    for higher, shown in ((True, BETTER), (False, WORSE)):
        path = paired_lines(
            {"mean": pairs}, tmp_path / f"{higher}.png", control="base", treated="other",
            higher_is_better=higher,
        )  # fmt: skip
        image = plt.imread(path)[..., :3]
        green, red = image[..., 1] > 1.3 * image[..., 0], image[..., 0] > 1.3 * image[..., 1]
        assert green.any() == (shown == BETTER)
        assert red.any() == (shown == WORSE)
    with pytest.raises(SynthError, match="nothing to draw"):
        paired_lines({}, tmp_path / "none.png", control="a", treated="b")
