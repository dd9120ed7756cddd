"""Trains one command with many settings, and keeps the best checkpoints.

A trial is a run folder named by the hash of its whole configuration, and a job of
`synth.jobs.launch`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from synth.base.config import to_dict
from synth.base.errors import SynthError
from synth.base.files import atomic_folder, atomic_path, read_json, write_json
from synth.jobs.job import JobOptions, Status, read_status
from synth.jobs.launch import Where, launch
from synth.jobs.sweep_space import flags
from synth.training.config import TrainConfig

SETTINGS, SWEEP = "settings.json", "sweep.json"

Resolve = Callable[[Mapping[str, Any]], tuple[str, Any, TrainConfig]]
"""From settings to the preset, the family's Config and the loop's, or a SynthError."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A folder, the training that is varied, and the metric it is judged by."""

    out: Path
    command: tuple[str, ...]
    """Words of the verb, less its --out."""
    keep: str
    """Validation metric."""
    larger_is_better: bool

    @property
    def jobs(self) -> Path:
        """The folder of the jobs, one for each trial."""
        return self.out / "jobs"

    def run(self, name: str) -> Path:
        """Return the run folder of a trial."""
        return self.out / "runs" / name

    def read_score(self, name: str) -> float | None:
        """Return the best value of the metric in a trial; None without one."""
        from synth.checkpoints.checkpoint import read_metadata

        best = self.run(name) / "best"
        return read_metadata(best)["metrics"].get(self.keep) if best.is_dir() else None


class SweepFile(TypedDict):
    """sweep.json."""

    command: list[str]
    keep: str
    keep_mode: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial in the table."""

    name: str
    settings: dict[str, Any]
    score: float | None
    status: Status


def begin_sweep(out: Path, command: Sequence[str], loop: TrainConfig) -> Sweep:
    """Open a new sweep, or an old one that varies the same command."""
    if not loop.keep:
        raise SynthError("a sweep compares by a metric", hint="name it by --keep, e.g. loss")
    record = {"command": list(command), "keep": loop.keep, "keep_mode": loop.keep_mode}
    path = out / SWEEP
    if path.exists() and (before := read_json(path, SweepFile)) != record:
        raise SynthError(
            f"{out} is a sweep of: {' '.join(before['command'])}, by {before['keep']}",
            hint="give the same words after --, or another folder",
        )
    write_json(path, record)
    return open_sweep(out)


def open_sweep(out: Path) -> Sweep:
    """Read a sweep that was begun."""
    if not (out / SWEEP).exists():
        raise SynthError(f"{out} is not a sweep: it has no {SWEEP}", hint="begin one: -- train …")
    record = read_json(out / SWEEP, SweepFile)
    return Sweep(
        out=out, command=tuple(record["command"]), keep=record["keep"],
        larger_is_better=record["keep_mode"] == "max",
    )  # fmt: skip


def create_trial(
    sweep: Sweep, settings: Mapping[str, Any], resolve: Resolve
) -> tuple[str, list[str]]:
    """Return the name and the command line of a trial, and write down its settings."""
    preset, config, loop = resolve(settings)
    whole = {"preset": preset, "config": to_dict(config), "loop": to_dict(loop)}
    name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:10]
    path = sweep.jobs / name / SETTINGS
    if path.exists():
        settings = read_json(
            path, dict[str, Any]
        )  # other words with the same meaning are the same trial
    else:
        write_json(path, dict(settings))
    return name, [*sweep.command, f"--out={sweep.run(name)}", *flags(settings)]


def try_grid(
    sweep: Sweep,
    trials: Sequence[Mapping[str, Any]],
    resolve: Resolve,
    *,
    where: Where = "here",
    options: JobOptions,
) -> None:
    """Train every combination of settings; impossible ones are refused before the first."""
    for settings in trials:
        resolve(settings)
    commands = dict(create_trial(sweep, settings, resolve) for settings in trials)
    launch(commands, folder=sweep.jobs, where=where, options=options)


def read_rows(sweep: Sweep) -> list[Row]:
    """Return every trial, the best first, those without a score last."""
    found = [
        Row(
            name=path.parent.name,
            settings=read_json(path, dict[str, Any]),
            score=sweep.read_score(path.parent.name),
            status=read_status(path.parent),
        )
        for path in sorted(sweep.jobs.glob(f"*/{SETTINGS}"))
    ]
    sign = -1 if sweep.larger_is_better else 1
    return sorted(found, key=lambda r: math.inf if r.score is None else sign * r.score)


def trial_table(sweep: Sweep, rows: Sequence[Row]) -> list[list[str]]:
    """Return the table of trials, its header first."""
    columns = list(dict.fromkeys(name for row in rows for name in row.settings))
    table = [["trial", *columns, sweep.keep, "state", "attempts", "seconds", "last line"]]
    for row in rows:
        score = "" if row.score is None else f"{row.score:.6g}"
        status = row.status
        table.append([
            row.name, *(str(row.settings.get(c, "")) for c in columns), score, status.state,
            str(status.attempts), f"{status.seconds:.0f}", status.line,
        ])  # fmt: skip
    return table


def gather_best(sweep: Sweep, *, top: int) -> list[Row]:
    """Copy the checkpoints of the best finished trials to best/, and write table.csv."""
    rows = read_rows(sweep)
    with (
        atomic_path(sweep.out / "table.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file).writerows(trial_table(sweep, rows))
    chosen = [r for r in rows if r.score is not None and r.status.state == "done"][:top]
    best = sweep.out / "best"
    best.mkdir(parents=True, exist_ok=True)
    wanted = {f"{place}-{row.name}": row.name for place, row in enumerate(chosen, start=1)}
    for old in best.iterdir():
        if old.name not in wanted and not old.name.startswith("."):
            shutil.rmtree(old, ignore_errors=True)
    for name, trial in wanted.items():
        if not (best / name).exists():
            with atomic_folder(best / name, replace=False) as part:
                shutil.copytree(sweep.run(trial) / "best", part, dirs_exist_ok=True)
    return rows
