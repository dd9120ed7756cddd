"""Texture of generated scans against real ones, by scale.

Haar bands whose support lies inside the brain: where the brain ends is no texture.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from synth.data.case import MODALITIES
from synth.diffusion.wavelet import BANDS, dwt3
from synth.evaluate.scans.scan_case import Scans
from synth.metrics.statistics import intervals

LEVELS = 3
SMALLEST = 1e-6  # of the brain's variance; keeps the logarithm of an empty band finite


def band_energies(scans: Scans) -> np.ndarray:  # (4, 3 levels, 7 bands)
    """Return ln of the energy of every detail band, as a share of the brain's variance.

    White noise adds the same to all bands; blur takes from the fine levels. NaN where the brain
    has no room for a level.
    """
    lll = torch.from_numpy(scans.image)[None]
    brain = torch.from_numpy(scans.brain)[None, None].float()
    variance = scans.image[:, scans.brain].var(axis=1)
    found = np.full((len(MODALITIES), LEVELS, len(BANDS) - 1), np.nan)
    for level in range(LEVELS):
        bands = dwt3(lll).unflatten(1, (len(MODALITIES), len(BANDS)))[0]
        inside = (F.avg_pool3d(brain, 2 ** (level + 1)) == 1)[0, 0].numpy()
        details = bands[:, 1:].numpy()[..., inside]  # (4, 7, voxels)
        if inside.any():
            energy = (details.astype(np.float64) ** 2).mean(axis=-1)
            found[:, level] = np.log(energy / np.maximum(variance, 1e-12)[:, None] + SMALLEST)
        lll = bands[:, 0][None]
    return found


def texture_columns(energies: np.ndarray) -> dict[str, float]:  # (4, levels, 7)
    """Return the mean of the seven bands by contrast and level; level 1 is the finest."""
    pooled = energies.mean(axis=-1)
    return {
        f"texture_{m}_{level + 1}": float(pooled[i, level])
        for i, m in enumerate(MODALITIES)
        for level in range(LEVELS)
    }


def energy_ratio(made: np.ndarray, real: np.ndarray, *, seed: int = 0) -> dict[str, float | None]:
    """Return made over real energy from their ln in each case, with a bootstrap interval."""
    made, real = made[np.isfinite(made)], real[np.isfinite(real)]
    sides = [intervals(v, seed=seed) if len(v) else None for v in (made, real)]
    if None in sides:
        return {"ratio": None, "low": None, "high": None}
    # Both sides are resampled: the interval of each, joined as independent errors are.
    difference = float(made.mean() - real.mean())
    (a, b), (c, d) = (side.mean for side in sides if side)
    below = np.hypot(made.mean() - a, d - real.mean())
    above = np.hypot(b - made.mean(), real.mean() - c)
    values = {"ratio": difference, "low": difference - below, "high": difference + above}
    return {name: float(np.exp(v)) for name, v in values.items()}
