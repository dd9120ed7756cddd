"""Slices of volumes the right way up, contact sheets, overviews of a cohort.

Display follows the radiological habit: anterior (or superior) up, the patient's right on the left.
Arrays here are ready for an image: rows top to bottom, columns left to right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from synth.base.errors import SynthError
from synth.base.files import atomic_path
from synth.data.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Overlay = tuple[np.ndarray, Mapping[int, str], bool]
"""Labels of a slice, colour of each label, and whether to draw outlines only."""

BACKGROUND, INK = "#101014", "#d8d8dc"
LABEL_COLOURS = {1: "#e5484d", 2: "#46a758", 3: "#f5d90a"}  # NCR, ED, ET
MASK_COLOURS = {1: "#3ec8f5"}
PANEL_INCHES = 1.7
LABEL_LETTERS = 26
"""Letters of 7 points in a line along a panel."""
PLANES = ("axial", "coronal", "sagittal")


def display_planes(
    volume: Volume, centre: Sequence[int] | None = None, channel: int = 0
) -> list[np.ndarray]:
    """Axial, coronal and sagittal slices through a voxel (default: the middle), for display.

    The affine says which way is up; oblique volumes are shown along their nearest axes.
    """
    centre = [n // 2 for n in volume.shape] if centre is None else centre
    return [_plane(volume.data[channel], volume.affine, centre, name) for name in PLANES]


def three_planes(
    array: np.ndarray, centre: Sequence[int] | None = None, mask: np.ndarray | None = None
) -> list[np.ndarray]:
    """Do the same for an (X, Y, Z) array in RAS order; a mask, if any, gives the centre."""
    if centre is None and mask is not None and mask.any():
        centre = np.rint(np.argwhere(mask).mean(axis=0)).astype(int).tolist()
    return display_planes(Volume(data=array[None], affine=np.eye(4)), centre)


def display_axial(volume: Volume, index: int, channel: int = 0) -> np.ndarray:
    """One axial slice for display: anterior up, the patient's right on the left."""
    axis = _axes(volume.affine)[2][0]
    centre = [index if dim == axis else 0 for dim in range(3)]
    return _plane(volume.data[channel], volume.affine, centre, "axial")


def montage(
    rows: Sequence[Sequence[np.ndarray]],
    path: str | Path,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    overlays: Mapping[tuple[int, int], Overlay] | None = None,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> Path:
    """Write rows of slices as one PNG; each slice has its own grey window unless one is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows or not any(len(row) for row in rows):
        raise SynthError("a montage needs at least one slice")
    columns = max(len(row) for row in rows)
    top = 0.25 * bool(column_labels) + 0.35 * bool(title)
    beside = [_wrapped(label) for label in row_labels]
    lines = max((label.count("\n") + 1 for label in beside), default=0)
    left = max(0.25, 0.15 * lines) * bool(beside)
    width, height = columns * PANEL_INCHES + left, len(rows) * PANEL_INCHES + top
    figure = Figure(figsize=(width, height), dpi=130, facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=left / width, right=1, bottom=0, top=1 - top / height, wspace=0.02, hspace=0.02
    )
    for row, panels in enumerate(grid):
        for column, axes in enumerate(panels):
            axes.set_axis_off()
            if column < len(rows[row]):
                _panel(axes, rows[row][column], (overlays or {}).get((row, column)), window)
            if row == 0 and column < len(column_labels):
                axes.set_title(column_labels[column], color=INK, fontsize=8, pad=3)
        if row < len(beside):
            middle = (len(rows) - row - 0.5) * PANEL_INCHES / height
            figure.text(0.5 * left / width, middle, beside[row], color=INK, fontsize=7,
                        rotation=90, ha="center", va="center")  # fmt: skip
    if title:
        figure.text(0.5, 1 - 0.12 / height, title, color=INK, fontsize=10, ha="center", va="top")
    path = Path(path)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        canvas.print_png(stream)
    return path


def square_around(inside: np.ndarray, margin: int = 2) -> tuple[slice, slice]:
    """Crop to what is there, as a square where the image allows, so that all heads fill alike."""
    places = np.argwhere(inside)
    if not len(places):
        return slice(None), slice(None)
    middle = (places.min(axis=0) + places.max(axis=0) + 1) // 2
    half = int((np.ptp(places, axis=0).max() + 1) // 2 + margin)
    row, column = (slice(max(0, m - half), m + half) for m in middle.tolist())
    return row, column


def _wrapped(label: str) -> str:
    """Break lines that are longer than a panel is high, after a hyphen or a space if there is one.

    Case ids that tell what they were made from grow longer than a row.
    """
    lines = []
    for line in label.split("\n"):
        while len(line) > LABEL_LETTERS:
            place = max(line.rfind(mark, 0, LABEL_LETTERS) for mark in "- ") + 1 or LABEL_LETTERS
            lines.append(line[:place].rstrip())
            line = line[place:]
        lines.append(line)
    return "\n".join(lines)


def _panel(
    axes: Axes, image: np.ndarray, overlay: Overlay | None, window: tuple[float, float] | None
) -> None:
    low, high = window or _grey_window(image)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    if overlay is None:
        return
    labels, colours, outline = overlay
    for label, colour in colours.items():
        share = (labels == label).astype(float)
        if not share.any():
            continue
        if outline:
            axes.contour(share, levels=[0.5], colors=[colour], linewidths=0.9)
        else:
            axes.contourf(share, levels=[0.5, 1.5], colors=[colour], alpha=0.5)


def _grey_window(image: np.ndarray) -> tuple[float, float]:
    """From black to the 99.5th percentile of what is not background."""
    inside = image[image > 0]
    if not inside.size:
        low, high = float(image.min()), float(image.max())
    else:
        low, high = min(0.0, float(image.min())), float(np.percentile(inside, 99.5))
    return low, max(high, low + 1e-6)


def _axes(affine: np.ndarray) -> list[tuple[int, bool]]:
    """For right, anterior and superior: the array axis, and whether it runs that way."""
    axes = nib.orientations.io_orientation(affine)
    towards = {int(world): (dim, bool(sign > 0)) for dim, (world, sign) in enumerate(axes)}
    return [towards[world] for world in range(3)]


def _plane(array: np.ndarray, affine: np.ndarray, centre: Sequence[int], name: str) -> np.ndarray:
    """Cut one plane and turn it: rows run downwards, columns to the viewer's right."""
    right, anterior, superior = _axes(affine)
    cut, (row, row_up), (column, column_forward) = {
        "axial": (superior, anterior, right),
        "coronal": (anterior, superior, right),
        "sagittal": (right, superior, anterior),
    }[name]
    axis = cut[0]
    place = int(np.clip(centre[axis], 0, array.shape[axis] - 1))
    image = np.moveaxis(array, axis, 0)[place]  # a view: np.take would copy the volume first
    if row > column:
        image = image.T
    image = image[::-1] if row_up else image
    # All planes look at the patient: right (or anterior) is on the viewer's left.
    return image[:, ::-1] if column_forward else image
