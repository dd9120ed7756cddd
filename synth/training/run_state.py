"""state.pt: what a run needs to resume exactly.

Tensors, ints, floats and strings only, so that it loads with `weights_only=True`. It depends on no
other file. Random states are not in it: every draw is seeded by its step.
"""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from synth.base.config import to_dict
from synth.base.errors import SynthError, first_line
from synth.base.files import parse_json
from synth.checkpoints import checkpoint
from synth.training.config import MAY_CHANGE, TrainConfig
from synth.training.learning_rate import Patience
from synth.training.step import Stepper

FORMAT = 1
PLAIN = (int, float, str, bool, type(None))

log = logging.getLogger(__name__)


def identity(
    describe: Mapping[str, Any], config: TrainConfig, *, items: int, world: int
) -> dict[str, Any]:
    """Return what makes this run this run: the network, the data and their order."""
    return {
        "family": describe["family"],
        "config": to_dict(describe["config"]),
        "data_hash": describe.get("data_hash", ""),
        "items": items,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "accumulate × processes": config.accumulate * world,
    }


def pack(stepper: Stepper, ema: AveragedModel, who: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of training, without what the caller adds of its own."""
    return {
        "format": FORMAT,
        "identity": json.dumps(who),
        "training": json.dumps(to_dict(stepper.config)),
        "step": stepper.step,
        "skipped": stepper.skipped,
        "in_a_row": stepper.in_a_row,
        "patience": asdict(stepper.patience),
        "model": stepper.recipe.model.state_dict(),
        "ema": ema.module.state_dict(),
        "ema_count": int(ema.n_averaged),
        "optimizers": {name: o.state_dict() for name, o in stepper.optimizers.items()},
    }


def unpack(state: Mapping[str, Any], stepper: Stepper, ema: AveragedModel) -> None:
    """Put a saved state into freshly built objects."""
    checkpoint.load_strictly(stepper.recipe.model, state["model"], name="state.pt")
    checkpoint.load_strictly(ema.module, state["ema"], name="state.pt")
    ema.n_averaged.fill_(state["ema_count"])
    for name, optimizer in stepper.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    stepper.step = state["step"]
    stepper.skipped, stepper.in_a_row = dict(state["skipped"]), dict(state["in_a_row"])
    stepper.patience = Patience(**state.get("patience", {}))  # runs of 0.1.0 counted nothing


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Write state.pt into a folder that `checkpoint.staged` makes safe."""
    _require_plain(state, "state")
    torch.save(state, folder / checkpoint.STATE)


def read(folder: Path, who: Mapping[str, Any], config: TrainConfig) -> dict[str, Any] | None:
    """Return the state saved in `folder`, None where nothing was; refuse another run's."""
    path = folder / checkpoint.STATE
    if not path.exists():
        if folder.exists():
            raise SynthError(
                f"{folder} holds weights but no {checkpoint.STATE}: it cannot be resumed",
                hint="choose another output folder",
            )
        return None
    state = _load(path)
    _require_same(parse_json(state["identity"], dict, name=str(path)), who, folder.parent)
    saved = parse_json(state["training"], dict, name=str(path))
    for key, value in to_dict(config).items():
        if key not in MAY_CHANGE | {"accumulate"} and saved.get(key, value) != value:
            log.warning("from here on %s = %r instead of %r", key, value, saved[key])
    return state


def require_same_run(out: Path, describe: Mapping[str, Any]) -> None:
    """Refuse, before anything is prepared, to go on with a run of other settings or data."""
    path = out / "last" / checkpoint.STATE
    if path.exists():
        saved = parse_json(_load(path)["identity"], dict, name=str(path))
        now = {k: to_dict(v) if is_dataclass(v) else v for k, v in describe.items() if k in saved}
        _require_same(saved, now, out)


def _load(path: Path) -> dict[str, Any]:
    try:
        checkpoint.require_stored(path)
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
            if (member := archive.testzip()) is not None:
                raise ValueError(f"{member} differs from its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        number = state["format"]
    except (*checkpoint.TORN, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise SynthError(
            f"{path}: cannot be read: {first_line(error)}",
            hint="the file is damaged; start in another output folder",
        ) from error
    if number != FORMAT:
        raise SynthError(
            f"{path} has format {number}, this version resumes format {FORMAT}",
            hint="finish the run with the version that began it",
        )
    return state


def _require_same(saved: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    for key, value in now.items():
        if key not in saved:  # a setting that came with a later version: its default is what was
            continue
        before = saved[key]
        if isinstance(value, dict) and isinstance(before, dict):
            _require_same(before, value, out)
        elif json.loads(json.dumps(value)) != before:
            raise SynthError(
                f"{out} was begun with {key} = {before!r}, this command says {value!r}",
                hint=f"give {key} = {before!r} to go on, or choose another output folder",
            )


def _require_plain(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require_plain(inner, f"{name}.{key}")
    elif type(value) in (list, tuple):
        for i, inner in enumerate(value):
            _require_plain(inner, f"{name}.{i}")
    else:
        # Exact types: a numpy float passes for a float and then refuses to load.
        plain = isinstance(value, Tensor) or type(value) in PLAIN
        assert plain, f"{name} is a {type(value)}: keep tensors and plain numbers only"
