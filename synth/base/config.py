"""Typed values of JSON, and configurations: frozen dataclasses, read back strictly.

An unknown key of a configuration is an error with a suggestion, never silently dropped; a value of
the wrong type is named. Attribute docstrings are the help texts of the command line.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import reprlib
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from synth.base.errors import SynthError

T = TypeVar("T")
INFINITY = float("inf")
MOST_NUMBERS = 16


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return the hint that names the nearest option, or lists them all."""
    options = list(options)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"one of: {', '.join(options)}"


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into plain JSON values (tuples become lists)."""
    assert dataclasses.is_dataclass(config)
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a configuration from JSON values; every key must be known and every type right.

    `REMOVED` of a class are settings of earlier versions, and with which values they mean nothing.
    """
    hints = typing.get_type_hints(cls)
    for key, harmless in getattr(cls, "REMOVED", {}).items():
        if key in values and values[key] not in harmless:
            raise SynthError(
                f"{key} = {values[key]} is a setting of an earlier version",
                hint="train anew, or use the version that made it",
            )
        values = {k: v for k, v in values.items() if k != key}
    require_known(cls, values)
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # ty: ignore[invalid-argument-type]
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise SynthError(f"setting '{missing[0]}' is missing", hint=f"{cls.__name__} needs it")
    return cls(**{key: coerce(value, hints[key], key) for key, value in values.items()})


def require_known(cls: type, keys: Iterable[str]) -> None:
    """Refuse the first key that is not a field of a configuration."""
    names = [f.name for f in dataclasses.fields(cls)]  # ty: ignore[invalid-argument-type]
    for key in keys:
        if key not in names:
            raise SynthError(f"unknown setting '{key}'", hint=did_you_mean(key, names))


def require_between(config: Any, **ranges: tuple[float, float]) -> None:
    """Refuse a setting outside its range; of a tuple, each number and more than `MOST_NUMBERS`."""
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple | list) else (value,)
        if not all(least <= number <= most for number in numbers) or len(numbers) > MOST_NUMBERS:
            span = f"at least {least:g}" if most == INFINITY else f"from {least:g} to {most:g}"
            raise SynthError(f"{name} = {value}", hint=f"{name} is {span}")


def coerce(value: Any, kind: Any, name: str) -> Any:
    """Return `value` as the annotated type `kind`, or say what was expected."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _coerce_union(value, arguments, name)
    if origin is Literal:
        if value not in arguments:
            text = [str(a) for a in arguments]
            raise SynthError(f"unknown {name} {value!r}", hint=did_you_mean(str(value), text))
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(typing.cast(type, kind), value)
    if typing.is_typeddict(kind) and isinstance(value, dict):
        return _coerce_keys(value, kind, name)
    if isinstance(value, list | tuple) and origin in (list, tuple):
        return _coerce_items(value, kind, name)
    if isinstance(value, dict) and origin is dict:
        return {k: coerce(v, arguments[1], f"{name}.{k}".lstrip(".")) for k, v in value.items()}
    return _coerce_scalar(value, kind, name)


def _coerce_scalar(value: Any, kind: Any, name: str) -> Any:
    if kind is Any or (kind in (int, str, bool, dict) and type(value) is kind):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise _wrong_type(value, kind, name)


def _coerce_items(value: list | tuple, kind: Any, name: str) -> list | tuple:
    """Check the items of a list, or of a tuple of settings, which all have its name."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return [coerce(v, arguments[0], f"{name}[{i}]") for i, v in enumerate(value)]
    each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(each) != len(value):
        raise _wrong_type(value, kind, name)
    return tuple(coerce(v, k, name) for v, k in zip(value, each, strict=True))


def _coerce_keys(value: dict, kind: Any, name: str) -> dict:
    """Check the keys that a TypedDict names; others are kept as they are."""
    known = {}
    for key, hint in _hints_of(kind).items():
        optional = typing.get_origin(hint) is typing.NotRequired
        if key in value:
            inner = typing.get_args(hint)[0] if optional else hint
            known[key] = coerce(value[key], inner, f"{name}.{key}".lstrip("."))
        elif kind.__total__ and not optional:
            raise SynthError(f"{name or 'it'} has no '{key}'")
    return value | known


_hints_of = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))


def _wrong_type(value: Any, kind: Any, name: str) -> SynthError:
    shape = typing.get_origin(kind) or kind
    if shape is list:
        wanted = "a list"
    elif shape is dict or typing.is_typeddict(kind):
        wanted = "an object"
    else:
        wanted = f"of type {getattr(kind, '__name__', kind)}"
    return SynthError(
        f"{name} = {reprlib.repr(value)} is not {wanted}".removeprefix(" = "),
        hint="see --help for the expected form",
    )


def _coerce_union(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(k for k in kinds if k is not type(None))
    for kind in kinds[:-1]:
        try:
            return coerce(value, kind, name)
        except SynthError:
            continue
    return coerce(value, kinds[-1], name)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring below each attribute of a dataclass, its bases included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name)
                assert isinstance(text.value, ast.Constant)
                docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs
