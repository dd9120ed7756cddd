"""Reads Med-DDPM's `model_brats.pt`, and adapters of its LoRA fork.

Med-DDPM writes {'step', 'model', 'ema'} of a diffusion class: thirteen buffers of the noise
schedule, and the U-Net under `denoise_fn.`. The fork writes the same of the class wrapped by peft:
base layers, the matrices of three layers, and a trained copy of the last convolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ddpm_lora.config import CLASSES, CONTRASTS, PRESETS, Config
from ddpm_lora.lora.adapters import PREFIX

FIRST, LAST = "input_blocks.0.0.weight", "out.2.weight"
MIDDLE = "middle_block.1.qkv.weight"
NETWORK = PREFIX + "denoise_fn."
FORK_ALPHA = 8  # peft's default, which the fork left; it saved no adapter_config.json
SCHEDULE = re.compile(
    re.escape(PREFIX)
    + r"(betas|alphas_cumprod(_prev)?|(sqrt|log|posterior)_\w+)"  # the fork's own buffers
)


def plain_name(key: str) -> str:
    """Return a tensor's name before peft wrapped the network."""
    key = key.removeprefix(NETWORK).replace(".base_layer.", ".")
    return key.replace(".modules_to_save.default.", ".")


def recognise(weights: Mapping[str, Tensor]) -> bool:
    """Whether this is Med-DDPM's U-Net: four contrasts out, a label map beside them in."""
    named = {plain_name(key): value for key, value in weights.items()}
    if not {FIRST, LAST, MIDDLE} <= named.keys() or named[FIRST].ndim != 5:
        return False
    return named[FIRST].shape[1] == CONTRASTS + CLASSES and named[LAST].shape[0] == CONTRASTS


def convert(
    weights: Mapping[str, Tensor], source_name: str, **overrides: Any
) -> tuple[Config, dict[str, Tensor]]:
    """Return the configuration that the shapes say, and the weights, an adapter merged in."""
    del source_name  # nothing in the name matters
    plain = merged(weights)
    width = len(plain[FIRST])
    levels: list[list[int]] = [[]]  # channels of each residual block, level by level
    for number in range(1, 1 + sum(key.startswith("input_blocks.") for key in plain)):
        block = f"input_blocks.{number}.0."
        if f"{block}op.weight" in plain:
            levels.append([])
        elif f"{block}out_layers.3.weight" in plain:
            levels[-1].append(len(plain[f"{block}out_layers.3.weight"]))
    config = replace(
        PRESETS["meddpm"],
        width=width,
        multipliers=tuple(channels[0] // width for channels in levels if channels),
        blocks_per_level=len(levels[0]),
    )
    return replace(config, **overrides), plain


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the fork's weights as a plain network's: W + (α/r) BA, and the trained copies."""
    plain: dict[str, Tensor] = {}
    for key, value in weights.items():
        if SCHEDULE.fullmatch(key) or ".lora_" in key or ".original_module." in key:
            continue
        plain[plain_name(key)] = value
    for key, a in weights.items():
        layer, found, _ = key.rpartition(".lora_A.default.weight")
        if found:
            b, name = weights[f"{layer}.lora_B.default.weight"], f"{plain_name(layer)}.weight"
            change = b.flatten(1) @ a.flatten(1) * (FORK_ALPHA / len(a))
            plain[name] = plain[name] + change.view_as(plain[name])
    return plain
