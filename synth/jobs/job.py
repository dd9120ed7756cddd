"""A command line in a folder, with its log and attempts; one process at a time runs it.

The folder holds command.json, log.txt and attempt-1.json …. Whoever locks log.txt may run the job.
The system frees the lock when the process and its children have ended, however they ended: so no
job runs twice at the same time, and a job whose process died is open again at once.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TextIO, TypedDict

from synth.base.errors import SynthError
from synth.base.files import lock, read_json, write_json
from synth.base.stopping import STOPPED

COMMAND, LOG = "command.json", "log.txt"
EXIT_USER_ERROR = 2
"""Exit code of a verb whose user has to change something."""
POLL_SECONDS = 0.1
GRACE_SECONDS = 80.0
"""For a verb to save its state after SIGTERM; submitit asks 90 s before SLURM kills."""

log = logging.getLogger(__name__)


class Attempt(TypedDict):
    """One attempt at a job; without a state while it runs."""

    began: float
    state: NotRequired[str]
    exit: NotRequired[int | None]
    seconds: NotRequired[float]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How jobs are run, and how often they are tried."""

    program: str
    """Module whose main(words) runs a command line."""
    retries: int = 2
    """Further attempts at a job that failed, was stopped or lost its worker. After exit code 2 the
    user has to change something: only the next launch tries again."""
    at_once: int = 0
    """Jobs at the same time; 0: one, or on SLURM as many as there are."""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of submitit, e.g. timeout_min, slurm_partition, gpus_per_node, mem_gb."""
    began: float = 0.0
    """Attempts from before, in seconds since 1970, do not count. 0: since the launch."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of a job, read from its folder."""

    name: str
    state: str
    """waiting, running, done, failed, stopped (goes on when tried again) or lost (process died)."""
    exit: int | None
    """Exit code of the last attempt; negative: the signal that killed it."""
    attempts: int
    seconds: float
    """Of all attempts."""
    line: str
    """The last line of the log."""


def create_job(folder: Path, name: str, words: Sequence[str]) -> Path:
    """Write the command line of a job, or check that it is the same; return its folder."""
    if not re.fullmatch(r"\w[\w.=+-]*", name):
        raise SynthError(f"job {name!r}", hint="letters, digits and . = + - _ make a name")
    job = folder / name
    path = job / COMMAND
    if not path.exists():
        write_json(path, list(words))
    elif (before := read_json(path, list[str])) != list(words):
        raise SynthError(
            f"{job} was begun as: {' '.join(before)}",
            hint="give the same words, or another folder",
        )
    return job


def read_attempts(job: Path) -> list[Attempt]:
    """Return the attempts at a job, oldest first: state, exit, began, seconds, host, pid."""
    found: list[Attempt] = []
    while (path := job / f"attempt-{len(found) + 1}.json").exists():
        record = read_json(path, Attempt)
        if "state" not in record:
            with lock(job / LOG) as file:
                running = file is None
            end = time.time() if running else (job / LOG).stat().st_mtime
            record = Attempt(
                began=record["began"], state="running" if running else "lost", exit=None,
                seconds=max(end - record["began"], 0.0),
            )  # fmt: skip
            record |= read_json(path, Attempt)
        found.append(record)  # read again, because it may have ended meanwhile
    return found


def read_status(job: Path) -> Status:
    """Read the state of a job from its folder."""
    attempts = read_attempts(job)
    last = attempts[-1] if attempts else Attempt(began=0.0, state="waiting", exit=None)
    seconds = sum(attempt.get("seconds", 0.0) for attempt in attempts)
    lines = tail(job / LOG, 1)
    return Status(
        name=job.name, state=last.get("state", ""), exit=last.get("exit"), attempts=len(attempts),
        seconds=seconds, line=lines[0].strip() if lines else "",
    )  # fmt: skip


def is_open(job: Path, options: JobOptions) -> bool:
    """Say whether a job should be tried: it is not done, not running, and not hopeless."""
    attempts = read_attempts(job)
    if not attempts:
        return True
    if attempts[-1].get("state") in ("done", "running"):
        return False
    recent = [attempt for attempt in attempts if attempt["began"] >= options.began]
    hopeless = attempts[-1].get("exit") == EXIT_USER_ERROR or len(recent) > options.retries
    return not recent or not hopeless


def is_running(job: Path) -> bool:
    """Say whether a process is running a job."""
    return any(attempt.get("state") == "running" for attempt in read_attempts(job)[-1:])


def run_job(job: Path, options: JobOptions, execute: Callable[[list[str], TextIO], int]) -> bool:
    """Try a job until it is done or hopeless; False if there was nothing to try.

    Args:
        job: its folder.
        options: how often.
        execute: runs a command line with a log, and returns its exit code.
    """
    tried = False
    while is_open(job, options):
        number = len(read_attempts(job)) + 1
        with lock(job / LOG) as file:
            path = job / f"attempt-{number}.json"
            if file is None or path.exists():  # another process was faster
                break
            tried = True
            began = time.time()
            record = {"host": platform.node(), "pid": os.getpid(), "began": began}
            write_json(path, record)
            state, code = "stopped", STOPPED[0]  # where Ctrl-C or a signal ends it
            try:
                code = execute(read_json(job / COMMAND, list[str]), file)
                state = state_of(code)
            finally:
                record |= {"state": state, "exit": code, "seconds": time.time() - began}
                write_json(path, record)
        log.info("%s: %s", job.name, state if code == 0 else f"{state} with exit code {code}")
    return tried


def state_of(code: int) -> str:
    """Return what the exit code of a verb means."""
    return "done" if code == 0 else "stopped" if code in STOPPED else "failed"


def run_in_process(program: str, words: list[str], file: TextIO) -> int:
    """Run a command line in this process, on the screen and in the log."""
    main = importlib.import_module(program).main
    try:
        with (
            contextlib.redirect_stdout(_Tee(sys.stdout, file)),
            contextlib.redirect_stderr(_Tee(sys.stderr, file)),
        ):
            code = int(main(words) or 0)
    except Exception:
        log.exception("%s failed", words[0])
        traceback.print_exc(file=file)
        return 1
    if code in STOPPED:  # it was this process that was asked to stop
        raise KeyboardInterrupt
    return code


def start_process(
    program: str, words: list[str], file: TextIO, environment: Mapping[str, str | None]
) -> subprocess.Popen:
    """Start a command line in a process of its own, which keeps the log and its lock.

    `environment` has what differs there; None: not at all.
    """
    code = f"import sys; from {program} import main; sys.exit(main(sys.argv[1:]))"
    own = {**os.environ, **python_environment(), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        env={name: value for name, value in own.items() if value is not None},
        start_new_session=True,
    )  # fmt: skip


def stop_process(child: subprocess.Popen) -> None:
    """Ask a verb to save and end; kill it if it does not."""
    child.terminate()
    limit = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < limit:
        time.sleep(POLL_SECONDS)
    child.kill()


def python_environment() -> dict[str, str]:
    """Return what a process needs to run this package, and no code of the current folder."""
    return {"PYTHONUNBUFFERED": "1", "PYTHONPATH": python_path(), "PYTHONSAFEPATH": "1"}


def python_path() -> str:
    """Return a PYTHONPATH with this package on it: a checkout need not be installed."""
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # A relative one would mean another folder, and perhaps another's code, in each process.
    kept = (path for path in known if os.path.isabs(path) and path != root)
    return os.pathsep.join([root, *kept])


def tail(path: Path, count: int) -> list[str]:
    """Return the last lines of a log that are not empty."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 8192, 0))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()][-count:]


class _Tee:
    """Writes to the screen and to the log of a job."""

    def __init__(self, screen: TextIO, file: TextIO) -> None:
        self.screen, self.file = screen, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.screen, name)

    def write(self, text: str) -> int:
        self.file.write(text)
        return self.screen.write(text)

    def flush(self) -> None:
        self.file.flush()
        self.screen.flush()
