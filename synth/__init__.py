"""Synthetic brain-tumour MRI: masks, healthy tissue, scans, and whether they help."""

from __future__ import annotations

import importlib
from typing import Any

from synth.base.version import __version__

__all__ = ["__version__", "checkpoint"]

_HOMES = {"checkpoint": "synth.checkpoints.checkpoint"}


def __getattr__(name: str) -> Any:
    """Import a public module when it is first asked for (PEP 562): `synth.checkpoint.load`."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(_HOMES[name])
