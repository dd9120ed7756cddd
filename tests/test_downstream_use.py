"""Judging by use: the truth is perfect, spoiled answers are found, the registration measures mm."""

import numpy as np
import pytest
from scipy import ndimage

from synth.data.heads import ORIGIN_MM, template
from synth.data.volume import Volume
from synth.metrics import downstream_use
from synth.metrics.downstream_use import SPACING_MM, DownstreamUse


@pytest.fixture(scope="module")
def judge() -> DownstreamUse:
    """MNI152 at 3 mm with a hole in one hemisphere."""
    t1 = template().t1[2:170, 4:208, 2:170]
    small = t1.reshape(56, 3, 68, 3, 56, 3).mean(axis=(1, 3, 5))
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = ORIGIN_MM
    hole = np.zeros(small.shape, bool)
    hole[33:43, 28:40, 26:38] = True
    return DownstreamUse(Volume(data=small[None].astype(np.float32), affine=affine), hole)


def test_the_truth_is_perfect(judge: DownstreamUse) -> None:
    found = judge.metrics(judge.image)
    assert found["tissue_error"] == 0
    assert found["registration_mm"] == 0
    assert found["sharpness"] == pytest.approx(1, abs=0.15)  # hemispheres of a symmetric template


def test_spoiled_answers_are_found(judge: DownstreamUse) -> None:
    truth, empty = judge.metrics(judge.image), judge.metrics(np.zeros_like(judge.image))
    assert empty["registration_mm"] > 0.4
    assert empty["tissue_error"] > 0.3
    white = np.full_like(judge.image, judge.image.max())
    others = 1 - judge.tissue[2]  # all that is not white matter is wrong
    assert np.abs(judge._tissue(white) - judge.tissue).sum() / 2 == pytest.approx(others, abs=0.02)
    blurred = ndimage.gaussian_filter(judge.image, 2)
    assert judge._steepness(blurred, judge.hole) < 0.7 * truth["sharpness"] * judge.sharpness


def test_the_registration_finds_a_known_shift() -> None:
    still = downstream_use._template()
    moved = ndimage.shift(still, (2, 0, 0), order=1)
    change = downstream_use._register(moved) - downstream_use._register(still)
    inside = ndimage.binary_erosion(moved > 0.3, iterations=3)
    wanted = np.array([-2 * SPACING_MM, 0, 0])
    assert np.abs(change[inside].mean(axis=0) - wanted).max() < 0.3
