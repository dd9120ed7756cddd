"""Distances between two sets of images: MS-SSIM, MMD, Fréchet distance.

Numbers like FID come from a network trained on photographs. Here a volume is described by
statistics that have a meaning (`volume_features`): grey values, layout, and texture at four
scales. Distances on them are comparable between runs of this package only; never put them in a
table beside published FIDs.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist, pdist

from synth.base.errors import SynthError

WANG_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, fine to coarse
WINDOW_SIGMA, WINDOW_RADIUS = 1.5, 5
K1, K2 = 0.01, 0.03

GREY_QUANTILES = np.linspace(0.1, 0.9, 9)
LAYOUT_CELLS = 3
TEXTURE_LEVELS = 4
SMALLEST_DETAIL = 1e-3  # of the grey range; keeps the logarithm of an empty band finite


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
    x: np.ndarray,
    y: np.ndarray,
    *,
    kernel: Literal["rbf", "polynomial"] = "rbf",
    bandwidth: float | None = None,
) -> float:  # (n, features), (m, features)
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3); may be negative.

    `rbf` is exp(-d²/2σ²) with σ the median distance of the pooled sample unless `bandwidth` says
    otherwise; `polynomial` is (x·y/features + 1)³, the kernel of KID (Bińkowski et al. 2018).
    Unbiased also for a handful of volumes, where a Fréchet distance is not.
    """
    x, y = _samples(x, y)
    if kernel == "polynomial":
        k_xx, k_yy, k_xy = ((p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    elif kernel == "rbf":
        sigma = np.median(pdist(np.concatenate((x, y)))) if bandwidth is None else bandwidth
        if not sigma > 0:
            raise SynthError(
                f"the kernel's bandwidth is {sigma:g}",
                hint="most features coincide; pass a positive bandwidth",
            )
        k_xx, k_yy, k_xy = (
            np.exp(-cdist(p, q, "sqeuclidean") / (2 * sigma**2))
            for p, q in ((x, x), (y, y), (x, y))
        )
    else:
        raise SynthError(f"unknown kernel {kernel!r}", hint="use 'rbf' or 'polynomial'")
    return float(_off_diagonal_mean(k_xx) + _off_diagonal_mean(k_yy) - 2 * k_xy.mean())


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


def volume_features(volume: np.ndarray) -> np.ndarray:  # (X, Y, Z) or (C, X, Y, Z)
    """Describe a skull-stripped volume (background 0) by 92 numbers a channel; deterministic.

    Grey values are first scaled so that percentiles 0.5 and 99.5 of the brain are 0 and 1, since
    MR units are arbitrary; whatever depends on the unit is not seen. In order:

    - 9 deciles of the brain's grey values;
    - 27 mean grey values of the cells of a 3 × 3 × 3 division of the brain's box: layout;
    - 4 levels × 7 Haar bands × 2: log mean magnitude, and standard deviation over mean magnitude
      (Gaussian texture has 1.25, sparse edges more): texture from two to sixteen voxels.
    """
    channels = volume[None] if volume.ndim == 3 else volume
    if channels.ndim != 4:
        raise SynthError(
            f"expected (X, Y, Z) or (C, X, Y, Z), got shape {volume.shape}",
            hint="describe one volume at a time",
        )
    return np.concatenate([_channel_features(channel) for channel in channels])


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
            hint="stack the volume_features of each set",
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SynthError("a feature is NaN or Inf", hint="look for NaN in the volumes")
    return x, y


def _off_diagonal_mean(gram: np.ndarray) -> float:
    n = len(gram)
    return (gram.sum() - np.trace(gram)) / (n * (n - 1))


def _channel_features(volume: np.ndarray) -> np.ndarray:
    brain = volume != 0
    grey = volume[brain].astype(np.float64)
    low, high = np.percentile(grey, (0.5, 99.5)) if grey.size else (0.0, 0.0)
    if not high > low:
        raise SynthError(
            "the volume has no contrast, so nothing can be said of its grey values",
            hint="pass a skull-stripped scan with background 0",
        )
    grey = np.clip((grey - low) / (high - low), 0, 1)
    scaled = np.zeros(volume.shape)
    scaled[brain] = grey
    scaled = scaled[ndimage.find_objects(brain.astype(np.uint8))[0]]
    return np.concatenate((np.quantile(grey, GREY_QUANTILES), _layout(scaled), _texture(scaled)))


def _layout(volume: np.ndarray) -> np.ndarray:
    """Mean grey value of the cells of a regular division, border voxels shared by area."""
    for axis in range(3):
        n = volume.shape[axis]
        edges = np.linspace(0, n, LAYOUT_CELLS + 1)
        first, last = edges[:-1, None], edges[1:, None]
        share = np.clip(
            np.minimum(np.arange(1, n + 1), last) - np.maximum(np.arange(n), first), 0, 1
        )
        volume = np.moveaxis(np.tensordot(share * LAYOUT_CELLS / n, volume, (1, axis)), 0, axis)
    return volume.ravel()  # (27,)


def _texture(volume: np.ndarray) -> np.ndarray:
    numbers = []
    for _ in range(TEXTURE_LEVELS):
        volume, details = _haar(volume)
        for band in details:
            magnitude = np.abs(band).mean()
            spread = np.sqrt((band**2).mean() + SMALLEST_DETAIL**2)
            numbers += [np.log(magnitude + SMALLEST_DETAIL), spread / (magnitude + SMALLEST_DETAIL)]
    return np.array(numbers)  # (4 * 7 * 2,)


def _haar(volume: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """One level of the 3-D Haar transform: block means, and the seven detail bands."""
    volume = np.pad(volume, [(0, n % 2) for n in volume.shape], mode="edge")
    bands = [volume]
    for axis in range(3):
        halves = [
            (
                np.take(v, range(0, v.shape[axis], 2), axis),
                np.take(v, range(1, v.shape[axis], 2), axis),
            )
            for v in bands
        ]
        bands = list(itertools.chain(*(((p + q) / 2, (p - q) / 2) for p, q in halves)))
    return bands[0], bands[1:]
