"""Distance between two sets of tumour shapes, and search for copies.

Distances between sets live on `shape_features`, standardised by the real masks. They are small or
large only beside the distance of real masks to other real masks, which `floor` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, stats
from scipy.spatial.distance import cdist, pdist

from synth.base.errors import SynthError
from synth.metrics.distribution import mmd2
from synth.metrics.shape import DESCRIBED, matrix, regions_of

LEVEL = 0.95
RESAMPLES = 1000
HALVINGS = 200
CODE_SIDE = 49
"""Voxels along a side of the common grid that overlaps are counted on; odd, so that it has a middle
voxel."""
SHORTLIST = 32
COARSE = 7
FLIPS = tuple(np.ndindex(2, 2, 2))

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


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


def shape_mmd2(a: Rows, b: Rows, standard: Standard, *, seed: int = 0) -> Interval:
    """Unbiased MMD² of two sets of shapes, with the bootstrap over the masks of both.

    A resample may hold a mask twice. The pair of a mask with itself is left out, as it is of the
    estimate; counting it would push every resample upwards.
    """
    x, y = standard(a), standard(b)
    point = mmd2(x, y, bandwidth=standard.bandwidth)
    k_xx, k_yy, k_xy = (
        np.exp(-cdist(p, q, "sqeuclidean") / (2 * standard.bandwidth**2))
        for p, q in ((x, x), (y, y), (x, y))
    )
    rng = np.random.default_rng(seed)
    u, v = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in (len(x), len(y)))
    cross = np.einsum("bi,ij,bj->b", u, k_xy, v, optimize=True) / (len(x) * len(y))
    found = _pair_mean(u, k_xx) + _pair_mean(v, k_yy) - 2 * cross
    return Interval(value=point, **_quantiles(found))


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
    return Interval(value=float(stats.wasserstein_distance(a, b)), **_quantiles(np.array(found)))


def floor(real: Rows, standard: Standard, names: Sequence[str], *, seed: int = 0) -> dict:
    """Return what two halves of the real masks are apart, dealt at random: mean and 95 %.

    Halves are smaller than the sets compared, so that the floor is rather high than low.
    """
    rng = np.random.default_rng(seed)
    whole = standard(real)
    columns = {name: np.array([row[name] for row in real]) for name in names}
    found: dict[str, list[float]] = {"mmd2": [], **{name: [] for name in names}}
    for _ in range(HALVINGS):
        order = rng.permutation(len(real))
        one, other = order[: len(real) // 2], order[len(real) // 2 :]
        found["mmd2"].append(mmd2(whole[one], whole[other], bandwidth=standard.bandwidth))
        for name, values in columns.items():
            p, q = (v[np.isfinite(v)] for v in (values[one], values[other]))
            both = len(p) and len(q)
            found[name].append(stats.wasserstein_distance(p, q) if both else np.nan)
    return {
        name: {"mean": float(np.nanmean(v)), "high": float(np.nanquantile(v, LEVEL))}
        if np.isfinite(v).any()
        else {"mean": None, "high": None}
        for name, v in found.items()
    }


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


def _pair_mean(weights: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Mean of the kernel over pairs of different masks, for each row of weights."""
    gram = gram - np.diag(np.diag(gram))
    total = ((weights @ gram) * weights).sum(axis=1)
    pairs = weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
    return total / np.maximum(pairs, 1)


def _quantiles(found: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {"low": float(low), "high": float(high)}


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
