"""Which generated cases may train for a fold without a leak.

A case made for a held-out patient's label map, or by a generator that was trained on one, shows the
network what it will be asked. The split says of each made case its source and the folds its
generator has seen. What another fold's generator made is simply not used; a made case that claims
to suit the fold and cannot is a leak, which ends the study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case
from synth.data.split import TRAIN_ONLY, Entry, Split, hold_out


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """Who does what in one fold."""

    train: tuple[Case, ...]
    """Real cases to train on, with those of fold −1 that are real."""
    inner: tuple[Case, ...]
    """Real cases of the other folds that choose the checkpoint."""
    tested: tuple[Case, ...]
    made: tuple[Case, ...]
    """Generated cases that may train."""
    unused: int
    """Made cases for other folds, after an inner patient, or without all four scans."""


def cohorts(split: Split, fold: int, *, inner_share: float) -> Cohorts:
    """Deal the cases of one fold, or say what leaks."""
    split.require_fold(fold)
    real = split.real
    tested = [e.case for e in real if e.fold == fold]
    others = [e.case for e in real if e.fold not in (fold, TRAIN_ONLY)]
    both = {c.patient for c in tested} & {e.case.patient for e in real if e.fold != fold}
    if both:
        raise SynthError(
            f"{min(both)} is in fold {fold} and in another",
            hint="a patient's scans belong into one fold: deal by patient",
        )
    train, inner = hold_out(others, inner_share, seed=fold)
    chosen = {c.patient for c in inner}
    made, unused = [], 0
    for entry in (e for e in split.training if e.source is not None):
        whole = all(role in entry.case.files for role in (*MODALITIES, "seg"))
        if whole and _suits(entry, fold, tested) and not _of(entry) & chosen:
            made.append(entry.case)
        else:
            unused += 1
    _require_new(made, tested)
    extra = [e.case for e in real if e.fold == TRAIN_ONLY]
    return Cohorts(
        train=(*train, *extra), inner=tuple(inner), tested=tuple(tested), made=tuple(made),
        unused=unused,
    )  # fmt: skip


def _suits(entry: Entry, fold: int, tested: Sequence[Case]) -> bool:
    """Whether a made case is for this fold; a claim that cannot be true is an error."""
    name = entry.case.id
    if entry.seen_folds is None:
        raise SynthError(
            f"{name}: the split does not say which folds its generator was trained on",
            hint='append it with `synth sample --append-to`, or write "seen_folds": [1, 2] there',
        )
    if fold in entry.seen_folds:
        return False
    behind = _of(entry) & {n for c in tested for n in (c.id, c.patient)}
    if behind:
        raise SynthError(
            f"{name} was made after {min(behind)}, who is tested in fold {fold}: a leak",
            hint="take label maps of the training folds only",
        )
    return True


def _of(entry: Entry) -> set[str]:
    """Return the ids of the real case and patient behind a made one."""
    source = Case(id=entry.source or "", files={})
    return {source.id, source.origin, source.patient, entry.case.patient, entry.case.origin}


def _require_new(made: Sequence[Case], tested: Sequence[Case]) -> None:
    """Refuse a made case whose scan is, to the byte of its voxels, one that is tested."""
    known = {_content(c): c.id for c in tested} if made else {}
    for case in made:
        if (twin := known.get(_content(case))) is not None:
            raise SynthError(
                f"{case.id} is a copy of {twin}, which is tested: a leak",
                hint="remove it from the split",
            )


def _content(case: Case) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for m in MODALITIES:
        digest.update(_voxels(case.path(m)))
    return digest.hexdigest()


def _voxels(path: Path) -> bytes:
    from synth.data.volume import Volume

    return Volume.load(path).data.tobytes()
