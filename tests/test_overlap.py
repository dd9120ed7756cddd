"""Overlap and distances against brats-evaluation (2025) and the recorded values of 2023."""

import math
import types
from functools import cache
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from synth.base.errors import SynthError
from synth.metrics.overlap import (
    WORST_HD95_MM,
    dice,
    evaluate_regions,
    lesionwise_2023,
    lesionwise_2025,
)
from synth.metrics.surface import _surface_areas, surface_distances

MM = (1.0, 1.0, 1.0)
SHAPE = (64, 56, 48)
REGIONS = {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}
OFFICIAL_NAMES = {
    "dice": "global_bin_dsc", "hd95": "global_bin_hd95", "nsd_0.5mm": "global_bin_nsd",
    "lesion_dice": "sq_dsc", "lesion_hd95": "sq_hd95", "lesion_nsd_1mm": "sq_nsd",
    "tp": "tp", "fp": "fp", "fn": "fn", "f1": "rq", "precision": "prec", "recall": "rec",
}  # fmt: skip


def ball(*centre: float, radius: float = 8) -> np.ndarray:
    middle = np.array(centre)[:, None, None, None]
    return ((np.indices(SHAPE) - middle) ** 2).sum(0) <= radius**2


def box(*corner: int, voxels: int = 19) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    x, y, z = corner
    mask[x : x + voxels, y, z] = True
    return mask


def tumour(*balls: np.ndarray) -> np.ndarray:
    """Enhancing balls (3) in a necrotic (1) and an oedematous (2) shell."""
    core = np.zeros(SHAPE, bool)
    for each in balls:
        core |= each
    labels = np.zeros(SHAPE, np.uint8)
    labels[ndimage.binary_dilation(core, iterations=2)] = 2
    labels[ndimage.binary_dilation(core, iterations=1)] = 1
    labels[core] = 3
    return labels


A, B = ball(20, 20, 20), ball(48, 40, 30, radius=6)
NEAR = ball(40, 20, 20)  # A and NEAR leave 3 voxels between them
BRIDGE = A | NEAR | ball(30, 20, 20, radius=3)
SMALL = box(40, 45, 40)
NOTHING = np.zeros(SHAPE, bool)

# name: (prediction, reference) of the enhancing tumour, and what 2023 gives for it.
CASES = {
    "perfect": (A, A, 1, 0),
    "shifted 2 voxels": (np.roll(A, 2, 0), A, None, 2),
    "both empty": (NOTHING, NOTHING, 1, 0),
    "prediction empty": (NOTHING, A, 0, 374),
    "reference empty": (A, NOTHING, 0, 374),
    "one of two lesions found": (A, A | B, 0.5, 187),
    "one false lesion": (A | B, A, 0.5, 187),
    "one false lesion of 19 voxels": (A | SMALL, A, 0.5, 187),
    "one missed lesion of 19 voxels": (A, A | SMALL, 1, 0),
    "no overlap at all": (B, A, 0, 374 * 2 / 2),
    "two lesions 3 voxels apart": (A | NEAR, A | NEAR, 1, 0),
    "prediction bridges them": (BRIDGE, A | NEAR, None, 0),
}


@cache
def evaluator():
    pytest.importorskip("brats_evaluation", reason="dev extra: BraTS-evaluation")
    from panoptica import Panoptica_Evaluator

    config = files("brats_evaluation").joinpath("configs", "config_GoAT.yaml")
    return Panoptica_Evaluator.load_from_config(str(config))


def assert_equals_official(pred: np.ndarray, ref: np.ndarray) -> None:
    ours = evaluate_regions(pred, ref, REGIONS, MM, "2025")
    for region, result in evaluator().evaluate(pred, ref).items():
        theirs = result.to_dict(True)
        for name, official in OFFICIAL_NAMES.items():
            expected = theirs.get(official)
            if expected is None or np.isnan(expected):
                assert np.isnan(ours[region][name]), (region, name)
                continue
            if "hd95" in name:
                expected = min(expected, WORST_HD95_MM["2025"])  # inf, as their parser clips it
            # Means of a handful of float64: a few roundings.
            assert ours[region][name] == pytest.approx(expected, abs=1e-12), (region, name)


noisy_oracle = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@noisy_oracle
@pytest.mark.parametrize("name", CASES)
def test_built_cases_equal_brats_evaluation_2025(name: str) -> None:
    pred, ref, *_ = CASES[name]
    assert_equals_official(tumour(pred), tumour(ref))


@noisy_oracle
@pytest.mark.parametrize("seed", range(6))
def test_many_irregular_lesions_equal_brats_evaluation_2025(seed: int) -> None:
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.5)
    other = field + 0.4 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    pred, ref = (np.digitize(f / f.std(), [1.5, 1.9, 2.2]).astype(np.uint8) for f in (field, other))
    assert_equals_official(pred, ref)


@pytest.mark.parametrize("name", CASES)
def test_built_cases_have_the_recorded_values_of_2023(name: str) -> None:
    pred, ref, lesion_dice, lesion_hd95 = CASES[name]
    table = lesionwise_2023(pred, ref, MM)
    if name == "no overlap at all":  # one missed and one false lesion
        assert table.detection() | {"tp": 0, "fp": 1, "fn": 1} == table.detection()
    expected = dice(pred, ref) if lesion_dice is None else lesion_dice
    assert table.dice == pytest.approx(expected, abs=1e-12)
    assert table.hd95 == pytest.approx(lesion_hd95, abs=1e-12)


def test_2023_joins_near_lesions_and_2025_does_not() -> None:
    two = A | NEAR
    assert lesionwise_2023(two, two, MM).count("matched") == 1
    assert lesionwise_2025(two, two, MM).count("matched") == 2
    assert lesionwise_2023(two, two, MM, dilations=0).count("matched") == 2


def test_2023_touching_the_dilation_is_enough_and_many_to_one() -> None:
    """A prediction in two pieces, one of them beside the lesion, is one found lesion."""
    beside = box(11, 20, 32)  # 4 voxels above A's top slice: outside the dilation
    touching = box(11, 20, 30)  # 2 above: inside
    table = lesionwise_2023(A | touching, A, MM)
    assert table.detection()["fp"] == 0
    assert table.dice == pytest.approx(dice(A | touching, A))
    assert lesionwise_2023(A | beside, A, MM).count("false") == 1


def test_2025_pairs_for_the_highest_total_dice() -> None:
    """Greedy pairing would give the big prediction to the lesion it fits best and stop."""
    ref = np.zeros(SHAPE, bool)
    ref[2:12, 5, 5], ref[14:20, 5, 5] = True, True
    pred = np.zeros(SHAPE, bool)
    pred[5:18, 5, 5] = True  # 7 of the first, 4 of the second
    pred[2:4, 5, 5] = True  # 2 of the first only
    table = lesionwise_2025(pred, ref, MM)
    first, second = 2 * 2 / (10 + 2), 2 * 4 / (6 + 13)
    greedy = 2 * 7 / (10 + 13)
    assert first + second > greedy
    assert table.count("matched") == 2
    assert table.dice == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("convention", ["2023", "2025"])
def test_both_empty_policy(convention: str) -> None:
    assert np.isnan(dice(NOTHING, NOTHING))
    assert dice(NOTHING, NOTHING, both_empty="perfect") == 1
    assert surface_distances(NOTHING, A, MM, convention) is None
    scores = evaluate_regions(tumour(), tumour(), REGIONS, MM, convention)["et"]
    expected = 1.0 if convention == "2023" else np.nan
    np.testing.assert_equal(scores["dice"], expected)
    np.testing.assert_equal(scores["lesion_dice"], expected)
    np.testing.assert_equal(scores["hd95"], 1 - expected)
    invented = evaluate_regions(tumour(A), tumour(), REGIONS, MM, convention)["et"]
    assert invented["dice"] == invented["nsd_0.5mm"] == invented["lesion_dice"] == 0
    assert invented["hd95"] == invented["lesion_hd95"] == WORST_HD95_MM[convention]


@pytest.mark.parametrize("convention", ["2023", "2025"])
def test_parallel_plates_have_the_distance_between_them(convention: str) -> None:
    """Two slabs shifted along an axis: every large face is that far from its partner."""
    slab = np.zeros((40, 40, 30), bool)
    slab[2:38, 2:38, 5:15] = True
    moved = np.roll(slab, 4, axis=2)
    # The four narrow sides overlap in part, but hold less than 95 % of the surface.
    assert surface_distances(slab, moved, (1, 1, 2.5), convention).hd95(
        convention
    ) == pytest.approx(10)
    assert surface_distances(slab, slab, (1, 1, 2.5), convention).hd95(convention) == 0


blob = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2]), st.floats(0.5, 0.99))


def random_mask(seed: int, smooth: float, share: float) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(14, 12, 10)), smooth)
    return field >= np.quantile(field, share)


@settings(max_examples=30, deadline=None)
@given(blob, blob, st.sampled_from(["2023", "2025"]), st.tuples(*[st.floats(0.3, 5)] * 3))
def test_symmetry_translation_and_scale(
    a: tuple, b: tuple, convention: str, spacing: tuple[float, ...]
) -> None:
    pred, ref = random_mask(*a), random_mask(*b)
    found = surface_distances(pred, ref, spacing, convention)
    assert found is not None
    distance, near = found.hd95(convention), found.nsd(1.0, convention)
    back = surface_distances(ref, pred, spacing, convention)
    assert back.hd95(convention) == pytest.approx(distance, abs=1e-9)
    assert back.nsd(1.0, convention) == pytest.approx(near, abs=1e-12)
    # Moving both, to the volume's edge or off it, changes nothing: outside is background.
    pads = ((3, 0), (0, 5), (2, 1))
    moved = surface_distances(np.pad(pred, pads), np.pad(ref, pads), spacing, convention)
    assert moved.hd95(convention) == distance
    double = surface_distances(pred, ref, [2 * edge for edge in spacing], convention)
    assert double.hd95(convention) == pytest.approx(2 * distance, rel=1e-9)
    assert double.nsd(2.0, convention) == pytest.approx(near, abs=1e-9)
    assert dice(pred, ref) == dice(ref, pred)
    assert 0 <= near <= 1


def test_lesion_tables_are_translation_invariant() -> None:
    pred, ref = A | SMALL | B, A | NEAR
    pads = ((0, 9), (4, 0), (1, 1))
    for table in (lesionwise_2023, lesionwise_2025):
        assert table(pred, ref, MM) == table(np.pad(pred, pads), np.pad(ref, pads), MM)


def test_exchanged_labels_are_seen() -> None:
    truth = tumour(A)
    wrong = np.array([0, 3, 2, 1], np.uint8)[truth]
    scores = evaluate_regions(wrong, truth, REGIONS, MM, "2025")
    assert scores["wt"]["dice"] == scores["tc"]["dice"] == 1
    assert scores["et"]["dice"] == 0


def test_refusals() -> None:
    old = np.where(tumour(A) == 3, 4, tumour(A))
    with pytest.raises(SynthError, match=r"prediction holds labels \[4\]"):
        evaluate_regions(old, tumour(A), REGIONS, MM, "2025")
    with pytest.raises(SynthError, match="differ in shape"):
        dice(A, A[1:])
    with pytest.raises(SynthError, match="three positive lengths"):
        surface_distances(A, A, (1, 1, 0), "2025")
    with pytest.raises(SynthError, match="unknown convention"):
        surface_distances(A, A, MM, "2024b")


def test_surface_areas_of_known_bodies() -> None:
    """One voxel is an octahedron of edge √½; a large box has its six faces."""
    areas = np.array(_surface_areas(MM))
    assert areas[1] * 8 == pytest.approx(math.sqrt(3))
    np.testing.assert_allclose(areas, areas[::-1], rtol=1e-12)  # inside and outside exchanged
    cube = np.zeros((32, 32, 32), bool)
    cube[1:31, 1:31, 1:31] = True
    found = surface_distances(cube, cube, (1, 1, 2), "2023")
    flat = 2 * 29 * 29 + 4 * 29 * 29 * 2  # what runs between voxel centres
    assert flat < found.ref_weights.sum() < 2 * 30 * 30 + 4 * 30 * 30 * 2


@pytest.mark.parametrize(
    ("pred", "ref", "edge", "distance", "near"),
    [
        (np.roll(A, 2, 0), A, 1.0, 2.0, 0.783196030485413),
        (np.roll(A, 2, 0), A, 2.5, 2.0, 0.7369961719094051),
        (A | SMALL, A | B, 1.0, 15.264337522473747, 0.756356225930727),
        (A | SMALL, A | B, 2.5, 28.587584717845612, 0.758366557259305),
        (A, np.roll(B, -20, 0), 1.0, 24.49489742783178, 0.0),
        (A, np.roll(B, -20, 0), 2.5, 34.15040263305837, 0.0),
    ],
)
def test_2023_distances_have_values_recorded_from_surface_distance(
    pred: np.ndarray, ref: np.ndarray, edge: float, distance: float, near: float
) -> None:
    """Computed once with surface-distance 0.1, spacing (1, 1, edge), tolerance 1 mm."""
    found = surface_distances(pred, ref, (1, 1, edge), "2023")
    assert found.hd95("2023") == pytest.approx(distance, rel=1e-14)
    assert found.nsd(1.0, "2023") == pytest.approx(near, abs=1e-12)


@pytest.fixture
def deepmind(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """surface-distance 0.1, on a NumPy and a SciPy that dropped the names it uses."""
    package = pytest.importorskip("surface_distance", reason="pip install surface-distance")
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    for old in ("filters", "morphology"):
        names = {"correlate": ndimage.correlate, "distance_transform_edt":
                 ndimage.distance_transform_edt}  # fmt: skip
        monkeypatch.setattr(ndimage, old, types.SimpleNamespace(**names), raising=False)
    return package.metrics


@pytest.mark.parametrize("spacing", [MM, (1.0, 1.0, 3.0), (0.7, 1.3, 2.2)])
def test_2023_distances_equal_surface_distance(
    deepmind: types.SimpleNamespace, spacing: tuple[float, ...]
) -> None:
    for seed in range(12):
        pred, ref = random_mask(seed, seed % 3, 0.8), random_mask(seed + 99, 1, 0.6)
        theirs = deepmind.compute_surface_distances(ref, pred, spacing)
        ours = surface_distances(pred, ref, spacing, "2023")
        assert ours.hd95("2023") == deepmind.compute_robust_hausdorff(theirs, 95)
        expected = deepmind.compute_surface_dice_at_tolerance(theirs, 1.0)
        assert ours.nsd(1.0, "2023") == pytest.approx(expected, abs=1e-12)
