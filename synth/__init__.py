"""Synthetic brain-tumour MRI: masks, healthy tissue, scans, and whether they help."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from synth.base.version import __version__

if TYPE_CHECKING:
    from synth.base.errors import SynthError
    from synth.checkpoints import checkpoint
    from synth.data.brain import find_brain
    from synth.data.case import Case, discover
    from synth.data.prepare import prepare
    from synth.data.split import read_split
    from synth.data.volume import Volume
    from synth.metrics.image import inpainting_metrics
    from wdm3d.generate import inpaint

__all__ = [
    "Case",
    "SynthError",
    "Volume",
    "__version__",
    "checkpoint",
    "discover",
    "find_brain",
    "inpaint",
    "inpainting_metrics",
    "prepare",
    "read_split",
]

_HOMES = {
    **dict.fromkeys(("Case", "discover"), "synth.data.case"),
    "SynthError": "synth.base.errors",
    "Volume": "synth.data.volume",
    "find_brain": "synth.data.brain",
    "inpaint": "wdm3d.generate",
    "inpainting_metrics": "synth.metrics.image",
    "prepare": "synth.data.prepare",
    "read_split": "synth.data.split",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): `--help` needs no torch."""
    if name == "checkpoint":
        return importlib.import_module("synth.checkpoints.checkpoint")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, imported yet or not."""
    return list(__all__)
