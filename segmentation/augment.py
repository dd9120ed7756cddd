"""Random augmentation of patches, from a given generator.

Rotation, scale and elastic bending are one field of coordinates and one interpolation, read from
the whole case: a turned crop has tissue in its corners, not air.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage

from synth.data.cache import bias_field, gamma

AIR = -1.0

ROTATION, SCALE, ELASTIC = 0.3, 0.3, 0.2  # chances; the first two rather above nnU-Net's 0.2
LARGEST_ANGLE = np.radians(30)
SCALES = (0.7, 1.4)
ROUNDING = 1e-5  # of coordinates in [-1, 1] in single precision, in voxels
KNOTS = 4  # of the elastic field along each axis
BEND = 1 / 32  # standard deviation of its displacements, as a share of the crop's edge

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def draw_warp(patch: Sequence[int], rng: np.random.Generator) -> np.ndarray | None:  # (3, x, y, z)
    """Draw where each voxel of a crop looks, in voxels from its centre; None: where it is."""
    chosen = rng.random(3) < (ROTATION, SCALE, ELASTIC)
    if not chosen.any():
        return None
    axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in patch]
    field = np.stack(np.meshgrid(*axes, indexing="ij"))
    matrix = np.eye(3)
    if chosen[0]:
        matrix = _rotation(rng.uniform(-LARGEST_ANGLE, LARGEST_ANGLE, 3))
    if chosen[1]:
        matrix = matrix * np.exp(rng.uniform(*np.log(SCALES)))
    field = np.tensordot(matrix.astype(np.float32), field, 1)
    if chosen[2]:
        knots = rng.normal(0, BEND, (1, 3, KNOTS, KNOTS, KNOTS)) * np.reshape(patch, (3, 1, 1, 1))
        coarse = torch.from_numpy(knots.astype(np.float32))
        bend = F.interpolate(coarse, tuple(patch), mode="trilinear", align_corners=True)
        field = field + bend[0].numpy()
    return field


def apply_warp(
    image: np.ndarray, regions: np.ndarray, centre: np.ndarray, field: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Read a case (4, X, Y, Z) and its regions where the field about `centre` points.

    Regions are read as shares and cut at a half, which keeps them nested.
    """
    at = field + centre.reshape(3, 1, 1, 1)  # (3, x, y, z) in voxels of the case
    last = np.array(image.shape[1:]) - 1
    low = np.clip(np.floor(at.min((1, 2, 3))).astype(int), 0, last - 1)
    high = np.clip(np.ceil(at.max((1, 2, 3))).astype(int), low + 1, last)
    box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    seen = np.concatenate([np.float32(image[:, *box]) - AIR, np.float32(regions[:, *box])])
    unit = (at - low.reshape(3, 1, 1, 1)) / (high - low).reshape(3, 1, 1, 1) * 2 - 1
    grid = torch.from_numpy(np.ascontiguousarray(unit[::-1].transpose(1, 2, 3, 0), np.float32))
    found = F.grid_sample(torch.from_numpy(seen)[None], grid[None], align_corners=True)[0].numpy()
    tissue = np.where(found < ROUNDING, 0, found)[: len(image)]  # air has to stay air to the bit
    return tissue + np.float32(AIR), found[len(image) :] > 0.5


def crop(
    data: np.ndarray, start: Sequence[int] | np.ndarray, shape: Sequence[int], fill: float
) -> np.ndarray:
    """Return the box of (C, X, Y, Z) data that begins at `start`; what is outside is `fill`."""
    result = np.full((len(data), *shape), fill, data.dtype)
    here, there = [], []
    for s, extent, n in zip((int(s) for s in start), shape, data.shape[1:], strict=True):
        a, b = max(s, 0), min(s + extent, n)
        there.append(slice(a, b))
        here.append(slice(a - s, b - s))
    result[:, *here] = data[:, *there]
    return result


def flip(
    image: np.ndarray, regions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror along each axis or not: prediction averages over the same eight views."""
    axes = tuple(int(a) + 1 for a in np.flatnonzero(rng.random(3) < 0.5))
    return np.flip(image, axes), np.flip(regions, axes)


def vary_intensities(image: np.ndarray, level: str, rng: np.random.Generator) -> np.ndarray:
    """Change the intensities of tissue (C, x, y, z); air stays air."""
    air = (image == AIR).all(0)
    image = np.ascontiguousarray(image)
    for chance, change in {"light": LIGHT, "full": FULL}[level]:
        if rng.random() < chance:
            image = change(image, rng)
    image = np.maximum(image, AIR, dtype=np.float32)
    image[:, air] = AIR
    return image


def _gain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (image - AIR) * _each(image, rng, 0.9, 1.1) + AIR


def _shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image + _each(image, rng, -0.05, 0.05)


def _contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image * _each(image, rng, 0.75, 1.25)  # 0 is the mean of the brain


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(image.shape, np.float32)
    return image + noise * _each(image, rng, 0, 0.1)


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = image.copy()
    for channel in np.flatnonzero(rng.random(len(image)) < 0.5):
        image[channel] = ndimage.gaussian_filter(image[channel], rng.uniform(0.5, 1.0))
    return image


def _low_resolution(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    share = rng.uniform(0.5, 1.0)
    fine = torch.from_numpy(image)[None]
    coarse = F.interpolate(fine, [max(int(n * share), 1) for n in image.shape[1:]], mode="area")
    return F.interpolate(coarse, image.shape[1:], mode="trilinear")[0].numpy()


def _each(
    image: np.ndarray, rng: np.random.Generator, low: float, high: float
) -> np.ndarray:  # (C, 1, 1, 1)
    return rng.uniform(low, high, (len(image), 1, 1, 1)).astype(np.float32)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation about the three axes in turn."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (a for a in range(3) if a != axis)
        single = np.eye(3)
        single[[i, j], [i, j]] = np.cos(angle)
        single[i, j], single[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ single
    return matrix


LIGHT: tuple[tuple[float, Change], ...] = ((1.0, _gain), (1.0, _shift))
FULL: tuple[tuple[float, Change], ...] = (
    (0.3, bias_field),
    (0.3, gamma),
    (0.2, _blur),
    (0.2, _low_resolution),
    (0.5, _gain),
    (0.15, _contrast),
    (0.5, _shift),
    (0.15, _noise),
)
"""Chance and change, in the order of acquisition: the coil, the contrast, the grid, the noise."""
