"""Segmentation networks, and the comparison that says whether synthetic data help.

    synth train segmentation --data cases --preset small -o runs/base
    synth segment cases --models runs/base -o predicted

Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation" (MICCAI
2023), by its official widths, beside MONAI's U-Net, DynUNet, Attention U-Net, SegResNet, UNETR and
Swin UNETR.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segmentation.network import build
    from segmentation.networks.segmenter import Segmenter
    from segmentation.networks.upkern import grown

__all__ = ["Segmenter", "build", "grown"]

_HOMES = {
    "Segmenter": "segmentation.networks.segmenter",
    "build": "segmentation.network",
    "grown": "segmentation.networks.upkern",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): configurations need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, imported yet or not."""
    return list(__all__)
