"""Folders of tumour label maps, in one numbering and one voxel size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case, discover, require_unique, split_name
from synth.data.labels import region
from synth.metrics.shape import location, regions_of

PLAIN_SCHEME = "brats2023"
SAME_SPACING = 0.01
"""Relative difference of voxel sizes that is rounding in a header."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """One tumour, cut out of its volume."""

    name: str
    path: Path
    regions: np.ndarray
    """(3, X, Y, Z) bool: WT, TC, ET."""
    spacing_mm: tuple[float, float, float]
    centre: Mapping[str, float] = field(default_factory=dict)
    """Where it is in the brain's box, in RAS order; empty where the brain is not known."""


def find_masks(folder: Path, scheme: str = "auto") -> list[Case]:
    """Find label maps by any BraTS naming; without one, every NIfTI file without another role."""
    if not folder.is_dir():
        raise SynthError(f"{folder}: no such folder", hint="check the path and its spelling")
    paths = sorted(p for p in folder.rglob("*.nii*") if p.name.endswith((".nii", ".nii.gz")))
    roles = {path: split_name(path) for path in paths}
    if any(name and name[1] == "seg" for name in roles.values()):
        cases = [case for case in discover(folder, scheme=scheme) if "seg" in case.files]
    else:
        plain = Case(id="", files={}).with_scheme(PLAIN_SCHEME if scheme == "auto" else scheme)
        cases = [
            replace(plain, id=str(path.relative_to(folder)), files={"seg": path})
            for path, name in roles.items()
            if name is None
        ]
    if not cases:
        raise SynthError(
            f"{folder}: no label maps", hint="names are like <case>-seg.nii.gz or <any>.nii.gz"
        )
    require_unique(cases)
    return cases


def load_mask(case: Case) -> Mask:
    """Read a label map and, where a scan is beside it, its place in the brain."""
    volume = case.load("seg")
    regions = np.stack([region(volume.data[0], case.scheme, name) for name in ("WT", "TC", "ET")])
    if not regions[0].any():
        raise SynthError(f"no tumour in {case.path('seg')}", hint="the label map is empty")
    centre = {}
    for role in (m for m in MODALITIES if m in case.files):
        scan = case.load(role)
        volume.require_same_grid(scan, ("seg", role))
        # World order, so that left is left in both sets whichever way their files run.
        turn = nib.orientations.io_orientation(volume.affine)
        centre = location(
            *(nib.orientations.apply_orientation(a, turn) for a in (regions[0], scan.data[0] != 0))
        )
        break
    return Mask(
        name=case.id, path=case.path("seg"), regions=regions_of(regions),
        spacing_mm=volume.spacing_mm, centre=centre,
    )  # fmt: skip


def common_spacing_mm(*sets: Sequence[Mask]) -> float:
    """Return the coarsest of the sets' median voxel sizes: finer detail is not in all of them."""
    sizes = [[float(np.prod(m.spacing_mm)) ** (1 / 3) for m in masks] for masks in sets if masks]
    return max(float(np.median(own)) for own in sizes)


def on_spacing(masks: Iterable[Mask], spacing_mm: float) -> list[Mask]:
    """Return the masks on isotropic voxels of one size; those that have it stay as they are."""
    return [
        replace(mask, regions=_resampled(mask, spacing_mm), spacing_mm=(spacing_mm,) * 3)
        if np.abs(np.array(mask.spacing_mm) / spacing_mm - 1).max() > SAME_SPACING
        else mask
        for mask in masks
    ]


def _resampled(mask: Mask, spacing_mm: float) -> np.ndarray:
    """Read smoothed regions on the new grid, and keep of each the voxels that fill its volume.

    A threshold of a half would melt thin rims; counting voxels, inside the region around, does not.
    """
    ratio = spacing_mm / np.array(mask.spacing_mm)
    margin = [(int(np.ceil(r)) + 2,) * 2 for r in ratio]
    padded = np.pad(mask.regions, [(0, 0), *margin]).astype(np.float32)
    grid = [int(np.ceil(n / r)) for n, r in zip(padded.shape[1:], ratio, strict=True)]
    offset = (np.array(padded.shape[1:]) - ratio * (np.array(grid) - 1) - 1) / 2
    inside = np.ones(grid, bool)
    found = []
    for own in padded:
        smooth = ndimage.gaussian_filter(own, 0.5 * np.maximum(ratio, 1))
        share = ndimage.affine_transform(smooth, ratio, offset, output_shape=tuple(grid), order=1)
        count = max(round(float(own.sum()) / float(np.prod(ratio))), int(own.any()))
        fullest = np.argsort(np.where(inside, share, -1), axis=None, kind="stable")[::-1][:count]
        kept = np.zeros(inside.size, bool)
        kept[fullest] = True
        inside = inside & kept.reshape(grid)
        found.append(inside)
    return regions_of(np.stack(found))
