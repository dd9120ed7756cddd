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
from synth.pictures import slices
from synth.pictures.slices import BACKGROUND, INK, PLANES, Overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MOST_PANES = 4
SIDE = 420
PANE_INCHES = 3.4
DPI = 110
GIF_DPI = 70
GIF_COLOURS = 64
MOST_FRAMES = 60
FRAME_MS = 90
KEYS = dict(zip("123", PLANES, strict=True))
STEPS = {"up": 1, "down": -1}


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
        name, first = next(iter(self.panes.items()))
        for other, volume in self.panes.items():
            first.require_same_grid(volume, (name, other))
        if self.overlay is not None:
            first.require_same_grid(self.overlay.volume, (name, "labels"))
        self.windows = {pane: slices.grey_window(v.data) for pane, v in self.panes.items()}
        self.turn(self.plane)

    @property
    def first(self) -> Volume:
        """One of the scans: all have one grid."""
        return next(iter(self.panes.values()))

    @property
    def slices(self) -> int:
        """How many slices the plane has."""
        return slices.count_slices(self.first, self.plane)

    @property
    def caption(self) -> str:
        """The title, and which slice is shown."""
        return f"{self.title}   {self.plane} {self.index + 1} of {self.slices}"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of panes."""
        return (1, len(self.panes)) if len(self.panes) < MOST_PANES else (2, 2)

    @property
    def inches(self) -> tuple[float, float]:
        """Width and height of the figure."""
        rows, columns = self.grid
        return columns * PANE_INCHES, rows * PANE_INCHES + 0.8

    def turn(self, plane: str) -> None:
        """Show another plane, where most of the labels are, or in the middle."""
        self.plane = plane
        labels = self.overlay.volume if self.overlay else None
        self.index = slices.find_fullest(labels, plane) if labels else self.slices // 2

    def move(self, to: int) -> None:
        """Go to a slice; beyond the last is the last."""
        self.index = int(np.clip(to, 0, self.slices - 1))

    def draw(self) -> dict[str, np.ndarray]:
        """Return name → (rows, columns, 3) of the present slice."""
        return {
            name: slices.draw_slice(
                volume, self.plane, self.index, window=self.windows[name], side=SIDE,
                overlay=self.overlay if self.labels_on else None,
            )
            for name, volume in self.panes.items()
        }  # fmt: skip


def open_case(case: Case, *, plane: str = "axial") -> Viewer:
    """Return a viewer of a case: its contrasts, else other scans, under labels or masks."""
    names = [role for role in (*MODALITIES, "voided") if role in case.files][:MOST_PANES]
    if not names:
        raise SynthError(f"{case.id}: no scan to view", hint=f"it has: {', '.join(case.files)}")
    overlay, title = None, case.id
    if "seg" in case.files:
        title = f"necrosis red, oedema green, enhancing yellow\n{case.id}"
        overlay = slices.tumour_overlay(case.load("seg"), case.scheme)
    elif "mask" in case.files:
        overlay = slices.mask_overlay(case.load("mask"))
    panes = {name: case.load(name) for name in names}
    return Viewer(title=title, panes=panes, overlay=overlay, plane=plane)


def save_picture(viewer: Viewer, path: Path) -> Path:
    """Write the present slice as PNG, or a run through all slices as GIF; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suffix = path.suffix.lower()
    if suffix not in (".png", ".gif"):
        raise SynthError(f"{path}: unknown kind of picture", hint="end its name in .png or .gif")
    dpi = DPI if suffix == ".png" else GIF_DPI
    canvas = FigureCanvasAgg(Figure(figsize=viewer.inches, dpi=dpi, facecolor=BACKGROUND))
    panes = _Panes(viewer, canvas.figure)
    if suffix == ".gif":
        _save_gif(viewer, panes, canvas, path)
        return path
    with atomic_path(path) as temporary:
        canvas.print_png(temporary)
    return path


def show_window(viewer: Viewer) -> None:
    """Open a window and return when it is closed."""
    from matplotlib import pyplot as plt

    if plt.get_backend().lower() == "agg":
        raise SynthError(
            "there is no display to open a window on", hint="--save out.png or --save out.gif"
        )
    slider = add_controls(viewer, plt.figure(figsize=viewer.inches, facecolor=BACKGROUND))
    plt.show()
    del slider  # a widget works as long as somebody holds it


def add_controls(viewer: Viewer, figure: Figure) -> Any:
    """Draw a viewer into a figure with a slider, wheel and keys; keep the slider returned."""
    from matplotlib.widgets import Slider

    panes = _Panes(viewer, figure)
    place = figure.add_axes((0.12, 0.02, 0.7, 0.03))
    slider = Slider(place, "slice", 1, viewer.slices, valinit=viewer.index + 1, valstep=1)
    slider.label.set_color(INK)
    slider.valtext.set_color(INK)

    def move(value: float) -> None:
        viewer.move(int(value) - 1)
        panes.refresh()
        figure.canvas.draw_idle()

    def step(count: float) -> None:
        slider.set_val(np.clip(viewer.index + 1 + count, 1, viewer.slices))

    def press(key: str | None) -> None:
        if key in KEYS:
            viewer.turn(KEYS[key])
            slider.valmax = viewer.slices
            slider.ax.set_xlim(1, viewer.slices)
            slider.set_val(viewer.index + 1)
        elif key in STEPS:
            step(STEPS[key])
        elif key == " ":
            viewer.labels_on = not viewer.labels_on
            move(viewer.index + 1)

    slider.on_changed(move)
    figure.canvas.mpl_connect("scroll_event", lambda event: step(event.step))
    figure.canvas.mpl_connect("key_press_event", lambda event: press(event.key))
    return slider


class _Panes:
    """The panes of a viewer in a figure."""

    def __init__(self, viewer: Viewer, figure: Figure) -> None:
        self.viewer = viewer
        grid = figure.subplots(*viewer.grid, squeeze=False)
        figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.07, wspace=0.02, hspace=0.1)
        self.heading = figure.suptitle("", color=INK, fontsize=11)
        self.images: dict[str, AxesImage] = {}
        for name, axes in zip(viewer.panes, grid.ravel(), strict=False):
            axes.set_title(name, color=INK, fontsize=9, pad=3)
            self.images[name] = axes.imshow(np.zeros((1, 1, 3), np.uint8))
        for axes in grid.ravel():
            axes.set_axis_off()
        self.refresh()

    def refresh(self) -> None:
        """Draw the present slice."""
        for name, picture in self.viewer.draw().items():
            rows, columns = picture.shape[:2]
            self.images[name].set_data(picture)
            self.images[name].set_extent((0, columns, rows, 0))
        self.heading.set_text(self.viewer.caption)


def _save_gif(viewer: Viewer, panes: _Panes, canvas: Any, path: Path) -> None:
    """Write the slices that show anything, at most `MOST_FRAMES` of them."""
    from PIL import Image

    filled = np.flatnonzero(slices.count_voxels(viewer.first, viewer.plane))
    filled = filled if len(filled) else np.arange(viewer.slices)
    count = min(MOST_FRAMES, len(filled))
    frames = []
    for index in filled[np.linspace(0, len(filled) - 1, count).round().astype(int)].tolist():
        viewer.move(index)
        panes.refresh()
        canvas.draw()
        frame = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        # Undithered, as noise would not compress; greys and four colours need no more.
        frames.append(frame.quantize(GIF_COLOURS, dither=Image.Dither.NONE))
    with atomic_path(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_MS,
            loop=0, optimize=True,
        )  # fmt: skip
