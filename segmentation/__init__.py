"""Segmentation networks, and the comparison that says whether synthetic data help.

    synth train segmentation --data cases --preset small -o runs/base
    synth segment cases --models runs/base -o predicted

Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation" (MICCAI
2023), by its official widths, beside MONAI's U-Net, DynUNet, Attention U-Net, SegResNet, UNETR and
Swin UNETR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synth.base.public_names import export

if TYPE_CHECKING:
    from segmentation.finetune import grow_kernels
    from segmentation.network import build
    from segmentation.networks.segmenter import Segmenter

__all__ = ["Segmenter", "build", "grow_kernels"]

__getattr__, __dir__ = export(
    __name__,
    {
        "Segmenter": "segmentation.networks.segmenter",
        "build": "segmentation.network",
        "grow_kernels": "segmentation.finetune",
    },
)
