"""The predecessor's names for modes of training, and what they mean here. Imports no torch.

Its weights of the loss were sums over a whole padded volume; ours are normalised by the hole, so
its "10 x the hole + 1 x everything" is kept as numbers, not as gradients. What differed beyond
that does no longer: diseased tissue is never a target here, whatever the mode, and known tissue is
in sampling what it was in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from wdm3d.config import Config

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
"""Name → (why it is not taken over, what to use instead)."""


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
