"""Tumour labels: schemes and their regions, and the conversion from one scheme to another.

*Classes* are the numbers that our own code works with, whatever a file's scheme: 0 none, 1 necrotic
core (NCR), 2 oedema (ED), 3 enhancing tumour (ET). They are those of BraTS 2023.
"""

from __future__ import annotations

import numpy as np

from synth.base.config import did_you_mean
from synth.base.errors import SynthError

NONE, NCR, ED, ET = 0, 1, 2, 3
REGIONS = ("WT", "TC", "ET")
"""Outer regions first: each contains the next."""
# Scheme → region → labels, outer regions first. The tumour is always WT.
SCHEMES: dict[str, dict[str, tuple[int, ...]]] = {
    "brats2021": {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)},
    "brats2023": {"WT": (NCR, ED, ET), "TC": (NCR, ET), "ET": (ET,)},
    "brats2024": {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,), "RC": (4,)},
    "ped2024": {"WT": (1, 2, 3, 4), "TC": (1, 2, 3), "ET": (1,), "NET": (2,), "CC": (3,)},
}


def scheme_regions(scheme: str) -> dict[str, tuple[int, ...]]:
    """Return region → labels of a scheme."""
    if scheme not in SCHEMES:
        raise SynthError(f"unknown label scheme '{scheme}'", hint=did_you_mean(scheme, SCHEMES))
    return SCHEMES[scheme]


def scheme_labels(scheme: str) -> tuple[int, ...]:
    """Return every label a scheme allows, background excluded."""
    return tuple(sorted(set().union(*scheme_regions(scheme).values())))


def require_scheme(labels: np.ndarray, scheme: str, *, name: str) -> None:
    """Refuse a label map with a label outside its scheme; none is ever dropped silently."""
    allowed = scheme_labels(scheme)
    odd = labels[~np.isin(labels, (0, *allowed))]
    if odd.size:
        found = set(np.unique(labels).tolist()) - {0}
        fitting = [s for s in SCHEMES if found <= set(scheme_labels(s))]
        raise SynthError(
            f"{name}: label {odd.min()} is outside the scheme {scheme} (0, {str(allowed)[1:-1]})",
            hint=f"did you mean --scheme {' or '.join(fitting)}?" if fitting else "relabel it",
        )


def region(labels: np.ndarray, scheme: str, name: str) -> np.ndarray:
    """Return the bool mask of a region (WT, TC, ET …)."""
    regions = scheme_regions(scheme)
    if name not in regions:
        raise SynthError(
            f"unknown region '{name}' of scheme {scheme}", hint=did_you_mean(name, regions)
        )
    return np.isin(labels, regions[name])


def regions_of(labels: np.ndarray, scheme: str = "brats2023") -> np.ndarray:  # (3, X, Y, Z) bool
    """Return the masks of WT, TC and ET."""
    return np.stack([region(labels, scheme, name) for name in REGIONS])


def from_regions(regions: np.ndarray) -> np.ndarray:  # (3, X, Y, Z) → (X, Y, Z) uint8
    """Return the classes of WT, TC and ET masks; what lies outside its outer region is dropped."""
    wt, tc, et = np.logical_and.accumulate(regions.astype(bool), axis=0)
    classes = np.where(wt, ED, NONE).astype(np.uint8)
    classes[tc] = NCR
    classes[et] = ET
    return classes


def to_classes(labels: np.ndarray, scheme: str, *, name: str = "labels") -> np.ndarray:
    """Return the classes of a label map; a label outside WT (a resection cavity) becomes none."""
    require_scheme(labels, scheme, name=name)
    return from_regions(regions_of(labels, scheme))


def to_scheme(classes: np.ndarray, scheme: str) -> np.ndarray:
    """Return classes as labels of a scheme; where it splits a class (PED's core), the lowest."""
    wt, tc, et = (set(scheme_regions(scheme)[name]) for name in REGIONS)
    table = np.zeros(4, np.uint8)
    table[[NCR, ED, ET]] = min(tc - et), min(wt - tc), min(et)
    return table[classes]
