"""Mutators: one seed, one damaged file."""

from __future__ import annotations

import copy
import gzip
import json
import struct
from typing import Any

import numpy as np

ODD_NUMBERS = (0, -1, 1, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, 1e308, -1e-308, float("inf"),
               float("-inf"), float("nan"))  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, "", "x", "\x00", "\x1b[2J", "../../etc/passwd", "a" * 300, "é" * 200, [], {},
    [[]], [1.5], [None], {"a": {"b": []}}, *ODD_NUMBERS,
)  # fmt: skip


def damage_bytes(blob: bytes, rng: np.random.Generator) -> bytes:
    """Flip, overwrite, cut, insert or repeat some bytes."""
    data = bytearray(blob)
    for _ in range(int(rng.integers(1, 5))):
        place, kind = int(rng.integers(0, max(len(data), 1))), rng.integers(0, 6)
        if kind == 0 and data:
            data[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[place : place + 4] = rng.bytes(4)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place:place] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 4:
            del data[place : place + int(rng.integers(1, 64))]
        else:
            data[place:place] = data[: int(rng.integers(1, 64))]
    return bytes(data)


def damage_nifti(blob: bytes, rng: np.random.Generator) -> bytes:
    """Damage the header's fields, or any byte; a packed file also before it is packed."""
    packed = blob[:2] == b"\x1f\x8b"
    inner = gzip.decompress(blob) if packed else blob
    if rng.random() < 0.7:
        data = bytearray(inner)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(0, 540 if inner[:4] == struct.pack("<i", 540) else 348))
            kind, number = rng.integers(0, 4), ODD_NUMBERS[int(rng.integers(len(ODD_NUMBERS)))]
            if kind == 0:
                data[place] = int(rng.integers(0, 256))
            elif kind == 1:
                data[place : place + 2] = struct.pack("<h", int(rng.integers(-(2**15), 2**15)))
            elif kind == 2:
                with np.errstate(all="ignore"):
                    data[place : place + 4] = np.float32(number).tobytes()
            else:
                data[place : place + 4] = struct.pack("<I", int(rng.integers(0, 2**32)))
        inner = bytes(data)
    else:
        inner = damage_bytes(inner, rng)
    if not packed:
        return inner
    again = gzip.compress(inner, 1)
    return damage_bytes(again, rng) if rng.random() < 0.3 else again


def damage_json(text: str, rng: np.random.Generator) -> str:
    """Exchange, remove, add or repeat values, or damage the text itself."""
    kind = rng.random()
    if kind < 0.15:
        return damage_bytes(text.encode(), rng).decode("utf-8", "surrogateescape")
    if kind < 0.2:
        return "[" * 20_000 if rng.random() < 0.5 else '{"a":' * 5000
    if kind < 0.25:
        return text.replace(":", ": " + "9" * 5000 + ', "z":', 1)
    value = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        value = _exchanged(value, rng)
    again = json.dumps(value)
    if kind < 0.3 and again.startswith("{") and len(again) > 2:
        again = again[:-1] + "," + again[1:]  # every key twice
    return again


def _exchanged(value: Any, rng: np.random.Generator) -> Any:
    """Return a copy with one value somewhere inside exchanged, removed or added."""
    value = copy.deepcopy(value)
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return copy.deepcopy(ODD_VALUES[int(rng.integers(len(ODD_VALUES)))])
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[int(rng.integers(len(keys)))]
    kind = rng.random()
    if kind < 0.15:
        del value[key]
    elif kind < 0.25 and isinstance(value, dict):
        value["strange"] = value[key]
    else:
        value[key] = _exchanged(value[key], rng)
    return value
