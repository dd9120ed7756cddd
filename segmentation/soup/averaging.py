"""Greedy and uniform soups of weights (Wortsman et al. 2022).

A uniform soup averages all of them. A greedy one begins with the best and takes in the next only if
the mean then scores better on the selection cases. Each set of weights is scored once: scores are
kept by what the weights hold, not by what their file is called. A soup that is not better than its
best member is not handed out as one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.files import read_json, write_json

Kind = Literal["uniform", "greedy"]
Weights = Mapping[str, Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One line of the table: a checkpoint, alone and in the soup."""

    name: str
    alone: float
    soup: float | None
    """Score of the soup that holds it, where one was tried."""
    kept: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Soup:
    """What came out."""

    weights: dict[str, Tensor]
    """The soup's, or the best checkpoint's own where no soup was better."""
    score: float
    best: str
    """The best single checkpoint."""
    best_alone: float
    rows: tuple[Tried, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The checkpoints in it, the best first."""
        return tuple(row.name for row in self.rows if row.kept)

    @property
    def gain(self) -> float:
        """How much better than the best single checkpoint, on the cases that chose it."""
        return self.score - self.best_alone


class Scores:
    """Scores by content of the weights and of the data; in a JSON file if there is one."""

    def __init__(self, measure: Callable[[Weights], float], data: str, file: Path | None = None):
        self.measure, self.data, self.file = measure, data, file
        self.known: dict[str, float] = {}
        self.measured = 0
        if file is not None and file.exists():
            self.known = _checked(read_json(file), file)

    def of(self, weights: Weights) -> float:
        """Return the score of a set of weights, measured at most once."""
        key = f"{content_hash(weights)}:{self.data}"
        if key not in self.known:
            self.known[key] = float(self.measure(weights))
            self.measured += 1
            if self.file is not None:
                write_json(self.file, self.known)
        return self.known[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean:
    """A running sum of weights in float64; what is not a float must be equal in all."""

    first: Weights
    sums: Mapping[str, Tensor]
    count: int = 1

    @classmethod
    def of(cls, weights: Weights) -> Mean:
        """Return the mean of one set of weights."""
        floats = {k: v.double() for k, v in weights.items() if v.is_floating_point()}
        return cls(first=weights, sums=floats)

    def with_one_more(self, other: Weights, name: str) -> Mean:
        """Return the mean of what is here and one more."""
        require_alike(self.first, other, name)
        sums = {k: total + other[k].double() for k, total in self.sums.items()}
        return Mean(first=self.first, sums=sums, count=self.count + 1)

    def weights(self) -> dict[str, Tensor]:
        """Return the mean, each tensor in its own type."""
        return {
            k: (self.sums[k] / self.count).to(v.dtype) if k in self.sums else v.clone()
            for k, v in self.first.items()
        }


def uniform(members: Sequence[tuple[str, Callable[[], Weights]]], scores: Scores) -> Soup:
    """Average all members; each is read when it is needed and never changed."""
    alone = _alone(members, scores)
    order = sorted(range(len(members)), key=lambda i: -alone[i])
    read = [members[i][1] for i in order]
    mean = Mean.of(read[0]())
    for i, one in zip(order[1:], read[1:], strict=True):
        mean = mean.with_one_more(one(), members[i][0])
    score = scores.of(mean.weights()) if len(members) > 1 else alone[order[0]]
    better = score > alone[order[0]]
    rows = [
        Tried(name=members[i][0], alone=alone[i], soup=score, kept=better or rank == 0)
        for rank, i in enumerate(order)
    ]
    return Soup(
        weights=mean.weights() if better else Mean.of(read[0]()).weights(),
        score=score if better else alone[order[0]],
        best=members[order[0]][0],
        best_alone=alone[order[0]],
        rows=tuple(rows),
    )


def greedy(members: Sequence[tuple[str, Callable[[], Weights]]], scores: Scores) -> Soup:
    """Begin with the best member; keep each next one only if the mean then scores better."""
    alone = _alone(members, scores)
    order = sorted(range(len(members)), key=lambda i: -alone[i])
    first = order[0]
    mean, score = Mean.of(members[first][1]()), alone[first]
    rows = [Tried(name=members[first][0], alone=score, soup=None, kept=True)]
    for i in order[1:]:
        name, read = members[i]
        candidate = mean.with_one_more(read(), name)
        found = scores.of(candidate.weights())
        kept = found > score
        rows.append(Tried(name=name, alone=alone[i], soup=found, kept=kept))
        if kept:
            mean, score = candidate, found
    return Soup(
        weights=mean.weights(),
        score=score,
        best=members[first][0],
        best_alone=alone[first],
        rows=tuple(rows),
    )


def require_alike(first: Weights, other: Weights, name: str) -> None:
    """Refuse weights of another network, and whole numbers (steps, indices) that differ."""
    odd = sorted(first.keys() ^ other.keys())
    if odd:
        raise SynthError(f"{name}: '{odd[0]}' is not in all networks", hint="soups need one kind")
    for key, tensor in first.items():
        if tensor.shape != other[key].shape or tensor.dtype != other[key].dtype:
            raise SynthError(
                f"{name}: '{key}' is {tuple(other[key].shape)} {other[key].dtype}, elsewhere "
                f"{tuple(tensor.shape)} {tensor.dtype}",
                hint="soups need one kind of network",
            )
        if not tensor.is_floating_point() and not torch.equal(tensor, other[key]):
            raise SynthError(f"{name}: '{key}' differs and has no mean", hint="leave it out")


def content_hash(weights: Weights) -> str:
    """Return a fingerprint of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _alone(members: Sequence[tuple[str, Callable[[], Weights]]], scores: Scores) -> list[float]:
    if len({name for name, _ in members}) < len(members) or not members:
        raise SynthError("a soup is made of different checkpoints", hint="name each of them once")
    first: Weights | None = None
    found = []
    for number, (name, read) in enumerate(members, start=1):
        weights = read()
        first = weights if first is None else first
        require_alike(first, weights, name)
        found.append(scores.of(weights))
        log.info("[%d/%d] %s alone: %.4f", number, len(members), name, found[-1])
    return found


def _checked(values: Any, file: Path) -> dict[str, float]:
    good = isinstance(values, dict) and all(isinstance(v, float) for v in values.values())
    if not good:
        raise SynthError(f"{file}: not a file of scores", hint="remove it or name another")
    return values
