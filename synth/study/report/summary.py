"""The summary: a few sentences on all sections."""

from __future__ import annotations

from synth.study.report import inpainting, masks, synthesis
from synth.study.report.html import Html, Source, joined, sentence, tag
from synth.study.report.inpainting import FILLED
from synth.study.report.study import Study


def summary(study: Study) -> Html:
    """Return the sentences; what is not there is said to be not there."""
    return joined(
        tag("p", _made(study)), tag("p", _trusted(study)), tag("p", _helps(study), class_="verdict")
    )


def _made(study: Study) -> str:
    masks = study.cases("masks")
    healthy = sum("healthy" in case.files for case in masks)
    counts = {
        "generated tumours": len(masks) - healthy,
        "generated healthy masks": healthy,
        "tumours placed in brains": len(study.cases("tumours")),
        "scans with tissue painted in": len(_filled(study)),
        "synthetic cases": len(study.cases("synthetic")),
    }
    made = [f"{count} {name}" for name, count in counts.items() if count]
    cohort = len(study.cases("cohort"))
    begun = f"From {cohort} cases" if cohort else "Without a cohort"
    return f"{begun} this study made {_list(made) if made else 'nothing yet'}."


def _trusted(study: Study) -> Html:
    painted, drawn = study.summary("inpainted_eval"), study.summary("masks_eval")
    scans = study.summary("synthetic_eval")
    said = (
        inpainting.headline(painted) if painted else None,
        _copied(drawn, masks.verdict(drawn), "masks") if drawn else None,
        _copied(scans, synthesis.verdict(scans), "cases") if scans else None,
    )
    sentences = [sentence(words) for words in said if words]
    if not sentences:
        return Html("Whether they can be trusted has not been judged yet.")
    return Html(" ".join(sentences))


def _copied(found: Source, verdict: Html | None, total: str) -> Html | None:
    """Add to a verdict how many of the made cases are copies, where that was looked for."""
    if "copied" not in found.get("generated"):
        return verdict
    copied = found.figure("generated", "copied", form="d")
    if verdict is not None:
        return joined(verdict, "; ", copied, " of them copy a training case")
    name = {"masks": "generated masks", "cases": "generated scans"}[total]
    count = found.figure("generated", total, form="d")
    return joined("of ", count, f" {name} ", copied, " copy a training case")


def _helps(study: Study) -> str:
    found = study.summary("comparison")
    if found is None and study.stage("comparison").get("state") == "running":
        return "Whether synthetic data helps a segmentation model is being tested: no answer yet."
    if found is None or not found.get("verdicts"):
        return "Whether synthetic data helps a segmentation model has not been tested yet."
    words = next(iter(found.get("verdicts").values()))
    return " ".join([words, *found.values.get("unfinished", ())])


def _filled(study: Study) -> list[str]:
    return [p.name for p in (study.root / "inpainted").rglob(f"*{FILLED}")]


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
