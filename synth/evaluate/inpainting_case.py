"""A case with a hole whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from nibabel import orientations

from synth.base.errors import SynthError
from synth.data.case import Case
from synth.data.check import require_usable_mask
from synth.data.prepare import RAS
from synth.data.volume import Volume


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownHole:
    """What is known about a hole: all arrays are (X, Y, Z), axes as in the file."""

    truth: Volume
    voided: np.ndarray
    healthy: np.ndarray
    """Where the truth is known, so where answers are judged."""
    hole: np.ndarray
    """What has to be filled."""


def load_hole(case: Case) -> KnownHole:
    """Read the truth of a case; what must lie on one grid does.

    The hole is the union of the masks there are. Without a voided scan, the truth with that hole
    set to 0 is one.
    """
    if case.duplicates:
        raise SynthError("a role has two files", hint=f"remove {case.duplicates[0]}")
    truth, healthy = case.load("t1n"), case.load("healthy")
    require_usable_mask(healthy, truth, ("t1n", "mask-healthy"))
    if not {"voided", "mask"} & case.files.keys():
        raise SynthError("neither t1n-voided nor mask", hint="one of them says what was hidden")
    hole = healthy.data[0]
    for role in ("mask", "unhealthy"):
        if role in case.files:
            part = case.load(role)
            truth.require_same_grid(part, ("t1n", role))
            hole = hole | part.data[0]
    voided = truth.with_data(np.where(hole, 0, truth.data[0]))
    if "voided" in case.files:
        voided = case.load("voided")
        truth.require_same_grid(voided, ("t1n", "t1n-voided"))
    return KnownHole(truth=truth, voided=voided.data[0], healthy=healthy.data[0], hole=hole)


def fill_native(
    fill: Callable[[np.ndarray, np.ndarray], np.ndarray], known: KnownHole
) -> np.ndarray:
    """Apply a fill, which wants RAS axes, to the voided scan; returns the file's axes."""
    towards = orientations.io_orientation(known.truth.affine)
    back = orientations.ornt_transform(RAS, towards)
    # A voided file that still holds something below the mask must not help.
    image = np.where(known.hole, np.float32(0), known.voided)
    filled = fill(
        np.ascontiguousarray(orientations.apply_orientation(image, towards)),
        np.ascontiguousarray(orientations.apply_orientation(known.hole, towards)),
    )
    return orientations.apply_orientation(filled, back).astype(np.float32)
