"""3-D wavelet diffusion that paints healthy tissue into a masked region of a brain MRI.

    import wdm3d

    filled = wdm3d.inpaint("A-t1n-voided.nii.gz", "A-mask.nii.gz", seed=0).image
    wdm3d.Inpainter(force_cpu=True).infer_batch("cases", "filled")

Friedrich et al., "WDM: 3D Wavelet Diffusion Models for High-Resolution Medical Image Synthesis"
(2024), in the inpainting setting of the BraTS Local-Synthesis challenge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synth.base.public_names import export

if TYPE_CHECKING:
    from wdm3d.cases import Inpainter
    from wdm3d.config import SamplerOptions
    from wdm3d.generate import Inpainted, inpaint

__all__ = ["Inpainted", "Inpainter", "SamplerOptions", "inpaint"]

__getattr__, __dir__ = export(
    __name__,
    {
        "Inpainted": "wdm3d.generate",
        "inpaint": "wdm3d.generate",
        "Inpainter": "wdm3d.cases",
        "SamplerOptions": "wdm3d.config",
    },
)
