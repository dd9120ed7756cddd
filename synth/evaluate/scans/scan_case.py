"""A case as the judge reads it: oriented, on one voxel size, from 0 to 1.

Real and made cases go the same way, so that no number tells them apart by how they were stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case, discover, region, require_unique
from synth.data.prepare import brain_mask, prepare
from synth.data.volume import READ_ERRORS, Volume
from synth.evaluate.common import find_real_sets

NCR, ED, ET = 1, 2, 3
DIVISOR = 8
"""Grids are a multiple of this: three Haar levels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scans:
    """Four contrasts of a case in RAS order, cut to the brain."""

    case: Case
    image: np.ndarray
    """(4, X, Y, Z) float32: 0 outside the brain, 1 its 99.5th percentile."""
    brain: np.ndarray
    """(X, Y, Z) bool."""
    classes: np.ndarray | None
    """(X, Y, Z): 1 NCR, 2 ED, 3 ET; None without a label map."""
    spacing_mm: float
    levels: tuple[float, ...]
    """The 99.5th percentile of each contrast in the file's own unit."""

    @property
    def healthy(self) -> np.ndarray:
        """The brain outside the tumour."""
        return self.brain if self.classes is None else self.brain & (self.classes == 0)


def find_scans(folder: Path, scheme: str = "auto", *, real: bool = False) -> list[Case]:
    """Find the cases of a folder that have a scan; `real` leaves out what was made from others."""
    if not folder.is_dir():
        raise SynthError(f"{folder}: no such folder", hint="check the path and its spelling")
    cases = [c for c in discover(folder, scheme=scheme) if set(MODALITIES) & c.files.keys()]
    cases = [c for c in cases if not (real and c.is_made)]
    if not cases:
        raise SynthError(
            f"{folder}: no {'real ' * real}case with scans",
            hint="names are like BraTS-GLI-00001-000-t1n.nii.gz",
        )
    require_unique(cases)
    return cases


def real_sets(
    truth_dir: Path, train_dir: Path | None, split: Path | None, scheme: str
) -> dict[str, list[Case]]:
    """Find the real cases: unseen ones as "real", and "training" ones if they are told."""
    sets = find_real_sets(
        truth_dir, train_dir, split, scheme, lambda folder: find_scans(folder, scheme, real=True)
    )
    seen = {c.id for c in sets.get("training", ())} & {c.id for c in sets["real"]}
    if seen:
        raise SynthError(
            f"{min(seen)} is an unseen case and a training case ({len(seen)} such)",
            hint="judge by cases that no model was trained on",
        )
    return sets


def common_spacing_mm(*sets: Iterable[Case]) -> float:
    """Return the coarsest of the sets' median voxel sizes, from the headers alone."""
    sizes = [[s for case in cases if (s := _spacing_mm(case))] for cases in sets]
    if not any(sizes):
        raise SynthError("no scan can be read", hint="`synth check` says what is wrong")
    return max(float(np.median(own)) for own in sizes if own)


def load_scans(case: Case, spacing_mm: float) -> Scans:
    """Read a case; its label map, if any, must be on the grid of its four contrasts."""
    volumes = [case.load(m) for m in MODALITIES]
    for m, volume in zip(MODALITIES, volumes, strict=True):
        volumes[0].require_same_grid(volume, (MODALITIES[0], m))
    image = volumes[0].with_data(np.concatenate([v.data for v in volumes]))
    brain = brain_mask(image)
    prepared = prepare(image, divisor=DIVISOR, margin_mm=0, spacing_mm=spacing_mm)
    inside = prepared.frame.bring(brain[None], nearest=True)[0]
    return Scans(
        case=case,
        image=np.where(inside, (prepared.data + 1) / 2, 0).astype(np.float32),
        brain=inside,
        classes=_classes(case, volumes[0], prepared.frame.bring),
        spacing_mm=spacing_mm,
        levels=prepared.high,
    )


def regions_of(labels: np.ndarray, scheme: str) -> np.ndarray:  # (3, X, Y, Z) bool
    """Return WT, TC and ET of a label map."""
    return np.stack([region(labels, scheme, name) for name in ("WT", "TC", "ET")])


def _classes(
    case: Case, grid: Volume, bring: Callable[..., np.ndarray]
) -> np.ndarray | None:  # on the grid that `bring` brings to
    if "seg" not in case.files:
        return None
    labels = case.load("seg")
    grid.require_same_grid(labels, (MODALITIES[0], "seg"))
    whole, core, enhancing = regions_of(labels.data[0], case.scheme)
    classes = np.zeros(labels.shape, np.uint8)
    for mask, number in ((whole, ED), (core, NCR), (enhancing, ET)):
        classes[mask] = number
    return bring(classes[None], nearest=True)[0]


def _spacing_mm(case: Case) -> float | None:
    """Return the edge of a cube as large as a voxel; None where the file is damaged."""
    path = next(case.files[m] for m in MODALITIES if m in case.files)
    try:
        affine = np.asarray(nib.load(path).affine)  # ty: ignore[missing-attribute]
    except READ_ERRORS:  # reported when the case is read
        return None
    return float(abs(np.linalg.det(affine[:3, :3])) ** (1 / 3))
