"""Where tumours of a cohort lie: a heat map in the brain's box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case
from synth.data.labels import region
from synth.data.placement import ANY_NEIGHBOUR
from synth.data.prepare import brain_mask
from synth.data.tumour_mask import MIN_COMPONENT_MM3

GRID = 16
SMOOTHING = 1.5  # cells; with a hundred tumours no cell is left empty by chance
ANYWHERE = 0.05
"""Share of the weight that is alike everywhere: no place is impossible for never having been."""


def heat_map(cases: Sequence[Case]) -> np.ndarray:
    """Count the centres of tumours in the boxes of their brains, both sides alike, smoothed.

    Cases without a tumour, and those that cannot be read, say nothing.

    Returns:
        (16, 16, 16), right-anterior-superior, of mean 1.
    """
    counts = np.zeros((GRID,) * 3)
    for case in cases:
        for centre in _centres(case):
            cell = np.clip(((centre + 1) / 2 * GRID).astype(int), 0, GRID - 1)
            counts[tuple(cell)] += 1
    if not counts.any():
        raise SynthError(
            f"no tumour to learn a place from in {len(cases)} cases",
            hint="leave out --prior, or give a cohort with segmentations",
        )
    smooth = ndimage.gaussian_filter(counts + counts[::-1], SMOOTHING, mode="constant")
    return (1 - ANYWHERE) * smooth / smooth.mean() + ANYWHERE


def weights(heat: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the heat at each voxel of a brain, 0 outside: (X, Y, Z)."""
    places = _in_box(np.argwhere(brain), brain, affine)
    cells = ((places + 1) / 2 * GRID - 0.5).T
    result = np.zeros(brain.shape)
    result[brain] = ndimage.map_coordinates(heat, cells, order=1, mode="nearest")
    return result


def _centres(case: Case) -> list[np.ndarray]:
    role = next((m for m in MODALITIES if m in case.files), None)
    if role is None or "seg" not in case.files:
        return []
    try:
        image, labels = case.load(role), case.load("seg")
        image.require_same_grid(labels, (role, "seg"))
        brain = brain_mask(image)
    except SynthError:  # told when the case's own turn comes
        return []
    parts, count = ndimage.label(region(labels.data[0], case.scheme, "WT"), ANY_NEIGHBOUR)
    sizes = np.bincount(parts.ravel())[1:] * labels.voxel_ml * 1000
    large = [n for n in range(1, count + 1) if sizes[n - 1] >= MIN_COMPONENT_MM3]
    middles = np.array(ndimage.center_of_mass(parts > 0, parts, large)).reshape(-1, 3)
    return list(_in_box(middles, brain, image.affine))


def _in_box(voxels: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return places as -1 … 1 across the brain's box in world axes."""
    inside = np.argwhere(brain) @ affine[:3, :3].T
    low, high = inside.min(0), inside.max(0)
    return 2 * (voxels @ affine[:3, :3].T - low) / np.maximum(high - low, 1e-6) - 1  # (N, 3)
