"""From probabilities to labels: thresholds, component filters, nesting.

By default only the threshold of 0.5 applies. Regions are found from the inside out (ET, TC, WT):
each outer region includes the inner ones, and a component that holds inner tumour is kept, whatever
its size, so that ET ⊂ TC ⊂ WT always holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.labels import REGIONS

CONNECTED = np.ones((3, 3, 3), bool)  # 26 neighbours, as the challenge counts lesions

Three = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What becomes tumour. Triples are in the order WT, TC, ET."""

    thresholds: Three = (0.5, 0.5, 0.5)
    """A voxel belongs to a region if it is more probable than this."""
    min_ml: Three = (0.0, 0.0, 0.0)
    """Components smaller than this are dropped; 1 ml is 1000 mm³."""
    min_probability: Three = (0.0, 0.0, 0.0)
    """Components whose voxels are less probable than this on average are dropped."""
    most: tuple[int, int, int] = (0, 0, 0)
    """At most so many components are kept, the largest ones; 0 keeps any number."""
    small_et_ml: float = 0.0
    """Enhancing tumour of less than this in all becomes necrotic core."""

    def __post_init__(self) -> None:
        for name in ("thresholds", "min_probability"):
            if not all(0 <= p <= 1 for p in getattr(self, name)):
                raise SynthError(f"{name} = {getattr(self, name)}", hint="probabilities, 0 to 1")
        for name in ("min_ml", "most"):
            if not all(n >= 0 for n in getattr(self, name)):
                raise SynthError(f"{name} = {getattr(self, name)}", hint="0 or more")
        if not self.small_et_ml >= 0:
            raise SynthError(f"small_et_ml = {self.small_et_ml}", hint="0 or more millilitres")

    @classmethod
    def of_words(cls, small_et_ml: float = 0.0, **triples: tuple) -> Postprocessing:
        """Build one from tuples of three values, or of one that holds for every region."""
        full = {}
        for name, values in triples.items():
            if len(values) not in (1, len(REGIONS)):
                raise SynthError(
                    f"{name} has {len(values)} values",
                    hint=f"one for {', '.join(REGIONS)} each, or one for all",
                )
            full[name] = tuple(values) * (len(REGIONS) // len(values))
        return cls(small_et_ml=small_et_ml, **full)


def apply_rules(
    probabilities: np.ndarray, rules: Postprocessing, voxel_ml: float
) -> np.ndarray:  # (3, X, Y, Z) bool
    """Return the regions WT, TC, ET of (3, X, Y, Z) probabilities."""
    regions = np.zeros(probabilities.shape, bool)
    inner = small_et = np.zeros(probabilities.shape[1:], bool)
    for channel in reversed(range(len(REGIONS))):  # ET, TC, WT
        above = probabilities[channel] > rules.thresholds[channel]
        inner = filter_components(
            above | inner | small_et,
            probabilities[channel],
            voxel_ml=voxel_ml,
            min_ml=rules.min_ml[channel],
            min_probability=rules.min_probability[channel],
            most=rules.most[channel],
            inner=inner,
        )
        small_et = np.zeros_like(inner)
        if REGIONS[channel] == "ET" and inner.sum() * voxel_ml < rules.small_et_ml:
            inner, small_et = small_et, inner  # it may still become core
        regions[channel] = inner
    return regions


def filter_components(
    region: np.ndarray,
    probability: np.ndarray,
    *,
    voxel_ml: float,
    min_ml: float,
    min_probability: float,
    most: int,
    inner: np.ndarray,
) -> np.ndarray:
    """Return the connected components of a region that are large and probable enough.

    Of those at most `most`, the largest ones, stay; components that hold a voxel of `inner` stay in
    any case, and count first.
    """
    if not (min_ml or min_probability or most):
        return region
    parts, count = ndimage.label(region, CONNECTED)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    sums = np.bincount(parts.ravel(), probability.ravel(), minlength=count + 1)[1:]
    needed = np.zeros(count, bool)
    needed[np.setdiff1d(parts[inner], 0) - 1] = True
    # Products of floats: 60 voxels of 0.001 ml are not below 0.06 ml.
    large = sizes * voxel_ml >= min_ml * (1 - 1e-9)
    kept = needed | (large & (sums >= min_probability * sizes * (1 - 1e-6)))
    if most:
        order = np.lexsort((np.arange(count), -sizes, ~needed))
        ranked = order[kept[order]]
        kept[ranked[max(most, int(needed.sum())) :]] = False
    return np.concatenate([[False], kept])[parts]
