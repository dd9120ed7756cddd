"""Holes and air: what must not be read of a scan, and what stands where no brain can be.

A mask may reach past the brain. What is painted there must be exactly the scan's background, and a
scan whose background lies amid the brain's intensities (z-scored ones) must look to the network
like any other, whose background is darker than all tissue.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from synth.data.fill import reflect
from synth.data.prepare import HIGH_PERCENTILE, background_of, brain_mask
from synth.data.volume import Volume

AIR = -0.85  # painted values below this are background: the darkest CSF is well above it
MARGIN_MM = 6.0
GAP = 0.2  # darkest tissue above background, as a share of tissue's range: CSF in a T1 scan


def emptied(image: Volume, hole: np.ndarray) -> Volume:
    """Return the scan with each voxel of a hole replaced by the nearest known one.

    So nothing can leak out of the hole, not even through interpolation, and a voided scan is no
    different from the whole one.
    """
    (inner,) = ndimage.find_objects(hole.astype(np.uint8))
    box = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in inner)
    if hole[box].all():
        box = (slice(None),) * 3
    nearest = ndimage.distance_transform_edt(
        hole[box], sampling=image.spacing_mm, return_distances=False, return_indices=True
    )
    data = image.data.copy()
    for channel in data:
        channel[box] = channel[box][tuple(nearest)]
    return image.with_data(data)


def grounded(image: Volume, known: np.ndarray) -> Volume:
    """Return the scan with a background that is darker than its tissue; most scans have it so.

    Args:
        image: (C, X, Y, Z).
        known: (X, Y, Z) bool, voxels that may inform the choice.
    """
    brain = brain_mask(image)
    channels = []
    for channel in image.data:
        background = background_of(channel)
        values = channel[known & brain & (channel != background)]
        if values.size:
            share = (100 - HIGH_PERCENTILE, HIGH_PERCENTILE)
            low, high = np.percentile(values, share)
            if low < background:
                channel = np.where(brain, channel, np.float32(low - GAP * (high - low)))
        channels.append(channel)
    return image.with_data(np.stack(channels))


def beyond(brain: np.ndarray, hole: np.ndarray, axis_sum: int, spacing_mm: float) -> np.ndarray:
    """Return what of a hole lies outside the convex hull of the brain and its mirror image.

    Args:
        brain: (x, y, z) bool, what is known to be brain.
        hole: (x, y, z) bool.
        axis_sum: x → axis_sum − x maps the hemispheres onto each other.
        spacing_mm: edge of a voxel.
    """
    brain = brain | reflect(brain, axis_sum, fill=False)
    corners = _ends_of_columns(brain)
    hull = ConvexHull(corners, qhull_options="QJ")  # QJ: brains of one slice have a hull, too
    limit = 1 + MARGIN_MM / spacing_mm
    result = np.zeros(hole.shape, bool)
    # Between two brain voxels of a row is inside the hull: that spares most of the arithmetic.
    left, right = np.maximum.accumulate(brain), np.maximum.accumulate(brain[::-1])[::-1]
    places = np.argwhere(hole & ~(left & right))
    for some in np.array_split(places, 1 + len(places) // 20_000):
        distance = (some @ hull.equations[:, :3].T + hull.equations[:, 3]).max(axis=1)
        result[tuple(some[distance > limit].T)] = True
    return result


def _ends_of_columns(brain: np.ndarray) -> np.ndarray:
    """Return (n, 3) first and last brain voxels along z: all that a hull depends on."""
    x, y = np.nonzero(brain.any(axis=2))
    columns = brain[x, y]
    last = brain.shape[2] - 1 - columns[:, ::-1].argmax(axis=1)
    return np.concatenate(
        [np.stack([x, y, z], axis=1) for z in (columns.argmax(axis=1), last)]
    ).astype(float)
