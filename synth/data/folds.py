"""Dealing patients into folds, and splits derived from others.

A generator that serves fold k reads a split in which fold k is not there to be trained on, so that
no flag can be forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from synth.base.errors import SynthError
from synth.data.case import Case
from synth.data.split import Entry, Split, folds

DEALT = 5
"""Folds where nobody says how many."""


def folds_of(split: Split) -> list[int]:
    """Return the numbers of the folds that real cases are in."""
    return sorted({e.fold for e in real(split) if e.fold is not None and e.fold >= 0})


def real(split: Split) -> list[Entry]:
    """Return the training cases that nobody made."""
    return [e for e in split.training if e.source is None]


def deal(cases: Sequence[Case], *, count: int = 0, sizes: Sequence[int] = (), seed: int) -> Split:
    """Deal patients into folds of equal size, or of the sizes that are given, in patients."""
    if not sizes:
        return Split(training=tuple(folds(cases, count or DEALT, seed=seed)))
    patients = sorted({c.patient for c in cases})
    if sum(sizes) != len(patients) or min(sizes) < 1:
        raise SynthError(
            f"folds of {' + '.join(map(str, sizes))} patients, but there are {len(patients)}",
            hint="the sizes of all folds together are the number of patients",
        )
    order = np.random.default_rng(seed).permutation(len(patients)).tolist()
    of_rank = np.repeat(np.arange(len(sizes)), sizes).tolist()
    fold_of = {patients[p]: of_rank[rank] for rank, p in enumerate(order)}
    return Split(training=tuple(Entry(case=c, fold=fold_of[c.patient]) for c in cases))


def kept_or_dealt(split: Split, *, count: int, sizes: Sequence[int], seed: int) -> Split:
    """Return the real cases of a split with its own folds; deal them where it has none."""
    entries = real(split)
    own = folds_of(split)
    if own:
        if sizes or count not in (0, len(own)):
            raise SynthError(f"the split has folds {own} already", hint="leave out how to deal")
        return replace(split, training=tuple(entries))
    return replace(
        deal([e.case for e in entries], count=count, sizes=sizes, seed=seed), testing=split.testing
    )


def without(split: Split, held_out: Sequence[int]) -> Split:
    """Return a split in which some folds are no longer trained on: they are testing."""
    _require(split, held_out)
    out = tuple(e for e in real(split) if e.fold in held_out)
    rest = tuple(e for e in real(split) if e.fold not in held_out)
    both = {e.case.patient for e in out} & {e.case.patient for e in rest}
    if both:
        raise SynthError(
            f"{min(both)} is in fold {held_out[0]} and in another",
            hint="a patient's scans belong into one fold: deal by patient",
        )
    return Split(training=rest, testing=(*split.testing, *out))


def only(split: Split, chosen: Sequence[int]) -> Split:
    """Return a split of some folds and nobody else."""
    _require(split, chosen)
    return Split(training=tuple(e for e in real(split) if e.fold in chosen))


def joined(splits: Sequence[Split]) -> Split:
    """Return the real cases, which must be the same in all, with the made cases of every split.

    Made cases of different splits may have one id: each gets the place of its split as a suffix,
    which neither its patient nor its origin depends on.
    """
    first = splits[0]
    for other in splits[1:]:
        if not same_real(first, other):
            raise SynthError("the splits to join differ in their real cases", hint="deal them once")
    made = [
        replace(e, case=replace(e.case, id=f"{e.case.id}-synth{number}"))
        for number, split in enumerate(splits)
        for e in split.training
        if e.source is not None
    ]
    return replace(first, training=(*real(first), *made))


def same_real(one: Split, other: Split) -> bool:
    """Whether two splits have the same real cases in the same folds."""
    return _places(one) == _places(other)


def _places(split: Split) -> tuple[dict[str, int | None], set[str]]:
    return {e.case.id: e.fold for e in real(split)}, {e.case.id for e in split.testing}


def _require(split: Split, wanted: Sequence[int]) -> None:
    own = folds_of(split)
    for fold in wanted:
        if fold not in own:
            raise SynthError(f"no fold {fold} in this split", hint=f"it has {own}")
