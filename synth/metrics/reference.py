"""Real cases as a reference: the scale of their features, and what is a copy of a training case.

Features are standardised by the real cases, so that no feature counts more for its unit. A copy is
closer to a training case than different patients are to each other, and closer to it than that one
is to any other (Alaa et al. 2022): one of two twins in the training set makes no copy of their kin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.spatial.distance import pdist

from synth.base.errors import SynthError

MIN_CASES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureScale:
    """Mean and spread of features as real cases have them, and the kernel's width."""

    mean: np.ndarray  # (features,)
    scale: np.ndarray  # (features,)
    bandwidth: float
    """Median distance of two real cases."""
    compress: bool
    """Whether z becomes 2 asinh(z/2), so that a few outliers cannot decide a cubic kernel."""

    @classmethod
    def of(cls, real: np.ndarray, least: np.ndarray, *, compress: bool = False) -> FeatureScale:
        """Measure real cases.

        Args:
            real: (cases, features); NaN where a number does not exist.
            least: (features,), the smallest spread that counts.
            compress: see the field.
        """
        if len(real) < MIN_CASES:
            raise SynthError(
                f"{len(real)} real cases cannot tell how much they vary",
                hint=f"give {MIN_CASES} or more",
            )
        known = np.isfinite(real)
        count = known.sum(axis=0).clip(1)
        mean = np.where(known, real, 0).sum(axis=0) / count
        variance = np.where(known, (real - mean) ** 2, 0).sum(axis=0) / count
        scale = np.maximum(np.sqrt(variance), least)
        found = cls(mean=mean, scale=scale, bandwidth=1.0, compress=compress)
        bandwidth = float(np.median(pdist(found(real))))
        if not bandwidth > 0:
            raise SynthError("most real cases are the same", hint="remove the duplicates")
        return cls(mean=mean, scale=scale, bandwidth=bandwidth, compress=compress)

    def __call__(self, features: np.ndarray) -> np.ndarray:  # (cases, features)
        """Standardise; a number that does not exist is average."""
        z = (features - self.mean) / self.scale
        z = np.where(np.isfinite(z), z, 0)
        return 2 * np.arcsinh(z / 2) if self.compress else z


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """Of each case, the training case most like it."""

    closeness: np.ndarray  # (cases,), 1 for a copy
    index: np.ndarray  # (cases,), into the training cases


@dataclass(frozen=True, kw_only=True, eq=False)
class CopyRule:
    """What a copy is, measured on real cases of different patients."""

    among: Nearest
    """Of each training case, the other one most like it."""
    unseen: Nearest
    """Of each unseen real case."""
    most: float
    """A closeness that is a copy whatever the real cases say."""

    @property
    def threshold(self) -> float:
        """A closeness that chance does not reach: 4 sd above the mean, and above every pair."""
        found = np.concatenate((self.unseen.closeness, self.among.closeness))
        return float(min(max(found.mean() + 4 * found.std(), found.max()), self.most))

    def authentic(self, found: Nearest) -> np.ndarray:  # (cases,) bool
        """Whether each is at most as close to a training case as that one's own neighbour."""
        return found.closeness <= self.among.closeness[found.index]

    def copied(self, found: Nearest) -> np.ndarray:  # (cases,) bool
        """Whether each is a copy of its training case."""
        return (found.closeness > self.threshold) & ~self.authentic(found)

    def closer_p(self, found: Nearest) -> float:
        """Return the one-sided Mann–Whitney p: are they closer to training than unseen ones?"""
        own, unseen = found.closeness, self.unseen.closeness
        return float(stats.mannwhitneyu(own, unseen, alternative="greater").pvalue)
