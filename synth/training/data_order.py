"""The order of training items: a function of (seed, step) only.

Items are counted by an ordinal that runs through the whole training: item j of micro-batch m of
step s has ordinal (s·M + m)·B + j, with M micro-batches a step over all processes. The ordinal
picks a place in the permutation of its epoch, and seeds the item's augmentation. Whether M comes
from two processes or from accumulating twice makes no difference.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from synth.base import stopping
from synth.base.seeding import generator, mix
from synth.training.config import TrainConfig


class Items(Protocol):
    """What is trained on: a length, and item `index` augmented by `seed` alone."""

    def __len__(self) -> int: ...

    def item(self, index: int, seed: int) -> dict[str, Any]:
        """Return tensors (and strings) of one item; the batch axis is added by the loader."""
        ...


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """Return the order of the items in one epoch."""
    return tuple(torch.randperm(size, generator=generator(seed, "epoch", epoch)).tolist())


def place(ordinal: int, *, seed: int, size: int) -> tuple[int, int]:
    """Return (index, seed) of the item with that ordinal."""
    index = permutation(seed, ordinal // size, size)[ordinal % size]
    return index, mix(seed, "item", ordinal)


def micro_batches(
    config: TrainConfig, size: int, *, start: int, rank: int, world: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield the micro-batches of one process from step `start` on, as lists of (index, seed)."""
    for number in range(start * config.accumulate, config.steps * config.accumulate):
        first = (number * world + rank) * config.batch_size
        ordinals = range(first, first + config.batch_size)
        yield [place(o, seed=config.seed, size=size) for o in ordinals]


class _Loadable(Dataset):
    """Adapts `item(index, seed)` to the loader, which knows one index only."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        return self.items.item(*index)


def loader(
    items: Items, config: TrainConfig, *, start: int, rank: int, world: int, pin: bool
) -> DataLoader:
    """Return the loader of one process's micro-batches, prepared ahead by `config.workers`."""
    return DataLoader(
        _Loadable(items),
        batch_sampler=micro_batches(config, len(items), start=start, rank=rank, world=world),
        num_workers=config.workers,
        worker_init_fn=_ignore_signals if config.workers else None,
        pin_memory=pin,
        # The loader draws a base seed for its workers: not from the loop's own stream.
        generator=generator(config.seed, "loader", rank),
    )


def _ignore_signals(worker: int) -> None:  # noqa: ARG001
    # Ctrl-C reaches the whole process group; the loop finishes its step and then ends its workers.
    stopping.ignore()
