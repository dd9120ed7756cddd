"""Guides: what a template and the other hemisphere say of a hole, and the fills made of them.

A template (MNI152) and the brain's own mirror image are registered to what is known of the brain.
Near a hole, the template's tissue is fitted to the scan's intensities by least squares, so any
contrast will do; both guesses are then shifted smoothly so that they meet the hole's rim.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.fill import FACES, biharmonic, harmonic
from synth.data.heads import SPACING_MM, Anatomy, template
from synth.data.registration import register
from wdm3d.boxes import Box, crop

FILLS = ("template", "mirror", "biharmonic", "harmonic")
"""In the order the network is shown them; the first three make the base it starts from."""
MARGIN_MM = 26.0  # tissue around a hole that its fills are made from
REACH_MM = 10.0  # how fast the say of known tissue falls with its distance from the hole
TOLERANCE = 1e-3  # of the biharmonic solver: the network sees no difference, and half the time
LEAST_SEEN = 50  # voxels of tissue around a hole
LEAST_DICE = 0.85  # of a brain with the template; heads of all kinds have 0.93 and more
SOFT_MM = 2.0  # width of the passage from mirror image to template, where detail is borrowed
RING_MM = 15.0  # tissue around a hole that shows how alike the hemispheres are
ALIKE = (0.5, 0.7)  # R² of the ring where the mirror image begins to count, and its share at R² = 1
TISSUE_LEVEL = 0.8  # registration sees the median of known tissue here


@dataclass(frozen=True, kw_only=True, eq=False)
class Guides:
    """A brain with a hole, and its guides on the same grid; intensities from 0, air, to about 1."""

    known: np.ndarray
    """(C, x, y, z) float32, 0 in the hole."""
    hole: np.ndarray
    """(x, y, z) bool, all that is unknown."""
    template: np.ndarray
    """(4, x, y, z) float32: T1, grey, white, and how surely there is brain."""
    mirrored: np.ndarray
    """(C, x, y, z) float32, the other hemisphere."""
    mirror_known: np.ndarray
    """(x, y, z) bool, where that is known."""
    spacing_mm: float
    _solved: list[Any] = field(default_factory=list, init=False, repr=False)
    """The region that was filled last, and its fills."""

    def fills(self, region: np.ndarray, box: Box) -> dict[str, np.ndarray]:
        """Return each fill (C, …) of a region of the hole, cropped to a box, and the two shares.

        template_brain (1, …): how surely the template has brain; reflected (1, …): where the other
        hemisphere is known.
        """
        if not (self._solved and self._solved[0] is region):
            self._solved[:] = region, self._solve(region)  # once for all boxes of a region
        result = {name: crop(whole, box, 0) for name, whole in self._solved[1].items()}
        result["template_brain"] = crop(np.clip(self.template[3:], 0, 1), box, 0)
        result["reflected"] = crop(self.mirror_known[None].astype(np.float32), box, 0)
        return result

    def _solve(self, region: np.ndarray) -> dict[str, np.ndarray]:
        """Return the scan with each fill in a region of the hole."""
        around = _around(region, MARGIN_MM / self.spacing_mm)
        solved = [self._fill_channel(c, region[around], around) for c in range(len(self.known))]
        filled = {name: np.where(self.hole, np.float32(0), self.known) for name in FILLS}
        for name, whole in filled.items():
            whole[(slice(None), *around)] = np.stack([s[name] for s in solved])
        return filled

    def mirror_fill(self, region: np.ndarray) -> np.ndarray:
        """Return known with the other hemisphere in a region of the hole, bent to its rim."""
        box, share = _around(region, MARGIN_MM / self.spacing_mm), self._mirror_surely()
        filled = np.where(self.hole, np.float32(0), self.known)
        for c, channel in enumerate(filled):
            channel[box] = self._bent(c, region[box], box, share[box])["mirror"]
        return filled

    def _mirror_surely(self) -> np.ndarray:  # (x, y, z)
        """Return where the mirror image is known, 0 where that begins: no seam is borrowed."""
        known = self.mirror_known.astype(np.float32)
        return np.clip(2 * ndimage.gaussian_filter(known, SOFT_MM / self.spacing_mm) - 1, 0, 1)

    def mirror_share(self, region: np.ndarray) -> np.ndarray:  # (C, x, y, z)
        """Return how far the mirror image should replace a mean in a region of the hole.

        It counts where the hemispheres are alike around the region: real ones seldom are.
        """
        box = _around(region, MARGIN_MM / self.spacing_mm)
        distance = ndimage.distance_transform_edt(~region[box]) * self.spacing_mm
        ring = ~self.hole[box] & self.mirror_known[box] & (distance < RING_MM)
        ring &= self.known[(slice(None), *box)].any(axis=0)
        if ring.sum() < LEAST_SEEN:
            return np.zeros_like(self.known)
        weight = np.exp(-distance[ring] / REACH_MM)
        pairs = zip(self.known, self.mirrored, strict=True)
        explained = [_explained(k[box][ring], m[box][ring], weight) for k, m in pairs]
        low, top = ALIKE
        shares = top * np.clip((np.array(explained, np.float32) - low) / (1 - low), 0, 1)
        return shares.reshape(-1, 1, 1, 1) * self._mirror_surely()

    def _fill_channel(self, channel: int, region: np.ndarray, box: Box) -> Mapping[str, np.ndarray]:
        known = np.where(self.hole[box], np.float32(0), self.known[channel][box])
        return {
            **self._bent(channel, region, box, self.mirror_known[box].astype(np.float32)),
            "biharmonic": biharmonic(known, region, TOLERANCE),
            "harmonic": harmonic(known, region),
        }

    def _bent(
        self, channel: int, region: np.ndarray, box: Box, share: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return template and mirror image (template where it has no share), bent to the rim."""
        hole = self.hole[box]
        known = np.where(hole, np.float32(0), self.known[channel][box])
        fitted = self._fitted_template(known, region, box)
        reflected = share * self.mirrored[channel][box] + (1 - share) * fitted
        # Another hole beside this one says nothing of the rim.
        blind = ndimage.binary_dilation(hole & ~region, FACES)
        return {
            "template": to_rim(fitted, known, region, blind),
            "mirror": to_rim(reflected, known, region, blind),
        }

    def _fitted_template(self, known: np.ndarray, region: np.ndarray, box: Box) -> np.ndarray:
        """Return the template in the scan's intensities, fitted around the region."""
        template = self.template[(slice(None), *box)]
        features = np.stack([*template, np.ones_like(known)], axis=-1)
        distance = ndimage.distance_transform_edt(~region) * self.spacing_mm
        inside = (known > 0) | (template[3] > 0.5)
        seen = ~self.hole[box] & (distance < MARGIN_MM - 1) & inside
        if seen.sum() < LEAST_SEEN:
            raise SynthError(
                f"only {seen.sum()} voxels of tissue are known within {MARGIN_MM:g} mm of a hole",
                hint="is the mask larger than the lesion, or the brain cut off beside it?",
            )
        weight = np.exp(-distance[seen] / REACH_MM)
        weighted = features[seen] * weight[:, None]
        ridge = 1e-5 * len(weight) * np.square(weight).mean() * np.eye(features.shape[-1])
        normal = weighted.T @ weighted + ridge
        found = np.linalg.solve(normal, weighted.T @ (known[seen] * weight))
        return np.maximum(features @ found, 0).astype(np.float32)


def _explained(truth: np.ndarray, guess: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted R² of a guess that may be wrong by a constant."""
    error = truth - guess
    parts = [
        np.average((v - np.average(v, weights=weight)) ** 2, weights=weight) for v in (error, truth)
    ]
    return float(1 - parts[0] / parts[1]) if parts[1] else 0.0


def guides_of(image: np.ndarray, hole: np.ndarray, spacing_mm: float) -> Guides:
    """Register the template and the mirror image to the known part of a brain.

    Args:
        image: (C, x, y, z) from 0, air, to about 1; RAS, the brain about the middle.
        hole: (x, y, z) bool; the image is not read there.
        spacing_mm: edge of a voxel.
    """
    known = np.where(hole, np.float32(0), image).astype(np.float32)
    level = np.array([np.median(c[c > 0]) if (c > 0).any() else 1 for c in known])
    scaled = known * (TISSUE_LEVEL / level).reshape(-1, 1, 1, 1).astype(np.float32)
    anatomy = _template_at(spacing_mm)
    channels = np.stack([anatomy.t1, anatomy.tissue[1], anatomy.tissue[2], anatomy.tissue.sum(0)])
    channels = centred(channels, hole.shape)
    found = register(scaled, channels[:1], ~hole, spacing_mm=spacing_mm)
    template = found.look_up(channels)
    _require_brain(known.any(axis=0) & ~hole, (template[3] > 0.5) & ~hole)
    mirror = register(scaled, scaled[:, ::-1], ~hole, spacing_mm=spacing_mm)
    share = mirror.look_up((~hole[None, ::-1]).astype(np.float32))[0]
    return Guides(
        known=known,
        hole=hole,
        template=template,
        mirrored=mirror.look_up(known[:, ::-1]),
        mirror_known=share > 0.99,
        spacing_mm=spacing_mm,
    )


def _require_brain(known: np.ndarray, template: np.ndarray) -> None:
    """Refuse what does not have the shape of a brain, by the Dice of both."""
    alike = 2 * (known & template).sum() / max(known.sum() + template.sum(), 1)
    if alike < LEAST_DICE:
        raise SynthError(
            f"the scan does not have the shape of a brain: its Dice with MNI152 is {alike:.2f}",
            hint="is it a head, skull-stripped or with --brain MASK, and is its header right?",
        )


def to_rim(
    guess: np.ndarray, known: np.ndarray, region: np.ndarray, blind: np.ndarray
) -> np.ndarray:
    """Return known with the guess in the region, shifted harmonically so that it meets the rim.

    Args:
        guess: (x, y, z).
        known: (x, y, z).
        region: (x, y, z) bool.
        blind: (x, y, z) bool, rim voxels that say nothing.
    """
    rim = ndimage.binary_dilation(region, FACES) & ~region
    if not (rim & ~blind).any():
        return np.where(region, guess, known)
    offset = np.where(rim & ~blind, known - guess, 0).astype(np.float32)
    return np.where(region, guess + harmonic(offset, region | (rim & blind)), known)


def centred(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return (C, …) data in the middle of another shape, cut or padded with 0."""
    starts = [(n - m) // 2 for n, m in zip(data.shape[1:], shape, strict=True)]
    box = tuple(slice(a, a + m) for a, m in zip(starts, shape, strict=True))
    return crop(data, box, 0)


@functools.cache
def _template_at(spacing_mm: float) -> Anatomy:
    """Return nilearn's MNI152, cropped to its brain, at a spacing."""
    whole = template()
    (box,) = ndimage.find_objects((whole.t1 > 0).astype(np.uint8))
    t1, tissue = whole.t1[box], whole.tissue[(slice(None), *box)]
    if spacing_mm != SPACING_MM:
        zoom = SPACING_MM / spacing_mm
        t1 = ndimage.zoom(t1, zoom, order=1)
        tissue = np.stack([ndimage.zoom(share, zoom, order=1) for share in tissue])
    return Anatomy(name=whole.name, t1=t1, tissue=tissue)


def _around(region: np.ndarray, margin: float) -> Box:
    (inner,) = ndimage.find_objects(region.astype(np.uint8))
    wide = int(np.ceil(margin))
    return tuple(
        slice(max(s.start - wide, 0), min(s.stop + wide, n))
        for s, n in zip(inner, region.shape, strict=True)
    )
