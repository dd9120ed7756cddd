"""Pictures of filled holes: input, result, truth, error.

Slices go through the most of the healthy mask. Intensities are in units of the official window, in
which the metrics clip at 1; error and spread run from black at 0 to white at `ERROR_LIMIT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synth.data.volume import Volume
from synth.metrics.image import intensity_window
from synth.pictures.montage import PLANES, Overlay, display_planes, montage, square_around

GREYS = (0.0, 1.2)  # the window saturates white matter at 1
ERROR_LIMIT = 0.3
CONTEXT_MM = 25.0
OUTLINES = {1: "#3ec8f5", 2: "#f5a524"}  # judged (healthy), filled but not judged (tumour)


@dataclass(frozen=True, kw_only=True)
class HoleView:
    """Three planes through a hole, cropped to it, in display orientation."""

    voided: list[np.ndarray]
    truth: list[np.ndarray]
    answers: dict[str, list[np.ndarray]]
    parts: list[np.ndarray]
    """1 where judged, 2 in the rest of the hole."""
    sd: list[np.ndarray] | None = None

    def error(self, method: str, plane: int) -> np.ndarray:
        """Return |answer − truth| as the metrics see it, clipped to the window.

        Below a tumour the truth is no target; a change of known voxels shows, as it should.
        """
        answer, true = (np.clip(p[plane], 0, 1) for p in (self.answers[method], self.truth))
        return np.abs(answer - true) * (self.parts[plane] != 2)

    def axial(self) -> HoleView:
        """Keep the first plane only: an overview of hundreds of cases must fit in memory."""
        return HoleView(
            voided=self.voided[:1],
            truth=self.truth[:1],
            answers={name: planes[:1] for name, planes in self.answers.items()},
            parts=self.parts[:1],
        )


def view(
    truth: Volume,
    voided: np.ndarray,
    healthy: np.ndarray,
    hole: np.ndarray,
    answers: Mapping[str, np.ndarray],
    sd: np.ndarray | None = None,
) -> HoleView:
    """Cut the planes of a case; every array is (X, Y, Z) on the grid of `truth`."""
    low, high = intensity_window(voided)
    centre = [
        int(healthy.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)
    ]
    margin = round(CONTEXT_MM / float(np.mean(truth.spacing_mm)))
    frames = [
        square_around(plane, margin) for plane in display_planes(truth.with_data(healthy), centre)
    ]

    def cut(array: np.ndarray) -> list[np.ndarray]:
        planes = display_planes(truth.with_data(array), centre)
        return [plane[frame].copy() for plane, frame in zip(planes, frames, strict=True)]

    def unit(array: np.ndarray) -> np.ndarray:
        return (array - low) / (high - low)

    return HoleView(
        voided=cut(unit(voided)),
        truth=cut(unit(truth.data[0])),
        answers={name: cut(unit(a)) for name, a in answers.items()},
        parts=cut(np.where(healthy, 1, 2 * hole).astype(np.uint8)),
        sd=None if sd is None else cut(sd / (high - low)),
    )


def case_picture(seen: HoleView, method: str, path: Path, *, title: str) -> Path:
    """Draw one answer in three planes: voided, answer, truth, |error|, and its spread if known."""
    columns = ["voided", method, "truth", f"|error|, 0 to {ERROR_LIMIT:g}"]
    columns += [] if seen.sd is None else [f"sd, 0 to {ERROR_LIMIT:g}"]
    rows, overlays = [], {}
    for plane in range(len(PLANES)):
        row = [seen.voided[plane], seen.answers[method][plane], seen.truth[plane]]
        row.append(_heat(seen.error(method, plane)))
        row += [] if seen.sd is None else [_heat(seen.sd[plane])]
        overlays |= {(plane, c): _outline(seen, plane) for c in (0, *range(3, len(row)))}
        rows.append(row)
    return montage(
        rows, path, row_labels=PLANES, column_labels=columns, overlays=overlays, title=title,
        window=GREYS,
    )  # fmt: skip


def overview(
    seen: Sequence[HoleView], labels: Sequence[str], method: str, path: Path, *, title: str
) -> Path:
    """Draw cases as rows, every method side by side, in the axial plane."""
    names = [n for n in seen[0].answers if n != method] + [method]
    rows = [
        [v.voided[0], *(v.answers[n][0] for n in names), v.truth[0], _heat(v.error(method, 0))]
        for v in seen
    ]
    last = len(names) + 2
    overlays = {(r, c): _outline(v, 0) for r, v in enumerate(seen) for c in (0, last)}
    columns = ["voided", *names, "truth", f"|error| of {method}"]
    return montage(
        rows, path, row_labels=labels, column_labels=columns, overlays=overlays, title=title,
        window=GREYS,
    )  # fmt: skip


def _outline(seen: HoleView, plane: int) -> Overlay:
    return seen.parts[plane], OUTLINES, True


def _heat(plane: np.ndarray) -> np.ndarray:
    """Colour a plane: (rows, columns, 3)."""
    from matplotlib import colormaps

    return colormaps["inferno"](np.clip(plane / ERROR_LIMIT, 0, 1))[..., :3]
