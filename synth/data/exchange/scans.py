"""Scans of other formats, as NIfTI: the folder of a DICOM series, FreeSurfer's .mgz."""

from __future__ import annotations

from pathlib import Path

from synth.data.exchange import dicom, freesurfer

FOLDER = "converted"


def as_nifti(path: Path, out: Path, role: str = "") -> Path:
    """Return a NIfTI file as it is; of another format, the one that is written of it below OUT.

    A role such as t1n is put behind its name.
    """
    if path.name.endswith(freesurfer.ENDINGS):
        volume, name = freesurfer.read(path), path.stem
    elif dicom.is_series(path):
        volume, name = dicom.read_series(path), path.resolve().name
    else:
        return path
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    suffix = f"-{role}" if role else ""
    return volume.save(out / FOLDER / f"{plain}{suffix}.nii.gz")
