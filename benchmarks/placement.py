"""Time the search for a place against blind rejection, on demo brains.

    python -m benchmarks.placement [--cases 6] [--each 10] [--size small|full]

Both place the same turned tumours in the same brains, in turn, by the same law: the farther from
the tumour of two random valid places. Blind rejection is what the predecessor and the challenge do:
a random centre anywhere in the volume, the mask put there, the rule checked, until it holds. CPU
time, the best of three identical calls, for other programs share the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from synth.data.placement import (
    MIN_DISTANCE_MM,
    MIN_IN_BRAIN,
    Site,
    components,
    find,
    put,
    site,
    vary,
)
from synth.data.prepare import brain_mask
from synth.phantom.cohort import make_phantom

MOST_TRIES = 5000


def allowed(mask: np.ndarray, where: Site) -> bool:
    """Whether a mask obeys the challenge's rule."""
    inside = (mask & where.brain).sum() >= MIN_IN_BRAIN * mask.sum()
    return bool(inside and where.distance_mm[mask].min() >= MIN_DISTANCE_MM)


def blind(shape: np.ndarray, where: Site, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return a corner and the number of centres it took."""
    grid, middle = np.array(where.brain.shape), np.array(shape.shape) // 2
    found: list[np.ndarray] = []
    for tries in range(1, MOST_TRIES + 1):
        corner = rng.integers(grid) - middle
        if (corner < 0).any() or (corner + shape.shape > grid).any():
            continue
        if allowed(put(shape, corner, grid), where):
            found.append(corner)
        if len(found) == 2:
            return max(found, key=lambda at: where.distance_mm[tuple(at + middle)]), tries
    raise LookupError(f"no two places in {MOST_TRIES} tries")


def jobs(cases: int, each: int, size: str) -> Iterator[tuple[np.ndarray, Site]]:
    """Turned tumours of some phantoms, each with a brain to lie in."""
    made = [make_phantom(k, size=size) for k in range(cases)]  # ty: ignore[invalid-argument-type]
    pool = [components(p.volumes["seg"].data[0] > 0)[0] for p in made]
    rng = np.random.default_rng(0)
    for phantom in made:
        image, unhealthy = phantom.volumes["t1n"], phantom.volumes["mask-unhealthy"]
        where = site(brain_mask(image), unhealthy.data[0], image.spacing_mm)
        for _ in range(each):
            yield vary(pool[int(rng.integers(len(pool)))], rng), where


def timed(
    function: Callable[..., Any], shape: np.ndarray, where: Site, seed: int
) -> tuple[Any, float]:
    """Return the answer and the CPU seconds of the best of three identical calls."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        answer = function(shape, where, np.random.default_rng(seed))
        seconds.append(time.process_time() - start)
    return answer, min(seconds)


def measure(cases: int, each: int, size: str) -> np.ndarray:
    """(N, 3): CPU seconds of blind rejection, of ours, and the blind tries."""
    rows = []
    for number, (shape, where) in enumerate(jobs(cases, each, size)):
        try:
            (theirs, tries), blind_seconds = timed(blind, shape, where, number)
        except LookupError:
            continue  # hardly a place in this brain: blind would go on for ever
        ours, seconds = timed(find, shape, where, number)
        rows.append((blind_seconds, seconds, tries))
        for corner in (ours, theirs):
            assert corner is not None
            assert allowed(put(shape, corner, where.brain.shape), where)
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    given = parser.parse_args()
    rows = measure(given.cases, given.each, given.size)
    print(f"{len(rows)} placements, {given.size}; blind tries: median {np.median(rows[:, 2]):.0f}")
    print(f"{'':<8}{'median ms':>10}{'mean ms':>10}{'worst ms':>10}")
    for name, seconds in (("blind", rows[:, 0]), ("synth", rows[:, 1])):
        ms = 1000 * seconds
        print(f"{name:<8}{np.median(ms):>10.2f}{ms.mean():>10.2f}{ms.max():>10.2f}")
    print(f"{'ratio':<8}{np.median(rows[:, 0] / rows[:, 1]):>10.0f}", end="")
    print(f"{rows[:, 0].sum() / rows[:, 1].sum():>10.0f}")


if __name__ == "__main__":
    main()
