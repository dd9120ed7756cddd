"""A batch of cases: skip finished ones, refuse other settings, go on after an error, report."""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from synth.base.errors import SynthError
from synth.base.files import file_hash, read_json, unlink

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)

HASH = re.compile(r"[0-9a-f]{64}")
AGAIN = "--force makes it again; or choose another --out"


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Which cases a verb makes: a range, of that the share of one job, and whether again."""

    begin: int = 0
    """first case."""
    end: str = "end"
    """case to stop before, or end."""
    shard: str = "0/1"
    """i/n, the i-th of n equal shares, for arrays of jobs."""
    force: bool = False
    """make finished cases again."""

    def __post_init__(self) -> None:
        if self.end != "end" and not self.end.isdigit():
            raise SynthError(f"--end {self.end}", hint="a whole number, or end")
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not found or not int(found[1]) < int(found[2]):
            raise SynthError(f"shard {self.shard!r}", hint="write i/n with 0 ≤ i < n, e.g. 0/4")

    def share(self, cases: Sequence[T]) -> list[T]:
        """Return the cases of this job.

        The choice is made before anything is skipped, so that shares never overlap or leave gaps.
        """
        part, parts = map(int, self.shard.split("/"))
        last = None if self.end == "end" else int(self.end)
        return list(cases[self.begin : last])[part::parts]


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file whose presence means that a case is done, or a part of it; it is written last."""

    path: Path
    record: Path | None = None
    """JSON with the arguments and inputs that it was made with; it may be `path` itself."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the record's arguments must agree with."""
    inputs: Callable[[], Sequence[Path]] = tuple
    """The files that it must have been made from."""

    def read_record(self) -> dict[str, Any]:
        """Return the record of what is there; refuse one that was made with other settings."""
        if not (self.record and self.record.exists() and self.path.exists()):
            return {}
        record = read_json(self.record)
        made = record["arguments"]
        for name, value in json.loads(json.dumps(self.settings)).items():
            if made.get(name, value) != value:
                shown = f"{name} = {made[name]}, not {value}"
                shown = f"other {name}" if HASH.search(str(value)) else shown
                raise SynthError(f"{self.path} was made with {shown}", hint=AGAIN)
        return record

    def require_same_inputs(self) -> None:
        """Refuse what was made from other files than those that are there now."""
        made, now = self.read_record().get("inputs"), self.inputs()
        if made and now and made != {path.name: file_hash(path) for path in now}:
            message = f"{self.path} was made from other files: {', '.join(made)}"
            raise SynthError(message, hint=AGAIN)


def run_cases(
    cases: Sequence[T],
    make: Callable[[T], str],
    outputs: Callable[[T], Sequence[Output]],
    *,
    name: Callable[[T], str] = operator.attrgetter("id"),
    workers: int = 1,
    force: bool = False,
) -> int:
    """Make every case that is not done; return the number that failed.

    Errors of the data (SynthError) are reported and the next case follows; anything else is a bug
    and stops. Nothing is made where a case was made with other settings.

    Args:
        cases: what is to be made.
        make: makes one case, writes its outputs last, and returns what to say of it.
        outputs: what is written of a case.
        name: what a case is called in messages.
        workers: processes; 0 uses every core.
        force: make finished cases again.
    """
    if force:
        for output in [output for case in cases for output in outputs(case)]:
            unlink(output.path)
    missing = [case for case in cases if not _is_done(outputs(case))]
    names = {name(case) for case in missing}
    done = failed = 0
    before = None
    with in_processes(make, missing, workers) as made:
        for number, case in enumerate(cases, start=1):
            own = name(case)
            try:
                if own in names:
                    log.info("[%d/%d] %s: %s", number, len(cases), own, made(case))
                    continue
                for output in outputs(case):
                    output.require_same_inputs()
                done += 1
            except SynthError as error:
                failed += 1
                mistake = error.message.replace(own, ""), error.hint
                message = error.message.removeprefix(f"{own}: ")
                words = "the same" if mistake == before else f"{message} → {error.hint}"
                log.error("[%d/%d] %s: %s", number, len(cases), own, words)
                before = mistake
    made_now = len(cases) - done - failed
    log.info("%d made, %d already there, %d failed", made_now, done, failed)
    return failed


def _is_done(outputs: Sequence[Output]) -> bool:
    records = [output.read_record() for output in outputs]
    gave_up = all(record.get("gave_up") for record in records)  # is to be reported again
    return all(output.path.exists() for output in outputs) and not gave_up


@contextlib.contextmanager
def in_processes(
    work: Callable[[T], R], items: Sequence[T], workers: int
) -> Generator[Callable[[T], R]]:
    """Yield what does the items, to be called for each in order: here, or by waiting for a worker.

    0 workers means one a processor.
    """
    workers = min(workers or os.cpu_count() or 1, len(items))
    if workers <= 1:
        yield work
        return
    import multiprocessing
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

    # A forked child inherits torch's locked thread pool and hangs; a spawned one starts clean.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        jobs = iter([pool.submit(work, item) for item in items])
        try:
            yield lambda _: next(jobs).result()
        except BrokenProcessPool as error:
            raise SynthError(
                "a worker process died, probably because memory ran out",
                hint="rerun with fewer --workers; finished cases are kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
