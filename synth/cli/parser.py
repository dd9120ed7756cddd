"""Builds a verb's parser from its function: signature → options, docstring → help.

Positional parameters become positional arguments, keyword-only ones `--options`. `Literal` gives
choices, `bool` a switch, `tuple[X, ...]` several words, a dataclass an option for each field. So
every verb is a Python function with the same names. `--help` explains the function's own parameters
and the fields that its docstring explains; `--help-all` explains the other fields, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from synth.base.config import did_you_mean, field_docs
from synth.base.errors import SynthError

PROGRAM = "synth.cli"  # what processes run: its main takes the words of a verb
SHORT = {"out": "-o", "force": "-f"}
WIDTH = 100

# Options that mean the same in every verb; a docstring that explains one comes first.
SHARED = {
    "cluster": "submitit's parameters: timeout_min=600 slurm_partition=gpu gpus_per_node=1",
    "device": "auto, cpu, cuda, cuda:1 …",
    "force": "overwrite earlier results",
    "no_pictures": "draw no pictures",
    "out": "folder to write into",
    "overlap": "share of a window that its neighbour covers, too",
    "scheme": "label scheme, e.g. brats2021; auto: from the case ids",
    "seed": "seed of every random draw",
    "split": "split in the style of the Medical Segmentation Decathlon (JSON)",
    "tta": "average the predictions for all eight mirror images",
    "workers": "processes; 0: one for each core",
}


class Parser(argparse.ArgumentParser):
    """argparse that complains in one line, with the nearest valid word."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise SynthError(message, hint=f"{self.prog} --help")

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Parse strictly; the answer to an unknown option names the nearest one."""
        known = [o for a in self._actions for o in a.option_strings]
        # Before argparse looks: it would complain about the required option that a typo hides.
        unknown = [name for name in _option_names(words) if name not in known]
        if not unknown:
            values, unknown = self.parse_known_args(words)
        if unknown:
            near = did_you_mean(unknown[0], [name for name in known if name.startswith("--")])
            raise SynthError(f"unknown argument {unknown[0]}", hint=near)
        return {name: _split_at_commas(value) for name, value in vars(values).items()}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Writes the metavar of an option once: -o, --out OUT."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        metavar = action.metavar or action.dest
        if not action.option_strings:
            return str(metavar)
        names = ", ".join(name for name in action.option_strings if name != "--help-all")
        return names if action.nargs == 0 else f"{names} {metavar}{' …' * (action.nargs == '+')}"


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a verb."""

    name: str
    kind: Any
    default: Any
    text: str
    positional: bool = False
    group: str = ""
    """Heading in the help; empty: with the verb's own."""
    rare: bool = False
    """Whether only --help-all explains it."""
    checked: bool = True
    """Whether words that are not among the choices are refused: a family may translate them."""

    @property
    def flag(self) -> str:
        """Return the long option."""
        return "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        """Return whether it has no default."""
        return self.default in (MISSING, inspect.Parameter.empty)


def build(
    function: Callable[..., Any],
    *,
    prog: str,
    settings: Sequence[type] = (),
    everything: bool = False,
) -> Parser:
    """Build the parser of a verb.

    Args:
        function: the verb.
        prog: what the verb is called: synth train.
        settings: dataclasses whose fields become options, too.
        everything: explain rare options.
    """
    summary, details, texts = parse_docstring(inspect.getdoc(function) or "")
    arguments = [*_of_function(function, texts), *_of_settings(settings, texts)]
    arguments.sort(key=lambda argument: argument.name == "force")  # last
    hidden = [argument for argument in arguments if argument.rare and not everything]
    width = min(shutil.get_terminal_size().columns, WIDTH) - 2
    parser = Parser(
        prog=prog,
        usage=" ".join([prog, *_needed(arguments), "[options]"]),
        description=_fill(f"{summary}\n\n{details}".strip(), width),
        epilog=_fill(_names_of(hidden), width),
        formatter_class=lambda prog: _Formatter(prog, max_help_position=24, width=width),
        allow_abbrev=False,
        add_help=False,
    )
    groups = {"": parser}
    for argument in arguments:
        if argument.group not in groups:
            groups[argument.group] = parser.add_argument_group(argument.group)
        _add(groups[argument.group], argument, explained=argument not in hidden)
    parser.add_argument("-v", "--verbose", action="store_true", help="print more")
    text = "explain the options; --help-all: the rarer ones, too" if hidden else "explain this"
    parser.add_argument("-h", "--help", "--help-all", action="help", help=text)
    return parser


def bundle(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
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


def _of_function(function: Callable[..., Any], texts: dict[str, str]) -> Iterator[Argument]:
    """Yield the parameters of a verb, and the fields of dataclasses among them."""
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            yield from _of_fields(typing.cast(type, kind), texts)
        elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            text = texts.get(name) or SHARED.get(name, "")
            positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            yield Argument(
                name=name, kind=kind, default=parameter.default, text=text, positional=positional
            )


def _of_fields(cls: type, texts: dict[str, str]) -> Iterator[Argument]:
    docs, kinds = field_docs(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # ty: ignore[invalid-argument-type]
        text = texts.get(field.name, docs[field.name])
        yield Argument(
            name=field.name, kind=kinds[field.name], default=field.default, text=text,
            rare=field.name not in texts,
        )  # fmt: skip


def _of_settings(classes: Sequence[type], texts: dict[str, str]) -> Iterator[Argument]:
    """Yield the fields of configurations; what is not given is left to the preset."""
    for cls in classes:
        title = f"settings ({cls.__module__}); defaults: the preset's"
        for argument in _of_fields(cls, texts):
            if not dataclasses.is_dataclass(argument.kind):
                yield dataclasses.replace(
                    argument, kind=argument.kind | None, default=None, checked=False,
                    group=title if argument.rare else "",
                )  # fmt: skip


def _add(parser: Any, argument: Argument, *, explained: bool) -> None:
    """Add one argument to a parser."""
    default = None if argument.required else argument.default
    text = _help(argument.text, default) if explained else argparse.SUPPRESS
    options = _reading(argument) | {"help": text, "default": default}
    if argument.positional:
        if not argument.required:
            options["nargs"] = "*" if options.get("nargs") else "?"
        parser.add_argument(argument.name, **options | {"metavar": argument.name.upper()})
        return
    flags = [SHORT[argument.name]] if argument.name in SHORT else []
    options |= {"dest": argument.name, "required": argument.required}
    parser.add_argument(*flags, argument.flag, **options)


def _reading(argument: Argument) -> dict[str, Any]:
    """Return how argparse reads the words of an argument."""
    kind, several = _simplify(argument.kind)
    if kind is bool:
        switch = "store_true" if argument.default is False else argparse.BooleanOptionalAction
        return {"action": switch}
    options: dict[str, Any] = {"nargs": "+"} if several else {}
    if typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        choices = {"choices": words} if argument.checked else {}
        return options | choices | {"type": type(words[0]), "metavar": "|".join(map(str, words))}
    metavar = argument.name if kind in (Path, str) else kind.__name__
    reader = _Numbers(kind) if several and kind in (int, float) else kind
    return options | {"type": reader, "metavar": metavar.upper()}


class _Numbers:
    """Reads a word of one number, or of several with commas: 128,160,112."""

    def __init__(self, kind: type[float]) -> None:
        self.kind = kind
        self.__name__ = kind.__name__  # for argparse's complaint

    def __call__(self, word: str) -> list[float]:
        return [self.kind(part) for part in word.split(",") if part]


def _split_at_commas(value: Any) -> Any:
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


def _option_names(words: Sequence[str]) -> list[str]:
    """Return the names of what argparse takes for options, without values: --out of --out=x."""
    before = words[: words.index("--")] if "--" in words else words
    long = [word.split("=")[0] for word in before if word.startswith("--")]
    short = [word[:2] for word in before if re.match(r"-[A-Za-z]", word)]
    return [name for name in (*long, *short) if " " not in name]


def _needed(arguments: Sequence[Argument]) -> Iterator[str]:
    """Yield the words that a call of the verb needs, for the usage line."""
    for argument in arguments:
        name = argument.name.upper()
        if argument.positional:
            yield name if argument.required else f"[{name}]"
        elif argument.required:
            yield f"{SHORT.get(argument.name, argument.flag)} {name}"


def _names_of(hidden: Sequence[Argument]) -> str:
    """Return the names of rare options, by group."""
    groups: dict[str, list[str]] = {}
    for argument in hidden:
        groups.setdefault(argument.group or "more options", []).append(argument.flag)
    return "\n\n".join(f"{title}: {' '.join(flags)}" for title, flags in groups.items())


def _help(text: str, default: Any) -> str:
    text = text.replace("%", "%%").removesuffix(".")
    if default is None or default is False or default in ((), "") or text.endswith("]"):
        return text  # a text that ends in brackets names its own default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} [{shown}]"


def _fill(text: str, width: int) -> str:
    """Wrap paragraphs; those that are indented are examples, and stay as they are."""
    paragraphs = [
        p if p.startswith("    ") else textwrap.fill(p, width, break_on_hyphens=False)
        for p in text.split("\n\n")
    ]
    return "\n\n".join(paragraphs)
