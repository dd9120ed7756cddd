"""The unseen real scans that generated ones are compared with.

The real cases have every number, too: without their
own line none of the others means anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from synth.data.case import MODALITIES
from synth.evaluate.scans.copies import Memory, Nearest
from synth.evaluate.scans.distance import Standard, frechet, pair_similarity
from synth.evaluate.scans.features import DICE, Description
from synth.evaluate.scans.regions import column, mean_names, share_of_signs, signs, worst_z
from synth.evaluate.scans.texture import LEVELS, energy_ratio
from synth.metrics.distribution import Interval, Kernel, halvings, mmd2_floor, mmd2_interval
from synth.metrics.shape_sets import wasserstein

PAIRS = 20
"""Pairs of brains that diversity is the mean of."""
KERNELS: dict[str, Kernel] = {"kid": "polynomial", "mmd2": "rbf"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """How a set stands to the real cases; the real cases' own has None where one would be 0."""

    rows: list[dict[str, float]]
    distances: dict[str, Interval] | None
    fid: dict[str, Any] | None
    diversity: dict[str, Any]
    nearest: Nearest | None = None
    copied: np.ndarray | None = None
    closer_p: float | None = None
    """One-sided Mann–Whitney: are scans closer to training than unseen real ones are?"""


class Jury:
    """Unseen real cases to judge by, and the training cases if they are known."""

    def __init__(
        self, real: Sequence[Description], train: Sequence[Description] = (), *, seed: int = 0
    ) -> None:
        self.real, self.train, self.seed = list(real), list(train), seed
        self.features = np.stack([d.features for d in real])
        self.standard = Standard.of(self.features)
        halves = halvings(len(real), seed=seed)
        self.floor = {
            name: mmd2_floor(
                self.standard(self.features),
                halves,
                kernel=kernel,
                bandwidth=self.standard.bandwidth,
            )
            for name, kernel in KERNELS.items()
        }
        self.rows = [d.row for d in real]
        self.expected = signs(self.rows)
        self.memory = Memory([d.code for d in train], [d.code for d in real]) if train else None
        own = self.memory.unseen if self.memory else None
        self.verdict = Verdict(
            rows=[
                self._row(d, self.rows[:i] + self.rows[i + 1 :], _distance(own, i))
                for i, d in enumerate(real)
            ],
            distances=None, fid=None, diversity=self._diversity(real), nearest=own,
        )  # fmt: skip

    def judge(self, made: Sequence[Description], *, training: bool = False) -> Verdict:
        """Compare cases with the real ones; `training` says that they are the training cases."""
        features = np.stack([d.features for d in made])
        memory: dict[str, Any] = {}
        near = copied = None
        if self.memory is not None:
            near = self.memory.among if training else self.memory.nearest([d.code for d in made])
            memory["nearest"] = near
            if not training:
                copied = memory["copied"] = self.memory.copied(near)
                test = stats.mannwhitneyu(
                    near.distance, self.memory.unseen.distance, alternative="less"
                )
                memory["closer_p"] = float(test.pvalue)
        rows = [
            self._row(d, self.rows, _distance(near, i), None if copied is None else copied[i])
            for i, d in enumerate(made)
        ]
        return Verdict(
            rows=rows,
            distances={
                name: mmd2_interval(
                    self.standard(features),
                    self.standard(self.features),
                    kernel=kernel,
                    bandwidth=self.standard.bandwidth,
                    seed=self.seed,
                )
                for name, kernel in KERNELS.items()
            },
            fid=frechet(features, self.features, self.standard, seed=self.seed),
            diversity=self._diversity(made),
            **memory,
        )

    def numbers(self, verdict: Verdict, made: Sequence[Description]) -> dict[str, Any]:
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
            found["nearest_distance"] = summary(verdict.nearest.distance)
        if verdict.copied is not None:
            assert self.memory is not None
            assert verdict.nearest is not None
            closest = float(self.memory.unseen.distance.min())
            found["copied"] = int(verdict.copied.sum())
            found["closer_than_any_unseen"] = float((verdict.nearest.distance < closest).mean())
            found["closer_than_unseen_p"] = verdict.closer_p
        return found

    def regions(self, verdict: Verdict) -> dict[str, dict[str, Any]]:
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
    return None if near is None else float(near.distance[index])
