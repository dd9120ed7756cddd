"""Choice of the device to compute on."""

from __future__ import annotations

import torch

from synth.base.errors import SynthError, first_line


def pick(device: str) -> str:
    """Return a torch device name; `auto` is the first GPU, or the CPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SynthError(
            f"device {device} is not available: {first_line(error)}",
            hint="auto, cpu, cuda or cuda:N; `synth info` lists what there is",
        ) from error
    return device
