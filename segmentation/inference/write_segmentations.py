"""Segments many cases and writes labels, pictures and records.

OUT/<id>-seg.nii.gz, OUT/pictures/<id>.png, OUT/records/<id>.json and, if asked for,
OUT/probabilities/<id>-{wt,tc,et}.nii.gz. The labels come last: their presence means done, and a run
killed at any instant goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segmentation.inference.ensemble import weights_of
from segmentation.inference.segment import Plan, Segmented, scans_of, segment
from synth.base.config import to_dict
from synth.base.errors import SynthError
from synth.base.files import file_hash, read_json, write_json
from synth.base.manifest import manifest
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import MODALITIES, Case, require_unique, split_name
from synth.data.labels import REGIONS, from_regions
from synth.data.prepare import brain_mask
from synth.data.volume import Volume
from synth.jobs.cases import run_batch
from synth.pictures.montage import (
    LABEL_COLOURS,
    PLANES,
    Overlay,
    display_planes,
    montage,
    square_around,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Writer:
    """Segments any case and writes what was found."""

    out: Path
    models: Sequence[Checkpoint]
    plan: Plan
    probabilities: bool = False
    """Whether these are written, too."""
    force: bool = False
    """Make finished cases again."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the answer depends on besides the scans, as JSON values."""
        hashes = [file_hash(model.path) for model in self.models]
        weights = weights_of(self.plan.weights, len(self.models)).tolist()
        plan = {**to_dict(self.plan), "weights": weights}
        return {"models": hashes, **plan, "probabilities": self.probabilities}

    def target(self, case: Case) -> Path:
        """Return where the labels of a case go."""
        return self.out / f"{case.id}-seg.nii.gz"

    def record(self, case: Case) -> Path:
        """Return where the record of a case goes."""
        return self.out / "records" / f"{case.id}.json"

    def is_done(self, case: Case) -> bool:
        """Whether a case is segmented; refuse what was made otherwise or by others."""
        target, record = self.target(case), self.record(case)
        if not target.exists():
            return False
        if not record.exists():
            raise SynthError(
                f"{target} is there, and `synth segment` did not write it",
                hint="choose another --out",
            )
        if self.force:
            return False
        then = read_json(record)
        own = {**self.settings, "scheme": case.scheme}
        for name, value in own.items():
            if (made := then["arguments"].get(name)) != value:
                shown = "other models" if name == "models" else f"{name} = {made}, not {value}"
                raise SynthError(
                    f"{target} was made with {shown}",
                    hint="--force makes it again; or choose another --out",
                )
        if then["inputs"] != {path.name: file_hash(path) for path in _sources(case)}:
            raise SynthError(
                f"{target} was made from other files: {', '.join(then['inputs'])}",
                hint="--force makes it again; or choose another --out",
            )
        return True

    def work(self, case: Case) -> str:
        """Segment a case and write its files; return what to say of it."""
        require_unique([case])
        scans = scans_of(case)
        found = segment(scans, models=self.models, plan=self.plan, scheme=case.scheme)
        _remove(self.target(case))  # it would vouch for another record
        if self.probabilities:
            for name, channel in zip(REGIONS, found.probabilities.data, strict=True):
                path = self.out / "probabilities" / f"{case.id}-{name.lower()}.nii.gz"
                found.probabilities.with_data(channel).save(path)
        picture(self.out / "pictures" / f"{case.id}.png", scans, found, title=case.id)
        arguments = {**self.settings, "scheme": case.scheme}
        names = {"model_paths": [str(model.path) for model in self.models]}
        record = manifest("segment", arguments, _sources(case), **names, **found.facts)
        write_json(self.record(case), record)
        found.labels.save(self.target(case))
        sizes = ", ".join(f"{region} {ml:g} ml" for region, ml in found.facts["ml"].items())
        return f"{sizes}, {found.facts['seconds']} s"


def segment_all(writer: Writer, cases: Sequence[Case]) -> int:
    """Segment every case that is not done; return how many failed."""
    return run_batch(cases, writer.work, name=lambda case: case.id, done=writer.is_done)


def only_scans(cases: Sequence[Case], out: Path) -> list[Case]:
    """Return the cases without their segmentations, which may be what we wrote ourselves.

    What has no scan and lies in `out` is no case: an earlier answer.
    """
    kept = []
    for case in cases:
        files = {m: case.files[m] for m in MODALITIES if m in case.files}
        ours = all(p.resolve().is_relative_to(out.resolve()) for p in case.files.values())
        named = [(path, split_name(Path(path))) for path in case.duplicates]
        twice = tuple(path for path, name in named if name and name[1] in MODALITIES)
        if files or not ours:
            kept.append(dataclasses.replace(case, files=files, duplicates=twice))
    return kept


def picture(path: Path, scans: Mapping[str, Volume], found: Segmented, *, title: str) -> Path:
    """Show three planes of four scans through the middle of the tumour, with its outlines."""
    grid = scans[MODALITIES[0]]
    head = brain_mask(grid.with_data(np.concatenate([scans[m].data for m in MODALITIES])))
    tumour = found.regions[0]
    places = np.argwhere(tumour if tumour.any() else head)
    centre = [int(c) for c in np.rint(places.mean(axis=0))]
    drawn = display_planes(grid.with_data(from_regions(found.regions)), centre)
    frames = [square_around(plane) for plane in display_planes(grid.with_data(head), centre)]
    shown = [display_planes(scans[m], centre) for m in MODALITIES]
    rows: list[list[np.ndarray]] = []
    overlays: dict[tuple[int, int], Overlay] = {}
    for number, (labels, frame, *panels) in enumerate(zip(drawn, frames, *shown, strict=True)):
        rows.append([panel[frame] for panel in panels])
        overlays |= {(number, c): (labels[frame], LABEL_COLOURS, True) for c in range(len(panels))}
    return montage(
        rows, path, row_labels=PLANES, column_labels=MODALITIES, overlays=overlays, title=title
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SynthError(
            f"{path}: cannot write: {error.strerror}", hint="check your permission on that folder"
        ) from error


def _sources(case: Case) -> list[Path]:
    return [case.path(m) for m in MODALITIES]
