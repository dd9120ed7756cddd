"""Preprocessing is invertible: any orientation, spacing and shape; untouched voxels bit for bit."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.base.errors import SynthError
from synth.data.prepare import background_of, brain_mask, prepare
from synth.data.volume import Volume
from tests.conftest import LPS, ball, brain, rotation

ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def oriented(
    order: tuple, signs: tuple, spacing: tuple, turn: np.ndarray | None = None
) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, world in enumerate(order):
        affine[world, axis] = signs[axis] * spacing[axis]
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ affine[:3, :3]
    affine[:3, 3] = (10, -20, 5)
    return affine


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_goes_and_comes_back(order: tuple, signs: tuple) -> None:
    image = Volume(data=brain((15, 20, 17))[None], affine=oriented(order, signs, (1, 1.5, 3)))
    prepared = prepare(image)
    assert np.array_equal(prepared.undo(prepared.data).data, image.data)
    assert np.array_equal(prepared.frame.back(prepared.data, fill=-1), prepared.scale(image.data))
    assert all(n % 8 == 0 for n in prepared.data.shape[1:])
    # The same voxel has the same place in the world, and the box is RAS.
    top = np.unravel_index(prepared.data[0].argmax(), prepared.data[0].shape)
    native = np.unravel_index(image.data[0].argmax(), image.shape)
    assert np.allclose(prepared.frame.affine @ [*top, 1], image.affine @ [*native, 1])
    assert (np.diag(prepared.frame.affine)[:3] > 0).all()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(9, 26)] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(*[st.sampled_from([0.6, 1.0, 2.8, 5.0])] * 3),
    angles=st.tuples(*[st.floats(-25, 25)] * 3),
    target=st.sampled_from([None, 1.0, 2.0]),
    seed=st.integers(0, 99),
    centre=st.tuples(*[st.floats(0.2, 0.8)] * 3),
)
def test_voxels_outside_the_mask_are_bit_identical(
    shape: tuple, orientation: tuple, spacing: tuple, angles: tuple, target: float | None,
    seed: int, centre: tuple,
) -> None:  # fmt: skip
    affine = oriented(*orientation, spacing, rotation(angles))
    image = Volume(data=brain(shape, seed)[None], affine=affine)
    mask = ball(shape, tuple(int(c * n) for c, n in zip(centre, shape, strict=True)), 3)
    prepared = prepare(image, known=~mask, include=mask, spacing_mm=target)
    noise = np.random.default_rng(seed).normal(size=prepared.data.shape).astype(np.float32)
    result = prepared.undo(noise, touched=mask)
    assert np.array_equal(result.data[0][~mask], image.data[0][~mask])
    assert result.data.dtype == np.float32
    assert not np.array_equal(result.data[0][mask], image.data[0][mask])
    assert np.array_equal(result.affine, affine)


def test_the_hole_does_not_change_what_surrounds_it() -> None:
    full = brain((24, 24, 24))
    mask = ball(full.shape, (10, 12, 12), 4)
    voided = np.where(mask, 0, full)
    a, b = (
        prepare(Volume(data=d[None], affine=LPS), known=~mask, include=mask) for d in (full, voided)
    )
    assert (a.low, a.high) == (b.low, b.high)
    inside = a.frame.bring(mask[None])
    assert np.array_equal(a.data[~inside], b.data[~inside])


def test_scale_is_robust_and_inverts() -> None:
    data = brain((20, 20, 20))
    data[10, 10, 10] = 30000  # one hot voxel must not set the scale
    prepared = prepare(Volume(data=data[None], affine=LPS))
    tissue = prepared.data[0][prepared.frame.bring((data > 0)[None])[0]]
    assert -1 < np.percentile(tissue, 1) < np.percentile(tissue, 99) <= 1
    again = prepared.unscale(prepared.scale(data[None]))
    assert np.allclose(again, data[None], rtol=1e-6, atol=1e-3)  # float32 of values below 1e3
    assert prepared.data.min() == -1


def test_resampling_keeps_place_and_size() -> None:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (24, 20, 12)], indexing="ij"))
    world = index * np.reshape((1, 1.2, 2.5), (3, 1, 1, 1))
    ramp = (100 + world.sum(0)).astype(np.float32)
    edge = np.zeros(ramp.shape, bool)
    edge[2:-2, 2:-2, 1:-1] = True
    affine = np.diag([1, 1.2, 2.5, 1.0])
    prepared = prepare(Volume(data=np.where(edge, ramp, 0)[None], affine=affine), spacing_mm=1.0)
    assert np.allclose(np.diag(prepared.frame.affine)[:3], 1)
    back = prepared.frame.back(prepared.unscale(prepared.data))[0]
    inner = edge & (np.abs(world - np.reshape((12, 12, 15), (3, 1, 1, 1))) < 5).all(0)
    # A linear ramp survives linear interpolation both ways, away from the blurred edge.
    assert np.abs(back - ramp)[inner].max() < 0.05


def test_background_need_not_be_zero() -> None:
    zscored = (brain() - 500) / 120
    assert background_of(zscored) == pytest.approx(zscored[0, 0, 0])
    mask = brain_mask(Volume(data=zscored[None], affine=LPS))
    assert np.array_equal(mask, brain() > 0)
    prepared = prepare(Volume(data=zscored[None], affine=LPS))
    assert np.array_equal(prepared.undo(prepared.data).data[0], zscored)


def test_empty_volumes_and_full_masks_are_refused() -> None:
    with pytest.raises(SynthError, match="empty"):
        prepare(Volume(data=np.zeros((1, 8, 8, 8), np.float32), affine=LPS))
    image = Volume(data=brain()[None], affine=LPS)
    with pytest.raises(SynthError, match="too few known"):
        prepare(image, known=image.data[0] == 0)
