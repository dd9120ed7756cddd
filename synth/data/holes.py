"""Shapes of holes for training: blobs, ellipsoids and rough lumps, from half a millilitre up.

A network that was trained on one kind of mask is weak at the others. Shapes of tumours come beside
these from the cohort, or from `synth masks`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from synth.data.heads import smooth_noise

MEDIAN_RADIUS_MM = 16.0
SPREAD = 0.45  # standard deviation of the logarithm of the radius
RADII_MM = (5.0, 30.0)


def draw_shape(rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """Return one connected shape, (x, y, z) bool, cropped to its box."""
    radius = np.clip(np.exp(rng.normal(np.log(MEDIAN_RADIUS_MM), SPREAD)), *RADII_MM) / spacing_mm
    size = int(radius * 2.6) | 1
    line = np.arange(size, dtype=np.float32) - size // 2
    places = np.stack(np.meshgrid(line, line, line, indexing="ij"))
    kind = rng.random()
    stretch = np.ones(3) if kind < 0.5 else np.exp(rng.normal(0, 0.3, 3))
    stretch /= stretch.prod() ** (1 / 3)
    turn = Rotation.random(rng=rng).as_matrix() / stretch[:, None]
    distance = np.sqrt(np.square(np.einsum("ij,jxyz->ixyz", turn, places)).sum(axis=0))
    shape = (size, size, size)
    dents = rng.uniform(0.05, 0.3) * smooth_noise(shape, max(12 / spacing_mm, radius * 1.2), rng)
    if kind > 0.8:
        dents += 0.15 * smooth_noise(shape, max(8 / spacing_mm, radius * 0.6), rng)
    labels, _ = ndimage.label(distance < radius * (1 + dents))
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    (box,) = ndimage.find_objects(largest.astype(np.uint8))
    return largest[box]
