"""A DICOM series is read as dcm2niix reads it; what is no scan is refused in words."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from nibabel import nifti1
from nibabel.funcs import as_closest_canonical
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from synth.base.errors import SynthError
from synth.cli import main
from synth.data.exchange.dicom import is_series, read_series
from synth.data.volume import Volume
from tests.conftest import rotation
from tests.test_wdm3d_generate import save_model

SHAPE = (20, 26, 12)  # columns, rows, slices
SPACING = 0.9, 1.1, 3.0  # between columns, rows, slices


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SHAPE, dtype=np.int16)


def slices(
    turn: tuple[float, float, float] = (0, 0, 0), *, flip: bool = False, seed: int = 0
) -> list[Dataset]:
    """The images of a series, aslant in the scanner, the last slice first if wanted."""
    axes = rotation(turn)
    across, down, normal = axes[:, 0], axes[:, 1], axes[:, 2] * (-1 if flip else 1)
    series, study, frame = (generate_uid() for _ in range(3))
    found = []
    for k in range(SHAPE[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            MRImageStorage,
            generate_uid(),
        )
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = (
            MRImageStorage,
            meta.MediaStorageSOPInstanceUID,
        )
        image.PatientName, image.PatientID = "Secret^Name", "12345"
        image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M"]
        image.Manufacturer = "SIEMENS"
        image.SeriesInstanceUID, image.StudyInstanceUID = series, study
        image.FrameOfReferenceUID = frame
        image.SeriesNumber, image.InstanceNumber = 3, k + 1
        image.SeriesDescription, image.ProtocolName = "t1", "t1"
        image.Rows, image.Columns = SHAPE[1], SHAPE[0]
        image.PixelSpacing = [SPACING[1], SPACING[0]]
        image.SliceThickness = SPACING[2]
        image.ImageOrientationPatient = [round(float(v), 9) for v in (*across, *down)]
        place = np.array([-20.0, -30, 5]) + k * SPACING[2] * normal
        image.ImagePositionPatient = [round(float(v), 6) for v in place]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelRepresentation = 1
        image.RescaleSlope, image.RescaleIntercept = 2, 10
        image.PixelData = np.ascontiguousarray(values(seed)[:, :, k].T).tobytes()
        found.append(image)
    return found


def write(images: list[Dataset], folder: Path) -> Path:
    """Write images under names in random order, without an ending."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in np.random.default_rng(1).permutation(len(images)):
        name = f"IM{len(list(folder.iterdir())):04d}"
        images[k].save_as(folder / name, enforce_file_format=True)
    return folder


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", [(0, 0, 0), (12, -7, 20), (90, 0, 0)])
def test_each_voxel_is_where_the_scanner_put_it(turn, flip: bool, tmp_path: Path) -> None:
    images = slices(turn, flip=flip)
    folder = write(images, tmp_path / "series")
    assert is_series(folder)
    volume = read_series(folder)
    assert sorted(volume.spacing_mm) == pytest.approx(sorted(SPACING))
    for k in (0, 5, SHAPE[2] - 1):
        column, row = 7, 19
        place = np.array(images[k].ImagePositionPatient, float)
        across, down = np.array(images[k].ImageOrientationPatient, float).reshape(2, 3)
        lps = place + column * SPACING[0] * across + row * SPACING[1] * down
        ras = np.append(lps * (-1, -1, 1), 1)
        index = np.linalg.solve(volume.affine, ras)[:3].round().astype(int)
        assert np.allclose((volume.affine @ np.append(index, 1))[:3], ras[:3], atol=1e-3)
        assert volume.data[0][tuple(index)] == 10 + 2 * values()[column, row, k]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not here")
@pytest.mark.parametrize("turn", [(0, 0, 0), (12, -7, 20), (90, 0, 0)])
def test_it_is_what_dcm2niix_writes(turn, tmp_path: Path) -> None:
    folder = write(slices(turn), tmp_path / "series")
    command = ["dcm2niix", "-f", "x", "-o", str(tmp_path), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    theirs = as_closest_canonical(nifti1.load(tmp_path / "x.nii"))
    mine = read_series(folder)
    ours = as_closest_canonical(nifti1.Nifti1Image(mine.data[0], mine.affine))
    assert np.allclose(ours.affine, theirs.affine, atol=1e-3)
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata())


def change(images: list[Dataset], **values: object) -> list[Dataset]:
    for name, value in values.items():
        setattr(images[4], name, value)
    return images


BAD = {
    "a missing slice": (lambda s: s[:5] + s[6:], "6 mm from slice 5 to 6, elsewhere 3"),
    "several series": (lambda s: s + slices(seed=1), "2 series, of 12, 12 images"),
    "two echoes": (
        lambda s: s + change(slices(), SeriesInstanceUID=s[0].SeriesInstanceUID)[4:5],
        "two images at one place",
    ),
    "a localiser": (lambda s: change(s, ImageType=["ORIGINAL", "LOCALIZER"]), "a localiser"),
    "few slices": (lambda s: s[:3], "3 slices"),
    "planes aslant": (
        lambda s: change(s, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        "ImageOrientationPatient differs",
    ),
    "frames": (lambda s: change(s, NumberOfFrames=2), "several frames in one file"),
    "colours": (lambda s: change(s, SamplesPerPixel=3), "images in colour"),
    "another size": (lambda s: change(s, PixelSpacing=[1, 2]), "PixelSpacing differs"),
    "no place": (lambda s: [delete(i) for i in s], "ImagePositionPatient is missing"),
}


def delete(image: Dataset) -> Dataset:
    del image.ImagePositionPatient
    return image


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_scan_is_refused(what: str, tmp_path: Path) -> None:
    spoil, said = BAD[what]
    with pytest.raises(SynthError, match=said):
        read_series(write(spoil(slices()), tmp_path / "series"))


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    images = slices()
    for k, image in enumerate(images):
        image.ImagePositionPatient = [-20, -30 + 0.5 * k, 5 + 3 * k]
    with pytest.raises(SynthError, match="gantry tilt"):
        read_series(write(images, tmp_path / "series"))


def test_other_folders_are_no_series(tmp_path: Path) -> None:
    assert not is_series(tmp_path)
    assert not is_series(tmp_path / "nothing")
    (tmp_path / "short").write_bytes(b"x")
    assert not is_series(tmp_path)
    with pytest.raises(SynthError, match="no DICOM image"):
        read_series(tmp_path)
    write(slices(), tmp_path)
    assert is_series(tmp_path)
    Volume(data=np.zeros((1, 8, 8, 8), np.float32), affine=np.eye(4)).save(tmp_path / "a.nii.gz")
    assert not is_series(tmp_path)  # a folder of NIfTI in which DICOM lies about


def test_without_a_mask_a_series_is_one_scan(tmp_path: Path, capsys) -> None:
    folder = write(slices(), tmp_path / "series")
    assert main(["inpaint", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert "no mask" in capsys.readouterr().err


def test_a_hole_in_a_dicom_head_is_painted_with_one_command(tmp_path: Path, monkeypatch) -> None:
    """The scan becomes NIfTI below OUT; outside the hole it is the series, bit for bit."""
    folder = write(slices(), tmp_path / "T1 scan")
    scan = read_series(folder)
    mask = np.zeros(scan.shape, np.uint8)
    mask[8:12, 10:14, 4:8] = 1
    path = scan.with_data(mask).save(tmp_path / "mask.nii.gz")
    model = save_model(tmp_path / "model")
    words = ["inpaint", folder, "--mask", path, "-o", tmp_path / "out", "--model", model]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    made = Volume.load(next((tmp_path / "out").glob("*-t1n-inference.nii.gz")))
    assert np.array_equal(made.data[0][mask == 0], scan.data[0][mask == 0])
    assert (made.data[0][mask == 1] != scan.data[0][mask == 1]).any()
    assert np.allclose(made.affine, scan.affine)
    assert not any(
        b"Secret" in p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    )
    assert pydicom.dcmread(next(folder.iterdir())).PatientID == "12345"  # the original is as it was
