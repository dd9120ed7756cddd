"""Runs the stages of a study, each in a process of its own.

What was done is in STUDY/study.json, written after every stage, and what was said in
STUDY/logs/<stage>.log. Every verb resumes, so that the same study goes on wherever it was stopped,
even by kill -9. A lock that a stage inherits tells whether one that an earlier call left behind is
still at work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from synth.base import stopping
from synth.base.errors import SynthError
from synth.base.files import LOCK, lock
from synth.jobs.job import GRACE_SECONDS, python_environment, state_of, tail
from synth.study.progress import Outcome, Stage, StudyState

LOGS = "logs"
POLL_SECONDS = 0.2
SPEAK_SECONDS = 60.0
TAIL = 12
"""Lines of the log of a failed stage that are shown."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

log = logging.getLogger(__name__)


def run(stages: Sequence[Stage], out: Path, *, program: str, threads: int = 0) -> None:
    """Run what is not done yet; a stage that fails ends the study and says how to go on.

    Args:
        stages: in order; those that were done with the same words are skipped, up to the first
            that is not: what follows may depend on it.
        out: folder of the study.
        program: module whose main(words) runs a command line.
        threads: of the numerical libraries in each stage, unless the environment says; 0: as is.
    """
    with _alone(out) as file, stopping.handled(stopping.interrupt):
        progress = StudyState(out, stages)
        changed = False
        for at, stage in enumerate(stages):
            if progress.is_done(stage) and not stage.always and not changed:
                continue
            changed = True
            with _line(progress, at) as tell:
                outcome = _do(progress, stage, file, tell, threads=threads, program=program)
            state = state_of(outcome.code)
            progress.end(stage, state, outcome)
            if state == "stopped":
                raise KeyboardInterrupt
            if state == "failed":
                raise _failure(stage, outcome.code, out)
            log.info("%s: done in %s, %.0f MB", _place(progress, at), spoken(outcome.seconds),
                     outcome.peak_memory_mb)  # fmt: skip


def spoken(seconds: float) -> str:
    """Return a duration as one would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _do(
    progress: StudyState,
    stage: Stage,
    lock: TextIO,
    tell: Callable[[float], None],
    *,
    threads: int,
    program: str,
) -> Outcome:
    """Run a stage to its end; when asked to stop, let it save first."""
    path = progress.out / LOGS / f"{stage.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    progress.begin(stage)
    code = f"import sys; from {program} import main; sys.exit(main(sys.argv[1:]))"
    began = time.monotonic()
    with path.open("ab") as file:
        file.write(f"$ {stage.command}\n".encode())
        file.flush()
        child = subprocess.Popen(
            [sys.executable, "-c", code, *stage.words], stdin=subprocess.DEVNULL, stdout=file,
            stderr=file, env=_environment(threads), pass_fds=(lock.fileno(),),
        )  # fmt: skip
    lock.truncate(0)
    lock.write(str(child.pid))
    lock.flush()
    try:
        while (ended := _ended(child)) is None:
            time.sleep(POLL_SECONDS)
            tell(time.monotonic() - began)
    except KeyboardInterrupt:
        log.warning("stopping %s; it saves first where it can", stage.name)
        child.terminate()
        patience = time.monotonic() + GRACE_SECONDS
        while (ended := _ended(child)) is None:
            if time.monotonic() > patience:
                child.kill()
            time.sleep(POLL_SECONDS)
        ended = stopping.exit_code(), ended[1]
    return Outcome(code=ended[0], seconds=time.monotonic() - began, peak_memory_mb=ended[1])


def _ended(child: subprocess.Popen) -> tuple[int, float] | None:
    """Return (exit code, MB of its largest process), None while it runs."""
    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    if pid == 0:
        return None
    child.returncode = os.waitstatus_to_exitcode(status)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    return child.returncode, usage.ru_maxrss / unit


def _environment(threads: int) -> dict[str, str]:
    own = {**os.environ, **python_environment()}
    if threads == 0:
        return own
    # Threads that sleep while they wait: where another program has one of two cores, a training
    # takes 1.3 times as long instead of twice and more; on a quiet machine 6 % longer.
    return {**dict.fromkeys(THREADS, str(threads)), "OMP_WAIT_POLICY": "PASSIVE", **own}


def _failure(stage: Stage, code: int, out: Path) -> SynthError:
    path = out / LOGS / f"{stage.name}.log"
    log.error("the last lines of %s:", path)
    for line in tail(path, TAIL):
        log.error("  %s", line)
    why = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed ({code})"
    return SynthError(
        f"stage {stage.name} {why}: {stage.command}",
        hint="correct it, see above; then the same command goes on from there",
    )


def _place(progress: StudyState, at: int) -> str:
    return f"[{at + 1:2d}/{len(progress.stages)}] {progress.stages[at].name}"


@contextlib.contextmanager
def _line(progress: StudyState, at: int) -> Generator[Callable[[float], None]]:
    """Yield what shows how long a stage has run: in place on a terminal, now and then elsewhere."""
    stage, place = progress.stages[at], _place(progress, at)
    path = progress.out / LOGS / f"{stage.name}.log"
    log.info("%s: %s", place, stage.purpose)
    width = shutil.get_terminal_size().columns - 1
    bar = tqdm(total=1, bar_format="{desc}", leave=False, disable=not sys.stderr.isatty(),
               file=sys.stderr)  # fmt: skip
    spoke = 0.0

    def tell(elapsed: float) -> None:
        nonlocal spoke
        if elapsed - spoke < (1.0 if not bar.disable else SPEAK_SECONDS):
            return
        spoke = elapsed
        last = (tail(path, 1) or [""])[0]
        text = f"{place}: {spoken(elapsed)} | {last}"
        if bar.disable:
            log.info("%s", text)
        else:
            bar.set_description_str(text[:width])

    try:
        yield tell
    finally:
        bar.close()


@contextlib.contextmanager
def _alone(out: Path) -> Generator[TextIO]:
    """Hold the folder's lock, which a stage inherits: wait for one that is still at work."""
    path = out / LOCK
    waiting = False
    while True:
        with lock(path) as file:
            if file is not None:
                yield file
                return
        if not waiting:
            who = path.read_text(encoding="utf-8") or "?"
            log.warning("an earlier call is still at work in %s (process %s); waiting", out, who)
        waiting = True
        time.sleep(POLL_SECONDS)
