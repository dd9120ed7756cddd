"""Small pictures of slices, true to millimetres, with labels on top.

A picture is uint8 (rows, columns, 3), the right way up (see `picture`). A page holds pictures as
data URIs, so that nothing is fetched and nothing leaves.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from synth.data.labels import to_classes
from synth.data.volume import Volume
from synth.pictures.montage import LABEL_COLOURS, MASK_COLOURS, PLANES, display_planes

SIDE = 176
"""Pixels of the longer side."""
QUALITY = 78
LABEL_SHARE = 0.45
BRIGHTEST = 99.5

# plane → the world axes (0 right, 1 anterior, 2 superior) of its rows, columns and normal
_WORLD = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What lies on a scan: labels on the same grid, in colour, as areas or as outlines."""

    volume: Volume
    colours: Mapping[int, str]
    outline: bool = False


def tumour_overlay(labels: Volume, scheme: str, *, outline: bool = False) -> Overlay:
    """Return an overlay of a label map: NCR red, ED green, ET yellow, whatever its numbers."""
    shown = to_classes(labels.data, scheme)
    return Overlay(volume=labels.with_data(shown), colours=LABEL_COLOURS, outline=outline)


def mask_overlay(mask: Volume, *, outline: bool = True) -> Overlay:
    """Return an overlay of a mask."""
    numbers = mask.with_data(mask.data.astype(np.uint8))
    return Overlay(volume=numbers, colours=MASK_COLOURS, outline=outline)


def window_of(volume: Volume, inside: np.ndarray | None = None) -> tuple[float, float]:
    """Return the grey values of black and white: up to the 99.5th percentile of what is there."""
    values = volume.data[volume.data > 0] if inside is None else volume.data[inside]
    low = min(0.0, float(volume.data.min(initial=0)))
    high = float(np.percentile(values, BRIGHTEST)) if values.size else float(volume.data.max())
    return low, max(high, low + 1e-6)


def depth(volume: Volume, plane: str) -> int:
    """Return how many slices a plane has."""
    return volume.shape[array_axis(volume, plane)]


def array_axis(volume: Volume, plane: str) -> int:
    """Return the array axis that a plane's slices are counted along."""
    return _dimensions(volume)[_WORLD[plane][2]]


def fullest(mask: Volume, plane: str) -> int:
    """Return the slice that holds most of a mask, the middle one if it is empty."""
    axis = array_axis(mask, plane)
    counts = (mask.data[0] > 0).sum(axis=tuple(a for a in range(3) if a != axis))
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def height(volume: Volume, plane: str, index: int) -> float:
    """Return where a slice is: 0 is the lowest (rear, left) one, 1 the highest (front, right)."""
    share = index / max(depth(volume, plane) - 1, 1)
    return share if _is_upwards(volume, plane) else 1 - share


def slice_at(volume: Volume, plane: str, height: float) -> int:
    """Return the slice that is at a height: on grids that agree, the same slice."""
    share = height if _is_upwards(volume, plane) else 1 - height
    return round(share * (depth(volume, plane) - 1))


def cut(volume: Volume, plane: str, index: int, channel: int = 0) -> np.ndarray:
    """Return one slice for display."""
    axis = array_axis(volume, plane)
    index = min(max(index, 0), volume.shape[axis] - 1)
    # A slab of one slice: cutting the other two planes of a whole volume would copy all of it.
    where = [slice(None)] * 3
    where[axis] = slice(index, index + 1)
    slab = volume.with_data(volume.data[channel][tuple(where)])
    return display_planes(slab)[PLANES.index(plane)]


def draw(
    volume: Volume,
    plane: str,
    index: int,
    *,
    window: tuple[float, float] | None = None,
    overlay: Overlay | None = None,
    frame: tuple[slice, slice] = (slice(None), slice(None)),
    side: int = SIDE,
) -> np.ndarray:
    """Draw one slice of a scan.

    Args:
        volume: the scan.
        plane: axial, coronal or sagittal.
        index: slice, counted along `array_axis`.
        window: grey values of black and white [`window_of`].
        overlay: labels to lay on it.
        frame: rows and columns to crop to.
        side: pixels of the longer side, whatever the voxel size.
    """
    low, high = window or window_of(volume)
    plain = np.clip(
        (cut(volume, plane, index)[frame].astype(np.float32) - low) / (high - low), 0, 1
    )
    shape = _pixels(volume, plane, plain.shape, side)
    picture = np.repeat(_resized(plain, shape, smooth=True)[..., None] * 255, 3, axis=2)
    if overlay is not None:
        labels = cut(overlay.volume, plane, index)[frame].astype(np.float32)
        labels = _resized(labels, shape, smooth=False).astype(np.uint8)
        _blend(picture, labels, overlay)
    return picture.round().astype(np.uint8)


def heat(
    volume: Volume,
    plane: str,
    index: int,
    *,
    limit: float,
    frame: tuple[slice, slice] = (slice(None), slice(None)),
    side: int = SIDE,
) -> np.ndarray:
    """Draw one slice of an error or a spread: black at 0, white at `limit`."""
    from matplotlib import colormaps

    plain = np.clip(cut(volume, plane, index)[frame].astype(np.float32) / limit, 0, 1)
    shape = _pixels(volume, plane, plain.shape, side)
    coloured = colormaps["inferno"](_resized(plain, shape, smooth=True))[..., :3]
    return (coloured * 255).round().astype(np.uint8)


def data_uri(picture: np.ndarray, *, quality: int = QUALITY) -> str:
    """Encode a picture: WebP, or PNG where Pillow was built without it."""
    from PIL import Image, features

    kind = "webp" if features.check("webp") else "png"
    stream = io.BytesIO()
    options = {"quality": quality, "method": 4} if kind == "webp" else {"optimize": True}
    Image.fromarray(picture).save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def row(pictures: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Put pictures side by side on black, middle to middle."""
    height = max(p.shape[0] for p in pictures)
    padded = []
    for picture in pictures:
        spare = height - picture.shape[0]
        edges = ((spare // 2, spare - spare // 2), (0, gap), (0, 0))
        padded.append(np.pad(picture, edges))
    return np.concatenate(padded, axis=1)[:, :-gap]


def _is_upwards(volume: Volume, plane: str) -> bool:
    """Whether the slices of a plane are stored upwards (forwards, from left to right)."""
    return nib.orientations.io_orientation(volume.affine)[array_axis(volume, plane), 1] > 0


def _dimensions(volume: Volume) -> list[int]:
    """Return the array axis of right, anterior and superior."""
    towards = nib.orientations.io_orientation(volume.affine)[:, 0].astype(int).tolist()
    return [towards.index(world) for world in range(3)]


def _pixels(volume: Volume, plane: str, shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Return the picture's rows and columns: square pixels in millimetres."""
    dims, spacing = _dimensions(volume), volume.spacing_mm
    rows, columns, _ = _WORLD[plane]
    height_mm, width_mm = shape[0] * spacing[dims[rows]], shape[1] * spacing[dims[columns]]
    scale = side / max(height_mm, width_mm, 1e-9)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def _resized(image: np.ndarray, shape: tuple[int, int], *, smooth: bool) -> np.ndarray:
    from PIL import Image

    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    resized = Image.fromarray(image.astype(np.float32)).resize(shape[::-1], how)
    return np.clip(np.asarray(resized), image.min(initial=0), image.max(initial=0))


def _blend(picture: np.ndarray, labels: np.ndarray, overlay: Overlay) -> None:
    for label, colour in overlay.colours.items():
        area = labels == label
        if overlay.outline:
            area &= ~ndimage.binary_erosion(area)
        share = 1.0 if overlay.outline else LABEL_SHARE
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        picture[area] = (1 - share) * picture[area] + share * rgb
