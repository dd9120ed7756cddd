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

import numpy as np
from scipy.spatial.distance import pdist

from synth.base.errors import SynthError
from synth.metrics.distribution import frechet_distance, ms_ssim_3d

FID_DEALS = 30
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
