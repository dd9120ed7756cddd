"""Puts a training together: recipe and items, of a whole model or an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddpm_lora.config import Config
from ddpm_lora.data import SynthesisData
from ddpm_lora.network import build
from ddpm_lora.recipe import Recipe, measure
from synth.data.cache import ArrayCache
from synth.data.case import Case


def assemble(
    config: Config, training: Sequence[Case], held_out: Sequence[Case], *, cache: Path
) -> tuple[Recipe, SynthesisData, SynthesisData | None]:
    """Return (recipe, training items, validation items) for the loop."""
    items = SynthesisData(training, config, cache=ArrayCache(cache))
    validation = SynthesisData(held_out, config, cache=ArrayCache(cache), fixed=True)
    facts = {"intensities": items.intensities()}
    if config.lora_from:
        from ddpm_lora.lora.finetune import FineTuning  # peft takes seconds to import

        recipe: Recipe = FineTuning(config, facts, items)
    else:
        network = build(config)
        if config.space == "wavelet":
            measure(network, items)
        recipe = Recipe(config, network, facts)
    return recipe, items, validation if held_out else None
