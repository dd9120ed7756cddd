"""The section on generated scans, beside real ones."""

from __future__ import annotations

import csv

from synth.data.case import Case
from synth.evaluate.scans.tables import MIN_SET_SIZE
from synth.study.report.cohort import case_strip, evenly, height_of
from synth.study.report.html import Html, Source, joined, more, number, tag, tile
from synth.study.report.pictures import finished
from synth.study.report.section import Section, folded_tables, how_near, in_plain_words, missing
from synth.study.report.study import Study

MADE, REAL = 2, 2
PICTURES = {
    "page.png": (
        "Real and made rows mixed",
        "Rows of real and of made scans in mixed order",
        "Which rows are made is written beside them; cover the names and guess.",
    ),
    "spectra.png": (
        "Detail, scale by scale",
        "Energy of details of each contrast, made and real",
        "Haar details in the brain, mean ± sd over cases: too low at the left is blur.",
    ),
    "intensities.png": (
        "Brightness of the tumour's regions",
        "Brightness of the regions of every case, made and real",
        "In sd of the healthy brain of the same scan; a dot is a case.",
    ),
}


def section(study: Study) -> Section:
    """Show made scans, and what sets them apart from real ones."""
    made = [case for case in study.cases("synthetic") if "t1n" in case.files]
    parts = []
    if not study.has("lora"):
        parts.append(missing(study, "lora", "adapter to a site"))
    if made:
        parts += [_pair(study, case) for case in evenly(made, MADE)]
        if study.has("cohort"):
            real = [case for case in study.cases("cohort") if "t1n" in case.files]
            parts += [case_strip(case, "real") for case in evenly(real, REAL)]
    else:
        parts.append(missing(study, "synthetic", "synthetic scans"))
    found = study.summary("synthetic_eval")
    if found is None:
        parts.append(missing(study, "synthetic_eval", "judgement of synthetic scans"))
    else:
        parts = [
            _tiles(found), *parts, _memory(study, found), *_pictures(study),
            folded_tables(study, "synthetic_eval"),
        ]  # fmt: skip
    return Section(
        id="synthesis", title="Synthetic scans",
        lead="Four contrasts, drawn for a label map or with its tumour painted into the scans of "
        "a brain. They should be as far from real scans as real ones are from each other, as "
        "varied, and copies of none. Real means those of the cohort: in a demo, made-up patients.",
        body=joined(*parts),
    )  # fmt: skip


def _pair(study: Study, made: Case) -> Html:
    """Show a made case; one whose tumour was painted into a brain, under that brain."""
    record = study.source(f"synthetic/records/{made.id}.json")
    host = study.known.get(record.values.get("into", "")) if record else None
    if host is None or "t1n" not in host.files:
        return case_strip(made, "made")
    height = height_of(made)
    return joined(
        case_strip(host, "before", height=height),
        case_strip(made, "after, the tumour of its label map painted in", height=height),
    )


def _tiles(found: Source) -> Html:
    beside = joined("beside ", found.figure("real", "cases", form="d"), " real ones")
    tiles = [tile(found.figure("generated", "cases", form="d"), "scans judged", beside)]
    if found.get().get("two_sample"):
        apart = ("two_sample", "made", "auc")
        tiles.append(
            tile(found.figure(*apart, form=".2f"), "told from real scans (AUC)",
                 joined(found.get().get("looked_at", "outside the tumour"),
                        "; 0.5: a classifier cannot, 1: it always can"))
        )  # fmt: skip
    if found.get("generated").get("kid"):
        tiles.append(
            tile(found.figure("generated", "kid", "value"), "KID to real scans",
                 joined("halves of the real scans stay within ",
                        found.figure("real", "halves", "kid", "high")))
        )  # fmt: skip
    pairs = ("ms_ssim", "pairs", "mean")
    tiles.append(
        tile(found.figure("generated", *pairs, form=".3f"), "MS-SSIM of pairs",
             joined("real pairs: ", found.figure("real", *pairs, form=".3f")))
    )  # fmt: skip
    if "copied" in found.get("generated"):
        tiles.append(
            tile(found.figure("generated", "copied", form="d"), "copies of training scans",
                 joined("nearer than ", found.figure("copy_distance", form=".2f")))
        )  # fmt: skip
    else:
        tiles.append(tile("–", "copies of training scans", "not looked for: --train or --split"))
    few = min(found.get(which)["cases"] for which in ("generated", "real")) < MIN_SET_SIZE
    told = f"Sets of fewer than {MIN_SET_SIZE} scans show large differences only." if few else ""
    return joined(
        tag("div", *tiles, class_="tiles"), in_plain_words(verdict(found)),
        tag("p", told, class_="note") if few else "",
    )  # fmt: skip


def verdict(found: Source) -> Html | None:
    """Say in plain words whether made scans are apart from real ones; None without a KID.

    What halves of the real scans stay within is set beside the whole interval.
    """
    kid = found.get("generated").get("kid")
    if not kid:
        return None
    reach = found.get("real", "halves", "kid", "high")
    said = how_near(kid["low"], kid["high"], reach, "scans")
    value, low, high = (found.figure("generated", "kid", k) for k in ("value", "low", "high"))
    return joined(
        "the ", found.figure("generated", "cases", form="d"), f" synthetic scans {said} (KID ",
        value, " [", low, ", ", high, "], halves of the real ones stay within ",
        found.figure("real", "halves", "kid", "high"), ")",
    )  # fmt: skip


def _memory(study: Study, found: Source) -> Html:
    """Show the made scan that is nearest to a training scan, beside that one."""
    head = tag("h3", "Is one of them a copy?")
    near = _nearest(study)
    if near is None:
        words = "Not known: the training scans were not given to the judge (--train or --split)."
        return joined(head, tag("p", words, class_="missing"))
    made, training, distance = near
    made_by = found.figure("generated", "nearest_distance", "mean", form=".3f")
    unseen = found.figure("real", "nearest_distance", "mean", form=".3f")
    words = tag(
        "p", "Distance is 1 − correlation of what is left of two brains when the mean brain is "
        "taken away, mirrored or not. Made scans are on average ", made_by, " from the nearest "
        "training scan, unseen real ones ", unseen, "; below ",
        found.figure("copy_distance", form=".3f"), " a scan counts as a copy. The nearest pair of "
        f"all, {number(distance, '.3f')} apart, both cut at the same height:",
    )  # fmt: skip
    cases = {case.id: case for part in ("synthetic", "cohort", "masks", "train")
             for case in study.cases(part)}  # fmt: skip
    height = height_of(cases[made]) if made in cases else None
    shown = [_found(cases.get(name), name, kind, height)
             for name, kind in ((made, "made"), (training, "trained on"))]  # fmt: skip
    return joined(head, words, *shown)


def _found(case: Case | None, name: str, kind: str, height: float | None) -> Html:
    if case is None:
        return tag("p", f"{name} ({kind}) is not in this study's folder.", class_="note")
    return case_strip(case, kind, height=height)


def _nearest(study: Study) -> tuple[str, str, float] | None:
    path = study.root / "synthetic_eval" / "per_case.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [
            (row["case"], row["nearest_training"], float(row["nearest_distance"]))
            for row in csv.DictReader(lines)
            if row["set"] == "generated" and row.get("nearest_training")
        ]
    return min(rows, key=lambda row: row[2], default=None)


def _pictures(study: Study) -> list[Html]:
    folder = study.root / "synthetic_eval"
    return [
        more(summary, finished(folder / name, alt, caption))
        for name, (summary, alt, caption) in PICTURES.items()
        if (folder / name).is_file()
    ]
