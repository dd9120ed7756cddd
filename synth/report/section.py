"""What sections of a report have in common: title, body, the line where a part is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from synth.report.html import Html, joined, markdown_tables, more, table, tag
from synth.report.study import Study


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
    """Say that a part is not there, and which command makes it."""
    return tag(
        "p", f"No {what} here yet. The command for it: ", tag("code", study.command(part)),
        class_="missing",
    )  # fmt: skip


def folded_tables(study: Study, part: str) -> Html:
    """Return every table of an evaluation, the first open."""
    return joined(*_tables(study, part))


def _tables(study: Study, part: str) -> Iterator[Html]:
    for number, (head, rows) in enumerate(markdown_tables(study.table(part))):
        shown = table(rows, f"{rows[0][0]}: table {number + 1} of {part}")
        if number == 0:
            yield joined(tag("p", head, class_="note"), shown)
        else:
            yield more(head.split(". ")[0].split(": ")[0], tag("p", head, class_="note"), shown)
