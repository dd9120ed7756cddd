"""UpKern: weights of a small kernel as the start of a larger one (Roy et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from synth.base.errors import SynthError

Method = Literal["trilinear", "zeros"]


def grown(
    weights: Mapping[str, Tensor], kernel: int, method: Method = "trilinear"
) -> dict[str, Tensor]:
    """Return a MedNeXt's weights with every depthwise kernel of edge `kernel`.

    trilinear: stretched, as published: a start, not the same function (a sum of 27 taps becomes one
    of 125, which the norm that follows takes back). zeros: padded; answers exactly as before.
    """
    return {
        name: _kernel(value, kernel, method, name) if name.endswith("depthwise.weight") else value
        for name, value in weights.items()
    }


def _kernel(weight: Tensor, edge: int, method: Method, name: str) -> Tensor:
    margin, odd = divmod(edge - weight.shape[-1], 2)
    if margin < 0 or odd:
        raise SynthError(
            f"{name}: a kernel of {weight.shape[-1]} cannot grow to {edge}",
            hint="UpKern goes from kernel 3 to kernel 5",
        )
    if method == "zeros" or margin == 0:
        return F.pad(weight, (margin,) * 6)
    return F.interpolate(weight, size=(edge,) * 3, mode="trilinear", align_corners=False)
