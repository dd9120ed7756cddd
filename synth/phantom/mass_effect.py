"""The tissue that a tumour displaces in another brain.

A growing mass shifts tissue outwards. About its centre the map from where tissue is to where it was
is radial, r_was³ = r³ − κ³ exp(−(r / s)²): near the centre it makes room for exactly the volume
4/3 π κ³ and compresses nothing; farther out the shift fades, and the tissue there gives way. It is
one to one, as r_was grows with r. Under the brain's surface it fades to nothing, for the skull
does not yield.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

PUSHED_SHARE = 0.2
"""Share of the tumour's volume that is new; the rest grew into tissue that was there."""
REACH = 2.6
"""s in radii of a ball of the tumour's volume."""
YIELD_MM = 14.0
"""Depth below the brain's surface from which the shift is whole."""
LEAST_MM = 0.05
"""Smaller shifts are none: interpolation would only blur."""


def trace_tissue(
    tumour: np.ndarray,
    brain: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    new: float = PUSHED_SHARE,
) -> np.ndarray:
    """Return where each voxel's tissue was before the tumour grew, in voxels.

    Args:
        tumour: (X, Y, Z) bool, one lesion.
        brain: (X, Y, Z) bool.
        spacing_mm: edges of a voxel.
        new: share of the tumour's volume that tissue makes room for.
    """
    spacing = np.array(spacing_mm).reshape(3, 1, 1, 1)
    centre = np.argwhere(tumour).mean(0).reshape(3, 1, 1, 1)
    index = np.indices(tumour.shape, np.float32)
    offset = (index - centre) * spacing
    radius = np.sqrt((offset**2).sum(0))
    ball = (3 * tumour.sum() * spacing.prod() / (4 * np.pi)) ** (1 / 3)
    room = new * ball**3 * np.exp(-((radius / (REACH * ball)) ** 2))
    was = np.cbrt(np.maximum(radius**3 - room, 0))
    depth = np.asarray(ndimage.distance_transform_edt(brain, sampling=spacing_mm))
    shift = (1 - was / np.maximum(radius, 1e-3)) * np.clip(depth / YIELD_MM, 0, 1)
    shift[shift * radius < LEAST_MM] = 0
    return (index - offset * shift / spacing).astype(np.float32)  # (3, X, Y, Z)


def displace(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return (C, X, Y, Z) intensities carried along; voxels that do not move stay bit for bit."""
    still = (where == np.indices(image.shape[1:], np.float32)).all(0)
    moved = [ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in image]
    return np.where(still, image, np.stack(moved)).astype(image.dtype)
