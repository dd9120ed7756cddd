"""A single tumour: its label map, its spacing, its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.labels import from_regions, region, regions_of

SMOOTHING = 0.5
"""Gaussian over the distances before they are read, in voxels of the grid they are read from, or
of a coarser one they are read on. At 0.5 sphericity at 1.4 mm is what it was at 2.8 mm (0.73), at 0
it is 0.59, at 0.7 it is 0.80."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """A tumour without its brain."""

    labels: np.ndarray
    """(X, Y, Z) uint8: 0 none, 1 necrotic core, 2 oedema, 3 enhancing rim."""
    spacing_mm: float
    """Edge of a voxel; the grid is isotropic."""
    source: str = ""
    """Case and component, or checkpoint and seed."""

    def regions(self) -> np.ndarray:  # (3, X, Y, Z)
        """Return the masks of WT, TC and ET."""
        return regions_of(self.labels)

    def volume_ml(self, name: str = "WT") -> float:
        """Return the volume of a region."""
        return float(region(self.labels, "brats2023", name).sum()) * self.spacing_mm**3 / 1000

    def resampled(self, spacing_mm: float) -> Shape:
        """Return the shape on a grid of another spacing: smooth, nested, with the same volumes.

        Signed distances of WT, TC and the necrosis are interpolated, not the labels: a rim thinner
        than a voxel is the space between two smooth surfaces. Of each as many voxels are kept, from
        the deepest outwards and inside the region around it, as fill its volume; a region that has
        voxels keeps at least one.
        """
        if not spacing_mm > 0:
            raise SynthError(f"spacing {spacing_mm} mm", hint="give a number above 0")
        if np.isclose(spacing_mm, self.spacing_mm, rtol=1e-6) or not self.labels.any():
            return Shape(labels=self.labels, spacing_mm=spacing_mm, source=self.source)
        ratio = spacing_mm / self.spacing_mm
        wt, tc, et = np.pad(self.cropped().regions(), [(0, 0)] + [(2, 2)] * 3)
        grid = tuple(int(np.ceil(n / ratio)) + 1 for n in wt.shape)
        layers = (wt, tc, tc & ~et)
        depths = [_on_grid(signed_distance(layer), grid, ratio) for layer in layers]
        whole, core, necrosis = (round(float(layer.sum()) / ratio**3) for layer in layers)
        core = max(core, 1) if tc.any() else 0
        necrosis = min(necrosis, core - 1) if et.any() else core
        masks = _filled(depths, (max(whole, core, 1), core, necrosis))
        labels = from_regions(np.stack([masks[0], masks[1], masks[1] & ~masks[2]]))
        return Shape(labels=labels, spacing_mm=spacing_mm, source=self.source)

    def cropped(self, margin: int = 0) -> Shape:
        """Return the shape in its own box, with a margin of empty voxels."""
        if not self.labels.any():
            raise SynthError(f"{self.source or 'shape'}: no tumour", hint="there is no label in it")
        (box,) = ndimage.find_objects((self.labels > 0).astype(np.uint8))
        labels = np.pad(self.labels[box], margin)
        return Shape(labels=labels, spacing_mm=self.spacing_mm, source=self.source)


def signed_distance(mask: np.ndarray, spacing_mm: float = 1.0) -> np.ndarray:
    """Return the distance to the surface, negative inside; +inf where the mask is empty.

    Voxels of the two sides are half a voxel from the surface between them, so that interpolation
    puts it midway.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    distance = np.where(mask, 0.5 - inside, outside - 0.5)
    return (distance * spacing_mm).astype(np.float32)


def _on_grid(distance: np.ndarray, grid: Sequence[int], ratio: float) -> np.ndarray:
    """Read distances on a grid about the same centre whose step is `ratio` voxels."""
    if not np.isfinite(distance).all():
        return np.full(grid, np.inf, np.float32)
    distance = ndimage.gaussian_filter(distance, SMOOTHING * max(ratio, 1), mode="nearest")
    offset = (np.array(distance.shape) - 1) / 2 - ratio * (np.array(grid) - 1) / 2
    return ndimage.affine_transform(
        distance, np.full(3, ratio), offset, output_shape=tuple(grid), order=3, mode="nearest"
    )


def _filled(distances: Sequence[np.ndarray], voxels: Sequence[int]) -> list[np.ndarray]:
    """Keep of each layer its deepest voxels inside the one before: volumes and nesting hold."""
    masks = []
    inside = np.ones(distances[0].shape, bool)
    for distance, count in zip(distances, voxels, strict=True):
        places = np.flatnonzero(inside)
        deepest = np.argsort(distance.ravel()[places], kind="stable")[:count]
        inside = np.zeros(inside.shape, bool)
        inside.ravel()[places[deepest]] = True
        masks.append(inside)
    return masks
