"""Rotates a shape onto a grid of any spacing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from label_gan.shape import Shape, signed_distance
from synth.data.labels import ED, ET, NCR

FAR = 1e3  # voxels; stands for the surface of a region that is not there


def turned(shape: Shape, spacing_mm: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Return the labels, mirrored half of the time and rotated at random, cropped to their box.

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
        distance = np.minimum(signed_distance(mask), FAR)
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
