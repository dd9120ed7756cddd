"""Placed masks obey the challenge's rule, recomputed here from scratch."""

import numpy as np
import pytest
from scipy import ndimage

from synth.placement import components, place, put, site, vary
from tests.conftest import ball, brain

SHAPE = (40, 44, 36)
BRAIN = brain(SHAPE) > 0
TUMOUR = ball(SHAPE, (13, 22, 18), 6)


def test_every_placed_mask_obeys_the_rule() -> None:
    where = site(BRAIN, TUMOUR, (1.0, 1.0, 1.0))
    pool = [ball((9, 9, 9), (4, 4, 4), r) for r in (2.5, 3.5, 4.5)]
    rng = np.random.default_rng(0)
    tumour = np.argwhere(TUMOUR)
    for _ in range(50):
        mask = place(pool, where, rng)
        assert mask is not None
        assert (mask & BRAIN).sum() >= 0.75 * mask.sum()
        voxels = np.argwhere(mask)
        nearest = min(np.linalg.norm(tumour - v, axis=1).min() for v in voxels)
        assert nearest >= 5


def test_spacing_counts_in_millimetres() -> None:
    where = site(BRAIN, TUMOUR, (2.8, 2.8, 2.8))
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(30):
        mask = place([np.ones((3, 3, 3), bool)], where, rng)
        assert mask is not None
        gaps.append(ndimage.distance_transform_edt(~TUMOUR)[mask].min() * 2.8)
    assert 5 <= min(gaps) < 14


def test_placement_is_a_function_of_the_seed() -> None:
    where = site(BRAIN, TUMOUR, (1, 1, 1))
    pool = [ball((9, 9, 9), (4, 4, 4), 4)]
    a, b, c = (place(pool, where, np.random.default_rng(s)) for s in (5, 5, 6))
    assert a is not None
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_no_room_is_an_answer() -> None:
    everywhere = site(BRAIN, BRAIN, (1, 1, 1))
    assert place([np.ones((3, 3, 3), bool)], everywhere, np.random.default_rng(0)) is None
    where = site(BRAIN, TUMOUR, (1, 1, 1))
    assert place([np.ones((39, 43, 35), bool)], where, np.random.default_rng(0)) is None
    assert place([], where, np.random.default_rng(0)) is None


def test_a_healthy_patient_has_room_everywhere() -> None:
    where = site(BRAIN, np.zeros(SHAPE, bool), (1, 1, 1))
    assert len(where.candidates) == BRAIN.sum()
    assert place([np.ones((5, 5, 5), bool)], where, np.random.default_rng(0)) is not None


def test_turning_keeps_the_volume_and_loses_no_slice() -> None:
    shape = ball((15, 15, 15), (7, 7, 7), 6)
    for seed in range(20):
        turned = vary(shape, np.random.default_rng(seed))
        assert turned.sum() == pytest.approx(shape.sum(), rel=0.08)
    cube = put(np.ones((5, 5, 5), bool), np.array([20, 20, 20]), SHAPE)
    assert cube is not None
    assert cube.sum() == 125


def test_components_are_cropped_and_sorted() -> None:
    mask = ball(SHAPE, (10, 10, 10), 4) | ball(SHAPE, (30, 30, 25), 2)
    large, small = components(mask)
    assert large.shape == (9, 9, 9)
    assert large.sum() + small.sum() == mask.sum()
    assert len(components(mask, min_voxels=100)) == 1
