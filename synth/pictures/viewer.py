"""A window or file that shows a case slice by slice, with its labels.

Scroll, drag the slider, or press up and down; 1, 2, 3 turn to axial, coronal, sagittal; space takes
the labels away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import atomic_path
from synth.data.case import MODALITIES, Case
from synth.data.volume import Volume
from synth.pictures import slices as thumbnail
from synth.pictures.montage import BACKGROUND, INK, PLANES
from synth.pictures.slices import Overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PANES = 4
SIDE = 420
INCHES = 3.4
DPI = 110
GIF_DPI = 70
GIF_COLOURS = 64
MOST_FRAMES = 60
FRAME_MS = 90
KEYS = dict(zip("123", PLANES, strict=True))


@dataclass(kw_only=True)
class Viewer:
    """What is shown, and which slice of it."""

    title: str
    panes: Mapping[str, Volume]
    """Name → scan, one to four, all on one grid."""
    overlay: Overlay | None = None
    plane: str = "axial"
    index: int = 0
    labels_on: bool = True
    windows: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first_name, first = next(iter(self.panes.items()))
        for name, volume in self.panes.items():
            first.require_same_grid(volume, (first_name, name))
        if self.overlay is not None:
            first.require_same_grid(self.overlay.volume, (first_name, "labels"))
        self.windows = {name: thumbnail.window_of(v) for name, v in self.panes.items()}
        self.turn(self.plane)

    @property
    def first(self) -> Volume:
        """Any of the scans: all have one grid."""
        return next(iter(self.panes.values()))

    @property
    def slices(self) -> int:
        """How many slices the plane has."""
        return thumbnail.depth(self.first, self.plane)

    def turn(self, plane: str) -> None:
        """Show another plane, where most of the labels are, or in the middle."""
        self.plane = plane
        labelled = self.overlay is not None and self.overlay.volume.data.any()
        self.index = (
            thumbnail.fullest(self.overlay.volume, plane)
            if self.overlay is not None and labelled
            else self.slices // 2
        )

    def move(self, to: int) -> None:
        """Go to a slice; beyond the last is the last."""
        self.index = int(np.clip(to, 0, self.slices - 1))

    def pictures(self) -> dict[str, np.ndarray]:
        """Return name → (rows, columns, 3) of the present slice."""
        return {
            name: thumbnail.draw(
                volume, self.plane, self.index, window=self.windows[name], side=SIDE,
                overlay=self.overlay if self.labels_on else None,
            )
            for name, volume in self.panes.items()
        }  # fmt: skip

    def caption(self) -> str:
        """Say what is shown."""
        return f"{self.title}   {self.plane} {self.index + 1} of {self.slices}"


def of_case(case: Case, *, plane: str = "axial") -> Viewer:
    """Return a viewer of a case: its contrasts, else other scans, under labels or masks."""
    names = [role for role in (*MODALITIES, "voided") if role in case.files][:PANES]
    if not names:
        raise SynthError(f"{case.id}: no scan to view", hint=f"it has: {', '.join(case.files)}")
    overlay, title = None, case.id
    if "seg" in case.files:
        title = f"necrosis red, oedema green, enhancing yellow\n{case.id}"
        overlay = thumbnail.tumour_overlay(case.load("seg"), case.scheme)
    elif "mask" in case.files:
        overlay = thumbnail.mask_overlay(case.load("mask"))
    panes = {name: case.load(name) for name in names}
    return Viewer(title=title, panes=panes, overlay=overlay, plane=plane)


def save(viewer: Viewer, path: Path) -> Path:
    """Write the present slice as PNG, or a run through all slices as GIF; needs no display."""
    if path.suffix.lower() not in (".png", ".gif"):
        raise SynthError(f"{path}: unknown kind of picture", hint="end its name in .png or .gif")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    moving = path.suffix.lower() == ".gif"
    figure = Figure(figsize=_size(viewer), dpi=GIF_DPI if moving else DPI, facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    shown = _Panes(viewer, figure)
    if not moving:
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            canvas.print_png(stream)
        return path
    from PIL import Image

    frames = []
    for index in _run(viewer):
        viewer.move(index)
        shown.refresh()
        canvas.draw()
        frame = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        # Undithered, as noise would not compress; greys and four colours need no more.
        frames.append(frame.quantize(GIF_COLOURS, dither=Image.Dither.NONE))
    with atomic_path(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS,
            loop=0, optimize=True,
        )  # fmt: skip
    return path


def show(viewer: Viewer) -> None:
    """Open a window and return when it is closed."""
    from matplotlib import pyplot as plt

    if plt.get_backend().lower() == "agg":
        raise SynthError(
            "there is no display to open a window on", hint="--save out.png or --save out.gif"
        )
    keep = interactive(viewer, plt.figure(figsize=_size(viewer), facecolor=BACKGROUND))
    plt.show()
    del keep  # widgets live as long as somebody holds them


def interactive(viewer: Viewer, figure: Figure) -> Any:
    """Draw a viewer into a figure and let it be driven; keep what is returned."""
    from matplotlib.widgets import Slider

    shown = _Panes(viewer, figure)
    place = figure.add_axes((0.12, 0.02, 0.7, 0.03))
    slider = Slider(place, "slice", 1, viewer.slices, valinit=viewer.index + 1, valstep=1)
    slider.label.set_color(INK)
    slider.valtext.set_color(INK)

    def moved(value: float) -> None:
        viewer.move(int(value) - 1)
        shown.refresh()
        figure.canvas.draw_idle()

    def turned(plane: str) -> None:
        viewer.turn(plane)
        slider.valmax = viewer.slices
        slider.ax.set_xlim(1, viewer.slices)
        slider.set_val(viewer.index + 1)

    def scrolled(event: Any) -> None:
        slider.set_val(np.clip(viewer.index + 1 + event.step, 1, viewer.slices))

    def pressed(event: Any) -> None:
        if event.key in KEYS:
            turned(KEYS[event.key])
        elif event.key in ("up", "down"):
            step = 1 if event.key == "up" else -1
            slider.set_val(np.clip(viewer.index + 1 + step, 1, viewer.slices))
        elif event.key == " ":
            viewer.labels_on = not viewer.labels_on
            moved(viewer.index + 1)

    slider.on_changed(moved)
    figure.canvas.mpl_connect("scroll_event", scrolled)
    figure.canvas.mpl_connect("key_press_event", pressed)
    return slider


class _Panes:
    """The panes of a viewer in a figure."""

    def __init__(self, viewer: Viewer, figure: Figure) -> None:
        self.viewer = viewer
        rows, columns = _grid(viewer)
        grid = figure.subplots(rows, columns, squeeze=False)
        figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.07, wspace=0.02, hspace=0.1)
        self.heading = figure.suptitle("", color=INK, fontsize=11)
        self.images: dict[str, AxesImage] = {}
        for name, axes in zip(viewer.panes, grid.ravel(), strict=False):
            self.images[name] = self._pane(axes, name)
        for axes in grid.ravel():
            axes.set_axis_off()
        self.refresh()

    def _pane(self, axes: Axes, name: str) -> AxesImage:
        axes.set_title(name, color=INK, fontsize=9, pad=3)
        return axes.imshow(np.zeros((1, 1, 3), np.uint8))

    def refresh(self) -> None:
        """Draw the present slice."""
        for name, picture in self.viewer.pictures().items():
            image = self.images[name]
            rows, columns = picture.shape[:2]
            image.set_data(picture)
            image.set_extent((0, columns, rows, 0))
        self.heading.set_text(self.viewer.caption())


def _grid(viewer: Viewer) -> tuple[int, int]:
    return (1, len(viewer.panes)) if len(viewer.panes) < PANES else (2, 2)


def _size(viewer: Viewer) -> tuple[float, float]:
    rows, columns = _grid(viewer)
    return columns * INCHES, rows * INCHES + 0.8


def _run(viewer: Viewer) -> list[int]:
    """Return the slices of a GIF: those that show anything, at most `MOST_FRAMES`."""
    axis = thumbnail.array_axis(viewer.first, viewer.plane)
    others = tuple(a for a in range(3) if a != axis)
    filled = np.flatnonzero((viewer.first.data[0] > 0).any(axis=others))
    filled = filled if len(filled) else np.arange(viewer.slices)
    count = min(MOST_FRAMES, len(filled))
    return filled[np.linspace(0, len(filled) - 1, count).round().astype(int)].tolist()
