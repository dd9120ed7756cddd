"""The result of a comparison: ranks, endpoints, and a sentence in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from synth.base.errors import SynthError
from synth.evaluate.comparison_endpoints import PRIMARY, Contrast, Endpoint, contrast, values
from synth.evaluate.segmentation_scores import METRICS, REGIONS, RegionScore
from synth.metrics import statistics

COMPARED = ("dice", "hd95", "nsd_1mm", "lesion_dice", "lesion_hd95")
MOST_NAMED = 3
"""Endpoints that a verdict names besides the declared one."""
RANKED = ("lesion_dice", "lesion_hd95")
"""What BraTS 2023 ranked by, in each of WT, TC and ET."""


@dataclass(frozen=True, kw_only=True)
class ArmComparison:
    """What came of comparing two arms."""

    primary: Contrast
    secondary: tuple[Contrast, ...]
    ranks: Mapping[str, float]
    """Arm → mean rank over cases, among all arms; 1 is best."""
    rank_p: float
    """Of the two arms, by exchanging them patient-wise."""
    unpaired: int
    """Cases (by seed) that only one of the two arms has."""
    verdict: str
    """On the declared endpoint, and which others moved."""


def compare(
    arms: Mapping[str, Sequence[RegionScore]],
    treated: str,
    control: str,
    *,
    primary: Endpoint = PRIMARY,
    metrics: Sequence[str] = COMPARED,
    seed: int = 0,
) -> ArmComparison:
    """Compare two of the arms; the others take part in the ranks."""
    for name in (treated, control):
        if name not in arms:
            raise SynthError(f"unknown arm '{name}'", hint=f"there are: {', '.join(arms)}")
    runs = [{(r.case, r.seed) for r in arms[name]} for name in (control, treated)]
    if not runs[0] & runs[1]:
        raise SynthError(
            f"{treated} and {control} have no case and seed in common",
            hint="both arms are scored on the same cases, by models of the same seeds",
        )
    main = contrast(arms, treated, control, primary, seed=seed)
    others = tuple(_secondary(arms, treated, control, metrics, seed))
    table, rank_p = rank_arms(arms, treated, control, seed=seed)
    return ArmComparison(
        primary=main,
        secondary=others,
        ranks=table,
        rank_p=rank_p,
        unpaired=len(runs[0] ^ runs[1]),
        verdict=verdict(main) + besides(others),
    )


def rank_arms(
    arms: Mapping[str, Sequence[RegionScore]], treated: str, control: str, *, seed: int = 0
) -> tuple[dict[str, float], float]:
    """Rank all arms as BraTS does, on the cases that all have; and test two of them."""
    endpoints = [Endpoint(region=r, metric=m) for r in REGIONS for m in RANKED]
    columns: dict[str, dict[str, list[float]]] = {}
    for name, rows in arms.items():
        for endpoint in endpoints:
            by_case: dict[str, list[float]] = {}
            for (case, _), found in values(rows, endpoint).items():
                by_case.setdefault(case, []).extend(found.values())
            for case, own in by_case.items():
                columns.setdefault(name, {}).setdefault(case, []).append(float(np.mean(own)))
    if len(columns) < len(arms):  # the convention of 2023 was not scored
        return {}, math.nan
    cases = [c for c in columns[control] if all(c in own for own in columns.values())]
    if not cases:
        return {}, math.nan
    owner = {row.case: row.patient for row in arms[control]}
    scores = np.array([[columns[name][case] for case in cases] for name in arms])
    ranks = statistics.ranks(scores, [bool(METRICS[e.metric][2]) for e in endpoints])
    places = dict(zip(arms, ranks, strict=True))
    p = statistics.rank_test(
        places[treated], places[control], [owner[case] for case in cases], seed=seed
    )
    return {name: float(own.mean()) for name, own in places.items()}, p


def verdict(found: Contrast) -> str:
    """Say in plain words what the endpoint shows, and what it could have shown."""
    lead = f"{found.treated} against {found.control}, {found.endpoint}"
    size = f"{found.cases} cases of {found.patients} patients"
    left_out = ""
    if found.excluded or found.one_sided:
        left_out = (
            f" {found.excluded} pairs without a number were left out; in {found.one_sided} one "
            "arm only had one."
        )
    if not found.cases:
        return f"{lead}: nothing can be said, no case has the number in both arms.{left_out}"
    if found.patients < statistics.LEAST_PATIENTS:
        return (
            f"{lead}: nothing can be said from {size}, {amount(found)} was seen; a two-sided "
            f"signed-rank test needs {statistics.LEAST_PATIENTS} patients to reach 5 %.{left_out}"
        )
    if not found.better and not found.worse:
        return f"{lead}: no evidence that they differ, every difference is zero ({size}).{left_out}"
    trained = "" if found.runs < 2 else f", {found.runs} trainings of each arm"
    size += trained
    figures = f"{_interval(found, found.mean_interval)}, p = {found.p_value:.2g}, {size}"
    power = f" This sample would have shown {number(found, found.detectable)} with 80 % power."
    if found.runs == 1:
        return (
            f"{lead}: nothing can be said from one training of each arm, {amount(found)} was seen "
            f"({_interval(found, found.mean_interval)} over patients alone, {size}); luck in "
            f"training shifts all cases alike, and further seeds tell how much.{left_out}"
        )
    if found.direction:
        word = "gain" if found.direction > 0 else "loss"
        return f"{lead}: a {word} of {amount(found)} {figures}.{left_out}{power}"
    return (
        f"{lead}: no evidence that they differ, {amount(found)} {figures}."
        f"{_half_seen(found)}{left_out}{power}"
    )


def _half_seen(found: Contrast) -> str:
    """Say why there is no evidence where interval or test alone would have found some."""
    low, high = found.mean_interval
    counts = f"{found.better} patients better, {found.worse} worse"
    if found.p_value < statistics.ALPHA:
        return f" These very networks differ ({counts}), but no more than luck in training does."
    if not low <= 0 <= high:
        return f" The mean moved, but not in enough patients ({counts})."
    return ""


def besides(found: Sequence[Contrast]) -> str:
    """Name the other endpoints whose interval lies on one side of zero, the worse ones first."""
    moved: dict[str, list[str]] = {"worse": [], "better": []}
    for one in found:
        low, high = one.mean_interval
        if one.runs != 1 and (low > 0 or high < 0):
            good = (one.mean > 0) == bool(METRICS[one.endpoint.metric][2])
            decimals = METRICS[one.endpoint.metric][1]
            ends = f"{one.control_mean:.{decimals}f} to {one.treated_mean:.{decimals}f}"
            moved["better" if good else "worse"].append(f"{one.endpoint} from {ends}")
    said = "; ".join(f"{word}: {_first(names)}" for word, names in moved.items() if names)
    return f" Other endpoints, not declared beforehand, {said}." if said else ""


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def number(found: Contrast, value: float) -> str:
    """Write a difference of this endpoint without sign."""
    return f"{abs(value):.{METRICS[found.endpoint.metric][1] + 1}f}"


def amount(found: Contrast) -> str:
    """Write the mean difference."""
    return ("−" if found.mean < 0 else "+") + number(found, found.mean)


def _interval(found: Contrast, ends: tuple[float, float]) -> str:
    decimals = METRICS[found.endpoint.metric][1] + 1
    low, high = ends
    return f"[{low:+.{decimals}f}, {high:+.{decimals}f}]".replace("-", "−")


def contrast_rows(found: Sequence[Contrast]) -> list[list[str]]:
    """Return the table of contrasts: heading first, then a line an endpoint."""
    rows = [[
        "endpoint", "control", "treated", "mean difference [95 %]", "median [95 %]", "p", "Holm p",
        "effect", "better/equal/worse", "cases", "left out", "detectable",
    ]]  # fmt: skip
    for one in found:
        decimals = METRICS[one.endpoint.metric][1]
        means = [f"{mean:.{decimals}f}" for mean in (one.control_mean, one.treated_mean)]
        rows.append([
            str(one.endpoint), *means, f"{amount(one)} {_interval(one, one.mean_interval)}",
            f"{one.median:+.{decimals + 1}f} {_interval(one, one.median_interval)}",
            _cell(one.p_value, ".2g"), _cell(one.p_holm, ".2g"), _cell(one.effect, "+.2f"),
            f"{one.better}/{one.equal}/{one.worse}", str(one.cases), str(one.excluded),
            number(one, one.detectable),
        ])  # fmt: skip
    return [[cell.replace("-", "−") if i else cell for i, cell in enumerate(r)] for r in rows]


def _cell(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def as_json(found: Any) -> Any:
    """Return a comparison as JSON values; what is not finite becomes null."""
    if is_dataclass(found):
        return {f.name: as_json(getattr(found, f.name)) for f in fields(found)}
    if isinstance(found, Mapping):
        return {str(key): as_json(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [as_json(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _secondary(
    arms: Mapping[str, Sequence[RegionScore]],
    treated: str,
    control: str,
    metrics: Sequence[str],
    seed: int,
) -> Iterator[Contrast]:
    names = {(r.convention, r.region): None for r in arms[control] if r.region != "mean"}
    for convention in sorted({c for c, _ in names}):
        family = [
            contrast(
                arms, treated, control,
                Endpoint(region=region, metric=metric, convention=convention), seed=seed,
            )
            for own, region in names if own == convention
            for metric in metrics
        ]  # fmt: skip
        adjusted = statistics.holm([c.p_value for c in family])
        yield from (replace(c, p_holm=p) for c, p in zip(family, adjusted, strict=True))
