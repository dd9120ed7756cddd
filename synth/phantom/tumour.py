"""Tumours: place, shape, parts, and what they push aside.

A shape is a field in millimetres, positive inside: a rotated ellipsoid, metaballs and noise. Labels
follow BraTS 2023: 1 necrotic core (NCR), 2 oedema (ED), 3 enhancing tumour (ET).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from synth.base.errors import SynthError
from synth.data.labels import ED, ET, NCR
from synth.data.placement import MIN_DISTANCE_MM, MIN_IN_BRAIN
from synth.phantom.anatomy import Grid, Maps, Noise, largest_component

KINDS = {"ring": 0.78, "solid": 0.14, "non-enhancing": 0.08}
LARGEST_TUMOUR_MM = 34.0  # nominal radius of the whole tumour; uncapped, some reach 420 ml
DAMPING_MM = 14.0  # mass effect fades to nothing over this depth under the brain's surface
MOST_SHRINKS = 60


@dataclass(frozen=True)
class Blob:
    """A lumpy ball about a centre: rotated ellipsoid, metaballs, noise at two scales."""

    centre_mm: np.ndarray
    radius_mm: float
    stretch: np.ndarray
    """(3, 3) maps offsets to the unit-ratio frame."""
    buds: list[tuple[np.ndarray, float]]
    coarse: Noise
    fine: Noise

    @classmethod
    def draw(cls, rng: np.random.Generator, centre_mm: np.ndarray, radius_mm: float) -> Blob:
        """Sample a shape of the given nominal size."""
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        ratios = np.exp(0.15 * rng.standard_normal(3))
        ratios /= np.prod(ratios) ** (1 / 3)
        buds = []
        for _ in range(rng.integers(0, 4)):
            direction = rng.standard_normal(3)
            offset = rng.uniform(0.6, 1.0) * radius_mm * direction / np.linalg.norm(direction)
            buds.append((offset, float(rng.uniform(0.35, 0.7)) * radius_mm))
        noises = (Noise.draw(rng, radius_mm), Noise.draw(rng, max(0.4 * radius_mm, 3.0)))
        return cls(centre_mm, radius_mm, np.diag(ratios) @ turn, buds, *noises)

    def field(self, grid: Grid, scale: float = 1.0) -> Tensor:
        """Millimetres inside the surface (positive) or outside; `scale` shrinks the whole."""
        offset = (grid.points() - _column(self.centre_mm)) / scale
        stretch = torch.from_numpy(self.stretch.astype(np.float32))
        ball = torch.tensordot(stretch, offset, dims=1).norm(dim=0)
        parts = [self.radius_mm - ball]
        parts += [radius - (offset - _column(at)).norm(dim=0) for at, radius in self.buds]
        blend = 0.25 * self.radius_mm
        field = blend * torch.logsumexp(torch.stack(parts) / blend, dim=0)
        rough = 0.65 * self.coarse.on(grid) + 0.35 * self.fine.on(grid)
        # A steep wall far out keeps noise from running to the edge of the window.
        wall = 1.5 * (offset.norm(dim=0) - 1.6 * self.radius_mm).clamp(min=0)
        return scale * (field + 0.32 * self.radius_mm * rough - wall)  # (X, Y, Z)


@dataclass(frozen=True)
class Tumour:
    """One lesion: a core inside a larger whole, and how it displaces the brain."""

    core: Blob
    whole_mm: float
    """Nominal radius of core and oedema together."""
    push_mm: float
    """Radius of the ball of new tissue that mass effect makes room for."""
    kind: str
    rim_mm: float
    rim_noise: Noise
    spot_noise: Noise
    edge_noise: Noise
    callosal_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, maps: Maps, depth: Tensor, grid: Grid) -> Tumour:
        """Choose a lesion and a place in deep supratentorial white matter."""
        radius = float(np.clip(15.0 * math.exp(0.33 * rng.standard_normal()), 7, 25))
        whole = min(radius + float(rng.uniform(4, 14)), LARGEST_TUMOUR_MM)
        centre = _choose_place(rng, maps, depth, grid, radius)
        return cls(
            core=Blob.draw(rng, centre, radius),
            whole_mm=whole,
            push_mm=float(rng.uniform(0.4, 0.8)) * radius,
            kind=str(rng.choice(list(KINDS), p=list(KINDS.values()))),
            rim_mm=float(rng.uniform(2.2, 5.0)),
            rim_noise=Noise.draw(rng, 14.0),
            spot_noise=Noise.draw(rng, 8.0),
            edge_noise=Noise.draw(rng, 0.45 * whole),
            callosal_mm=float(rng.uniform(10, 12)),
        )

    @property
    def reach_mm(self) -> float:
        """Half edge of a cube that holds the tumour and its unhealthy margin."""
        return 1.75 * max(self.whole_mm, self.core.radius_mm) + 10

    def parameters(self) -> dict:
        """What was sampled, JSON-ready."""
        return {
            "centre_mm": self.core.centre_mm.tolist(),
            "core_mm": self.core.radius_mm,
            "whole_mm": self.whole_mm,
            "push_mm": self.push_mm,
            "kind": self.kind,
            "rim_mm": self.rim_mm,
        }

    def displace(self, points: Tensor, depth: Tensor) -> Tensor:
        """Where each point came from before the tumour grew: a radial, volume-making pull-back.

        r_source = cbrt(r³ − κ³·exp(−(r / 2.6 R)²)), faded out towards the brain's surface.
        """
        offset = points - _column(self.core.centre_mm)
        radius = offset.norm(dim=0)
        gain = self.push_mm**3 * torch.exp(-((radius / (2.6 * self.core.radius_mm)) ** 2))
        source = (radius**3 - gain).clamp(min=0) ** (1 / 3)
        shrink = 1 - source / radius.clamp(min=1e-3)
        return points - offset * shrink * (depth / DAMPING_MM).clamp(0, 1)  # (3, X, Y, Z)

    def labels(self, maps: Maps, grid: Grid) -> np.ndarray:
        """Draw NCR, ED and ET on the (deformed) anatomy."""
        shape = self.core.field(grid)
        radius = self.whole_mm
        # Oedema runs along white matter and stops at ventricles; it crosses by the callosum only.
        whole = shape + (radius - self.core.radius_mm) + 0.22 * radius * self.edge_noise.on(grid)
        whole += 0.35 * radius * (maps.white - 0.55)
        whole -= 0.8 * radius * (maps.csf - 0.05).clamp(min=0)
        other_side = torch.sigmoid(-math.copysign(1.0, self.core.centre_mm[0]) * maps.midline_mm)
        crossing = self.callosal_mm * (1 - maps.white) * other_side
        inside = (maps.brain > 0.5).numpy()
        core = ((shape - crossing > 0) & (maps.csf < 0.6)).numpy() & inside
        if not core.any():
            raise SynthError("a tumour fell between the voxels", hint="use a finer grid")
        core = largest_component(ndimage.binary_fill_holes(core))
        pieces, _ = ndimage.label(core | ((whole - crossing > 0).numpy() & inside))
        labels = np.zeros(grid.shape, np.uint8)
        labels[pieces == pieces[core][0]] = ED
        labels[core] = np.where(self._necrosis(core, grid)[core], NCR, ET)
        return labels  # (X, Y, Z)

    def _necrosis(self, core: np.ndarray, grid: Grid) -> np.ndarray:
        if self.kind == "non-enhancing":
            return (self.spot_noise.on(grid) < 1.2).numpy()
        if self.kind == "solid":
            return (self.spot_noise.on(grid) > 1.6).numpy()
        box = ndimage.find_objects(np.pad(core, 1).astype(np.uint8))[0]
        inner = tuple(slice(max(p.start - 2, 0), p.stop) for p in box)
        distance = np.asarray(ndimage.distance_transform_edt(np.pad(core[inner], 1)))
        below = (distance[1:-1, 1:-1, 1:-1] - 0.5) * grid.spacing_mm
        necrosis = np.zeros_like(core)
        rim = self.rim_mm * (1 + 0.4 * self.rim_noise.on(grid).numpy()[inner])
        necrosis[inner] = below > rim
        return necrosis


def healthy_mask(
    rng: np.random.Generator, brain: np.ndarray, unhealthy: np.ndarray, grid: Grid, whole_mm: float
) -> tuple[np.ndarray, dict]:
    """Place a hole in healthy tissue: mostly brain, away from the tumour, larger if that is small.

    A blob that breaks a rule shrinks by 4 % and tries another place. Returns mask and parameters.
    """
    radius = float(np.clip(17.0 * (22 / whole_mm) ** 0.5 * math.exp(rng.normal(0, 0.2)), 11, 20))
    spacing = grid.spacing_mm
    edge = unhealthy & ~ndimage.binary_erosion(unhealthy)
    tumour = KDTree(np.argwhere(edge) * spacing)
    candidates = np.argwhere(brain & ~unhealthy)
    for attempt in range(MOST_SHRINKS):
        scale = 0.96**attempt
        pair = candidates[rng.integers(0, len(candidates), 2)]
        distance, _ = tumour.query(pair * spacing)
        at = pair[distance.argmax()]
        if distance.max() < MIN_DISTANCE_MM + 0.7 * radius * scale:
            continue
        centre = np.array([float(axis[i]) for axis, i in zip(grid.axes, at, strict=True)])
        blob = Blob.draw(rng, centre, radius)
        window = grid.window(centre, 1.75 * radius * scale + spacing)
        hole = largest_component((blob.field(grid[window], scale) > 0).numpy())
        voxels = np.argwhere(hole) + [part.start for part in window]
        if unhealthy[tuple(voxels.T)].any() or _breaks_a_rule(voxels, brain, tumour, spacing):
            continue
        mask = np.zeros_like(brain)
        mask[tuple(voxels.T)] = True
        place = {"radius_mm": radius * scale, "attempts": attempt + 1}
        return mask, {**place, "centre_mm": centre.tolist()}
    raise SynthError(
        f"no healthy tissue for a hole of {radius * scale:.0f} mm after {MOST_SHRINKS} places",
        hint="the tumour leaves too little brain; use another seed",
    )


def _breaks_a_rule(
    voxels: np.ndarray, brain: np.ndarray, tumour: KDTree, spacing_mm: float
) -> bool:
    if not len(voxels) or brain[tuple(voxels.T)].mean() < MIN_IN_BRAIN:
        return True
    distance, _ = tumour.query(voxels * spacing_mm, distance_upper_bound=2 * MIN_DISTANCE_MM)
    return bool(distance.min() < MIN_DISTANCE_MM)


def _choose_place(
    rng: np.random.Generator, maps: Maps, depth: Tensor, grid: Grid, radius_mm: float
) -> np.ndarray:
    height = grid.axes[2] > -12
    for relief in (1.0, 0.7, 0.4):  # a large tumour may not fit in a small brain
        fits = (maps.white > 0.6) & (depth > relief * (0.55 * radius_mm + 6)) & height
        places = torch.nonzero(fits)
        if len(places):
            at = places[int(rng.integers(len(places)))]
            return np.array([float(axis[i]) for axis, i in zip(grid.axes, at, strict=True)])
    raise AssertionError("every brain has deep white matter")


def _column(vector: np.ndarray) -> Tensor:
    return torch.from_numpy(vector.astype(np.float32))[:, None, None, None]
