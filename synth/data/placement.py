"""Search for places of a mask by the rule of the Local-Synthesis challenge.

A healthy mask has at least 75 % of its voxels in the brain, all of them inside the volume, and
stays 5 mm away from the dilated tumour. Its place is the farther from the tumour of two random
valid ones, the challenge's idea. Unlike there the search is vectorised, and it ends: the caller
learns that no place was found.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

MIN_IN_BRAIN = 0.75
MIN_DISTANCE_MM = 5.0
ANY_NEIGHBOUR = ndimage.generate_binary_structure(3, 3)
TOO_CLOSE = 2

PROBES = (16, 256, 2048)  # voxels of a mask that are looked at before all of them are
AT_ONCE = 8  # so many places are looked at voxel by voxel at once
ROUNDS = (32, 256, 1024, 2048, 4096)  # random centres examined at once, until two are valid


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """A brain as a place for masks."""

    brain: np.ndarray
    """(X, Y, Z) bool."""
    distance_mm: np.ndarray
    """(X, Y, Z) float32: from each voxel to the dilated tumour; inf where there is none."""
    state: np.ndarray
    """(X, Y, Z) uint8: 1 brain, 0 not, and TOO_CLOSE; one look-up a voxel instead of two."""
    spacing_mm: tuple[float, ...]
    candidates: np.ndarray
    """(N, 3) brain voxels far enough from the tumour to be a centre, the farthest first."""
    clearance_mm: np.ndarray
    """(N,) their distance to the tumour."""
    weight: np.ndarray | None = None
    """(N,) running sum of a location prior over the candidates; None where all are alike."""

    def occupied(self, mask: np.ndarray) -> Site:
        """Return the site with a mask on it, which no other may touch."""
        (box,) = ndimage.find_objects(mask.astype(np.uint8))
        wider = tuple(slice(max(b.start - 1, 0), b.stop + 1) for b in box)
        taken = ndimage.binary_dilation(mask[wider], ANY_NEIGHBOUR)
        distance, state = self.distance_mm.copy(), self.state.copy()
        distance[wider][taken], state[wider][taken] = 0, TOO_CLOSE
        return dataclasses.replace(self, distance_mm=distance, state=state)


def site(
    brain: np.ndarray,
    tumour: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    prior: np.ndarray | None = None,
) -> Site:
    """Measure a brain once, so that each placement is only look-ups.

    Args:
        brain: (X, Y, Z) bool.
        tumour: (X, Y, Z) bool, dilated.
        spacing_mm: edges of a voxel.
        prior: (X, Y, Z) how likely a mask is centred there; None for alike everywhere.
    """
    if tumour.any():
        distance = ndimage.distance_transform_edt(~tumour, sampling=spacing_mm).astype(np.float32)
    else:
        distance = np.full(brain.shape, np.inf, np.float32)
    places = np.flatnonzero(brain & (distance > MIN_DISTANCE_MM))
    places = places[np.argsort(-distance.ravel()[places], kind="stable")]
    return Site(
        brain=brain,
        distance_mm=distance,
        state=np.where(distance < MIN_DISTANCE_MM, TOO_CLOSE, brain).astype(np.uint8),
        spacing_mm=tuple(spacing_mm),
        candidates=np.stack(np.unravel_index(places, brain.shape), -1).astype(np.int32),
        clearance_mm=distance.ravel()[places],
        weight=None if prior is None else np.cumsum(prior.ravel()[places], dtype=np.float64),
    )


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


def put(shape: np.ndarray, corner: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Return the shape (a mask or labels) on an empty grid, its box's first voxel at `corner`."""
    box = tuple(slice(a, a + n) for a, n in zip(corner, shape.shape, strict=True))
    result = np.zeros(grid, shape.dtype)
    result[box] = shape
    return result


def find(shape: np.ndarray, where: Site, rng: np.random.Generator) -> np.ndarray | None:
    """Return the corner at which a shape obeys the rule, or None where no place was found.

    Of the first two valid places drawn, the one farther from the tumour is taken; where the site
    has a prior, which a choice would bend, the first.
    """
    count = 2 if where.weight is None else 1
    found = list(itertools.islice(valid_corners(shape, where, rng), count))
    middle = np.array(shape.shape) // 2
    return max(found, key=lambda at: where.distance_mm[tuple(at + middle)], default=None)


def valid_corners(shape: np.ndarray, where: Site, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Draw places at which a shape obeys the rule, each valid one as likely as any other.

    Random centres are examined many at once. The shape's centre lies on a candidate, and only on
    one with room about it for the ball that the shape holds; some, then more of the shape's
    voxels sort most places out, and all of its voxels decide.
    """
    grid, box = np.array(where.brain.shape), np.array(shape.shape)
    strides = np.array([grid[1] * grid[2], grid[2], 1])
    x, y, z = (np.arange(n) * stride for n, stride in zip(box, strides, strict=True))
    offsets = (x[:, None, None] + y[:, None] + z)[shape]
    anchor = _centre(shape)
    state = where.state.ravel()

    def likely(corners: np.ndarray, count: int) -> np.ndarray:
        if len(offsets) <= count:
            return np.ones(len(corners), bool)
        probes = offsets[rng.integers(len(offsets), size=count)]
        seen = state.take((corners @ strides)[:, None] + probes)
        # The share of the sample in the brain scatters by this about the true one; at four times
        # that below the rule a valid place is lost once in ten thousand.
        least = MIN_IN_BRAIN * count - 4 * (MIN_IN_BRAIN * (1 - MIN_IN_BRAIN) * count) ** 0.5
        return (seen.max(1) < TOO_CLOSE) & (np.count_nonzero(seen, axis=1) >= least)

    usable = len(where.candidates)
    for number, count in enumerate(ROUNDS):
        if number == 1:  # not an easy one: now it pays to know more
            usable = _usable(shape, anchor, where)
        if not usable:
            return
        corners = where.candidates[_draw(where, usable, count, rng)] - anchor
        corners = corners[((corners >= 0) & (corners + box <= grid)).all(1)]
        for probes in PROBES:
            if len(corners) > AT_ONCE:
                corners = corners[likely(corners, probes)]
        for start in corners @ strides:
            seen = state.take(start + offsets)
            if seen.max() < TOO_CLOSE and np.count_nonzero(seen) >= MIN_IN_BRAIN * len(seen):
                yield np.array(np.unravel_index(start, where.brain.shape))


def place(
    pool: Sequence[np.ndarray],
    where: Site,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    tries: int = 40,
) -> np.ndarray | None:
    """Draw a shape from the pool and a place for it; None when `tries` shapes found no room."""
    if not len(where.candidates) or not pool:
        return None
    for _ in range(tries):
        shape = vary(pool[int(rng.integers(len(pool)))], rng, scale=scale)
        corner = find(shape, where, rng)
        if corner is not None:
            return put(shape, corner, where.brain.shape)
    return None


def _centre(shape: np.ndarray) -> np.ndarray:
    """Return the voxel nearest to the centre of mass."""
    sums = (shape.sum((1, 2)), shape.sum((0, 2)), shape.sum((0, 1)))
    return np.rint([(s * np.arange(len(s))).sum() / s.sum() for s in sums]).astype(int)


def _usable(shape: np.ndarray, centre: np.ndarray, where: Site) -> int:
    """Return how many candidates have room about them for the ball that a shape holds.

    All within `depth` of the centre is mask, so a tumour closer to it than depth + 5 mm is too
    close to the mask, up to the two half diagonals by which voxels miss points.
    """
    if not shape[tuple(centre)]:
        return len(where.candidates)
    steps = zip(shape.shape, centre, where.spacing_mm, strict=True)
    x, y, z = (((np.arange(-1, n + 1) - c) * mm) ** 2 for n, c, mm in steps)
    beyond = min(*x[[0, -1]], *y[[0, -1]], *z[[0, -1]])  # outside of the box is no mask
    squares = x[1:-1, None, None] + y[1:-1, None] + z[1:-1]
    depth = squares[~shape].min(initial=beyond) ** 0.5
    needed = depth + MIN_DISTANCE_MM - float(np.linalg.norm(where.spacing_mm))
    return bisect.bisect_right(where.clearance_mm, -needed, key=operator.neg)


def _draw(where: Site, usable: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw candidates among the first `usable`."""
    if where.weight is None:
        return rng.integers(usable, size=count)
    chosen = np.searchsorted(where.weight, rng.random(count) * where.weight[usable - 1], "right")
    return np.minimum(chosen, usable - 1)
