"""Train/test splits and folds as decathlon-style JSON.

Reads the files of both predecessor projects: `{"training": [{"t1n": …, "mask_healthy": …}]}` of the
inpainting solution and `{"training": [{"fold": 0, "image": [4 paths], "label": path}]}` of the
segmentation one, where fold −1 means "train only". Ours is a superset that adds the case id,
its label scheme, and for a synthetic case the real one it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from synth.base.errors import SynthError, first_line
from synth.base.files import read_json, write_json
from synth.base.patient_marks import mark, marks_of
from synth.data.case import (
    MODALITIES,
    Case,
    guess_scheme,
    require_file_name,
    require_unique,
    split_name,
)

FORMAT = 1
TRAIN_ONLY = -1
DEFAULT_FOLDS = 5

# JSON key of the predecessors → role
KEYS = {
    "t1n": "t1n", "t1c": "t1c", "t2w": "t2w", "t2f": "t2f", "label": "seg", "seg": "seg",
    "t1n_voided": "voided", "mask": "mask",
    "mask_healthy": "healthy", "mask_unhealthy": "unhealthy",
}  # fmt: skip


class SplitRow(TypedDict, total=False):
    """An entry of the file; all paths are relative to the data folder."""

    case: str
    scheme: str
    fold: int | None
    source: str | None
    seen_folds: list[int] | None
    image: str | list[str]
    t1n: str | None
    t1c: str | None
    t2w: str | None
    t2f: str | None
    label: str | None
    seg: str | None
    t1n_voided: str | None
    mask: str | None
    mask_healthy: str | None
    mask_unhealthy: str | None


class SplitFile(TypedDict, total=False):
    """The whole file."""

    format: int
    training: list[SplitRow]
    testing: list[SplitRow]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A case in a split: its fold, and where it came from when it is synthetic."""

    case: Case
    fold: int | None = None
    source: str | None = None
    """Id of the real case a synthetic one was made from; None for real cases."""
    seen_folds: tuple[int, ...] | None = None
    """Folds with a patient behind this case: whom a model that made it was trained on, or whose
    lesion gave it a shape; None: not known."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The two lists of a decathlon-style file."""

    training: tuple[Entry, ...] = ()
    testing: tuple[Entry, ...] = ()

    @property
    def real(self) -> list[Entry]:
        """The real training cases."""
        return [e for e in self.training if e.source is None]

    @property
    def folds(self) -> list[int]:
        """The numbers of the folds that real cases are in."""
        return sorted({e.fold for e in self.real if e.fold is not None and e.fold >= 0})

    def require_fold(self, number: int) -> None:
        """Refuse a fold that no real case is in."""
        if number not in self.folds:
            raise SynthError(f"no fold {number} in this split", hint=f"it has {self.folds}")

    def fold(self, held_out: int) -> tuple[list[Case], list[Case]]:
        """Return (train, held-out) cases of a fold; synthetic offspring of held-out cases go."""
        self.require_fold(held_out)
        out = [e.case for e in self.training if e.fold == held_out]
        patients = {c.patient for c in out} | {c.id for c in out}
        train = [
            e.case
            for e in self.training
            if e.fold != held_out
            and e.source not in patients
            and e.case.patient not in patients
            and held_out not in (e.seen_folds or ())
        ]
        return train, out


def split_cases(
    cases: Sequence[Case], *, count: int = 0, sizes: Sequence[int] = (), seed: int = 0
) -> Split:
    """Put patients, never single scans, into folds of nearly equal or of given sizes."""
    patients = sorted({c.patient for c in cases})
    count = count or DEFAULT_FOLDS
    if sizes and (sum(sizes) != len(patients) or min(sizes) < 1):
        raise SynthError(
            f"folds of {' + '.join(map(str, sizes))} patients, but there are {len(patients)}",
            hint="the sizes of all folds together are the number of patients",
        )
    if not sizes and len(patients) < count:
        raise SynthError(
            f"{len(patients)} patients cannot fill {count} folds", hint="ask for fewer folds"
        )
    order = np.random.default_rng(seed).permutation(len(patients)).tolist()
    numbers = np.repeat(np.arange(len(sizes)), sizes) if sizes else np.arange(len(order)) % count
    fold_of = {patients[p]: fold for p, fold in zip(order, numbers.tolist(), strict=True)}
    return Split(training=tuple(Entry(case=c, fold=fold_of[c.patient]) for c in cases))


def hold_out(
    cases: Sequence[Case], share: float, *, seed: int = 0
) -> tuple[list[Case], list[Case]]:
    """Split into (train, validation) by patient; the share is rounded, at least one each side."""
    patients = sorted({c.patient for c in cases})
    if len(patients) < 2:
        return list(cases), list(cases)
    count = min(max(round(share * len(patients)), 1), len(patients) - 1)
    chosen = set(np.random.default_rng(seed).permutation(patients)[:count].tolist())
    return [c for c in cases if c.patient not in chosen], [c for c in cases if c.patient in chosen]


def read_split(path: Path, root: Path | None = None) -> Split:
    """Read a split; relative paths are under `root` (default: the JSON's folder)."""
    values = read_json(path, SplitFile)
    root = (root or path.parent).resolve()
    if not (values.keys() & {"training", "testing"}):
        raise SynthError(
            f"{path}: not a split", hint='expected {"training": [...]} and/or {"testing": [...]}'
        )
    if values.get("format", FORMAT) != FORMAT:
        raise SynthError(
            f"{path}: format {values['format']}, this version reads {FORMAT}",
            hint="update this package",
        )
    lists: dict[str, tuple[Entry, ...]] = {
        part: tuple(_entry(row, root, f"{path}: {part}[{i}]") for i, row in enumerate(rows))
        for part, rows in (
            ("training", values.get("training", [])),
            ("testing", values.get("testing", [])),
        )
    }
    _require_root(path, root, [*lists["training"], *lists["testing"]])
    _require_one_patient_an_id(path, [*lists["training"], *lists["testing"]])
    return Split(**lists)


def write_split(path: Path, split: Split, root: Path) -> Path:
    """Write a split with paths relative to `root`; ids must be unique."""
    require_unique(e.case for e in (*split.training, *split.testing))
    values: dict[str, Any] = {"format": FORMAT}
    for part in ("training", "testing"):
        values[part] = [_row(entry, root.resolve()) for entry in getattr(split, part)]
    write_json(path, values)
    return path


def data_hash(cases: Iterable[Case]) -> str:
    """Return a fingerprint of a cohort: its ids, roles and file sizes (contents are not read)."""
    digest = hashlib.blake2b(digest_size=8)
    for case in cases:
        for path in case.files.values():
            if not path.exists():
                raise SynthError(
                    f"{case.id}: {path} is not there",
                    hint="the paths of a split are relative to --data",
                )
        sizes = [f"{role}:{p.stat().st_size}" for role, p in case.files.items()]
        digest.update(f"{case.id} {' '.join(sizes)}\n".encode())
    return digest.hexdigest()


def patient_marks(cases: Iterable[Case]) -> list[str]:
    """Return the mark of each patient, which weights hold in place of a name."""
    return sorted({mark(c.patient) for c in cases})


def find_folds(split: Split, marks: Iterable[str]) -> set[int]:
    """Return the folds that hold a patient of these marks."""
    known = set(marks)
    return {
        e.fold
        for e in split.training
        if e.fold is not None and e.fold >= 0 and known & marks_of(e.case.patient)
    }


def assign_folds(split: Split, *, count: int, sizes: Sequence[int], seed: int) -> Split:
    """Return the real cases of a split in its own folds, or in new ones where it has none."""
    if split.folds:
        if sizes or count not in (0, len(split.folds)):
            raise SynthError(
                f"the split has folds {split.folds} already",
                hint="leave out the number and sizes of folds",
            )
        return replace(split, training=tuple(split.real))
    cases = [e.case for e in split.real]
    return replace(split_cases(cases, count=count, sizes=sizes, seed=seed), testing=split.testing)


def set_folds_aside(split: Split, numbers: Sequence[int]) -> Split:
    """Return the real cases of a split; those of some folds are no longer training but testing."""
    for number in numbers:
        split.require_fold(number)
    out = tuple(e for e in split.real if e.fold in numbers)
    rest = tuple(e for e in split.real if e.fold not in numbers)
    both = {e.case.patient for e in out} & {e.case.patient for e in rest}
    if both:
        raise SynthError(
            f"{min(both)} is in fold {numbers[0]} and in another",
            hint="all scans of a patient belong in one fold: split by patient",
        )
    return Split(training=rest, testing=(*split.testing, *out))


def keep_folds(split: Split, numbers: Sequence[int]) -> Split:
    """Return only the real cases of some folds."""
    for number in numbers:
        split.require_fold(number)
    return Split(training=tuple(e for e in split.real if e.fold in numbers))


def join(splits: Sequence[Split]) -> Split:
    """Return the real cases, which must be the same in all, with the made cases of every split.

    Made cases of different splits may have one id: each gets the place of its split as a suffix,
    which neither its patient nor its origin depends on.
    """
    if not all(has_same_real(splits[0], other) for other in splits[1:]):
        raise SynthError(
            "the splits to join differ in their real cases", hint="make the split once and share it"
        )
    made = [
        replace(e, case=replace(e.case, id=f"{e.case.id}-synth{number}"))
        for number, split in enumerate(splits)
        for e in split.training
        if e.source is not None
    ]
    return replace(splits[0], training=(*splits[0].real, *made))


def has_same_real(one: Split, other: Split) -> bool:
    """Say whether two splits have the same real cases in the same folds."""
    (real, testing), (other_real, other_testing) = (
        ({e.case.id: e.fold for e in s.real}, {e.case.id for e in s.testing}) for s in (one, other)
    )
    return real == other_real and testing == other_testing


def _entry(row: SplitRow, root: Path, where: str) -> Entry:
    pairs = [(role, row.get(key)) for key, role in KEYS.items()]
    files = {role: _inside(str(p), root, where) for role, p in pairs if p is not None}
    images = row.get("image", [])
    for position, item in enumerate([images] if isinstance(images, str) else images):
        path = _inside(item, root, where)
        name = split_name(path)
        # Names tell the modality; the list order of the predecessors differs between their files.
        files[name[1] if name else MODALITIES[position % 4]] = path
    if not files:
        raise SynthError(f"{where} names no file", hint=f"known keys: {', '.join(KEYS)}, image")
    named = [name[0] for p in files.values() if (name := split_name(p))]
    case_id = row.get("case") or (named[0] if named else next(iter(files.values())).parent.name)
    require_file_name(case_id, where)
    fold, seen = row.get("fold"), row.get("seen_folds")
    if any(number < TRAIN_ONLY for number in (fold or 0, *(seen or ()))):
        raise SynthError(f"{where}: fold {fold!r}", hint="a whole number ≥ 0, or −1 for train only")
    return Entry(
        case=Case(id=case_id, files=files).with_scheme(row.get("scheme") or guess_scheme(case_id)),
        fold=fold,
        source=row.get("source"),
        seen_folds=None if seen is None else tuple(seen),
    )


def _require_root(split: Path, root: Path, entries: Sequence[Entry]) -> None:
    """Name the folder that the paths are relative to, where `root` is not it and one above is."""
    if not entries:
        return
    path = next(iter(entries[0].case.files.values()))
    above = (*split.resolve().parents, *root.parents)
    if not path.exists() and (found := [a for a in above if (a / path.relative_to(root)).exists()]):
        raise SynthError(
            f"{split}: its paths are not relative to {root}", hint=f"give {found[0]} as the data"
        )


def _require_one_patient_an_id(path: Path, entries: Sequence[Entry]) -> None:
    """Refuse an id with two scans: they would be taken for one patient.

    The augmented file of the inpainting solution lists a scan once for each invented mask.
    """
    scans: dict[str, set[Path]] = {}
    for entry in entries:
        files = entry.case.files
        own = {files[role] for role in (*MODALITIES, "voided") if role in files}
        own = own or {*files.values()}
        if own.isdisjoint(scans.setdefault(entry.case.id, own)):
            raise SynthError(
                f"{path}: case id {entry.case.id} stands for different scans",
                hint='give each entry an id of its own: "case": "…"',
            )


def _inside(text: str, root: Path, where: str) -> Path:
    """Resolve a path of a split; one that leaves the data folder is refused."""
    try:
        path = (root / text).resolve()
        path.exists()  # a name that is too long is found out here
    except (OSError, ValueError, RuntimeError) as error:
        raise SynthError(
            f"{where}: {text!r}: {first_line(error)}", hint="correct the path"
        ) from error
    if not path.is_relative_to(root):
        raise SynthError(
            f"{where}: {text} leaves the data folder {root}",
            hint="give the folder that holds the data as DATA_DIR",
        )
    return path


def _row(entry: Entry, root: Path) -> dict[str, Any]:
    def name(path: Path) -> str:
        return str(_inside(str(path.resolve()), root, entry.case.id).relative_to(root))

    case = entry.case
    row: dict[str, Any] = {"case": case.id, "scheme": case.scheme}
    keys = {role: key for key, role in reversed(KEYS.items())}  # seg is written as "label" only
    row |= {keys[role]: name(path) for role, path in case.files.items()}
    if all(m in case.files for m in MODALITIES):
        row["image"] = [name(case.files[m]) for m in MODALITIES]
    if entry.fold is not None:
        row["fold"] = entry.fold
    if entry.source is not None:
        row["source"] = entry.source
    if entry.seen_folds is not None:
        row["seen_folds"] = list(entry.seen_folds)
    return row
