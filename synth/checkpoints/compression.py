"""Weights stored in 16 or 8 bits, for smaller files.

Eight bits are for large matrices: w ≈ scale_row · q with q in −127 … 127, so that no weight is off
by more than 1/254 of the largest in its row. What is small or not a matrix stays in 16 bits, where
it costs little. Names of the scales end in `SCALE`, and loading takes both together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Bits = Literal[32, 16, 8]
SCALE = "@scale"  # no parameter of a module can be called so
LARGE = 2**15
"""Weights from which eight bits are worth it."""


def compress(weights: Mapping[str, Tensor], bits: Bits) -> dict[str, Tensor]:
    """Return copies of weights in 32 (as they are), 16 or 8 bits, on the CPU."""
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        # Copies: safetensors refuses tensors that share memory, as tied weights do.
        own = tensor.detach().to("cpu", copy=True).contiguous()
        if bits == 8 and own.is_floating_point() and own.ndim > 1 and own.numel() >= LARGE:
            rows = own.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-30) / 127
            stored[name] = (rows / scale[:, None]).round().to(torch.int8).view_as(own)
            stored[name + SCALE] = scale
        else:
            stored[name] = own.half() if bits < 32 and own.is_floating_point() else own
    return stored


def decompress(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as they were before `compress`, but for its rounding of the eight-bit ones."""
    found = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE):
            continue
        scale = stored.get(name + SCALE)
        if scale is not None:
            tensor = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        found[name] = tensor
    return found
