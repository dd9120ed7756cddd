"""Two arms of a comparison against each other, endpoint by endpoint.

Both arms are scored on the same cases by the same seeds. Differences (treated − control) are
averaged over seeds within a case first: seeds are not cases. But two trainings also differ by
chance, on all cases alike, and more cases do not help: the interval includes that variance, and a
single training of each arm concludes nothing. One endpoint is declared before anyone
looks: mean Dice over WT, TC and ET by the convention of 2023, in which every case has a number (in
2025 a region that both truth and prediction leave empty is nan, and a model that invents it there
loses a pair instead of points). All else is secondary, Holm-adjusted over regions × metrics within
a convention. A pair that is not finite in both arms is left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from synth.base.errors import SynthError
from synth.evaluate.segmentation_scores import METRICS, REGIONS, RegionScore, mean_of
from synth.metrics import statistics
from synth.metrics.surface import Convention

Run = tuple[str, int | None]
"""A case and the seed of the training run."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """What is compared."""

    region: str = "mean"
    metric: str = "dice"
    convention: Convention = "2023"

    def __str__(self) -> str:
        name = METRICS[self.metric][0]
        where = f"mean {name} over WT, TC and ET" if self.region == "mean" else None
        return f"{where or f'{self.region} {name}'} ({self.convention})"


PRIMARY = Endpoint()


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The scores of two arms on the cases that both have, averaged over seeds."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    """Whose each case is."""
    control: np.ndarray
    treated: np.ndarray
    excluded: int
    """Pairs (one a case and seed) that are not finite in both arms."""
    one_sided: int
    """Pairs of which one arm has a number that the other lacks."""
    by_seed: Mapping[int | None, float]
    """Seed → mean difference over cases."""
    by_run: Mapping[tuple[int | None, int | None], float]
    """(fold, seed) → mean difference: a training of each arm; none where no seed is told."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One endpoint of two arms; differences are treated − control, nan where there is none."""

    endpoint: Endpoint
    control: str
    treated: str
    cases: int
    patients: int
    excluded: int
    one_sided: int
    control_mean: float = math.nan
    treated_mean: float = math.nan
    mean: float = math.nan
    mean_interval: tuple[float, float] = (math.nan, math.nan)
    """Over patients and, where arms were trained more than once, over luck in training."""
    patients_interval: tuple[float, float] = (math.nan, math.nan)
    """Over patients alone, for these very networks (bootstrap)."""
    runs: int = 0
    """Trainings of each arm; 0 where none is told: the predictions are compared as they are."""
    median: float = math.nan
    median_interval: tuple[float, float] = (math.nan, math.nan)
    p_value: float = math.nan
    """Signed-rank over patients; nan below `LEAST_PATIENTS`, where it cannot reach 5 %."""
    p_holm: float = math.nan
    """nan for the primary endpoint, which is tested alone."""
    effect: float = math.nan
    """Rank-biserial, −1 to 1; above zero where the treated arm has the larger numbers."""
    better: int = 0
    """Patients the treatment helped, whichever way is better for this metric."""
    equal: int = 0
    worse: int = 0
    detectable: float = math.nan
    """The smallest mean difference that so many patients show with 80 % power, two-sided 5 %."""
    detectable_if_independent: float = math.nan
    """The same as if every case were another patient."""
    by_seed: Mapping[int | None, float] = field(default_factory=dict)

    @property
    def direction(self) -> int:
        """1 for a gain and −1 for a loss that interval and test agree on, else 0."""
        low, high = self.mean_interval
        if not self.p_value < statistics.ALPHA or low <= 0 <= high or self.runs == 1:
            return 0
        return (1 if self.mean > 0 else -1) * (1 if METRICS[self.endpoint.metric][2] else -1)


def contrast(
    arms: Mapping[str, Sequence[RegionScore]],
    treated: str,
    control: str,
    endpoint: Endpoint,
    *,
    seed: int = 0,
) -> Contrast:
    """Compare two arms by one endpoint."""
    pairs = pair(arms[control], arms[treated], endpoint)
    found = Contrast(
        endpoint=endpoint, control=control, treated=treated, cases=len(pairs.cases),
        patients=len(set(pairs.patients)), excluded=pairs.excluded, one_sided=pairs.one_sided,
        by_seed=pairs.by_seed,
    )  # fmt: skip
    if not pairs.cases:
        return found
    d = pairs.treated - pairs.control
    test = statistics.signed_rank(statistics.patient_means(d, pairs.patients))
    spread = statistics.intervals(d, pairs.patients, seed=seed)
    better, worse = test.positive, test.negative
    if not METRICS[endpoint.metric][2]:
        better, worse = worse, better
    mean, error = float(d.mean()), statistics.standard_error(d, pairs.patients)
    interval = spread.mean if spread else found.mean_interval
    luck, freedom = statistics.training_error(pairs.by_run)
    patients = float(found.patients)
    if freedom and math.isfinite(error):
        error, both = statistics.combined([(error, found.patients - 1), (luck, freedom)])
        interval, patients = statistics.t_interval(mean, error, both), both + 1
    return replace(
        found,
        control_mean=float(pairs.control.mean()),
        treated_mean=float(pairs.treated.mean()),
        mean=mean,
        mean_interval=interval,
        patients_interval=spread.mean if spread else found.patients_interval,
        runs=len(pairs.by_run),
        median=float(np.median(d)),
        median_interval=spread.median if spread else found.median_interval,
        p_value=test.p_value if found.patients >= statistics.LEAST_PATIENTS else math.nan,
        effect=test.effect,
        better=better,
        equal=test.zero,
        worse=worse,
        detectable=statistics.detectable(error, patients),
        detectable_if_independent=statistics.detectable(statistics.standard_error(d), len(d)),
    )


def pair(
    control: Sequence[RegionScore], treated: Sequence[RegionScore], endpoint: Endpoint
) -> Pairs:
    """Match two arms case by case and seed by seed, and average over seeds within a case.

    The mean over regions uses those that are finite in both arms.
    """
    ours, theirs = (values(rows, endpoint) for rows in (control, treated))
    owner = {row.case: row.patient for row in (*control, *treated)}
    kept: dict[Run, tuple[float, float]] = {}
    excluded = one_sided = 0
    for run in (r for r in ours if r in theirs):
        both = [(a, theirs[run].get(region, math.nan)) for region, a in ours[run].items()]
        whole = [(a, b) for a, b in both if math.isfinite(a) and math.isfinite(b)]
        one_sided += any(math.isfinite(a) != math.isfinite(b) for a, b in both)
        if whole:
            kept[run] = (mean_of(a for a, _ in whole), mean_of(b for _, b in whole))
        else:
            excluded += 1
    by_case: dict[str, list[tuple[float, float]]] = {}
    for (case, _), scores in kept.items():
        by_case.setdefault(case, []).append(scores)
    table = np.array([np.mean(scores, axis=0) for scores in by_case.values()]).reshape(-1, 2)
    return Pairs(
        cases=tuple(by_case),
        patients=tuple(owner[case] for case in by_case),
        control=table[:, 0],
        treated=table[:, 1],
        excluded=excluded,
        one_sided=one_sided,
        by_seed={
            seed: mean_of(b - a for (_, own), (a, b) in kept.items() if own == seed)
            for seed in dict.fromkeys(seed for _, seed in kept)
        },
        by_run=_by_run(kept, {row.case: row.fold for row in control}),
    )


def _by_run(
    kept: Mapping[Run, tuple[float, float]], fold_of: Mapping[str, int | None]
) -> dict[tuple[int | None, int | None], float]:
    found: dict[tuple[int | None, int | None], list[float]] = {}
    for (case, seed), (a, b) in kept.items():
        if seed is not None:
            found.setdefault((fold_of[case], seed), []).append(b - a)
    return {run: float(np.mean(own)) for run, own in found.items()}


def values(rows: Sequence[RegionScore], endpoint: Endpoint) -> dict[Run, dict[str, float]]:
    """Return (case, seed) → region → value; three regions for their mean."""
    wanted = REGIONS if endpoint.region == "mean" else (endpoint.region,)
    found: dict[Run, dict[str, float]] = {}
    for row in rows:
        if row.region in wanted and row.convention == endpoint.convention:
            own = found.setdefault((row.case, row.seed), {})
            if row.region in own:
                raise SynthError(
                    f"{row.case}: two scores of {row.region} in one arm",
                    hint="give every run its seed",
                )
            own[row.region] = row.values.get(endpoint.metric, math.nan)
    return found
