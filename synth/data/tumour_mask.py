"""The unhealthy part of a brain: the tumour and 5 mm around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from synth.data.case import Case
from synth.data.labels import region
from synth.data.volume import Volume

DILATION_MM = 5.0
MIN_COMPONENT_MM3 = 800.0


def tumour_mask(case: Case, image: Volume) -> np.ndarray:
    """Return what is not healthy: the given mask, or the whole tumour dilated by 5 mm."""
    if "unhealthy" in case.files:
        mask = case.load("unhealthy")
        image.require_same_grid(mask, ("image", "mask-unhealthy"))
        return mask.data[0]
    if "seg" not in case.files:
        return np.zeros(image.shape, bool)
    labels = case.load("seg")
    image.require_same_grid(labels, ("image", "seg"))
    return dilated_tumour(region(labels.data[0], case.scheme, "WT"), image.spacing_mm)


def dilated_tumour(tumour: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Fill holes, drop specks below 800 mm³, and dilate by 5 mm: the challenge's unhealthy mask."""
    voxel = float(np.prod(spacing_mm))
    labels, _ = ndimage.label(ndimage.binary_fill_holes(tumour), np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel()) * voxel
    keep = sizes >= MIN_COMPONENT_MM3
    keep[0] = False
    kept = keep[labels]
    if not kept.any():
        return kept
    return ndimage.distance_transform_edt(~kept, sampling=spacing_mm) < DILATION_MM
