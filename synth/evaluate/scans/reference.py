"""The unseen real scans that generated ones are compared with, and the search for copies.

The real cases have every number, too: without their own line none of the others means anything.

The headline is KID (Bińkowski et al. 2018), the unbiased MMD² with the kernel (x·y/d + 1)³. It has
no bandwidth to choose and does not level off: models that are judged by the same real cases can be
compared, however far the worse one is. MMD² with a Gaussian kernel stands beside it: it sees every
difference, but all sets that are far score alike. Features are standardised by the real cases, so
that no feature counts more for its unit, and compressed where no real case is: z → 2 asinh(z/2).
Without that a handful of outliers among the cases decides a cubic kernel. FID is biased by the
sample's size; it is reported for equal sizes only, beside what real cases score at that size.

All brains correlate. What is left when the mean brain is taken away does not, unless two scans
show one brain; so the correlation of these remainders tells copies from kin, whatever the grey
scale of the copy, mirrored or not. The threshold is measured on real cases of different patients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from synth.base.errors import SynthError
from synth.data.case import MODALITIES
from synth.evaluate.scans.features import DICE, SIDE, Code, Description
from synth.evaluate.scans.scan_case import (
    LEVELS,
    column,
    energy_ratio,
    mean_names,
    share_of_signs,
    signs,
    worst_z,
)
from synth.metrics.distribution import (
    Interval,
    Kernel,
    frechet_distance,
    halvings,
    mmd2_floor,
    mmd2_interval,
    ms_ssim_3d,
)
from synth.metrics.reference import CopyRule, FeatureScale, Nearest
from synth.metrics.shape_sets import wasserstein

FID_DEALS = 30
LEAST_SPREAD = 0.01
"""Of a feature's size: what real cases hardly vary in may not decide everything."""
MS_SSIM_SCALES, MS_SSIM_SIDE = 3, 44  # 11-voxel windows at a quarter of the size
SURELY_A_COPY = 0.95
"""A correlation that is a copy whatever the real cases say."""
PAIRS = 20
"""Pairs of brains that diversity is the mean of."""
KERNELS: dict[str, Kernel] = {"kid": "polynomial", "mmd2": "rbf"}


def feature_scale(real: np.ndarray) -> FeatureScale:  # (cases, features)
    """Measure real cases; what they hardly vary in may not decide everything."""
    size = np.sqrt((real**2).mean(axis=0))
    return FeatureScale.of(real, LEAST_SPREAD * np.maximum(size, size.mean()), compress=True)


def frechet(
    made: np.ndarray, real: np.ndarray, scale: FeatureScale, *, seed: int = 0
) -> dict[str, float | int | str]:
    """Return FID of equally many made and real cases, beside that of real and other real ones.

    Both are means over deals of half as many cases as are real, since the floor needs two sets.
    """
    half = len(real) // 2
    if len(made) < half:
        reason = f"FID is left out: {len(made)} made cases, and equal sets would need {half}"
        return {"left_out": reason}
    x, y = scale(made), scale(real)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(FID_DEALS):
        own, other = rng.permutation(len(made))[:half], rng.permutation(len(real))
        one, two = y[other[:half]], y[other[half : 2 * half]]
        found.append((frechet_distance(x[own], one), frechet_distance(two, one)))
    value, floor = np.mean(found, axis=0)
    return {"value": float(value), "real": float(floor), "cases": half}


def pair_similarity(
    a: np.ndarray, b: np.ndarray
) -> np.ndarray:  # (C, …), (C, …) grey values 0 … 1 → (C,)
    """MS-SSIM of each contrast of two brains, centred on one grid."""
    shape = np.maximum(np.maximum(a.shape[1:], b.shape[1:]), MS_SSIM_SIDE)
    a, b = (_centred(v, shape) for v in (a, b))
    return np.array([
        ms_ssim_3d(p, q, data_range=1.0, scales=MS_SSIM_SCALES) for p, q in zip(a, b, strict=True)
    ])  # fmt: skip


def _centred(image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    room = shape - image.shape[1:]
    return np.pad(image.astype(np.float32), [(0, 0), *((r // 2, r - r // 2) for r in room)])


class Copies:
    """Training cases, and the search for copies of them.

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
        self.rule = CopyRule(
            among=self.nearest(train, itself=True),
            unseen=self.nearest(unseen),
            most=SURELY_A_COPY,
        )

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
        return Nearest(closeness=correlation[np.arange(len(index)), index], index=index)

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


def _mirrored(code: Code) -> Code:
    """Swap left and right."""
    values = code.values.reshape(-1, SIDE, SIDE, SIDE)[:, ::-1].reshape(code.values.shape)
    return Code(values=values, there=code.there.reshape((SIDE,) * 3)[::-1].ravel())


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanComparison:
    """How a set stands to the real cases; the real cases' own has None where one would be 0."""

    rows: list[dict[str, float]]
    distances: dict[str, Interval] | None
    fid: dict[str, Any] | None
    diversity: dict[str, Any]
    nearest: Nearest | None = None
    copied: np.ndarray | None = None
    closer_p: float | None = None
    """One-sided Mann–Whitney: are scans closer to training than unseen real ones are?"""


class ScanReference:
    """Unseen real cases to judge by, and the training cases if they are known."""

    def __init__(
        self, real: Sequence[Description], train: Sequence[Description] = (), *, seed: int = 0
    ) -> None:
        self.real, self.train, self.seed = list(real), list(train), seed
        self.features = np.stack([d.features for d in real])
        self.scale = feature_scale(self.features)
        halves = halvings(len(real), seed=seed)
        self.floor = {
            name: mmd2_floor(
                self.scale(self.features),
                halves,
                kernel=kernel,
                bandwidth=self.scale.bandwidth,
            )
            for name, kernel in KERNELS.items()
        }
        self.rows = [d.row for d in real]
        self.expected = signs(self.rows)
        self.copies = Copies([d.code for d in train], [d.code for d in real]) if train else None
        own = self.copies.rule.unseen if self.copies else None
        self.verdict = ScanComparison(
            rows=[
                self._row(d, self.rows[:i] + self.rows[i + 1 :], _distance(own, i))
                for i, d in enumerate(real)
            ],
            distances=None, fid=None, diversity=self._diversity(real), nearest=own,
        )  # fmt: skip

    def judge(self, made: Sequence[Description], *, training: bool = False) -> ScanComparison:
        """Compare cases with the real ones; `training` says that they are the training cases."""
        features = np.stack([d.features for d in made])
        near = copied = closer_p = None
        if self.copies is not None:
            rule = self.copies.rule
            near = rule.among if training else self.copies.nearest([d.code for d in made])
            if not training:
                copied, closer_p = rule.copied(near), rule.closer_p(near)
        rows = [
            self._row(d, self.rows, _distance(near, i), None if copied is None else copied[i])
            for i, d in enumerate(made)
        ]
        return ScanComparison(
            rows=rows,
            distances={
                name: mmd2_interval(
                    self.scale(features),
                    self.scale(self.features),
                    kernel=kernel,
                    bandwidth=self.scale.bandwidth,
                    seed=self.seed,
                )
                for name, kernel in KERNELS.items()
            },
            fid=frechet(features, self.features, self.scale, seed=self.seed),
            diversity=self._diversity(made),
            nearest=near,
            copied=copied,
            closer_p=closer_p,
        )

    def numbers(self, verdict: ScanComparison, made: Sequence[Description]) -> dict[str, Any]:
        """Return a verdict for JSON."""
        found: dict[str, Any] = {"cases": len(made), "ms_ssim": verdict.diversity}
        if verdict.distances is not None:
            found |= {name: asdict(value) for name, value in verdict.distances.items()}
            found |= {"fid": verdict.fid, "texture_ratio": self.texture(made)}
            found["regions"] = self.regions(verdict)
        shown = (*DICE, "signs", "z_intensity", "z_texture")
        for name in shown:
            values = np.array([row.get(name, math.nan) for row in verdict.rows])
            found[name] = summary(values) if np.isfinite(values).any() else None
        if verdict.nearest is not None:
            found["nearest_distance"] = summary(1 - verdict.nearest.closeness)
        if verdict.copied is not None:
            assert self.copies is not None
            assert verdict.nearest is not None
            closest = float(self.copies.rule.unseen.closeness.max())
            found["copied"] = int(verdict.copied.sum())
            found["closer_than_any_unseen"] = float((verdict.nearest.closeness > closest).mean())
            found["closer_than_unseen_p"] = verdict.closer_p
        return found

    def regions(self, verdict: ScanComparison) -> dict[str, dict[str, Any]]:
        """Return of each number of a region: both means, the distance, and it in real sd."""
        found = {}
        for name in region_names(self.rows[0]):
            made, real = column(verdict.rows, name), column(self.rows, name)
            apart = wasserstein(made, real, seed=self.seed)
            own, theirs = summary(made), summary(real)
            apart_sd = None
            if own["mean"] is not None and theirs["mean"] is not None and theirs["sd"]:
                apart_sd = (own["mean"] - theirs["mean"]) / theirs["sd"]
            found[name] = {
                "made": own,
                "real": theirs,
                "wasserstein": asdict(apart) if np.isfinite(apart.value) else None,
                "difference_sd": apart_sd,
            }
        return found

    def texture(self, made: Sequence[Description]) -> dict[str, dict[str, float | None]]:
        """Return made over real energy by contrast and level."""
        return {
            f"{m}_{level + 1}": energy_ratio(
                *(np.stack([d.energies[i, level].mean() for d in side])
                  for side in (made, self.real)),
                seed=self.seed,
            )
            for i, m in enumerate(MODALITIES)
            for level in range(LEVELS)
        }  # fmt: skip

    def _row(
        self,
        described: Description,
        real: Sequence[Mapping[str, float]],
        distance: float | None,
        copied: bool | None = None,
    ) -> dict[str, float]:
        """Return the numbers of a case, those against other real cases included."""
        own = described.row
        intensity = [*mean_names(), *(f"brain_{m}_mean" for m in MODALITIES)]
        texture = [name for name in own if name.startswith("texture_")]
        found = own | {
            "signs": share_of_signs(own, self.expected),
            "z_intensity": worst_z(own, real, intensity),
            "z_texture": worst_z(own, real, texture),
        }
        if distance is not None:
            found["nearest_distance"] = float(distance)
        if copied is not None:
            found["copied"] = float(copied)
        return found

    def _diversity(self, cases: Sequence[Description]) -> dict[str, Any]:
        """Return the mean MS-SSIM of pairs by contrast: of all, and of one label map's draws."""
        shown = [d for d in cases if d.thumbnail is not None]
        pairs = list(combinations(shown, 2))
        same = [(a, b) for a, b in pairs if a.label_map == b.label_map]
        apart = [(a, b) for a, b in pairs if a.label_map != b.label_map]
        found = {"pairs": self._similarity(apart)}
        return found | ({"same_label_map": self._similarity(same)} if same else {})

    def _similarity(
        self, pairs: Sequence[tuple[Description, Description]]
    ) -> dict[str, float | int | None]:
        rng = np.random.default_rng(self.seed)
        chosen = rng.permutation(len(pairs))[:PAIRS]
        if not len(chosen):
            return {"n": 0, "mean": None}
        found = np.mean(
            [pair_similarity(pairs[i][0].thumbnail, pairs[i][1].thumbnail) for i in chosen], axis=0
        )
        by_contrast = {m: float(v) for m, v in zip(MODALITIES, found, strict=True)}
        return {"n": len(chosen), "mean": float(found.mean())} | by_contrast


def summary(values: np.ndarray) -> dict[str, float | int | None]:
    """Return mean, sd, median and extremes of the finite values; JSON has no NaN."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return {"n": 0, "mean": None, "sd": None, "median": None, "min": None, "max": None}
    return {
        "n": len(finite),
        "mean": float(finite.mean()),
        "sd": float(finite.std(ddof=1)) if len(finite) > 1 else None,
        "median": float(np.median(finite)),
        "min": float(finite.min()),
        "max": float(finite.max()),
    }


def region_names(row: Mapping[str, float]) -> list[str]:
    """Return the names of the numbers of regions, and of brightness in the file's unit."""
    return [n for n in row if n.endswith(("_mean", "_sd")) or n.startswith("level_")]


def _distance(near: Nearest | None, index: int) -> float | None:
    return None if near is None else float(1 - near.closeness[index])
