"""Conversion of other projects' weights into a checkpoint.

What a family knows of other people's files stands in its `legacy.py`; `Family.recognise` and
`Family.convert` name the functions.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from synth.base import families
from synth.base.config import require_known
from synth.base.errors import SynthError, first_line
from synth.base.families import Family
from synth.checkpoints import checkpoint
from synth.checkpoints.compression import Bits

MAX_WRAPPERS = 8
WRAPPERS = (
    *("ema", "ema_state_dict", "model_ema", "ema_model"),
    *("state_dict", "model_state_dict", "network_weights", "model", "net"),
)
"""Where training scripts keep the weights in what they save; averaged ones are preferred."""
PREFIXES = ("module.", "_orig_mod.", "model.", "denoise_fn.")
"""What wrappers (DataParallel, torch.compile, trainers, diffusion classes) put before names."""

log = logging.getLogger(__name__)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    family: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    bits: Bits = 32,
    adapter_of: str | Path | None = None,
) -> Path:
    """Read a .pt, .pth or .safetensors file of somebody else and write our checkpoint to `out`.

    A run or a checkpoint of ours is copied without what only its training needs. An adapter is
    merged into its base, or, with `adapter_of`, stays one and points to that base.
    """
    source = Path(source)
    if adapter_of is not None:
        if bits != 32 or overrides:
            raise SynthError("an adapter is copied as it is", hint="leave --bits and --set out")
        own = families.get(checkpoint.read_metadata(source)["family"])
        if own.publish_adapter is None or family not in (None, own.name):
            wanted = family or own.name
            raise SynthError(f"{source} is not a {wanted} adapter", hint="see `synth info`")
        return own.publish_adapter.load()(source, out, base=adapter_of)
    if source.is_dir():
        return _copy(source, Path(out), family, overrides, bits)
    weights = unwrap(read_weights(source), name=str(source))
    found, weights = recognise(weights, family, name=str(source))
    assert found.convert is not None, f"{found.name} recognises weights that it cannot convert"
    require_known(found.config.load(), overrides or ())
    config, weights = found.convert.load()(weights, source.name, **(overrides or {}))
    model = found.build.load()(config)
    checkpoint.load_strictly(model, weights, name=str(source))
    log.info("%s is %s: %d tensors", source, found.name, len(weights))
    return checkpoint.save(
        out,
        model=model,
        family=found.name,
        preset="converted",
        config=config,
        bits=bits,
        source=source.name,
    )


def _copy(
    source: Path, out: Path, family: str | None, overrides: Mapping[str, Any] | None, bits: Bits
) -> Path:
    loaded = checkpoint.load(source)
    if overrides:
        raise SynthError(f"{source} knows its settings", hint="leave --set out")
    if family not in (None, loaded.family):
        raise SynthError(f"{source} is a {loaded.family} checkpoint, not {family}")
    written = {"format", "family", "preset", "config", "versions", "git"}
    return checkpoint.save(
        out,
        model=loaded.model,
        family=loaded.family,
        preset=loaded.preset,
        config=loaded.config,
        bits=bits,
        **{k: v for k, v in loaded.metadata.items() if k not in written},
    )


def read_weights(source: Path) -> Any:
    """Return what the file holds; objects other than tensors and plain containers are refused."""
    if not source.is_file():
        raise SynthError(f"{source}: no such file", hint="give the .pt, .pth or .safetensors file")
    try:
        if source.suffix == ".safetensors":
            return load_file(source)
        checkpoint.require_stored(source)
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SynthError(
            f"{source} holds more than weights, or no weights: {_name_offender(error)}",
            hint="loading objects can run code; where you trust the file, load it with torch "
            "yourself and save the state_dict alone: torch.save(model.state_dict(), …)",
        ) from error
    except (*checkpoint.TORN, zipfile.BadZipFile, MemoryError) as error:
        raise SynthError(
            f"{source}: cannot be read: {first_line(error)}",
            hint="the file is truncated or not a PyTorch file; copy it again",
        ) from error


def unwrap(content: Any, *, name: str) -> dict[str, Tensor]:
    """Return the state dict inside what a training script saved, averaged weights first."""
    for _ in range(MAX_WRAPPERS):  # a dict that holds itself never ends
        if not isinstance(content, Mapping):
            break
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            if tensors:
                return tensors
            break
        log.info("%s: taking '%s' of %s", name, inner[0], ", ".join(map(str, content)))
        content = content[inner[0]]
    raise SynthError(
        f"{name} holds no weights", hint=f"expected a state_dict, alone or under {WRAPPERS}"
    )


def recognise(
    weights: dict[str, Tensor], family: str | None, *, name: str
) -> tuple[Family, dict[str, Tensor]]:
    """Return the family that knows these weights, and the weights under the names it knows."""
    wanted = [families.get(family)] if family else list(families.FAMILIES.values())
    able = [each.name for each in wanted if each.recognise is not None]
    for candidate in strip_prefixes(weights):
        for each in wanted:
            if each.recognise is not None and each.recognise.load()(candidate):
                return each, candidate
    some = ", ".join(sorted(weights)[:3])
    raise SynthError(
        f"{name}: unknown weights for {' or '.join(able) or 'every family'} ({some}, …)",
        hint="convert reads the public checkpoints named in the README",
    )


def strip_prefixes(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the weights under their own names, then with one wrapper's prefix less at a time.

    Where only a part carries the prefix, the rest is the wrapper's own, such as the noise schedule
    beside a diffusion class's network, and stays behind.
    """
    yield weights
    for prefix in PREFIXES * 2:
        inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        if inside:
            weights = inside
            yield weights


def _name_offender(error: Exception) -> str:
    """Return the line of torch's long refusal that names what was refused."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((s for s in lines if "Unsupported" in s or "GLOBAL" in s), first_line(error))
