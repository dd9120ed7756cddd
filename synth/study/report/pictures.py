"""Pictures of a report: strips of panels, and slices behind a slider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synth.data.volume import Volume
from synth.pictures import slices
from synth.pictures.slices import PLANES, find_frame
from synth.study.report.html import Html, figure, image, joined, tag

MOST_SLICES = 24
PLOT_WIDTH = 1500
"""Pixels that a finished picture is brought down to."""
PLOT_QUALITY = 84
MARGIN = 2

Drawer = Callable[[str, int, tuple[slice, slice]], np.ndarray]
"""(plane, slice, frame) → picture."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a strip: its caption, what it shows, and how it is drawn."""

    caption: str
    alt: str
    drawn: Drawer


def finished(path: Path, alt: str, caption: str) -> Html:
    """Take over a picture that another verb drew, made small enough for a page."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.width > PLOT_WIDTH:
        height = round(picture.height * PLOT_WIDTH / picture.width)
        picture = picture.resize((PLOT_WIDTH, height), Image.Resampling.LANCZOS)
    uri = slices.encode_picture(np.asarray(picture), quality=PLOT_QUALITY)
    shown = image(uri, alt, loading="lazy", width=str(picture.width), height=str(picture.height))
    # On a phone it scrolls sideways, as its letters would be too small otherwise.
    region = tag("div", shown, class_="wide", tabindex="0", role="region", aria_label=alt)
    return figure(region, caption, class_="plot")


def strip(panels: Sequence[Panel], plane: str, index: int, frame: tuple[slice, slice]) -> Html:
    """Show one slice of every panel side by side."""
    return tag(
        "div",
        *(
            figure(image(slices.encode_picture(p.drawn(plane, index, frame)), p.alt), p.caption)
            for p in panels
        ),
        class_="panels",
    )


def films(panels: Sequence[Panel], around: Volume, brain: Volume, name: str) -> Html:
    """Show every panel in three planes, each with a slider through the slices of a mask.

    Args:
        panels: what is shown.
        around: the mask whose slices are shown; the first is where it is largest.
        brain: what pictures are cropped to.
        name: id of the first element, unique on the page.
    """
    return joined(*(_film(panels, around, brain, plane, name) for plane in PLANES))


def frame_of(brain: Volume, plane: str) -> tuple[slice, slice]:
    """Return the rows and columns that hold the brain in every slice of a plane."""
    seen = [slices.cut_slice(brain, plane, i) > 0 for i in range(slices.count_slices(brain, plane))]
    return find_frame(np.any(seen, axis=0))


def slices_through(mask: Volume, plane: str) -> tuple[list[int], int]:
    """Return the slices to show, and the place among them of the one with most of the mask."""
    axis = slices.find_axis(mask, plane)
    others = tuple(a for a in range(3) if a != axis)
    filled = np.flatnonzero((mask.data[0] > 0).any(axis=others))
    last = slices.count_slices(mask, plane) - 1
    if not len(filled):
        filled = np.array([0, last])
    first, end = max(0, int(filled[0]) - MARGIN), min(last, int(filled[-1]) + MARGIN)
    count = min(MOST_SLICES, end - first + 1)
    chosen = np.linspace(first, end, count).round().astype(int)
    fullest = slices.find_fullest(mask, plane)
    return chosen.tolist(), int(np.abs(chosen - fullest).argmin())


def _film(panels: Sequence[Panel], around: Volume, brain: Volume, plane: str, name: str) -> Html:
    frame = frame_of(brain, plane)
    chosen, start = slices_through(around, plane)
    shift = f"transform:translateY(-{100 * start / len(chosen):.4f}%)"
    figures = []
    for panel in panels:
        frames = [panel.drawn(plane, index, frame) for index in chosen]
        height, width = frames[0].shape[:2]
        uri = slices.encode_picture(np.concatenate(frames))
        film = image(uri, f"{panel.alt}, {plane}", class_="film", style=shift)
        window = tag("div", film, class_="window", style=f"aspect-ratio:{width}/{height}")
        figures.append(figure(window, panel.caption))
    handle = f"{name}-{plane}"
    slider = tag(
        "input", type="range", id=handle, min="0", max=str(len(chosen) - 1), value=str(start),
        data_slices=" ".join(map(str, chosen)), data_of=str(slices.count_slices(around, plane)),
    )  # fmt: skip
    said = tag(
        "output", f"{chosen[start] + 1} of {slices.count_slices(around, plane)}", for_=handle
    )
    label = tag("label", f"{plane} slice", for_=handle)
    return tag(
        "div", tag("div", *figures, class_="panels"),
        tag("div", label, slider, said, class_="control"), class_="slices",
    )  # fmt: skip
