"""Two arms of a comparison: endpoints, sentences, tables, pictures."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from synth.base.errors import SynthError
from synth.evaluate.comparison import as_json, compare, contrast_rows, verdict
from synth.evaluate.comparison_endpoints import Endpoint, contrast, pair
from synth.evaluate.comparison_pictures import BETTER, WORSE, forest, paired_lines
from synth.evaluate.segmentation_scores import REGIONS, RegionScore
from synth.metrics.statistics import holm

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
    assert "Other endpoints, not declared beforehand, better: " in gain.verdict
    assert "worse: WT Dice (2023) from 0." in loss.verdict
    assert "better: " not in loss.verdict
    assert "Other" not in same.verdict
    assert contrast_rows([gain.primary])[1][6] == "–"  # the declared endpoint needs no Holm
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


def test_why_there_is_no_evidence_is_said_where_one_test_alone_would_have_some() -> None:
    """All patients are worse with these networks, but trainings of one arm differ as much."""
    arms = {"a": lucky(0, 0.05, 3, seed=1), "b": lucky(-0.03, 0.05, 3, seed=3)}
    found = contrast(arms, "b", "a", Endpoint())
    low, high = found.mean_interval
    assert low <= 0 <= high
    assert found.p_value < 0.05
    assert "no evidence that they differ" in verdict(found)
    assert "no more than luck in training does" in verdict(found)
    few = replace(found, p_value=0.2, mean_interval=(0.001, 0.1))
    assert "The mean moved, but not in enough patients" in verdict(few)


def test_from_one_training_nothing_is_concluded() -> None:
    arms = {"a": lucky(0, 0.02, 1, seed=1), "b": lucky(0.2, 0.02, 1, seed=2)}
    found = contrast(arms, "b", "a", Endpoint())
    assert found.direction == 0
    assert found.patients_interval[0] > 0.1
    assert "nothing can be said from one training of each arm, +0.1944" in verdict(found)


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
        np.testing.assert_allclose([c.p_holm for c in family], holm([c.p_value for c in family]))
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
    with pytest.raises(SynthError, match="unknown arm 'synth'"):
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
