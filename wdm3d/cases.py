"""From the files of a case to what is painted: its scans, and the hole in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synth.base.errors import SynthError
from synth.data.case import Case, guess_scheme, split_name
from synth.data.labels import region
from synth.data.tumour_mask import dilated_tumour
from synth.data.volume import Volume
from wdm3d.data import load_images


def case_of(
    scan: Path, *, mask: Path | None = None, seg: Path | None = None, scheme: str = "auto"
) -> Case:
    """Return the case of a single scan; its id, which seeds the draws, is read off the name."""
    named = split_name(scan)
    case_id = named[0] if named else scan.name.removesuffix(".gz").removesuffix(".nii")
    files = {"t1n": scan} | {role: p for role, p in (("mask", mask), ("seg", seg)) if p}
    case = Case(id=case_id, files=files)
    return case.with_scheme(guess_scheme(case_id) if scheme == "auto" else scheme)


def sources_of(case: Case, contrasts: Sequence[str]) -> list[Path]:
    """Return the files that the answer depends on: the scans, and the mask or the labels."""
    return [case.path(role) for role in (*_scans(case, contrasts), _hole(case))]


def scans_of(case: Case, contrasts: Sequence[str]) -> Volume:
    """Return the scan to fill, one channel a contrast; a voided t1n will do."""
    return load_images(case, _scans(case, contrasts))


def hole_of(case: Case, image: Volume) -> Volume:
    """Return what to paint: the mask, or the dilated tumour."""
    if _hole(case) == "mask":
        return case.load("mask")
    labels = case.load("seg")
    image.require_same_grid(labels, ("image", "seg"))
    tumour = region(labels.data[0], case.scheme, "WT")
    return labels.with_data(dilated_tumour(tumour, image.spacing_mm))


def _scans(case: Case, contrasts: Sequence[str]) -> tuple[str, ...]:
    voided = "t1n" not in case.files and "voided" in case.files
    return ("voided",) if voided and tuple(contrasts) == ("t1n",) else tuple(contrasts)


def _hole(case: Case) -> str:
    for role in ("mask", "seg"):
        if role in case.files:
            return role
    raise SynthError(
        f"{case.id}: no mask file",
        hint="a -mask or a -seg file says where to paint; it has: "
        + (", ".join(case.files) or "nothing"),
    )
