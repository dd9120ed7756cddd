"""Writes generated cases: four scans, labels, a picture, a record.

OUT/<id>-synth00/<id>-synth00-{t1n,t1c,t2w,t2f,seg}.nii.gz, OUT/pictures/<id>-synth00.png and, last,
OUT/records/<id>-synth00.json: its presence means done, and a run killed at any instant goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lora.conditioning import BRAIN, NAMES
from ddpm_lora.generate import Drawn, SamplerOptions, draw
from ddpm_lora.label_maps import LabelMap, files_into, host_of, read, read_into, with_scans
from ddpm_lora.lora.adapters import fingerprint
from ddpm_lora.paint import paint
from ddpm_lora.provenance import Contributors, Provenance, find_contributors
from synth.base.manifest import manifest
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import Case, guess_scheme
from synth.data.labels import to_scheme
from synth.jobs.cases import Output, run_cases, write_record
from synth.pictures.montage import draw_tumour

OF_ADAPTERS = ("name", "weight", "data_hash", "seed", "step")


@dataclass(frozen=True, kw_only=True, eq=False)
class Maker:
    """Draws and writes the samples of any label map."""

    out: Path
    loaded: Checkpoint
    options: SamplerOptions
    samples: int
    provenance: Provenance
    scheme: str = "auto"
    brain: Path | None = None
    hosts: Sequence[Case] = ()
    """Scans to paint into; without any, whole brains are drawn."""
    mass_effect: bool = False

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What the scans depend on besides the label map and its host, as JSON values."""
        config, options = self.loaded.config, self.options
        wish = {**vars(options), "steps": options.calls(config)}
        wish["temperature"] = options.first_noise(config)
        if self.hosts:
            wish |= {"tissue": "host", "mass_effect": self.mass_effect}
        elif not config.anatomy:
            del wish["tissue"]
        return wish | {"scheme": self.scheme, "model": fingerprint(self.loaded.model)}

    def ids(self, case: Case) -> list[str]:
        """Return the ids of a label map's samples."""
        return [f"{case.id}-synth{k:02d}" for k in range(self.samples)]

    def record(self, made_id: str) -> Path:
        """Return where the record of a drawn case is."""
        return self.out / "records" / f"{made_id}.json"

    def outputs(self, case: Case) -> list[Output]:
        """Return the records of a label map's samples, which are written last."""
        records = map(self.record, self.ids(case))
        return [
            Output(
                path=path, record=path, settings=self.arguments, inputs=lambda: self._painted(case)
            )
            for path in records
        ]  # fmt: skip

    def _painted(self, case: Case) -> list[Path]:
        """Return what a painted case is made from: with other scans it is another case."""
        return files_into(case, host_of(case, self.hosts)) if self.hosts else []

    def work(self, case: Case) -> str:
        """Draw what is missing of a label map."""
        before = find_contributors(case)
        host = host_of(case, self.hosts) if self.hosts else None
        source = self.provenance.of(case, [*before.donors, *([host.id] if host else [])])
        labels = self._read(case, host)
        missing = [k for k, output in enumerate(self.outputs(case)) if not output.is_done()]
        calls = seconds = 0.0
        for index in missing:
            drawn = self._draw(labels, index, host)
            made_id = self.ids(case)[index]
            facts = {"case": made_id, "source": source, "index": index, **self._model(before)}
            if host:
                facts["into"] = host.id
            scheme, files = write(self.out, made_id, labels, drawn)
            facts |= {"scheme": scheme, "voxels": _counts(labels.classes), **drawn.facts}
            record = manifest("sample", self.arguments, labels.files, **facts)
            write_record(self.record(made_id), record, files)  # last: its presence means done
            calls, seconds = calls + drawn.facts["network_calls"], seconds + drawn.facts["seconds"]
        return f"{len(missing)} drawn, {calls:g} calls, {seconds:.1f} s"

    def _read(self, case: Case, host: Case | None) -> LabelMap:
        if host:
            return read_into(case, host, scheme=self.scheme)
        labels = read(case, scheme=self.scheme, brain=self.brain)
        return with_scans(labels, case) if self.options.tissue == "scans" else labels

    def _draw(self, labels: LabelMap, index: int, host: Case | None) -> Drawn:
        if host is None:
            return draw(labels, self.loaded, self.options, index=index)
        return paint(labels, self.loaded, self.options, index=index, mass_effect=self.mass_effect)

    def _model(self, before: Contributors) -> dict[str, Any]:
        """Return what the model, and that of the label map, say of their making."""
        own = self.loaded.metadata
        adapters = [{k: a[k] for k in OF_ADAPTERS if k in a} for a in own.get("adapters", [])]
        return {
            "preset": self.loaded.preset,
            "trained_on": own.get("data_hash"),
            "adapters": adapters,
            **_trained_on(own, before),
        }


def _trained_on(metadata: Mapping[str, Any], before: Contributors) -> dict[str, list[str]]:
    """Return the marks of all patients known to be behind any model, and the models unmarked."""
    told = [("base", metadata.get("patients"))]
    told += [(a.get("name", "adapter"), a.get("patients")) for a in metadata.get("adapters", [])]
    marks = {mark for _, own in told for mark in own or ()}
    unmarked = [name for name, own in told if own is None]
    return {
        "patients": sorted(marks | {*before.patients}),
        "unmarked": [*unmarked, *before.unmarked],
    }


def make(maker: Maker, cases: Sequence[Case], *, force: bool = False) -> int:
    """Draw the samples of all label maps; return how many label maps failed."""

    return run_cases(cases, maker.work, maker.outputs, force=force)


def write(out: Path, made_id: str, labels: LabelMap, drawn: Drawn) -> tuple[str, list[Path]]:
    """Write scans, labels and the picture of a drawn case; return label scheme and files.

    Labels are numbered in the scheme that the id will be read in.
    """
    scheme = guess_scheme(made_id)
    tumour = np.where(labels.classes == BRAIN, 0, labels.classes)
    volumes = {**drawn.scans, "seg": labels.grid.with_data(to_scheme(tumour, scheme))}
    files = [v.save(out / made_id / f"{made_id}-{s}.nii.gz") for s, v in volumes.items()]
    path, head = out / "pictures" / f"{made_id}.png", labels.classes > 0
    draw_tumour(drawn.scans, tumour, head, path, title=made_id, outline=False)
    return scheme, files


def _counts(classes: np.ndarray) -> dict[str, int]:
    return {name: int((classes == n).sum()) for n, name in enumerate(NAMES, start=1)}
