"""Greedy and uniform soups of weights (Wortsman et al. 2022).

A uniform soup averages all members. A greedy one begins with the best and adds the next only if
the mean then scores better on the cases that choose. A soup that is not better than its best member
is not returned as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from synth.base.errors import SynthError

Kind = Literal["uniform", "greedy"]
Weights = Mapping[str, Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One line of the table: a checkpoint, alone and in the soup."""

    name: str
    alone: float
    soup: float | None
    """Score of the soup that holds it, where one was tried."""
    kept: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Soup:
    """The chosen weights: the soup's, or the best member's own where no soup was better."""

    weights: dict[str, Tensor]
    score: float
    rows: tuple[Member, ...]
    """The best member first."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The checkpoints in it, the best first."""
        return tuple(row.name for row in self.rows if row.kept)

    @property
    def best(self) -> str:
        """The best single checkpoint."""
        return self.rows[0].name

    @property
    def gain(self) -> float:
        """How much better than the best single checkpoint, on the cases that chose it."""
        return self.score - self.rows[0].alone


def average(
    kind: Kind, members: Mapping[str, Callable[[], Weights]], score: Callable[[Weights], float]
) -> Soup:
    """Average members; each is read when it is needed and never changed."""
    alone = _score_members(members, score)
    best, *others = sorted(members, key=lambda name: -alone[name])
    own, top = members[best](), alone[best]
    sums, count = _sum_of(own), 1
    rows: list[tuple[str, float | None, bool]] = [(best, None, True)]
    for name in others:
        weights = members[name]()
        more = {k: total + weights[k].double() for k, total in sums.items()}
        value = score(_mean(own, more, count + 1)) if kind == "greedy" else None
        kept = value is None or value > top
        rows.append((name, value, kept))
        if kept:
            sums, count, top = more, count + 1, top if value is None else value
    if kind == "uniform":
        value = score(_mean(own, sums, count)) if others else top
        rows = [(name, value, value > top or name == best) for name, *_ in rows]
        if value > top:
            top = value
        else:
            sums, count = _sum_of(own), 1
    table = (Member(name=n, alone=alone[n], soup=value, kept=kept) for n, value, kept in rows)
    return Soup(weights=_mean(own, sums, count), score=top, rows=tuple(table))


def _score_members(
    members: Mapping[str, Callable[[], Weights]], score: Callable[[Weights], float]
) -> dict[str, float]:
    first: Weights | None = None
    alone = {}
    for number, (name, read) in enumerate(members.items(), start=1):
        weights = read()
        first = weights if first is None else first
        _require_alike(first, weights, name)
        alone[name] = score(weights)
        log.info("[%d/%d] %s alone: %.4f", number, len(members), name, alone[name])
    return alone


def _sum_of(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors that have a mean, in float64; what is not a float is equal in all."""
    return {k: v.double() for k, v in weights.items() if v.is_floating_point()}


def _mean(first: Weights, sums: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    return {k: (sums[k] / count).to(v.dtype) if k in sums else v.clone() for k, v in first.items()}


def _require_alike(first: Weights, other: Weights, name: str) -> None:
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
