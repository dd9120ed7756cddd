"""Progress of a study: its stages, and study.json with what they took."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synth.base.files import read_json, write_json

STATE = "study.json"
FORMAT = 1
PRIOR_SECONDS = 60.0
"""What the expected seconds weigh against measured ones, until more are measured."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command line, and what it is for."""

    name: str
    words: tuple[str, ...]
    """Of the verb, as after `synth`."""
    purpose: str
    seconds: float = 60.0
    """Expected; only the proportions matter once some are measured."""
    made: Path | None = None
    """Folder whose records tell the network calls."""
    always: bool = False
    """Done again though it was done."""

    @property
    def command(self) -> str:
        """Return the line that a shell would take."""
        return shlex.join(["synth", *self.words])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a process ended."""

    code: int
    seconds: float
    peak_memory_mb: float


class Ledger:
    """study.json: what each stage was, is and took."""

    def __init__(self, out: Path, stages: Sequence[Stage]) -> None:
        self.out, self.stages = out, stages
        before = read_json(out / STATE)["stages"] if (out / STATE).exists() else []
        known = {row["name"]: row for row in before}
        self.rows: dict[str, dict[str, Any]] = {
            s.name: self._row(s, known.get(s.name)) for s in stages
        }

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage was done with the same words."""
        return self.rows[stage.name]["state"] == "done"

    def begin(self, stage: Stage) -> None:
        """Write down that a stage is at work."""
        row = self.rows[stage.name]
        if stage.always:
            row["seconds"] = 0.0
        row |= {"state": "running", "started": datetime.now(UTC).isoformat(timespec="seconds")}
        self._write()

    def end(self, stage: Stage, state: str, outcome: Outcome) -> None:
        """Write down what became of it; the seconds of all attempts that ended add up."""
        row = self.rows[stage.name]
        row["state"] = state
        row["seconds"] = round(row["seconds"] + outcome.seconds, 2)
        row["peak_memory_mb"] = round(max(row["peak_memory_mb"] or 0, outcome.peak_memory_mb), 1)
        row["network_calls"] = network_calls(stage.made)
        self._write()

    def seconds_left(self, at: int, elapsed: float = 0.0, said: float = 0.0) -> float:
        """Estimate the seconds of stage `at` and what follows: as expected, at measured speed."""
        later = [s for s in self.stages[at + 1 :] if s.always or not self.is_done(s)]
        own = self.seconds_left_of(at, elapsed, said)
        return own + self._speed() * sum(s.seconds for s in later)

    def seconds_left_of(self, at: int, elapsed: float = 0.0, said: float = 0.0) -> float:
        """Estimate the seconds of stage `at` alone, no fewer than it says itself of its work.

        0 where it takes longer than expected and says nothing.
        """
        return max(self.stages[at].seconds * self._speed() - elapsed, said)

    def _speed(self) -> float:
        """Return the seconds that an expected second takes on this machine."""
        done = [s for s in self.stages if self.is_done(s) and not s.always]
        measured = PRIOR_SECONDS + sum(self.rows[s.name]["seconds"] for s in done)
        return measured / (PRIOR_SECONDS + sum(s.seconds for s in done))

    def _row(self, stage: Stage, before: dict[str, Any] | None) -> dict[str, Any]:
        row = {"name": stage.name, "purpose": stage.purpose, "command": stage.command}
        nothing = {"state": "waiting", "seconds": 0.0, "started": None}
        nothing |= {"peak_memory_mb": None, "network_calls": None}
        kept = before if before and before["command"] == stage.command else nothing
        return row | {key: kept[key] for key in nothing}

    def _write(self) -> None:
        write_json(self.out / STATE, {"format": FORMAT, "stages": list(self.rows.values())})


def network_calls(folder: Path | None) -> int | None:
    """Return the network calls that the records of a folder tell; None where none does."""
    if folder is None:
        return None
    told = [read_json(p).get("network_calls") for p in sorted(folder.glob("records/*.json"))]
    return sum(told) if told and None not in told else None
