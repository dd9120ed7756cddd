"""Invertible preprocessing: orient → brain box → resample → scale, and the way back.

    prepared = prepare(image, known=~mask)
    prepared.data                                    # (C, x, y, z) in about [-1, 1], background -1
    prepared.undo(prepared.data)                     # the image, bit for bit
    prepared.undo(painted, touched=mask)             # new values inside the mask only

Training and inference call the same function, and intensities are fitted on *known* brain voxels
only, so a hole changes nothing about what the network sees around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel import orientations
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.volume import Volume

HIGH_PERCENTILE = 99.5
SAME_SPACING = 0.05
RAS = orientations.axcodes2ornt(("R", "A", "S"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """How a native grid maps onto the model's box."""

    native_shape: tuple[int, int, int]
    orientation: np.ndarray
    """nibabel orientation of the native axes, which is also the transform native → RAS."""
    start: tuple[int, int, int]
    """First voxel of the box on the RAS grid; negative where the box sticks out."""
    extent: tuple[int, int, int]
    """Size of the box on the RAS grid, before resampling."""
    shape: tuple[int, int, int]
    """Size of the model's grid."""
    ratio: tuple[float, float, float]
    """Model spacing / native spacing per RAS axis; 1 where the grid is kept."""
    affine: np.ndarray
    """(4, 4) of the model's grid."""

    def bring(self, data: np.ndarray, *, fill: float = 0, nearest: bool = False) -> np.ndarray:
        """Carry (C, X, Y, Z) data of the native grid into the box."""
        assert data.shape[1:] == self.native_shape
        channels = [orientations.apply_orientation(c, self.orientation) for c in data]
        boxed = np.stack([crop_or_pad(c, self.start, self.extent, fill) for c in channels])
        if self.ratio == (1.0, 1.0, 1.0):
            return boxed
        return _resample(boxed, self.shape, self.ratio, fill=fill, nearest=nearest)

    def back(self, data: np.ndarray, *, fill: float = 0, nearest: bool = False) -> np.ndarray:
        """Carry (C, x, y, z) data of the box onto the native grid; outside the box is `fill`."""
        if self.ratio != (1.0, 1.0, 1.0):
            ratio = tuple(1 / r for r in self.ratio)
            data = _resample(data, self.extent, ratio, fill=None, nearest=nearest)
        shape = tuple(np.array(self.native_shape)[np.argsort(self.orientation[:, 0])])
        start = tuple(-s for s in self.start)
        inverse = orientations.ornt_transform(RAS, self.orientation)
        return np.stack(
            [
                orientations.apply_orientation(crop_or_pad(c, start, shape, fill), inverse)
                for c in data
            ]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What a network sees of an image, plus the record to go back."""

    data: np.ndarray
    """(C, x, y, z) float32; background -1, the 99.5th percentile of known brain +1."""
    original: Volume
    frame: Frame
    low: tuple[float, ...]
    high: tuple[float, ...]

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Native intensities (C, …) → model intensities."""
        low, high = (np.array(v, np.float32).reshape(-1, 1, 1, 1) for v in (self.low, self.high))
        return ((values - low) * (2 / (high - low)) - 1).astype(np.float32)

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Model intensities (C, …) → native intensities."""
        low, high = (np.array(v, np.float32).reshape(-1, 1, 1, 1) for v in (self.low, self.high))
        return ((values + 1) * ((high - low) / 2) + low).astype(np.float32)

    def undo(self, data: np.ndarray, touched: np.ndarray | None = None) -> Volume:
        """Return the native image with new values where `touched` (native grid) is set.

        Every other voxel is copied from the original, not computed. Without `touched`, only what
        differs from `self.data` counts as touched, so `undo(self.data)` is the identity.
        """
        if touched is None:
            changed = (data != self.data).any(axis=0, keepdims=True)
            touched = self.frame.back(changed.astype(np.float32), nearest=True)[0] > 0
        result = self.original.data.astype(np.float32)
        if touched.any():
            painted = self.frame.back(self.unscale(data), fill=0)
            result = np.where(touched[None], painted, result)
        return self.original.with_data(result)


def background_of(channel: np.ndarray) -> float:
    """Return the value of empty space: the commonest one on the faces of the volume."""
    faces = np.concatenate([np.take(channel, i, a).ravel() for a in range(3) for i in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    commonest = float(values[counts.argmax()])
    # A brain cropped to its box may touch every face; then the minimum is the best guess.
    return commonest if counts.max() > faces.size / 4 else float(channel.min())


def brain_mask(image: Volume) -> np.ndarray:
    """Return (X, Y, Z) bool: where any channel differs from its background, holes filled."""
    inside = np.zeros(image.shape, bool)
    for channel in image.data:
        inside |= channel != background_of(channel)
    if not inside.any():
        raise SynthError("the volume is empty: every voxel has the same value", hint="check it")
    return ndimage.binary_fill_holes(inside)


def prepare(
    image: Volume,
    *,
    known: np.ndarray | None = None,
    include: np.ndarray | None = None,
    divisor: int = 8,
    margin_mm: float = 4.0,
    spacing_mm: float | None = None,
) -> Prepared:
    """Orient, crop to the brain, resample if asked, and scale.

    Args:
        image: (C, X, Y, Z) skull-stripped image.
        known: (X, Y, Z) bool, voxels that may inform the intensity fit; default all.
        include: (X, Y, Z) bool, voxels that the box must hold besides the brain.
        divisor: the box is padded to a multiple of this.
        margin_mm: air kept around the brain.
        spacing_mm: resample to this isotropic spacing; None keeps the grid.
    """
    brain = brain_mask(image)
    known = brain if known is None else brain & known
    low, high = _intensities(image, known)
    frame = _frame(
        image, brain if include is None else brain | include, divisor, margin_mm, spacing_mm
    )
    record = Prepared(data=np.empty(0), original=image, frame=frame, low=low, high=high)
    scaled = record.scale(image.data.astype(np.float32))
    return Prepared(
        data=frame.bring(scaled, fill=-1), original=image, frame=frame, low=low, high=high
    )


def _intensities(image: Volume, known: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    lows, highs = [], []
    for channel in image.data:
        values = channel[known & (channel != background_of(channel))]
        low = background_of(channel)
        if values.size < 8 or (high := float(np.percentile(values, HIGH_PERCENTILE))) <= low:
            raise SynthError(
                "too few known brain voxels to fit the intensities",
                hint="does the mask cover the whole brain, or is the volume empty?",
            )
        # Z-scored images have brain below their background; then darkness starts lower.
        lows.append(min(low, float(np.percentile(values, 100 - HIGH_PERCENTILE))))
        highs.append(high)
    return tuple(lows), tuple(highs)


def _frame(
    image: Volume, inside: np.ndarray, divisor: int, margin_mm: float, spacing_mm: float | None
) -> Frame:
    transform = orientations.io_orientation(image.affine)
    ras_affine = image.affine @ orientations.inv_ornt_aff(transform, image.shape)
    spacing = np.sqrt((ras_affine[:3, :3] ** 2).sum(axis=0))
    box = ndimage.find_objects(orientations.apply_orientation(inside, transform).astype(np.uint8))
    margin = np.ceil(margin_mm / spacing).astype(int)
    low = np.array([s.start for s in box[0]]) - margin
    extent = np.array([s.stop for s in box[0]]) + margin - low
    ratio = np.ones(3) if spacing_mm is None else spacing_mm / spacing
    ratio[np.abs(ratio - 1) < SAME_SPACING] = 1  # interpolation would cost more than it mends
    shape = np.maximum(np.ceil(extent / ratio / divisor - 1e-9), 1).astype(int) * divisor
    wider = np.ceil(shape * ratio - 1e-9).astype(int)  # the box grows to what the model's grid sees
    low -= (wider - extent) // 2
    affine = ras_affine.copy()
    affine[:3, :3] *= ratio
    affine[:3, 3] = (ras_affine @ [*(low + 0.5 * ratio - 0.5), 1])[:3]
    return Frame(
        native_shape=image.shape,
        orientation=transform,
        start=_triple(low),
        extent=_triple(wider),
        shape=_triple(shape),
        ratio=(float(ratio[0]), float(ratio[1]), float(ratio[2])),
        affine=affine,
    )


def _triple(values: np.ndarray) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])


def crop_or_pad(
    data: np.ndarray, start: tuple[int, ...], extent: tuple[int, ...], fill: float
) -> np.ndarray:
    """Return the box that begins at `start`; where it sticks out of (x, y, z) data is `fill`."""
    result = np.full(extent, fill, data.dtype)
    here = tuple(
        slice(max(-s, 0), min(n - s, e)) for s, e, n in zip(start, extent, data.shape, strict=True)
    )
    if all(s.stop > s.start for s in here):
        there = tuple(slice(h.start + s, h.stop + s) for h, s in zip(here, start, strict=True))
        result[here] = data[there]
    return result


def _resample(
    data: np.ndarray,
    shape: tuple[int, ...],
    ratio: tuple[float, ...],
    *,
    fill: float | None,
    nearest: bool,
) -> np.ndarray:
    """Sample (C, …) at voxel centres of a grid `ratio` times coarser; blur first when coarser."""
    offset = [0.5 * r - 0.5 for r in ratio]
    channels = []
    for channel in data:
        values = channel.astype(np.float32)
        if not nearest:
            sigma = [0.5 * np.sqrt(max(r * r - 1, 0)) for r in ratio]
            values = ndimage.gaussian_filter(values, sigma, mode="nearest")
        mode, constant = ("nearest", 0.0) if fill is None else ("grid-constant", fill)
        channels.append(
            ndimage.affine_transform(
                values, ratio, offset, shape, order=0 if nearest else 1, mode=mode, cval=constant
            )
        )
    return np.stack(channels).astype(data.dtype)
