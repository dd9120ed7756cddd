"""A page of tumour shapes as shaded bodies, cut open.

Every body of a page has the same scale, so that sizes can be compared by eye.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from synth.metrics.shape import regions_of
from synth.pictures.montage import draw_montage
from synth.pictures.slices import BACKGROUND, LABEL_COLOURS, parse_colour

SIDE = 176
"""Pixels of a picture, and voxels of the grid it is looked up on."""
SMOOTHING_VOXELS = 0.6
YAW, PITCH = np.radians(35), np.radians(28)
RIGHT = np.array([np.cos(YAW), np.sin(YAW), 0])
AWAY = np.array([-np.sin(YAW) * np.cos(PITCH), np.cos(YAW) * np.cos(PITCH), -np.sin(PITCH)])
VIEW = np.stack([np.cross(AWAY, RIGHT), RIGHT, AWAY], axis=1)
"""Body directions (rows x, y, z) of the viewer's down, right and away (columns)."""
LIGHT = np.array([-0.45, 0.55, 0.7]) / np.linalg.norm([-0.45, 0.55, 0.7])
"""Towards the light: from the viewer's left, above and before the body."""
AMBIENT, DIFFUSE, GLOSS = 0.34, 0.62, 0.16
BACK = parse_colour(BACKGROUND) / 255


def draw_tumours(
    sets: Mapping[str, Sequence[tuple[np.ndarray, float]]], path: Path, *, columns: int = 8
) -> Path:
    """Draw sets of (labels, spacing in mm), one below the other; see `render_tumour`."""
    largest = max(_measure_width_mm(labels, mm) for masks in sets.values() for labels, mm in masks)
    rows, names = [], []
    for name, masks in sets.items():
        drawn = [render_tumour(labels, mm, largest) for labels, mm in masks]
        rows += [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
        names += [name] * (len(rows) - len(names))
    return draw_montage(
        rows, path, row_labels=names, window=(0, 1),
        title=f"NCR red, ED green, ET yellow; panels are {largest:.0f} mm wide",
    )  # fmt: skip


def render_tumour(
    labels: np.ndarray, spacing_mm: float, side_mm: float
) -> np.ndarray:  # (X, Y, Z) → (SIDE, SIDE, 3)
    """Picture one tumour from outside, the wedge towards the viewer cut away.

    Rays run along the third axis of a turned grid. Where a ray enters WT, the surface is shaded by
    the gradient of the smoothed mask; where it enters through the cut, by the cut's own plane, and
    coloured by the region there.
    """
    pixels = min(SIDE, math.ceil(SIDE * _measure_width_mm(labels, spacing_mm) / side_mm))
    fields, cut = _turn_fields(labels, side_mm / SIDE / spacing_mm, pixels)
    wt, tc, et = fields
    body = (wt > 0) & (cut < 0)
    hit = body.any(axis=2)
    depth = np.where(hit, body.argmax(axis=2), 0)
    at = (*np.indices(hit.shape), depth)
    # One voxel before the first of the body: still inside WT means that the ray came by the cut.
    before = (*at[:2], np.maximum(depth - 1, 0))
    through_cut = wt[before] > 0
    normals = np.where(through_cut[..., None], _find_normals(-cut, at), _find_normals(wt, at))
    behind = (*at[:2], np.minimum(depth + 1, pixels - 1))  # at the surface itself fields are zero
    label = np.where(et[behind] > 0, 3, np.where(tc[behind] > 0, 1, 2))
    palette = np.array([parse_colour(LABEL_COLOURS.get(k, BACKGROUND)) / 255 for k in range(4)])
    shade = (AMBIENT + DIFFUSE * np.clip(normals @ LIGHT, 0, 1)) * _find_openness(depth, hit)
    # Normals half way between the light and the viewer shine (Blinn 1977).
    half_way = LIGHT + np.array([0, 0, 1])
    gloss = np.clip(normals @ (half_way / np.linalg.norm(half_way)), 0, 1) ** 24 * ~through_cut
    image = np.tile(BACK, (SIDE, SIDE, 1))
    start = (SIDE - pixels) // 2
    own = image[start : start + pixels, start : start + pixels]
    own[hit] = (palette[label] * shade[..., None] + GLOSS * gloss[..., None])[hit]
    return np.clip(ndimage.gaussian_filter(image, (0.5, 0.5, 0)), 0, 1)


def _measure_width_mm(labels: np.ndarray, spacing_mm: float) -> float:
    """Diameter of the ball around the centroid that holds the tumour, whichever way it turns."""
    places = np.argwhere(regions_of(labels)[0])
    reach = np.linalg.norm(places - places.mean(axis=0), axis=1).max()
    return 2 * float(reach + 2) * spacing_mm


def _turn_fields(labels: np.ndarray, step: float, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the smoothed regions on the viewer's grid: fields above zero inside, and the cut's.

    Grid axes are up to down, left to right, near to far; a pixel is `step` voxels wide.
    """
    regions = np.pad(regions_of(labels), [(0, 0)] + [(3, 3)] * 3).astype(np.float32)
    centre = np.argwhere(regions[0] > 0).mean(axis=0)
    turn = VIEW * step  # columns: body axes of one step down, right, away
    offset = centre - turn @ np.full(3, (pixels - 1) / 2)
    grid = (pixels, pixels, pixels)
    fields = np.empty((3, *grid), np.float32)
    for field, region in zip(fields, regions, strict=True):
        smooth = ndimage.gaussian_filter(region, SMOOTHING_VOXELS)
        # A thin rim must not melt away: the level is where the smoothed mask keeps its volume.
        level = np.sort(smooth, axis=None)[-int(region.sum()) - 1] if region.any() else 1
        ndimage.affine_transform(smooth - level, turn, offset, output=field, order=1, cval=-1)
    places = np.indices(grid, np.float32).reshape(3, -1) - (pixels - 1) / 2
    along = (VIEW @ places).reshape(3, *grid)
    # The octant towards the viewer: all three body axes on the near side.
    cut = np.minimum.reduce([np.sign(-VIEW[axis, 2]) * along[axis] for axis in range(3)])
    return fields, cut


def _find_normals(
    field: np.ndarray, at: tuple[np.ndarray, ...]
) -> np.ndarray:  # (pixels, pixels, 3)
    """Outward unit normals (right, up, towards the viewer) of a field that is positive inside."""
    parts = []
    for axis, index in enumerate(at):
        ahead, behind = list(at), list(at)
        ahead[axis] = np.minimum(index + 2, len(field) - 1)
        behind[axis] = np.maximum(index - 2, 0)
        parts.append(field[tuple(ahead)] - field[tuple(behind)])
    down, right, away = parts
    normal = np.stack([-right, down, away], axis=-1)
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)


def _find_openness(depth: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Darken what lies deeper than its surroundings, as corners are in daylight."""
    weight = ndimage.gaussian_filter(hit.astype(float), 6)
    around = ndimage.gaussian_filter(depth * hit.astype(float), 6) / np.maximum(weight, 1e-6)
    return np.clip(1 - 2.5 * (depth - around) / SIDE, 0.6, 1.05)
