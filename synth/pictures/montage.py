"""Contact sheets: rows of slices in one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import atomic_path
from synth.data.volume import Volume
from synth.pictures.slices import (
    BACKGROUND,
    INK,
    LABEL_COLOURS,
    PLANES,
    cut_planes,
    find_frame,
    find_middle,
    grey_window,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Marks = tuple[np.ndarray, Mapping[int, str], bool]
"""Labels of a slice, the colour of each, and whether to draw outlines only."""

PANEL_INCHES = 1.7
LABEL_LETTERS = 26
"""Letters of 7 points in a line along a panel."""


def draw_montage(
    rows: Sequence[Sequence[np.ndarray]],
    path: str | Path,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    marks: Mapping[tuple[int, int], Marks] | None = None,
    title: str = "",
    window: tuple[float, float] | None = None,
) -> Path:
    """Write rows of slices as one PNG; each slice has its own grey window unless one is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not any(len(row) for row in rows):
        raise SynthError("a montage needs at least one slice")
    columns = max(len(row) for row in rows)
    top = 0.25 * bool(column_labels) + 0.35 * bool(title)
    beside = [_wrap(label) for label in row_labels]
    lines = max((label.count("\n") + 1 for label in beside), default=0)
    left = max(0.25, 0.15 * lines) * bool(beside)
    width, height = columns * PANEL_INCHES + left, len(rows) * PANEL_INCHES + top
    figure = Figure(figsize=(width, height), dpi=130, facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=left / width, right=1, bottom=0, top=1 - top / height, wspace=0.02, hspace=0.02
    )
    for axes in grid.ravel():
        axes.set_axis_off()
    for row, panels in enumerate(rows):
        for column, image in enumerate(panels):
            _draw_panel(grid[row, column], image, (marks or {}).get((row, column)), window)
    for axes, label in zip(grid[0], column_labels, strict=False):
        axes.set_title(label, color=INK, fontsize=8, pad=3)
    for row, label in enumerate(beside):
        middle = (len(rows) - row - 0.5) * PANEL_INCHES / height
        figure.text(0.5 * left / width, middle, label, color=INK, fontsize=7, rotation=90,
                    ha="center", va="center")  # fmt: skip
    if title:
        figure.text(0.5, 1 - 0.12 / height, title, color=INK, fontsize=10, ha="center", va="top")
    path = Path(path)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        canvas.print_png(stream)
    return path


def draw_tumour(
    scans: Mapping[str, Volume],
    labels: np.ndarray,
    inside: np.ndarray,
    path: Path,
    *,
    title: str,
    outline: bool,
) -> Path:  # labels (1 NCR, 2 ED, 3 ET) and the head's mask are (X, Y, Z)
    """Write three planes of scans through the middle of the tumour.

    Labels are drawn as outlines on every scan, or as areas on the second scan once more.
    """
    grid = next(iter(scans.values()))
    centre = find_middle(labels if labels.any() else inside)
    volumes = (grid.with_data(labels), grid.with_data(inside), *scans.values())
    planes = zip(*(cut_planes(volume, centre) for volume in volumes), strict=True)
    rows, marks = [], {}
    for row, (drawn, head, *panels) in enumerate(planes):
        frame = find_frame(head)
        shown = panels if outline else [*panels, panels[1]]
        rows.append([panel[frame] for panel in shown])
        for column in range(0 if outline else len(panels), len(shown)):
            marks[row, column] = (drawn[frame], LABEL_COLOURS, outline)
    columns = [*scans] if outline else [*scans, "labels"]
    return draw_montage(
        rows, path, row_labels=PLANES, column_labels=columns, marks=marks, title=title
    )


def _wrap(label: str) -> str:
    """Break lines that are longer than a panel is high, after a hyphen or a space if there is one.

    The id of a generated case can be longer than a row.
    """
    lines = []
    for line in label.split("\n"):
        while len(line) > LABEL_LETTERS:
            place = max(line.rfind(mark, 0, LABEL_LETTERS) for mark in "- ") + 1 or LABEL_LETTERS
            lines.append(line[:place].rstrip())
            line = line[place:]
        lines.append(line)
    return "\n".join(lines)


def _draw_panel(
    axes: Axes, image: np.ndarray, marks: Marks | None, window: tuple[float, float] | None
) -> None:
    low, high = window or grey_window(image)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    labels, colours, outline = marks or (np.zeros(0), {}, False)
    for label, colour in colours.items():
        share = (labels == label).astype(float)
        if not share.any():
            continue
        if outline:
            axes.contour(share, levels=[0.5], colors=[colour], linewidths=0.9)
        else:
            axes.contourf(share, levels=[0.5, 1.5], colors=[colour], alpha=0.5)
