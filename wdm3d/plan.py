"""How an estimate is made of the network. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from synth.base.errors import SynthError
from wdm3d.config import Config

Sampler = Literal["dpmpp_2m", "ddim", "ddpm"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One call or a draw, how many of them, and by which solver."""

    estimate: Literal["mean", "sample"] | None = None
    """mean: the posterior mean, one call from pure noise; sample: a draw by the sampler. None is
    mean for a model that is shown what is known (context), sample for the others."""
    samples: int = 1
    """mean: calls that are averaged. sample: draws, whose spread is written; the first is kept."""
    steps: int = 20
    """Network calls of a draw."""
    sampler: Sampler = "dpmpp_2m"
    """Solver of a draw."""
    spacing: Literal["logsnr", "karras", "uniform"] = "logsnr"
    """Where the noise levels of a draw lie."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.steps < 1:
            raise SynthError("samples and steps are at least 1")

    def suited_to(self, config: Config) -> Plan:
        """Return the plan with its estimate chosen."""
        fitting = "mean" if config.mode in ("context", "guided") else "sample"
        return replace(self, estimate=self.estimate or fitting)
