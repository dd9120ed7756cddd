"""Builds a verb's parser from its function: signature → flags, docstring → help.

Positional parameters become positional arguments, keyword-only ones `--flags`. `Literal` gives
choices, `bool` a switch, `tuple[X, ...]` several words, a dataclass a flag for each field. So every
verb has a Python function of the same name and arguments behind it, and there is one place to read
both.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

from synth.base.config import did_you_mean, field_docs
from synth.base.errors import SynthError

PROGRAM = "synth.cli"  # what processes run: its main takes the words of a verb
SHORT = {"out": "-o", "verbose": "-v", "force": "-f"}


class Parser(argparse.ArgumentParser):
    """argparse that complains as one line with the nearest valid word."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise SynthError(message, hint=f"{self.prog} --help")

    def parse(self, words: list[str]) -> dict[str, Any]:
        """Parse strictly; an unknown flag is answered with the nearest one."""
        known = [o for a in self._actions for o in a.option_strings]
        # Before argparse looks: it would complain of the required flag that a typo leaves missing.
        unknown = [name for name in _flags(words) if name not in known]
        if not unknown:
            values, unknown = self.parse_known_args(words)
        if unknown:
            near = did_you_mean(unknown[0], [name for name in known if name.startswith("--")])
            raise SynthError(f"unknown argument {unknown[0]}", hint=near)
        return {name: _separated(value) for name, value in vars(values).items()}


def build(function: Callable[..., Any], *, prog: str, settings: tuple[type, ...] = ()) -> Parser:
    """Build the parser of a verb; fields of `settings` dataclasses become flags too."""
    summary, details, texts = parse_docstring(inspect.getdoc(function) or "")
    parser = Parser(
        prog=prog,
        description=f"{summary}\n\n{details}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for argument in sorted(_arguments(function, texts), key=lambda a: a[0] == "force"):  # last
        _add(parser, *argument)
    for cls in settings:
        group = parser.add_argument_group(f"settings ({cls.__module__})", "defaults: the preset's")
        docs, kinds = field_docs(cls), typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):  # ty: ignore[invalid-argument-type]
            if not dataclasses.is_dataclass(kinds[field.name]):
                kind = kinds[field.name] | None
                _add(group, field.name, kind, None, docs[field.name], False, checked=False)
    return parser


def bundled(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a verb's arguments: the fields of a dataclass that it takes are put together."""
    for name, kind in typing.get_type_hints(function).items():
        if dataclasses.is_dataclass(kind):
            fields = {field.name: values.pop(field.name) for field in dataclasses.fields(kind)}
            values[name] = kind(**fields)
    return values


def parse_docstring(text: str) -> tuple[str, str, dict[str, str]]:
    """Split a Google-style docstring into summary, details, and the texts of its Args."""
    head, _, tail = text.partition("\nArgs:\n")
    summary, _, details = head.partition("\n")
    arguments: dict[str, str] = {}
    name = ""
    for line in tail.splitlines():
        if line.startswith("    ") and not line.startswith("     ") and ":" in line:
            name, _, rest = line.strip().partition(":")
            arguments[name] = rest.strip()
        elif line.strip() and name:
            arguments[name] += " " + line.strip()
    return summary, details.strip(), arguments


def _flags(words: list[str]) -> list[str]:
    """Return the names of what argparse takes for flags, without values: --out of --out=x."""
    before = words[: words.index("--")] if "--" in words else words
    long = [word.split("=")[0] for word in before if word.startswith("--")]
    short = [word[:2] for word in before if re.match(r"-[A-Za-z]", word)]
    return [name for name in (*long, *short) if " " not in name]


def _arguments(function: Callable[..., Any], texts: dict[str, str]) -> Iterator[tuple]:
    """Yield (name, type, default, help, positional) of each argument or field of one."""
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            docs, kinds = field_docs(kind), typing.get_type_hints(kind)
            for field in dataclasses.fields(kind):
                text = texts.get(field.name, docs[field.name])
                yield field.name, kinds[field.name], field.default, text, False
        elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            yield name, kind, parameter.default, texts.get(name, ""), positional


def _add(
    parser: Any,
    name: str,
    kind: Any,
    default: Any,
    text: str,
    positional: bool,
    *,
    checked: bool = True,
) -> None:
    """Add one argument; with `checked` False a word may be one that its family translates."""
    required = default is inspect.Parameter.empty
    options: dict[str, Any] = {"help": _help(text, None if required else default)}
    kind, several = _simplify(kind)
    if kind is bool and default is None:
        options |= {"action": argparse.BooleanOptionalAction}
    elif kind is bool:
        assert default is False, f"{name}: a switch is off by default"
        options |= {"action": "store_true"}
    elif typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        options |= {"type": type(words[0])}
        options |= (
            {"choices": words} if checked else {"metavar": f"{{{','.join(map(str, words))}}}"}
        )
    else:
        options |= {
            "type": kind,
            "metavar": name.upper() if kind is Path else kind.__name__.upper(),
        }
    if several:
        options |= {"nargs": "+"}
        if kind in (int, float):
            options |= {"type": _Numbers(kind)}
    if positional:
        if not required:
            options |= {"nargs": "*" if several else "?"}
        options.pop("metavar", None)
        parser.add_argument(name, default=None if required else default, **options)
        return
    flags = [SHORT[name]] if name in SHORT else []
    flags.append("--" + name.replace("_", "-"))
    parser.add_argument(
        *flags, dest=name, required=required, default=None if required else default, **options
    )


class _Numbers:
    """Reads a word of one number, or of several with commas: 128,160,112."""

    def __init__(self, kind: type[float]) -> None:
        self.kind = kind
        self.__name__ = kind.__name__  # for argparse's complaint

    def __call__(self, word: str) -> list[float]:
        return [self.kind(part) for part in word.split(",") if part]


def _separated(value: Any) -> Any:
    """Let several plain words or numbers be written with commas, too: t1n,t1c is t1n t1c."""
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], list):
        return [number for word in value for number in word]
    plain = [type(word) is str and "=" not in word for word in value]
    words = [word.split(",") if p else [word] for word, p in zip(value, plain, strict=True)]
    return [part for parts in words for part in parts if part != ""]


def _simplify(kind: Any) -> tuple[Any, bool]:
    """Strip `| None` and `tuple[X, ...]` off a type: (X, several)."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = {k for k in typing.get_args(kind) if k is not type(None)}
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0], True
    return kind, False


def _help(text: str, default: Any) -> str:
    text = text.replace("%", "%%")
    if default is None or default is False or default == ():
        return text
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} [{shown}]"
