"""The learning rate over the steps: a warm-up, then a decay.

All but the plateau are functions of the step alone. The plateau follows the validations that
`Patience` counts; state.pt keeps its numbers, so that a resumed run drops where the other would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from synth.training.config import TrainConfig

POLY_POWER = 0.9  # as nnU-Net, after DeepLab


@dataclass
class Patience:
    """Validations without a new best: what lowers the rate on a plateau, and ends a training."""

    without_best: int = 0
    """Validations since the best one."""
    since_drop: int = 0
    """The same, counted anew after each drop of the rate."""
    lowered: float = 1.0
    """Product of all drops so far."""

    def note(self, better: bool, config: TrainConfig) -> None:
        """Count one validation."""
        self.without_best = 0 if better else self.without_best + 1
        self.since_drop = 0 if better else self.since_drop + 1
        if config.decay == "plateau" and self.since_drop >= config.plateau_validations:
            self.lowered, self.since_drop = self.lowered * config.decay_factor, 0

    def exhausted(self, config: TrainConfig) -> bool:
        """Say whether the training is over because nothing gets better any more."""
        return 0 < config.patience <= self.without_best


def learning_rate_scale(step: int, config: TrainConfig, *, lowered: float = 1.0) -> float:
    """Return the factor on the base learning rate of the step that follows `step` others."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    after, total = step - config.warmup_steps, max(config.steps - config.warmup_steps, 1)
    done = min(after / total, 1.0)
    every = config.decay_every or max(total // 3, 1)
    factor = config.decay_factor
    match config.decay:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "poly":
            return (1 - done) ** POLY_POWER
        case "step":
            return factor ** (after // every)
        case "cyclic":  # a triangle wave (Smith, 2017) that begins where the warm-up ends: on top
            height = abs(2 * (after % every) / every - 1)
            return factor + (1 - factor) * height
        case "plateau":
            return lowered
    return 1.0
