"""Locks of jobs in a shared folder: one file an attempt.

The n-th attempt at a job is the file attempt-n.json in the job's folder. Creating it (O_EXCL) is
the claim: of two workers one succeeds. Its time stamp is the worker's heartbeat and its content, in
the end, the outcome. A dead worker's attempt is never deleted; the next number is free to whoever
is first, so that taking over is the same race-free act as beginning.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth.base.files import write_json

BEAT_SECONDS = 15.0
STALE_SECONDS = 180.0
"""A heart that stood still for so long is a dead worker's; cluster clocks agree much better."""
OVER = ("done", "failed", "stopped")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a job, as its file tells it."""

    state: str
    """running, done, failed, stopped (asked to, goes on when tried again) or lost (worker died)."""
    exit: int | None = None
    """Exit code of the command; negative: the signal that killed it."""
    began: float = 0.0
    """When it began, in seconds since 1970."""
    seconds: float = 0.0
    """How long it took, or has taken until now."""
    host: str = ""
    pids: tuple[int, ...] = ()


class Claim:
    """An attempt that this process makes; its heart beats until it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {"host": here(), "pids": [os.getpid()], "began": time.time()}
        self.ended = threading.Event()
        self.heart = threading.Thread(target=self._beat, daemon=True)

    def helped_by(self, pid: int) -> None:
        """Name a child that does the work: while it lives the attempt is not lost."""
        self.record["pids"].append(pid)
        write_json(self.path, self.record)

    def close(self, state: str, code: int | None = None) -> None:
        """Write the outcome."""
        assert state in OVER
        self.ended.set()
        self.heart.join()
        seconds = time.time() - self.record["began"]
        write_json(self.path, self.record | {"state": state, "exit": code, "seconds": seconds})

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            try:
                os.utime(self.path)
            except FileNotFoundError:  # somebody removed the folder: nothing is left to claim
                return


def claim(folder: Path, number: int) -> Claim | None:
    """Begin attempt `number` at the job of `folder`; None if another worker was quicker."""
    made = Claim(folder / f"attempt-{number}.json")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with made.path.open("x", encoding="utf-8") as handle:
            json.dump(made.record, handle)
    except FileExistsError:
        return None
    made.heart.start()
    return made


def attempts(folder: Path) -> list[Attempt]:
    """Return the attempts at a job, oldest first."""
    found: list[Attempt] = []
    while (path := folder / f"attempt-{len(found) + 1}.json").exists():
        found.append(_read(path))
    return found


def here() -> str:
    """Name this machine; where processes are numbered apart (containers), that too."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()} {os.readlink(space)}" if space.is_symlink() else platform.node()


def _read(path: Path) -> Attempt:
    record: dict[str, Any] = _content(path)
    if "state" not in record and _lost(path, record):
        # It may have ended between the two looks: what it wrote last counts.
        record = dict[str, Any](state="lost") | _content(path)
    end = path.stat().st_mtime if record.get("state") == "lost" else time.time()
    return Attempt(
        state=record.get("state", "running"),
        exit=record.get("exit"),
        began=record.get("began", 0.0),
        seconds=record.get("seconds", max(end - record.get("began", end), 0.0)),
        host=record.get("host", ""),
        pids=tuple(record.get("pids", ())),
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # created, and not filled yet: or never, if its maker died
        return {}


def _lost(path: Path, record: dict[str, Any]) -> bool:
    if record.get("host") == here() and not any(_alive(pid) for pid in record["pids"]):
        return True
    return time.time() - path.stat().st_mtime > STALE_SECONDS


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's: alive
        return True
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    """Say whether the process has ended and only its parent does not know yet (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
