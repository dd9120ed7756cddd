"""Draws label maps and writes them as files, with a record of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from label_gan import generate
from synth.base.devices import pick
from synth.base.manifest import manifest
from synth.checkpoints.checkpoint import read_metadata
from synth.data.labels import scheme_regions, to_scheme
from synth.data.volume import Volume
from synth.jobs.cases import Output, run_cases, write_record


def write_masks(
    numbers: Sequence[int],
    out: Path,
    model: Path,
    *,
    options: Mapping[str, Any],
    scheme: str,
    device: str,
    force: bool,
) -> int:
    """Write the samples of these numbers that are not there yet; return how many failed.

    Args:
        numbers: sample k is the same in whatever batch it is.
        out: folder to write into.
        model: label_gan checkpoint.
        options: seed, truncation and volume_ml of `label_gan.generate.draw`.
        scheme: how the labels are numbered.
        device: torch device, or auto.
        force: draw those again that are there.
    """
    scheme_regions(scheme)
    settings = {**options, "scheme": scheme}
    loaded = generate.load(model, pick(device))
    marks = read_metadata(model).get("patients")
    source = {"donors": [], "patients": marks or [], "unmarked": ["label_gan"] * (marks is None)}

    def name(number: int) -> str:
        return f"label-{number:05d}"

    def path(number: int) -> Path:
        return out / f"{name(number)}-seg.nii.gz"

    def record(number: int) -> Path:
        return out / "records" / f"{name(number)}.json"

    def write(number: int) -> str:
        ((shape, facts),) = generate.draw(loaded, 1, first=number, **options)
        facts = {"source": shape.source, "volume_ml": round(shape.volume_ml(), 3), **facts}
        described = manifest("masks", settings, [loaded.path], **facts, **source)
        write_record(record(number), described)
        # The middle of the label map is the world's origin.
        affine = np.diag([*[shape.spacing_mm] * 3, 1.0])
        affine[:3, 3] = -shape.spacing_mm * (np.array(shape.labels.shape) - 1) / 2
        labels = to_scheme(shape.labels, scheme)[None]
        file = Volume(data=labels, affine=affine).save(path(number))
        write_record(record(number), described, [file])
        return f"{shape.volume_ml():.1f} ml"

    def outputs(number: int) -> list[Output]:
        return [Output(path=path(number), record=record(number), settings=settings)]

    return run_cases(numbers, write, outputs, name=name, force=force)
