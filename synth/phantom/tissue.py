"""Where cerebrospinal fluid, grey and white matter lie: read from scans, or drawn.

Tissue is (3, X, Y, Z) float32, shares of CSF, grey and white that sum to 1 in the brain outside
the tumour and are 0 elsewhere; axes to the right, anterior and superior. Brains are not registered:
the box around each is stretched to that of the MNI152 maps, which is all that a beginning needs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage
from torch import Tensor

from synth.phantom.anatomy import Grid, Person, brain_template
from synth.phantom.mass_effect import trace_tissue

TISSUES = 3  # CSF, grey, white
BRAIN = 4  # of a class map: brain outside the tumour
ROUNDS = 12  # of expectation and maximisation; more move nothing by 0.01
TRUST = 0.5  # in the maps, as the power of their shares: the brain is not registered to them
DOUBT = 0.05  # added to every share of the maps
FLAT_MM = 25.0  # brightness that drifts over such lengths is the coil's
NARROW = 1e-3  # variance that is added to that of every tissue, the brain's being 1
COARSE_MM = 4.0  # of the grid on which the box of a drawn brain is found
CLEAR = 2.0  # power of drawn shares: scans show tissue less mixed than maps of many brains
READ_AS = 2.2, 0.8, 1.1  # factors of drawn shares, for the amounts that are read from scans
RAYS = 48, 96  # from pole to pole, and around
LONGEST_MM = 130.0  # of them
PUSHED = 0.06, 0.5  # share of the volume of a tumour's core that tissue makes room for


def tissue_of(image: np.ndarray, classes: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Read the tissue of a brain from its scans: a Gaussian for each, begun at the MNI152 maps.

    Args:
        image: (C, X, Y, Z), the contrasts at hand, whatever they are.
        classes: (X, Y, Z), where the brain is.
        spacing_mm: voxel size.

    (Ashburner and Friston 2005, "Unified segmentation", without the registration.)
    """
    brain = classes == BRAIN
    tissue = np.zeros((TISSUES, *classes.shape), np.float32)
    if not brain.any():
        return tissue
    prior = (_maps_in(classes > 0)[:, brain].astype(np.float64) + DOUBT) ** TRUST  # (3, N)
    prior /= prior.sum(0)
    values = image[:, brain].astype(np.float64)
    values -= values.mean(1, keepdims=True)
    values /= values.std(1, keepdims=True) + 1e-6
    drift, share = np.zeros_like(values), prior
    for number in range(ROUNDS):
        flat = values - drift  # (C, N)
        count = share.sum(1)  # (3,)
        means = flat @ share.T / count  # (C, 3)
        share = prior * _likelihood(flat, share, means)
        share /= share.sum(0)
        if number >= ROUNDS // 3:
            drift = _smooth(values - means @ share, brain, FLAT_MM / spacing_mm)
    tissue[:, brain] = share
    return tissue


def _likelihood(values: np.ndarray, share: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the Gaussian density of values (C, N) under each tissue, up to a factor → (3, N)."""
    found = []
    for own, mean in zip(share, means.T, strict=True):
        offset = values - mean[:, None]
        covariance = (own * offset) @ offset.T / own.sum() + NARROW * np.eye(len(values))
        inverse = np.linalg.inv(covariance)
        distance = np.einsum("cn,cn->n", offset, inverse @ offset)
        found.append(-0.5 * (distance + np.log(np.linalg.det(covariance))))
    logs = np.stack(found)
    return np.exp(logs - logs.max(0)) + 1e-9


def _smooth(values: np.ndarray, brain: np.ndarray, width: float) -> np.ndarray:
    weight = ndimage.gaussian_filter(brain.astype(np.float32), width)[brain]
    smooth = []
    for row in values:
        volume = np.zeros(brain.shape, np.float32)
        volume[brain] = row
        smooth.append(ndimage.gaussian_filter(volume, width)[brain] / weight)
    return np.stack(smooth)


def draw_tissue(classes: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the tissue of a new person whose brain fills that of a class map.

    It is an individual of the made-up heads (`synth phantom`), with folds of its own, stretched
    along every ray from the middle, and makes room for the tumour.
    """
    person = Person.draw(rng, spacing_mm)
    where = before_tumour(classes, spacing_mm, rng.uniform(*PUSHED))  # (3, X, Y, Z) voxels
    grid = _grid_of(person, classes > 0)
    steps = torch.tensor([float(axis[1] - axis[0]) for axis in grid.axes]).view(3, 1, 1, 1)
    moved = torch.from_numpy(where - np.indices(classes.shape, np.float32))
    points = grid.points() + moved * steps
    theirs = (person.maps(grid).brain > 0.5).numpy()
    points = points * torch.from_numpy(_stretch(classes > 0, theirs, grid, points))
    shares = person.tissue(person.maps(grid, points), grid)
    shares = clearer(shares * torch.tensor(READ_AS).view(3, 1, 1, 1), CLEAR)
    return shares.numpy() * (classes == BRAIN)


def _stretch(head: np.ndarray, theirs: np.ndarray, grid: Grid, points: Tensor) -> np.ndarray:
    """Return by how much each point is moved out for the surface of a head to show another's."""
    ratio = _radii(theirs, grid) / _radii(head, grid)
    ratio = ndimage.gaussian_filter(ratio, RAYS[0] / 24, mode=("nearest", "wrap"))
    polar, around = _angles(points.numpy())
    where = polar / np.pi * (RAYS[0] - 1), around / (2 * np.pi) * RAYS[1]
    return ndimage.map_coordinates(ratio, where, order=1, mode="grid-wrap").astype(np.float32)


def _radii(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Return how far a mask reaches from the middle along rays, in mm, (polar, around)."""
    polar, around = np.meshgrid(
        np.linspace(0, np.pi, RAYS[0]), np.arange(RAYS[1]) * 2 * np.pi / RAYS[1], indexing="ij"
    )
    ray = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)])
    radius = np.arange(0, LONGEST_MM, 1.0)
    where = []
    for part, axis in zip(ray, grid.axes, strict=True):
        step = float(axis[1] - axis[0])
        where.append((part[..., None] * radius - float(axis[0])) / step)  # (P, A, R)
    inside = ndimage.map_coordinates(mask.astype(np.float32), where, order=1) > 0.5
    return radius[len(radius) - 1 - inside[..., ::-1].argmax(-1)].clip(min=1.0)


def _angles(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = points
    return np.arctan2(np.hypot(x, y), z), np.arctan2(y, x) % (2 * np.pi)


def clearer(tissue: Tensor, power: float) -> Tensor:
    """Raise shares (3, X, Y, Z) to a power: above 1, each voxel is more of one tissue."""
    raised = tissue**power
    return raised / raised.sum(0).clamp(min=1e-6)


def before_tumour(classes: np.ndarray, spacing_mm: float, new: float) -> np.ndarray:
    """Return where the tissue of each voxel was before the tumour's core grew, in voxels.

    `new` is the share of the core's volume that tissue makes room for; a tumour without a core
    pushes as a whole.
    """
    core = np.isin(classes, (1, 3))
    core = core if core.any() else (classes > 0) & (classes != BRAIN)
    if not core.any():
        return np.indices(classes.shape, np.float32)
    return trace_tissue(core, classes > 0, (spacing_mm,) * 3, new=new)


def _maps_in(head: np.ndarray) -> np.ndarray:  # → (3, X, Y, Z)
    """Return CSF, grey and white of the MNI152 maps, stretched to the box of a head."""
    maps, _ = brain_template(coarse=True)
    brain, grey, white, _ = maps
    tissue = torch.stack([brain - grey - white, grey, white]).clamp(0, 1)
    low, high = _box(head)
    first, last = _box((brain > 0.5).numpy())
    lines = []
    for n, a, b, start, end, size in zip(
        head.shape, low, high, first, last, brain.shape, strict=True
    ):
        place = start + (torch.arange(n) - a) / max(b - a, 1) * (end - start)  # voxels of the maps
        lines.append(place / (size - 1) * 2 - 1)
    where = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flip(-1)
    return _read(tissue, where).numpy()


def _read(volume: Tensor, where: Tensor) -> Tensor:
    return F.grid_sample(
        volume[None], where[None].float(), padding_mode="border", align_corners=True
    )[0]


def _grid_of(person: Person, head: np.ndarray) -> Grid:
    """Return the points of a person's head that the voxels of another's box are to show."""
    half = (80.0, 100.0, 90.0)
    coarse = Grid(tuple(torch.arange(-h, h + COARSE_MM, COARSE_MM) for h in half))  # ty: ignore
    first, last = _box((person.maps(coarse).brain > 0.5).numpy())
    low, high = _box(head)
    axes = []
    for n, a, b, start, end, line in zip(
        head.shape, low, high, first, last, coarse.axes, strict=True
    ):
        step = float(line[end] - line[start]) / max(b - a, 1)
        axes.append(float(line[start]) + (torch.arange(n) - a) * step)
    x, y, z = axes
    return Grid((x, y, z))


def _box(mask: np.ndarray) -> tuple[list[int], list[int]]:
    """First and last voxel of a mask along each axis; all of the grid if it is empty."""
    low, high = [], []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low.append(int(there[0]) if len(there) else 0)
        high.append(int(there[-1]) if len(there) else mask.shape[axis] - 1)
    return low, high
