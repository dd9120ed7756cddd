"""What every evaluation shares: its cases, a line for each problem, its files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import visible_files, write_json
from synth.base.manifest import manifest
from synth.data.case import Case, discover, require_unique
from synth.data.split import read_split
from synth.evaluate.tables import markdown_table, write_csv, write_text
from synth.training.log import Progress

SUMMARY = "summary.json"

T = TypeVar("T")
Rows = Sequence[Sequence[str]]
"""A table; the first row is its heading."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation; the same lies in the output folder."""

    problems: tuple[str, ...]
    """One line for each case that could not be judged."""
    summary: Mapping[str, Any]
    table: str
    """The tables for the terminal."""


def find_cases(truth_dir: Path, split: Path | None, scheme: str = "auto") -> list[Case]:
    """Return the cases of a folder, or the testing cases of a split."""
    if split is None:
        return discover(truth_dir, scheme=scheme)
    cases = [entry.case for entry in read_split(split, truth_dir).testing]
    if not cases:
        raise SynthError(f"{split}: no testing cases", hint="without --split, all are judged")
    require_unique(cases)
    return cases if scheme == "auto" else [case.with_scheme(scheme) for case in cases]


def find_real_sets(
    truth_dir: Path,
    train_dir: Path | None,
    split: Path | None,
    scheme: str,
    find: Callable[[Path], list[Case]],
    *,
    labelled: bool = False,
) -> dict[str, list[Case]]:
    """Find the real cases: unseen ones as "real", and "training" ones if they are known.

    With `labelled`, cases of a split without a label map are left out.
    """
    sets = {}
    if split is None:
        sets["real"] = find(truth_dir)
    else:
        parts = read_split(split, truth_dir)
        for name, entries in (("real", parts.testing), ("training", parts.training)):
            # Synthetic entries are neither truth nor evidence of a copy.
            cases = [e.case for e in entries if e.source is None]
            cases = [c for c in cases if not labelled or "seg" in c.files]
            sets[name] = [c if scheme == "auto" else c.with_scheme(scheme) for c in cases]
        if not sets["real"]:
            raise SynthError(f"{split}: no testing cases", hint="without --split, all are judged")
    if train_dir is not None:
        sets["training"] = find(train_dir)
    return {name: cases for name, cases in sets.items() if cases}


def find_nifti(folder: Path, hint: str) -> dict[str, list[Path]]:
    """Return every NIfTI file below a folder by its name without ending."""
    if not folder.is_dir():
        raise SynthError(f"{folder}: no such folder", hint=hint)
    found: dict[str, list[Path]] = {}
    for path in visible_files(folder, "*.nii*"):
        if path.name.endswith((".nii", ".nii.gz")):
            found.setdefault(path.name.removesuffix(".gz").removesuffix(".nii"), []).append(path)
    return found


def only_file(found: Mapping[str, Sequence[Path]], names: Sequence[str]) -> Path:
    """Return the one prediction that has one of the names; none and two are refused."""
    paths = [path for name in names for path in found.get(name, ())]
    if not paths:
        expected = " or ".join(f"{name}.nii.gz" for name in names)
        raise SynthError("no prediction", hint=f"expected {expected}")
    if len(paths) > 1:
        raise SynthError(f"two files: {paths[0]} and {paths[1]}", hint="keep one of them")
    return paths[0]


def evenly(count: int, most: int) -> list[int]:
    """Return `most` places evenly from the first of `count` to the last."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def as_json_tables(tables: Sequence[tuple[str, Rows]]) -> list[dict[str, Any]]:
    """Return tables as they stand in summary.json: a title and rows, of which the first heads."""
    return [{"title": title, "rows": [list(row) for row in rows]} for title, rows in tables]


class EvaluationRun:
    """One evaluation: what could not be judged becomes a line, and the folder is written last.

    Args:
        kind: the word after `synth evaluate`.
        out: folder to write.
        force: overwrite an earlier evaluation.
        **arguments: for the record.
    """

    def __init__(self, kind: str, out: Path, *, force: bool, **arguments: Any) -> None:
        if (out / SUMMARY).exists() and not force:
            raise SynthError(f"{out} holds an evaluation already", hint="--force overwrites it")
        self.verb, self.out, self.arguments = f"evaluate {kind}", out, arguments | {"out": out}
        self.began = time.monotonic()
        self.problems: list[str] = []
        """One line for each case that could not be judged."""

    def judge_each(
        self,
        cases: Sequence[Case],
        judge: Callable[[Case], T],
        bar: Progress,
        *,
        name: str = "",
        least: int = 1,
    ) -> Iterator[T]:
        """Yield the result of each case; fewer than `least` of the set `name` are refused."""
        count = 0
        for case in cases:
            try:
                found = judge(case)
            except SynthError as error:
                hint = f" → {error.hint}" if error.hint else ""
                message = error.message.removeprefix(f"{case.id}: ")
                self.problems.append(f"{name} {case.id}: {message}{hint}".lstrip())
                log.warning(self.problems[-1])
            else:
                count += 1
                yield found
            bar.advance()
        if count < least:
            needed = f", {least} are needed" if least > 1 else ""
            raise SynthError(
                f"{name}: {count or 'none'} of {len(cases)} cases could be judged{needed}".lstrip(
                    ": "
                ),
                hint=f"the first problem: {self.problems[0]}"
                if self.problems
                else "give more cases",
            )

    def write(
        self,
        tables: Sequence[tuple[str, Rows]],
        results: Mapping[str, Any],
        per_case: tuple[Sequence[str], Iterable[Sequence[Any]]],
        shown: str,
        *,
        inputs: Iterable[Path] = (),
        **facts: Any,
    ) -> Evaluation:
        """Write per_case.csv, table.md and, as it says that all is there, summary.json last.

        Args:
            tables: titles and rows.
            results: for summary.json.
            per_case: columns and lines of per_case.csv.
            shown: the text for the terminal.
            inputs: files whose hashes are recorded by their names.
            **facts: further parts of the record.
        """
        seconds = round(time.monotonic() - self.began, 2)
        record = manifest(self.verb, self.arguments, inputs, **facts, seconds=seconds)
        summary: dict[str, Any] = {
            **record,
            "problems": self.problems,
            **results,
            "tables": as_json_tables(tables),
        }
        write_csv(self.out / "per_case.csv", *per_case)
        parts = [f"{title}\n\n{markdown_table(rows)}\n" for title, rows in tables]
        write_text(self.out / "table.md", "\n".join(parts))
        write_json(self.out / SUMMARY, summary)
        return Evaluation(problems=tuple(self.problems), summary=summary, table=shown)
