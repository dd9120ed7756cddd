"""Boxes around the parts of a hole: what is painted together, cut out, tiled and put back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]


def regions(hole: np.ndarray, reach: int) -> list[np.ndarray]:
    """Split a hole into what is painted together: components, joined while they fit in `reach`."""
    labels, count = ndimage.label(hole, np.ones((3, 3, 3)))
    boxes = [
        (np.array([s.start for s in b]), np.array([s.stop for s in b]), [number])
        for number, b in enumerate(ndimage.find_objects(labels), start=1)
    ]
    assert len(boxes) == count
    merged: list[tuple[np.ndarray, np.ndarray, list[int]]] = []
    for low, high, numbers in boxes:
        for i, (a, b, members) in enumerate(merged):
            union = np.minimum(a, low), np.maximum(b, high)
            if (union[1] - union[0] <= reach).all():
                merged[i] = (*union, [*members, *numbers])
                break
        else:
            merged.append((low, high, numbers))
    return [np.isin(labels, members) for _, _, members in merged]


def box_around(region: np.ndarray, edge: int, divisor: int) -> Box:
    """Return a box of at least `edge` voxels about a region, larger if the region asks for it.

    It may stick out of the volume; `crop` pads.
    """
    (inner,) = ndimage.find_objects(region.astype(np.uint8))
    slices = []
    for s in inner:
        # A quarter of the edge is context; a region that leaves less gets a larger box.
        wanted = max(edge, s.stop - s.start + edge // 4)
        size = -(-wanted // divisor) * divisor
        start = (s.start + s.stop - size) // 2
        slices.append(slice(start, start + size))
    return tuple(slices)


def crop(data: np.ndarray, box: Box, fill: float) -> np.ndarray:
    """Cut a box out of (…, x, y, z), padding where it sticks out."""
    lead = data.shape[:-3]
    result = np.full((*lead, *[s.stop - s.start for s in box]), fill, data.dtype)
    inside, within = _overlap(box, data.shape[-3:])
    if all(i.stop > i.start for i in inside):
        result[(..., *within)] = data[(..., *inside)]
    return result


def add(total: np.ndarray, part: np.ndarray, box: Box) -> None:
    """Add a box's values to (C, x, y, z), leaving out what sticks out."""
    inside, within = _overlap(box, total.shape[1:])
    if all(i.stop > i.start for i in inside):
        total[(slice(None), *inside)] += part[(slice(None), *within)]


def tiles(box: Box, edge: int) -> Iterator[tuple[Box, np.ndarray]]:
    """Cover a box with half-overlapping cubes; their weights, tents, sum to one inside."""
    tent = np.minimum(np.arange(edge) + 0.5, edge - np.arange(edge) - 0.5) / (edge / 2)
    weight = (tent[:, None, None] * tent[:, None] * tent).astype(np.float32)
    starts = [range(s.start - edge // 2, s.stop, edge // 2) for s in box]
    for corner in itertools.product(*starts):
        yield tuple(slice(a, a + edge) for a in corner), weight


def _overlap(box: Box, shape: tuple[int, ...]) -> tuple[list[slice], list[slice]]:
    """Return the part of the volume below a box, and that part as the box counts it."""
    inside = [slice(max(s.start, 0), min(s.stop, n)) for s, n in zip(box, shape, strict=True)]
    within = [slice(i.start - s.start, i.stop - s.start) for i, s in zip(inside, box, strict=True)]
    return inside, within
