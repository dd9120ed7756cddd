"""A batch of cases: skip finished ones, refuse other settings, go on after an error, report."""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

from synth.base import stopping
from synth.base.errors import SynthError, as_user_error
from synth.base.files import file_hash, read_json, unlink, write_json

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)

HASH = re.compile(r"[0-9a-f]{64}")
AGAIN = "--force makes it again; or choose another --out"
ELSEWHERE = "move it away, or choose another --out"


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


class Record(TypedDict):
    """The JSON beside an output, as far as it is read here."""

    arguments: dict[str, Any]
    inputs: NotRequired[dict[str, str]]
    outputs: NotRequired[dict[str, str]]
    """File, from the folder of the results → SHA-256. Empty while it is made; records of earlier
    versions have none."""
    gave_up: NotRequired[str | None]


def write_record(path: Path, facts: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
    """Write the record of a case with the hash of each file that was made.

    Without `files` it says that the case has begun: what is there later is ours.
    """
    out = path.parents[1]
    hashes = {file.relative_to(out).as_posix(): file_hash(file) for file in files}
    write_json(path, {**facts, "outputs": hashes})


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file whose presence means that a case is done, or a part of it."""

    path: Path
    record: Path | None = None
    """JSON with the arguments and inputs that it was made with; it may be `path` itself."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the record's arguments must agree with."""
    inputs: Callable[[], Sequence[Path]] = tuple
    """The files that it must have been made from."""

    def is_done(self) -> bool:
        """Say whether the output is there; what its record does not vouch for is made again."""
        self.require_ours()
        if self.record is None or not self.path.exists():
            return self.path.exists()
        record = self.read_record()
        if record is None:
            return False
        files, out = record.get("outputs"), self.record.parents[1]
        ours = files is None or (bool(files) and all((out / name).exists() for name in files))
        return ours or bool(record.get("gave_up"))

    def require_ours(self) -> None:
        """Refuse to touch a file that has no record."""
        if self.record is not None and self.path.exists() and not self.record.exists():
            raise SynthError(f"{self.path} is there, and `synth` did not write it", hint=ELSEWHERE)

    def read_record(self) -> Record | None:
        """Return the record of what is there, None for a damaged one; refuse other settings."""
        if not (self.record and self.record.exists() and self.path.exists()):
            return None
        try:
            record = read_json(self.record, Record)
        except SynthError as error:
            log.warning("%s: its case is made again", error.message)
            return None
        made = record["arguments"]
        for name, value in json.loads(json.dumps(self.settings)).items():
            if made.get(name, value) != value:
                shown = f"{name} = {made[name]}, not {value}"
                shown = f"other {name}" if HASH.search(str(value)) else shown
                raise SynthError(f"{self.path} was made with {shown}", hint=AGAIN)
        return record

    def require_unchanged(self) -> None:
        """Refuse what was made from other files than are there now, or was changed since."""
        record, now = self.read_record(), self.inputs()
        if record is None or self.record is None:
            return
        made = record.get("inputs")
        if made and now and made != {path.name: file_hash(path) for path in now}:
            message = f"{self.path} was made from other files: {', '.join(made)}"
            raise SynthError(message, hint=AGAIN)
        for name, digest in record.get("outputs", {}).items():
            if file_hash(self.record.parents[1] / name) != digest:
                raise SynthError(f"{name} was changed or damaged since", hint=AGAIN)


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
            output.require_ours()
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
                    output.require_unchanged()
                done += 1
            except (SynthError, OSError, MemoryError) as found:
                error, failed = as_user_error(found), failed + 1
                mistake = error.message.replace(own, ""), error.hint
                message = error.message.removeprefix(f"{own}: ")
                words = "the same" if mistake == before else f"{message} → {error.hint}"
                log.error("[%d/%d] %s: %s", number, len(cases), own, words)
                before = mistake
    gone = [] if failed else [o for c in cases for o in outputs(c) if not o.path.exists()]
    if gone:
        raise SynthError(f"{gone[0].path} is gone", hint="did somebody remove it? Run again")
    made_now = len(cases) - done - failed
    log.info("%d made, %d already there, %d failed", made_now, done, failed)
    return failed


def _is_done(outputs: Sequence[Output]) -> bool:
    made = [output.is_done() for output in outputs]
    records = [output.read_record() for output in outputs]
    gave_up = all(record and record.get("gave_up") for record in records)  # is reported again
    return all(made) and not gave_up


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
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=stopping.ignore) as pool:
        jobs = iter([pool.submit(work, item) for item in items])
        try:
            yield lambda _: next(jobs).result()
        except BrokenProcessPool as error:
            raise SynthError(
                "a worker process died, probably because memory ran out",
                hint="rerun with fewer --workers; finished cases are kept",
            ) from error
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
