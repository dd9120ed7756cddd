"""BIDS: scans and lesion masks of participants in, a derivative data set out.

    BIDS/sub-01/[ses-1/]anat/sub-01_ses-1_T1w.nii.gz
    LESIONS/sub-01/[ses-1/]anat/sub-01_ses-1_label-lesion_mask.nii.gz
    OUT/sub-01/[ses-1/]anat/sub-01_ses-1_desc-inpainted_T1w.nii.gz, and a sidecar (JSON)

Lesion masks may be called label-lesion_mask, label-lesion_roi or desc-lesion_mask. Names are read
in `synth.data.case`.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synth.base.errors import SynthError
from synth.base.files import atomic_path, write_json, write_text
from synth.base.version import __version__
from synth.data.brain import LARGEST_BRAIN_ML
from synth.data.case import Case, discover
from synth.data.prepare import brain_mask
from synth.data.volume import Volume

VERSION = "1.10.0"
"""Of the standard."""
WORK = "work"
NAMES = {
    "t1n": "desc-inpainted_T1w", "t1c": "ce-agent_desc-inpainted_T1w",
    "t2w": "desc-inpainted_T2w", "t2f": "desc-inpainted_FLAIR",
}  # fmt: skip


def participants(bids: Path, lesions: Path | None = None, labels: Sequence[str] = ()) -> list[Case]:
    """Return the sessions that have a scan and a lesion mask.

    Args:
        bids: the data set.
        lesions: where the masks are, if elsewhere, such as BIDS/derivatives/lesions.
        labels: participants, with or without "sub-"; all if none is named.
    """
    if not (bids / "dataset_description.json").is_file():
        raise SynthError(f"{bids}: no dataset_description.json", hint="is it a BIDS data set?")
    own = [c for c in discover(bids) if c.id.startswith("sub-")]
    masks = {c.id: c.files["mask"] for c in (discover(lesions) if lesions else own)
             if "mask" in c.files}  # fmt: skip
    wanted = {f"sub-{label.removeprefix('sub-')}" for label in labels}
    known = {c.id.partition("_")[0] for c in own}
    if missing := sorted(wanted - known):
        raise SynthError(f"{bids}: no {missing[0]}", hint=f"it has {', '.join(sorted(known))}")
    found = [
        dataclasses.replace(c, files={**c.files, "mask": masks[c.id]})
        for c in own
        if c.id in masks and (not wanted or c.id.partition("_")[0] in wanted)
    ]
    if not found:
        raise SynthError(
            f"{lesions or bids}: no lesion mask of these participants",
            hint="names are like sub-01_label-lesion_mask.nii.gz; --lesions says where they are",
        )
    return found


def describe(out: Path) -> None:
    """Write what the derivative data set is."""
    write_json(out / "dataset_description.json", {
        "Name": "Scans without lesions", "BIDSVersion": VERSION, "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "synth", "Version": __version__}],
    })  # fmt: skip
    write_text(out / "README", "Healthy tissue was painted where lesions were (synth inpaint).\n")
    write_text(out / ".bidsignore", f"{WORK}\n{WORK}/**\n")


def put(case: Case, contrast: str, painted: Path, record: Mapping[str, Any], out: Path) -> Path:
    """Copy a painted scan to its place in the derivative; its record becomes the sidecar."""
    subject, _, session = case.id.partition("_")
    name = f"{case.id}_{NAMES[contrast]}"
    folder = (out / subject / session if session else out / subject) / "anat"
    target = folder / f"{name}.nii.gz"
    with atomic_path(target) as temporary:
        shutil.copyfile(painted, temporary)
    scan, mask = case.path(contrast), case.path("mask")
    hole, image = Volume.load_mask(mask).data, Volume.load(scan)
    stripped = brain_mask(image).sum() * image.voxel_ml <= LARGEST_BRAIN_ML
    arguments = record["arguments"]
    write_json(folder / f"{name}.json", {
        "Description": "Healthy tissue painted where the lesion mask is; the rest bit for bit.",
        "Sources": [f"bids::{_below_root(scan)}"],
        "LesionMask": f"bids::{_below_root(mask)}",
        "VoxelsChanged": int(hole.sum()), "SkullStripped": bool(stripped),
        "ModelHash": arguments["weights"], "Seed": arguments["seed"],
        "Estimate": arguments["estimate"], "Versions": record["versions"],
    })  # fmt: skip
    return target


def _below_root(path: Path) -> str:
    """Return a path from the subject's folder on."""
    parts = path.parts
    start = next((k for k, part in enumerate(parts) if re.fullmatch(r"sub-[a-zA-Z0-9]+", part)), -1)
    return "/".join(parts[start:])
