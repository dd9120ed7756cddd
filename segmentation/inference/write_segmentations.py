"""Segments many cases and writes labels, pictures and records.

OUT/<id>-seg.nii.gz, OUT/pictures/<id>.png, OUT/records/<id>.json and, if asked for,
OUT/probabilities/<id>-{wt,tc,et}.nii.gz. The labels are written last: where they are, the case is
done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segmentation.inference.ensemble import weight_table
from segmentation.inference.segment import SegmentOptions, load_scans, segment
from synth.base.config import to_dict
from synth.base.files import file_hash
from synth.base.manifest import manifest, short_path
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import MODALITIES, Case, require_unique, split_name
from synth.data.labels import REGIONS, from_regions
from synth.data.prepare import brain_mask
from synth.jobs.cases import Output, run_cases, write_record
from synth.pictures.montage import draw_tumour


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseWriter:
    """Segments any case and writes what was found."""

    out: Path
    models: Sequence[Checkpoint]
    options: SegmentOptions
    probabilities: bool = False
    """Whether these are written, too."""
    force: bool = False
    """Make finished cases again."""

    @cached_property
    def _hashes(self) -> list[str]:
        return [file_hash(model.path) for model in self.models]

    def settings(self, case: Case) -> dict[str, Any]:
        """Return what the answer depends on besides the scans."""
        weights = weight_table(self.options.weights, len(self.models)).tolist()
        return {
            "models": self._hashes, **to_dict(self.options), "weights": weights,
            "probabilities": self.probabilities, "scheme": case.scheme,
        }  # fmt: skip

    def target(self, case: Case) -> Path:
        """Return where the labels of a case go."""
        return self.out / f"{case.id}-seg.nii.gz"

    def outputs(self, case: Case) -> list[Output]:
        """Return where the labels of a case go, and their record."""
        path, record = self.target(case), self.out / "records" / f"{case.id}.json"
        return [Output(path=path, record=record, settings=self.settings(case),
                       inputs=lambda: _sources(case))]  # fmt: skip

    def write(self, case: Case) -> str:
        """Segment a case and write its files; return what to say of it."""
        require_unique([case])
        scans = load_scans(case)
        found = segment(scans, models=self.models, options=self.options, scheme=case.scheme)
        described = manifest(
            "segment", self.settings(case), _sources(case), ml=found.ml, seconds=found.seconds,
            model_paths=[short_path(model.path) for model in self.models],
        )  # fmt: skip
        record, files = self.out / "records" / f"{case.id}.json", []
        write_record(record, described)
        if self.probabilities:
            for name, channel in zip(REGIONS, found.probabilities.data, strict=True):
                path = self.out / "probabilities" / f"{case.id}-{name.lower()}.nii.gz"
                files.append(found.probabilities.with_data(channel).save(path))
        whole = scans[MODALITIES[0]].with_data(np.concatenate([s.data for s in scans.values()]))
        draw_tumour(
            scans, from_regions(found.regions), brain_mask(whole),
            self.out / "pictures" / f"{case.id}.png", title=case.id, outline=True,
        )  # fmt: skip
        write_record(record, described, [*files, found.labels.save(self.target(case))])
        sizes = ", ".join(f"{region} {ml:g} ml" for region, ml in found.ml.items())
        return f"{sizes}, {found.seconds} s"


def write_segmentations(writer: CaseWriter, cases: Sequence[Case]) -> int:
    """Segment every case that is not done; return how many failed."""
    return run_cases(cases, writer.write, writer.outputs, force=writer.force)


def drop_labels(cases: Sequence[Case], out: Path) -> list[Case]:
    """Return the cases without their segmentations, which we may have written ourselves.

    A case without a scan that lies in `out` is an earlier answer, and left out.
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


def _sources(case: Case) -> list[Path]:
    return [case.path(m) for m in MODALITIES]
