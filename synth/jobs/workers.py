"""Worker processes that take the open jobs of a folder, one after another.

A job is a folder: command.json, attempt-1.json … (`synth.jobs.locks`), log.txt.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from synth.base.files import read_json
from synth.jobs.locks import Claim, attempts, claim

COMMAND, LOG = "command.json", "log.txt"
MEND, STOPPED = 2, 130
"""Exit codes of verbs: the user has something to mend; asked to stop, the same command goes on."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 80.0
"""For a verb to save its state after SIGTERM; submitit asks 90 s before SLURM kills."""

log = logging.getLogger(__name__)
children: set[subprocess.Popen] = set()
"""Verbs that this process runs: a signal handler stops them before SLURM does."""


def work(
    folder: Path,
    names: Iterable[str],
    do: Callable[[str, Claim], int],
    *,
    before: Mapping[str, int],
    retries: int,
    jobs: int = 0,
    wait: bool = True,
) -> None:
    """Claim one open job after another and do it, at most `jobs` of them (0: all there are).

    `do` returns an exit code. With `wait` it stays until the jobs of the other workers are over, to
    take over what a dead one leaves. `before` counts attempts that this launch is not to blame for.
    """
    names, taken = list(names), 0
    while True:
        some = False
        for name in names:
            mine = _pursue(folder / name, do, before.get(name, 0), retries)
            some, taken = some or mine, taken + mine
            if taken == jobs > 0:
                return
        if some:
            continue
        if not wait or not any(is_running(folder / name) for name in names):
            return
        time.sleep(POLL_SECONDS)


def is_open(job: Path, before: int, retries: int) -> bool:
    """Say whether a job waits for somebody to do it; it was tried `before` times before."""
    made = attempts(job)
    if not made:
        return True
    if made[-1].state in ("done", "running"):
        return False
    tried = len(made) - before
    return tried <= 0 or (made[-1].exit != MEND and tried <= retries)


def is_running(job: Path) -> bool:
    """Say whether a worker is busy with a job, or died so lately that it may still be."""
    made = attempts(job)
    return bool(made) and made[-1].state == "running"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a worker process is given: paths and words. submitit calls it, maybe more than once."""

    folder: Path
    names: tuple[str, ...]
    before: Mapping[str, int]
    retries: int
    program: str
    """Module whose main(words) runs a command line."""
    jobs: int = 0
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """What verbs find other than the worker does; None: not at all."""

    def __call__(self) -> None:
        """Do what is open, each job in a process of its own."""
        work(
            self.folder, self.names, self.in_child, before=self.before, retries=self.retries,
            jobs=self.jobs, wait=False,
        )  # fmt: skip

    def checkpoint(self) -> Any:
        """Before a preemption or the time limit: let the verb save, then be queued again."""
        import submitit

        for child in list(children):
            _stop(child)
        return submitit.helpers.DelayedSubmission(self)

    def in_process(self, name: str, _: Claim) -> int:
        """Run the command of a job in this process."""
        main = importlib.import_module(self.program).main
        with (self.folder / name / LOG).open("a", encoding="utf-8") as file:
            try:
                with (
                    contextlib.redirect_stdout(_Tee(sys.stdout, file)),
                    contextlib.redirect_stderr(_Tee(sys.stderr, file)),
                ):
                    code = int(main(self._words(name)) or 0)
            except Exception:
                log.exception("%s failed", name)
                traceback.print_exc(file=file)
                return 1
        if code == STOPPED:  # it was this process that was asked to stop: no other job, please
            raise KeyboardInterrupt
        return code

    def in_child(self, name: str, made: Claim) -> int:
        """Run the command of a job in a process of its own."""
        code = f"import sys; from {self.program} import main; sys.exit(main(sys.argv[1:]))"
        with (self.folder / name / LOG).open("ab") as file:
            child = subprocess.Popen(
                [sys.executable, "-c", code, *self._words(name)], stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, env=self._environment(), start_new_session=True,
            )  # fmt: skip
        children.add(child)
        try:
            made.helped_by(child.pid)
            while child.poll() is None:  # not wait(): a signal handler polls, too
                time.sleep(POLL_SECONDS / 5)
        except BaseException:
            _stop(child)
            raise
        finally:
            children.discard(child)
        return child.returncode

    def _words(self, name: str) -> list[str]:
        return list(read_json(self.folder / name / COMMAND))

    def _environment(self) -> dict[str, str]:
        own: dict[str, str | None] = {**os.environ, "PYTHONUNBUFFERED": "1"}
        own |= {"PYTHONPATH": python_path(), **self.environment}
        return {name: value for name, value in own.items() if value is not None}


def python_path() -> str:
    """Return a PYTHONPATH with this package on it: a checkout need not be installed."""
    root = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([root, *(path for path in known if path not in ("", root))])


def _pursue(job: Path, do: Callable[[str, Claim], int], before: int, retries: int) -> bool:
    """Try a job until it is done or hopeless; False if there was nothing to try."""
    mine = False
    while is_open(job, before, retries):
        made = claim(job, len(attempts(job)) + 1)
        if made is None:
            break
        mine = True
        try:
            code = do(job.name, made)
        except BaseException:  # Ctrl-C, or the end that submitit puts to a preempted worker
            made.close("stopped", STOPPED)
            raise
        state = {0: "done", STOPPED: "stopped"}.get(code, "failed")
        made.close(state, code)
        log.info("%s: %s", job.name, "done" if code == 0 else f"{state} with exit code {code}")
    return mine


def _stop(child: subprocess.Popen) -> None:
    """Ask a verb to save and end; end it if it does not."""
    child.terminate()
    patience = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < patience:
        time.sleep(POLL_SECONDS / 5)
    child.kill()


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
