"""Tables of many methods on the same cases: means and paired differences.

Values that are not finite (a perfect answer has an infinite PSNR) cannot enter a mean: they are
left out of mean, sd and median, and counted beside them; so are pairs in which either value is not
finite.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.files import atomic_path
from synth.metrics.statistics import intervals, patient_means, signed_rank

NON_FINITE = (
    "values that are not finite are left out of mean, sd and median and counted as non_finite; "
    "pairs that hold one are left out of the differences and counted as excluded"
)
# metric → heading and decimals in the table
SHOWN = {
    "ssim": ("SSIM", 3), "psnr_01": ("PSNR dB", 2), "mse": ("MSE", 4), "rmse": ("RMSE", 3),
    "mae": ("MAE", 3), "sharpness": ("sharpness", 2), "tissue_error": ("tissue error", 3),
    "registration_mm": ("registration mm", 2),
}  # fmt: skip
USE = ("sharpness", "tissue_error", "registration_mm")
"""Metrics that are there only where asked for."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one method earned on one case."""

    case: str
    method: str
    values: Mapping[str, float]
    voxels: int
    """Voxels that were judged."""
    seconds: float | None = None
    """Time to compute the answer, where we did."""
    patient: str = ""
    """Whose case it is; without, a patient of its own."""


def spread(values: np.ndarray) -> dict[str, float | int | None]:
    """Return mean, sd (n − 1), median of the finite values; None where too few are left."""
    finite = values[np.isfinite(values)]
    n = len(finite)
    return {
        "mean": float(finite.mean()) if n else None,
        "sd": float(finite.std(ddof=1)) if n > 1 else None,
        "median": float(np.median(finite)) if n else None,
        "n": n,
        "non_finite": len(values) - n,
    }


def summarise(scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Return method → metric → `spread`, and the mean seconds, in the order of appearance."""
    summary: dict[str, dict[str, Any]] = {}
    for method, own in _by_method(scores).items():
        rows = list(own.values())
        summary[method] = {m: spread(_column(rows, m)) for m in rows[0].values}
        seconds = [s.seconds for s in rows if s.seconds is not None]
        summary[method]["seconds"] = float(np.mean(seconds)) if seconds else None
    return summary


def differences(
    scores: Sequence[Score], method: str, metrics: Sequence[str], *, seed: int = 0
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return other method → metric → mean of `method` − other over cases, 95 % interval, p."""
    by_method = _by_method(scores)
    own = by_method.pop(method)
    return {
        other: {m: _difference(own, theirs, m, seed) for m in metrics}
        for other, theirs in by_method.items()
    }


def _difference(
    own: Mapping[str, Score], theirs: Mapping[str, Score], metric: str, seed: int
) -> dict[str, float | int | None]:
    cases = [c for c in own if c in theirs]
    a, b = (_column([side[c] for c in cases], metric) for side in (own, theirs))
    finite = np.isfinite(a) & np.isfinite(b)
    d = (a - b)[finite]
    patients = [own[c].patient or c for c, kept in zip(cases, finite, strict=True) if kept]
    # One patient has a mean, but nothing says how sure it is.
    spread = intervals(d, patients, seed=seed) if len(d) else None
    low, high = spread.mean if spread else (None, None)
    p = signed_rank(patient_means(d, patients)).p_value if spread else None
    return {
        "mean": float(d.mean()) if len(d) else None, "low": low, "high": high, "p_value": p,
        "n": len(d), "excluded": int((~finite).sum()),
    }  # fmt: skip


def method_rows(summary: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of methods: heading first, then mean ± sd of every shown metric."""
    there = next(iter(summary.values()))
    shown = {m: how for m, how in SHOWN.items() if m in there}
    rows = [["method", *(heading for heading, _ in shown.values()), "cases", "s/case"]]
    for method, metrics in summary.items():
        cells = [
            mean_sd(metrics[m], decimals, none="not finite", counted=True)
            for m, (_, decimals) in shown.items()
        ]
        first = metrics[next(iter(SHOWN))]
        seconds = metrics["seconds"]
        rows.append([
            method, *cells, str(first["n"] + first["non_finite"]),
            "" if seconds is None else f"{seconds:.2f}",
        ])  # fmt: skip
    return rows


def difference_rows(method: str, found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of paired differences: mean [95 % interval], p of every metric."""
    metrics = list(next(iter(found.values()), {}))
    rows = [[f"{method} minus", *(SHOWN[m][0] for m in metrics)]]
    rows += [
        [other, *(_interval(values[m], SHOWN[m][1]) for m in metrics)]
        for other, values in found.items()
    ]
    return rows


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Write rows as a Markdown table; the first is the heading."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def write_csv(path: Path, heading: Sequence[str], lines: Iterable[Sequence[object]]) -> Path:
    """Write lines as CSV, floats in full precision (inf and nan as such)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(
        [repr(float(c)) if isinstance(c, float) else c for c in line] for line in lines
    )
    return write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def mean_sd(
    found: Mapping[str, Any] | None, decimals: int = 3, *, none: str = "–", counted: bool = False
) -> str:
    """Write a mean ± sd; `counted` says of how many, where some were left out."""
    if found is None or found["mean"] is None:
        return none
    sd = "" if found["sd"] is None else f" ± {found['sd']:.{decimals}f}"
    of = f" (n={found['n']})" if counted and found["non_finite"] else ""
    return f"{found['mean']:.{decimals}f}{sd}{of}"


def _by_method(scores: Sequence[Score]) -> dict[str, dict[str, Score]]:
    grouped: dict[str, dict[str, Score]] = {}
    for score in scores:
        grouped.setdefault(score.method, {})[score.case] = score
    return grouped


def _column(scores: Sequence[Score], metric: str) -> np.ndarray:
    return np.array([s.values[metric] for s in scores], float)


def _interval(found: Mapping[str, Any], decimals: int) -> str:
    if found["mean"] is None:
        return "no finite pair"
    text = f"{found['mean']:+.{decimals}f}"
    if found["low"] is not None:
        text += f" [{found['low']:+.{decimals}f}, {found['high']:+.{decimals}f}]"
        text += f" p={found['p_value']:.2g}"
    return text + (f" (n={found['n']})" if found["excluded"] else "")
