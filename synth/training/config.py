"""Settings of the training loop, the same for every family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from synth.base.config import INFINITY, require_between
from synth.base.errors import SynthError

MAY_CHANGE = frozenset(
    {"steps", "validate_every", "preview_every", "save_every", "log_every", "workers"}
    | {"max_seconds", "patience"}
)
"""Settings that a resumed run may change without becoming another run."""
RANGES = {
    **dict.fromkeys(("steps", "log_every", "plateau_validations"), (1, INFINITY)),
    **dict.fromkeys(("warmup_steps", "validate_every", "preview_every"), (0, INFINITY)),
    **dict.fromkeys(("save_every", "seed", "decay_every", "patience"), (0, INFINITY)),
    **dict.fromkeys(("clip_norm", "max_seconds"), (0, INFINITY)),
    "batch_size": (1, 65_536), "accumulate": (1, 65_536), "workers": (0, 1024),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long to train, how often to validate and save; the recipe decides what is trained."""

    steps: int = 100_000
    """Total optimizer steps; with a larger number, a finished run continues."""
    batch_size: int = 1
    """Items in one forward pass of one process."""
    accumulate: int = 1
    """Forward passes summed into one step, in each process."""
    clip_norm: float = 1.0
    """Largest gradient norm of one optimizer's parameters; 0 never clips."""
    ema_decay: float = 0.999
    """Decay of the averaged weights; warmed up as (1 + n) / (10 + n), 0 keeps the raw weights."""
    precision: Literal["no", "bf16"] = "no"
    """Autocast of the forward pass: none (float32) or bf16."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    decay: Literal["constant", "cosine", "poly", "step", "cyclic", "plateau"] = "constant"
    """Learning rate after the warm-up: constant; half a cosine, or a power of 0.9, down to zero at
    the last step; lower after every so many steps; up and down; lower when `keep` stands still."""
    decay_factor: float = 0.1
    """What one drop multiplies the rate by (step, plateau); the lowest rate of a cycle (cyclic)."""
    decay_every: int = 0
    """Steps between drops, or of one cycle; 0 takes a third of those after the warm-up."""
    plateau_validations: int = 5
    """Validations without a new best before the rate drops (plateau)."""
    patience: int = 0
    """Validations without a new best that end the training; 0 goes on to the last step."""
    seed: int = 0
    """Seed of the data order, the items and every draw in the losses."""
    validate_every: int = 1000
    """Steps between validations; 0 validates after the last step only."""
    preview_every: int = 5000
    """Steps between preview images in TensorBoard; 0 makes none."""
    save_every: int = 1000
    """Steps between saves of last/; 0 saves after the last step only."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl and TensorBoard."""
    keep: str = "loss"
    """Validation metric whose best value is kept in best/; empty keeps none."""
    keep_mode: Literal["min", "max"] = "min"
    """Whether the smallest or the largest value of that metric is best."""
    workers: int = 0
    """Processes that prepare items ahead; 0 prepares them in the training process."""
    max_seconds: float = 0.0
    """Stop cleanly after this wall time, to be resumed by the same command; 0 sets no limit."""

    def __post_init__(self) -> None:
        require_between(self, **RANGES)
        if not 0 <= self.ema_decay < 1:
            raise SynthError(
                f"ema_decay = {self.ema_decay} is not in [0, 1)", hint="0.999 is a good start"
            )
        if not 0 < self.decay_factor < 1:
            raise SynthError(f"decay_factor = {self.decay_factor}", hint="between 0 and 1: 0.1")
        if self.follows_validation and not self.keep:
            raise SynthError(
                "a plateau and patience need a metric to follow", hint="name it by keep, e.g. loss"
            )

    @property
    def follows_validation(self) -> bool:
        """Whether validations decide the learning rate or when to stop."""
        return self.patience > 0 or self.decay == "plateau"
