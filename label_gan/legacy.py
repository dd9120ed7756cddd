"""Reads the label generators of the BraTS 2023 and 2024 winners.

Five convolutions and nothing else; latent length, width and channels follow from their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from label_gan.config import ALPHA, SEED_EDGE, Config
from synth.base.errors import SynthError

FIRST, LAST = "tp_conv1.weight", "tp_conv5.weight"
# theirs → ours; nothing else is in the file, as its instance norms have no weights
NAMES = {FIRST: "seed.weight"} | {f"tp_conv{i + 2}.weight": f"blocks.{i}.weight" for i in range(4)}


def recognise(weights: Mapping[str, Tensor]) -> bool:
    """Whether this is a label generator: a transposed convolution to 4³ comes first."""
    return FIRST in weights and weights[FIRST].shape[2:] == (SEED_EDGE,) * 3


def convert(
    weights: Mapping[str, Tensor], source_name: str, **overrides: Any
) -> tuple[Config, dict[str, Tensor]]:
    """Infer the configuration from the shapes; `overrides` are fields of `Config`."""
    for word, names in (("lacks", NAMES.keys() - weights), ("has", weights.keys() - NAMES.keys())):
        if names:
            raise SynthError(
                f"{source_name}: a label generator {word} '{min(names)}'",
                hint=f"expected five tensors: {', '.join(NAMES)}",
            )
    latent, widest = weights[FIRST].shape[:2]
    config = replace(
        ALPHA,
        latent=int(latent),
        width=int(widest) // 2 ** (ALPHA.levels - 1),
        channels=int(weights[LAST].shape[0]),
    )
    return replace(config, **overrides), {NAMES[key]: tensor for key, tensor in weights.items()}
