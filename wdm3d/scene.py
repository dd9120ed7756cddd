"""A prepared brain with a hole, and the box around the hole that the network sees.

`Scene` is what both training and inference know of a case; `view` turns one region of its hole into
arrays. There is one such function, so that a network meets in use what it met in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from synth.data.cache import Arrays
from synth.data.fill import harmonic, mirror_rim_fill, reflect
from wdm3d.boxes import Box, crop
from wdm3d.config import Config
from wdm3d.guides import FILLS, Guides

BACKGROUND = -1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A brain in the model's frame; whatever is unknown has been removed."""

    image: np.ndarray
    """(C, x, y, z) float32 in about [-1, 1]; the hole's values are never read."""
    hole: np.ndarray
    """(x, y, z) bool, all that is unknown."""
    axis_sum: int
    """x → axis_sum − x maps the hemispheres onto each other."""
    centre: np.ndarray
    """(3,) middle of the brain's bounding box, in voxels."""
    reach: np.ndarray
    """(3,) half of the box's edges."""
    guides: Guides | None = None
    """What a template and the mirror image say (guided mode)."""
    _solved: list[Any] = field(default_factory=list, init=False, repr=False)
    """The region that was filled last, and its fills (context mode)."""

    def fills(self, region: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return each fill (3C, x, y, z) of a region: solved once for all its boxes."""
        if not (self._solved and self._solved[0] is region):
            fills = [_fills(channel, self, region) for channel in known]
            together = np.concatenate([np.stack(kind) for kind in zip(*fills, strict=True)])
            self._solved[:] = region, together.astype(np.float32)
        return self._solved[1]


def brain_frame(brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (centre, half edges) of the brain's bounding box: the origin of our coordinates."""
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    low = np.array([s.start for s in box], float)
    high = np.array([s.stop - 1 for s in box], float)
    return (low + high) / 2, np.maximum((high - low) / 2, 1)


def view(scene: Scene, region: np.ndarray, box: Box, config: Config) -> Arrays:
    """Return what is known about a region of the hole, cropped to the box.

    known (C, …) has background in the hole; roi and hole are (1, …); in context mode `fills` is
    (3C, …): rim-corrected mirror, harmonic, mirror image; `reflected` (1, …) says where the other
    hemisphere is known, and `places` (3, …/2^L) are brain coordinates of the wavelet grid. In
    guided mode `fills` is (4C, …), in the order of `guides.FILLS`, beside the guides' two shares.
    """
    known = np.where(scene.hole, np.float32(BACKGROUND), scene.image)
    arrays = {
        "known": crop(known, box, BACKGROUND),
        "roi": crop(region[None].astype(np.float32), box, 0),
        "hole": crop(scene.hole[None].astype(np.float32), box, 0),
    }
    if config.mode == "guided":
        assert scene.guides is not None, "guided mode wants guides"
        found = scene.guides.fills(region, box)
        arrays["fills"] = np.concatenate([2 * found.pop(name) - 1 for name in FILLS])
        arrays |= found
    if config.mode == "context":
        arrays["fills"] = crop(scene.fills(region, known), box, BACKGROUND)
        seen = reflect(~scene.hole, scene.axis_sum, fill=False)
        arrays["reflected"] = crop(seen[None].astype(np.float32), box, 0)
        arrays["places"] = _places(scene, box, 2**config.wavelet_levels)
    return arrays


def contrast(arrays: Arrays, index: int) -> Arrays:
    """Return the view of one of several contrasts (guided mode), for a model that paints one."""
    count = len(arrays["known"])
    fills = arrays["fills"].reshape(len(FILLS), count, *arrays["fills"].shape[1:])
    return arrays | {"known": arrays["known"][index : index + 1], "fills": fills[:, index]}


def _fills(
    known: np.ndarray, scene: Scene, region: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill the region of one contrast; holes elsewhere stay empty, as they are to the network."""
    bent = mirror_rim_fill(known, region, scene.hole, scene.axis_sum)
    return bent, harmonic(known, region), reflect(known, scene.axis_sum, BACKGROUND)


def _places(scene: Scene, box: Box, step: int) -> np.ndarray:
    """Coordinates of the wavelet grid's voxels, which lie between `step` voxels of the image."""
    axes = [
        (np.arange(s.start, s.stop, step) + (step - 1) / 2 - c) / r
        for s, c, r in zip(box, scene.centre, scene.reach, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
