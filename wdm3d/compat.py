"""Reads the public weights of wdm-3d, cWDM and the BraTS 2024 inpainting solution.

Their files are bare state dicts under guided-diffusion's names, which are our U-Net's too; what a
file does not say (mode, levels, size) follows from its shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from wdm3d.config import BANDS, Config

FIRST, LAST = "input_blocks.0.0.weight", "out.2.weight"
MIDDLE = "middle_block.0.out_layers.3.weight"
DECODER = "output_blocks.0.0.in_layers.0.weight"  # twice as wide where skips are concatenated
BLOCKS_PER_LEVEL = 2
# in_channels → mode: x_t alone, with the mask's bands, or with those of three other contrasts
MODES = {BANDS: "default", 2 * BANDS: "always_known_healthy", 4 * BANDS: "contrast"}
LEVELS = {5: (1, 2, 2, 4, 4), 6: (1, 2, 2, 4, 4, 4)}
CROPS = {5: 128, 6: 256}


def recognise(weights: Mapping[str, Tensor]) -> bool:
    """Whether this is a wavelet U-Net: guided-diffusion's names in 3-D, eight bands out."""
    if not {FIRST, LAST, DECODER, MIDDLE} <= weights.keys():
        return False
    return weights[FIRST].ndim == 5 and weights[LAST].shape[0] == BANDS


def convert(
    weights: Mapping[str, Tensor], source_name: str, **overrides: Any
) -> tuple[Config, dict[str, Tensor]]:
    """Infer the configuration from the shapes; `overrides` are fields of `Config`."""
    for key in overrides:
        if key not in (known := [f.name for f in fields(Config)]):
            raise SynthError(f"unknown setting '{key}'", hint=did_you_mean(key, known))
    channels = int(weights[FIRST].shape[1])
    blocks = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("input_blocks."))
    levels, rest = divmod(blocks, BLOCKS_PER_LEVEL + 1)
    if channels not in MODES or levels not in LEVELS or rest:
        raise SynthError(
            f"{source_name}: a wavelet U-Net with {channels} input channels and {blocks} encoder "
            "blocks is not one we know",
            hint="known: 8, 16 or 32 channels, 5 or 6 levels of 2 residual blocks",
        )
    mode = MODES[channels]
    config = Config(
        mode=mode,  # ty: ignore[invalid-argument-type]
        crop=CROPS[levels],
        width=int(weights[FIRST].shape[0]),
        multipliers=LEVELS[levels],
        skips="additive" if len(weights[DECODER]) == len(weights[MIDDLE]) else "concat",
        known="scaled" if mode == "always_known_healthy" else "clean",
    )
    return replace(config, **overrides), dict(weights)
