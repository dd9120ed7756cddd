"""Size and composition of a lesion in six numbers, as a condition for drawing."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from synth.data.labels import ED, ET, NCR, NONE

LENGTH = 6
LOG_VOLUME, TC_IN_WT, ET_IN_TC = 0, 1, 2
CENTRE, SPREAD = 3.5, 1.0  # of the logarithm of millilitres, so that it is of order one
SMOOTHING = 0.2  # of the cohort's standard deviation


def size_of(labels: np.ndarray, voxel_mm3: float) -> np.ndarray:  # (6,)
    """Return (scaled log volume, TC's share of WT, ET's of TC, has TC, has ET, has NCR)."""
    counts = np.bincount(labels.ravel(), minlength=4).astype(float)
    counts[NONE] = 0
    whole, core = counts.sum(), counts[NCR] + counts[ET]
    assert whole > 0
    log_volume = (math.log(whole * voxel_mm3 / 1000) - CENTRE) / SPREAD
    has = [core > 0, counts[ET] > 0, counts[NCR] > 0]
    shares = [1 - counts[ED] / whole, counts[ET] / max(core, 1)]
    return np.array([log_volume, *shares, *has], np.float32)


def volume_ml(size: Tensor | np.ndarray) -> float:
    """Return the volume that a size asks for."""
    return math.exp(float(size[LOG_VOLUME]) * SPREAD + CENTRE)


def bootstrap(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw sizes like those of a cohort: resampled, each number moved a little, spread kept.

    The smoothed bootstrap (Silverman and Young 1987) in log volume and log-odds of the shares. What
    is absent stays absent.
    """
    rows = sizes[rng.integers(0, len(sizes), count)].astype(np.float64)
    for column in (LOG_VOLUME, TC_IN_WT, ET_IN_TC):
        free = np.ones(count, bool)
        values, known = rows[:, column], sizes[:, column].astype(np.float64)
        if column != LOG_VOLUME:
            free, some = ((v > 0) & (v < 1) for v in (values, known))
            values, known = _log_odds(values), _log_odds(known[some])
        if not free.any():
            continue
        mean, spread = known.mean(), known.std()
        moved = values - mean + SMOOTHING * spread * rng.standard_normal(count)
        moved = mean + moved / math.sqrt(1 + SMOOTHING**2)
        moved = moved if column == LOG_VOLUME else 1 / (1 + np.exp(-moved))
        rows[:, column] = np.where(free, moved, rows[:, column])
    return rows.astype(np.float32)


def choose(table: Tensor, draw: torch.Generator, limits_ml: tuple[float, float] | None) -> Tensor:
    """Draw a row; with limits, one between them, or a near one whose volume is drawn there."""
    volumes = torch.tensor([volume_ml(row) for row in table])
    low, high = limits_ml or (0.0, math.inf)
    fitting = torch.nonzero((volumes >= low) & (volumes <= high)).flatten()
    uniform = float(torch.rand((), generator=draw))
    if len(fitting):
        return table[fitting[int(uniform * len(fitting))]].clone()
    middle = math.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
    row = table[int((volumes.log() - math.log(middle)).abs().argmin())].clone()
    row[LOG_VOLUME] = (math.log(middle) - CENTRE) / SPREAD
    return row


def _log_odds(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 1e-3, 1 - 1e-3)
    return np.log(share / (1 - share))
