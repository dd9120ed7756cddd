"""Averaged weights: what is validated, shown and published."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of `model` that follows it with a warmed-up exponential average.

    The decay of the n-th update is min(decay, (1 + n) / (10 + n)), so that the first hundred steps
    do not remember the initial weights (the warm-up of TensorFlow's ExponentialMovingAverage).
    Buffers are copied, not averaged: they are counters and running statistics.
    """
    return AveragedModel(model, multi_avg_fn=_warm_average(decay))  # ty: ignore[invalid-argument-type]


def _warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def update(ema: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        # lerp rather than d·ema + (1-d)·new: frozen weights stay what they are to the last bit.
        torch._foreach_lerp_(ema, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


@contextlib.contextmanager
def exchanged(model: nn.Module, ema: nn.Module) -> Generator[None]:
    """Let `model` run on the weights of `ema`, in eval mode and without gradients.

    Storage changes hands and comes back: nothing is copied, and every module's train or eval mode
    returns to what it was.
    """
    modes = {module: module.training for module in model.modules()}
    _exchange(model, ema)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        _exchange(model, ema)
        for module, training in modes.items():
            module.training = training


def _exchange(model: nn.Module, other: nn.Module) -> None:
    mine = itertools.chain(model.parameters(), model.buffers())
    theirs = itertools.chain(other.parameters(), other.buffers())
    for a, b in zip(mine, theirs, strict=True):
        a.data, b.data = b.data, a.data
