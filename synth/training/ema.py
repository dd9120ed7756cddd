"""Averaged weights (EMA): these are validated, shown and published."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from synth.training.config import TrainConfig

log = logging.getLogger(__name__)


@runtime_checkable
class SelfAveraging(Protocol):
    """An optimizer with an average of its own: it trains at one point and is judged at another.

    Schedule-free ones are of this kind. The switch must lose nothing: after `eval()` and `train()`
    every parameter is what it was, to the bit.
    """

    def eval(self) -> None:
        """Put the average into the parameters."""
        ...

    def train(self) -> None:
        """Put back what is trained."""
        ...


@contextlib.contextmanager
def switch_to_average(optimizers: Iterable[Optimizer]) -> Generator[None]:
    """Let the parameters be the average of those optimizers that keep one; others do not care."""
    switched = [o for o in optimizers if isinstance(o, SelfAveraging)]
    for optimizer in switched:
        optimizer.eval()
    try:
        yield
    finally:
        for optimizer in switched:
            optimizer.train()


def adapt_to_optimizers(config: TrainConfig, optimizers: Iterable[Optimizer]) -> TrainConfig:
    """Turn EMA and decay off where an optimizer averages by itself; its warm-up stays."""
    free = replace(config, ema_decay=0.0, decay="constant")
    if config == free or not any(isinstance(o, SelfAveraging) for o in optimizers):
        return config
    log.info("the optimizer averages by itself: ema_decay is 0 and decay constant from here on")
    return free


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of `model` that follows it with a warmed-up exponential average.

    The decay of the n-th update is min(decay, (1 + n) / (10 + n)), so that the first hundred steps
    do not remember the initial weights (the warm-up of TensorFlow's ExponentialMovingAverage).
    Buffers are copied, not averaged: they are counters and running statistics.
    """

    @torch.no_grad()
    def update(ema: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        # lerp rather than d·ema + (1-d)·new: frozen weights stay what they are to the last bit.
        torch._foreach_lerp_(ema, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=update)  # ty: ignore[invalid-argument-type]


@contextlib.contextmanager
def run_on_ema(model: nn.Module, ema: nn.Module) -> Generator[None]:
    """Let `model` run on the weights of `ema`, in eval mode and without gradients.

    Storage changes hands and comes back: nothing is copied, and every module's train or eval mode
    returns to what it was.
    """
    modes = {module: module.training for module in model.modules()}
    _swap(model, ema)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        _swap(model, ema)
        for module, training in modes.items():
            module.training = training


def _swap(model: nn.Module, other: nn.Module) -> None:
    mine = itertools.chain(model.parameters(), model.buffers())
    theirs = itertools.chain(other.parameters(), other.buffers())
    for a, b in zip(mine, theirs, strict=True):
        a.data, b.data = b.data, a.data
