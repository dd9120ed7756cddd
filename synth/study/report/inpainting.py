"""The section on inpainting: before, after, uncertainty, metrics."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from synth.data.case import Case
from synth.data.volume import Volume
from synth.metrics.image import intensity_window
from synth.pictures import slices
from synth.pictures.inpainting import OUTLINES
from synth.study.report.html import Html, Source, joined, more, number, tag, tile
from synth.study.report.pictures import Panel, films, finished
from synth.study.report.section import Section, folded_tables, in_plain_words, missing
from synth.study.report.study import Study

PREDICTION = "prediction"
FILLED, SPREAD = "-t1n-inference.nii.gz", "-t1n-sd.nii.gz"
SHOWN = 3
SCORES = {"psnr_01": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".3f"), "mse": ("MSE", ".4f")}
CUT_OUT = "Outlined in blue: what was cut out and painted again."
OUTLINED = (
    "Outlined and cut out: healthy tissue in blue, the tumour and 5 mm around it in orange. Both "
    "are painted; only healthy tissue is judged. |error| stays black where the tumour was: what "
    "would be there without it is not known."
)
LIMIT = 0.3
"""Error and spread that are drawn white, as a share of the official window."""


def section(study: Study) -> Section:
    """Show filled brains, and what they score."""
    parts = []
    if study.has("inpainted"):
        parts.append(_cases(study))
    else:
        parts.append(missing(study, "inpainted", "tumour-free brains"))
    if not _spreads(study):
        parts.append(missing(study, "inpainted_draws", "draws of the same hole, to be compared,"))
    found = study.summary("inpainted_eval")
    if found is None:
        parts.append(missing(study, "inpainted_eval", "metrics of the painted tissue"))
    else:
        parts = [
            _tiles(found), in_plain_words(headline(found)), *parts, _overview(study),
            folded_tables(study, "inpainted_eval"),
        ]  # fmt: skip
    return Section(
        id="inpainting", title="Tumours removed",
        lead="Tissue is painted where the mask is, and nowhere else: every other voxel is the "
        "scan's own. The metrics are the challenge's, inside masks of healthy tissue, where the "
        "truth is known; a fill that needs no network is what there is to beat. Where a hole was "
        "painted several times, sd is how far those draws differ: bright where the model guesses.",
        body=joined(*parts),
    )  # fmt: skip


def best_fill(found: Source) -> str | None:
    """Return the classical fill with the highest mean PSNR."""
    fills = {
        name: values["psnr_01"]["mean"]
        for name, values in found.get("methods").items()
        if name != PREDICTION and values["psnr_01"]["mean"] is not None
    }
    return max(fills, key=lambda name: fills[name]) if fills else None


def verdict(found: Source) -> Html | None:
    """Say in plain words whether painting beats the best fill; None where there is none.

    The interval of PSNR decides; where the mean MSE points the other way, that is said as well.
    """
    best = best_fill(found) if PREDICTION in found.get("methods") else None
    if best is None:
        return None
    psnr, mse = ("prediction_minus", best, "psnr_01"), ("prediction_minus", best, "mse", "mean")
    mean, low, high = (found.get(*psnr, key) for key in ("mean", "low", "high"))
    count = found.figure(*psnr, "n", form="d")
    if low is None:
        return joined("too few cases (", count, ") to say whether it beats the best classical fill")
    if low <= 0 <= high:
        said = "no evidence that it beats"
    else:
        said = "it beats" if low > 0 else "it is worse than"
    ends = [found.figure(*psnr, key, form="+.2f") for key in ("mean", "low", "high")]
    parts = [
        f"{said} the best classical fill on these ", count, " cases (", ends[0], " dB [", ends[1],
        ", ", ends[2], "])",
    ]  # fmt: skip
    if (found.get(*mse) or 0) * mean > 0:  # more PSNR is better, more MSE is worse
        word = "worse" if found.get(*mse) > 0 else "better"
        parts += [f"; by mean MSE it is {word} (", found.figure(*mse, form="+.4f"), ")"]
    return joined(*parts)


def headline(found: Source) -> Html | None:
    """Say what painted tissue reaches and whether that is more than a fill does."""
    if PREDICTION not in found.get("methods"):
        return None
    place = ("psnr_01", "mean")
    ours = found.figure("methods", PREDICTION, *place, form=".2f")
    said = joined("painted tissue reaches a PSNR of ", ours, " dB")
    best, beaten = best_fill(found), verdict(found)
    if best is None or beaten is None:
        return said
    fill = found.figure("methods", best, *place, form=".2f")
    return joined(
        said, f" where the best fill without a network ({best}) reaches ", fill, ": ", beaten
    )


def _tiles(found: Source) -> Html:
    tiles = [tile(found.figure("cases", form="d"), "cases judged")]
    best = best_fill(found)
    judged = SCORES if PREDICTION in found.get("methods") else {}
    for metric, (name, form) in judged.items():
        against = ""
        if best:
            fill = found.figure("methods", best, metric, "mean", form=form)
            against = joined(f"{best}: ", fill)
        value = found.figure("methods", PREDICTION, metric, "mean", form=form)
        tiles.append(tile(value, f"{name}, mean", against))
    return tag("div", *tiles, class_="tiles")


def _overview(study: Study) -> Html:
    path = study.root / "inpainted_eval" / "overview.png"
    if not path.is_file():
        return Html()
    return more(
        "Every method on the same cases, from the best to the worst",
        finished(path, "Rows of cases: given, each fill, the answer, the truth and its error",
                 "Cases evenly from the best to the worst by MSE; error from black to white."),
    )  # fmt: skip


def _cases(study: Study) -> Html:
    chosen, spreads = _chosen(study), _spreads(study)
    parts = []
    for place, (case_id, why) in enumerate(chosen.items()):
        title = f"{case_id}{f', {why}' if why else ''}"
        case = study.known.get(case_id)
        if case is None or not {"t1n", "voided"} & case.files.keys():
            shown = tag("p", "Its scan is not in this study's folder.", class_="missing")
        else:
            shown = _case(study, case, place)
        summary = tag("summary", title)
        parts.append(
            tag("details", summary, shown, open="" if place == 0 or case_id in spreads else None)
        )
    return joined(*parts)


def _chosen(study: Study) -> dict[str, str]:
    """Return case → why it is shown: best, median and worst where they were judged.

    One that was drawn several times is among them.
    """
    made = {
        path.name.removesuffix(FILLED): path
        for path in sorted((study.root / "inpainted").rglob(f"*{FILLED}"))
    }
    errors = _errors(study.root / "inpainted_eval" / "per_case.csv")
    ranked = sorted((c for c in errors if c in made), key=lambda c: errors[c])
    if len(ranked) < SHOWN:
        found = dict.fromkeys(list(made)[:SHOWN], "")
    else:
        places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
        found = {
            ranked[i]: f"{word} of {len(ranked)} by MSE: {number(errors[ranked[i]], '.4f')}"
            for word, i in places.items()
        }
    spread = [case for case in _spreads(study) if case in made]
    if spread and not found.keys() & set(spread):
        found[spread[0]] = "painted several times"
    return found


def _spreads(study: Study) -> dict[str, Path]:
    """Return case → how far its draws differ, voxel by voxel."""
    return {
        path.name.removesuffix(SPREAD): path
        for part in ("inpainted", "inpainted_draws")
        for path in sorted((study.root / part).rglob(f"*{SPREAD}"))
    }


def _errors(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["method"] == PREDICTION]
    return {row["case"]: float(row["mse"]) for row in rows}


def _case(study: Study, case: Case, place: int) -> Html:
    path = study.file("inpainted", case.id + FILLED)
    assert path is not None
    after = Volume.load(path)
    before = case.load("t1n") if "t1n" in case.files else None
    hole = _hole(case, before, after)
    given = (before or after).with_data(np.where(hole.data, 0, (before or after).data))
    low, high = intensity_window(given.data[0])
    window = low, low + 1.2 * (high - low)  # the official window saturates white matter
    outline = _outline(case, hole)
    panels = [] if before is None else [_scan("before", before, window, outline)]
    panels += [_scan("given", given, window), _scan("after", after, window)]
    draw = study.file("inpainted_draws", case.id + FILLED)
    if draw is not None:
        panels.append(_scan("one draw", Volume.load(draw), window))
    if before is not None and "healthy" in case.files:
        healthy = case.load("healthy")
        error = np.abs(np.clip(after.data, low, high) - np.clip(before.data, low, high))
        share = after.with_data(np.where(healthy.data, error / (high - low), 0))
        panels.append(_heat(f"|error|, 0 to {LIMIT:g}", share))
    spread = _spreads(study).get(case.id)
    if spread is not None:
        sd = Volume.load(spread)
        panels.append(_heat(f"sd, 0 to {LIMIT:g}", sd.with_data(sd.data / (high - low))))
    note = tag("p", OUTLINED if "healthy" in case.files else CUT_OUT, class_="note")
    return joined(note, films(panels, hole, before or after, f"film{place}"))


def _outline(case: Case, hole: Volume) -> slices.Overlay:
    """Outline what is judged apart from the tumour, where that is known."""
    if "healthy" not in case.files:
        return slices.mask_overlay(hole)
    parts = np.where(case.load("healthy").data, 1, 2 * (hole.data > 0)).astype(np.uint8)
    return slices.Overlay(volume=hole.with_data(parts), colours=OUTLINES, outline=True)


def _hole(case: Case, before: Volume | None, after: Volume) -> Volume:
    """Return the mask; without one, the voxels that were painted."""
    if "mask" in case.files:
        return case.load("mask")
    before = before or case.load("voided")
    return after.with_data(after.data != before.data)


def _scan(
    name: str,
    volume: Volume,
    window: tuple[float, float],
    overlay: slices.Overlay | None = None,
) -> Panel:
    return Panel(
        caption=name,
        alt=f"t1n {name} painting",
        drawn=lambda plane, index, frame: slices.draw_slice(
            volume, plane, index, window=window, overlay=overlay, frame=frame
        ),
    )


def _heat(name: str, volume: Volume) -> Panel:
    return Panel(
        caption=name,
        alt=f"{name} of the official window",
        drawn=lambda plane, index, frame: slices.draw_slice(
            volume, plane, index, window=(0, LIMIT), frame=frame, heat=True
        ),
    )
