"""Weights and words of earlier projects: wdm-3d, cWDM and the BraTS 2024 inpainting solution.

Their files are bare state dicts under guided-diffusion's names, which are our U-Net's too; what a
file does not say (mode, levels, size) follows from its shapes. Their names of training modes are
understood as well. The solution's loss weights were sums over a whole padded volume, ours are
normalised by the hole: "10 x the hole + 1 x everything" is kept as numbers, not as gradients.
Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from wdm3d.config import BANDS, Config

if TYPE_CHECKING:
    from torch import Tensor

FIRST, LAST = "input_blocks.0.0.weight", "out.2.weight"
MIDDLE = "middle_block.0.out_layers.3.weight"
DECODER = "output_blocks.0.0.in_layers.0.weight"  # twice as wide where skips are concatenated
BLOCKS_PER_LEVEL = 2
# in_channels → mode: x_t alone, with the mask's bands, or with those of three other contrasts
MODE_OF_CHANNELS = {BANDS: "default", 2 * BANDS: "always_known_healthy", 4 * BANDS: "contrast"}
LEVELS = {5: (1, 2, 2, 4, 4), 6: (1, 2, 2, 4, 4, 4)}
CROPS = {5: 128, 6: 256}
# STEPS_SCHEDULER of the solution → (sampler, spacing)
SCHEDULERS = {
    "DPM_plus_plus_2M_Karras": ("dpmpp_2m", "karras"),
    "linear": ("ddpm", "uniform"),
    "None": ("ddpm", "uniform"),
}


def recognise(weights: Mapping[str, Tensor]) -> bool:
    """Whether this is a wavelet U-Net: guided-diffusion's names in 3-D, eight bands out."""
    if not {FIRST, LAST, DECODER, MIDDLE} <= weights.keys():
        return False
    return weights[FIRST].ndim == 5 and weights[LAST].shape[0] == BANDS


def convert(
    weights: Mapping[str, Tensor], source_name: str, **overrides: Any
) -> tuple[Config, dict[str, Tensor]]:
    """Infer the configuration from the shapes; `overrides` are fields of `Config`."""
    channels = int(weights[FIRST].shape[1])
    blocks = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("input_blocks."))
    levels, rest = divmod(blocks, BLOCKS_PER_LEVEL + 1)
    if channels not in MODE_OF_CHANNELS or levels not in LEVELS or rest:
        raise SynthError(
            f"{source_name}: a wavelet U-Net with {channels} input channels and {blocks} encoder "
            "blocks is not one we know",
            hint="known: 8, 16 or 32 channels, 5 or 6 levels of 2 residual blocks",
        )
    mode = MODE_OF_CHANNELS[channels]
    config = Config(
        mode=mode,  # ty: ignore[invalid-argument-type]
        crop=CROPS[levels],
        width=int(weights[FIRST].shape[0]),
        multipliers=LEVELS[levels],
        skips="additive" if len(weights[DECODER]) == len(weights[MIDDLE]) else "concat",
        known="scaled" if mode == "always_known_healthy" else "clean",
    )
    return replace(config, **overrides), dict(weights)


_WEIGHTED = {"l1": 0.0, "mse": 10.0, "everywhere": 1.0}
MODES: dict[str, dict[str, Any]] = {
    "Default": {"mode": "default"},
    "Conditional_default": {"mode": "always_known_healthy", **_WEIGHTED},
    "Conditional_always_known": {"mode": "always_known_healthy", **_WEIGHTED},
    "Conditional_always_known_only_healthy": {"mode": "always_known_healthy", **_WEIGHTED},
}
"""Name → settings of `Config`."""

REFUSED = {
    "Conditional_always_known_only_healthy_only_roi": (
        "could be trained but never sampled, and trained on diseased tissue in spite of its name",
        "--mode always_known_healthy, whose loss looks inside the hole only",
    ),
    "Conditional_always_known_only_healthy_stats_roi": (
        "could be trained but never sampled, and its statistics term had no gradient",
        "--mode always_known_healthy is what it amounted to",
    ),
}
"""Name → (why it is not supported, what to use instead)."""


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with a historical mode replaced; what else is given overrides it."""
    settings = dict(settings)
    name = settings.get("mode")
    if name is None:
        return settings
    if name in REFUSED:
        why, instead = REFUSED[name]
        raise SynthError(f"mode {name} {why}", hint=instead)
    if name in MODES:
        return MODES[name] | {k: v for k, v in settings.items() if k != "mode" and v is not None}
    known = get_args(get_type_hints(Config)["mode"])
    if name not in known:
        raise SynthError(f"unknown mode '{name}'", hint=did_you_mean(name, (*known, *MODES)))
    return settings


def read_scheduler(word: str | None) -> dict[str, str]:
    """Return the sampler and spacing of a STEPS_SCHEDULER of the solution."""
    if word is None:
        return {}
    if word not in SCHEDULERS:
        raise SynthError(
            f"STEPS_SCHEDULER {word} never worked and is not supported",
            hint=did_you_mean(word, SCHEDULERS),
        )
    sampler, spacing = SCHEDULERS[word]
    return {"sampler": sampler, "spacing": spacing}


def require_trained_as(config: Config, name: str, **wanted: str | None) -> None:
    """Refuse a model of another mode or schedule: neither can be changed after training."""
    wanted = translate(wanted)
    for field in ("mode", "schedule"):
        own = getattr(config, field)
        if wanted.get(field) not in (None, own):
            raise SynthError(
                f"{name} was trained with {field} {own}, not {wanted[field]}",
                hint="leave it out: a checkpoint knows what it was trained as",
            )
