"""Reads and writes FreeSurfer's volumes (.mgz), and makes a scan as `recon-all` conforms it."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from synth.base.errors import SynthError, first_line
from synth.base.files import atomic_path
from synth.data.volume import READ_ERRORS, Volume

ENDINGS = (".mgz", ".mgh")
CONFORMED = (256, 256, 256)
"""Voxels of 1 mm, in this order of axes: to the left, inferior, anterior."""


def read(path: Path) -> Volume:
    """Read a volume of FreeSurfer."""
    try:
        image = nib.freesurfer.mghformat.MGHImage.from_filename(path)
        values = np.asarray(image.dataobj, np.float32)
    except READ_ERRORS as error:
        raise SynthError(
            f"{path}: cannot be read: {first_line(error)}", hint="copy or convert it again"
        ) from error
    if values.ndim == 4 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise SynthError(f"{path}: expected a 3-D volume, got {values.shape}", hint="split it")
    volume = Volume(data=values[None], affine=np.asarray(image.affine, np.float64))
    volume.require_plausible(str(path))
    return volume


def write(volume: Volume, path: Path, *, conform: bool = False) -> Path:
    """Write one channel as .mgz; conformed to 256³ voxels of 1 mm if asked, else as it is."""
    from nibabel.processing import conform as conformed

    image = nib.nifti1.Nifti1Image(volume.data[0].astype(np.float32), volume.affine)
    if conform:
        image = conformed(image, out_shape=CONFORMED, orientation="LIA", order=3)
    data = np.asarray(image.dataobj, np.float32)
    if conform:  # a spline swings below the darkest and above the brightest voxel
        data = data.clip(volume.data.min(), volume.data.max())
    with atomic_path(path) as temporary:
        made = nib.freesurfer.mghformat.MGHImage(data, image.affine)
        blob = made.to_bytes()
        if path.suffix == ".mgz":
            blob = gzip.compress(blob, 1, mtime=0)
        temporary.write_bytes(blob)
    return path
