"""Registration: a known warp is found again, whatever the contrast, and holes have no say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from synth.data.registration import register

SPACING_MM = 4.0


def structured(seed: int = 0, shape: tuple[int, int, int] = (44, 52, 40)) -> np.ndarray:
    """Return a ball of smooth structures with air around it."""
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.8)
    line = [np.linspace(-1.25, 1.25, n) for n in shape]
    ball = sum(g**2 for g in np.meshgrid(*line, indexing="ij")) < 1
    return (ball * (0.7 + texture / texture.std() * 0.2)).astype(np.float32)


def moved(image: np.ndarray, shift_voxels: float = 1.5, tilt: float = 0.05) -> np.ndarray:
    """Tilt an image about its middle and shift it."""
    matrix = np.eye(3)
    matrix[0, 1], matrix[1, 0] = -tilt, tilt
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ centre + np.array([shift_voxels, -shift_voxels, 0])
    return ndimage.affine_transform(image, matrix, offset, order=1)


@pytest.mark.parametrize(
    "contrast",
    [lambda a: a, lambda a: np.where(a > 0, 1.4 - a, 0).astype(np.float32)],
    ids=["same contrast", "inverted contrast"],
)
def test_a_known_motion_is_undone(contrast) -> None:
    fixed = structured()
    moving = moved(contrast(fixed))
    inside = ndimage.binary_erosion(fixed > 0, iterations=3)
    known = np.ones(fixed.shape, bool)
    found = register(fixed[None], moving[None], known, spacing_mm=SPACING_MM)
    before = abs(np.corrcoef(moving[inside], fixed[inside])[0, 1])
    after = abs(np.corrcoef(found.look_up(moving[None])[0][inside], fixed[inside])[0, 1])
    assert before < 0.8
    assert after > 0.95


def test_what_lies_in_a_hole_is_not_read() -> None:
    fixed = structured()
    moving = moved(fixed)
    known = np.ones(fixed.shape, bool)
    known[15:25, 20:30, 15:25] = False
    spoiled = np.where(known, fixed, 77).astype(np.float32)
    empty = np.where(known, fixed, 0).astype(np.float32)
    found = [register(f[None], moving[None], known, spacing_mm=4.0).grid for f in (spoiled, empty)]
    assert np.abs(found[0] - found[1]).max() < 1e-4
