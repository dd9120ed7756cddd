"""Distance of a set of scans from real ones, in a feature space.

The headline is KID (Bińkowski et al. 2018), the unbiased MMD² with the kernel (x·y/d + 1)³. It has
no bandwidth to choose and does not level off: models that are judged by the same real cases can be
compared, however far the worse one is. MMD² with a Gaussian kernel stands beside it: it sees every
difference, but all sets that are far score alike. Features are standardised by the real cases, so
that no feature counts more for its unit, and compressed where no real case is: z → 2 asinh(z/2).
Without that a handful of outliers among the cases decides a cubic kernel. FID is biased by the
sample's size; it is reported for equal sizes only, beside what real cases score at that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist, pdist

from synth.base.errors import SynthError
from synth.metrics.distribution import frechet_distance, ms_ssim_3d
from synth.metrics.shape_sets import Interval

Kernel = Literal["polynomial", "rbf"]
RESAMPLES, HALVINGS, FID_DEALS = 1000, 200, 30
LEVEL = 0.95
FEWEST = 4
LEAST_SPREAD = 0.01
"""Of a feature's size: what real cases hardly vary in may not decide everything."""
MS_SSIM_SCALES, MS_SSIM_SIDE = 3, 44  # 11-voxel windows at a quarter of the size


@dataclass(frozen=True, kw_only=True, eq=False)
class Standard:
    """The scale of features as real cases have them, and the kernel's width."""

    mean: np.ndarray  # (features,)
    scale: np.ndarray  # (features,)
    bandwidth: float
    """Median distance of two real cases."""

    @classmethod
    def of(cls, real: np.ndarray) -> Standard:  # (cases, features)
        """Measure real cases."""
        if len(real) < FEWEST:
            raise SynthError(
                f"{len(real)} real cases cannot tell how much scans vary",
                hint=f"give {FEWEST} or more",
            )
        mean = real.mean(axis=0)
        size = np.sqrt((real**2).mean(axis=0))
        scale = np.maximum(real.std(axis=0), LEAST_SPREAD * np.maximum(size, size.mean()))
        bandwidth = float(np.median(pdist(_compressed((real - mean) / scale))))
        if not bandwidth > 0:
            raise SynthError("most real cases are the same", hint="remove the duplicates")
        return cls(mean=mean, scale=scale, bandwidth=bandwidth)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Standardise and compress."""
        return _compressed((features - self.mean) / self.scale)

    def gram(self, x: np.ndarray, kernel: Kernel) -> np.ndarray:  # standardised (n, d) → (n, n)
        """Return the kernel of all pairs."""
        if kernel == "polynomial":
            return (x @ x.T / x.shape[1] + 1) ** 3
        return np.exp(-cdist(x, x, "sqeuclidean") / (2 * self.bandwidth**2))


def weighted_mmd2(gram: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Unbiased MMD² between weightings u and v (B, n) of n items; 0/1 weights choose subsets.

    A resample may hold an item twice. The pair of an item with itself is left out, as it is of the
    estimate; counting it would push every resample upwards.
    """
    apart = gram - np.diag(np.diag(gram))

    def within(w: np.ndarray) -> np.ndarray:
        pairs = w.sum(axis=1) ** 2 - (w**2).sum(axis=1)
        return ((w @ apart) * w).sum(axis=1) / np.maximum(pairs, 1)

    across = ((u @ gram) * v).sum(axis=1) / (u.sum(axis=1) * v.sum(axis=1))
    return within(u) + within(v) - 2 * across


def kernel_distance(
    made: np.ndarray, real: np.ndarray, standard: Standard, kernel: Kernel, *, seed: int = 0
) -> Interval:  # (n, features), (m, features)
    """Unbiased MMD² of two sets, with the bootstrap over the cases of both."""
    n, m = len(made), len(real)
    gram = standard.gram(standard(np.concatenate((made, real))), kernel)
    ours, theirs = np.zeros((2, RESAMPLES + 1, n + m))
    ours[0, :n], theirs[0, n:] = 1, 1
    rng = np.random.default_rng(seed)
    ours[1:, :n] = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    theirs[1:, n:] = rng.multinomial(m, np.full(m, 1 / m), RESAMPLES)
    found = weighted_mmd2(gram, ours, theirs)
    low, high = np.quantile(found[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value=float(found[0]), low=float(low), high=float(high))


def kernel_floor(
    real: np.ndarray, standard: Standard, kernel: Kernel, *, seed: int = 0
) -> dict[str, float]:
    """Return what random halves of the real cases are apart: mean and 95 % quantile.

    Halves are smaller than the sets compared, so that the floor is rather high than low.
    """
    gram = standard.gram(standard(real), kernel)
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((HALVINGS, len(real))), axis=1)
    one = (order < len(real) // 2).astype(float)
    found = weighted_mmd2(gram, one, 1 - one)
    return {"mean": float(found.mean()), "high": float(np.quantile(found, LEVEL))}


def frechet(
    made: np.ndarray, real: np.ndarray, standard: Standard, *, seed: int = 0
) -> dict[str, float | int | str]:
    """Return FID of equally many made and real cases, beside that of real and other real ones.

    Both are means over deals of half as many cases as are real, since the floor needs two sets.
    """
    half = len(real) // 2
    if len(made) < half:
        reason = f"FID is left out: {len(made)} made cases, and equal sets would need {half}"
        return {"left_out": reason}
    x, y = standard(made), standard(real)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(FID_DEALS):
        own, other = rng.permutation(len(made))[:half], rng.permutation(len(real))
        one, two = y[other[:half]], y[other[half : 2 * half]]
        found.append((frechet_distance(x[own], one), frechet_distance(two, one)))
    value, floor = np.mean(found, axis=0)
    return {"value": float(value), "real": float(floor), "cases": half}


def pair_similarity(
    a: np.ndarray, b: np.ndarray
) -> np.ndarray:  # (C, …), (C, …) grey values 0 … 1 → (C,)
    """MS-SSIM of each contrast of two brains, centred on one grid."""
    shape = np.maximum(np.maximum(a.shape[1:], b.shape[1:]), MS_SSIM_SIDE)
    a, b = (_centred(v, shape) for v in (a, b))
    return np.array([
        ms_ssim_3d(p, q, data_range=1.0, scales=MS_SSIM_SCALES) for p, q in zip(a, b, strict=True)
    ])  # fmt: skip


def _compressed(z: np.ndarray) -> np.ndarray:
    return 2 * np.arcsinh(z / 2)


def _centred(image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    room = shape - image.shape[1:]
    return np.pad(image.astype(np.float32), [(0, 0), *((r // 2, r - r // 2) for r in room)])
