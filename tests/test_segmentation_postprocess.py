"""Labels from probabilities: each rule alone, their order, and ensembles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segmentation.inference.ensemble import weight_table, weighted_mean
from segmentation.inference.postprocess import Postprocessing, apply_rules, filter_components
from synth.base.config import from_dict, to_dict
from synth.base.errors import SynthError
from synth.data.labels import REGIONS, SCHEMES, from_regions, region, to_scheme

ML = 0.001  # a voxel of 1 mm
SHAPE = (20, 20, 20)


def boxes(*parts: tuple[tuple[int, int, int], tuple[int, int, int], float]) -> np.ndarray:
    """Probabilities: boxes of (corner, size, value) on 0.1."""
    field = np.full(SHAPE, 0.1, np.float32)
    for corner, size, value in parts:
        field[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))] = value
    return field


def filtered(region: np.ndarray, p: np.ndarray, **rules) -> np.ndarray:
    nothing = {"min_ml": 0.0, "min_probability": 0.0, "most": 0, "inner": np.zeros(SHAPE, bool)}
    return filter_components(region, p, **(nothing | {"voxel_ml": ML} | rules))


def nested() -> np.ndarray:
    """A tumour: WT 8³, TC 6³, ET 2³, each at the corner of the next."""
    return np.stack([boxes(((4, 4, 4), (n, n, n), 0.9)) for n in (8, 6, 2)])


def random_probabilities(seed: int) -> np.ndarray:
    """Blobs that are not nested, with specks."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(3, *SHAPE)), (0, 1.5, 1.5, 1.5))
    return (1 / (1 + np.exp(-8 * noise / noise.std() - rng.normal()))).astype(np.float32)


def test_by_default_it_is_a_cut_at_one_half() -> None:
    p = nested()
    assert np.array_equal(apply_rules(p, Postprocessing(), ML), p > 0.5)


def test_thresholds_are_by_region() -> None:
    p = nested() * np.array([1, 0.7, 0.6], np.float32).reshape(3, 1, 1, 1)  # 0.9, 0.63, 0.54
    rules = Postprocessing(thresholds=(0.5, 0.7, 0.5))
    whole, core, enhancing = apply_rules(p, rules, ML)
    assert (whole.sum(), core.sum(), enhancing.sum()) == (512, 8, 8), "the core is what ET brings"
    assert not apply_rules(p, Postprocessing(thresholds=(0.95, 0.95, 0.95)), ML).any()


def test_inner_regions_are_part_of_the_outer() -> None:
    p = np.stack([boxes(), boxes(), boxes(((4, 4, 4), (2, 2, 2), 0.9))])
    assert [r.sum() for r in apply_rules(p, Postprocessing(), ML)] == [8, 8, 8]


def test_small_components_go_in_millilitres() -> None:
    region = np.zeros(SHAPE, bool)
    region[1:5, 1:5, 1:5], region[10:13, 10:13, 10:12] = True, True  # 64 and 18 voxels
    p = np.where(region, 0.9, 0.1)
    kept = filtered(region, p, voxel_ml=ML, min_ml=0.064)
    assert kept.sum() == 64
    assert filtered(region, p, voxel_ml=ML, min_ml=0.0641).sum() == 0
    assert filtered(region, p, voxel_ml=8 * ML, min_ml=0.0641).sum() == 82, "18 voxels of 8 mm³"
    assert filtered(region, p, voxel_ml=ML, min_ml=0.018).sum() == 82


def test_diagonal_neighbours_are_one_component() -> None:
    region = np.zeros(SHAPE, bool)
    region[3, 3, 3] = region[4, 4, 4] = True
    assert filtered(region, region * 1.0, voxel_ml=ML, min_ml=0.002).sum() == 2


def test_improbable_components_go_by_their_own_mean() -> None:
    p = boxes(((1, 1, 1), (3, 3, 3), 0.8), ((9, 9, 9), (3, 3, 3), 0.6), ((9, 9, 9), (1, 3, 3), 1.0))
    kept = filtered(p > 0.5, p, voxel_ml=ML, min_probability=0.75)
    assert kept.sum() == 27
    assert kept[1, 1, 1], "0.8 stays, (0.6·18 + 1·9)/27 = 0.73 goes"
    assert filtered(p > 0.5, p, voxel_ml=ML, min_probability=0.73).sum() == 54
    exact = boxes(((1, 1, 1), (3, 3, 3), 0.7))
    assert filtered(exact > 0.5, exact, voxel_ml=ML, min_probability=0.7).sum() == 27


def test_the_largest_stay() -> None:
    p = boxes(*(((1 + 5 * k, 1, 1), (2, 2, k + 1), 0.9) for k in range(4)))  # 4, 8, 12, 16
    for most, voxels in ((1, 16), (2, 28), (3, 36), (9, 40), (0, 40)):
        assert filtered(p > 0.5, p, voxel_ml=ML, most=most).sum() == voxels


def test_what_holds_inner_tumour_stays_and_counts() -> None:
    p = boxes(*(((1 + 5 * k, 1, 1), (2, 2, k + 1), 0.9) for k in range(4)))
    inner = np.zeros(SHAPE, bool)
    inner[1, 1, 1] = True  # in the smallest
    assert filtered(p > 0.5, p, voxel_ml=ML, min_ml=1.0, inner=inner).sum() == 4
    assert filtered(p > 0.5, p, voxel_ml=ML, most=2, inner=inner).sum() == 4 + 16
    assert filtered(p > 0.5, p, voxel_ml=ML, most=1, inner=inner).sum() == 4


def test_of_two_cores_that_hold_enhancing_tumour_both_stay() -> None:
    """The predecessor took all inner objects for one, and lost the core with less of it."""
    first, second = (2, 2, 2), (12, 12, 12)
    core = boxes((first, (3, 3, 3), 0.9), (second, (4, 4, 4), 0.9))
    enhancing = boxes((first, (2, 2, 2), 0.9), (second, (3, 3, 3), 0.9))
    rules = Postprocessing(min_ml=(0.1, 0.1, 0.001))  # both cores are too small by themselves
    whole, core_kept, enhancing_kept = apply_rules(np.stack([core, core, enhancing]), rules, ML)
    assert enhancing_kept.sum() == 8 + 27
    assert core_kept.sum() == 27 + 64
    assert np.array_equal(whole, core_kept)


def test_a_component_without_inner_tumour_is_judged_by_itself() -> None:
    """One component with enhancing tumour does not spare another."""
    core = boxes(((2, 2, 2), (3, 3, 3), 0.9), ((12, 12, 12), (3, 3, 3), 0.9))
    enhancing = boxes(((2, 2, 2), (2, 2, 2), 0.9))
    rules = Postprocessing(min_ml=(0, 0.1, 0))
    assert apply_rules(np.stack([core, core, enhancing]), rules, ML)[1].sum() == 27


def test_too_little_enhancing_tumour_becomes_core() -> None:
    p = nested()
    p[1] = boxes(((6, 4, 4), (4, 6, 6), 0.9))  # a core beside the enhancing tumour
    rules = Postprocessing(small_et_ml=0.0081)
    whole, core, enhancing = apply_rules(p, rules, ML)
    assert enhancing.sum() == 0
    assert core.sum() == 4 * 6 * 6 + 8
    assert (from_regions(np.stack([whole, core, enhancing]))[4:6, 4:6, 4:6] == 1).all()
    assert apply_rules(p, replace(rules, small_et_ml=0.008), ML)[2].sum() == 8
    # What it becomes is judged as core, not kept for what it was.
    lost = apply_rules(p, replace(rules, min_ml=(0, 1, 0)), ML)
    assert lost[1].sum() == 0


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.tuples(*[st.sampled_from([0.0, 0.02, 0.2, 2.0])] * 3),
    st.tuples(*[st.sampled_from([0.0, 0.7, 0.95])] * 3),
    st.tuples(*[st.integers(0, 3)] * 3),
    st.sampled_from([0.0, 0.05, 1.0]),
)
def test_whatever_the_rules_regions_are_nested(seed, min_ml, min_probability, most, small) -> None:
    rules = Postprocessing(
        min_ml=min_ml, min_probability=min_probability, most=most, small_et_ml=small
    )
    p = random_probabilities(seed)
    before = p.copy()
    whole, core, enhancing = apply_rules(p, rules, ML)
    assert not (enhancing & ~core).any()
    assert not (core & ~whole).any()
    assert not (whole & ~(p > 0.5).any(0)).any(), "nothing from nowhere"
    assert enhancing.sum() * ML >= small or not enhancing.any()
    assert np.array_equal(p, before)
    again = apply_rules(p, rules, ML)
    assert np.array_equal(again, [whole, core, enhancing])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_labels_of_a_scheme_are_the_regions(scheme: str) -> None:
    regions = apply_rules(random_probabilities(3), Postprocessing(), ML)
    written = to_scheme(from_regions(regions), scheme)
    for name, mask in zip(REGIONS, regions, strict=True):
        assert np.array_equal(region(written, scheme, name), mask)
    if scheme == "brats2024":
        assert not (written == 4).any(), "no resection cavity is invented"
    if scheme == "brats2021":
        assert set(np.unique(written)) == {0, 1, 2, 4}


def test_rules_are_json_and_checked() -> None:
    rules = Postprocessing(min_ml=(0.06, 0.06, 0.06), most=(5, 5, 5), small_et_ml=0.2)
    assert from_dict(Postprocessing, to_dict(rules)) == rules
    assert Postprocessing.of_words(thresholds=(0.7,), min_ml=(1, 2, 3)) == Postprocessing(
        thresholds=(0.7, 0.7, 0.7), min_ml=(1, 2, 3)
    )
    for bad in ({"thresholds": (0.5, 2.0, 0.5)}, {"min_ml": (-1, 0, 0)}, {"small_et_ml": -1},
                {"most": (-1, 0, 0)}, {"min_probability": (0, 0, float("nan"))}):  # fmt: skip
        with pytest.raises(SynthError, match=next(iter(bad))):
            Postprocessing(**bad)
    with pytest.raises(SynthError, match="thresholds has 2 values"):
        Postprocessing.of_words(thresholds=(0.5, 0.5))


# --- Ensembles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), (1, 2, 3), (0.1, 0.7, 0), (1, 5, 2, 0.3, 3, 1, 2, 2, 2)])
def test_identical_models_equal_the_single_one(words: tuple[float, ...]) -> None:
    p = random_probabilities(1)
    assert np.array_equal(weighted_mean([p, p, p], weight_table(words, 3)), p)


def test_weights_by_region_sum_right() -> None:
    a, b = random_probabilities(1), random_probabilities(2)
    found = weighted_mean([a, b], weight_table(["1", "0", "3", "1", "2", "1"], 2))
    expected = [(a[0] + b[0]) / 2, b[1], (3 * a[2] + b[2]) / 4]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    one_each = weighted_mean([a, b], weight_table([3, 1], 2))
    np.testing.assert_allclose(one_each, (3 * a + b) / 4, atol=1e-7)
    assert np.array_equal(
        weighted_mean([a, b], weight_table([3, 1], 2)),
        weighted_mean([b, a], weight_table([1, 3], 2)),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((1, 2, 3), "3 weights for 2 models"),
        ((0, 0), "a model that counts"),
        ((1, 1, 0, 1, 1, 0), "a model that counts"),
        ((1, -1), "numbers of 0 or more"),
        (("1", "x"), "numbers of 0 or more"),
        ((1, float("inf")), "numbers of 0 or more"),
    ],
)
def test_weights_without_meaning_are_refused(words: tuple, message: str) -> None:
    with pytest.raises(SynthError) as caught:
        weight_table(words, 2)
    assert message in str(caught.value)
