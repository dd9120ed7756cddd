"""Three sentences for whoever reads no further: what was made, can it be trusted, does it help."""

from __future__ import annotations

from synth.report.html import Html, Source, joined, tag
from synth.report.inpainting import FILLED, PREDICTION, best_fill
from synth.report.study import Study


def summary(study: Study) -> Html:
    """Return the three sentences; what is not there is said to be not there."""
    return joined(
        tag("p", _made(study)), tag("p", _trusted(study)), tag("p", _helps(study), class_="verdict")
    )


def _made(study: Study) -> str:
    counts = {
        "generated label maps or masks": len(study.cases("masks")),
        "tumours placed in brains": len(study.cases("tumours")),
        "scans with tissue painted in": len(_filled(study)),
        "synthetic cases": len(study.cases("synthetic")),
    }
    made = [f"{count} {name}" for name, count in counts.items() if count]
    cohort = len(study.cases("cohort"))
    begun = f"From {cohort} cases" if cohort else "Without a cohort"
    return f"{begun} this study made {_list(made) if made else 'nothing yet'}."


def _trusted(study: Study) -> Html:
    parts: list[str] = []
    filled, scans = study.summary("inpainted_eval"), study.summary("synthetic_eval")
    if filled is not None and PREDICTION in filled.get("methods"):
        parts.append(_painted(filled))
    masks = study.summary("masks_eval")
    for found, name, total in ((masks, "masks", "masks"), (scans, "scans", "cases")):
        if found is not None and "copied" in found.get("generated"):
            parts.append(
                joined("of ", found.figure("generated", total, form="d"), f" generated {name} ",
                       found.figure("generated", "copied", form="d"), " copy a training case")
            )  # fmt: skip
    if not parts:
        return Html("Whether they can be trusted has not been judged yet.")
    sentence = joined(*(part for i, p in enumerate(parts) for part in (", and " if i else "", p)))
    return Html(f"{sentence[0].upper()}{sentence[1:]}.")


def _painted(found: Source) -> Html:
    place = (PREDICTION, "psnr_01", "mean")
    said = joined("painted tissue reaches a PSNR of ", found.figure("methods", *place, form=".2f"),
                  " dB")  # fmt: skip
    best = best_fill(found)
    if best is None:
        return said
    fill = found.figure("methods", best, "psnr_01", "mean", form=".2f")
    mean, low, high = (
        found.figure("prediction_minus", best, "psnr_01", part, form="+.2f")
        for part in ("mean", "low", "high")
    )
    return joined(
        said, f" where the best fill without a network ({best}) reaches ", fill, " (", mean, " [",
        low, ", ", high, "] over ", found.figure("cases", form="d"), " cases)",
    )  # fmt: skip


def _helps(study: Study) -> str:
    found = study.summary("comparison")
    if found is None or not found.get("verdicts"):
        return "Whether synthetic data helps a segmentation model has not been tested yet."
    return next(iter(found.get("verdicts").values()))


def _filled(study: Study) -> list[str]:
    return [p.name for p in (study.root / "inpainted").rglob(f"*{FILLED}")]


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
