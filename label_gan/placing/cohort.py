"""Writes a cohort of new cases: folders, records, and a split to train on.

The record is written last, so that its presence means done; a run killed at any instant goes on
where it was, and its files do not depend on chunks, workers or kills.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from label_gan.placing.lesion_pool import LesionPool
from label_gan.placing.location_prior import heat_map
from label_gan.placing.place_lesions import MaskOptions, make_case, measure
from synth.base.errors import SynthError
from synth.base.files import atomic_folder, file_hash, read_json
from synth.base.manifest import manifest, short_path
from synth.data.case import Case, split_name
from synth.data.split import TRAIN_ONLY, Entry, Split, patient_marks, write_split
from synth.jobs.cases import Output, run_cases, write_record


class CohortWriter:
    """Makes and writes the new cases of any case of a cohort.

    A case takes shapes and places from its own fold only, so that nothing of a held-out case is
    trained on. A cohort without a shape to give is refused.

    Args:
        entries: the real cases, with their folds if any.
        out: folder to write into.
        options: what is made of each case.
        per_case: how many new cases of each.
        shapes: model, generated, volume_ml, truncation and device of `LesionPool`.
        prior: whether places follow the cohort's tumours.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        out: Path,
        options: MaskOptions,
        *,
        per_case: int,
        shapes: Mapping[str, Any],
        prior: bool,
    ) -> None:
        self.out, self.options, self.per_case = out, options, per_case
        self.folds = {e.case.id: e.fold for e in entries}
        self.pools: dict[int | None, LesionPool] = {}
        for fold in set(self.folds.values()):
            donors = [e.case for e in entries if e.fold == fold]
            pool = LesionPool(donors=donors, holes=options.kind == "healthy", **shapes)
            pool.require_shape()
            self.pools[fold] = pool
        self.heat = {f: heat_map(pool.donors) for f, pool in self.pools.items()} if prior else {}
        model = shapes["model"]
        self.arguments = {
            **vars(options),
            **shapes,
            "prior": prior,
            "model": short_path(model) if model else "None",
        }
        self.trained_on: Sequence[str] | None = None
        """Marks of the shape model's training patients; None: unknown."""
        if model is not None:
            from synth.checkpoints.checkpoint import locate, read_metadata

            self.arguments["weights"] = file_hash(locate(model))
            self.trained_on = read_metadata(model).get("patients")

    def write(self, cases: Sequence[Case], *, workers: int = 1, force: bool = False) -> int:
        """Make the new cases of all cases, over several processes; return how many failed."""
        return run_cases(cases, self._write_of, self._outputs, workers=workers, force=force)

    def _outputs(self, case: Case) -> list[Output]:
        names = [f"{case.id}-{self.options.kind}{i:02d}" for i in range(self.per_case)]
        records = [self.out / "records" / f"{name}.json" for name in names]
        return [Output(path=path, record=path, settings=self.arguments) for path in records]

    def _write_of(self, case: Case) -> str:
        """Make the new cases of one case; those that are there already are kept."""
        fold = self.folds[case.id]
        brain = measure(case, self.options.kind, self.heat.get(fold))
        inputs = [path for role, path in case.files.items() if role in ("t1n", "seg", "unhealthy")]
        facts = manifest("masks", self.arguments, inputs)
        records: list[dict[str, Any]] = []
        for index, output in enumerate(self._outputs(case)):
            if output.is_done():
                records.append(read_json(output.path, dict))
                continue
            made = make_case(brain, index, self.pools[fold], self.options)
            files: list[Path] = []
            if made.volumes:
                with atomic_folder(self.out / made.id) as folder:
                    for suffix, volume in made.volumes.items():
                        volume.save(folder / f"{made.id}-{suffix}.nii.gz")
                    if self.options.kind == "healthy":
                        t1n = case.path("t1n")
                        ending = ".nii.gz" if t1n.name.endswith(".nii.gz") else ".nii"
                        shutil.copyfile(t1n, folder / f"{made.id}-t1n{ending}")
                files = sorted((self.out / made.id).iterdir())
            sources = self._sources(made.record["components"], fold)
            records.append({"case": made.id, "fold": fold, **made.record, **sources, **facts})
            write_record(output.path, records[-1], files)
        gave_up = [record["gave_up"] for record in records if record["gave_up"]]
        if len(gave_up) == len(records):
            raise SynthError(
                gave_up[0], hint="nothing fits this brain; smaller shapes may: --volume-ml"
            )
        return f"{len(records) - len(gave_up)} of {len(records)} made"

    def _sources(self, parts: Sequence[Mapping[str, Any]], fold: int | None) -> dict[str, Any]:
        """Return who is behind a new case besides its brain's patient.

        `donors` gave a shape, `patients` are the marks of those a model or the prior was made from,
        and `unmarked` names a model that does not say.
        """
        marks = set(patient_marks(self.pools[fold].donors)) if fold in self.heat else set()
        drawn = any("donor" not in part for part in parts)
        return {
            "donors": sorted({part["donor"] for part in parts if "donor" in part}),
            "patients": sorted(marks | set((drawn and self.trained_on) or ())),
            "unmarked": ["label_gan"] if drawn and self.trained_on is None else [],
        }


def write_new_split(split: Split, out: Path, root: Path) -> Path:
    """Write the split with everything made of its training cases in `out`, as train-only cases."""
    made = []
    for entry in split.training:
        for folder in sorted(out.glob(f"{entry.case.id}-healthy[0-9]*")):
            roles = {name[1]: path for path in folder.iterdir() if (name := split_name(path))}
            files = {role: roles[role] for role in sorted(roles)}
            case = Case(id=folder.name, files=files, scheme=entry.case.scheme)
            made.append(Entry(case=case, fold=TRAIN_ONLY, source=entry.case.id))
    whole = Split(training=(*split.training, *made), testing=split.testing)
    return write_split(out / "split.json", whole, root)
