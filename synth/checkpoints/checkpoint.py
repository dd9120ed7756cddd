"""Checkpoint folders: config.json, model.safetensors, README.md; writing and loading.

The same JSON stands in the metadata of the safetensors file, which therefore loads alone, and which
is the authority where the two differ (after a kill between two renames). In a run, last/ also holds
state.pt, which resumes by itself. Loading never unpickles objects.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import struct
import zipfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synth.base import families, manifest
from synth.base.config import from_dict, to_dict
from synth.base.errors import SynthError, first_line
from synth.base.files import parse_json, remove_left_overs, temporary_of
from synth.base.version import __version__
from synth.base.weights import or_shipped
from synth.checkpoints.compression import Bits, compress, decompress

FORMAT = 1
WEIGHTS = "model.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names
STATE = "state.pt"
CONFIG = "config.json"
CARD = "README.md"

TORN = (OSError, EOFError, RuntimeError, ValueError, TypeError, AssertionError, AttributeError)
TORN += (LookupError, struct.error, SafetensorError)
"""What torch.load and safetensors raise on damaged bytes; they promise no kind of error."""

log = logging.getLogger(__name__)


class Metadata(TypedDict):
    """config.json of a checkpoint or adapter."""

    format: int
    family: str
    preset: str
    config: dict[str, Any]
    versions: dict[str, Any]
    base: NotRequired[dict[str, Any]]
    patients: NotRequired[list[str] | None]
    metrics: NotRequired[dict[str, float]]
    data_hash: NotRequired[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A network with everything that is known about it."""

    path: Path
    """The safetensors file it came from."""
    family: str
    preset: str
    config: Any
    """The family's Config."""
    metadata: dict[str, Any]
    """The whole of config.json: versions, seed, step, metrics."""
    model: nn.Module
    """In eval mode, without gradients."""


def save(
    directory: str | Path,
    *,
    model: nn.Module,
    family: str,
    preset: str,
    config: Any,
    bits: Bits = 32,
    **facts: Any,
) -> Path:
    """Write a checkpoint folder; whatever the instant of a kill, it is readable before and after.

    `facts` are JSON values that belong to the weights: seed, data_hash, step, metrics, source.
    With 16 or 8 `bits` the weights are rounded to be handed on (`synth.checkpoints.compression`);
    loading widens them again.
    """
    with staged(directory) as folder:
        write(folder, model=model, family=family, preset=preset, config=config, bits=bits, **facts)
    return Path(directory)


def write(
    folder: Path,
    *,
    model: nn.Module,
    family: str,
    preset: str,
    config: Any,
    bits: Bits = 32,
    **facts: Any,
) -> None:
    """Write the files of a checkpoint into an existing folder, which `staged` makes safe."""
    metadata = {
        "format": FORMAT,
        "family": families.get(family).name,
        "preset": preset,
        "config": to_dict(config),
        "versions": manifest.versions(),
        "git": manifest.git_commit(),
        **facts,
    }
    text = json.dumps(metadata, indent=1)
    # One key only: safetensors writes several in random order, and equal weights make equal files.
    save_file(compress(model.state_dict(), bits), folder / WEIGHTS, metadata={"synth": text})
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors writes for the owner alone
    count = sum(p.numel() for p in model.parameters())
    (folder / CARD).write_text(card(metadata, count), encoding="utf-8")


@contextlib.contextmanager
def staged(directory: str | Path) -> Generator[Path]:
    """Yield a temporary folder whose files take their place in `directory` when the block succeeds.

    A new directory appears at once, complete. In an existing one each file is replaced by a rename;
    no file depends on another, so that any moment between two renames is readable too.
    """
    directory = Path(directory)
    folder = temporary_of(directory)
    try:
        remove_left_overs(directory)
        folder.mkdir(parents=True)
        yield folder
        for file in sorted(folder.iterdir()):
            _sync(file)
        _sync(folder)
        if not directory.exists():
            folder.rename(directory)
        else:
            for file in sorted(folder.iterdir()):
                os.replace(file, directory / file.name)
            _sync(directory)
        _sync(directory.parent)
    # torch and safetensors report a full disk as their own kinds of error.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise SynthError(
            f"{directory}: cannot write the checkpoint: {first_line(error)}",
            hint="check the free space and your permission there; what was saved before is intact",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Load the network of a folder, a lone .safetensors file, or a run; adapters come merged."""
    file = locate(path)
    metadata = read_metadata(file)
    if "base" in metadata:
        merge = families.get(metadata["family"]).merge_adapter
        if merge is None:
            raise SynthError(f"{file}: {metadata['family']} has no adapters")
        return merge.load()(file, device=device)
    family, preset = families.get(metadata["family"]), metadata["preset"]
    config = from_dict(family.config.load(), metadata["config"])
    tensors = decompress(load_file(file))
    build = family.build.load()
    try:
        with torch.device("meta"):  # costs no memory, whatever the settings claim
            expected = build(config)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise SynthError(
            f"{file}: its settings make no network: {first_line(error)}",
            hint="the file is damaged; copy it again",
        ) from error
    require_same_shapes(expected, tensors, name=str(file))
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: draw nothing
        model = build(config)
    load_strictly(model, tensors, name=str(file))
    model = model.to(device).eval().requires_grad_(False)
    return Checkpoint(
        path=file, family=family.name, preset=preset, config=config, metadata=metadata, model=model
    )


def locate(path: str | Path) -> Path:
    """Return the safetensors file that `path` means: itself, the folder's, or the run's best."""
    path = or_shipped(path)
    if path.is_file():
        return path
    for place, name in product((path, path / "best", path / "last"), (WEIGHTS, ADAPTER)):
        if (place / name).is_file():
            if place != path:
                log.info("%s is a training run: using %s/", path, place.name)
            return place / name
    if not path.exists():
        raise SynthError(f"{path}: no such checkpoint", hint="check the path and its spelling")
    bare = (path / ADAPTER_CONFIG).is_file()
    raise SynthError(
        f"{path} is not a checkpoint: "
        + ("a LoRA adapter without weights" if bare else f"no {WEIGHTS}, no best/, no last/"),
        hint="a run has one after its first save; `synth convert` reads other people's weights",
    )


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, without building its network."""
    file = locate(path)
    try:
        with safe_open(file, framework="pt") as handle:
            header = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise SynthError(
            f"{file}: cannot be read as safetensors: {first_line(error)}",
            hint="the file is truncated or of another kind; copy it again, "
            "or `synth convert` it if it is a .pt or .pth",
        ) from error
    if "synth" not in header:
        raise _not_ours(file)
    metadata = parse_json(header["synth"], Metadata, name=str(file))
    if metadata["format"] != FORMAT:
        raise SynthError(
            f"{file} has checkpoint format {metadata['format']}; this version reads {FORMAT}",
            hint=f"upgrade synth (this is {__version__})",
        )
    return cast(dict[str, Any], metadata)


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Load finite weights whose names and shapes must all agree with the network's."""
    require_same_shapes(model, tensors, name=name)
    require_finite(tensors, name=name)
    model.load_state_dict(tensors)


def require_same_shapes(model: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Refuse weights of another network, and say the first that differs."""
    own = model.state_dict()
    lacking, unknown = own.keys() - tensors, tensors.keys() - own
    other = [k for k, v in own.items() if k in tensors and v.shape != tensors[k].shape]
    problem = ""
    if lacking:
        problem = f" lacks {len(lacking)} of the network's weights, first '{min(lacking)}'"
    elif unknown:
        problem = f" has {len(unknown)} weights unknown to the network, first '{min(unknown)}'"
    elif other:
        found, expected = tuple(tensors[other[0]].shape), tuple(own[other[0]].shape)
        problem = f": '{other[0]}' is {found}, the network expects {expected}"
    if problem:
        hint = "the weights and the configuration belong to different networks"
        raise SynthError(f"{name}{problem}", hint=hint)


def require_finite(tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Refuse weights that are NaN or infinite: every scan made with them would be."""
    odd = next((k for k, v in tensors.items() if not torch.isfinite(v).all()), None)
    if odd is not None:
        raise SynthError(
            f"{name}: '{odd}' holds NaN or infinity",
            hint="the file is damaged or the training diverged; take another checkpoint",
        )


def require_stored(path: Path) -> None:
    """Refuse a zip whose members are packed: torch stores them, so that a claim costs its bytes."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > path.stat().st_size:
        raise ValueError(f"its {path.stat().st_size:,} bytes would become {claimed:,}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_ours(file: Path) -> SynthError:
    return SynthError(
        f"{file} does not say which network it belongs to",
        hint="it is not a checkpoint of synth: `synth convert` reads other people's weights",
    )


def card(metadata: Mapping[str, Any], parameters: int) -> str:
    """Return the model card of a network, or of an adapter, whose metadata name a base."""
    family, base = metadata["family"], metadata.get("base")
    rows = {
        "family": f"{family}: {families.get(family).about}",
        "preset": metadata["preset"],
        "base": base and f"{base['path']} ({base['preset']}, weights {base['fingerprint']})",
        "parameters": f"{parameters:,}",
        "step": metadata.get("step"),
        "seed": metadata.get("seed"),
        "data": metadata.get("data_hash"),
        "source": metadata.get("source"),
        "commit": metadata.get("git"),
        **{f"validation {k}": f"{v:.6g}" for k, v in metadata.get("metrics", {}).items()},
        **metadata["versions"],
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)
    command = metadata.get("command")
    trained = f"Trained by\n\n```bash\n{command}\n```\n\n" if command else ""
    title = f"# {family} ({metadata['preset']})"
    held = WEIGHTS if base is None else ADAPTER
    merged = "" if base is None else "  # the base, with this adapter merged into it"
    return (
        f"{title}\n\n| what | value |\n| --- | --- |\n{table}\n\n{trained}"
        f"`{held}` holds the weights and, in its metadata, the whole configuration; a training "
        f"run puts its averaged (EMA) weights there.\n\n```python\nfrom synth import checkpoint\n\n"
        f'model = checkpoint.load("this folder").model{merged}\n```\n'
    )
