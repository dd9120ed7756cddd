"""Checks of a cohort: one finding a case, with a hint what to do."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case, occurs_twice
from synth.data.prepare import brain_mask
from synth.data.volume import Volume

COMMON = 0.5  # a role that this share of the cohort has is expected of every case


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What `check` says of one case."""

    id: str
    problems: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    roles: tuple[str, ...] = ()
    tumour_ml: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the case can be used."""
        return not self.problems

    def lines(self) -> list[str]:
        """Return what to print: one line, or one for each problem."""
        if self.ok:
            ml = "" if self.tumour_ml is None else f", tumour {self.tumour_ml:g} ml"
            shape = "×".join(map(str, self.shape))
            spacing = "×".join(f"{s:g}" for s in self.spacing_mm)
            return [f"{self.id}: ok ({shape} at {spacing} mm{ml})"]
        pairs = zip(self.problems, self.hints, strict=True)
        return [f"{self.id}: {problem} → {hint}" for problem, hint in pairs]


def check(cases: Sequence[Case]) -> Iterator[Finding]:
    """Examine every case; problems are collected, not raised."""
    counts = Counter(role for c in cases for role in c.files)
    expected = [r for r, n in counts.items() if n >= COMMON * len(cases)]
    ids = Counter(c.id for c in cases)
    alike = Counter(name.lower() for name in ids)
    for case in cases:
        errors = [occurs_twice(case)] if ids[case.id] > 1 or case.duplicates else []
        if alike[case.id.lower()] > 1:
            hint = "some file systems take them for one: rename it"
            errors.append(SynthError("its id differs from another's in capitals alone", hint=hint))
        if not {*MODALITIES, "voided"} & case.files.keys():
            hint = "names of scans end in -t1n.nii.gz, _t1ce.nii.gz …"
            errors.append(SynthError(f"no scan, only {', '.join(case.files)}", hint=hint))
        errors += [
            SynthError(f"no {role} file", hint="most cases have one; add it or remove the case")
            for role in expected
            if role not in case.files
        ]
        yield _check_case(case, errors)


def _check_case(case: Case, errors: list[SynthError]) -> Finding:
    """Read everything a case has, and add what is wrong with it to its errors."""
    volumes: dict[str, Volume] = {}
    for role in case.files:
        with _collect(errors):
            volumes[role] = case.load(role)
    _check_volumes(volumes, errors)
    first = next(iter(volumes.values()), None)
    seg = volumes.get("seg")
    return Finding(
        id=case.id,
        problems=tuple(e.message for e in errors),
        hints=tuple(e.hint for e in errors),
        shape=first.shape if first else (),
        spacing_mm=tuple(round(s, 4) for s in first.spacing_mm) if first else (),
        roles=tuple(case.files),
        tumour_ml=round(float((seg.data > 0).sum()) * seg.voxel_ml, 2) if seg else None,
    )


def _check_volumes(volumes: dict[str, Volume], errors: list[SynthError]) -> None:
    """Require a brain in each image; then one grid for all, and masks that leave some brain."""
    images = [r for r in (*MODALITIES, "voided") if r in volumes]
    before = len(errors)
    for role in images:
        with _collect(errors):
            require_brain(volumes[role], role)
    if not images or len(errors) > before:
        return
    image = volumes[images[0]]
    for role, volume in volumes.items():
        with _collect(errors):
            if role in ("mask", "healthy"):
                require_usable_mask(volume, image, (images[0], role))
            else:
                image.require_same_grid(volume, (images[0], role))


@contextlib.contextmanager
def _collect(errors: list[SynthError]) -> Generator[None]:
    try:
        yield
    except SynthError as error:
        errors.append(error)


def require_brain(image: Volume, name: str) -> np.ndarray:
    """Return the brain mask, or refuse a volume that has none."""
    if not image.data.any() or np.ptp(image.data) == 0:
        raise SynthError(f"{name}: every voxel has the same value", hint="the scan is empty")
    return brain_mask(image)


def require_usable_mask(mask: Volume, image: Volume, names: tuple[str, str]) -> None:
    """Refuse a mask that is empty, off the grid, or leaves nothing of the brain to look at."""
    image.require_same_grid(mask, names)
    if not mask.data.any():
        raise SynthError(f"{names[1]}: the mask is empty", hint="there is nothing to inpaint")
    brain = require_brain(image, names[0])
    # A voided scan has lost the brain below its mask, so the share is of brain and mask together.
    if (mask.data[0] & brain).sum() >= 0.95 * brain.sum() or mask.data.mean() > 0.6:
        raise SynthError(
            f"{names[1]}: the mask covers the whole brain",
            hint="is it a brain mask? give the region to inpaint",
        )
