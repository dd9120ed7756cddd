"""Pictures of filled holes: input, result, truth, error.

Slices go through the most of the healthy mask. Intensities are in units of the official window, in
which the metrics clip at 1; error and spread run from black at 0 to white at `ERROR_LIMIT`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from synth.data.volume import Volume
from synth.metrics.image import intensity_window
from synth.pictures.montage import Marks, draw_montage
from synth.pictures.slices import PLANES, colour_heat, cut_planes, find_frame

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

        It is zero in the tumour, where the truth is not the target, and shows changed known voxels.
        """
        answer, truth = (np.clip(p[plane], 0, 1) for p in (self.answers[method], self.truth))
        return np.abs(answer - truth) * (self.parts[plane] != 2)

    def mark(self, plane: int) -> Marks:
        """Return the outlines of the hole in a plane."""
        return self.parts[plane], OUTLINES, True

    def axial(self) -> HoleView:
        """Keep the first plane only: an overview of hundreds of cases must fit in memory."""
        answers = {name: planes[:1] for name, planes in self.answers.items()}
        return replace(self, voided=self.voided[:1], truth=self.truth[:1], answers=answers,
                       parts=self.parts[:1], sd=None)  # fmt: skip


def cut_hole(
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
    frames = [find_frame(plane, margin) for plane in cut_planes(truth.with_data(healthy), centre)]

    def cut(array: np.ndarray) -> list[np.ndarray]:
        planes = cut_planes(truth.with_data(array), centre)
        return [plane[frame].copy() for plane, frame in zip(planes, frames, strict=True)]

    def cut_scan(array: np.ndarray) -> list[np.ndarray]:
        return cut((array - low) / (high - low))

    return HoleView(
        voided=cut_scan(voided),
        truth=cut_scan(truth.data[0]),
        answers={name: cut_scan(array) for name, array in answers.items()},
        parts=cut(np.where(healthy, 1, 2 * hole).astype(np.uint8)),
        sd=None if sd is None else cut(sd / (high - low)),
    )


def draw_case(hole: HoleView, method: str, path: Path, *, title: str) -> Path:
    """Draw one answer in three planes: voided, answer, truth, |error|, and its spread if known."""
    columns = ["voided", method, "truth", f"|error|, 0 to {ERROR_LIMIT:g}"]
    columns += [] if hole.sd is None else [f"sd, 0 to {ERROR_LIMIT:g}"]
    rows, marks = [], {}
    for plane in range(len(PLANES)):
        heat = [hole.error(method, plane), *([] if hole.sd is None else [hole.sd[plane]])]
        row = [hole.voided[plane], hole.answers[method][plane], hole.truth[plane]]
        rows.append(row + [_colour_error(values) for values in heat])
        marks |= {(plane, column): hole.mark(plane) for column in (0, *range(3, len(columns)))}
    return draw_montage(
        rows, path, row_labels=PLANES, column_labels=columns, marks=marks, title=title,
        window=GREYS,
    )  # fmt: skip


def draw_overview(
    holes: Sequence[HoleView], labels: Sequence[str], method: str, path: Path, *, title: str
) -> Path:
    """Draw cases as rows, every method side by side, in the axial plane."""
    names = [n for n in holes[0].answers if n != method] + [method]
    columns = ["voided", *names, "truth", f"|error| of {method}"]
    rows, marks = [], {}
    for row, hole in enumerate(holes):
        answers = [hole.answers[name][0] for name in names]
        error = _colour_error(hole.error(method, 0))
        rows.append([hole.voided[0], *answers, hole.truth[0], error])
        marks |= {(row, column): hole.mark(0) for column in (0, len(columns) - 1)}
    return draw_montage(
        rows, path, row_labels=labels, column_labels=columns, marks=marks, title=title,
        window=GREYS,
    )  # fmt: skip


def _colour_error(values: np.ndarray) -> np.ndarray:
    return colour_heat(np.clip(values / ERROR_LIMIT, 0, 1))
