"""Adds adapters to the base's weights: W + Σ wᵢ sᵢ BᵢAᵢ (Hu et al. 2022).

What comes out is a plain network. peft itself is not needed, and its version 0.21 cannot merge into
1×1×1 convolutions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lora.lora.adapters import Adapter, base_of, checked, read
from synth.base.errors import SynthError
from synth.checkpoints.checkpoint import ADAPTER, Checkpoint

OF_THE_BASE_ALONE = frozenset({"metrics", "step", "seed"})

REPEATED_GROUP = re.compile(r"\)[*+?{]")


def load(
    adapters: Sequence[str | Path] | str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Checkpoint:
    """Return the base with adapters merged in: "siteA", or ["siteA:0.7", "siteB:0.3"]."""
    words = [adapters] if isinstance(adapters, str | Path) else list(adapters)
    weighted = [(read(path), weight) for path, weight in map(weight_of, words)]
    loaded = base_of(weighted[0][0], base)
    for adapter, _ in weighted[1:]:
        checked(loaded, adapter)
    merge(loaded.model, weighted)
    loaded.model.to(device)
    own = {k: v for k, v in loaded.metadata.items() if k not in OF_THE_BASE_ALONE}
    facts = {**own, **_mixed_intensities(weighted), "adapters": [_mention(*w) for w in weighted]}
    path = weighted[0][0].folder / ADAPTER
    return replace(loaded, path=path, metadata=facts, preset=f"{loaded.preset}+lora")


def weight_of(word: str | Path) -> tuple[Path, float]:
    """Split "folder:0.7" into folder and weight; without a number the weight is 1."""
    path, colon, number = str(word).rpartition(":")
    if not colon or Path(word).exists():
        return Path(word), 1.0
    try:
        return Path(path), float(number)
    except ValueError as error:
        raise SynthError(f"{word}: '{number}' is not a weight", hint="FOLDER:0.7") from error


@torch.no_grad()
def merge(network: nn.Module, weighted: Sequence[tuple[Adapter, float]]) -> None:
    """Add Σ wᵢ ΔWᵢ to a network's weights."""
    own = network.state_dict()
    changes = [(dict(deltas(a, own)), weight) for a, weight in weighted]  # all, before any is made
    for change, weight in changes:
        for name, delta in change.items():
            own[name].add_(delta.to(own[name]), alpha=weight)


def deltas(adapter: Adapter, base: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield what an adapter adds to each weight: s·BA, or all that a fully trained layer moved.

    B (out, r, 1 …) and A (r, in, kernel …) are matrices over the flattened rest, whatever the
    layer: Linear, Conv1d, Conv3d of any kernel.
    """
    left = dict(adapter.tensors)
    for name in sorted(left):
        layer, found, _ = name.rpartition(".lora_A.weight")
        if not found:
            continue
        a, b = left.pop(name), left.pop(f"{layer}.lora_B.weight", torch.zeros(0))
        weight = base.get(f"{layer}.weight")
        if weight is None or b.ndim < 2:
            raise _foreign(adapter, name)
        if (len(b), b[0].numel(), a[0].numel()) != (len(weight), len(a), weight[0].numel()):
            raise _foreign(adapter, name)
        change = b.flatten(1).double() @ a.flatten(1).double()
        yield f"{layer}.weight", change.view_as(weight) * _scaling(adapter.settings, layer, len(a))
    for name, tensor in left.items():
        if name not in base or base[name].shape != tensor.shape:
            raise _foreign(adapter, name)
        yield name, tensor.double() - base[name].double().cpu()


MOST_ALPHA = 1e6


def _scaling(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """α/r, or α/√r where the adapter says so; patterns as peft matches them."""
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if REPEATED_GROUP.search(pattern):  # it may take longer than anybody waits
            raise SynthError(
                f"the adapter's alpha_pattern {pattern!r} repeats a group",
                hint="write the names of its layers out",
            )
        try:
            found = re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer)
        except (re.error, OverflowError, RecursionError) as error:
            raise SynthError(f"the adapter's alpha_pattern {pattern!r}: {error}") from error
        if found:
            alpha = value
            break
    if not 0 <= alpha < MOST_ALPHA:
        raise SynthError(f"the adapter's lora_alpha is {alpha}", hint="the file is damaged")
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _mention(adapter: Adapter, weight: float) -> dict[str, Any]:
    known = ("data_hash", "seed", "step", "patients")
    kept = {k: adapter.facts[k] for k in known if k in adapter.facts}
    return {"name": adapter.name, "weight": weight, **kept}


def _foreign(adapter: Adapter, name: str) -> SynthError:
    return SynthError(
        f"{adapter.folder}: '{name}' does not fit the base",
        hint="it adapts another network; give its own base",
    )


def _mixed_intensities(weighted: Sequence[tuple[Adapter, float]]) -> dict[str, Any]:
    """Return the sites' intensities, averaged by weight; nothing where an adapter has none."""
    tables = [(a.facts.get("intensities", {}), abs(weight)) for a, weight in weighted]
    total = sum(weight for _, weight in tables)
    if not total or not all(table for table, _ in tables):
        return {}
    mixed: dict[str, dict[str, float]] = {}
    for table, weight in tables:
        for contrast, scale in table.items():
            row = mixed.setdefault(contrast, {})
            for name, value in scale.items():
                row[name] = row.get(name, 0.0) + value * weight / total
    return {"intensities": mixed}
