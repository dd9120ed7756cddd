"""Classical fills solve the equations they claim to solve."""

import numpy as np
import pytest
from scipy import ndimage

from synth.data.fill import (
    BASELINES,
    biharmonic,
    harmonic,
    mirror,
    mirror_axis,
    mirror_rim,
)
from tests.conftest import ball, brain

SHAPE = (24, 26, 22)
HOLE = ball(SHAPE, (8, 13, 11), 5)


@pytest.mark.parametrize("name", BASELINES)
def test_only_the_hole_changes_and_its_content_never_matters(name: str) -> None:
    image = brain(SHAPE)
    filled = BASELINES[name](np.where(HOLE, 0, image), HOLE)
    other = BASELINES[name](np.where(HOLE, 999, image), HOLE)
    assert np.array_equal(filled[~HOLE], image[~HOLE])
    # Iterations start from the same guess, so the answers agree as closely as they converge.
    assert np.allclose(filled, other, rtol=1e-3)
    assert image.min() <= filled[HOLE].min()
    assert filled[HOLE].max() <= 1.2 * image.max()


def test_harmonic_has_no_laplacian_inside_and_keeps_linear_functions() -> None:
    x, y, z = np.indices(SHAPE).astype(float)
    linear = 3 * x - y + 0.5 * z + 7
    for fill in (harmonic, biharmonic):
        assert np.abs(fill(np.where(HOLE, 0, linear), HOLE) - linear).max() < 1e-2
    filled = harmonic(brain(SHAPE).astype(float), HOLE)
    assert np.abs(ndimage.laplace(filled)[HOLE]).max() < 0.05  # on intensities of 500


def test_biharmonic_equals_scikit_image() -> None:
    restoration = pytest.importorskip("skimage.restoration")
    image = brain(SHAPE).astype(float) / 1000
    ours = biharmonic(np.where(HOLE, 0, image), HOLE)
    theirs = restoration.inpaint_biharmonic(np.where(HOLE, 0, image), HOLE)
    assert np.abs(ours - theirs)[HOLE].max() < 1e-3  # conjugate gradients against a direct solver


def test_a_hole_at_the_edge_of_the_volume_is_filled() -> None:
    hole = np.zeros(SHAPE, bool)
    hole[:4, 10:14, 9:12] = True
    assert np.isfinite(harmonic(brain(SHAPE), hole)).all()
    assert np.isfinite(biharmonic(brain(SHAPE), hole)).all()


def symmetric(axis_sum: int) -> np.ndarray:
    image = brain((25, 20, 18))
    both = image + image[::-1]
    return np.roll(both, (axis_sum - 24) // 2, axis=0)


@pytest.mark.parametrize("axis_sum", [20, 24, 28])
def test_mirror_restores_a_symmetric_brain_exactly(axis_sum: int) -> None:
    image = symmetric(axis_sum)
    hole = ball(image.shape, (5, 10, 9), 3)
    voided = np.where(hole, 0, image)
    assert mirror_axis(voided, ~hole) == axis_sum
    assert np.array_equal(mirror(voided, hole), image)
    assert np.allclose(mirror_rim(voided, hole), image, atol=1e-3)


def test_mirror_rim_mends_a_gain_between_the_hemispheres() -> None:
    image = symmetric(24)
    image[:12] += 40
    hole = ball(image.shape, (7, 10, 9), 3) & (image > 40)
    error = {f: np.abs(f(np.where(hole, 0, image), hole) - image)[hole].mean()
             for f in (mirror, mirror_rim)}  # fmt: skip
    assert error[mirror_rim] < 0.2 * error[mirror]


def test_the_other_side_of_a_hole_across_the_midline_is_filled_harmonically() -> None:
    image = symmetric(24)
    hole = ball(image.shape, (12, 10, 9), 3)
    filled = mirror(np.where(hole, 0, image), hole)
    assert np.allclose(filled, harmonic(np.where(hole, 0, image), hole))
