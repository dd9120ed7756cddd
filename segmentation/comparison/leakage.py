"""Which generated cases may train for a fold without a leak.

A case that was generated for a held-out patient's label map, or by a generator that was trained on
one, shows the network the answer. The split says of each generated case its source and the folds
its generator has seen. Cases of another fold's generator are not used; a generated case that claims
to fit the fold, and cannot, is a leak and ends the comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case
from synth.data.split import TRAIN_ONLY, Entry, Split, hold_out
from synth.data.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """The cases of one fold, by what they are for."""

    train: tuple[Case, ...]
    """Real cases to train on, with those of fold −1 that are real."""
    inner: tuple[Case, ...]
    """Real cases of the other folds that choose the checkpoint."""
    tested: tuple[Case, ...]
    made: tuple[Case, ...]
    """Generated cases that may train."""
    unused: int
    """Generated cases for other folds, after an inner patient, or without all four scans."""


def split_cases(split: Split, fold: int, *, inner_share: float) -> Cohorts:
    """Return what each case is for in one fold; refuse a leak."""
    split.require_fold(fold)
    real = split.real
    tested = [e.case for e in real if e.fold == fold]
    others = [e.case for e in real if e.fold not in (fold, TRAIN_ONLY)]
    both = {c.patient for c in tested} & {e.case.patient for e in real if e.fold != fold}
    if both:
        raise SynthError(
            f"{min(both)} is in fold {fold} and in another",
            hint="a patient's scans belong into one fold: split by patient",
        )
    train, inner = hold_out(others, inner_share, seed=fold)
    chosen = {c.patient for c in inner}
    generated = [e for e in split.training if e.source is not None]
    made = [
        e.case for e in generated
        if all(role in e.case.files for role in (*MODALITIES, "seg"))
        and _may_train(e, fold, tested) and not _names_behind(e) & chosen
    ]  # fmt: skip
    _require_no_copies(made, tested)
    extra = [e.case for e in real if e.fold == TRAIN_ONLY]
    return Cohorts(
        train=(*train, *extra), inner=tuple(inner), tested=tuple(tested), made=tuple(made),
        unused=len(generated) - len(made),
    )  # fmt: skip


def _may_train(entry: Entry, fold: int, tested: Sequence[Case]) -> bool:
    """Say whether a generated case is for this fold; a claim that cannot be true is an error."""
    name = entry.case.id
    if entry.seen_folds is None:
        raise SynthError(
            f"{name}: the split does not say which folds its generator was trained on",
            hint='append it with `synth sample --append-to`, or write "seen_folds": [1, 2] there',
        )
    if fold in entry.seen_folds:
        return False
    behind = _names_behind(entry) & {n for c in tested for n in (c.id, c.patient)}
    if behind:
        raise SynthError(
            f"{name} was made from {min(behind)}, who is tested in fold {fold}: a leak",
            hint="take label maps of the training folds only",
        )
    return True


def _names_behind(entry: Entry) -> set[str]:
    """Return the ids of the real case and patient behind a generated case."""
    source = Case(id=entry.source or "", files={})
    return {source.id, source.origin, source.patient, entry.case.patient, entry.case.origin}


def _require_no_copies(made: Sequence[Case], tested: Sequence[Case]) -> None:
    """Refuse a generated case whose scans equal, byte for byte, those of a tested one."""
    known = {_content_hash(c): c.id for c in tested} if made else {}
    for case in made:
        if (twin := known.get(_content_hash(case))) is not None:
            raise SynthError(
                f"{case.id} is a copy of {twin}, which is tested: a leak",
                hint="remove it from the split",
            )


def _content_hash(case: Case) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for m in MODALITIES:
        digest.update(Volume.load(case.path(m)).data.tobytes())
    return digest.hexdigest()
