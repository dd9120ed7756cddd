"""Brightness of each region in each contrast, against real scans.

A scan whose tumour is not where its label map says has regions that look like brain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from synth.data.case import MODALITIES
from synth.evaluate.scans.scan_case import ED, ET, NCR, Scans

TUMOUR = {"NCR": NCR, "ED": ED, "ET": ET}
FEWEST_VOXELS = 8
AGREED = 0.9
"""A contrast has a sign if so many real cases agree on it."""
LEAST_SD = 0.02
"""Of statistics that are ratios of spreads: real cases are never told apart more finely."""

Row = Mapping[str, float]


def region_statistics(scans: Scans) -> dict[str, float]:
    """Return mean and sd of NCR, ED, ET and the healthy brain in every contrast.

    Of a tumour region: how many sd of the healthy brain it is brighter, and its sd over that of the
    brain; of the brain: its mean over the 99.5th percentile, and sd over mean. NaN for regions of
    fewer than 8 voxels.
    """
    found = {}
    for contrast, image in zip(MODALITIES, scans.image, strict=True):
        brain = image[scans.healthy].astype(np.float64)
        mean, sd = (float(brain.mean()), float(brain.std())) if brain.size else (np.nan, np.nan)
        sd = max(sd, 1e-6)
        found[f"brain_{contrast}_mean"], found[f"brain_{contrast}_sd"] = mean, sd / max(mean, 1e-6)
        for name, number in TUMOUR.items():
            values = image[scans.classes == number] if scans.classes is not None else image[:0]
            enough = values.size >= FEWEST_VOXELS
            level, spread = (values.mean(), values.std()) if enough else (np.nan, np.nan)
            found[f"{name}_{contrast}_mean"] = float((level - mean) / sd)
            found[f"{name}_{contrast}_sd"] = float(spread / sd)
    return found


def worst_z(row: Row, real: Sequence[Row], names: Sequence[str]) -> float:
    """Return the largest |z| of a case among real ones; nan where nothing can be compared.

    `real` must not hold the case itself.
    """
    found = [abs(z) for name in names if np.isfinite(z := _z(row[name], column(real, name)))]
    return max(found, default=np.nan)


def signs(real: Sequence[Row]) -> dict[str, int]:
    """Return which regions are brighter (+1) or darker (-1) than brain, where real cases agree."""
    found = {}
    for name in mean_names():
        values = column(real, name)
        brighter = float((values[np.isfinite(values)] > 0).mean()) if len(values) else 0.5
        if max(brighter, 1 - brighter) >= AGREED and np.isfinite(values).any():
            found[name] = 1 if brighter > 0.5 else -1
    return found


def share_of_signs(row: Row, expected: Mapping[str, int]) -> float:
    """Return the share of the contrasts that have the sign of real cases; nan without any."""
    agree = [np.sign(row[n]) == s for n, s in expected.items() if np.isfinite(row[n])]
    return float(np.mean(agree)) if agree else np.nan


def mean_names() -> list[str]:
    """Return the names of the mean brightness of tumour regions."""
    return [f"{region}_{m}_mean" for region in TUMOUR for m in MODALITIES]


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """Return one number of every case."""
    return np.array([row[name] for row in rows], float)


def _z(value: float, real: np.ndarray) -> float:
    real = real[np.isfinite(real)]
    if len(real) < 3 or not np.isfinite(value):
        return np.nan
    return float((value - real.mean()) / max(real.std(ddof=1), LEAST_SD))
