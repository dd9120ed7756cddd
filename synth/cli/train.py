"""The verb train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synth.base import families
from synth.base.errors import SynthError
from synth.base.stopping import STOPPED
from synth.training.config import TrainConfig
from synth.training.settings import resolve, training_command

if TYPE_CHECKING:
    from synth.data.case import Case


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
    """Train a family of models on a cohort; the same command continues a training.

    All settings of the family and of the loop are options that replace values of the preset.
    Ctrl-C and SIGTERM save everything first.

    Args:
        family: label_gan, wdm3d, ddpm_lora or segmentation; then --help names its settings.
        data: folder with cases in any BraTS naming; not needed with --heads (wdm3d).
        out: folder of the run: last/, best/, metrics.jsonl, TensorBoard events.
        resume: continue the run in this folder; instead of --out.
        preset: named settings of the family; `synth info` lists them.
        split: split (JSON) with the training cases [all cases of the folder].
        fold: hold this fold of the split out for validation.
        validation_share: share of patients held out for validation where no fold is given.
        steps: optimizer steps in all.
        batch_size: items in one forward pass.
        lr: learning rate.
        seed: seed of the data order and of every random draw.
        workers: processes that prepare items; 0: the training process.
        max_seconds: stop and save after this time; 0: no limit.
    """
    folder = _run_folder(out, resume)
    preset, config, loop = resolve(family, preset, settings)
    parts = families.get(family)
    training, held_out = [], []
    if parts.draws_its_data is None or not parts.draws_its_data.load()(config):
        training, held_out = _cases(data, split, fold, scheme, validation_share, loop.seed)

    import torch

    from synth.base.devices import pick
    from synth.base.seeding import mix
    from synth.training.loop import train as run
    from synth.training.run_state import require_same_run

    if parts.fit_to_data is not None:
        config = parts.fit_to_data.load()(config, training, cache=folder / "cache")
    words = _own_words(family, preset, settings, data, split, fold, validation_share)
    describe = {
        "family": family, "preset": preset, "config": config,
        **_describe_data(training, held_out), "command": training_command(words, settings),
    }  # fmt: skip
    require_same_run(folder, describe)
    if device != "auto":  # Accelerate chooses for auto: it knows how many processes there are
        pick(device)
    torch.manual_seed(mix(loop.seed, "initial weights"))
    made = parts.assemble.load()(config, training, held_out, cache=folder / "cache")
    recipe, items, validation = made
    counts = f"{len(training)} cases, {len(held_out)} held out" if training else "drawn heads"
    print(f"{family}/{preset}: {counts} → {folder}")
    summary = run(
        recipe, items, folder, loop, describe=describe, validation=validation, device=device
    )
    return _print_summary(summary, loop, folder)


def settings(words: Sequence[str]) -> tuple[type, ...]:
    """Return the dataclasses whose fields are options, too, once the family is known."""
    family = next((w for w in words if not w.startswith("-")), None)
    if family is None:
        return (TrainConfig,)
    return (families.get(family).config.load(), TrainConfig)


def _run_folder(out: Path | None, resume: Path | None) -> Path:
    if resume is None:
        if out is None:
            hint = "the folder of the run, new or to go on with"
            raise SynthError("train needs --out", hint=hint)
        return out
    if out not in (None, resume):
        raise SynthError(f"--out {out} and --resume {resume}", hint="a run has one folder")
    if not (resume / "last").is_dir():
        raise SynthError(f"{resume}: no run to resume: there is no last/", hint="--out starts one")
    return resume


def _cases(
    data: Path | None, split: Path | None, fold: int | None, scheme: str, share: float, seed: int
) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on, and those that are held out."""
    if data is None:
        raise SynthError("train needs --data", hint="a folder of cases")

    from synth.data.case import discover, require_unique
    from synth.data.split import hold_out, read_split

    if split is not None:
        listed = read_split(split, data)
        if fold is not None:
            return listed.fold(fold)
        return hold_out([entry.case for entry in listed.training], share, seed=seed)
    if fold is not None:
        raise SynthError("--fold needs --split", hint="give the JSON that holds the folds")
    cases = discover(data, scheme=scheme)
    require_unique(cases)
    return hold_out(cases, share, seed=seed)


def _describe_data(training: Sequence[Case], held_out: Sequence[Case]) -> dict[str, Any]:
    """Return what a checkpoint remembers of its data."""
    from synth.data.case import is_real
    from synth.data.split import data_hash, patient_marks

    return {
        "data_hash": data_hash([*training, *held_out]),
        "patients": patient_marks(training),
        "phantoms": bool(training) and not any(map(is_real, training)),
    }


def _own_words(
    family: str,
    preset: str,
    settings: Mapping[str, Any],
    data: Path | None,
    split: Path | None,
    fold: int | None,
    share: float,
) -> list[str]:
    """Return the verb's own options, as the model card shows them."""
    words = [f"synth train {family}"] + (["--data DATA"] if data is not None else [])
    if not settings.get("lora_from"):  # its settings replace the preset
        words.append(f"--preset {preset}")
    if split is not None:
        words.append("--split SPLIT")
    if data is not None:
        words.append(f"--validation-share {share}" if fold is None else f"--fold {fold}")
    return words


def _print_summary(summary: Mapping[str, Any], loop: TrainConfig, folder: Path) -> int:
    """Print what came of a training; return the exit code."""
    scores = ", ".join(f"{name} {value:.4g}" for name, value in summary["metrics"].items())
    best = f"; best {loop.keep} {summary['best']:.4g}" if summary["best"] is not None else ""
    steps = f"step {summary['step']} of {loop.steps}"
    print(f"{steps}{': ' if scores else ''}{scores}{best} → {folder}")
    if summary["stopped"]:
        print("stopped early; the same command goes on")
    timed = 0 < loop.max_seconds <= summary["seconds"]
    return STOPPED[0] if summary["stopped"] and not timed else 0
