"""3-D wavelet diffusion that paints healthy tissue into a masked region of a brain MRI.

    import wdm3d

    filled = wdm3d.inpaint("A-t1n-voided.nii.gz", "A-mask.nii.gz", seed=0).image
    wdm3d.Inpainter(force_cpu=True).infer_batch("cases", "filled")

Friedrich et al., "WDM: 3D Wavelet Diffusion Models for High-Resolution Medical Image Synthesis"
(2024), in the inpainting setting of the BraTS Local-Synthesis challenge.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wdm3d.config import SamplerOptions
    from wdm3d.generate import Inpainted, inpaint
    from wdm3d.inpainter import Inpainter

__all__ = ["Inpainted", "Inpainter", "SamplerOptions", "inpaint"]

_HOMES = {
    "Inpainted": "wdm3d.generate",
    "inpaint": "wdm3d.generate",
    "Inpainter": "wdm3d.inpainter",
    "SamplerOptions": "wdm3d.config",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): configurations need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, imported yet or not."""
    return list(__all__)
