"""The verbs train, convert and info."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any, Literal

from synth.base import families
from synth.base.config import did_you_mean, from_dict, to_dict
from synth.base.errors import SynthError
from synth.base.version import __version__
from synth.training.config import TrainConfig


def train(
    family: str,
    *,
    data: Path | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    preset: str = "tiny",
    split: Path | None = None,
    fold: int | None = None,
    scheme: str = "auto",
    validation_share: float = 0.1,
    device: str = "auto",
    **settings: Any,
) -> int:
    """Train a family on a cohort; the same command resumes.

    Args:
        family: label_gan, wdm3d, ddpm_lora or segmentation.
        data: folder with cases in any BraTS naming; not needed where --heads draws them (wdm3d).
        out: folder of the run: last/, best/, metrics.jsonl, TensorBoard events.
        resume: in place of out: the folder of a run, which must be there, to go on with.
        preset: named settings of the family; flags below override single ones.
        split: decathlon-style JSON; default every case below the data folder.
        fold: hold this fold of the split out for validation.
        scheme: label scheme; auto goes by the case ids.
        validation_share: share of patients held out where no fold is given.
        device: auto, cpu, cuda, cuda:1 …
        settings: fields of the family's configuration and of the loop, by name.
    """
    folder = _run_folder(out, resume)
    preset, config, loop = resolved(family, preset, settings)
    parts = families.get(family)
    if parts.draws_its_data is not None and parts.draws_its_data.load()(config):
        training, held_out = [], []
    elif data is None:
        raise SynthError("train needs --data", hint="a folder of cases")
    else:
        training, held_out = _cases(data, split, fold, scheme, validation_share, loop.seed)

    import torch

    from synth.base.devices import pick
    from synth.base.seeding import mix
    from synth.data.split import data_hash, patient_marks
    from synth.training.loop import train as run
    from synth.training.run_state import require_begun_alike

    if parts.fit_to_data is not None:
        config = parts.fit_to_data.load()(config, training, cache=folder / "cache")
    describe = {
        "family": family,
        "preset": preset,
        "config": config,
        "data_hash": data_hash([*training, *held_out]),
        "patients": patient_marks(training),
        "command": _told(family, preset, settings, split, fold, validation_share, data),
    }
    require_begun_alike(folder, describe)
    if device != "auto":  # auto is left to Accelerate, which deals devices to processes
        pick(device)
    torch.manual_seed(mix(loop.seed, "initial weights"))
    recipe, items, validation = parts.assemble.load()(
        config, training, held_out, cache=folder / "cache"
    )
    counts = f"{len(training)} cases, {len(held_out)} held out" if training else "drawn heads"
    print(f"{family}/{preset}: {counts} → {folder}")
    summary = run(
        recipe,
        items,
        folder,
        loop,
        describe=describe,
        validation=validation,
        device=device,
        write=recipe.writer(describe),
    )
    _conclude(summary, loop, folder)
    timed = 0 < loop.max_seconds <= summary["seconds"]
    return 130 if summary["stopped"] and not timed else 0  # as after Ctrl-C elsewhere


def _told(
    family: str,
    preset: str,
    settings: Mapping[str, Any],
    split: Path | None,
    fold: int | None,
    share: float,
    data: Path | None,
) -> str:
    """Return the command for the model card: what was asked for, without anybody's folders."""
    words = [f"synth train {family}"] + (["--data DATA"] if data is not None else [])
    if not settings.get("lora_from"):  # whose settings stand in for a preset
        words.append(f"--preset {preset}")
    if split is not None:
        words.append("--split SPLIT")
    if data is not None:
        words.append(f"--validation-share {share}" if fold is None else f"--fold {fold}")
    for name, value in settings.items():
        if value is None or name in {"max_seconds", "workers"}:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            several = isinstance(value, list | tuple)
            texts = [str(v) for v in (value if several else [value])]
            words.append(shlex.join([f"--{flag}", *(Path(text).name for text in texts)]))
    return " ".join(words)


def _conclude(summary: dict[str, Any], loop: TrainConfig, folder: Path) -> None:
    scores = ", ".join(f"{name} {value:.4g}" for name, value in summary["metrics"].items())
    best = f"; best {loop.keep} {summary['best']:.4g}" if summary["best"] is not None else ""
    print(
        f"step {summary['step']} of {loop.steps}{': ' if scores else ''}{scores}{best} → {folder}"
    )
    if summary["stopped"]:
        print("stopped early; the same command goes on")


def train_settings(words: Sequence[str]) -> tuple[type, ...]:
    """Return the dataclasses whose fields are flags of `train`, once the family is known."""
    family = next((w for w in words if not w.startswith("-")), None)
    if family is None:
        return (TrainConfig,)
    return (families.get(family).config.load(), TrainConfig)


def convert(
    source: Path,
    *,
    out: Path,
    family: str | None = None,
    set: tuple[str, ...] = (),
    bits: Literal[32, 16, 8] = 32,
    adapter_of: Path | None = None,
) -> int:
    """Read the weights of a public project into a checkpoint folder, or copy a run's best there.

    The family and its settings follow from the names and shapes in the file. Nothing is unpickled.
    A run that fine-tuned an adapter becomes its base with the adapter in it.

    Args:
        source: .pt, .pth or .safetensors: a state dict, alone or under model, ema, state_dict;
            or a run or checkpoint of synth.
        out: folder to write.
        family: insist on a family.
        set: settings that the file cannot tell, as name=value.
        bits: of each stored weight: 16 halves the file, 8 quarters it (large matrices only, with a
            scale a row), to hand it on.
        adapter_of: base of the adapter: it stays an adapter, and points from its new folder there.
    """
    from synth.checkpoints.convert import convert as read

    overrides: dict[str, Any] = {}
    for pair in set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SynthError(f"--set {pair}", hint="write it as name=value")
        overrides[name] = _literal(value)
    folder = read(source, out, family=family, overrides=overrides, bits=bits, adapter_of=adapter_of)
    print(f"{source} → {folder}")
    return 0


def info(checkpoint: Path | None = None, *, json: bool = False, **tables: Mapping[str, str]) -> int:
    """Show versions, devices, families, presets and verbs, or what a checkpoint says of itself.

    Args:
        checkpoint: a checkpoint folder, a lone .safetensors file, a run, or a folder of several.
        json: print JSON.
        tables: what else there is to show; the command line adds its verbs.
    """
    facts = _checkpoint_facts(checkpoint) if checkpoint is not None else _installation() | tables
    if json:
        print(dumps(facts, indent=1))
        return 0
    for key, value in facts.items():
        print(f"{key}: {value if isinstance(value, str | int) else dumps(value)}")
    return 0


def _checkpoint_facts(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, or a line of each in a folder of several."""
    from synth.checkpoints.checkpoint import CONFIG, read_metadata

    inside = sorted(folder.glob(f"*/{CONFIG}"))
    if not inside or (folder / "last").is_dir() or (folder / CONFIG).exists():
        return read_metadata(folder)
    found = {path.parent.name: read_metadata(path.parent) for path in inside}
    return {k: f"{f['family']} {f['preset']}, step {f.get('step')}" for k, f in found.items()}


def _run_folder(out: Path | None, resume: Path | None) -> Path:
    if resume is None:
        if out is None:
            raise SynthError(
                "train needs --out", hint="the folder of the run, new or to go on with"
            )
        return out
    if out not in (None, resume):
        raise SynthError(f"--out {out} and --resume {resume}", hint="a run has one folder")
    if not (resume / "last").is_dir():
        raise SynthError(f"{resume}: no run to resume: there is no last/", hint="--out starts one")
    return resume


def preset_of(family: str, preset: str) -> Any:
    """Return a family's preset."""
    presets = families.get(family).presets.load()
    if preset not in presets:
        raise SynthError(f"{family} has no preset '{preset}'", hint=did_you_mean(preset, presets))
    return presets[preset]


def _beginning(family: str, preset: str, given: dict[str, Any]) -> tuple[str, Any]:
    """Return the preset, or what the family puts in its place: fine-tuning has its base's."""
    wanted = preset_of(family, preset)
    start_from = families.get(family).start_from
    started = start_from.load()(given) if start_from is not None else None
    return started or (preset, wanted)


def resolved(family: str, preset: str, settings: Mapping[str, Any]) -> tuple[str, Any, TrainConfig]:
    """Return the preset, the family's configuration and the loop's, with the settings in them."""
    given = {k: v for k, v in settings.items() if v is not None}
    parts = families.get(family)
    if parts.translate is not None:
        given = parts.translate.load()(given)
    preset, beginning = _beginning(family, preset, given)
    training = parts.training.load().get(preset, TrainConfig())
    return preset, override(beginning, given), override(training, given)


def override(config: Any, given: dict[str, Any]) -> Any:
    """Return a configuration with those of its fields that are given."""
    own = to_dict(config)
    return from_dict(type(config), own | {k: v for k, v in given.items() if k in own})


def _cases(
    data: Path,
    split: Path | None,
    fold: int | None,
    scheme: str,
    share: float,
    seed: int,
) -> tuple[list, list]:
    from synth.data.case import discover, require_unique
    from synth.data.split import hold_out, read_split

    if split is not None:
        read = read_split(split, data)
        if fold is not None:
            return read.fold(fold)
        return hold_out([e.case for e in read.training], share, seed=seed)
    if fold is not None:
        raise SynthError("--fold needs --split", hint="give the JSON that holds the folds")
    cases = discover(data, scheme=scheme)
    require_unique(cases)
    return hold_out(cases, share, seed=seed)


def _installation() -> dict[str, Any]:
    from synth.base.manifest import versions

    return {
        "version": __version__,
        "versions": versions(),
        "devices": _gpus() or ["cpu"],
        "families": {name: parts.about for name, parts in families.FAMILIES.items()},
        "presets": {name: list(parts.presets.load()) for name, parts in families.FAMILIES.items()},
    }


def _gpus() -> list[str]:
    """Return the names of NVIDIA's GPUs. It is their driver that is asked: torch takes seconds."""
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    if not shutil.which(words[0]):
        return []
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _literal(text: str) -> Any:
    from json import JSONDecodeError, loads

    try:
        return loads(text)
    except JSONDecodeError:
        return text
