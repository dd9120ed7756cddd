"""Detection of scans that are copies of training scans.

All brains correlate. What is left when the mean brain is taken away does not, unless two scans
show one brain; so the correlation of these remainders tells copies from kin, whatever the grey
scale of the copy, mirrored or not. The threshold is measured on real cases of different patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synth.base.errors import SynthError
from synth.evaluate.scans.scan_case import Scans

CELL_MM = 8.0
SIDE = 25
"""Cells along a side, 200 mm: a whole head. Odd, so that it mirrors onto itself."""
FULL = 0.5
"""Share of a cell that must be healthy brain."""
SURELY_CLOSE = 0.05
"""A distance that is a copy whatever the real cases say: a correlation of 0.95."""
FEWEST_CELLS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Code:
    """A brain in 8 mm cells, without its tumour, which the label map decides."""

    values: np.ndarray  # (4, 25³), standardised over the cells that are there, else 0
    there: np.ndarray  # (25³,) bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """Of each case, the training case most like it."""

    distance: np.ndarray  # (cases,), 1 - correlation
    index: np.ndarray  # (cases,), into the training cases


def code_of(scans: Scans) -> Code:
    """Average a brain over cells about the middle of its box."""
    edge = CELL_MM / scans.spacing_mm
    places = np.argwhere(scans.healthy)
    box = np.argwhere(scans.brain)
    middle = (box.min(axis=0) + box.max(axis=0)) / 2
    cells = _cell(places, middle, edge)
    kept = ((cells >= 0) & (cells < SIDE)).all(axis=1)
    index = np.ravel_multi_index(tuple(cells[kept].T), (SIDE,) * 3)
    count = np.bincount(index, minlength=SIDE**3)
    room = [  # voxels of each cell along an axis, brain or not
        np.bincount(c[(c >= 0) & (c < SIDE)], minlength=SIDE)
        for n, m in zip(scans.brain.shape, middle, strict=True)
        for c in [_cell(np.arange(n), m, edge)]
    ]
    there = (count > 0) & (count >= FULL * np.einsum("i,j,k->ijk", *room).ravel())
    found = scans.image[:, *places[kept].T].astype(np.float64)
    sums = np.stack([np.bincount(index, weights=c, minlength=SIDE**3) for c in found])
    values = sums / np.maximum(count, 1)
    inside = values[:, there]
    if there.sum() < FEWEST_CELLS:
        raise SynthError(
            f"{scans.case.id}: a brain of {there.sum()} cells of {CELL_MM:g} mm",
            hint="is the voxel size in the header in millimetres?",
        )
    mean, sd = inside.mean(axis=1, keepdims=True), inside.std(axis=1, keepdims=True)
    return Code(values=np.where(there, (values - mean) / np.maximum(sd, 1e-9), 0), there=there)


class Memory:
    """Training cases to look for copies of.

    Args:
        train: codes of the training cases.
        unseen: of real cases that were not trained on.
    """

    def __init__(self, train: Sequence[Code], unseen: Sequence[Code]) -> None:
        if len(train) < 3:
            raise SynthError(
                f"{len(train)} training cases cannot show what a copy is", hint="give 3 or more"
            )
        count = np.maximum(sum(c.there.astype(float) for c in train), 1)
        self.common = sum(c.values for c in train) / count  # (4, cells): the mean brain
        self.train = list(train)
        self.among = self.nearest(train, itself=True)
        self.unseen = self.nearest(unseen)
        apart = np.concatenate((self.unseen.distance, self.among.distance))
        # Never above the closest two patients, never so low that no copy could reach it.
        low = min(float(apart.mean() - 4 * apart.std()), float(apart.min()))
        self.threshold = max(low, SURELY_CLOSE)

    def nearest(self, cases: Sequence[Code], *, itself: bool = False) -> Nearest:
        """Find the training case, mirrored or not, that correlates best with each case.

        With `itself` the cases are the training cases, and none is its own neighbour.
        """
        correlation = np.maximum(
            self._correlations(cases, self.train),
            self._correlations(cases, [_mirrored(c) for c in self.train]),
        )
        if itself:
            np.fill_diagonal(correlation, -np.inf)
        index = correlation.argmax(axis=1)
        return Nearest(distance=1 - correlation[np.arange(len(index)), index], index=index)

    def copied(self, found: Nearest) -> np.ndarray:  # (cases,) bool
        """Whether each case is nearer to a training case than patients are to each other.

        And nearer to it than that one is to any other (Alaa et al. 2022): one of two twins in the
        training set makes no copy of their kin.
        """
        close = found.distance < self.threshold
        return close & (found.distance < self.among.distance[found.index])

    def _correlations(self, one: Sequence[Code], other: Sequence[Code]) -> np.ndarray:
        """Mean over contrasts of the correlation over the cells that both have."""
        a_there = np.stack([c.there for c in one]).astype(float)
        b_there = np.stack([c.there for c in other]).astype(float)
        n = np.maximum(a_there @ b_there.T, 1)
        total = np.zeros(n.shape)
        for k, common in enumerate(self.common):
            a = np.stack([c.values[k] for c in one]) - common
            b = np.stack([c.values[k] for c in other]) - common
            a, b = a * a_there, b * b_there
            mean_a, mean_b = a @ b_there.T / n, a_there @ b.T / n
            spread_a = a**2 @ b_there.T / n - mean_a**2
            spread_b = a_there @ (b**2).T / n - mean_b**2
            covariance = a @ b.T / n - mean_a * mean_b
            total += covariance / np.sqrt(np.maximum(spread_a * spread_b, 1e-18))
        return total / len(self.common)


def _cell(
    places: np.ndarray, middle: np.ndarray | float, edge: float
) -> np.ndarray:  # voxels → the cells they are in
    return np.floor((places - middle) / edge + SIDE / 2).astype(int)


def _mirrored(code: Code) -> Code:
    """Swap left and right."""
    values = code.values.reshape(-1, SIDE, SIDE, SIDE)[:, ::-1].reshape(code.values.shape)
    return Code(values=values, there=code.there.reshape((SIDE,) * 3)[::-1].ravel())
