"""A single tumour: its label map and spacing, resampled and rotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from synth.base.errors import SynthError
from synth.data.labels import ED, ET, NCR, from_regions, regions_of

SMOOTHING = 0.5
"""Gaussian over the distances before they are read, in voxels of the grid they are read from, or
of a coarser one they are read on. At 0.5 sphericity at 1.4 mm is what it was at 2.8 mm (0.73), at 0
it is 0.59, at 0.7 it is 0.80."""
FAR = 1e3  # voxels; stands for the surface of a region that is not there


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """A tumour without its brain."""

    labels: np.ndarray
    """(X, Y, Z) uint8: 0 none, 1 necrotic core, 2 oedema, 3 enhancing rim."""
    spacing_mm: float
    """Edge of a voxel; the grid is isotropic."""
    source: str = ""
    """Case and component, or checkpoint and seed."""

    def volume_ml(self) -> float:
        """Return the volume of the whole tumour."""
        return float((self.labels > 0).sum()) * self.spacing_mm**3 / 1000

    def cropped(self, margin: int = 0) -> Shape:
        """Return the shape in its own box, with a margin of empty voxels."""
        if not self.labels.any():
            raise SynthError(f"{self.source or 'shape'}: no tumour", hint="there is no label in it")
        (box,) = ndimage.find_objects((self.labels > 0).astype(np.uint8))
        return replace(self, labels=np.pad(self.labels[box], margin))

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
            return replace(self, spacing_mm=spacing_mm)
        ratio = spacing_mm / self.spacing_mm
        wt, tc, et = np.pad(regions_of(self.cropped().labels), [(0, 0)] + [(2, 2)] * 3)
        grid = tuple(int(np.ceil(n / ratio)) + 1 for n in wt.shape)
        layers = (wt, tc, tc & ~et)
        whole, core, necrosis = (round(float(layer.sum()) / ratio**3) for layer in layers)
        core = max(core, 1) if tc.any() else 0
        necrosis = min(necrosis, core - 1) if et.any() else core
        masks = [np.ones(grid, bool)]
        for layer, count in zip(layers, (max(whole, core, 1), core, necrosis), strict=True):
            masks.append(_deepest(_read_distance(layer, grid, ratio), masks[-1], count))
        _, wt, tc, ncr = masks
        labels = from_regions(np.stack([wt, tc, tc & ~ncr]))
        return replace(self, labels=labels, spacing_mm=spacing_mm)


def rotate(shape: Shape, spacing_mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Return a shape's labels, mirrored half of the time and rotated at random, on any grid.

    Signed distances are interpolated: of the whole tumour and of its core, and inside the core the
    nearer of necrosis and rim wins, so that a rim of one voxel gets no gaps.
    """
    step = min(spacing_mm)
    labels = np.pad(shape.resampled(step).labels, 1)
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0, 1.0])
    matrix = Rotation.random(rng=rng).as_matrix() @ mirror @ np.diag(spacing_mm) / step
    reach = np.ceil(np.abs(np.linalg.inv(matrix)) @ (np.array(labels.shape) / 2)).astype(int)
    offset = (np.array(labels.shape) - 1) / 2 - matrix @ reach

    def depth(mask: np.ndarray) -> np.ndarray:
        distance = np.minimum(signed_distance(mask).astype(np.float32), FAR)
        grid = tuple(2 * reach + 1)
        return ndimage.affine_transform(distance, matrix, offset, grid, order=1, mode="nearest")

    whole = depth(labels > 0) < 0
    result = np.where(whole, ED, 0).astype(np.uint8)
    core = (labels == NCR) | (labels == ET)
    if core.any():
        inside = whole & (depth(core) < 0)
        rim = depth(labels == ET) <= depth(labels == NCR)
        result[inside] = np.where(rim, ET, NCR)[inside]
    boxes = ndimage.find_objects(whole.astype(np.uint8))
    return result[boxes[0]] if boxes else result


def signed_distance(
    mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """Return the distance to the surface, negative inside; +inf where the mask is empty.

    Voxels of the two sides are half a voxel from the surface between them, so that interpolation
    puts it midway.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf)
    half = min(spacing_mm) / 2
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return np.where(mask, half - inside, outside - half)


def _read_distance(mask: np.ndarray, grid: Sequence[int], ratio: float) -> np.ndarray:
    """Read a mask's distance on a grid about the same centre whose step is `ratio` voxels."""
    if not mask.any():
        return np.full(grid, np.inf, np.float32)
    distance = signed_distance(mask).astype(np.float32)
    distance = ndimage.gaussian_filter(distance, SMOOTHING * max(ratio, 1), mode="nearest")
    offset = (np.array(distance.shape) - 1) / 2 - ratio * (np.array(grid) - 1) / 2
    return ndimage.affine_transform(
        distance, np.full(3, ratio), offset, output_shape=tuple(grid), order=3, mode="nearest"
    )


def _deepest(distance: np.ndarray, around: np.ndarray, count: int) -> np.ndarray:
    """Keep the deepest voxels inside the region around them: volumes and nesting hold."""
    places = np.flatnonzero(around)
    kept = places[np.argsort(distance.ravel()[places], kind="stable")[:count]]
    inside = np.zeros(around.shape, bool)
    inside.ravel()[kept] = True
    return inside
