"""Placed masks obey the challenge's rule, recomputed here from scratch."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from synth.data.placement import components, find, place, site, valid_corners, vary
from tests.conftest import ball, brain, obeys_rule

SHAPE = (40, 44, 36)
BRAIN = brain(SHAPE) > 0
TUMOUR = ball(SHAPE, (13, 22, 18), 6)


def test_every_placed_mask_obeys_the_rule() -> None:
    where = site(BRAIN, TUMOUR, (1.0, 1.0, 1.0))
    pool = [ball((9, 9, 9), (4, 4, 4), r) for r in (2.5, 3.5, 4.5)]
    tumour = np.argwhere(TUMOUR)
    for seed in range(30):
        mask = place(pool, where, np.random.default_rng(seed))
        assert mask is not None
        assert np.array_equal(mask, place(pool, where, np.random.default_rng(seed)))
        assert (mask & BRAIN).sum() >= 0.75 * mask.sum()
        voxels = np.argwhere(mask)
        nearest = min(np.linalg.norm(tumour - v, axis=1).min() for v in voxels)
        assert nearest >= 5


def test_spacing_counts_in_millimetres() -> None:
    where = site(BRAIN, TUMOUR, (2.8, 2.8, 2.8))
    rng = np.random.default_rng(0)
    masks = [place([np.ones((3, 3, 3), bool)], where, rng) for _ in range(30)]
    gaps = [ndimage.distance_transform_edt(~TUMOUR)[mask].min() * 2.8 for mask in masks]
    assert 5 <= min(gaps) < 14


def test_no_room_is_an_answer() -> None:
    everywhere = site(BRAIN, BRAIN, (1, 1, 1))
    assert place([np.ones((3, 3, 3), bool)], everywhere, np.random.default_rng(0)) is None
    where = site(BRAIN, TUMOUR, (1, 1, 1))
    assert place([np.ones((39, 43, 35), bool)], where, np.random.default_rng(0)) is None
    assert place([], where, np.random.default_rng(0)) is None
    healthy = site(BRAIN, np.zeros(SHAPE, bool), (1, 1, 1))
    assert len(healthy.candidates) == BRAIN.sum()
    assert place([np.ones((5, 5, 5), bool)], healthy, np.random.default_rng(0)) is not None


def test_turning_keeps_the_volume() -> None:
    shape = ball((15, 15, 15), (7, 7, 7), 6)
    for seed in range(20):
        turned = vary(shape, np.random.default_rng(seed))
        assert turned.sum() == pytest.approx(shape.sum(), rel=0.08)


def test_components_are_cropped_and_sorted() -> None:
    mask = ball(SHAPE, (10, 10, 10), 4) | ball(SHAPE, (30, 30, 25), 2)
    large, small = components(mask)
    assert large.shape == (9, 9, 9)
    assert large.sum() + small.sum() == mask.sum()
    assert len(components(mask, min_voxels=100)) == 1


def every_valid_corner(shape: np.ndarray, tumour: np.ndarray) -> set[tuple[int, ...]]:
    """All places that obey the rule, one after another, by the distances between voxels."""
    tree = KDTree(np.argwhere(tumour))
    middle = np.rint(np.argwhere(shape).mean(0)).astype(int)
    found = set()
    for corner in np.ndindex(*(n - s + 1 for n, s in zip(SHAPE, shape.shape, strict=True))):
        voxels = np.argwhere(shape) + corner
        if BRAIN[tuple(voxels.T)].mean() < 0.75 or not BRAIN[tuple(middle + corner)]:
            continue
        if tree.query(voxels)[0].min() >= 5 and tree.query(middle + corner)[0] > 5:
            found.add(corner)
    return found


@pytest.mark.parametrize("large", [False, True])
def test_each_valid_place_is_as_likely_as_any_other(large: bool) -> None:
    # An L: its centre is not in it, and few of its places are valid when it is large.
    shape = np.zeros((16, 15, 3) if large else (5, 6, 3), bool)
    shape[:, :2], shape[:2] = True, True
    tumour = TUMOUR | ball(SHAPE, (27, 16, 17), 3 if large else 1)
    expected = every_valid_corner(shape, tumour)
    where = site(BRAIN, tumour, (1.0, 1.0, 1.0))
    assert len(expected) > 50
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(300):
        corners = itertools.islice(valid_corners(shape, where, np.random.default_rng(seed)), 20)
        counts.update(tuple(map(int, corner)) for corner in corners)
    assert set(counts) <= expected
    # χ² / N of alike places is 1 ± √(2/N), a little more where places get few draws each.
    mean = counts.total() / len(expected)
    spread = sum((counts[c] - mean) ** 2 for c in expected) / mean / len(expected)
    assert spread == pytest.approx(1, abs=6 * (2 / len(expected)) ** 0.5)


def test_a_second_mask_touches_no_first() -> None:
    where = site(BRAIN, TUMOUR, (1.0, 1.0, 1.0))
    shape, rng = ball((9, 9, 9), (4, 4, 4), 4.5), np.random.default_rng(0)
    for _ in range(20):
        first = place([shape], where, rng)
        assert first is not None
        second = place([shape], where.occupied(first), rng)
        assert second is not None
        assert ndimage.label(first | second, np.ones((3, 3, 3)))[1] == 2
        assert obeys_rule(second, where)


def test_a_prior_says_where() -> None:
    prior = np.zeros(SHAPE)
    prior[30], prior[26] = 3, 1
    where = site(BRAIN, TUMOUR, (1.0, 1.0, 1.0), prior=prior)
    rng = np.random.default_rng(0)
    shape = np.ones((1, 1, 1), bool)
    planes = Counter(
        int(corner[0]) for _ in range(400) if (corner := find(shape, where, rng)) is not None
    )
    assert set(planes) == {26, 30}
    ratio = 3 * BRAIN[30].sum() / BRAIN[26].sum()
    share = ratio / (1 + ratio)
    # four binomial deviations of 400 draws
    assert planes[30] / 400 == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5)
