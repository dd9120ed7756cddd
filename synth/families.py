"""The families by name: strings only, so that nothing below the families imports one.

A checkpoint says which family it belongs to; `room` opens that family's module when it is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from synth.config import did_you_mean
from synth.errors import SynthError

FAMILIES = {
    "label_gan": "alpha-GAN that draws tumour labels and masks of healthy tissue",
    "wdm3d": "3-D wavelet diffusion that inpaints healthy tissue",
    "ddpm_lora": "diffusion from a mask to four contrasts, with LoRA fine-tuning to a new site",
    "segmentation": "MedNeXt and its peers: the judge of whether synthetic data help",
}


def require_family(family: str) -> str:
    """Return `family` if there is one of that name."""
    if family not in FAMILIES:
        raise SynthError(f"unknown family '{family}'", hint=did_you_mean(str(family), FAMILIES))
    return family


def has_room(family: str, name: str) -> bool:
    """Say whether the family has a module of that name, without importing that module."""
    return importlib.util.find_spec(f"{require_family(family)}.{name}") is not None


def room(family: str, name: str) -> ModuleType:
    """Import one module of a family: room("wdm3d", "network")."""
    return importlib.import_module(f"{require_family(family)}.{name}")
