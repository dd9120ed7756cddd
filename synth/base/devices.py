"""Choice of the device to compute on."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

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


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory is what was lacking: torch's allocators raise different classes."""
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or (isinstance(error, RuntimeError) and "memory" in str(error).lower())


@contextmanager
def name_what_needs_memory(what: str) -> Generator[None]:
    """Turn a lack of memory into one line that names what was too large."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SynthError(
            f"out of memory for {what}", hint="free memory on the device, or use --device cpu"
        ) from error
