"""Inpainting of files: the scans and the hole of a case to read, the painted scans to write.

`Inpainter` has the two methods of the BraTS Orchestrator, without its containers:

    Inpainter().infer_single("A-t1n-voided.nii.gz", "A-mask.nii.gz", "A.nii.gz")
    Inpainter(force_cpu=True).infer_batch("cases", "filled")  # A/A-t1n-voided, A/A-mask
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from synth.base.devices import pick
from synth.base.errors import SynthError
from synth.base.files import file_hash
from synth.base.manifest import manifest
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.brain import LARGEST_BRAIN_ML
from synth.data.case import (
    MODALITIES,
    Case,
    discover,
    guess_scheme,
    is_real,
    require_unique,
    split_name,
)
from synth.data.labels import region
from synth.data.prepare import brain_mask
from synth.data.tumour_mask import dilated_tumour
from synth.data.volume import Volume
from synth.jobs.cases import Output, run_cases, write_record
from synth.training.log import counted
from wdm3d.config import SamplerOptions
from wdm3d.generate import inpaint, load

THICK_SLICES = 3.0
"""Of the model's voxel size: thicker ones hold no detail that it could continue."""
MANY_DARK = 0.02
"""Share of voxels darker than the air at the scan's edge."""
log = logging.getLogger(__name__)


def case_of(
    scan: Path,
    *,
    mask: Path | None = None,
    seg: Path | None = None,
    scheme: str = "auto",
    role: str | None = None,
) -> Case:
    """Return the case of a single scan; its id, which seeds the draws, is read off the name.

    So is its contrast, unless `role` says what to take it for.
    """
    named = split_name(scan)
    case_id = named[0] if named else scan.name.removesuffix(".gz").removesuffix(".nii")
    role = role or (named[1] if named and named[1] in (*MODALITIES, "voided") else "t1n")
    files = {role: scan} | {role: p for role, p in (("mask", mask), ("seg", seg)) if p}
    case = Case(id=case_id, files=files)
    return case.with_scheme(guess_scheme(case_id) if scheme == "auto" else scheme)


def sources_of(case: Case, contrasts: Sequence[str]) -> list[Path]:
    """Return the files that the answer depends on: the scans, and the mask or the labels."""
    return [case.path(role) for role in (*_scans(case, contrasts), _hole(case))]


def scans_of(case: Case, contrasts: Sequence[str]) -> Volume:
    """Return the scan to fill, one channel a contrast; a voided t1n will do."""
    return case.load_scans(_scans(case, contrasts))


def hole_of(case: Case, image: Volume) -> Volume:
    """Return what to paint: the mask, or the dilated tumour."""
    if _hole(case) == "mask":
        return case.load("mask")
    labels = case.load("seg")
    image.require_same_grid(labels, ("image", "seg"))
    tumour = region(labels.data[0], case.scheme, "WT")
    return labels.with_data(dilated_tumour(tumour, image.spacing_mm))


def paint_cases(
    cases: Sequence[Case],
    out: Path,
    loaded: Checkpoint,
    options: SamplerOptions,
    *,
    contrasts: Sequence[str],
    seed: int,
    arguments: Mapping[str, Any],
    force: bool = False,
) -> int:
    """Paint every case that is not done; return how many failed.

    Args:
        cases: what to paint.
        out: folder to write into; records go to a folder of their own in it, because a challenge's
            container may put nothing beside the scans.
        loaded: the model.
        options: how to sample.
        contrasts: the scans to paint.
        seed: seed of every draw, together with the case's id.
        arguments: what else to note in the records; `brain` is the brain mask of a single scan.
        force: paint finished cases again.
    """
    settings = {"seed": seed, "weights": file_hash(loaded.path), **vars(options)}

    def path(case: Case, contrast: str, kind: str = "inference") -> Path:
        return out / f"{case.id}-{contrast}-{kind}.nii.gz"

    def record(case: Case) -> Path:
        return out / "records" / f"{case.id}.json"

    def save(volume: Volume, case: Case, kind: str) -> list[Path]:
        pairs = reversed(list(zip(volume.data, contrasts, strict=True)))
        return [volume.with_data(data).save(path(case, c, kind)) for data, c in pairs]

    def outputs(case: Case) -> list[Output]:
        return [Output(path=path(case, contrasts[0]), record=record(case), settings=settings,
                       inputs=lambda: sources_of(case, contrasts))]  # fmt: skip

    said: set[str] = set()

    def paint(case: Case) -> str:
        image = scans_of(case, contrasts)
        _warn(case, find_doubts(case, image, loaded), said)
        result = inpaint(
            image, hole_of(case, image), model=loaded, seed=seed, options=options, name=case.id,
            brain=arguments.get("brain"),
        )  # fmt: skip
        facts, sources = result.facts, sources_of(case, contrasts)
        described = manifest("inpaint", {**arguments, **settings}, sources, **facts)
        write_record(record(case), described)
        painted = _with_text(result.image, sources[0], keep=bool(arguments.get("keep_header")))
        files = save(result.spread, case, "sd") if result.spread is not None else []
        files += save(painted, case, "inference")
        write_record(record(case), described, files)
        brain = f", brain {facts['brain']}" if "brain" in facts else ""
        counts = f"{counted(facts['regions'], 'hole')}, {counted(facts['network_calls'], 'call')}"
        return f"{counts}{brain}, {facts['seconds']} s"

    return run_cases(cases, paint, outputs, force=force)


def _with_text(image: Volume, source: Path, *, keep: bool) -> Volume:
    """Return a result with the free text of its source's header, if asked."""
    return replace(image, header=nib.load(source).header.copy()) if keep else image


def _warn(case: Case, doubts: Sequence[str], said: set[str]) -> None:
    """Say each doubt once for all cases."""
    for doubt in doubts:
        if doubt not in said:
            log.warning("%s: %s", case.id, doubt)
        said.add(doubt)


def find_doubts(case: Case, image: Volume, model: Checkpoint) -> list[str]:
    """Return what a scan has that the model does not know: its answer may be worse than usual."""
    config, found = model.config, []
    thickest = max(image.spacing_mm)
    if thickest > THICK_SLICES * config.spacing_mm:
        found.append(f"slices of {thickest:.3g} mm, the model works at {config.spacing_mm:g} mm")
    if model.metadata.get("phantoms") and is_real(case):
        found.append("the model was trained on made-up brains only (synth phantom)")
    if config.mode == "guided":  # knows any contrast, and finds the brain
        return found
    inside = brain_mask(image)
    if inside.sum() * image.voxel_ml > LARGEST_BRAIN_ML:
        found.append("the scan seems to have its skull, the model knows brains alone")
    edge = np.concatenate([image.data[0][[0, -1]].ravel(), image.data[0][:, [0, -1]].ravel()])
    if (image.data[0] < np.median(edge)).mean() > MANY_DARK:
        found.append("voxels darker than air: was it normalised? The model expects air darkest")
    return found


class Inpainter:
    """A loaded model that fills scans.

    Args:
        model: checkpoint folder of wdm3d.
        cuda_devices: which GPU; the first where several are named. Without one, the CPU is used.
        force_cpu: use the CPU in any case.
        seed: seed of every draw, together with the case's id.
        options: how to sample; default what suits the model.
    """

    def __init__(
        self,
        model: str | Path = "weights/wdm3d",
        cuda_devices: str = "0",
        force_cpu: bool = False,
        *,
        seed: int = 0,
        options: SamplerOptions | None = None,
    ) -> None:
        on_gpu = torch.cuda.is_available() and not force_cpu
        self.model = load(model, pick(f"cuda:{cuda_devices.split(',')[0]}" if on_gpu else "cpu"))
        if len(self.model.config.modalities) != 1:
            raise SynthError(
                f"{model} paints several contrasts together", hint="use the inpaint verb"
            )
        self.seed, self.options = seed, options

    def infer_single(self, t1n: str | Path, mask: str | Path, output_file: str | Path) -> Path:
        """Fill one scan, voided or not, and write it; returns where."""
        return self._fill(case_of(Path(t1n), mask=Path(mask), role="t1n"), Path(output_file))

    def infer_batch(self, data_folder: str | Path, output_folder: str | Path) -> list[Path]:
        """Fill A/A-t1n-voided.nii.gz for each A into output_folder/A.nii.gz; returns the files.

        Finished cases are skipped. A bad case is logged, the others are done, and it raises at
        the end.
        """
        cases = discover(Path(data_folder))
        require_unique(cases)
        targets = {case.id: Path(output_folder) / f"{case.id}.nii.gz" for case in cases}

        def work(case: Case) -> str:
            return str(self._fill(case, targets[case.id]))

        failed = run_cases(cases, work, lambda case: [Output(path=targets[case.id])])
        if failed:
            raise SynthError(
                f"{failed} of {len(cases)} cases could not be filled",
                hint="the log says why; `synth check` examines the folder",
            )
        return list(targets.values())

    def _fill(self, case: Case, target: Path) -> Path:
        image = scans_of(case, self.model.config.modalities)
        mask = hole_of(case, image)
        result = inpaint(
            image, mask, model=self.model, seed=self.seed, options=self.options, name=case.id
        )
        return result.image.save(target)


def _scans(case: Case, contrasts: Sequence[str]) -> tuple[str, ...]:
    voided = "t1n" not in case.files and "voided" in case.files
    return ("voided",) if voided and tuple(contrasts) == ("t1n",) else tuple(contrasts)


def _hole(case: Case) -> str:
    for role in ("mask", "seg"):
        if role in case.files:
            return role
    raise SynthError(
        f"{case.id}: no mask file",
        hint="a -mask or a -seg file says where to paint; it has: "
        + (", ".join(case.files) or "nothing"),
    )
