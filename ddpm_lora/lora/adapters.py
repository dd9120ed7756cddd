"""Adapters on disk: peft's files, and a pointer to their base.

An adapter folder holds peft's own `adapter_config.json` and `adapter_model.safetensors`, our
`config.json` (also in the metadata of the safetensors file) that names the base, and a card.
Reading them needs no peft; using them is merging them (merging.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm_lora.config import Config
from ddpm_lora.state_space import EDGE, MEAN, SPREAD
from synth.base import manifest
from synth.base.config import from_dict, to_dict
from synth.base.errors import SynthError, first_line
from synth.base.files import read_json
from synth.checkpoints import checkpoint
from synth.checkpoints.checkpoint import (
    ADAPTER,
    ADAPTER_CONFIG,
    CARD,
    CONFIG,
    FORMAT,
    TORN,
    Checkpoint,
)

PREFIX = "base_model.model."  # peft's, before every name
OF_THE_SITE = (MEAN, SPREAD, EDGE)  # measured, not learned
UNSUPPORTED = ("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora")


class AdapterSettings(TypedDict, total=False):
    """adapter_config.json of peft, as far as it is read; the rest is kept."""

    peft_type: str | None
    r: int
    lora_alpha: float
    alpha_pattern: dict[str, float] | None
    rank_pattern: dict[str, int] | None
    use_rslora: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A peft adapter as it lies on disk."""

    folder: Path
    settings: Mapping[str, Any]
    """adapter_config.json."""
    tensors: dict[str, Tensor]
    """By peft's names, the prefix taken off."""
    facts: dict[str, Any]
    """Our config.json; empty for an adapter that peft itself saved."""

    @property
    def name(self) -> str:
        """The folder's name; the run's, where it is a run's best."""
        folder = self.folder.resolve()
        return folder.parent.name if folder.name in ("best", "last") else folder.name


# --- Files -----------------------------------------------------------------------------------


def write(
    folder: Path,
    *,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    base: Mapping[str, Any],
    config: Any,
    **facts: Any,
) -> None:
    """Write the files of an adapter into a folder that `checkpoint.staged` makes safe.

    `tensors` have peft's names without the prefix, `settings` are those of adapter_config.json,
    `base` is what `pointer_to` said of the base. Its path becomes relative to the adapter: the two
    can move together.
    """
    pointer = os.path.relpath(base["path"], folder.resolve())
    metadata = {
        "format": FORMAT,
        **facts,
        "config": to_dict(config),
        "base": {**base, "path": pointer},
        "versions": manifest.versions(),
        "git": manifest.git_commit(),
    }
    text = json.dumps(metadata, indent=1)
    kept = {PREFIX + k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    save_file(kept, folder / ADAPTER, metadata={"synth": text})
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    described = {**settings, "base_model_name_or_path": pointer}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG, folder / ADAPTER)  # safetensors writes for the owner alone
    count = sum(t.numel() for name, t in tensors.items() if name not in OF_THE_SITE)
    (folder / CARD).write_text(checkpoint.card(metadata, count), encoding="utf-8")


def publish(source: str | Path, out: str | Path, *, base: str | Path) -> Path:
    """Copy an adapter without what only its training needs; the copy points to `base` from there.

    `base` holds the weights it was made on, maybe rounded to 16 bits.
    """
    adapter, out = read(source), Path(out)
    loaded = checked(checkpoint.load(base), adapter)
    if (out / checkpoint.WEIGHTS).exists():
        raise SynthError(f"{out} holds a whole network", hint="choose another --out")
    if not adapter.facts:
        raise SynthError(
            f"{adapter.folder} does not describe itself", hint="its config.json is missing"
        )
    written = {"format", "config", "base", "versions", "git"}
    with checkpoint.staged(out) as folder:
        write(
            folder,
            tensors=adapter.tensors,
            settings=adapter.settings,
            base=pointer_to(loaded),
            config=from_dict(Config, adapter.facts["config"]),
            **{k: v for k, v in adapter.facts.items() if k not in written},
        )
    return out


def pointer_to(base: Checkpoint) -> dict[str, Any]:
    """Describe a base: where it is, and what its weights are."""
    place = base.path.parent if base.path.name == checkpoint.WEIGHTS else base.path
    return {
        "path": str(place.resolve()),
        "preset": base.preset,
        "fingerprint": fingerprint(base.model),
    }


def read(path: str | Path) -> Adapter:
    """Read the adapter that `path` means: its folder, a run's best, or the only one inside."""
    folder = find(Path(path))
    settings = read_json(folder / ADAPTER_CONFIG, AdapterSettings)
    try:
        stored = load_file(folder / ADAPTER)
    except TORN as error:
        raise SynthError(
            f"{folder / ADAPTER}: cannot be read: {first_line(error)}",
            hint="the adapter is damaged; copy it again",
        ) from error
    odd = next((k for k in UNSUPPORTED if settings.get(k)), settings.get("peft_type"))
    if odd != "LORA":
        raise SynthError(
            f"{folder} is an unsupported kind of adapter: {odd}",
            hint="only plain LoRA is supported; merge others with peft and convert the result",
        )
    tensors = {k.removeprefix(PREFIX).removeprefix("denoise_fn."): v for k, v in stored.items()}
    checkpoint.require_finite(tensors, name=str(folder / ADAPTER))
    known = (folder / CONFIG).is_file()
    facts = checkpoint.read_metadata(folder / ADAPTER) if known else {}
    settings = cast(Mapping[str, Any], settings)
    return Adapter(folder=folder, settings=settings, tensors=tensors, facts=facts)


def find(path: Path) -> Path:
    """Return the adapter folder that `path` means."""
    path = path.parent if path.name == ADAPTER else path
    for place in (path, path / "best", path / "last"):
        if (place / ADAPTER_CONFIG).is_file():
            return place
    inside = sorted(p.parent for p in path.glob(f"*/{ADAPTER_CONFIG}"))
    if len(inside) == 1:
        return inside[0]
    if not path.exists():
        raise SynthError(f"{path}: no such adapter", hint="check the path and its spelling")
    what = f"{len(inside)} adapters: {', '.join(p.name for p in inside)}" if inside else "none"
    raise SynthError(
        f"{path} is not a LoRA adapter; it holds {what}",
        hint="name one" if inside else f"an adapter is a folder with {ADAPTER_CONFIG}",
    )


def fingerprint(network: nn.Module) -> str:
    """Hash a network's weights, rounded to 16 bits: a half-size copy is the same base."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- The base --------------------------------------------------------------------------------


def base_of(adapter: Adapter, base: str | Path | None = None) -> Checkpoint:
    """Load the base: the one given, the one pointed to, or the right one near the adapter."""
    if base is not None:
        return checked(checkpoint.load(base), adapter)
    pointer = adapter.facts.get("base", {}).get("path")
    if pointer is None:
        raise SynthError(
            f"{adapter.folder} does not say which base it adapts", hint="give the base"
        )
    place = adapter.folder / pointer
    if place.is_file() or (place / checkpoint.WEIGHTS).is_file():
        return checked(checkpoint.load(place), adapter)
    for near in _neighbours(adapter.folder):
        if read_json(near / CONFIG, dict).get("family") == adapter.facts["family"]:
            loaded = checkpoint.load(near)
            if fingerprint(loaded.model) == adapter.facts["base"]["fingerprint"]:
                return loaded
    raise SynthError(
        f"{adapter.folder}: its base {pointer} is not there",
        hint="put the base beside the adapter, or give its place",
    )


def _neighbours(folder: Path) -> Iterator[Path]:
    """Yield the whole models beside and above a folder."""
    for parent in (folder.resolve().parent, folder.resolve().parent.parent):
        for place in (parent, *sorted(p for p in parent.iterdir() if p.is_dir())):
            if (place / checkpoint.WEIGHTS).is_file() and (place / CONFIG).is_file():
                yield place


def checked(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """Return the base if the adapter was made on its weights."""
    wanted = adapter.facts.get("base", {}).get("fingerprint")
    if wanted and fingerprint(base.model) != wanted:
        raise SynthError(
            f"{adapter.folder} adapts another base than {base.path.parent}",
            hint=f"its base was a {adapter.facts['base']['preset']} model with other weights",
        )
    return base
