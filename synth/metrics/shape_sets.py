"""Distance between two sets of tumour shapes, and search for copies.

Distances between sets live on `shape_features`, standardised by the real masks. They are small or
large only beside the distance of real masks to other real masks, which `floor` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, stats
from scipy.spatial.distance import pdist

from synth.base.errors import SynthError
from synth.metrics.distribution import (
    LEVEL,
    RESAMPLES,
    Interval,
    halvings,
    mean_and_high,
    mmd2_floor,
)
from synth.metrics.shape import DESCRIBED, matrix, regions_of

CODE_SIDE = 49
"""Voxels along a side of the common grid that overlaps are counted on; odd, so that it has a middle
voxel."""
SHORTLIST = 32
COARSE = 7
FLIPS = tuple(np.ndindex(2, 2, 2))

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Standard:
    """Scale of the features, and the kernel's width, as real masks have them."""

    mean: np.ndarray  # (features,)
    scale: np.ndarray  # (features,)
    bandwidth: float
    """Median distance between two real masks."""

    @classmethod
    def of(cls, real: Rows) -> Standard:
        """Measure the real masks; a feature they never vary gets the least spread of its kind."""
        if len(real) < 4:
            raise SynthError(
                f"{len(real)} real masks cannot tell how much shapes vary", hint="give 4 or more"
            )
        table = matrix(real)
        known = np.isfinite(table)
        count = known.sum(axis=0).clip(1)
        mean = np.where(known, table, 0).sum(axis=0) / count
        variance = np.where(known, (table - mean) ** 2, 0).sum(axis=0) / count
        scale = np.maximum(np.sqrt(variance), list(DESCRIBED.values()))
        distances = pdist(np.where(known, (table - mean) / scale, 0))
        if not np.median(distances) > 0:
            raise SynthError("most real masks are the same", hint="remove the duplicates")
        return cls(mean=mean, scale=scale, bandwidth=float(np.median(distances)))

    def __call__(self, rows: Rows) -> np.ndarray:  # (masks, features)
        """Standardise; a number that does not exist is average: volumes tell that it is absent."""
        table = (matrix(rows) - self.mean) / self.scale
        return np.where(np.isfinite(table), table, 0)


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


def floor(real: Rows, standard: Standard, names: Sequence[str], *, seed: int = 0) -> dict:
    """Return what two halves of the real masks are apart, dealt at random: mean and 95 %."""
    halves = halvings(len(real), seed=seed)
    found = {"mmd2": mmd2_floor(standard(real), halves, bandwidth=standard.bandwidth)}
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """Of each mask, the training mask that it overlaps best."""

    dice: np.ndarray  # (masks,)
    index: np.ndarray  # (masks,), into the training masks


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
    return Nearest(dice=best, index=index)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Dice of all regions together."""
    return 2 * int(np.count_nonzero(a & b)) / (np.count_nonzero(a) + np.count_nonzero(b))


def authentic(found: Nearest, train: Nearest) -> np.ndarray:  # (masks,) bool
    """Whether each mask is no closer to its training mask than that one is to another of them.

    Alaa et al. 2022, with Dice as the closeness. Read the share that passes beside that of unseen
    real masks.
    """
    return found.dice <= train.dice[found.index]


def copy_threshold(unseen: Nearest, train: Nearest) -> float:
    """Return a Dice that chance does not reach: 4 sd above the mean of different real masks.

    `unseen` are unseen real masks next to training masks, `train` training masks next to each
    other. Never below the highest Dice of either, and never so high that no copy could reach it.
    """
    dice = np.concatenate((unseen.dice, train.dice))
    return float(min(max(dice.mean() + 4 * dice.std(), dice.max()), 0.99))


def copies(found: Nearest, train: Nearest, threshold: float) -> np.ndarray:  # (masks,) bool
    """Whether each mask is above the threshold of copies, and not authentic."""
    return (found.dice > threshold) & ~authentic(found, train)


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
