"""Synthetic brain-tumour MRI: masks, healthy tissue, scans, and whether they help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synth.base.public_names import export
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

__getattr__, __dir__ = export(
    __name__,
    {
        **dict.fromkeys(("Case", "discover"), "synth.data.case"),
        "checkpoint": "synth.checkpoints.checkpoint",
        "SynthError": "synth.base.errors",
        "Volume": "synth.data.volume",
        "find_brain": "synth.data.brain",
        "inpaint": "wdm3d.generate",
        "inpainting_metrics": "synth.metrics.image",
        "prepare": "synth.data.prepare",
        "read_split": "synth.data.split",
    },
)
