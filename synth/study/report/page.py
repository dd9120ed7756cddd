"""Writes the report of a study as one self-contained page.

Every part of the study's folder is optional; where one is missing the page says which command makes
it. Figures come from the files, pictures are in the page, nothing is fetched: patients' data do not
leave. The same folder gives the same page, byte for byte.
"""

from __future__ import annotations

import importlib.resources
import logging
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synth.base.errors import SynthError
from synth.base.files import atomic_path
from synth.base.version import __version__
from synth.study.report import account, cohort, comparison, inpainting, masks, synthesis
from synth.study.report.html import Html, escaped, tag
from synth.study.report.section import Section
from synth.study.report.study import Study
from synth.study.report.summary import summary
from synth.training.log import Progress

SECTIONS: dict[str, tuple[str, Callable[[Study], Section]]] = {
    "cohort": ("The cohort", cohort.section),
    "masks": ("Generated masks", masks.section),
    "inpainting": ("Tumours removed", inpainting.section),
    "synthesis": ("Synthetic scans", synthesis.section),
    "comparison": ("Does it help?", comparison.section),
    "methods": ("Methods", account.methods),
    "cost": ("Cost", account.cost),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where the page is, and which sections could not be written."""

    path: Path
    problems: tuple[str, ...]


def write_report(folder: Path, out: Path, *, title: str = "") -> Report:
    """Write the page of a study.

    Args:
        folder: study folder; see `study.PARTS` for what it may hold.
        out: HTML file to write.
        title: heading of the page.
    """
    study = Study(root=folder)
    problems: list[str] = []
    written = []
    with Progress(len(SECTIONS), label="report", unit="section") as bar:
        for key, (name, make) in SECTIONS.items():
            try:
                written.append(make(study).html())
            except SynthError as error:
                hint = f" → {error.hint}" if error.hint else ""
                problems.append(f"{name}: {error.message}{hint}")
                log.warning(problems[-1])
                said = tag("p", f"Could not be written: {error.message}{hint}", class_="missing")
                written.append(Section(id=key, title=name, lead="", body=said).html())
            bar.advance()
    with atomic_path(out) as temporary:
        temporary.write_text(_page(study, title, written), encoding="utf-8")
    return Report(path=out, problems=tuple(problems))


def _page(study: Study, title: str, sections: list[Html]) -> str:
    links = [tag("a", name, href=f"#{key}") for key, (name, _) in SECTIONS.items()]
    try:
        said = summary(study)
    except SynthError as error:
        said = tag("p", f"No summary: {error.message}", class_="missing")
    return string.Template(_asset("page.html")).substitute(
        title=escaped(title or f"Study {study.root.resolve().name}"),
        style=_asset("page.css"),
        script=_asset("page.js"),
        summary=said,
        navigation="".join(links),
        sections="\n".join(sections),
        version=__version__,
    )


def _asset(name: str) -> str:
    return (
        importlib.resources.files("synth.study.report").joinpath(name).read_text(encoding="utf-8")
    )
