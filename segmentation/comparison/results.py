"""Writes the results of a comparison: sentences, tables, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segmentation.comparison.training_mix import ARMS
from segmentation.comparison.trainings import BASE, Comparison, late_rise, read_arms
from synth.base.files import write_json, write_text
from synth.base.manifest import git_commit, versions
from synth.evaluate.common import as_json_tables
from synth.evaluate.comparison import ArmComparison, as_json, compare, contrast_rows
from synth.evaluate.comparison_endpoints import PRIMARY, Endpoint, pair
from synth.evaluate.comparison_pictures import forest, paired_lines
from synth.evaluate.segmentation_scores import REGIONS, RegionScore, mean_of, write_scores
from synth.evaluate.tables import markdown_table, plain_table

STILL_RISING = 0.01
"""Dice that a training gains in its last quarter if it ended too early."""
CONTROLS = ("duplicated", "augmented")
"""Arms whose gain the synthetic arm must exceed, if it is not to be a matter of more data."""


def conclude(comparison: Comparison) -> str:
    """Evaluate finished arms and write the results below OUT; return the sentences."""
    out, arms = comparison.out, read_arms(comparison)
    pairs = [(arm, BASE) for arm in comparison.arms if arm != BASE]
    pairs += [("synthetic", c) for c in CONTROLS if {"synthetic", c} <= set(comparison.arms)]
    found = {f"{a} against {b}": compare(arms, a, b) for a, b in pairs}
    rows = [replace(r, case=f"{arm}/{r.case}") for arm, own in arms.items() for r in own]
    write_scores(out / "per_case.csv", rows)
    for (treated, control), own in zip(pairs, found.values(), strict=True):
        _draw(out, arms, own, treated, control)
    words = "\n".join([*(c.verdict for c in found.values()), *_unfinished(comparison)])
    overview = _overview(arms)
    contrasts = [(_ranks(c), contrast_rows([c.primary, *c.secondary])) for c in found.values()]
    summary: dict[str, Any] = {
        **comparison.settings(),
        "meaning": [f"{arm}: {ARMS[arm]}" for arm in comparison.arms],
        "primary": str(PRIMARY),
        "cases": {
            str(f): {"train": len(c.train), "inner": len(c.inner), "tested": len(c.tested),
                     "made": len(c.made), "unused": c.unused}
            for f, c in comparison.cohorts.items()
        },
        "unfinished": _unfinished(comparison),
        "means": {arm: _means(rows) for arm, rows in arms.items()},
        "verdicts": {name: c.verdict for name, c in found.items()},
        "comparisons": {name: as_json(c) for name, c in found.items()},
        "versions": versions(), "git_commit": git_commit(),
        "tables": as_json_tables([("arms", overview), *contrasts]),
    }  # fmt: skip
    write_json(out / "summary.json", summary)
    parts = [words.replace("\n", "\n\n"), markdown_table(overview)]
    for name, (ranks, rows) in zip(found, contrasts, strict=True):
        parts += [f"## {name}", ranks, markdown_table(rows)]
    write_text(out / "table.md", "\n\n".join(parts) + "\n")
    return f"{plain_table(overview)}\n\n{words}"


def _unfinished(comparison: Comparison) -> list[str]:
    """Say that the segmenters would have learned more, if they would."""
    rise = late_rise(comparison)
    if rise is None or rise < STILL_RISING:
        return []
    return [
        f"The segmenters are undertrained: in the last quarter of {comparison.loop.steps} steps "
        f"the base's Dice still rose by {rise:.3f}. More steps may change every answer."
    ]


def _ranks(found: ArmComparison) -> str:
    ranks = ", ".join(f"{arm} {rank:.2f}" for arm, rank in found.ranks.items())
    return f"Mean rank, as BraTS ranks: {ranks}; p of the difference {found.rank_p:.2g}."


def _overview(arms: Mapping[str, list[RegionScore]]) -> list[list[str]]:
    lines = [["arm", *(f"Dice {r}" for r in REGIONS), "Dice", "HD95, mm", "lesion Dice"]]
    for arm, rows in arms.items():
        means = _means(rows)
        cells = [f"{means[f'dice_{r}']:.3f}" for r in REGIONS]
        cells += [f"{means['dice']:.3f}", f"{means['hd95']:.1f}", f"{means['lesion_dice']:.3f}"]
        lines.append([arm, *cells])
    return lines


def _means(rows: list[RegionScore]) -> dict[str, float]:
    own = [r for r in rows if r.convention == PRIMARY.convention] or rows
    found = {
        f"dice_{name}": mean_of(r.values["dice"] for r in own if r.region == name)
        for name in REGIONS
    }
    whole = [r for r in own if r.region == "mean"]
    names = ("dice", "hd95", "lesion_dice")
    return found | {n: mean_of(r.values.get(n, float("nan")) for r in whole) for n in names}


def _draw(
    out: Path, arms: Mapping[str, list[RegionScore]], found: ArmComparison, treated: str,
    control: str,
) -> None:  # fmt: skip
    name, title = f"{treated}-{control}", f"{treated} against {control}"
    first = found.primary.endpoint.convention
    shown = [c for c in found.secondary if c.endpoint.convention == first]
    forest([found.primary, *shown], out / f"forest-{name}.png", title=title)
    wanted = [PRIMARY, *(Endpoint(region=r) for r in REGIONS)]
    paired = {str(e): pair(arms[control], arms[treated], e) for e in wanted}
    paired_lines(paired, out / f"pairs-{name}.png", control=control, treated=treated, title=title)
