"""Slices of volumes: cutting, drawing and encoding them, the right way up and true to millimetres.

Display follows the radiological habit: anterior (or superior) up, the patient's right on the left.
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

BACKGROUND, INK = "#101014", "#d8d8dc"
LABEL_COLOURS = {1: "#e5484d", 2: "#46a758", 3: "#f5d90a"}  # NCR, ED, ET
MASK_COLOURS = {1: "#3ec8f5"}
LABEL_OPACITY = 0.45
SIDE = 176
"""Pixels of the longer side of a picture."""
QUALITY = 78
BRIGHTEST = 99.5
"""Percentile of the tissue that is drawn white."""

# plane → the world axes (0 right, 1 anterior, 2 superior) of its rows, columns and normal
_WORLD_AXES = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}
PLANES = tuple(_WORLD_AXES)

Frame = tuple[slice, slice]
"""The rows and columns that a slice is cropped to."""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What lies on a scan: labels on the same grid, in colour, as areas or as outlines."""

    volume: Volume
    colours: Mapping[int, str]
    outline: bool = False


def tumour_overlay(labels: Volume, scheme: str) -> Overlay:
    """Return an overlay of a label map: NCR red, ED green, ET yellow, whatever its numbers."""
    classes = to_classes(labels.data, scheme)
    return Overlay(volume=labels.with_data(classes), colours=LABEL_COLOURS)


def mask_overlay(mask: Volume) -> Overlay:
    """Return an overlay that outlines a mask."""
    numbers = mask.with_data(mask.data.astype(np.uint8))
    return Overlay(volume=numbers, colours=MASK_COLOURS, outline=True)


def grey_window(values: np.ndarray) -> tuple[float, float]:
    """Return the values of black and white: up to the 99.5th percentile of what is above zero."""
    inside = values[values > 0]
    low = min(0.0, float(values.min(initial=0)))
    high = float(np.percentile(inside, BRIGHTEST)) if inside.size else float(values.max())
    return low, max(high, low + 1e-6)


def parse_colour(colour: str) -> np.ndarray:
    """Return red, green and blue, each 0 to 255, of #rrggbb."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def find_axis(volume: Volume, plane: str) -> int:
    """Return the array axis that the slices of a plane are counted along."""
    return _find_axes(volume, plane)[2][0]


def count_slices(volume: Volume, plane: str) -> int:
    """Return how many slices a plane has."""
    return volume.shape[find_axis(volume, plane)]


def count_voxels(mask: Volume, plane: str) -> np.ndarray:
    """Return the number of voxels above zero in each slice of a plane."""
    axis = find_axis(mask, plane)
    return (mask.data[0] > 0).sum(axis=tuple(a for a in range(3) if a != axis))


def find_fullest(mask: Volume, plane: str) -> int:
    """Return the slice that holds most of a mask, the middle one if it is empty."""
    counts = count_voxels(mask, plane)
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def find_middle(mask: np.ndarray) -> list[int]:  # (X, Y, Z)
    """Return the voxel in the middle of a mask, that of the grid if it is empty."""
    if not mask.any():
        return [n // 2 for n in mask.shape]
    return np.rint(np.argwhere(mask).mean(axis=0)).astype(int).tolist()


def find_height(volume: Volume, plane: str, index: int) -> float:
    """Return where a slice is: 0 is the lowest (rear, left) one, 1 the highest (front, right)."""
    share = index / max(count_slices(volume, plane) - 1, 1)
    return share if _find_axes(volume, plane)[2][1] else 1 - share


def find_slice(volume: Volume, plane: str, height: float) -> int:
    """Return the slice that is at a height: on grids that agree, the same slice."""
    share = height if _find_axes(volume, plane)[2][1] else 1 - height
    return round(share * (count_slices(volume, plane) - 1))


def find_frame(inside: np.ndarray, margin: int = 2) -> Frame:
    """Return a square around what is there, where the image allows one: all heads fill alike."""
    places = np.argwhere(inside)
    if not len(places):
        return slice(None), slice(None)
    middle = (places.min(axis=0) + places.max(axis=0) + 1) // 2
    half = int((np.ptp(places, axis=0).max() + 1) // 2 + margin)
    row, column = (slice(max(0, m - half), m + half) for m in middle.tolist())
    return row, column


def cut_slice(volume: Volume, plane: str, index: int) -> np.ndarray:
    """Return one slice of the first channel: rows run downwards, columns to the viewer's right.

    The affine says which way is up; oblique volumes are shown along their nearest axes.
    """
    (row, is_up), (column, is_forward), (axis, _) = _find_axes(volume, plane)
    index = min(max(index, 0), volume.shape[axis] - 1)
    image = np.moveaxis(volume.data[0], axis, 0)[index]  # a view: np.take would copy the volume
    image = image.T if row > column else image
    image = image[::-1] if is_up else image
    # All planes look at the patient: right (or anterior) is on the viewer's left.
    return image[:, ::-1] if is_forward else image


def cut_planes(volume: Volume, centre: Sequence[int]) -> list[np.ndarray]:
    """Return the axial, coronal and sagittal slices through a voxel."""
    return [cut_slice(volume, plane, centre[find_axis(volume, plane)]) for plane in PLANES]


def draw_slice(
    volume: Volume,
    plane: str,
    index: int,
    *,
    window: tuple[float, float] | None = None,
    overlay: Overlay | None = None,
    frame: Frame = (slice(None), slice(None)),
    side: int = SIDE,
    heat: bool = False,
) -> np.ndarray:
    """Draw one slice as uint8 (rows, columns, 3).

    Args:
        volume: the scan.
        plane: axial, coronal or sagittal.
        index: slice, counted along `find_axis`.
        window: values of black and white [`grey_window`].
        overlay: labels to lay on it.
        frame: rows and columns to crop to.
        side: pixels of the longer side, whatever the voxel size.
        heat: in the colours of heat rather than in greys: an error or a spread.
    """
    low, high = window or grey_window(volume.data)
    plain = (cut_slice(volume, plane, index)[frame].astype(np.float32) - low) / (high - low)
    shape = _count_pixels(volume, plane, plain.shape, side)
    plain = _resize(np.clip(plain, 0, 1), shape, smooth=True)
    picture = colour_heat(plain) * 255 if heat else np.repeat(plain[..., None] * 255, 3, axis=2)
    if overlay is not None:
        labels = cut_slice(overlay.volume, plane, index)[frame].astype(np.float32)
        _blend(picture, _resize(labels, shape, smooth=False).astype(np.uint8), overlay)
    return picture.round().astype(np.uint8)


def colour_heat(values: np.ndarray) -> np.ndarray:
    """Colour 0 to 1 from black over red to white: (rows, columns) → (rows, columns, 3)."""
    from matplotlib import colormaps

    return colormaps["inferno"](values)[..., :3]


def encode_picture(picture: np.ndarray, *, quality: int = QUALITY) -> str:
    """Return a picture as a data URI: WebP, or PNG where Pillow was built without it."""
    from PIL import Image, features

    kind = "webp" if features.check("webp") else "png"
    stream = io.BytesIO()
    options = {"quality": quality, "method": 4} if kind == "webp" else {"optimize": True}
    Image.fromarray(picture).save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _find_axes(volume: Volume, plane: str) -> list[tuple[int, bool]]:
    """Return the array axes of rows, columns and normal, and whether each runs up or forwards."""
    axes = nib.orientations.io_orientation(volume.affine)
    along = {int(world): (dim, bool(sign > 0)) for dim, (world, sign) in enumerate(axes)}
    return [along[world] for world in _WORLD_AXES[plane]]


def _count_pixels(volume: Volume, plane: str, shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Return the picture's rows and columns: square pixels in millimetres."""
    (row, _), (column, _), _ = _find_axes(volume, plane)
    spacing = volume.spacing_mm
    height_mm, width_mm = shape[0] * spacing[row], shape[1] * spacing[column]
    scale = side / max(height_mm, width_mm, 1e-9)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def _resize(image: np.ndarray, shape: tuple[int, int], *, smooth: bool) -> np.ndarray:
    from PIL import Image

    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    resized = Image.fromarray(image.astype(np.float32)).resize(shape[::-1], how)
    return np.clip(np.asarray(resized), image.min(initial=0), image.max(initial=0))


def _blend(picture: np.ndarray, labels: np.ndarray, overlay: Overlay) -> None:
    for label, colour in overlay.colours.items():
        area = labels == label
        if overlay.outline:
            area &= ~ndimage.binary_erosion(area)
        share = 1.0 if overlay.outline else LABEL_OPACITY
        picture[area] = (1 - share) * picture[area] + share * parse_colour(colour)
