"""Distance between two sets of tumour shapes, and search for copies.

Distances between sets live on `shape_features`, standardised by the real masks. They are small or
large only beside the distance of real masks to other real masks, which `floor` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage, stats

from synth.base.errors import SynthError
from synth.metrics.distribution import (
    LEVEL,
    RESAMPLES,
    Interval,
    halvings,
    mean_and_high,
    mmd2_floor,
)
from synth.metrics.reference import FeatureScale, Nearest
from synth.metrics.shape import DESCRIBED, matrix, regions_of

CODE_SIDE = 49
"""Voxels along a side of the common grid that overlaps are counted on; odd, so that it has a middle
voxel."""
SHORTLIST = 32
COARSE = 7
FLIPS = tuple(np.ndindex(2, 2, 2))

Rows = Sequence[Mapping[str, float]]


def feature_scale(real: Rows) -> FeatureScale:
    """Measure real masks; a feature they never vary gets the least spread of its kind."""
    return FeatureScale.of(matrix(real), np.array(list(DESCRIBED.values())))


def wasserstein(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Interval:
    """1-D Wasserstein distance of one feature, in its own unit; numbers that are NaN are left out.

    It is never negative, so that small sets differ by chance: compare with the floor.
    """
    a, b = (values[np.isfinite(values)] for values in (a, b))
    if not (len(a) and len(b)):
        return Interval(value=np.nan, low=np.nan, high=np.nan)
    rng = np.random.default_rng(seed)
    found = [
        stats.wasserstein_distance(rng.choice(a, len(a)), rng.choice(b, len(b)))
        for _ in range(RESAMPLES // 4)
    ]
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value=float(stats.wasserstein_distance(a, b)), low=float(low), high=float(high))


def floor(real: Rows, scale: FeatureScale, names: Sequence[str], *, seed: int = 0) -> dict:
    """Return the distance of random halves of the real masks: mean and 95 %."""
    halves = halvings(len(real), seed=seed)
    found = {"mmd2": mmd2_floor(scale(matrix(real)), halves, bandwidth=scale.bandwidth)}
    for name in names:
        values = np.array([row[name] for row in real])
        known = np.isfinite(values)
        pairs = ((values[half & known], values[~half & known]) for half in halves)
        apart = [stats.wasserstein_distance(p, q) for p, q in pairs if len(p) and len(q)]
        found[name] = mean_and_high(np.array(apart))
    return found


def extent_mm(labels: np.ndarray, spacing_mm: float) -> float:
    """Return the longest side of the tumour's box, or twice its reach from the centroid."""
    places = np.argwhere(regions_of(labels)[0])
    reach = np.abs(places - places.mean(axis=0)).max() + 1
    return 2 * float(reach) * spacing_mm


def aligned(labels: np.ndarray, spacing_mm: float, side_mm: float) -> np.ndarray:
    """Return WT, TC and ET around WT's centroid on a common grid: (3, 49, 49, 49) bool."""
    regions = regions_of(labels)
    step = side_mm / CODE_SIDE / spacing_mm
    start = np.argwhere(regions[0]).mean(axis=0) - step * (CODE_SIDE // 2)
    # Reading between voxels keeps a mirrored copy a mirrored copy, which whole voxels do not.
    sampled = [
        ndimage.affine_transform(
            region.astype(np.float32), np.full(3, step), start,
            output_shape=(CODE_SIDE,) * 3, order=1, mode="grid-constant",
        )
        for region in regions
    ]  # fmt: skip
    return np.stack(sampled) > 0.5 - 1e-4  # a tie counts as inside, whichever way it is rounded


def nearest(
    codes: np.ndarray, train: np.ndarray, *, itself: bool = False
) -> Nearest:  # both (masks, 3, S, S, S) bool
    """Find the best Dice over training masks and their 8 mirror images, centroids aligned.

    The Dice is 2 Σ|A ∩ B| / Σ(|A| + |B|) over the three regions together. Coarse densities choose
    32 candidates for each mask, which are then counted in full. With `itself` both sets are the
    same, and a mask is not its own neighbour.
    """
    if len(train) < 1 + itself:
        raise SynthError("no training mask to compare with", hint="give a folder with more")
    coarse = np.concatenate([_coarse(_flipped(train, flip)) for flip in FLIPS])
    own = _coarse(codes)
    similar = 2 * own @ coarse.T / ((own**2).sum(1)[:, None] + (coarse**2).sum(1))
    if itself:
        similar[np.arange(len(own))[:, None], _images(np.arange(len(own)), len(train))] = -1
    best, index = np.zeros(len(codes)), np.zeros(len(codes), int)
    for i, code in enumerate(codes):
        candidates = np.argsort(-similar[i], kind="stable")[:SHORTLIST]
        candidates = candidates[similar[i, candidates] >= 0]
        found = [
            overlap(code, _flipped(train[c % len(train)], FLIPS[c // len(train)]))
            for c in candidates
        ]
        best[i], index[i] = max(found), candidates[int(np.argmax(found))] % len(train)
    return Nearest(closeness=best, index=index)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Dice of all regions together."""
    return 2 * int(np.count_nonzero(a & b)) / (np.count_nonzero(a) + np.count_nonzero(b))


def diversity(codes: np.ndarray, *, most: int = 500, seed: int = 0) -> float:
    """Return the mean Dice of two masks of a set, over all pairs or `most` drawn ones."""
    first, second = np.triu_indices(len(codes), 1)
    if len(first) > most:
        chosen = np.random.default_rng(seed).choice(len(first), most, replace=False)
        first, second = first[chosen], second[chosen]
    return float(np.mean([overlap(codes[i], codes[j]) for i, j in zip(first, second, strict=True)]))


def _coarse(codes: np.ndarray) -> np.ndarray:
    """Mean of 7³ blocks: (masks, 3 · 7³)."""
    n, regions, side = codes.shape[:3]
    block = side // COARSE
    cells = codes.reshape(n, regions, COARSE, block, COARSE, block, COARSE, block)
    return cells.mean(axis=(3, 5, 7), dtype=np.float32).reshape(n, -1)


def _flipped(codes: np.ndarray, flip: tuple[int, ...]) -> np.ndarray:
    return np.flip(codes, [axis - 3 for axis, turn in enumerate(flip) if turn])


def _images(index: np.ndarray, count: int) -> np.ndarray:
    """Where the 8 mirror images of a training mask are in the stack of them."""
    return index[:, None] + count * np.arange(len(FLIPS))
