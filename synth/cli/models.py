"""The verbs convert and info."""

from __future__ import annotations

from collections.abc import Mapping
from json import JSONDecodeError, dumps, loads
from pathlib import Path
from typing import Any, Literal

from synth.base import families
from synth.base.errors import SynthError
from synth.base.version import __version__


def convert(
    source: Path,
    *,
    out: Path,
    family: str | None = None,
    set: tuple[str, ...] = (),
    bits: Literal[32, 16, 8] = 32,
    adapter_of: Path | None = None,
) -> int:
    """Convert the weights of a public project, or of a run, to a checkpoint folder.

    The names and shapes in the file say which family it is. No code from the file is run. From a
    run, the best checkpoint is copied; a run that trained an adapter becomes its base with the
    adapter in it.

    Args:
        source: .pt, .pth or .safetensors: a state dict, alone or under model, ema, state_dict; or
            a run or checkpoint of synth.
        out: folder to write.
        family: refuse weights of another family.
        set: settings that the file cannot tell, as name=value.
        bits: bits of each stored weight; 16 halves the file, 8 quarters it (large matrices only).
        adapter_of: base of the adapter: copy only the adapter, which then points to this base.
    """
    from synth.checkpoints.convert import convert as read

    overrides: dict[str, Any] = {}
    for pair in set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SynthError(f"--set {pair}", hint="write it as name=value")
        try:
            overrides[name] = loads(value)
        except JSONDecodeError:
            overrides[name] = value
    folder = read(source, out, family=family, overrides=overrides, bits=bits, adapter_of=adapter_of)
    print(f"{source} → {folder}")
    return 0


def info(checkpoint: Path | None = None, *, json: bool = False, **tables: Mapping[str, str]) -> int:
    """Show versions, devices, families, presets and verbs, or describe a checkpoint.

    Args:
        checkpoint: a checkpoint folder, a single .safetensors file, a run, or a folder of several.
        json: print JSON.
        tables: what else to show; the command line adds its verbs.
    """
    facts = _checkpoint_facts(checkpoint) if checkpoint is not None else _installation() | tables
    if json:
        print(dumps(facts, indent=1))
        return 0
    for key, value in facts.items():
        print(f"{key}: {value if isinstance(value, str | int) else dumps(value)}")
    return 0


def _checkpoint_facts(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, or a line for each in a folder of several."""
    from synth.checkpoints.checkpoint import CONFIG, read_metadata

    inside = sorted(folder.glob(f"*/{CONFIG}"))
    if not inside or (folder / "last").is_dir() or (folder / CONFIG).exists():
        return read_metadata(folder)
    found = {path.parent.name: read_metadata(path.parent) for path in inside}
    return {k: f"{f['family']} {f['preset']}, step {f.get('step')}" for k, f in found.items()}


def _installation() -> dict[str, Any]:
    from synth.base.manifest import gpu_names, versions

    return {
        "version": __version__,
        "versions": versions(),
        "devices": gpu_names() or ["cpu"],
        "families": {name: parts.about for name, parts in families.FAMILIES.items()},
        "presets": {name: list(parts.presets.load()) for name, parts in families.FAMILIES.items()},
    }
