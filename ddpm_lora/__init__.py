"""Diffusion from a label map to t1n, t1c, t2w and t2f, adapted to a site by LoRA.

    synth train ddpm_lora --data site_a -o runs/base
    synth train ddpm_lora --data site_b -o runs/site_b --lora-from runs/base --lora-preset light

    from ddpm_lora import SamplerOptions, draw, load, read

    site_b = load(lora=["runs/site_b"])
    scans = draw(read(case), site_b, SamplerOptions(seed=3)).scans
    scans = paint(read_into(case, host), site_b, SamplerOptions(seed=3)).scans

Dorjsembe et al., "Conditional Diffusion Models for Semantic 3D Brain MRI Synthesis" (Med-DDPM,
2024), in its own space or in Haar bands; Hu et al., "LoRA: Low-Rank Adaptation" (2022), in the
format of peft's files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synth.base.public_names import export

if TYPE_CHECKING:
    from ddpm_lora.generate import Drawn, SamplerOptions, draw, load
    from ddpm_lora.label_maps import LabelMap, read, read_into
    from ddpm_lora.paint import paint

__all__ = ["Drawn", "LabelMap", "SamplerOptions", "draw", "load", "paint", "read", "read_into"]

__getattr__, __dir__ = export(
    __name__,
    {
        **dict.fromkeys(("Drawn", "SamplerOptions", "draw", "load"), "ddpm_lora.generate"),
        **dict.fromkeys(("LabelMap", "read", "read_into"), "ddpm_lora.label_maps"),
        "paint": "ddpm_lora.paint",
    },
)
