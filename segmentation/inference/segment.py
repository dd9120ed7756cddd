"""Segments a scan with one network or several.

    models = load_models(["runs/a", "runs/b"])
    found = segment(scans, models=models, options=SegmentOptions(weights=(1, 2), tta=True))
    found.labels.save("BraTS-GLI-00001-000-seg.nii.gz")

Each network works in its own frame, at its own spacing. What is carried back to the scan's grid and
averaged there are probabilities, never labels; thresholds and filters come last, on that grid.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segmentation.config import Config, require_segmentation
from segmentation.data import prepare_scans
from segmentation.inference.ensemble import weight_table, weighted_mean
from segmentation.inference.postprocess import Postprocessing, apply_rules
from segmentation.predict import probabilities
from synth.base.devices import name_what_needs_memory
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import MODALITIES, Case
from synth.data.labels import REGIONS, from_regions, to_scheme
from synth.data.prepare import Frame
from synth.data.volume import Volume


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How scans are segmented."""

    weights: tuple[float, ...] = ()
    """One a model, or three a model (WT, TC, ET); none counts all alike."""
    tta: bool = False
    """Average the answers to the eight mirror images: eight times the work."""
    overlap: float = 0.5
    """Share of a window that its neighbour sees, too."""
    rules: Postprocessing = field(default_factory=Postprocessing)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise SynthError(f"overlap {self.overlap}", hint="from 0 to below 1; 0.5 is usual")


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmented:
    """What the networks say of a scan, on its own grid."""

    labels: Volume
    """In the numbers of the scheme."""
    regions: np.ndarray
    """(3, X, Y, Z) bool: WT, TC, ET."""
    probabilities: Volume
    """(3, X, Y, Z) float32, before any threshold."""
    ml: Mapping[str, float]
    """Volume of each region."""
    seconds: float


def load_models(paths: Sequence[str | Path], device: str = "cpu") -> list[Checkpoint]:
    """Load segmentation models, laid out for speed."""
    if not paths:
        raise SynthError("no model", hint="name one checkpoint or several")
    models = [checkpoint.load(path, device=device) for path in paths]
    for path, model in zip(paths, models, strict=True):
        require_segmentation(path, model.family)
        for parameter in model.model.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    return models


def load_scans(case: Case) -> dict[str, Volume]:
    """Read the four contrasts of a case, or say at once which are missing."""
    if missing := [m for m in MODALITIES if m not in case.files]:
        raise SynthError(
            f"{case.id}: no {', '.join(missing)} file",
            hint=f"segmentation needs all of {', '.join(MODALITIES)}",
        )
    return {m: case.load(m) for m in MODALITIES}


def segment(
    scans: Mapping[str, Volume],
    *,
    models: Sequence[Checkpoint],
    options: SegmentOptions | None = None,
    scheme: str = "brats2023",
) -> Segmented:
    """Segment one examination.

    Args:
        scans: t1n, t1c, t2w and t2f, on one grid.
        models: as `load_models` gives them; they may differ in network, patch and spacing.
        options: weights, mirror images, thresholds and filters.
        scheme: how the labels are numbered.
    """
    started = time.monotonic()
    options = options or SegmentOptions()
    grid = scans[MODALITIES[0]]
    weights = weight_table(options.weights, len(models))
    used = np.flatnonzero(weights.any(axis=1))
    members = [models[index] for index in used]
    # What a network sees follows from its spacing alone, so that folds share it.
    configs = {model.config.spacing_mm: model.config for model in members}
    seen = {s: prepare_scans([scans[m] for m in MODALITIES], c) for s, c in configs.items()}
    answers = (predict(*seen[model.config.spacing_mm], model, options) for model in members)
    found = weighted_mean(answers, weights[used])
    regions = apply_rules(found, options.rules, grid.voxel_ml)
    volumes = regions.sum(axis=(1, 2, 3)) * grid.voxel_ml
    return Segmented(
        labels=grid.with_data(to_scheme(from_regions(regions), scheme)),
        regions=regions,
        probabilities=grid.with_data(found),
        ml={r: round(float(v), 3) for r, v in zip(REGIONS, volumes, strict=True)},
        seconds=round(time.monotonic() - started, 2),
    )


def predict(image: Tensor, frame: Frame, model: Checkpoint, options: SegmentOptions) -> np.ndarray:
    """Return what one model says of a prepared image, on the scan's grid: (3, X, Y, Z) float32."""
    config: Config = model.config
    with name_what_needs_memory(f"a window of {' × '.join(map(str, config.patch))} voxels"):
        found = probabilities(model.model, image, config, tta=options.tta, overlap=options.overlap)
    if not torch.isfinite(found).all():
        raise SynthError(
            f"{model.path}: the network answered with NaN", hint="its weights are damaged: retrain"
        )
    return frame.back(found.cpu().numpy()).clip(0, 1)
