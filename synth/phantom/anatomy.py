"""Healthy heads: the MNI152 maps, bent into individuals.

All lengths are millimetres in head coordinates (right, anterior, superior; 0 is the middle of the
brain), so that one code path serves 1 mm and 2.8 mm grids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from synth.data.heads import package_file
from synth.data.prepare import crop_or_pad

MNI_NOTICE = """\
Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
Institute, McGill University. Permission to use, copy, modify, and distribute this software and
its documentation for any purpose and without fee is hereby granted, provided that the above
copyright notice appear in all copies. The authors and McGill University make no representations
about the suitability of this software for any purpose. It is provided "as is" without express or
implied warranty. The authors are not responsible for any data loss, equipment damage, property
loss, or injury to subjects or patients resulting from the use or misuse of this software package.
"""
MNI_CENTRE_MM = (0.0, -17.0, 3.0)  # of the MNI brain; 3 rather than 5 keeps the stem off slice 0
HEAD_BOX_MM = (90.0, 106.0, 90.0)  # half edges of the box that holds every noise lattice
SYMMETRIC_SHARE = 0.85  # of the variance; gives the left-right correlation of real brains
MNI_SCALE = (0.92, 0.925, 0.915)  # the MNI head is larger than the SRI24 space of BraTS
DISPLACEMENT_MM = ((80.0, 2.2), (30.0, 1.6), (12.0, 0.8))  # correlation length, amplitude


@dataclass(frozen=True)
class Grid:
    """A rectilinear set of points: the head coordinates along each array axis."""

    axes: tuple[Tensor, Tensor, Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Points along each axis."""
        x, y, z = (len(axis) for axis in self.axes)
        return x, y, z

    @property
    def spacing_mm(self) -> float:
        """Distance of neighbours; the same along all axes."""
        return float((self.axes[0][1] - self.axes[0][0]).abs())

    def __getitem__(self, window: tuple[slice, slice, slice]) -> Grid:
        x, y, z = (axis[part] for axis, part in zip(self.axes, window, strict=True))
        return Grid((x, y, z))

    def points(self) -> Tensor:
        """Coordinates of every point."""
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"))  # (3, X, Y, Z)

    def coarser(self, spacing_mm: float) -> Grid:
        """Return the same box with about `spacing_mm` between points; corners coincide."""
        counts = [max(2, round(self.spacing_mm * (n - 1) / spacing_mm) + 1) for n in self.shape]
        ends = [(float(axis[0]), float(axis[-1])) for axis in self.axes]
        x, y, z = (torch.linspace(*end, n) for end, n in zip(ends, counts, strict=True))
        return Grid((x, y, z))

    def window(self, centre_mm: np.ndarray, half_mm: float) -> tuple[slice, slice, slice]:
        """Return the slices of the cube of half edge `half_mm` around a point."""
        parts = []
        for axis, middle in zip(self.axes, centre_mm, strict=True):
            inside = torch.nonzero((axis - float(middle)).abs() <= half_mm).flatten()
            parts.append(slice(int(inside[0]), int(inside[-1]) + 1))
        return parts[0], parts[1], parts[2]


@dataclass(frozen=True)
class Noise:
    """Gaussian-correlated noise of exact unit variance, a function of space and not of a grid.

    White noise on a lattice, weighted with a separable Gaussian: three small matrix products.
    Rows of unit length make the variance exactly one wherever the lattice reaches.
    """

    white: Tensor  # (A, B, C)
    step_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, correlation_mm: float, mirror: int = 0) -> Noise:
        """Draw a lattice; mirror 1 or -1 makes most of it (anti)symmetric in x."""
        step = correlation_mm / 2
        shape = [2 * (math.ceil(half / step) + 3) + 1 for half in HEAD_BOX_MM]
        white = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        if mirror:
            own = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
            shared = (white + mirror * white.flip(0)) / math.sqrt(2)
            white = math.sqrt(SYMMETRIC_SHARE) * shared + math.sqrt(1 - SYMMETRIC_SHARE) * own
        return cls(white, step)

    def on(self, grid: Grid) -> Tensor:
        """Evaluate at every point of a grid."""
        weights, white = [], self.white
        for dim, axis in enumerate(grid.axes):
            nodes = (torch.arange(white.shape[dim]) - (white.shape[dim] - 1) / 2) * self.step_mm
            reach = 4 * self.step_mm
            near = (nodes >= axis.min() - reach) & (nodes <= axis.max() + reach)
            white = white.index_select(dim, torch.nonzero(near).flatten())
            bell = torch.exp(-0.5 * ((axis[:, None] - nodes[None, near]) / self.step_mm) ** 2)
            weights.append(bell / bell.norm(dim=1, keepdim=True))
        field = torch.tensordot(weights[0], white, dims=1)  # (X, B, C)
        field = weights[1] @ field  # (X, Y, C)
        return field @ weights[2].T  # (X, Y, Z)


@dataclass(frozen=True)
class Maps:
    """Tissue probabilities on a grid; CSF is what is neither grey nor white."""

    brain: Tensor  # (X, Y, Z), as all of them
    grey: Tensor
    white: Tensor
    residual: Tensor
    """T1 that the tissues do not explain (pallidum, thalamus, brain stem), white matter = 1."""
    midline_mm: Tensor
    """x before deformation: its sign tells the hemisphere."""

    def part(self, window: tuple[slice, slice, slice]) -> Maps:
        """The same maps on a part of their grid."""
        return Maps(*(field[window] for field in vars(self).values()))

    @property
    def csf(self) -> Tensor:
        """The remainder, also outside the brain."""
        return (1 - self.grey - self.white).clamp(0, 1)


@dataclass(frozen=True)
class Person:
    """One person's head: pose, displacement, tissue texture, all independent of the grid."""

    scale: np.ndarray
    rotation: np.ndarray
    displacement: list[tuple[float, list[Noise]]]
    atrophy: float
    folds: list[Noise]

    @classmethod
    def draw(cls, rng: np.random.Generator, spacing_mm: float) -> Person:
        """Sample a person; `spacing_mm` bounds the finest folds."""
        size = math.exp(0.02 * float(np.clip(rng.standard_normal(), -2, 2)))
        scale = np.array(MNI_SCALE) * size * np.exp(0.015 * np.clip(rng.standard_normal(3), -2, 2))
        rotation = _rotation(np.deg2rad(rng.standard_normal(3)))
        displacement = [
            (amplitude, [Noise.draw(rng, length, mirror) for mirror in (-1, 1, 1)])
            for length, amplitude in DISPLACEMENT_MM
        ]
        atrophy = float(rng.uniform(0.3, 1.1))
        folds = [Noise.draw(rng, max(3.5, 2 * spacing_mm), mirror=1) for _ in range(3)]
        return cls(scale, rotation, displacement, atrophy, folds)

    def maps(self, grid: Grid, points: Tensor | None = None) -> Maps:
        """Pull the template back to the grid; `points` are the grid's, moved by mass effect."""
        points = grid.points() if points is None else points
        pose = torch.from_numpy((np.diag(1 / self.scale) @ self.rotation.T).astype(np.float32))
        template, spacing = brain_template(coarse=grid.spacing_mm > 1.5)
        source = torch.tensordot(pose, points, dims=1)  # (3, X, Y, Z)
        for amplitude, components in self.displacement:
            for axis, noise in enumerate(components):
                source[axis] += amplitude * noise.on(grid)
        extent = torch.tensor(template.shape[:0:-1]) * spacing / 2  # z, y, x half edges
        # Blocks of even edge have their middle between two voxels: hence the half millimetre.
        where = (source + 0.5).flip(0).movedim(0, -1) / extent
        fields = functional.grid_sample(template[None], where[None], align_corners=False)[0]
        brain, grey, white, residual = fields
        return Maps(brain, grey, white, residual, source[0])

    def tissue(self, maps: Maps, grid: Grid) -> Tensor:
        """Sharpen the group average into one person's gyri: CSF, grey and white memberships.

        Noise on the log odds decides voxel by voxel what the average leaves open.
        """
        shares = torch.stack([maps.csf, maps.grey, maps.white])
        logits = 1.7 * torch.log(shares + 0.02)
        for channel, noise in enumerate(self.folds):
            logits[channel] += 0.9 * noise.on(grid)
        logits[0] += self.atrophy
        return torch.softmax(1.3 * logits, dim=0)  # (3, X, Y, Z)


def depth_mm(brain: Tensor, grid: Grid) -> Tensor:
    """Distance to the outside of the brain."""
    inside = np.pad((brain > 0.5).numpy(), 1)
    distance = np.asarray(ndimage.distance_transform_edt(inside))[1:-1, 1:-1, 1:-1]
    return torch.from_numpy(distance.astype(np.float32)) * grid.spacing_mm


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest 6-connected piece."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _rotation(angles: np.ndarray) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@lru_cache(maxsize=2)
def brain_template(*, coarse: bool) -> tuple[Tensor, float]:
    """Return brain, grey, white and residual T1 centred on MNI_CENTRE_MM, and their spacing."""
    if coarse:  # half resolution: anti-aliased for coarse grids, and eight times less to read
        return functional.avg_pool3d(brain_template(coarse=False)[0][None], 2)[0], 2.0
    t1, grey, white = map(_centred, ("t1", "gm", "wm"))
    brain = ndimage.binary_erosion(largest_component(ndimage.binary_fill_holes(t1 > 0)))
    total = np.maximum(grey + white, 1)  # the maps overshoot one here and there
    grey, white = grey * brain / total, white * brain / total
    basis = np.stack([(1 - grey - white)[brain], grey[brain], white[brain]])
    level = np.linalg.solve(basis @ basis.T, basis @ t1[brain])  # T1 = level · tissues + residual
    residual = np.zeros_like(t1)
    residual[brain] = (t1[brain] - level @ basis) / level[2]
    stack = np.stack([brain, grey, white, residual]).astype(np.float32)
    return torch.from_numpy(stack), 1.0  # (4, 160, 200, 172)


def _centred(name: str) -> np.ndarray:
    """Cut a block out of a map of nilearn whose middle is MNI_CENTRE_MM less half a voxel."""
    file = f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    path = package_file("nilearn", f"datasets/data/{file}")
    assert path is not None, "nilearn is a dependency"
    image = nib.Nifti1Image.from_filename(path)
    half = np.array([80, 100, 86])
    start = np.round(np.array(MNI_CENTRE_MM) - image.affine[:3, 3] - half).astype(int)
    block = crop_or_pad(np.asarray(image.dataobj), tuple(start), tuple(2 * half), 0)
    return block.astype(np.float32) / 255  # 0..1
