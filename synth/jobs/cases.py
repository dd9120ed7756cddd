"""A batch of cases: skip finished ones, go on after an error, report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from synth.base.errors import SynthError

T = TypeVar("T")
log = logging.getLogger(__name__)


def chosen(
    items: Sequence[T], *, begin: int = 0, end: int | None = None, shard: str = "0/1"
) -> list[T]:
    """Return items[begin:end], and of those the share of one job in an array: "i/n", i from 0.

    The choice is made before anything is skipped, so that chunks never overlap or leave gaps.
    """
    try:
        part, parts = (int(word) for word in shard.split("/"))
    except ValueError:
        part, parts = -1, 0
    if not 0 <= part < parts:
        raise SynthError(f"shard {shard!r}", hint="write i/n with 0 ≤ i < n, e.g. 0/4")
    return list(items[begin:end])[part::parts]


def run_batch(
    items: Sequence[T],
    work: Callable[[T], str],
    *,
    name: Callable[[T], str],
    done: Callable[[T], bool],
) -> int:
    """Do every item that is not done; return the number that failed.

    `work` returns what to say of the item; `done` may refuse one that was made otherwise. Mistakes
    of the data (SynthError) are reported and the next item follows; anything else is a bug and
    stops.
    """
    failed = skipped = 0
    before = None
    for number, item in enumerate(items, start=1):
        try:
            if done(item):
                skipped += 1
                continue
            log.info("[%d/%d] %s: %s", number, len(items), name(item), work(item))
        except SynthError as error:
            failed += 1
            own = name(item)
            mistake = error.message.replace(own, ""), error.hint
            message = error.message.removeprefix(f"{own}: ")
            words = "the same" if mistake == before else f"{message} → {error.hint}"
            log.error("[%d/%d] %s: %s", number, len(items), own, words)
            before = mistake
    made = len(items) - skipped - failed
    log.info("%d made, %d already there, %d failed", made, skipped, failed)
    return failed
