"""Shapes keep millilitres and nesting on every grid, and their labels in every scheme."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from label_gan.distance_maps import nest
from label_gan.shape import Shape, rotate, signed_distance
from synth.base.errors import SynthError
from synth.data.labels import (
    ED,
    ET,
    NCR,
    REGIONS,
    SCHEMES,
    from_regions,
    region,
    regions_of,
    to_classes,
    to_scheme,
)
from tests.conftest import ball, onion


@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.4, 3.5])
def test_volumes_survive_resampling(spacing: float) -> None:
    labels = onion()
    regions = regions_of(Shape(labels=labels, spacing_mm=2.0).resampled(spacing).labels)
    for before, after in zip(regions_of(labels), regions, strict=True):
        # a count of voxels is rounded once
        assert abs(after.sum() * spacing**3 - before.sum() * 2.0**3) <= spacing**3
    wt, tc, et = regions
    assert not (et & ~tc).any()
    assert not (tc & ~wt).any()
    extent = (np.ptp(np.argwhere(wt), axis=0) + 1) * spacing
    before = (np.ptp(np.argwhere(labels), axis=0) + 1) * 2.0
    assert extent == pytest.approx(before, abs=spacing + 0.5)


def test_a_ball_made_finer_is_rounder_than_its_voxels_repeated() -> None:
    coarse = Shape(labels=ball((16,) * 3, (8, 8, 8), 5).astype(np.uint8) * ED, spacing_mm=2.0)
    blocks = np.kron(coarse.labels > 0, np.ones((2, 2, 2))) > 0

    def roughness(mask: np.ndarray) -> float:
        edge = np.argwhere(mask & ~ndimage.binary_erosion(mask))
        return float(np.linalg.norm(edge - np.argwhere(mask).mean(0), axis=1).std())

    assert roughness(coarse.resampled(1.0).labels > 0) < 0.75 * roughness(blocks)


def test_the_same_spacing_changes_nothing_and_a_thin_rim_survives_a_finer_one() -> None:
    shape = Shape(labels=onion((9, 6, 5)), spacing_mm=2.0)
    assert np.array_equal(shape.resampled(2.0).labels, shape.labels)
    fine = shape.resampled(1.0).labels
    necrosis = fine == NCR
    around = ndimage.binary_dilation(necrosis) & ~necrosis
    assert (fine[around] == ET).mean() > 0.95


def test_rotating_keeps_volumes_nesting_and_the_rim() -> None:
    labels = onion((16, 10, 8.5), edge=37)  # a rim of one or two voxels
    shape = Shape(labels=labels, spacing_mm=1.0)
    for seed, spacing in itertools.product(range(4), [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)]):
        rotated = rotate(shape, spacing, np.random.default_rng(seed))
        for number in (1, 2, 3):
            # Voxels of the surface decide: a shell of radius r turns by up to 1.5 / r of it.
            found = (rotated == number).sum() * np.prod(spacing)
            assert found == pytest.approx((labels == number).sum(), rel=0.12), number
        core = (rotated == NCR) | (rotated == ET)
        if spacing[2] == 1:  # slices of 2 mm are thicker than the rim
            assert np.array_equal(ndimage.binary_fill_holes(rotated == ET), core), "a gap"
        assert np.abs(np.array(rotated.shape) * spacing - 33).max() <= 3
    chiral = np.zeros((9, 7, 5), np.uint8)
    chiral[1:8, 1:3, 1:4], chiral[1:3, 1:6, 1:3] = 2, 2
    shape = Shape(labels=chiral, spacing_mm=1.0)
    drawn = {rotate(shape, (1, 1, 1), np.random.default_rng(s)).tobytes() for s in range(20)}
    assert len(drawn) == 20


def test_signed_distance_of_a_ball() -> None:
    distance = signed_distance(ball((41,) * 3, (20, 20, 20), 12.0), (2.0, 2.0, 2.0))
    index = np.stack(np.meshgrid(*[np.arange(41) - 20] * 3, indexing="ij"))
    exact = 2.0 * (np.linalg.norm(index, axis=0) - 12.0)
    assert np.abs(distance - exact).max() < 2.0  # the digital surface is within a voxel
    assert np.isposinf(signed_distance(np.zeros((3, 3, 3), bool))).all()


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_schemes_there_and_back(scheme: str) -> None:
    theirs = to_scheme(onion(), scheme)
    assert np.array_equal(to_classes(theirs, scheme), onion())
    for name, mask in zip(REGIONS, regions_of(onion()), strict=True):
        assert np.array_equal(region(theirs, scheme, name), mask)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_three_masks_become_nested_labels(seed: int) -> None:
    masks = np.random.default_rng(seed).random((3, 5, 5, 5)) < 0.5
    nested = np.logical_and.accumulate(masks)
    assert np.array_equal(regions_of(from_regions(masks)), nested)


def test_mistakes_are_named_and_a_cavity_is_no_tumour() -> None:
    with pytest.raises(SynthError, match="spacing 0"):
        Shape(labels=onion(), spacing_mm=2.0).resampled(0)
    with pytest.raises(SynthError, match="no tumour"):
        Shape(labels=np.zeros((3, 3, 3), np.uint8), spacing_mm=1).cropped()
    theirs = to_scheme(onion(), "brats2024")
    theirs[0, 0, 0] = 4
    assert to_classes(theirs, "brats2024")[0, 0, 0] == 0
    with pytest.raises(SynthError, match="label 4 is outside the scheme brats2023"):
        to_classes(theirs, "brats2023")


def test_an_inner_region_is_never_deeper_than_the_one_around_it() -> None:
    wt, tc, ncr = nest(torch.tensor([-3.0, -5.0, 2.0]).view(1, 3, 1, 1, 1)).ravel().tolist()
    assert (wt, tc, ncr) == (-3.0, -3.0, 2.0)
