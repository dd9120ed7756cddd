"""HTML from Python, escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synth.base.errors import SynthError

VOID = ("img", "input", "link", "meta")
UNKNOWN = "–"


class Html(str):
    """Text that is HTML already; every other string is escaped when it enters a tag."""

    __slots__ = ()


def escaped(content: str) -> str:
    """Return a string as HTML."""
    return content if isinstance(content, Html) else html.escape(content, quote=False)


def joined(*parts: str) -> Html:
    """Return parts one after another."""
    return Html("".join(escaped(part) for part in parts))


def sentence(words: str) -> Html:
    """Return words that begin small and end bare as a sentence."""
    words = escaped(words)
    return Html(f"{words[0].upper()}{words[1:]}.")


def tag(name: str, *content: str, **attributes: str | None) -> Html:
    """Return an element; `class_` and `aria_label` become class and aria-label, None is left out.

    An empty string is an attribute without value, such as `hidden`.
    """
    written = ""
    for key, value in attributes.items():
        if value is not None:
            word = key.rstrip("_").replace("_", "-")
            written += f" {word}" + (f'="{html.escape(value)}"' if value else "")
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(*content)}</{name}>")


def image(uri: str, alt: str, **attributes: str | None) -> Html:
    """Return a picture that is a data URI; `alt` says what is to be seen."""
    if not uri.startswith("data:image/"):
        raise AssertionError(f"a report must not hold an address: {uri[:60]}")
    return Html(tag("img", src=uri, **attributes)[:-1] + f' alt="{html.escape(alt)}">')


def figure(picture: str, caption: str, **attributes: str | None) -> Html:
    """Return a picture with its caption."""
    return tag("figure", picture, tag("figcaption", caption), **attributes)


def table(rows: Sequence[Sequence[str]], label: str, *, words: bool = False) -> Html:
    """Return a table, heading first, that scrolls by itself where the page is narrow.

    With `words` the last column is prose or a command, not a number.
    """
    head = tag("tr", *(tag("th", cell, scope="col") for cell in rows[0]))
    body = [
        tag("tr", tag("th", line[0], scope="row"), *(tag("td", cell) for cell in line[1:]))
        for line in rows[1:]
    ]
    whole = tag("table", tag("thead", head), tag("tbody", *body), class_="words" if words else None)
    # tabindex: a region that scrolls must be reachable by the keyboard.
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=label)


def more(summary: str, *content: str) -> Html:
    """Return what is folded away until asked for."""
    return tag("details", tag("summary", summary), *content)


def tile(value: str, label: str, against: str = "") -> Html:
    """Return a figure writ large, and what it stands against."""
    below = [tag("span", against, class_="against")] if against else []
    return tag(
        "div", tag("span", value, class_="value"), tag("span", label, class_="label"), *below,
        class_="tile",
    )  # fmt: skip


def number(value: float | None, form: str = ".3g") -> str:
    """Write a number with a true minus sign."""
    return UNKNOWN if value is None else format(value, form).replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A JSON file of the study, and the figures that are quoted from it."""

    name: str
    """Its path within the study."""
    values: Any

    def get(self, *keys: str | int) -> Any:
        """Return what is there, or say what is missing."""
        found = self.values
        for key in keys:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError) as error:
                raise SynthError(
                    f"{self.name}: no {'/'.join(map(str, keys))}",
                    hint="it was written by another version; make it again",
                ) from error
        return found

    def figure(self, *keys: str | int, form: str = ".3g") -> Html:
        """Quote a number; the element has all of it, and its place as a JSON pointer (RFC 6901)."""
        value = self.get(*keys)
        if value is None:
            return Html(UNKNOWN)
        pointer = "".join("/" + str(k).replace("~", "~0").replace("/", "~1") for k in keys)
        place = f"{self.name}#{pointer}"
        return tag("data", number(value, form), value=repr(value), title=place)
