"""One training step: losses, reduction, clipping, guard, optimizer."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from synth.base.errors import SynthError
from synth.base.seeding import mix
from synth.training import processes
from synth.training.config import TrainConfig
from synth.training.ema import adapt_to_optimizers
from synth.training.learning_rate import Patience, learning_rate_scale
from synth.training.recipe import Recipe

MAX_NON_FINITE = 10  # consecutive steps of one optimizer; then the training has diverged
END = ""  # the name of the phase after the last

log = logging.getLogger(__name__)


class Stepper:
    """The optimizers of a recipe, and the counts that go with them."""

    def __init__(self, recipe: Recipe, config: TrainConfig, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.optimizers = recipe.optimizers()
        self.config = adapt_to_optimizers(config, self.optimizers.values())
        self.base_rates = {n: [g["lr"] for g in o.param_groups] for n, o in self.optimizers.items()}
        self.step = 0
        self.skipped = dict.fromkeys(self.optimizers, 0)
        self.in_a_row = dict.fromkeys(self.optimizers, 0)
        self.patience = Patience()

    def take(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """Advance the losses of all micro-batches phase by phase; return the mean loss of each."""
        scale = learning_rate_scale(self.step, self.config, lowered=self.patience.lowered)
        for name, optimizer in self.optimizers.items():
            for group, base in zip(optimizer.param_groups, self.base_rates[name], strict=True):
                group["lr"] = base * scale
        streams = [self.recipe.losses(batch) for batch in batches]
        means: dict[str, float] = {}
        for phase in itertools.count():
            name, loss = self._backward(streams, phase)
            if name == END:
                break
            means[name] = self._update(name, loss)
        if not means:
            raise SynthError(
                f"{type(self.recipe).__name__}.losses yielded nothing",
                hint="yield (optimizer name, loss) at least once for each batch",
            )
        processes.copy_from_first(self.recipe.model.buffers(), self.accelerator)
        self.step += 1
        return means

    def _backward(
        self, streams: list[Iterator[tuple[str, Tensor]]], phase: int
    ) -> tuple[str, Tensor]:
        """Sum one phase's gradients over the micro-batches; return its name and mean loss."""
        total = torch.zeros((), device=self.accelerator.device)
        names = []
        for i, stream in enumerate(streams):
            micro = i * self.accelerator.num_processes + self.accelerator.process_index
            torch.manual_seed(mix(self.config.seed, "step", self.step, micro, phase))
            with self.accelerator.autocast():
                name, loss = next(stream, (END, total))
            names.append(name)
            if name != names[0]:
                raise SynthError(
                    f"micro-batches of step {self.step} disagree in phase {phase}: {names}",
                    hint="a recipe yields the same names in the same order for every batch",
                )
            if name == END:
                continue
            if i == 0:
                self._optimizer(name).zero_grad()
            self.accelerator.backward(loss / len(streams))
            total = total + loss.detach().float() / len(streams)
        return names[0], total

    def _update(self, name: str, loss: Tensor) -> float:
        """Reduce, clip, guard and step one optimizer; return the mean loss over the processes."""
        optimizer = self._optimizer(name)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        processes.average_gradients(parameters, self.accelerator)
        value = processes.mean(loss, self.accelerator)
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            optimizer.zero_grad()
            self._count_non_finite(name, value)
            return value
        if self.config.clip_norm > 0:
            clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        optimizer.step()
        self.in_a_row[name] = 0
        return value

    def _optimizer(self, name: str) -> Optimizer:
        if name not in self.optimizers:
            raise SynthError(
                f"the recipe yields a loss for '{name}'",
                hint=f"its optimizers are: {', '.join(self.optimizers)}",
            )
        return self.optimizers[name]

    def _count_non_finite(self, name: str, value: float) -> None:
        self.skipped[name] += 1
        self.in_a_row[name] += 1
        log.warning(
            "step %d, %s: loss %g or its gradient is not finite; not taken (%d in a row)",
            self.step, name, value, self.in_a_row[name],
        )  # fmt: skip
        if self.in_a_row[name] >= MAX_NON_FINITE:
            raise DivergedError(
                f"step {self.step}, {name}: {MAX_NON_FINITE} losses or gradients in a row "
                "were not finite",
                hint="a smaller learning rate or clip_norm, or precision no, may help",
            )


class DivergedError(SynthError):
    """The losses are not finite any more; nothing is gained by going on."""
