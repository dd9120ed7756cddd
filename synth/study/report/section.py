"""Common parts of sections: title, body, the line where a part is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from synth.study.report.html import Html, joined, more, sentence, table, tag
from synth.study.report.study import Study


@dataclass(frozen=True, kw_only=True)
class Section:
    """One chapter of the page."""

    id: str
    title: str
    lead: str
    """One sentence: what to look for."""
    body: Html

    def html(self) -> Html:
        """Return the chapter as an element."""
        heading = tag("h2", self.title, id=f"{self.id}-title")
        return tag(
            "section", heading, tag("p", self.lead, class_="lead"), self.body,
            id=self.id, aria_labelledby=f"{self.id}-title",
        )  # fmt: skip


def missing(study: Study, part: str, what: str) -> Html:
    """Say that a part is not there, or at work, and which command makes it."""
    stage = study.stage(part)
    state = stage.get("state")
    if state == "running":
        since = f" since {stage['started']}" if stage.get("started") else ""
        said = sentence(f"{what.rstrip(',')}: at work{since}, says study.json")
    else:
        ended = f": its stage was {state}" if state == "stopped" else ""
        ended = ": its stage failed" if state == "failed" else ended
        said = f"No {what} here yet{ended}."
    command = tag("code", study.command(part))
    return tag("p", said, " The command for it: ", command, class_="missing")


def how_near(low: float, high: float, reach: float, what: str) -> str:
    """Say how a made set lies to real ones: the interval of its distance beside that of halves."""
    if low > reach:
        return "can be told from real ones"
    if high <= reach:
        return f"are no farther from real {what} than halves of these are from each other"
    return "are not shown to differ from real ones, nor to be as near as these are to each other"


def in_plain_words(said: Html | None) -> Html:
    """Return what the figures of a section come to, as its own line; nothing for nothing."""
    return Html() if said is None else tag("p", sentence(said), class_="verdict")


def folded_tables(study: Study, part: str) -> Html:
    """Return every table of an evaluation, the first open."""
    return joined(*_tables(study, part))


def _tables(study: Study, part: str) -> Iterator[Html]:
    for number, (head, rows) in enumerate(study.tables(part)):
        shown = table(rows, f"{rows[0][0]}: table {number + 1} of {part}")
        if number == 0:
            yield joined(tag("p", head, class_="note"), shown)
        else:
            yield more(head.split(". ")[0].split(": ")[0], tag("p", head, class_="note"), shown)
