"""Where a mask may lie: the official rule of the Local-Synthesis challenge, bounded and seeded.

A healthy mask has at least 75 % of its voxels in the brain and stays 5 mm away from the dilated
tumour. Shapes are tumour components (or given masks), turned and flipped at random; the centre is
the farther from the tumour of two random places, as the challenge's generator draws it. Unlike
there the search ends: after `tries` shapes the caller learns that there was no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

MIN_IN_BRAIN = 0.75
MIN_DISTANCE_MM = 5.0
ANY_NEIGHBOUR = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """A brain as a place for masks."""

    brain: np.ndarray
    """(X, Y, Z) bool."""
    distance_mm: np.ndarray
    """(X, Y, Z) float32: from each voxel to the dilated tumour; inf where there is none."""
    candidates: np.ndarray
    """(N, 3) brain voxels far enough from the tumour to be a centre."""


def site(brain: np.ndarray, tumour: np.ndarray, spacing_mm: Sequence[float]) -> Site:
    """Measure a brain once, so that each placement is only look-ups."""
    if tumour.any():
        distance = ndimage.distance_transform_edt(~tumour, sampling=spacing_mm).astype(np.float32)
    else:
        distance = np.full(brain.shape, np.inf, np.float32)
    free = brain & (distance > MIN_DISTANCE_MM)
    return Site(brain=brain, distance_mm=distance, candidates=np.argwhere(free).astype(np.int32))


def components(mask: np.ndarray, min_voxels: int = 1) -> list[np.ndarray]:
    """Return the connected components (26 neighbours), each cropped to its box, largest first."""
    labels, _ = ndimage.label(mask, ANY_NEIGHBOUR)
    found = [
        labels[box] == number for number, box in enumerate(ndimage.find_objects(labels), start=1)
    ]
    return sorted((f for f in found if f.sum() >= min_voxels), key=np.sum, reverse=True)


def vary(
    shape: np.ndarray, rng: np.random.Generator, *, scale: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Return the shape flipped, turned any way, and scaled by a factor drawn from `scale`."""
    for axis in range(3):
        if rng.random() < 0.5:
            shape = np.flip(shape, axis)
    factor = rng.uniform(*scale)
    matrix = Rotation.random(rng=rng).as_matrix() / factor
    reach = int(np.ceil(np.linalg.norm(shape.shape) * factor / 2)) + 1
    size = 2 * reach + 1
    offset = (np.array(shape.shape) - 1) / 2 - matrix @ np.full(3, reach)
    turned = ndimage.affine_transform(
        shape.astype(np.float32), matrix, offset, (size,) * 3, order=1, prefilter=False
    )
    boxes = ndimage.find_objects((turned > 0.5).astype(np.uint8))
    return turned[boxes[0]] > 0.5 if boxes else shape


def put(shape: np.ndarray, centre: np.ndarray, grid: tuple[int, ...]) -> np.ndarray | None:
    """Return the shape on the grid with its box's middle at `centre`, or None if it sticks out."""
    start = centre - np.array(shape.shape) // 2
    if (start < 0).any() or (start + shape.shape > grid).any():
        return None
    result = np.zeros(grid, bool)
    result[tuple(slice(a, a + n) for a, n in zip(start, shape.shape, strict=True))] = shape
    return result


def allowed(mask: np.ndarray, where: Site) -> bool:
    """Whether a mask obeys the rule."""
    return bool(
        (mask & where.brain).sum() >= MIN_IN_BRAIN * mask.sum()
        and where.distance_mm[mask].min() >= MIN_DISTANCE_MM
    )


def place(
    pool: Sequence[np.ndarray],
    where: Site,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    tries: int = 40,
) -> np.ndarray | None:
    """Draw a shape from the pool and a place for it; None when `tries` draws found no room."""
    if not len(where.candidates) or not pool:
        return None
    for _ in range(tries):
        shape = vary(pool[int(rng.integers(len(pool)))], rng, scale=scale)
        two = where.candidates[rng.integers(len(where.candidates), size=2)]
        centre = two[np.argmax(where.distance_mm[tuple(two.T)])]
        mask = put(shape, centre, where.brain.shape)
        if mask is not None and allowed(mask, where):
            return mask
    return None
