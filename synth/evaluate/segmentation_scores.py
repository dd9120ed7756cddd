"""Scores of a segmentation: one row a case, region and convention.

The numbers are those of `overlap.evaluate_regions`; here are the regions that each label scheme is
judged by, the rules of each challenge, the official names, and what happens to a number that does
not exist:

- 2023: a region that both masks leave empty is perfect (Dice 1, HD95 0); a region in one of them
  only is Dice 0, HD95 374 mm. Every number exists.
- 2025: a region that both leave empty is nan and in no mean, so a model that invents it gets 0 and
  one that does not gets nothing; a region in one of them only, and two masks that share no voxel,
  are Dice 0, HD95 373 mm. Lesion means run over matched lesions only.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.errors import SynthError
from synth.data.case import guess_scheme
from synth.data.labels import scheme_regions
from synth.evaluate.tables import mean_sd, spread, write_csv
from synth.metrics.overlap import evaluate_regions
from synth.metrics.surface import Convention

CONVENTIONS: tuple[Convention, ...] = ("2023", "2025")
REGIONS = ("WT", "TC", "ET")
"""The regions that every scheme has, and that means over regions are taken of."""

# Regions the official evaluation of 2025 judges besides those of the scheme.
MORE_REGIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "brats2024": {"NETC": (1,), "SNFH": (2,)},
    "ped2024": {"ED": (4,)},
}
# The 2023 script joins and ignores lesions otherwise in two of its challenges.
RULES_2023: dict[str, dict[str, float]] = {
    "BraTS-MEN": {"dilations": 1},
    "BraTS-MET": {"dilations": 1, "ignore_up_to_mm3": 2},
}

# metric → (heading, decimals, whether more is better; None where it is not a score)
METRICS: dict[str, tuple[str, int, bool | None]] = {
    "dice": ("Dice", 3, True),
    "hd95": ("HD95 mm", 1, False),
    "nsd_0.5mm": ("NSD 0.5 mm", 3, True),
    "nsd_1mm": ("NSD 1 mm", 3, True),
    "lesion_dice": ("lesion Dice", 3, True),
    "lesion_hd95": ("lesion HD95 mm", 1, False),
    "lesion_nsd_1mm": ("lesion NSD 1 mm", 3, True),
    "tp": ("tp", 0, None),
    "fp": ("fp", 0, None),
    "fn": ("fn", 0, None),
    "f1": ("F1", 3, True),
    "precision": ("precision", 3, True),
    "recall": ("recall", 3, True),
    "sensitivity": ("sensitivity", 3, True),
    "specificity": ("specificity", 5, True),
    "ref_ml": ("truth ml", 1, None),
    "pred_ml": ("predicted ml", 1, None),
}
COUNTS = ("tp", "fp", "fn")
SHOWN = (
    "dice", "hd95", "nsd_0.5mm", "nsd_1mm", "lesion_dice", "lesion_hd95", "lesion_nsd_1mm", "f1",
)  # fmt: skip
MEANED = ("dice", "hd95", "nsd_0.5mm", "nsd_1mm", "lesion_dice", "lesion_hd95", "lesion_nsd_1mm")
"""Whose mean over WT, TC and ET is taken case by case."""

# What each official evaluation calls our numbers.
OFFICIAL: dict[Convention, dict[str, str]] = {
    "2023": {
        "dice": "Legacy_Dice", "hd95": "Legacy_HD95", "lesion_dice": "LesionWise_Score_Dice",
        "lesion_hd95": "LesionWise_Score_HD95", "tp": "Num_TP", "fp": "Num_FP", "fn": "Num_FN",
        "sensitivity": "Sensitivity", "specificity": "Specificity",
    },
    "2025": {
        "dice": "global_dsc", "hd95": "global_hd95", "nsd_0.5mm": "global_nsd",
        "lesion_dice": "lesionwise_dsc_mean", "lesion_hd95": "lesionwise_hd95_mean",
        "lesion_nsd_1mm": "lesionwise_nsd_mean", "tp": "all_instance_tp", "fp": "all_instance_fp",
        "fn": "all_instance_fn", "f1": "all_instance_f1", "precision": "all_instance_prec",
        "recall": "all_instance_rec",
    },
}  # fmt: skip
POLICY: dict[Convention, str] = {
    "2023": "Both empty: Dice 1, HD95 0; one empty: Dice 0, HD95 374 mm; in lesion means every "
    "missed or false lesion counts as Dice 0, HD95 374 mm, reference lesions of up to 50 mm³ (MET "
    "2) do not count",
    "2025": "Both empty: nan, in no mean (n says over how many cases it is); one empty or no "
    "common voxel: Dice 0, HD95 373 mm; lesion means are over matched lesions only: read tp, fp, "
    "fn beside them",
}


@dataclass(frozen=True, kw_only=True)
class RegionScore:
    """What a prediction earned on one region of one case, by one convention."""

    case: str
    patient: str
    region: str
    """WT, TC, ET …, or `mean`: over WT, TC and ET, as far as they have the number."""
    convention: Convention
    values: Mapping[str, float]
    fold: int | None = None
    seed: int | None = None
    """Of the training run, where several are compared."""


def judged_regions(scheme: str) -> dict[str, tuple[int, ...]]:
    """Return region → labels that a scheme is judged by, WT, TC, ET first."""
    return scheme_regions(scheme) | MORE_REGIONS.get(scheme, {})


def score_labels(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[float],
    convention: Convention,
    *,
    case: str,
    patient: str = "",
    scheme: str = "auto",
) -> list[RegionScore]:
    """Score a label map (X, Y, Z) region by region, and their mean.

    The case id chooses the challenge's rules, and the scheme if that is `auto`. A label that is
    not of the scheme is an error.
    """
    regions = judged_regions(guess_scheme(case) if scheme == "auto" else scheme)
    rules = next((r for start, r in RULES_2023.items() if case.startswith(start)), {})
    pred, ref = np.asarray(pred), np.asarray(ref)
    found = evaluate_regions(pred, ref, regions, spacing_mm, convention, rules)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    sizes = [np.bincount(labels.ravel(), minlength=max(map(max, regions.values())) + 1)
             for labels in (pred, ref)]  # fmt: skip
    rows = {
        name: values
        | _voxelwise(pred, ref, regions[name], [int(n[list(regions[name])].sum()) for n in sizes],
                     convention, voxel_ml)
        for name, values in found.items()
    }  # fmt: skip
    rows["mean"] = {m: mean_of(rows[r][m] for r in REGIONS) for m in MEANED}
    return [
        RegionScore(
            case=case, patient=patient or case, region=name, convention=convention, values=values
        )
        for name, values in rows.items()
    ]


def mean_of(values: Iterable[float]) -> float:
    """Return the mean of the finite values; nan if there is none."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else np.nan


def summarise(rows: Sequence[RegionScore]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return convention → region → metric → `spread`; tp, fp and fn as sums."""
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for (convention, region), own in grouped(rows).items():
        cells: dict[str, Any] = {"cases": len(own)}
        for metric in own[0].values:
            column = np.array([row.values.get(metric, np.nan) for row in own])
            cells[metric] = int(column.sum()) if metric in COUNTS else spread(column)
        summary.setdefault(convention, {})[region] = cells
    return summary


def grouped(rows: Iterable[RegionScore]) -> dict[tuple[Convention, str], list[RegionScore]]:
    """Return (convention, region) → its rows, in the order of appearance; `mean` last."""
    found: dict[tuple[Convention, str], list[RegionScore]] = {}
    for row in rows:
        found.setdefault((row.convention, row.region), []).append(row)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] == "mean")))


def table_rows(summary: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return one convention's table: heading, then a line a region with mean ± sd and counts."""
    rows = [["region", "cases", *(METRICS[m][0] for m in SHOWN), "tp/fp/fn"]]
    for region, cells in summary.items():
        line = [region, str(cells["cases"])]
        line += [
            mean_sd(cells[m], METRICS[m][1], none="none", counted=True) if m in cells else ""
            for m in SHOWN
        ]
        rows.append([*line, "/".join(str(cells[c]) for c in COUNTS) if "tp" in cells else ""])
    return rows


def score_lines(rows: Sequence[RegionScore]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and a line a case, region and convention, in full precision (nan as such)."""
    extra = [name for name in ("fold", "seed") if any(getattr(r, name) is not None for r in rows)]
    lines = [
        [
            row.case, row.patient, *(getattr(row, name) for name in extra), row.region,
            row.convention,
            *(float(row.values[m]) if m in row.values else "" for m in METRICS),
        ]
        for row in rows
    ]  # fmt: skip
    return ["case", "patient", *extra, "region", "convention", *METRICS], lines


def write_scores(path: Path, rows: Sequence[RegionScore]) -> Path:
    """Write scores as csv."""
    return write_csv(path, *score_lines(rows))


def read_scores(path: Path) -> list[RegionScore]:
    """Read what `write_scores` wrote."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            table = csv.DictReader(lines)
            if "convention" not in (table.fieldnames or ()):
                raise KeyError("convention")
            return [_row(cells) for cells in table]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise SynthError(
            f"{path}: not a table of scores: {error!r}",
            hint="it is written by `synth evaluate segmentation` as per_case.csv",
        ) from error


def _row(cells: Mapping[str, str]) -> RegionScore:
    if cells["convention"] not in CONVENTIONS:
        raise ValueError(f"convention {cells['convention']!r}")
    whole = {name: int(cells[name]) if cells.get(name) else None for name in ("fold", "seed")}
    return RegionScore(
        case=cells["case"], patient=cells["patient"], region=cells["region"],
        convention="2023" if cells["convention"] == "2023" else "2025",
        values={m: float(cells[m]) for m in METRICS if cells.get(m)}, **whole,
    )  # fmt: skip


def _voxelwise(
    pred: np.ndarray,
    ref: np.ndarray,
    labels: Sequence[int],
    sizes: Sequence[int],
    convention: Convention,
    voxel_ml: float,
) -> dict[str, float]:
    """Sensitivity, specificity and volumes, from three counts of voxels."""
    pred_voxels, ref_voxels = sizes
    hits = int((np.isin(pred, labels) & np.isin(ref, labels)).sum()) if min(sizes) else 0
    outside = ref.size - ref_voxels
    empty = 1.0 if convention == "2023" and not pred_voxels else np.nan
    if convention == "2023" and pred_voxels:
        empty = 0.0  # the script divides by the smallest float there is instead of by zero
    return {
        "sensitivity": hits / ref_voxels if ref_voxels else empty,
        "specificity": 1 - (pred_voxels - hits) / outside if outside else np.nan,
        "ref_ml": ref_voxels * voxel_ml,
        "pred_ml": pred_voxels * voxel_ml,
    }
