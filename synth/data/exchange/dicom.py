"""Reads a DICOM series as a Volume: one scan of one patient, a file a slice.

    volume = read_series(Path("T1_MPRAGE"))

Slices are ordered by where they are, not by name or number; values are rescaled; the affine is
NIfTI's (right, anterior, superior). What is no such scan is refused and said: a localiser, several
series, a missing slice, two images at one place. Nothing of the headers is kept but the geometry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from synth.base.errors import SynthError, first_line
from synth.data.volume import Volume

LEAST_SLICES = 5
SAME_PLACE_MM = 0.01
UNEVEN = 0.05  # of the distance of slices
TILT = 0.02  # of a slice's step along the slice: above, the gantry was tilted
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CONVERTER = "dcm2niix converts most of what scanners write"


def is_series(path: Path) -> bool:
    """Whether a folder holds DICOM files and no NIfTI; a file is looked into, not named."""
    if not path.is_dir():
        return False
    files = [p for p in sorted(path.iterdir()) if p.is_file() and p.name[0] != "."]
    if any(p.name.endswith((".nii", ".nii.gz")) for p in files):
        return False
    return any(_is_dicom(p) for p in files)


def read_series(folder: Path) -> Volume:
    """Read the one series in a folder."""
    images = _images(folder)
    first = images[0]
    across, down = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(across, down)
    images = sorted(images, key=lambda image: float(normal @ _place(image)))
    places = np.array([_place(image) for image in images])
    _require_even(places, normal, folder)
    affine = np.eye(4)
    rows_mm, columns_mm = (float(v) for v in first.PixelSpacing)
    affine[:3, 0], affine[:3, 1] = across * columns_mm, down * rows_mm
    affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1)
    affine[:3, 3] = places[0]
    data = np.stack([_values(image, folder).T for image in images], axis=-1)  # (column, row, slice)
    volume = Volume(data=data[None].astype(np.float32), affine=TO_RAS @ affine)
    volume.require_plausible(str(folder))
    return volume


def _images(folder: Path) -> list[Any]:
    """Read the headers of all images, and refuse what is not one scan."""
    import pydicom

    paths = [p for p in sorted(folder.iterdir()) if p.is_file() and _is_dicom(p)]
    images = [pydicom.dcmread(path) for path in paths]
    images = [image for image in images if "PixelData" in image]
    if not images:
        raise SynthError(f"{folder}: no DICOM image", hint="give the folder of one series")
    series: dict[str, list[Any]] = {}
    for image in images:
        series.setdefault(str(image.SeriesInstanceUID), []).append(image)
    if len(series) > 1:
        sizes = ", ".join(str(len(own)) for own in series.values())
        raise SynthError(
            f"{folder}: {len(series)} series, of {sizes} images", hint="one folder for each series"
        )
    for image in images:
        _require_slice(image, folder)
    if len(images) < LEAST_SLICES:
        raise SynthError(f"{folder}: {len(images)} slices", hint="a localiser is no scan")
    for name in ("ImageOrientationPatient", "PixelSpacing"):
        values = np.array([getattr(image, name) for image in images], float)
        if np.ptp(values, axis=0).max() > 1e-3:
            raise SynthError(
                f"{folder}: {name} differs from slice to slice",
                hint="a localiser, or several series in one: give the folder of one",
            )
    if len({(image.Rows, image.Columns) for image in images}) > 1:
        raise SynthError(f"{folder}: slices of different sizes", hint="several series in one?")
    return images


def _require_slice(image: Any, folder: Path) -> None:
    kind = [str(word).upper() for word in image.get("ImageType", ())]
    if "LOCALIZER" in kind:
        raise SynthError(f"{folder}: a localiser", hint="give the folder of a 3-D series")
    if int(image.get("NumberOfFrames", 1)) > 1:
        raise SynthError(f"{folder}: several frames in one file (enhanced DICOM)", hint=CONVERTER)
    if int(image.get("SamplesPerPixel", 1)) > 1:
        raise SynthError(f"{folder}: images in colour", hint="a report or a map, not a scan")
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if name not in image:
            raise SynthError(f"{folder}: {name} is missing", hint=CONVERTER)


def _require_even(places: np.ndarray, normal: np.ndarray, folder: Path) -> None:
    """Refuse gaps, two images at one place, and slices that are not stacked straight."""
    along = places @ normal
    steps = np.diff(along)
    usual = float(np.median(steps))
    if usual < SAME_PLACE_MM or steps.min() < SAME_PLACE_MM:
        raise SynthError(
            f"{folder}: two images at one place", hint="echoes or time points? one folder for each"
        )
    gaps = np.flatnonzero(np.abs(steps - usual) > UNEVEN * usual)
    if len(gaps):
        k = int(gaps[0])
        raise SynthError(
            f"{folder}: {steps[k]:.3g} mm from slice {k + 1} to {k + 2}, elsewhere {usual:.3g}",
            hint="a slice is missing: copy the series again",
        )
    sideways = np.linalg.norm((places[-1] - places[0]) - (along[-1] - along[0]) * normal)
    if sideways > TILT * (along[-1] - along[0]):
        raise SynthError(f"{folder}: slices are stacked aslant (gantry tilt)", hint=CONVERTER)


def _values(image: Any, folder: Path) -> np.ndarray:  # (rows, columns)
    try:
        pixels = image.pixel_array
    except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
        raise SynthError(f"{folder}: {first_line(error)}", hint=CONVERTER) from error
    slope, intercept = image.get("RescaleSlope", 1), image.get("RescaleIntercept", 0)
    return pixels * float(slope) + float(intercept)


def _place(image: Any) -> np.ndarray:
    return np.array(image.ImagePositionPatient, float)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
