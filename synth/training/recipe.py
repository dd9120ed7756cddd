"""The Recipe protocol: what a family implements to be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from synth.checkpoints import checkpoint
from synth.data.volume import Volume

Writer = Callable[[Path, nn.Module, dict[str, Any]], None]
"""Writes a checkpoint's files into a folder, given the EMA copy of `Recipe.model` and the facts."""


def whole_model_writer(describe: Mapping[str, Any]) -> Writer:
    """Return what writes the whole model, with `describe` (family, preset, config …) beside it."""

    def write(folder: Path, model: nn.Module, facts: dict[str, Any]) -> None:
        checkpoint.write(folder, model=model, **describe, **facts)

    return write


class Recipe(Protocol):
    """Diffusion, LoRA and segmentation yield one loss a batch; a GAN yields one for each player."""

    model: nn.Module
    """Everything trainable; the loop moves it, averages it and saves it."""

    def optimizers(self) -> dict[str, Optimizer]:
        """Return the optimizers by name; called once, when the model is on its device."""
        ...

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Yield (optimizer name, loss) in order; on resumption that optimizer has stepped.

        Draw from torch's default generator, which is seeded before each resumption; never yield
        inside a context manager. With accumulation several of these run side by side.
        """
        ...

    def validate(self, batch: dict[str, Any]) -> dict[str, float]:
        """Return the metrics of one item (a batch of one); the model holds the EMA weights.

        A metric that is undefined for this item is left out and does not enter the mean.
        """
        ...

    def preview(self, batch: dict[str, Any]) -> dict[str, Volume]:
        """Return what to show of one item (a batch of one); the model holds the EMA weights."""
        ...

    def writer(self, describe: Mapping[str, Any]) -> Writer:
        """Return what writes a checkpoint: a GAN publishes its generator, LoRA its adapter."""
        ...
