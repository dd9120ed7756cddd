"""Rows of scores: regions of a scheme, rules of a challenge, counts of voxels, tables, files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.labels import SCHEMES
from synth.evaluate.segmentation_scores import (
    CONVENTIONS,
    METRICS,
    OFFICIAL,
    REGIONS,
    SHOWN,
    judged_regions,
    read_scores,
    score_labels,
    summarise,
    table_rows,
    write_scores,
)
from synth.metrics.overlap import dice, lesionwise_2023

SHAPE = (18, 20, 16)
MM = (1.0, 2.0, 1.5)


def labels(seed: int, quantiles=(0.85, 0.92, 0.96)) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    return np.digitize(field, np.quantile(field, quantiles))


def by_region(rows) -> dict:
    return {row.region: row.values for row in rows}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_numbers_are_those_of_counting_by_hand(convention: str) -> None:
    pred, ref = labels(1), labels(2)
    rows = score_labels(pred, ref, MM, convention, case="a", patient="p", scheme="brats2023")
    assert [row.region for row in rows] == ["WT", "TC", "ET", "mean"]
    assert {(row.case, row.patient, row.convention) for row in rows} == {("a", "p", convention)}
    for name, values in SCHEMES["brats2023"].items():
        own = by_region(rows)[name]
        p, r = np.isin(pred, values), np.isin(ref, values)
        tp, fp, fn, tn = (p & r).sum(), (p & ~r).sum(), (~p & r).sum(), (~p & ~r).sum()
        assert own["dice"] == dice(p, r) == 2 * tp / (2 * tp + fp + fn)
        assert own["sensitivity"] == pytest.approx(tp / (tp + fn), rel=1e-12)
        assert own["specificity"] == pytest.approx(tn / (tn + fp), rel=1e-12)
        assert own["ref_ml"] == pytest.approx(r.sum() * 3 / 1000, rel=1e-12)
        assert own["pred_ml"] == pytest.approx(p.sum() * 3 / 1000, rel=1e-12)
    mean = by_region(rows)["mean"]
    for metric in mean:
        every = [by_region(rows)[name][metric] for name in REGIONS]
        assert mean[metric] == pytest.approx(np.mean(every), rel=1e-12)


def test_every_name_is_known_where_it_is_used() -> None:
    values = score_labels(labels(1), labels(2), MM, "2023", case="a")[0].values
    assert set(values) == set(METRICS) >= set(SHOWN)
    for names in OFFICIAL.values():
        assert set(names) <= set(METRICS)


def test_a_region_that_is_nowhere_is_perfect_in_2023_and_nothing_in_2025() -> None:
    ref = np.where(labels(2) == 3, 1, labels(2))  # no enhancing tumour
    for invented in (False, True):
        pred = ref.copy()
        pred[2:5, 2:5, 2:5] = 3 if invented else pred[2:5, 2:5, 2:5]
        old, new = (by_region(score_labels(pred, ref, MM, c, case="a"))["ET"] for c in CONVENTIONS)
        expected = 0.0 if invented else 1.0
        assert old["dice"] == old["lesion_dice"] == old["sensitivity"] == expected
        assert old["hd95"] == 374 * invented
        np.testing.assert_equal(new["dice"], 0.0 if invented else math.nan)
        np.testing.assert_equal(new["hd95"], 373.0 if invented else math.nan)
        assert math.isnan(new["sensitivity"])
        assert (new["tp"], new["fp"], new["fn"]) == (0, int(invented), 0)


def test_the_mean_over_regions_is_over_those_that_have_the_number() -> None:
    ref = np.where(labels(2) == 3, 1, labels(2))
    rows = by_region(score_labels(ref, ref, MM, "2025", case="a"))
    assert math.isnan(rows["ET"]["dice"])
    assert rows["mean"]["dice"] == 1
    nothing = np.zeros(SHAPE, int)
    rows = by_region(score_labels(nothing, nothing, MM, "2025", case="a"))
    assert math.isnan(rows["mean"]["dice"])


def test_schemes_are_inferred_from_the_id_and_have_their_regions() -> None:
    old = np.array([0, 2, 1, 4])[labels(2)]
    rows = score_labels(old, old, MM, "2023", case="BraTS2021_00001")
    assert by_region(rows)["ET"]["ref_ml"] == pytest.approx((old == 4).sum() * 3 / 1000)
    with pytest.raises(SynthError, match=r"labels \[4\]"):
        score_labels(old, old, MM, "2023", case="BraTS-GLI-00001-000")
    rows = score_labels(old, old, MM, "2023", case="BraTS-GLI-00001-101")
    assert by_region(rows)["RC"]["ref_ml"] == pytest.approx((old == 4).sum() * 3 / 1000)
    for scheme in SCHEMES:
        assert list(judged_regions(scheme))[:3] == list(REGIONS)
        assert set().union(*judged_regions(scheme).values()) == set().union(
            *SCHEMES[scheme].values()
        )


def test_meningioma_and_metastases_have_rules_of_their_own() -> None:
    ref = np.zeros(SHAPE, int)
    ref[3:5, 3:5, 3] = 3  # 4 voxels: ignored but in MET, which ignores 2
    ref[3:11, 10:15, 3:9] = 3
    ref[14:17, 10:15, 3:9] = 3  # 3 voxels off: joined unless one dilates once
    unit = (1.0, 1.0, 1.0)
    for cohort, rules in (
        ("GLI", {}), ("MEN", {"dilations": 1}), ("MET", {"dilations": 1, "ignore_up_to_mm3": 2}),
    ):  # fmt: skip
        rows = score_labels(ref, ref, unit, "2023", case=f"BraTS-{cohort}-00001-000")
        table = lesionwise_2023(ref > 0, ref > 0, unit, **rules)
        assert by_region(rows)["ET"]["tp"] == table.count("matched")
    assert [
        by_region(score_labels(ref, ref, unit, "2023", case=f"BraTS-{c}-00001-000"))["ET"]["tp"]
        for c in ("GLI", "MEN", "MET")
    ] == [1, 2, 3]


def test_summary_has_n_beside_every_mean_and_counts_as_sums() -> None:
    rows = []
    for k in range(4):
        ref = labels(k)
        pred = labels(k + 10)
        if k == 0:
            ref, pred = (np.where(m == 3, 1, m) for m in (ref, pred))
        for convention in CONVENTIONS:
            rows += score_labels(pred, ref, MM, convention, case=f"c{k}")
    summary = summarise(rows)
    assert list(summary) == list(CONVENTIONS)
    old, new = (summary[c]["ET"] for c in CONVENTIONS)
    assert (old["cases"], new["cases"]) == (4, 4)
    assert (old["dice"]["n"], new["dice"]["n"], new["dice"]["non_finite"]) == (4, 3, 1)
    own = [r.values for r in rows if (r.region, r.convention) == ("ET", "2025")]
    assert new["dice"]["mean"] == pytest.approx(np.nanmean([v["dice"] for v in own]), rel=1e-12)
    assert new["fp"] == sum(v["fp"] for v in own)
    json.dumps(summary, allow_nan=False)
    table = table_rows(summary["2025"])
    assert [line[0] for line in table] == ["region", "WT", "TC", "ET", "mean"]
    assert "(n=3)" in table[3][table[0].index("Dice")]
    assert table[3][-1] == f"{new['tp']}/{new['fp']}/{new['fn']}"
    assert "0.5 mm" in " ".join(table[0])  # a tolerance in the name of every surface Dice
    assert "1 mm" in " ".join(table[0])


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    from dataclasses import replace

    ref = np.where(labels(2) == 3, 1, labels(2))
    rows = [
        row
        for convention in CONVENTIONS
        for row in score_labels(labels(1), ref, MM, convention, case="c,1", patient="p")
    ]
    for written in (rows, [replace(row, fold=2, seed=0) for row in rows]):
        back = read_scores(write_scores(tmp_path / "scores.csv", written))
        for a, b in zip(written, back, strict=True):
            assert (a.case, a.patient, a.region, a.convention, a.fold, a.seed) == (
                b.case, b.patient, b.region, b.convention, b.fold, b.seed
            )  # fmt: skip
            np.testing.assert_equal(dict(b.values), dict(a.values))


@pytest.mark.parametrize(
    "text", ["", "case,region\na,WT\n", "case,patient,region,convention\na,a,WT,2019\n", "\xff"]
)
def test_another_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SynthError, match="not a table of scores"):
        read_scores(path)
