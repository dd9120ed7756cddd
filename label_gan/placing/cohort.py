"""Writes a cohort of new cases: folders, records, and a split to train on.

The record is written last, so that its presence means done; a run killed at any instant goes on
where it was, and its files do not depend on chunks, workers or kills.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from label_gan.placing.lesion_pool import ShapeSource
from label_gan.placing.location_prior import heat_map
from label_gan.placing.place_lesions import Made, Plan, make, scene_of
from synth.base.errors import SynthError
from synth.base.files import atomic_folder, file_hash, read_json, write_json
from synth.base.manifest import manifest
from synth.data.case import Case, split_name
from synth.data.split import TRAIN_ONLY, Entry, Split, patient_marks, write_split
from synth.jobs.cases import Output, run_cases


@dataclass(frozen=True, kw_only=True, eq=False)
class Creator:
    """Makes and writes the new cases of any case of a cohort."""

    out: Path
    plan: Plan
    per_case: int
    folds: Mapping[str, int | None]
    """Fold of each case; a case takes shapes and places from its own fold only, so that nothing of
    a held-out case is trained on."""
    shapes: Mapping[int | None, ShapeSource]
    heat: Mapping[int | None, np.ndarray]
    """Location priors; empty for none."""
    arguments: Mapping[str, Any]
    """What the files depend on, for the records."""
    trained_on: Sequence[str] | None = None
    """Marks of the patients whom the shape model has seen; None: it does not say."""

    def records(self, case: Case) -> list[Path]:
        """Where the records of a case's offspring are."""
        names = [f"{case.id}-{self.plan.kind}{i:02d}" for i in range(self.per_case)]
        return [self.out / "records" / f"{name}.json" for name in names]

    def work(self, case: Case) -> str:
        """Make the new cases of one case; those that are there already are kept."""
        fold = self.folds[case.id]
        scene = scene_of(case, self.plan.kind, self.heat.get(fold))
        inputs = [path for role, path in case.files.items() if role in ("t1n", "seg", "unhealthy")]
        facts = manifest("masks", self.arguments, inputs)
        kept: list[dict[str, Any]] = []
        for index, path in enumerate(self.records(case)):
            if path.exists():
                kept.append(read_json(path))
                continue
            made = make(scene, index, self.shapes[fold], self.plan)
            if made.volumes:
                write(made, self.out / made.id)
            behind = self.behind(made.record["components"], fold)
            kept.append({"case": made.id, "fold": fold, **made.record, **behind, **facts})
            write_json(path, kept[-1])
        gave_up = [record["gave_up"] for record in kept if record["gave_up"]]
        if len(gave_up) == len(kept):
            raise SynthError(
                gave_up[0], hint="nothing fits this brain; smaller shapes may: --volume-ml"
            )
        return f"{len(kept) - len(gave_up)} of {len(kept)} made"

    def behind(self, parts: Sequence[Mapping[str, Any]], fold: int | None) -> dict[str, Any]:
        """Return who is behind a new case besides its brain's patient.

        `donors` gave a shape, `patients` are the marks of those a model or the prior was made from,
        and `unmarked` names a model that does not say.
        """
        marks = set(patient_marks(self.shapes[fold].donors)) if fold in self.heat else set()
        drawn = any("donor" not in part for part in parts)
        return {
            "donors": sorted({part["donor"] for part in parts if "donor" in part}),
            "patients": sorted(marks | set((drawn and self.trained_on) or ())),
            "unmarked": ["label_gan"] if drawn and self.trained_on is None else [],
        }


def creator_of(
    entries: Sequence[Entry],
    out: Path,
    plan: Plan,
    *,
    per_case: int,
    shapes: Mapping[str, Any],
    prior: bool,
) -> Creator:
    """Return the creator for a cohort; one without a shape to give is refused.

    Args:
        entries: the real cases, with their folds if any.
        out: folder to write into.
        plan: what is made of each case.
        per_case: how many new cases of each.
        shapes: model, generated, volume_ml, truncation and device of `ShapeSource`.
        prior: whether places follow the cohort's tumours.
    """
    folds = {e.case.id: e.fold for e in entries}
    groups = {fold: [e.case for e in entries if e.fold == fold] for fold in set(folds.values())}
    holes = plan.kind == "healthy"
    sources = {fold: ShapeSource(donors=own, holes=holes, **shapes) for fold, own in groups.items()}
    for source in sources.values():
        source.require_donor()
    heat = {fold: heat_map(own) for fold, own in groups.items()} if prior else {}
    arguments = {**vars(plan), **shapes, "prior": prior, "model": str(shapes["model"])}
    trained_on = None
    if shapes["model"] is not None:
        from synth.checkpoints.checkpoint import locate, read_metadata

        arguments["weights"] = file_hash(locate(shapes["model"]))
        trained_on = read_metadata(shapes["model"]).get("patients")
    return Creator(
        out=out, plan=plan, per_case=per_case, folds=folds, shapes=sources, heat=heat,
        arguments=arguments, trained_on=trained_on,
    )  # fmt: skip


def write(made: Made, folder: Path) -> None:
    """Write a made case; its folder appears complete, in place of what may be there."""
    with atomic_folder(folder) as temporary:
        for suffix, volume in made.volumes.items():
            volume.save(temporary / f"{made.id}-{suffix}.nii.gz")
        for suffix, path in made.copies.items():
            ending = ".nii.gz" if path.name.endswith(".nii.gz") else ".nii"
            shutil.copyfile(path, temporary / f"{made.id}-{suffix}{ending}")


def create(
    creator: Creator, cases: Sequence[Case], *, workers: int = 1, force: bool = False
) -> int:
    """Make the new cases of all cases, over several processes; return how many failed."""

    def outputs(case: Case) -> list[Output]:
        records = creator.records(case)
        return [Output(path=path, record=path, settings=creator.arguments) for path in records]

    return run_cases(cases, creator.work, outputs, workers=workers, force=force)


def augmented_split(split: Split, out: Path, root: Path) -> Path:
    """Write the split with everything made of its training cases in `out`, as train-only cases."""
    made = []
    for entry in split.training:
        for folder in sorted(out.glob(f"{entry.case.id}-healthy[0-9]*")):
            found = {name[1]: path for path in folder.iterdir() if (name := split_name(path))}
            files = {role: found[role] for role in sorted(found)}
            case = Case(id=folder.name, files=files, scheme=entry.case.scheme)
            made.append(Entry(case=case, fold=TRAIN_ONLY, source=entry.case.id))
    whole = Split(training=(*split.training, *made), testing=split.testing)
    return write_split(out / "split.json", whole, root)
