"""Random seeds as functions of named parts, such as mix(seed, "epoch", 3).

A stream that depends only on its name can be drawn again after a kill, on another machine, in
another order or in another process, and gives the same numbers.
"""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def mix(*parts: int | str) -> int:
    """Hash named parts into a seed of 63 bits; stable across processes, machines and versions.

    Each part carries its type and length, so that (1, 23), (12, 3) and ("1", 23) all differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        kind, text = ("s", part) if isinstance(part, str) else ("i", str(operator.index(part)))
        encoded = text.encode()
        digest.update(f"{kind}{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded with `mix(*parts)`."""
    import torch

    return torch.Generator().manual_seed(mix(*parts))
