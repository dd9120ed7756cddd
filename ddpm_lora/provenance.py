"""The source of generated cases, and their place in a split: train only.

A case drawn for the label map of a patient shows that patient's tumour, and one with a new tumour
the shape of its donor's. It may never train what is tested on them: `Split.fold` drops what was
made after a held-out fold by `source` and `seen_folds`; what nothing would catch is refused here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from synth.base.errors import SynthError
from synth.base.files import read_json
from synth.base.patient_marks import are_foreign
from synth.data.case import MODALITIES, Case
from synth.data.split import (
    TRAIN_ONLY,
    Entry,
    Split,
    find_folds,
    patient_marks,
    read_split,
    write_split,
)
from synth.evaluate.quality_filter import scans_hash

log = logging.getLogger(__name__)


class MaskRecord(TypedDict, total=False):
    """The record of a label map that `synth masks` made, as far as it is read here."""

    donors: list[str]
    patients: list[str]
    unmarked: list[str]


class SampleRecord(TypedDict):
    """The record of drawn scans, as far as it is read here."""

    case: str
    scheme: str
    source: dict[str, Any]
    patients: NotRequired[list[str] | None]
    unmarked: NotRequired[list[str]]


@dataclass(frozen=True, kw_only=True)
class Contributors:
    """Who is behind a label map besides the patient whose brain it is."""

    donors: tuple[str, ...] = ()
    """Ids of the cases whose lesions gave shapes."""
    patients: tuple[str, ...] = ()
    """Marks of the patients a shape model or a prior learnt from."""
    unmarked: tuple[str, ...] = ()
    """Models and priors that do not list their patients."""


def find_contributors(case: Case) -> Contributors:
    """Return the patients behind a label map, as the record beside it says; none for a real one."""
    folder = case.path("seg").parent
    records = (place / "records" / f"{case.id}.json" for place in (folder.parent, folder))
    path = next((p for p in records if p.is_file()), None)
    record = read_json(path, MaskRecord) if path else MaskRecord()
    if "donors" not in record:  # made, without a record or by a version that kept none of this
        return Contributors(unmarked=("label map",) if path or case.is_made else ())
    found = cast(Mapping[str, list[str]], record)
    return Contributors(**{k: tuple(found.get(k, ())) for k in ("donors", "patients", "unmarked")})


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The real cohort that label maps were taken from, as far as it is told."""

    split: Split | None = None
    held_out: int | None = None
    """The fold that the model was not trained on."""
    strict: bool = False
    """Refuse what must not be trained on."""

    def of(self, case: Case, donors: Sequence[str] = ()) -> dict[str, Any]:
        """Return the real case behind a label map, its fold in the split, and donors of shapes."""
        origin, fold = self._place(case, f"{case.id} is a label map of")
        for donor in donors:
            self._place(Case(id=donor, files={}), f"{case.id} has the shape of a lesion of")
        return {"case": origin, "label_map": case.id, "fold": fold, "donors": list(donors)}

    def _place(self, case: Case, being: str) -> tuple[str, int | None]:
        """Return the id of a real case and its fold, or say that it is not to be trained on."""
        if self.split is None:
            return case.origin, None
        tested = {name for e in self.split.testing for name in (e.case.id, e.case.patient)}
        entry = self._entry(case)
        origin = (entry.source or entry.case.id) if entry else case.origin
        if self.strict and tested & {case.id, origin, case.patient}:
            raise SynthError(
                f"{being} {case.patient}, who is in testing",
                hint="scans drawn for it would leak; leave --append-to out to draw them anyway",
            )
        fold = entry.fold if entry else None
        if self.strict and fold is not None and fold == self.held_out:
            raise SynthError(
                f"{being} {origin} in fold {fold}, which is held out",
                hint="scans drawn for it would leak; take label maps of the other folds",
            )
        return origin, fold

    def seen(self, record: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Return the folds with a patient behind a drawn case: whom a model saw, or a donor.

        A model that does not list its patients counts as trained on all but the held-out fold.
        """
        if self.split is None:
            return None
        donors = [Case(id=name, files={}) for name in record["source"].get("donors", ())]
        marks = [*(record.get("patients") or ()), *patient_marks(donors)]
        found = find_folds(self.split, marks)
        # An older record says nothing of the label map's model.
        if record.get("unmarked", True) or are_foreign(marks):
            if self.held_out is None:
                return None
            found |= set(self.split.folds) - {self.held_out}
        return tuple(sorted(found))

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
    provenance: Provenance,
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
    for entry, donors in _finished(out, provenance):
        if kept is not None and entry.case.id not in kept:
            dropped.add(entry.case.path("t1n").resolve())
            continue
        try:
            if kept is not None and scans_hash(entry.case) != kept[entry.case.id]:
                raise SynthError("drawn again since it was judged", hint="judge it again")
            source = provenance.of(Case(id=entry.source or "", files={}), donors)
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


def _finished(out: Path, provenance: Provenance) -> list[tuple[Entry, list[str]]]:
    """Return the cases whose files are there, each with its label map as source, and its donors."""
    entries = []
    for path in sorted((out / "records").glob("*.json")):
        record = read_json(path, SampleRecord)
        name = record["case"]
        files = {r: out / name / f"{name}-{r}.nii.gz" for r in (*MODALITIES, "seg")}
        if all(file.is_file() for file in files.values()):  # what was sorted out is not listed
            case = Case(id=name, files=files, scheme=record["scheme"])
            source, seen = record["source"], provenance.seen(record)
            of = source["label_map"]
            entry = Entry(case=case, fold=TRAIN_ONLY, source=of, seen_folds=seen)
            entries.append((entry, source.get("donors", [])))
    return entries


def _made(entries: list[Entry]) -> int:
    return sum(e.source is not None and e.fold == TRAIN_ONLY for e in entries)
