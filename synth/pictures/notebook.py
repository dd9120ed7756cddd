"""How a Volume or a Case shows itself in a notebook.

Cheap: a few slices, no figure; the pictures are in the HTML itself.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from synth.base.errors import SynthError
from synth.pictures import slices
from synth.pictures.slices import PLANES, draw_slice

if TYPE_CHECKING:
    from synth.data.case import Case
    from synth.data.volume import Volume

SIDE = 140
THUMBNAIL = 72
MOST_LABELS = 8
GAP = 2
_CELL = '<td style="text-align:left;padding:2px 10px 2px 0;vertical-align:middle">'


def volume_html(volume: Volume) -> str:
    """Return three planes of the first channel through its middle, and the facts."""
    kind = {"b": "mask", "i": "labels", "u": "labels"}.get(volume.data.dtype.kind, "image")
    shape = "×".join(map(str, volume.shape))
    spacing = "×".join(f"{s:.3g}" for s in volume.spacing_mm)
    channels = "" if len(volume.data) == 1 else f"{len(volume.data)} channels of "
    facts = f"{kind}: {channels}{shape} voxels of {spacing} mm, {_describe_values(volume, kind)}"
    if not volume.data.size:
        return f"<div>{facts}</div>"
    grey = volume.with_data(volume.data[:1].astype(np.float32))
    pictures = []
    for plane in PLANES:
        middle = slices.count_slices(volume, plane) // 2
        index = middle if kind == "image" else slices.find_fullest(volume, plane)
        pictures.append(draw_slice(grey, plane, index, side=SIDE))
    alt = f"{', '.join(PLANES)} slice of the {kind}"
    return f"<div>{_show_picture(_join_pictures(pictures), alt)}<br>{facts}</div>"


def case_html(case: Case) -> str:
    """Return a table of the case's files, each with an axial slice where the tumour is largest."""
    index = _find_tumour(case)
    rows = "".join(_write_row(case, role, index) for role in case.files)
    head = (
        f"<b>{html.escape(case.id)}</b>, {len(case.files)} files, labels {html.escape(case.scheme)}"
    )
    return f"<div>{head}<table>{rows}</table></div>"


def _write_row(case: Case, role: str, index: int | None) -> str:
    path = case.files[role]
    try:
        volume = case.load(role)
    except SynthError as error:  # a notebook shows the others all the same
        picture, facts = "", error.message
    else:
        grey = volume.with_data(volume.data.astype(np.float32))
        index = slices.count_slices(grey, "axial") // 2 if index is None else index
        picture = _show_picture(draw_slice(grey, "axial", index, side=THUMBNAIL), role)
        facts = "×".join(map(str, volume.shape))
    cells = (
        html.escape(role),
        picture,
        html.escape(facts),
        f"<code>{html.escape(str(path))}</code>",
    )
    return f"<tr>{''.join(f'{_CELL}{cell}</td>' for cell in cells)}</tr>"


def _find_tumour(case: Case) -> int | None:
    """Return the axial slice with most of the tumour, None where none can be read."""
    role = next((role for role in ("seg", "mask") if role in case.files), None)
    try:
        return slices.find_fullest(case.load(role), "axial") if role else None
    except SynthError:  # its own row says what is wrong
        return None


def _describe_values(volume: Volume, kind: str) -> str:
    data = volume.data
    if not data.size:
        return "empty"
    if kind == "mask":
        return f"{int(data.sum())} voxels set, {data.sum() * volume.voxel_ml:.4g} ml"
    labels = np.unique(data) if kind == "labels" else ()
    if 0 < len(labels) <= MOST_LABELS:
        return f"labels {' '.join(map(str, labels))}"
    return f"{data.dtype} from {data.min():.4g} to {data.max():.4g}"


def _join_pictures(pictures: list[np.ndarray]) -> np.ndarray:
    """Put pictures side by side on black, middle to middle."""
    height = max(len(picture) for picture in pictures)
    padded = []
    for picture in pictures:
        spare = height - len(picture)
        padded.append(np.pad(picture, ((spare // 2, spare - spare // 2), (0, GAP), (0, 0))))
    return np.concatenate(padded, axis=1)[:, :-GAP]


def _show_picture(picture: np.ndarray, alt: str) -> str:
    return f'<img src="{slices.encode_picture(picture)}" alt="{html.escape(alt)}">'
