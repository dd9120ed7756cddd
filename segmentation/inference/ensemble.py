"""Weighted means of several networks' probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from synth.base.errors import SynthError
from synth.data.labels import REGIONS


def weight_table(words: Sequence[str | float], models: int) -> np.ndarray:  # (models, 3)
    """Return the weight of every model in WT, TC, ET.

    Words are one number a model, or three a model (all of the first model come first); none means
    that all count alike.
    """
    try:
        numbers = np.array([float(word) for word in words] or [1.0] * models)
    except ValueError as error:
        raise SynthError(f"weights: {error}", hint="numbers of 0 or more") from error
    regions = len(REGIONS)
    if numbers.size not in (models, models * regions):
        raise SynthError(
            f"{numbers.size} weights for {models} model{'s' * (models != 1)}",
            hint=f"one a model, or {regions} a model: one for {', '.join(REGIONS)} each",
        )
    table = np.broadcast_to(numbers.reshape(models, -1), (models, regions))
    if not (np.isfinite(table).all() and (table >= 0).all() and (table.sum(0) > 0).all()):
        raise SynthError(
            f"weights {' '.join(map(str, words))}",
            hint="numbers of 0 or more, and in every region a model that counts",
        )
    return table


def weighted_mean(probabilities: Iterable[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean of (3, X, Y, Z) probabilities, added up one after another.

    Sums are in float64, so that equal members give their own values back, bit for bit.
    """
    total: np.ndarray | float = 0.0
    for member, weight in zip(probabilities, weights.astype(np.float64), strict=True):
        total = total + member * weight.reshape(-1, 1, 1, 1)
    return np.asarray(total / weights.sum(0).reshape(-1, 1, 1, 1), np.float32)
