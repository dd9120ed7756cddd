"""Shapes keep millilitres and nesting on every grid, and their labels in every scheme."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from label_gan.shape import Shape, signed_distance
from synth.base.errors import SynthError
from synth.data.labels import ED, ET, NCR, SCHEMES, from_regions, region, to_classes, to_scheme
from tests.conftest import ball


def onion(radii: tuple[float, float, float] = (9, 6, 4), edge: int = 24) -> np.ndarray:
    """Oedema around a rim around necrosis."""
    centre = (edge // 2,) * 3
    labels = np.where(ball((edge,) * 3, centre, radii[0]), ED, 0)
    labels[ball(labels.shape, centre, radii[1])] = ET
    labels[ball(labels.shape, centre, radii[2])] = NCR
    return labels.astype(np.uint8)


@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.4, 3.5])
def test_volumes_survive_resampling(spacing: float) -> None:
    shape = Shape(labels=onion(), spacing_mm=2.0)
    other = shape.resampled(spacing)
    for name in ("WT", "TC", "ET"):
        # a count of voxels is rounded once
        assert abs(other.volume_ml(name) - shape.volume_ml(name)) <= spacing**3 / 1000
    wt, tc, et = other.regions()
    assert not (et & ~tc).any()
    assert not (tc & ~wt).any()
    extent = (np.ptp(np.argwhere(wt), axis=0) + 1) * spacing
    before = (np.ptp(np.argwhere(shape.regions()[0]), axis=0) + 1) * 2.0
    assert extent == pytest.approx(before, abs=spacing + 0.5)


def test_no_blocks_after_upsampling() -> None:
    """A ball drawn coarsely, made fine, is nearer to a ball than its voxels repeated."""
    coarse = Shape(labels=ball((16,) * 3, (8, 8, 8), 5).astype(np.uint8) * ED, spacing_mm=2.0)
    fine = coarse.resampled(1.0).labels > 0
    blocks = np.kron(coarse.labels > 0, np.ones((2, 2, 2))) > 0

    def roughness(mask: np.ndarray) -> float:
        edge = np.argwhere(mask & ~ndimage.binary_erosion(mask))
        return float(np.linalg.norm(edge - np.argwhere(mask).mean(0), axis=1).std())

    assert roughness(fine) < 0.75 * roughness(blocks)
    even = fine[: fine.shape[0] // 2 * 2, : fine.shape[1] // 2 * 2, : fine.shape[2] // 2 * 2]
    for shift in range(2):  # in blocks every second step along an axis changes nothing
        assert (
            even[shift::2][: len(even) // 2 - 1] != even[shift + 1 :: 2][: len(even) // 2 - 1]
        ).any()


def test_the_same_spacing_changes_nothing() -> None:
    cube = np.zeros((9, 9, 9), np.uint8)
    cube[2:7, 2:7, 2:7] = ED
    assert np.array_equal(Shape(labels=cube, spacing_mm=1.0).resampled(1.0).labels, cube)


def test_a_thin_rim_survives() -> None:
    shape = Shape(labels=onion((9, 6, 5)), spacing_mm=2.0)
    fine = shape.resampled(1.0).labels
    necrosis = fine == NCR
    around = ndimage.binary_dilation(necrosis) & ~necrosis
    assert (fine[around] == ET).mean() > 0.95


def test_signed_distance_of_a_ball() -> None:
    distance = signed_distance(ball((41,) * 3, (20, 20, 20), 12.0), 2.0)
    index = np.stack(np.meshgrid(*[np.arange(41) - 20] * 3, indexing="ij"))
    exact = 2.0 * (np.linalg.norm(index, axis=0) - 12.0)
    assert np.abs(distance - exact).max() < 2.0  # the digital surface is within a voxel
    assert np.isposinf(signed_distance(np.zeros((3, 3, 3), bool))).all()


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_schemes_there_and_back(scheme: str) -> None:
    ours = onion()
    theirs = to_scheme(ours, scheme)
    assert np.array_equal(to_classes(theirs, scheme), ours)
    for name, mask in zip(
        ("WT", "TC", "ET"), Shape(labels=ours, spacing_mm=1).regions(), strict=True
    ):
        assert np.array_equal(region(theirs, scheme, name), mask)


def test_a_cavity_is_no_tumour_and_an_odd_label_is_refused() -> None:
    theirs = to_scheme(onion(), "brats2024")
    theirs[0, 0, 0] = 4
    assert to_classes(theirs, "brats2024")[0, 0, 0] == 0
    with pytest.raises(SynthError, match="label 4 is outside the scheme brats2023"):
        to_classes(theirs, "brats2023")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_three_masks_become_nested_labels(seed: int) -> None:
    masks = np.random.default_rng(seed).random((3, 5, 5, 5)) < 0.5
    regions = Shape(labels=from_regions(masks), spacing_mm=1).regions()
    assert np.array_equal(regions[0], masks[0])
    assert np.array_equal(regions, np.logical_and.accumulate(masks))


def test_mistakes_are_named() -> None:
    shape = Shape(labels=onion(), spacing_mm=2.0)
    with pytest.raises(SynthError, match="spacing 0"):
        shape.resampled(0)
    with pytest.raises(SynthError, match="no tumour"):
        Shape(labels=np.zeros((3, 3, 3), np.uint8), spacing_mm=1).cropped()
