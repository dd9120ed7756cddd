"""The section on the comparison: verdict, intervals, cases, endpoints."""

from __future__ import annotations

from collections.abc import Iterator

from synth.study.report.html import Html, Source, joined, more, table, tag, tile
from synth.study.report.pictures import finished
from synth.study.report.section import Section, missing
from synth.study.report.study import Study


def section(study: Study) -> Section:
    """Show what came of the comparison."""
    found = study.summary("comparison")
    body = (
        missing(study, "comparison", "comparison of segmentation models")
        if found is None
        else joined(*_body(study, found))
    )
    return Section(
        id="comparison", title="Does it help?",
        lead="The same segmentation model, trained with and without synthetic cases and judged on "
        "the same patients. One endpoint was declared beforehand; the others are exploratory. "
        "A gain or a loss is said where the interval, which knows luck in training, leaves zero "
        "out and the signed-rank test over patients agrees.",
        body=body,
    )  # fmt: skip


def _body(study: Study, found: Source) -> Iterator[Html]:
    tables = study.tables("comparison")
    names = list(found.get("comparisons"))
    overview = tables[: len(tables) - len(names)]
    for number, (_, rows) in enumerate(overview):
        yield joined(tag("h3", "What each arm scores"), table(rows, f"arms, table {number + 1}"))
    arms = [tag("li", arm) for arm in found.values.get("meaning", ())]
    if arms:
        yield tag("ul", *arms, class_="note")
    for words in found.values.get("unfinished", ()):
        yield tag("p", words, class_="verdict")
    for name, (head, rows) in zip(names, tables[len(overview) :], strict=False):
        yield tag("h3", name)
        yield tag("p", found.get("verdicts", name), class_="verdict")
        yield _tiles(found, name)
        yield from _pictures(study, name, len(names))
        yield more(
            "Every endpoint", tag("p", head, class_="note"), table(rows, f"{name}: endpoints")
        )


def _tiles(found: Source, name: str) -> Html:
    main = ("comparisons", name, "primary")
    ends = [found.figure(*main, "mean_interval", i, form="+.4f") for i in (0, 1)]
    better = joined(
        found.figure(*main, "better", form="d"), " / ", found.figure(*main, "equal", form="d"),
        " / ", found.figure(*main, "worse", form="d"),
    )  # fmt: skip
    return tag(
        "div",
        tile(found.figure(*main, "mean", form="+.4f"), "difference, primary endpoint",
             joined("95 % interval ", ends[0], " to ", ends[1])),
        tile(found.figure(*main, "p_value", form=".2g"), "p, signed-rank",
             joined(found.figure(*main, "cases", form="d"), " cases of ",
                    found.figure(*main, "patients", form="d"), " patients")),
        tile(better, "better / equal / worse"),
        tile(found.figure(*main, "detectable", form=".4f"), "would have been seen",
             "with 80 % power"),
        class_="tiles",
    )  # fmt: skip


def _pictures(study: Study, name: str, of: int) -> Iterator[Html]:
    """Yield forest and paired lines: forest-TREATED-CONTROL.png, or forest.png where one is all."""
    folder, slug = study.root / "comparison", name.replace(" against ", "-")
    for kind, alt, caption in (
        ("forest", "Difference and 95 % interval of every endpoint",
         "Mean difference over cases and 95 % interval, treated minus control; green where the "
         "interval says better, red worse; filled where p < 0.05 (Holm-adjusted if secondary)."),
        ("pairs", "Each case's score with and without", "A line a case, from control to treated: "
         "green helped, red harmed; the white line is the mean."),
    ):  # fmt: skip
        names = (f"{kind}-{slug}.png", *([f"{kind}.png"] if of == 1 else []))
        path = next((folder / n for n in names if (folder / n).is_file()), None)
        if path is not None:
            yield finished(path, f"{alt}, {name}", caption)
