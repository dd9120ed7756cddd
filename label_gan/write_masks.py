"""Draws label maps and writes them as files, with a record of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from label_gan import generate
from label_gan.shape import Shape
from synth.base.devices import pick
from synth.base.files import write_json
from synth.base.manifest import manifest
from synth.checkpoints.checkpoint import read_metadata
from synth.data.labels import scheme_regions, to_scheme
from synth.data.volume import Volume
from synth.jobs.cases import Output, run_cases


def write_drawings(
    numbers: Sequence[int],
    out: Path,
    model: Path,
    *,
    wish: Mapping[str, Any],
    scheme: str,
    device: str,
    force: bool,
) -> int:
    """Write the samples of these numbers that are not there yet; return how many failed.

    Args:
        numbers: sample k is the same in whatever batch it is.
        out: folder to write into.
        model: label_gan checkpoint.
        wish: seed, truncation and volume_ml of `label_gan.generate.draw`.
        scheme: how the labels are numbered.
        device: torch device, or auto.
        force: draw those again that are there.
    """
    scheme_regions(scheme)
    settings = {**wish, "scheme": scheme}
    loaded = generate.load(model, pick(device))
    marks = read_metadata(model).get("patients")
    behind = {"donors": [], "patients": marks or [], "unmarked": ["label_gan"] * (marks is None)}

    def target(number: int) -> Path:
        return out / f"label-{number:05d}-seg.nii.gz"

    def record(number: int) -> Path:
        return out / "records" / f"label-{number:05d}.json"

    def work(number: int) -> str:
        ((shape, facts),) = generate.draw(loaded, 1, first=number, **wish)
        made = {"source": shape.source, "volume_ml": round(shape.volume_ml(), 3), **facts, **behind}
        write_json(record(number), manifest("masks", settings, [loaded.path], **made))
        centred(shape, scheme).save(target(number))  # last: its presence means done
        return f"{shape.volume_ml():.1f} ml"

    def outputs(number: int) -> list[Output]:
        return [Output(path=target(number), record=record(number), settings=settings)]

    return run_cases(numbers, work, outputs, name=lambda number: f"label-{number:05d}", force=force)


def centred(shape: Shape, scheme: str) -> Volume:
    """Return a shape as a label map whose middle is the world's origin."""
    affine = np.diag([*[shape.spacing_mm] * 3, 1.0])
    affine[:3, 3] = -shape.spacing_mm * (np.array(shape.labels.shape) - 1) / 2
    return Volume(data=to_scheme(shape.labels, scheme)[None], affine=affine)
