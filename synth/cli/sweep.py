"""The verbs sweep and launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synth.base.errors import SynthError
from synth.cli import train
from synth.cli.parser import PROGRAM, build
from synth.training.config import TrainConfig
from synth.training.settings import resolve as resolve_settings

if TYPE_CHECKING:
    from synth.jobs.sweep import Resolve, Row, Sweep
    from synth.jobs.sweep_space import Space


def sweep(
    out: Path,
    *,
    grid: tuple[str, ...] = (),
    optuna: tuple[str, ...] = (),
    trials: int = 16,
    seed: int = 0,
    where: Literal["here", "local", "slurm"] = "here",
    at_once: int = 0,
    cluster: tuple[str, ...] = (),
    retries: int = 2,
    top: int = 3,
    status: bool = False,
    command: tuple[str, ...] = (),
) -> int:
    """Repeat one training with many settings, and keep the best checkpoints.

        synth sweep OUT --grid lr=1e-3,3e-4 loss=dice_bce,dice_ce -- train segmentation --data DATA
        synth sweep OUT --optuna lr=1e-4..1e-2 width=8,16 --trials 16 -- train wdm3d --data DATA

    Settings are fields of the family's configuration and of the training loop; `keep` of the loop
    is the metric. Each trial is a run in OUT/runs. OUT/best holds the best checkpoints and
    OUT/table.csv all results. The same command continues; it may run several times at once.

    Args:
        out: folder of the sweep.
        grid: field=A,B …: every combination. Brackets for several numbers: patch=[32,32,32].
        optuna: field=LOW..HIGH or field=A,B …: values that Optuna (TPE) chooses from.
        trials: number of trials with Optuna.
        seed: seed of Optuna's choices.
        where: here, one after another; local: processes of this machine; slurm: an array of jobs.
        at_once: trials at the same time; 0: one; on SLURM all of a grid, a quarter of Optuna's.
        retries: further attempts at a trial that failed, was stopped or lost its worker.
        top: number of checkpoints in OUT/best.
        status: only show the table.
        command: train FAMILY … without --out; written last, after --.
    """
    from synth.jobs.sweep import open_sweep, read_rows

    if status:
        swept = open_sweep(out)
        return _print_trials(swept, read_rows(swept))
    if bool(grid) == bool(optuna):
        raise SynthError("a sweep needs --grid or --optuna", hint="one: --grid lr=1e-3,3e-4")
    space, resolve = _read_space(command, grid or optuna, ranges=bool(optuna))

    from synth.jobs.job import JobOptions
    from synth.jobs.launch import cluster_options
    from synth.jobs.sweep import begin_sweep, gather_best, try_grid
    from synth.jobs.sweep_space import grid as combinations

    tried = combinations(space) if grid else []
    for settings in tried:  # the impossible is refused before anything is begun
        resolve(settings)
    swept = begin_sweep(out, command, resolve({})[2])
    options = JobOptions(
        program=PROGRAM, retries=retries, at_once=at_once, cluster=cluster_options(cluster)
    )
    if grid:
        try_grid(swept, tried, resolve, where=where, options=options)
    elif where == "here":
        from synth.jobs.sweep_optuna import try_optuna

        try_optuna(swept, space, resolve, trials=trials, seed=seed, options=options)
    else:
        from synth.jobs.sweep_optuna import start_workers

        words = ["sweep", str(out), "--optuna", *optuna, f"--trials={trials}", f"--seed={seed}"]
        words += [f"--retries={retries}", f"--top={top}", "--", *command]
        start_workers(swept, words, trials=trials, where=where, options=options)
    return _print_trials(swept, gather_best(swept, top=top))


def _read_space(
    command: Sequence[str], words: Sequence[str], *, ranges: bool
) -> tuple[Space, Resolve]:
    """Return the values of each setting, and what turns settings into a family's configuration."""
    from synth.jobs.sweep_space import read_space

    values = _parse_training(command)
    kinds = train.settings(command[1:])
    names = {field.name for kind in kinds for field in fields(kind)}  # ty: ignore[invalid-argument-type]
    given = {name: values[name] for name in names & set(values)}

    def resolve(settings: Any) -> tuple[str, Any, TrainConfig]:
        return resolve_settings(values["family"], values["preset"], {**given, **settings})

    space = read_space(words, kinds, ranges=ranges)
    for name in ("keep", "keep_mode"):
        if name in space:
            raise SynthError(f"{name} cannot vary", hint="all trials are judged by one metric")
    return space, resolve


def launch(
    folder: Path,
    *,
    shards: int = 0,
    each: tuple[str, ...] = (),
    where: Literal["here", "local", "slurm"] = "here",
    at_once: int = 0,
    cluster: tuple[str, ...] = (),
    retries: int = 2,
    status: bool = False,
    command: tuple[str, ...] = (),
) -> int:
    """Run a verb in parts, or once for each of several words, in processes or on SLURM.

        synth launch JOBS --where slurm --shards 8 -- segment DATA --models RUN --out OUT
        synth launch JOBS --where slurm --each 0 1 -- train wdm3d --data DATA --fold {} --out {}

    JOBS keeps the log of each job. The same command continues; finished jobs are skipped.

    Args:
        folder: folder of the jobs and their logs.
        shards: number of parts, for verbs with --shard: inpaint, masks, sample, segment, compare.
        each: words that replace {} in the command, one job each.
        where: here, one after another; local: processes of this machine; slurm: an array of jobs.
        at_once: jobs at the same time; 0: one; on SLURM all.
        retries: further attempts at a job that failed, was stopped or lost its worker.
        status: only show the table.
        command: VERB …; written last, after --.
    """
    from synth.evaluate.tables import plain_table
    from synth.jobs import launch as jobs
    from synth.jobs.job import JobOptions

    if not status:
        options = JobOptions(
            program=PROGRAM, retries=retries, at_once=at_once,
            cluster=jobs.cluster_options(cluster),
        )  # fmt: skip
        commands = _job_commands(command, shards, each)
        jobs.launch(commands, folder=folder, where=where, options=options)
    found = jobs.read_statuses(folder)
    print(plain_table(jobs.status_table(found)))
    return 0 if status or all(row.state == "done" for row in found) else 2


def _job_commands(
    command: tuple[str, ...], shards: int, each: tuple[str, ...]
) -> dict[str, list[str]]:
    if not command:
        raise SynthError("there is nothing to launch", hint="write the verb last, after --")
    if (shards > 0) == bool(each):
        raise SynthError("launch needs --shards or --each", hint="one of them: --shards 8")
    if shards > 0:
        return {f"{i}-of-{shards}": [*command, f"--shard={i}/{shards}"] for i in range(shards)}
    if not any("{}" in word for word in command):
        raise SynthError("no {} in the command", hint="--each puts its words there: --fold {}")
    return {word: [part.replace("{}", word) for part in command] for word in each}


def _parse_training(command: Sequence[str]) -> dict[str, Any]:
    """Parse the command that is varied, so that a mistake in it is known before the first trial."""
    if not command or command[0] != "train":
        raise SynthError("a sweep varies a training", hint="write it last: -- train FAMILY …")
    words = list(command[1:])
    parser = build(train.train, prog="synth train", settings=train.settings(words))
    values = parser.parse(words)
    if values["out"] is not None or values["resume"] is not None:
        raise SynthError("the sweep names the run folders", hint="leave --out and --resume away")
    return values


def _print_trials(swept: Sweep, found: Sequence[Row]) -> int:
    from synth.evaluate.tables import plain_table
    from synth.jobs.sweep import trial_table

    print(plain_table(trial_table(swept, found)))
    done = sum(row.status.state == "done" for row in found)
    print(f"{done} of {len(found)} trials done → {swept.out}/best, {swept.out}/table.csv")
    return 0 if done == len(found) else 2
