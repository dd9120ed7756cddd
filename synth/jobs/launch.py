"""Runs many command lines: here, in worker processes, or on SLURM.

Workers (`synth.jobs.workers`) claim jobs (`synth.jobs.locks`) in a folder that all can reach. Every
verb resumes, so that trying again is the same command. Only words and paths go to a worker; there
is no daemon and no database: the folder is the state.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from synth.base.errors import SynthError
from synth.base.files import read_json, write_json
from synth.jobs.locks import attempts
from synth.jobs.workers import (
    COMMAND,
    LOG,
    POLL_SECONDS,
    Worker,
    is_open,
    is_running,
    python_path,
    work,
)

Where = Literal["here", "local", "slurm"]
DAYS_30 = 30 * 24 * 60

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How hard to try, and with what."""

    program: str
    """Module whose main(words) runs a command line."""
    retries: int = 2
    """Further attempts at a job that failed, was stopped or lost its worker. Exit code 2 says that
    something has to be mended first: it is tried again by the next launch only."""
    at_once: int = 0
    """Jobs at the same time; 0: one, or on SLURM as many as there are."""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of submitit, e.g. timeout_min, slurm_partition, gpus_per_node, mem_gb."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the folder of a job tells."""

    name: str
    command: tuple[str, ...]
    state: str
    """waiting, running, done, failed, stopped or lost."""
    exit: int | None
    attempts: int
    seconds: float
    """Of all attempts."""
    line: str
    """The last line of the log."""


def launch(
    commands: Mapping[str, Sequence[str]],
    *,
    folder: Path,
    where: Where = "here",
    options: Options,
) -> list[Status]:
    """Run command lines (name → words of a verb), each until it is done or hopeless.

    here: one after another in this process. local: by processes of this machine. slurm: an array of
    one job a task. The same call goes on where another was stopped, and leaves alone what another
    one is busy with. Ctrl-C stops here and local, whose verbs save first; SLURM's go on.
    """
    for name, words in commands.items():
        _write_command(folder, name, list(words))
    worker = Worker(
        folder=folder.resolve(), names=tuple(commands), retries=options.retries,
        program=options.program,
        before={name: len(attempts(folder / name)) for name in commands},
    )  # fmt: skip
    if where == "here":
        names, before = worker.names, worker.before
        work(folder, names, worker.in_process, before=before, retries=options.retries)
    else:
        _submitted(worker, where, options)
    return [status(folder / name) for name in commands]


def status(job: Path) -> Status:
    """Read the state of a job from its folder."""
    made = attempts(job)
    return Status(
        name=job.name,
        command=tuple(read_json(job / COMMAND)) if (job / COMMAND).exists() else (),
        state=made[-1].state if made else "waiting",
        exit=made[-1].exit if made else None,
        attempts=len(made),
        seconds=sum(attempt.seconds for attempt in made),
        line=_last_line(job / LOG),
    )


def statuses(folder: Path) -> list[Status]:
    """Read the state of every job in a folder, by name."""
    return [status(path.parent) for path in sorted(folder.glob(f"*/{COMMAND}"))]


def cluster_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read submitit's parameters from words like timeout_min=600."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SynthError(f"cluster option {pair!r}", hint="write name=value: timeout_min=600")
        found[name] = int(value) if value.isdigit() else value
    return found


def table(rows: Sequence[Status]) -> list[list[str]]:
    """Return the status table, its header first."""
    told = [["job", "state", "exit", "attempts", "seconds", "last line"]]
    for row in rows:
        code = "" if row.exit is None else str(row.exit)
        line = row.line if len(row.line) <= 70 else row.line[:67] + "…"
        told.append([row.name, row.state, code, str(row.attempts), f"{row.seconds:.0f}", line])
    return told


def _submitted(worker: Worker, where: Where, options: Options) -> None:
    """Hand workers to submitit until nothing is open: those that died leave jobs to the next."""

    def open_jobs() -> list[str]:
        before = worker.before
        return [n for n in worker.names if is_open(worker.folder / n, before[n], worker.retries)]

    rounds = 0
    while (todo := open_jobs()) or any(is_running(worker.folder / n) for n in worker.names):
        if not todo:  # another launch is busy with them, or a dead node's heart still has to cool
            time.sleep(POLL_SECONDS)
            continue
        if rounds > options.retries:
            return
        rounds += 1
        tried = _tried(worker)
        jobs = _submit(worker, where, options, len(todo))
        try:
            while not all(job.done() for job in jobs):
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if where == "local":
                for job in jobs:
                    job.cancel()
            else:
                log.warning("%s goes on without this terminal", ", ".join(j.job_id for j in jobs))
            raise
        if _tried(worker) == tried and open_jobs():
            raise SynthError(
                f"no worker began: {(jobs[0].stderr() or '?').strip().splitlines()[-1]}",
                hint=f"see {worker.folder / '.submitit'}",
            )


def _tried(worker: Worker) -> int:
    return sum(len(attempts(worker.folder / name)) for name in worker.names)


def _submit(worker: Worker, where: Where, options: Options, todo: int) -> list[Any]:
    try:
        import submitit
    except ImportError as error:
        raise SynthError(
            f"--where {where} needs submitit", hint="bash run.sh MODE=setup EXTRAS=cluster"
        ) from error
    own: dict[str, Any] = {"timeout_min": DAYS_30}
    if where == "local":
        workers = min(options.at_once or 1, todo)
        # submitit's local executor hides the GPUs from what asks for none
        hidden = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        worker = replace(worker, environment=hidden)
    else:
        workers, worker = todo, replace(worker, jobs=1)
        own = {"timeout_min": 24 * 60, "slurm_array_parallelism": options.at_once or todo}
    try:
        executor = submitit.AutoExecutor(
            worker.folder / ".submitit", cluster=where, slurm_max_num_timeout=options.retries
        )
        executor.update_parameters(name="synth", **own | dict(options.cluster))
    except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise SynthError(
            f"submitit: {' '.join(str(error).split())[:300]}",
            hint="see the parameters of submitit.AutoExecutor, and whether sbatch is on the PATH",
        ) from error
    os.environ["PYTHONPATH"] = python_path()  # a worker unpickles by the names of this package
    with executor.batch():
        return [executor.submit(worker) for _ in range(workers)]


def _write_command(folder: Path, name: str, words: list[str]) -> None:
    if not re.fullmatch(r"\w[\w.=+-]*", name):
        raise SynthError(f"job {name!r}", hint="letters, digits and . = + - _ make a name")
    path = folder / name / COMMAND
    if not path.exists():
        write_json(path, words)
    elif (before := read_json(path)) != words:
        raise SynthError(
            f"{path.parent} was begun as: {' '.join(before)}",
            hint="give the same words, or another folder",
        )


def _last_line(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
