"""The tables that `synth evaluate synthesis` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synth.data.case import MODALITIES
from synth.evaluate.scans.scan_case import LEVELS
from synth.evaluate.tables import mean_sd

Rows = list[list[str]]

SETS_HEAD = (
    "Scans against unseen real ones. KID and MMD² are unbiased, with a bootstrap interval; the "
    "last line has what random halves of the real cases stay within. FID is that of equally many "
    "cases, after the slash that of real ones among themselves. MS-SSIM is of pairs: equal is the "
    "goal. Signs: contrasts to the brain as real cases have them. z: median of the largest."
)
DICE_HEAD = "Dice of the segmenter against the labels: the real line is what it can reach."
TEXTURE_HEAD = "Energy of Haar details in the brain, made over real; level 1 is the finest."
REGIONS_HEAD = (
    "Brightness of regions, mean ± sd over cases: tumour in sd of the healthy brain above it, "
    "brain as a share of its 99.5th percentile; levels are log10 of that percentile in the file's "
    "unit."
)
APART_HEAD = (
    "Can a classifier tell the scans from real ones, {place}? 0.5: it cannot, 1: it always can. "
    "The lines of real scans say whether to believe it: what 95 % of halves lie within is luck."
)
APART_NAMES = {
    "made": "made, from real",
    "real": "halves of the real, from each other",
    "blurred": "real but blurred, from real (1 is right)",
    "noised": "real but with noise, from real (1 is right)",
    "exchanged": "real but with another's t1c, from real (1 is right)",
}
SETS = ("generated", "training", "real")
NAMES = {"real": "unseen real"}
MIN_SET_SIZE = 30  # cases in either set, below which KID tells large differences only


def tables(summary: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Return every table with its heading; the first three are for the terminal."""
    sets = {NAMES.get(name, name): summary[name] for name in SETS if name in summary}
    found = []
    if summary["two_sample"]:
        head = APART_HEAD.format(place=summary["looked_at"])
        found.append((head, _apart(summary["two_sample"])))
    found.append((f"{SETS_HEAD} Features: {summary['features']}.", _sets(sets)))
    if summary["real"]["seg_dice"] is not None:
        found.append((DICE_HEAD, _dice(sets)))
    made = summary["generated"]
    found.append((TEXTURE_HEAD, _texture(made["texture_ratio"])))
    found.append((REGIONS_HEAD, _regions(made["regions"])))
    return found


def headline(summary: Mapping[str, Any]) -> str:
    """Say the numbers that matter in one line, and how much such sets can tell."""
    made, real = summary["generated"], summary["real"]
    parts = []
    if summary.get("two_sample"):
        parts.append(f"told from real scans: {_auc(summary['two_sample']['made'])}")
    if made.get("kid"):
        parts.append(f"KID {_distance(made, 'kid')}, real halves {_distance(real, 'kid')}")
    if made["seg_dice"] is not None:
        reach = _of(real["seg_dice"], "mean")
        parts.append(f"Dice of the segmenter {_of(made['seg_dice'], 'mean')}, real {reach}")
    if "copied" in made:
        parts.append(f"copied: {made['copied']}")
    if min(made["cases"], real["cases"]) < MIN_SET_SIZE:
        parts.append(f"sets of fewer than {MIN_SET_SIZE} show large differences only")
    return "; ".join(parts)


def _sets(sets: Mapping[str, Mapping[str, Any]]) -> Rows:
    rows = [[
        "scans", "n", "KID [95 %]", "MMD² [95 %]", "FID", "MS-SSIM", "signs", "z intensity",
        "z texture", "nearest training", "copied",
    ]]  # fmt: skip
    for name, own in sets.items():
        rows.append([
            name, str(own["cases"]), _distance(own, "kid"), _distance(own, "mmd2"), _fid(own),
            _number(own["ms_ssim"]["pairs"]["mean"]), _of(own["signs"], "mean", 2),
            _of(own["z_intensity"], "median", 1), _of(own["z_texture"], "median", 1),
            _of(own.get("nearest_distance"), "mean"), str(own.get("copied", "–")),
        ])  # fmt: skip
    return rows


def _apart(found: Mapping[str, Mapping[str, float]]) -> Rows:
    rows = [["told apart", "AUC [95 %]"]]
    return rows + [[APART_NAMES[name], _auc(own)] for name, own in found.items()]


def _auc(own: Mapping[str, float]) -> str:
    return f"{own['auc']:.2f} [{own['low']:.2f}, {own['high']:.2f}]"


def _dice(sets: Mapping[str, Mapping[str, Any]]) -> Rows:
    names = ("seg_dice_WT", "seg_dice_TC", "seg_dice_ET", "seg_dice")
    rows = [["Dice", "WT", "TC", "ET", "mean"]]
    for name, own in sets.items():
        if own["seg_dice"] is not None:
            rows.append([name, *(mean_sd(own.get(n)) for n in names)])
    return rows


def _texture(ratios: Mapping[str, Mapping[str, Any]]) -> Rows:
    rows = [["made / real", *(f"level {level + 1}" for level in range(LEVELS))]]
    for m in MODALITIES:
        cells = [ratios[f"{m}_{level + 1}"] for level in range(LEVELS)]
        rows.append([m, *(
            "–" if c["ratio"] is None else f"{c['ratio']:.2f} [{c['low']:.2f}, {c['high']:.2f}]"
            for c in cells
        )])  # fmt: skip
    return rows


def _regions(regions: Mapping[str, Mapping[str, Any]]) -> Rows:
    rows = [["number", "made", "real", "difference, real sd", "W1 [95 %]"]]
    for name, own in regions.items():
        apart = own["wasserstein"]
        rows.append([
            name, mean_sd(own["made"]), mean_sd(own["real"]), _number(own["difference_sd"], 1),
            f"{apart['value']:.3f} [{apart['low']:.3f}, {apart['high']:.3f}]" if apart else "–",
        ])  # fmt: skip
    return rows


def _distance(own: Mapping[str, Any], name: str) -> str:
    if "halves" in own:
        return f"≤ {own['halves'][name]['high']:.3g}"
    found = own[name]
    return f"{found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"


def _fid(own: Mapping[str, Any]) -> str:
    found = own.get("fid")
    if not found or "left_out" in found:
        return "–"
    return f"{found['value']:.0f}/{found['real']:.0f} (n={found['cases']})"


def _of(found: Mapping[str, Any] | None, key: str, decimals: int = 3) -> str:
    return "–" if found is None else _number(found[key], decimals)


def _number(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"
