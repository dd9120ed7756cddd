"""From the files of a case to what is painted: its scans, and the hole in them."""

from __future__ import annotations

from pathlib import Path

from synth.case import Case, guess_scheme, region, split_name
from synth.volume import Volume
from wdm3d.config import Config
from wdm3d.data import dilated_tumour, load_images


def case_of(
    scan: Path, *, mask: Path | None = None, seg: Path | None = None, scheme: str = "auto"
) -> Case:
    """Return the case of a single scan; its id, which seeds the draws, is read off the name."""
    named = split_name(scan)
    case_id = named[0] if named else scan.name.removesuffix(".gz").removesuffix(".nii")
    files = {"t1n": scan} | {role: p for role, p in (("mask", mask), ("seg", seg)) if p}
    case = Case(id=case_id, files=files)
    return case.with_scheme(guess_scheme(case_id) if scheme == "auto" else scheme)


def scans_of(case: Case, config: Config) -> tuple[Volume, list[Path]]:
    """Return the scan to fill, one channel a contrast, and its files; a voided t1n will do."""
    if config.modalities == ("t1n",) and "t1n" not in case.files and "voided" in case.files:
        return case.load("voided"), [case.path("voided")]
    return load_images(case, config.modalities), [case.path(m) for m in config.modalities]


def hole_of(case: Case, image: Volume) -> tuple[Volume, Path]:
    """Return what to paint and the file it follows from: the mask, or the dilated tumour."""
    if "mask" in case.files or "seg" not in case.files:
        return case.load("mask"), case.path("mask")
    labels = case.load("seg")
    image.require_same_grid(labels, ("image", "seg"))
    tumour = region(labels.data[0], case.scheme, "WT")
    return labels.with_data(dilated_tumour(tumour, image.spacing_mm)), case.path("seg")
