"""Progress of a study: its stages, and study.json with what they took."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from synth.base.files import read_json, write_json

STATE = "study.json"
FORMAT = 1


class StageRow(TypedDict):
    """What study.json says of a stage."""

    name: str
    purpose: str
    command: str
    state: str
    seconds: float
    started: str | None
    peak_memory_mb: float | None
    network_calls: int | None


class StateFile(TypedDict):
    """study.json."""

    format: int
    stages: list[StageRow]


class CallsFile(TypedDict, total=False):
    """A record, as far as it is read here."""

    network_calls: int | None


@dataclass(frozen=True)
class Stage:
    """One command line, and what it is for."""

    name: str
    words: tuple[str, ...]
    """Of the verb, as after `synth`."""
    purpose: str
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


class StudyState:
    """study.json: what each stage was, is and took."""

    def __init__(self, out: Path, stages: Sequence[Stage]) -> None:
        self.out, self.stages = out, stages
        before = read_json(out / STATE, StateFile)["stages"] if (out / STATE).exists() else []
        known = {row["name"]: row for row in before}
        self.rows: dict[str, StageRow] = {s.name: self._row(s, known.get(s.name)) for s in stages}

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

    def _row(self, stage: Stage, before: StageRow | None) -> StageRow:
        row = StageRow(
            name=stage.name, purpose=stage.purpose, command=stage.command, state="waiting",
            seconds=0.0, started=None, peak_memory_mb=None, network_calls=None,
        )  # fmt: skip
        if before and before["command"] == stage.command:
            row |= before | {"purpose": stage.purpose}
        return row

    def _write(self) -> None:
        write_json(self.out / STATE, {"format": FORMAT, "stages": list(self.rows.values())})


def network_calls(folder: Path | None) -> int | None:
    """Return the network calls that the records of a folder tell; None where none does."""
    if folder is None:
        return None
    told = [
        read_json(p, CallsFile).get("network_calls") for p in sorted(folder.glob("records/*.json"))
    ]
    known = [calls for calls in told if calls is not None]
    return sum(known) if known and len(known) == len(told) else None
