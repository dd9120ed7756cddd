"""How a Volume or a Case shows itself in a notebook.

Cheap: a few slices, no figure; the pictures are in the HTML itself.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from synth.base.errors import SynthError
from synth.pictures import slices
from synth.pictures.montage import PLANES

if TYPE_CHECKING:
    from synth.data.case import Case
    from synth.data.volume import Volume

SIDE = 140
THUMBNAIL = 72
MOST_COLOURS = 8
_CELL = '<td style="text-align:left;padding:2px 10px 2px 0;vertical-align:middle">'


def volume_html(volume: Volume) -> str:
    """Return three planes of the first channel through its middle, and the facts."""
    kind = {"b": "mask", "i": "labels", "u": "labels"}.get(volume.data.dtype.kind, "image")
    shape = "×".join(map(str, volume.shape))
    spacing = "×".join(f"{s:.3g}" for s in volume.spacing_mm)
    channels = "" if len(volume.data) == 1 else f"{len(volume.data)} channels of "
    facts = f"{kind}: {channels}{shape} voxels of {spacing} mm, {_range(volume, kind)}"
    if not volume.data.size:
        return f"<div>{facts}</div>"
    pictures = [
        slices.draw(
            volume.with_data(volume.data[:1].astype(np.float32)), plane,
            slices.depth(volume, plane) // 2 if kind == "image"
            else slices.fullest(volume, plane),
            side=SIDE,
        )
        for plane in PLANES
    ]  # fmt: skip
    alt = f"{', '.join(PLANES)} slice of the {kind}"
    return f"<div>{_image(slices.row(pictures), alt)}<br>{facts}</div>"


def case_html(case: Case) -> str:
    """Return a table of the case's files, each with an axial slice where the tumour is largest."""
    index = _slice_of(case)
    rows = "".join(_row(case, role, index) for role in case.files)
    head = f"<b>{html.escape(case.id)}</b>, {len(case.files)} files, labels {case.scheme}"
    return f"<div>{head}<table>{rows}</table></div>"


def _row(case: Case, role: str, index: int | None) -> str:
    path = case.files[role]
    try:
        volume = case.load(role)
    except SynthError as error:  # a notebook shows the others all the same
        shown, facts = "", error.message
    else:
        grey = volume.with_data(volume.data.astype(np.float32))
        place = slices.depth(grey, "axial") // 2 if index is None else index
        shown = _image(slices.draw(grey, "axial", place, side=THUMBNAIL), role)
        facts = "×".join(map(str, volume.shape))
    cells = (role, shown, html.escape(facts), f"<code>{html.escape(str(path))}</code>")
    return f"<tr>{''.join(f'{_CELL}{cell}</td>' for cell in cells)}</tr>"


def _slice_of(case: Case) -> int | None:
    for role in ("seg", "mask"):
        if role in case.files:
            try:
                return slices.fullest(case.load(role), "axial")
            except SynthError:  # its own row says what is wrong
                return None
    return None


def _range(volume: Volume, kind: str) -> str:
    data = volume.data
    if not data.size:
        return "empty"
    if kind == "mask":
        return f"{int(data.sum())} voxels set, {data.sum() * volume.voxel_ml:.4g} ml"
    if kind == "labels":
        found = np.unique(data)
        if len(found) <= MOST_COLOURS:
            return f"labels {' '.join(map(str, found.tolist()))}"
    return f"{data.dtype} from {data.min():.4g} to {data.max():.4g}"


def _image(picture: np.ndarray, alt: str) -> str:
    return f'<img src="{slices.data_uri(picture)}" alt="{html.escape(alt)}">'
