"""The real masks that generated ones are compared with.

The tables it writes have the real masks' own line, without which no number means anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from synth.evaluate.mask_files import Mask
from synth.evaluate.tables import mean_sd, spread
from synth.metrics import shape_sets
from synth.metrics.distribution import Interval, mmd2_interval
from synth.metrics.reference import CopyRule, Nearest
from synth.metrics.shape import DESCRIBED, features, matrix

CODE_MARGIN = 1.1
"""Of the grid that overlaps are counted on, over the largest real mask."""
SURELY_A_COPY = 0.99
"""A Dice that is a copy whatever the real masks say."""
COMPARED = (*DESCRIBED, "ncr_in_tc")
SHOWN = ("log_wt_ml", "log_tc_ml", "log_et_ml", "tc_in_wt", "et_in_tc")
HEADINGS = (
    "MMD² [95 %]", "W1 ln WT", "W1 ln TC", "W1 ln ET", "W1 TC/WT", "W1 ET/TC", "rim contact",
    "components", "nested", "NN Dice mean/95 %/max", "authentic", "pair Dice",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskComparison:
    """How a set of masks stands to the real ones."""

    rows: list[dict[str, float]]
    """The features of each mask."""
    mmd2: Interval
    wasserstein: dict[str, Interval]
    diversity: float
    nearest: Nearest | None = None
    """Of each mask, the training mask next to it; None without training masks, as the two below."""
    authentic: np.ndarray | None = None
    copied: np.ndarray | None = None
    closer_p: float | None = None
    """One-sided Mann–Whitney: are masks closer to training than unseen real ones are?"""

    def cells(self) -> list[str]:
        """Return the line of the table of sets, under `HEADINGS`."""
        apart = [f"{self.mmd2.value:.3f} [{self.mmd2.low:.3f}, {self.mmd2.high:.3f}]"]
        apart += [f"{self.wasserstein[name].value:.3f}" for name in SHOWN]
        return _cells(apart, self.rows, self.nearest, self.authentic, self.diversity)

    def numbers(self) -> dict[str, Any]:
        """Return all of it for JSON, which has no NaN."""
        found: dict[str, Any] = {
            "masks": len(self.rows),
            "mmd2": asdict(self.mmd2),
            "diversity": self.diversity,
            "nested": float(np.mean([row["nesting"] == 1 for row in self.rows])),
            "features": {
                name: spread(np.array([row[name] for row in self.rows]))
                | {"wasserstein": asdict(w) if np.isfinite(w.value) else None}
                for name, w in self.wasserstein.items()
            },
        }
        if self.nearest is not None:
            found["nearest_training_dice"] = overlap_spread(self.nearest)
        if self.authentic is not None and self.copied is not None:
            found["authentic"] = float(self.authentic.mean())
            found["copied"] = int(self.copied.sum())
            found["closer_than_unseen_real_p"] = self.closer_p
        return found


class MaskReference:
    """Real masks to judge by: unseen ones, and the training masks if they are known.

    All masks, also those to judge, have isotropic voxels of one size.
    """

    def __init__(self, real: Sequence[Mask], train: Sequence[Mask] = (), *, seed: int = 0) -> None:
        self.seed = seed
        self.rows = _rows(real)
        self.scale = shape_sets.feature_scale(self.rows)
        names = (*COMPARED, *_located(self.rows))
        self.floor = shape_sets.floor(self.rows, self.scale, names, seed=seed)
        self.side_mm = CODE_MARGIN * max(
            shape_sets.extent_mm(m.regions, m.spacing_mm[0]) for m in (*real, *train)
        )
        codes = self.codes(real)
        self.train_names = [mask.name for mask in train]
        self.train = self.codes(train) if train else None
        self.rule = None
        if self.train is not None:
            self.rule = CopyRule(
                among=shape_sets.nearest(self.train, self.train, itself=True),
                unseen=shape_sets.nearest(codes, self.train),
                most=SURELY_A_COPY,
            )
        self.diversity = shape_sets.diversity(codes, seed=seed)

    def codes(self, masks: Sequence[Mask]) -> np.ndarray:  # (masks, 3, S, S, S)
        """Return the masks on the grid that overlaps are counted on."""
        return np.stack(
            [shape_sets.aligned(m.regions, m.spacing_mm[0], self.side_mm) for m in masks]
        )

    def judge(self, masks: Sequence[Mask], *, training: bool = False) -> MaskComparison:
        """Compare masks with the unseen real ones, and look for copies of training masks.

        `training` says that they are the training masks: their neighbours are the others of them.
        """
        rows, codes = _rows(masks), self.codes(masks)
        names = (*COMPARED, *(n for n in _located(rows) if n in self.floor))
        memory: dict[str, Any] = {}
        if self.rule is not None and self.train is not None:
            found = self.rule.among if training else shape_sets.nearest(codes, self.train)
            memory = {"nearest": found}
            if not training:
                memory |= {
                    "authentic": self.rule.authentic(found),
                    "copied": self.rule.copied(found),
                    "closer_p": self.rule.closer_p(found),
                }
        return MaskComparison(
            rows=rows,
            mmd2=mmd2_interval(
                self.scale(matrix(rows)),
                self.scale(matrix(self.rows)),
                bandwidth=self.scale.bandwidth,
                seed=self.seed,
            ),
            wasserstein={
                name: shape_sets.wasserstein(
                    _column(rows, name), _column(self.rows, name), seed=self.seed
                )
                for name in names
            },
            diversity=shape_sets.diversity(codes, seed=self.seed),
            **memory,
        )

    def numbers(self) -> dict[str, Any]:
        """Return what real masks score among themselves, for JSON."""
        found: dict[str, Any] = {"masks": len(self.rows), "halves": self.floor}
        if self.rule is not None:
            found["nearest_training_dice"] = overlap_spread(self.rule.unseen)
            found["copy_dice"] = self.rule.threshold
        return found

    def cells(self) -> list[str]:
        """Return the real masks' own line: their halves stay within this in 95 of 100 deals."""
        apart = [f"≤ {self.floor[name]['high']:.3f}" for name in ("mmd2", *SHOWN)]
        unseen = self.rule.unseen if self.rule else None
        authentic = self.rule.authentic(unseen) if self.rule and unseen else None
        return _cells(apart, self.rows, unseen, authentic, self.diversity)


def sets_table(verdicts: Mapping[str, MaskComparison], real: MaskReference) -> list[list[str]]:
    """Return one line a set, and the real masks as the last."""
    lines = [[name, *verdict.cells()] for name, verdict in verdicts.items()]
    return [["masks", *HEADINGS], *lines, ["unseen real", *real.cells()]]


def features_table(verdict: MaskComparison, real: MaskReference) -> list[list[str]]:
    """Return one line a feature: both means, how far apart, and how far apart real halves are."""
    rows = [["feature", "generated", "real", "W1 [95 %]", "real halves, 95 %"]]
    for name, apart in verdict.wasserstein.items():
        known = np.isfinite(apart.value)
        rows.append([
            name, *(mean_sd(spread(_column(side.rows, name))) for side in (verdict, real)),
            f"{apart.value:.3f} [{apart.low:.3f}, {apart.high:.3f}]" if known else "–",
            f"{real.floor[name]['high']:.3f}" if real.floor[name]["high"] is not None else "–",
        ])  # fmt: skip
    return rows


def _rows(masks: Sequence[Mask]) -> list[dict[str, float]]:
    return [{**features(m.regions, m.spacing_mm[0]), **m.centre} for m in masks]


def _located(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the names of the place in the brain, if that of every mask is known."""
    names = [name for name in rows[0] if name.startswith("centre_")]
    return [name for name in names if all(name in row for row in rows)]


def _column(rows: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    return np.array([row.get(name, math.nan) for row in rows], float)


def _cells(
    apart: list[str],
    rows: Sequence[Mapping[str, float]],
    near: Nearest | None,
    authentic: np.ndarray | None,
    diversity: float,
) -> list[str]:
    found = None if near is None else overlap_spread(near)
    return [
        *apart,
        mean_sd(spread(_column(rows, "rim_contact"))),
        mean_sd(spread(_column(rows, "components_wt"))),
        f"{np.mean(_column(rows, 'nesting') == 1):.0%}",
        f"{found['mean']:.3f}/{found['high']:.3f}/{found['max']:.3f}" if found else "–",
        "–" if authentic is None else f"{authentic.mean():.0%}",
        f"{diversity:.3f}",
    ]


def overlap_spread(near: Nearest) -> dict[str, float]:
    """Return mean, 95 % quantile and maximum of the best overlaps."""
    dice = near.closeness
    return {
        "mean": float(dice.mean()), "high": float(np.quantile(dice, 0.95)), "max": float(dice.max())
    }  # fmt: skip
