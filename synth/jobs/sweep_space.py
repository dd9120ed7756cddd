"""The settings that a sweep tries: lists of values, or ranges."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synth.base.config import coerce, did_you_mean
from synth.base.errors import SynthError

LOG_RATIO = 10.0
"""A range whose ends differ by this factor is searched on a logarithmic scale."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from low to high, both possible."""

    low: float
    high: float
    whole: bool
    """Integers only."""

    @property
    def log(self) -> bool:
        """Whether orders of magnitude count alike."""
        return self.low > 0 and self.high / self.low >= LOG_RATIO


Choices = tuple[Any, ...]
Space = dict[str, Choices | Range]


def read_space(words: Iterable[str], kinds: Sequence[type], *, ranges: bool) -> Space:
    """Read lr=1e-3,3e-4 (alternatives) and, with `ranges`, lr=1e-4..1e-2, for fields of `kinds`.

    A value of several parts is written in brackets: patch=[48,48,48],[64,64,64].
    """
    hints = {name: hint for kind in kinds for name, hint in typing.get_type_hints(kind).items()}
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]  # ty: ignore[invalid-argument-type]
    space: Space = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not text:
            raise SynthError(f"{word!r} names no values", hint="write it as lr=1e-3,3e-4")
        if name not in names:
            raise SynthError(f"unknown setting '{name}'", hint=did_you_mean(name, names))
        if name in space:
            raise SynthError(f"{name} is given twice", hint="name all its values at once")
        between = ranges and re.fullmatch(r"([^.,]\S*?)\.\.(\S+)", text)
        if between:
            space[name] = _range(name, between[1], between[2], hints[name])
        else:
            space[name] = tuple(value(part, hints[name], name) for part in _parts(text))
    return space


def value(text: str, kind: Any, name: str) -> Any:
    """Read one value of a field as its type wants it, as plain JSON (tuples as lists)."""
    try:
        plain = json.loads(text)
    except json.JSONDecodeError:
        plain = text
    try:
        found = coerce(plain, kind, name)
    except SynthError:
        if isinstance(plain, str):
            raise
        found = coerce(text, kind, name)  # a field of text may hold 5 or true
    if found is None:
        raise SynthError(f"{name} = {text}", hint="name a value; leave the field out for none")
    return json.loads(json.dumps(found, default=str))


def grid(space: Mapping[str, Choices | Range]) -> list[dict[str, Any]]:
    """Return every combination, the last field changing fastest."""
    columns = [[(name, v) for v in typing.cast(Choices, space[name])] for name in space]
    return [dict(row) for row in itertools.product(*columns)]


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as words of the command line."""
    words: list[str] = []
    for name, v in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(v, bool):
            words.append(flag if v else flag.replace("--", "--no-", 1))
        elif isinstance(v, list):
            words += [flag, *map(str, v or [""])]
        else:
            words.append(f"{flag}={v}")
    return words


def _range(name: str, low: str, high: str, kind: Any) -> Range:
    if kind not in (int, float):
        raise SynthError(f"{name} has no range", hint=f"name its values: {name}=A,B")
    found = Range(low=value(low, kind, name), high=value(high, kind, name), whole=kind is int)
    if not found.low < found.high:
        raise SynthError(f"{name} = {low}..{high} is empty", hint="write the smaller end first")
    return found


def _parts(text: str) -> list[str]:
    """Split at commas that are not in brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text)]
