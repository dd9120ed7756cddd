"""Where drawn cases come from, and their place in a split: train only, behind their real source.

A case drawn for the label map of a patient shows that patient's tumour. It may never train what is
tested on that patient: `Split.fold` drops the offspring of a held-out fold by its `source`, and
what nothing would catch is refused here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synth.case import MODALITIES, Case
from synth.config import read_json
from synth.errors import SynthError
from synth.split import TRAIN_ONLY, Entry, Split, read_split, seen_folds, write_split
from synth.synthesis_gate import scans_hash

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pedigree:
    """The real cohort that label maps were taken from, as far as it is told."""

    split: Split | None = None
    held_out: int | None = None
    """The fold that the model was not trained on."""
    strict: bool = False
    """Refuse what must not be trained on."""

    def of(self, case: Case) -> dict[str, Any]:
        """Return the real case behind a label map, and its fold in the split."""
        if self.split is None:
            return {"case": case.origin, "label_map": case.id, "fold": None}
        tested = {name for e in self.split.testing for name in (e.case.id, e.case.patient)}
        entry = self._entry(case)
        origin = (entry.source or entry.case.id) if entry else case.origin
        if self.strict and tested & {case.id, origin, case.patient}:
            raise SynthError(
                f"{case.id} is a label map of {case.patient}, who is in testing",
                hint="scans drawn for it would leak; leave --append-to out to draw them anyway",
            )
        fold = entry.fold if entry else None
        if self.strict and fold is not None and fold == self.held_out:
            raise SynthError(
                f"{case.id} is a label map of {origin} in fold {fold}, which is held out",
                hint="scans drawn for it would leak; take label maps of the other folds",
            )
        return {"case": origin, "label_map": case.id, "fold": fold}

    def seen(self, marks: list[str] | None) -> tuple[int, ...] | None:
        """Return the folds a model was trained on: by its patients' marks, or by what is said."""
        if self.split is None:
            return None
        if marks is not None:
            return seen_folds(self.split, marks)
        if self.held_out is None:
            return None
        folds = {e.fold for e in self.split.training if e.fold is not None and e.fold >= 0}
        return tuple(sorted(folds - {self.held_out}))

    def _entry(self, case: Case) -> Entry | None:
        """Return the case itself in the split, else the one it was made of, else the patient."""
        assert self.split is not None
        wanted = (case.id, case.origin, case.patient)
        for e in (e for name in wanted for e in self.split.training
                  if name in (e.case.id, e.case.patient)):  # fmt: skip
            return e
        return None


def append(
    path: Path,
    out: Path,
    pedigree: Pedigree,
    root: Path,
    *,
    kept: Mapping[str, str] | None = None,
) -> int:
    """Add every finished case in `out` to a split, as fold -1; return how many were refused.

    A case that is listed already is replaced by itself: doing this twice changes nothing. With
    `kept`, the ids that `synth evaluate synthesis --keep` let through and the hashes of their
    scans, others are left out, and taken out if an earlier call listed them.
    """
    split = read_split(path, root)
    drawn, refused, dropped = {}, 0, set()
    for entry in _finished(out, pedigree):
        if kept is not None and entry.case.id not in kept:
            dropped.add(entry.case.path("t1n").resolve())
            continue
        try:
            if kept is not None and scans_hash(entry.case) != kept[entry.case.id]:
                raise SynthError("drawn again since it was judged", hint="judge it again")
            source = pedigree.of(Case(id=entry.source or "", files={}))
            drawn[entry.case.id] = replace(entry, source=source["case"])
        except SynthError as error:
            refused += 1
            log.error("%s is not appended: %s → %s", entry.case.id, error.message, error.hint)
    listed = {e.case.id: e for e in (*split.training, *split.testing)}
    for name in drawn.keys() & listed.keys():
        there = listed[name].case.path("t1n").resolve()
        if there != drawn[name].case.path("t1n").resolve():
            raise SynthError(
                f"{path} lists {name} already: {there}",
                hint="ids must be unique: append each folder to a split of its own",
            )
    staying = [
        drawn.pop(e.case.id, e)
        for e in split.training
        if e.source is None or e.case.files.get("t1n", root).resolve() not in dropped
    ]
    training = (*staying, *(drawn[name] for name in sorted(drawn)))
    write_split(path, replace(split, training=training), root)
    log.info("%s: %d synthetic cases, fold %d; %d were sorted out",
             path, len(drawn) + _made(staying), TRAIN_ONLY, len(dropped))  # fmt: skip
    return refused


def require_within(root: Path, out: Path) -> None:
    """Refuse a folder that a split could not name."""
    if not out.resolve().is_relative_to(root.resolve()):
        raise SynthError(
            f"{out} is outside {root}, where the paths of the split begin",
            hint="write below that folder, or name a folder that holds both with --data",
        )


def _finished(out: Path, pedigree: Pedigree) -> list[Entry]:
    """Return the cases with a record whose files are there, each with its label map as source."""
    entries = []
    for path in sorted((out / "records").glob("*.json")):
        record = read_json(path)
        name = record["case"]
        files = {r: out / name / f"{name}-{r}.nii.gz" for r in (*MODALITIES, "seg")}
        if all(file.is_file() for file in files.values()):  # what was sorted out is not listed
            case = Case(id=name, files=files, scheme=record["scheme"])
            source = record["source"]["label_map"]
            seen = pedigree.seen(record.get("patients"))
            entries.append(Entry(case=case, fold=TRAIN_ONLY, source=source, seen_folds=seen))
    return entries


def _made(entries: list[Entry]) -> int:
    return sum(e.source is not None and e.fold == TRAIN_ONLY for e in entries)
