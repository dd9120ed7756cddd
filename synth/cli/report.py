"""The verb report."""

from __future__ import annotations

from pathlib import Path


def report(study: Path, *, out: Path | None = None, title: str = "") -> int:
    """Write one self-contained page about a study: pictures, figures, verdict, methods, cost.

    Reads what the other verbs wrote into the folders cohort, masks, masks_eval, tumours, inpainted,
    inpainted_draws, inpainted_eval, lora, synthetic, synthetic_eval and comparison of STUDY, and
    study.json, the list of stages. Each is optional: the page says which command makes what is
    missing. Nothing is fetched when it is opened, and nothing leaves. Exits with 2 when a section
    could not be written; the others are.

    Args:
        study: folder of the study.
        out: HTML file to write; an earlier one is replaced [STUDY/report.html].
        title: heading of the page [the folder's name].
    """
    from synth.study.report.page import write_report

    found = write_report(study, out or study / "report.html", title=title)
    print(f"{found.path} ({found.path.stat().st_size / 2**20:.1f} MB)")
    for problem in found.problems:
        print(problem)
    return 2 if found.problems else 0
