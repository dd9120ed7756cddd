"""Runs many command lines: here, in processes of this machine, or on SLURM.

The state is in the folders of the jobs (`synth.jobs.job`), which all processes can reach; submitit
starts the processes. Every verb resumes, so that trying again is the same command.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from synth.base.errors import SynthError
from synth.jobs import job
from synth.jobs.job import POLL_SECONDS, JobOptions, Status, is_open, is_running, run_job

Where = Literal["here", "local", "slurm"]
DAYS_30 = 30 * 24 * 60

log = logging.getLogger(__name__)


def launch(
    commands: Mapping[str, Sequence[str]],
    *,
    folder: Path,
    where: Where = "here",
    options: JobOptions,
) -> list[Status]:
    """Run command lines (name → words of a verb), each until it is done or hopeless.

    here: one after another in this process. local: in processes of this machine. slurm: an array
    with a task for each job. The same call goes on where another was stopped, and waits for jobs
    that another one runs. Ctrl-C stops here and local, whose verbs save first; SLURM's go on.
    """
    options = replace(options, began=options.began or time.time())
    folder = folder.resolve()
    jobs = [job.create_job(folder, name, words) for name, words in commands.items()]
    executor = None if where == "here" else _executor(folder, where, options, len(jobs))
    while (left := [j for j in jobs if is_open(j, options)]) or any(map(is_running, jobs)):
        if not left:  # another launch is busy with them
            time.sleep(POLL_SECONDS)
        elif executor is None:
            for path in left:
                run_job(path, options, partial(job.run_in_process, options.program))
        else:
            _submit(left, executor, where, options)
    return [job.read_status(path) for path in jobs]


def read_statuses(folder: Path) -> list[Status]:
    """Read the state of every job in a folder, by name."""
    return [job.read_status(path.parent) for path in sorted(folder.glob(f"*/{job.COMMAND}"))]


def cluster_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read submitit's parameters from words like timeout_min=600."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SynthError(f"cluster option {pair!r}", hint="write name=value: timeout_min=600")
        found[name] = int(value) if value.isdigit() else value
    return found


def status_table(rows: Sequence[Status]) -> list[list[str]]:
    """Return the status table, its header first."""
    table = [["job", "state", "exit", "attempts", "seconds", "last line"]]
    for row in rows:
        code = "" if row.exit is None else str(row.exit)
        line = row.line if len(row.line) <= 70 else row.line[:67] + "…"
        table.append([row.name, row.state, code, str(row.attempts), f"{row.seconds:.0f}", line])
    return table


@dataclass(kw_only=True)
class Task:
    """What submitit runs: jobs one after another, each in a process that can be stopped."""

    jobs: Sequence[Path]
    options: JobOptions
    environment: Mapping[str, str | None]
    child: subprocess.Popen | None = field(default=None, init=False)

    def __call__(self) -> None:
        """Try each job until it is done or hopeless."""
        for path in self.jobs:
            run_job(path, self.options, self.run_child)

    def run_child(self, words: list[str], file: TextIO) -> int:
        """Run a command line in a process of its own; stop it where this process is stopped."""
        self.child = job.start_process(self.options.program, words, file, self.environment)
        try:
            while self.child.poll() is None:  # not wait(): a signal handler polls, too
                time.sleep(POLL_SECONDS)
        except BaseException:
            job.stop_process(self.child)
            raise
        return self.child.returncode

    def checkpoint(self) -> Any:
        """Before a preemption or the time limit: let the verb save, then be queued again."""
        import submitit

        if self.child is not None:
            job.stop_process(self.child)
        return submitit.helpers.DelayedSubmission(replace(self))


def _submit(jobs: Sequence[Path], executor: Any, where: Where, options: JobOptions) -> None:
    """Hand open jobs to submitit, and wait for its tasks."""
    shares, visible = [[path] for path in jobs], {}
    if where == "local":
        shares = [list(jobs)] * min(options.at_once or 1, len(jobs))
        # submitit's local executor hides the GPUs from what asks for none
        visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
    before = [len(job.read_attempts(path)) for path in jobs]
    os.environ |= job.python_environment()  # tasks are unpickled by our names
    with executor.batch():
        tasks = [
            executor.submit(Task(jobs=share, options=options, environment=visible))
            for share in shares
        ]
    try:
        while not all(task.done() for task in tasks):
            time.sleep(POLL_SECONDS * 5)
    except KeyboardInterrupt:
        if where == "local":
            for task in tasks:
                task.cancel()
        else:
            log.warning("%s goes on without this terminal", ", ".join(t.job_id for t in tasks))
        raise
    after = [len(job.read_attempts(path)) for path in jobs]
    if after == before and any(is_open(path, options) for path in jobs):
        reason = (tasks[0].stderr() or "?").strip().splitlines()[-1]
        raise SynthError(f"no worker began: {reason}", hint=f"see {executor.folder}")


def _executor(folder: Path, where: Where, options: JobOptions, jobs: int) -> Any:
    """Return the executor of submitit."""
    try:
        import submitit
    except ImportError as error:
        raise SynthError(
            f"--where {where} needs submitit", hint="bash run.sh MODE=setup EXTRAS=cluster"
        ) from error
    own: dict[str, Any] = {"timeout_min": DAYS_30}
    if where == "slurm":
        own = {"timeout_min": 24 * 60, "slurm_array_parallelism": options.at_once or jobs}
    try:
        executor = submitit.AutoExecutor(
            folder / ".submitit", cluster=where, slurm_max_num_timeout=options.retries
        )
        executor.update_parameters(name="synth", **own | dict(options.cluster))
    except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise SynthError(
            f"submitit: {' '.join(str(error).split())[:300]}",
            hint="see the parameters of submitit.AutoExecutor, and whether sbatch is on the PATH",
        ) from error
    return executor
