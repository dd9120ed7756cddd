"""Distances between two sets of images or features: MS-SSIM, MMD, Fréchet distance.

Numbers like FID come from a network trained on photographs. Distances on other features are
comparable between runs of this package only; never put them in a table beside published FIDs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist, pdist

from synth.base.errors import SynthError

WANG_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, fine to coarse
WINDOW_SIGMA, WINDOW_RADIUS = 1.5, 5
K1, K2 = 0.01, 0.03

RESAMPLES, HALVINGS = 1000, 200
LEVEL = 0.95

Kernel = Literal["rbf", "polynomial"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def ms_ssim_3d(
    a: np.ndarray, b: np.ndarray, *, data_range: float, scales: int = 3
) -> float:  # (X, Y, Z), (X, Y, Z)
    """Multi-scale structural similarity of two volumes (Wang et al. 2003) with 11³ windows.

    Takes the `scales` finest of Wang's weights, renormalised. Five scales need 176 voxels on every
    side, which a brain of 155 slices does not have. Over random pairs of one set its mean tells
    diversity: the higher, the more alike the brains.
    """
    if not 1 <= scales <= len(WANG_WEIGHTS) or not data_range > 0:
        raise SynthError(
            f"scales={scales} and data_range={data_range} are out of range",
            hint=f"1 to {len(WANG_WEIGHTS)} scales, and a positive range of grey values",
        )
    needed = (2 * WINDOW_RADIUS + 1) * 2 ** (scales - 1)
    if a.shape != b.shape or a.ndim != 3 or min(a.shape) < needed:
        raise SynthError(
            f"{scales} scales need two (X, Y, Z) volumes of one shape, each side {needed} or more; "
            f"got {a.shape} and {b.shape}",
            hint="use fewer scales or larger volumes",
        )
    weights = np.array(WANG_WEIGHTS[:scales]) / sum(WANG_WEIGHTS[:scales])
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    result = 1.0
    for level, weight in enumerate(weights):
        similarity, contrast = _ssim_terms(a, b, data_range)
        # Luminance enters at the coarsest scale only; a negative term counts as none.
        term = similarity if level == scales - 1 else contrast
        result *= max(term, 0.0) ** weight
        a, b = _halve(a), _halve(b)
    return float(result)


def mmd2(
    x: np.ndarray, y: np.ndarray, *, kernel: Kernel = "rbf", bandwidth: float | None = None
) -> float:  # (n, features), (m, features)
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3); may be negative.

    `rbf` is exp(-d²/2σ²) with σ the median distance of the pooled sample unless `bandwidth` says
    otherwise; `polynomial` is (x·y/features + 1)³, the kernel of KID (Bińkowski et al. 2018).
    Unbiased also for a handful of volumes, where a Fréchet distance is not.
    """
    x, y = _samples(x, y)
    first = (np.arange(len(x) + len(y)) < len(x))[None].astype(float)
    gram = gram_matrix(np.concatenate((x, y)), kernel, bandwidth)
    return float(weighted_mmd2(gram, first, 1 - first)[0])


def mmd2_interval(
    x: np.ndarray,
    y: np.ndarray,
    *,
    kernel: Kernel = "rbf",
    bandwidth: float | None = None,
    seed: int = 0,
) -> Interval:  # (n, features), (m, features)
    """Unbiased MMD² of two sets, with the bootstrap over the cases of both."""
    x, y = _samples(x, y)
    n, m = len(x), len(y)
    ours, theirs = np.zeros((2, RESAMPLES + 1, n + m))
    ours[0, :n], theirs[0, n:] = 1, 1
    rng = np.random.default_rng(seed)
    ours[1:, :n] = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    theirs[1:, n:] = rng.multinomial(m, np.full(m, 1 / m), RESAMPLES)
    gram = gram_matrix(np.concatenate((x, y)), kernel, bandwidth)
    found = weighted_mmd2(gram, ours, theirs)
    low, high = np.quantile(found[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value=float(found[0]), low=float(low), high=float(high))


def mmd2_floor(
    real: np.ndarray, halves: np.ndarray, *, kernel: Kernel = "rbf", bandwidth: float | None = None
) -> dict[str, float | None]:  # (n, features), (deals, n) bool
    """Return what random halves of the real cases are apart: mean and 95 % quantile.

    Halves are smaller than the sets compared, so that the floor is rather high than low.
    """
    first = halves.astype(float)
    return mean_and_high(weighted_mmd2(gram_matrix(real, kernel, bandwidth), first, 1 - first))


def halvings(count: int, *, seed: int = 0) -> np.ndarray:  # (200, count) bool
    """Deal cases into two halves at random, many times; of an odd number the first is smaller."""
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(count) for _ in range(HALVINGS)])
    return np.argsort(orders, axis=1) < count // 2


def mean_and_high(values: np.ndarray) -> dict[str, float | None]:
    """Return the mean and the 95 % quantile of the finite values; None if there is none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {"mean": None, "high": None}
    return {"mean": float(values.mean()), "high": float(np.quantile(values, LEVEL))}


def gram_matrix(x: np.ndarray, kernel: Kernel, bandwidth: float | None) -> np.ndarray:
    """Return the kernel of all pairs: (n, features) → (n, n)."""
    if kernel == "polynomial":
        return (x @ x.T / x.shape[1] + 1) ** 3
    if kernel != "rbf":
        raise SynthError(f"unknown kernel {kernel!r}", hint="use 'rbf' or 'polynomial'")
    sigma = np.median(pdist(x)) if bandwidth is None else bandwidth
    if not sigma > 0:
        raise SynthError(
            f"the kernel's bandwidth is {sigma:g}",
            hint="most features coincide; pass a positive bandwidth",
        )
    return np.exp(-cdist(x, x, "sqeuclidean") / (2 * sigma**2))


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


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:  # (n, features), (m, features)
    """Squared Fréchet distance between the Gaussians fitted to two samples (Heusel et al. 2017).

    |μx - μy|² + tr(Cx + Cy - 2 (Cx Cy)^½). With centred data matrices A and B the last trace is
    the nuclear norm of A Bᵀ, which stays exact when there are fewer volumes than features. It is
    biased upwards for small samples: compare only sets of one size.
    """
    x, y = _samples(x, y)
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    # A tall product has the same singular values as the product of the triangular factors.
    a, b = (np.asarray(np.linalg.qr(m, mode="r")) if len(m) > m.shape[1] else m for m in (a, b))
    cross = np.linalg.norm(a @ b.T, ord="nuc")
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross
    return max(float(distance), 0.0)  # below 0 by rounding only


def _ssim_terms(a: np.ndarray, b: np.ndarray, data_range: float) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term over all windows inside the volume."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    contrast = (2 * covariance + c2) / (var_a + var_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * contrast).mean()), float(contrast.mean())


def _blur(volume: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of every 11³ window that fits in the volume."""
    offset = np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1)
    bell = np.exp(-((offset / WINDOW_SIGMA) ** 2) / 2)
    for axis in range(3):
        volume = ndimage.correlate1d(volume, bell / bell.sum(), axis=axis)
        cut = [slice(None)] * 3
        cut[axis] = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
        volume = volume[tuple(cut)]
    return volume


def _halve(volume: np.ndarray) -> np.ndarray:
    """Mean of 2³ blocks; an odd last slice is dropped."""
    x, y, z = (n // 2 for n in volume.shape)
    return volume[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))


def _samples(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise SynthError(
            f"expected two samples (volumes, features) of 2 volumes or more, "
            f"got {x.shape} and {y.shape}",
            hint="stack the features of each set",
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SynthError("a feature is NaN or Inf", hint="look for NaN in the volumes")
    return x, y
