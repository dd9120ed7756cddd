"""Writes the results of a comparison: sentences, tables, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmentation.comparison.trainings import BASE, Study, described, rows_of
from synth.base.files import write_json, write_text
from synth.base.manifest import git_commit, versions
from synth.evaluate.common import as_json_tables
from synth.evaluate.comparison import ArmComparison, as_json, compare, contrast_rows
from synth.evaluate.comparison_endpoints import PRIMARY, Endpoint, pair
from synth.evaluate.comparison_pictures import forest, paired_lines
from synth.evaluate.segmentation_scores import REGIONS, RegionScore, mean_of, write_scores
from synth.evaluate.tables import markdown_table, plain_table

CONTROLS = ("duplicated", "augmented")
"""Arms whose gain the synthetic arm must exceed, if it is not to be a matter of more data."""


def conclude(study: Study) -> str:
    """Judge finished arms and write what came of it below OUT; return the words."""
    arms = rows_of(study)
    pairs = [(arm, BASE) for arm in study.arms if arm != BASE]
    pairs += [("synthetic", c) for c in CONTROLS if {"synthetic", c} <= set(study.arms)]
    found = {f"{a} against {b}": compare(arms, a, b) for a, b in pairs}
    write_scores(study.out / "per_case.csv", _labelled(arms))
    for treated, control in pairs:
        _draw(study.out, arms, found[f"{treated} against {control}"], treated, control)
    summary: dict[str, Any] = {
        **study.settings(),
        "arms": list(study.arms),
        "meaning": described(study.arms),
        "primary": str(PRIMARY),
        "cases": {
            str(f): {"train": len(c.train), "inner": len(c.inner), "tested": len(c.tested),
                     "made": len(c.made), "unused": c.unused}
            for f, c in study.cohorts.items()
        },
        "means": {arm: _means(rows) for arm, rows in arms.items()},
        "verdicts": {name: c.verdict for name, c in found.items()},
        "comparisons": {name: as_json(c) for name, c in found.items()},
        "versions": versions(), "git_commit": git_commit(),
    }  # fmt: skip
    words = "\n".join(c.verdict for c in found.values())
    table = _overview(arms)
    tables = [("arms", table), *((name, _contrasts(own)) for name, own in found.items())]
    write_json(study.out / "summary.json", summary | {"tables": as_json_tables(tables)})
    _write_tables(study.out / "table.md", found, table, words)
    return f"{plain_table(table)}\n\n{words}"


def _overview(arms: Mapping[str, list[RegionScore]]) -> list[list[str]]:
    heading = ["arm", *(f"Dice {r}" for r in REGIONS), "Dice", "HD95, mm", "lesion Dice"]
    lines = [heading]
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


def _labelled(arms: Mapping[str, list[RegionScore]]) -> list[RegionScore]:
    """Return all rows; the arm stands before the case's id."""
    from dataclasses import replace

    return [replace(r, case=f"{arm}/{r.case}") for arm, rows in arms.items() for r in rows]


def _draw(
    out: Path, arms: Mapping[str, list[RegionScore]], found: ArmComparison, treated: str,
    control: str,
) -> None:  # fmt: skip
    name = f"{treated}-{control}"
    title = f"{treated} against {control}"
    first = found.primary.endpoint.convention
    shown = [c for c in found.secondary if c.endpoint.convention == first]
    forest([found.primary, *shown], out / f"forest-{name}.png", title=title)
    wanted = [PRIMARY, *(Endpoint(region=r) for r in REGIONS)]
    paired = {str(e): pair(arms[control], arms[treated], e) for e in wanted}
    paired_lines(paired, out / f"pairs-{name}.png", control=control, treated=treated, title=title)


def _write_tables(
    path: Path, found: Mapping[str, ArmComparison], overview: list[list[str]], words: str
) -> None:
    parts = [words.replace("\n", "\n\n"), markdown_table(overview)]
    for name, own in found.items():
        ranks = ", ".join(f"{arm} {rank:.2f}" for arm, rank in own.ranks.items())
        parts += [
            f"## {name}",
            f"Mean rank, as BraTS ranks: {ranks}; p of the difference {own.rank_p:.2g}.",
            markdown_table(_contrasts(own)),
        ]
    write_text(path, "\n\n".join(parts) + "\n")


def _contrasts(found: ArmComparison) -> list[list[str]]:
    return contrast_rows([found.primary, *found.secondary])
