"""A 3-D image: array, affine, header; reading and writing NIfTI.

Axis order is (C, X, Y, Z) everywhere; X, Y, Z are the array axes of the NIfTI file. Only
`prepare` changes orientation, and it knows the way back.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from synth.base.errors import SynthError, first_line
from synth.base.files import atomic_path

MAX_VOXELS = 2**27  # 512³; a larger claim is a broken header, not a brain
DEFLATE_LIMIT = 1032
"""No byte of gzip holds more bytes than this: a larger claim cannot be true."""
PLACE_FIELDS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
                "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "pixdim")  # fmt: skip
TEXT_FIELDS = {"descrip", "aux_file", "db_name", "intent_name"}
SMALLEST, LARGEST = 1e-20, 1e15
"""Bounds of a scan's brightest voxel: sums of squares must stay finite in float32."""
CONVERTERS = {
    ".dcm": "it is DICOM: dcm2niix converts a series to NIfTI",
    ".nrrd": "it is NRRD: 3D Slicer saves it as NIfTI",
    ".mgz": "it is FreeSurfer's: mri_convert a.mgz a.nii.gz",
}
NIFTI = (nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair)
EXTENT_MM = (10.0, 1000.0)
"""Of the longest edge of a scan of a head."""
READ_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError,
               OverflowError, MemoryError, LookupError)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """Voxels and where they are. A mask is a bool Volume, a label map an integer one."""

    data: np.ndarray
    """(C, X, Y, Z); float32 for images, bool for masks, int16 for labels."""
    affine: np.ndarray
    """(4, 4) float64, voxel to world (mm)."""
    header: nib.Nifti1Header | None = None
    """The header of the file it was read from, without free text; the output carries it."""

    def __post_init__(self) -> None:
        assert self.data.ndim == 4, f"Volume wants (C, X, Y, Z), got {self.data.shape}"
        assert self.affine.shape == (4, 4), f"affine is 4×4, got {self.affine.shape}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Spatial shape (X, Y, Z)."""
        x, y, z = self.data.shape[1:]
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def with_data(self, data: np.ndarray) -> Volume:
        """Return other voxels on the same grid; (X, Y, Z) gains its channel axis."""
        return replace(self, data=data[None] if data.ndim == 3 else data)

    def require_same_grid(self, other: Volume, names: tuple[str, str] = ("image", "mask")) -> None:
        """Refuse two volumes whose voxels are not the same places."""
        if self.shape != other.shape:
            raise SynthError(
                f"{names[1]} and {names[0]} differ in shape: {other.shape} vs {self.shape}",
                hint=f"resample the {names[1]} onto the {names[0]}'s grid",
            )
        if not np.allclose(self.affine, other.affine, atol=1e-3):
            off = _corner_distance_mm(self, other)
            raise SynthError(
                f"{names[1]} and {names[0]} differ in affine: up to {off:.3g} mm apart",
                hint=f"resample the {names[1]} onto the {names[0]}'s grid, or copy the header "
                "if you know that the voxels match",
            )

    def require_plausible(self, name: str) -> None:
        """Refuse intensities and sizes that no scan of a head has."""
        if not np.isfinite(self.data).all():
            count = int((~np.isfinite(self.data)).sum())
            raise SynthError(
                f"{name}: {count} voxels are NaN or Inf", hint="replace them, e.g. by 0, and retry"
            )
        largest = float(np.abs(self.data).max())
        if largest and not SMALLEST < largest < LARGEST:
            raise SynthError(
                f"{name}: intensities of up to {largest:.3g}", hint="are its bytes in order?"
            )
        _require_extent(self.affine, self.shape, name)

    def _repr_html_(self) -> str:
        """Show three planes, size, spacing and range in a notebook."""
        from synth.pictures.notebook import volume_html

        return volume_html(self)

    @classmethod
    def load(cls, path: str | Path) -> Volume:
        """Read an image as float32; NaN and Inf are refused."""
        image, values = _read(Path(path))
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            data = values.astype(np.float32)
        header = _without_text(image.header)
        volume = cls(data=data[None], affine=_affine(image, path), header=header)
        volume.require_plausible(str(path))
        return volume

    @classmethod
    def load_mask(cls, path: str | Path) -> Volume:
        """Read a mask; anything but 0 and 1 is refused."""
        image, values = _read(Path(path))
        odd = values[(values != 0) & (values != 1)]
        if odd.size:
            raise SynthError(
                f"{path}: a mask holds 0 and 1 only, found {float(odd.flat[0]):g} "
                f"in {odd.size} voxels",
                hint="threshold it first; a label map goes in as the segmentation",
            )
        return cls(data=(values == 1)[None], affine=_affine(image, path))

    @classmethod
    def load_labels(cls, path: str | Path) -> Volume:
        """Read a label map; fractions are refused."""
        image, values = _read(Path(path))
        labels = np.nan_to_num(values, nan=0.5, posinf=0.5, neginf=0.5)
        if not (labels == np.rint(labels)).all() or np.abs(labels).max(initial=0) > 32767:
            raise SynthError(
                f"{path}: a label map holds small whole numbers only",
                hint="was it resampled with linear interpolation? Use nearest neighbour",
            )
        return cls(data=labels.astype(np.int16)[None], affine=_affine(image, path))

    def save(self, path: str | Path) -> Path:
        """Write NIfTI, one channel: float32 for images, uint8 for masks and labels; atomic."""
        path = Path(path)
        assert self.data.shape[0] == 1, "one file holds one channel"
        data = self.data[0]
        if data.dtype == bool or np.issubdtype(data.dtype, np.integer):
            small = data.size == 0 or (data.min() >= 0 and data.max() <= 255)
            data = data.astype(np.uint8 if small else np.int16)
        else:
            data = data.astype(np.float32)
        header = self.header.copy() if self.header is not None else None
        if header is not None:
            # The input's dtype and scaling must not touch our values: see header.set_slope_inter.
            header.set_data_dtype(data.dtype)
            header.set_slope_inter(1, 0)
            header["cal_min"], header["cal_max"] = 0, 0
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(data, self.affine, header)
        image.header.set_data_dtype(data.dtype)
        if header is None:
            image.header.set_xyzt_units("mm")
        elif np.array_equal(header.get_best_affine(), self.affine):
            for name in PLACE_FIELDS:  # nibabel adds an sform where there was a qform alone
                image.header[name] = header[name]
        blob = image.to_bytes()
        with atomic_path(path) as temporary:
            packed = path.name.endswith(".gz")
            temporary.write_bytes(gzip.compress(blob, 1, mtime=0) if packed else blob)
        return path


def _without_text(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """Return a header without free text and extensions, which may name a patient."""
    clean = header.copy()
    for name in TEXT_FIELDS & {*clean.keys()}:
        clean[name] = b""
    clean.extensions.clear()
    return clean


def _read(path: Path) -> tuple[nib.Nifti1Pair, np.ndarray]:
    """Return the image and its (X, Y, Z) values after slope and intercept."""
    if not path.is_file():
        raise SynthError(f"{path}: no such file", hint="check the path and its spelling")
    try:
        with np.errstate(all="ignore"):  # of damaged numbers; what matters is looked at below
            return _read_nifti(path)
    except READ_ERRORS as error:
        others = (hint for ending, hint in CONVERTERS.items() if path.name.lower().endswith(ending))
        raise SynthError(
            f"{path}: cannot be read as NIfTI: {first_line(error)}",
            hint=next(others, "the file is damaged or not an image; copy or convert it again"),
        ) from error


def _read_nifti(path: Path) -> tuple[nib.Nifti1Pair, np.ndarray]:
    kind = next((k for k in NIFTI if k.path_maybe_image(path)[0]), None)
    if kind is None:
        raise ValueError("it is of another format")
    image = kind.from_filename(path)
    shape = _spatial_shape(image.shape, path)
    _require_scalars(image, path)
    _require_room(image, path)
    return image, np.asanyarray(image.dataobj).reshape(shape)


def _require_scalars(image: nib.Nifti1Pair, path: Path) -> None:
    kind = image.get_data_dtype()
    if kind.kind not in "uifb":
        name = "RGB colours" if kind.fields or kind.kind == "V" else f"type {kind}"
        raise SynthError(f"{path}: voxels of {name}", hint="convert to a scalar type first")


def _require_room(image: nib.Nifti1Pair, path: Path) -> None:
    """Refuse a header that claims more voxels than its file can hold, before they get memory."""
    claimed = int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    data = Path(image.file_map["image"].filename or path)
    packed = DEFLATE_LIMIT if data.name.endswith(".gz") else 1
    if claimed > packed * data.stat().st_size:
        raise SynthError(
            f"{path}: the header claims {claimed:,} bytes of voxels, the file is shorter",
            hint="it was cut off: copy or convert it again",
        )


def _spatial_shape(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    # Trailing axes of length one are a habit of some scanners' converters.
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise SynthError(
            f"{path}: expected a 3-D volume, got shape {tuple(shape)}",
            hint="split a 4-D series into one file a volume",
        )
    if np.prod([float(n) for n in shape]) > MAX_VOXELS or min(shape) < 1:
        raise SynthError(
            f"{path}: the header claims {'×'.join(map(str, shape))} voxels",
            hint="the header is damaged; convert the original again",
        )
    return tuple(int(n) for n in shape)


def _affine(image: nib.Nifti1Pair, path: str | Path) -> np.ndarray:
    affine = np.asarray(image.affine, np.float64)
    with np.errstate(all="ignore"):
        usable = abs(np.linalg.det(affine[:3, :3])) >= 1e-9
    if not np.isfinite(affine).all() or not usable:
        raise SynthError(
            f"{path}: the affine is singular or not finite",
            hint="repair the header's sform or qform",
        )
    try:
        unit = image.header.get_xyzt_units()[0]
    except LookupError:
        unit = "unknown unit"
    if unit not in ("mm", "unknown"):
        raise SynthError(f"{path}: lengths in {unit}s", hint="convert the header to millimetres")
    _require_extent(affine, image.shape[:3], str(path))
    return affine


def _require_extent(affine: np.ndarray, shape: Sequence[int], name: str) -> None:
    with np.errstate(all="ignore"):
        longest = max(np.linalg.norm(affine[:3, :3], axis=0) * shape)
    if not EXTENT_MM[0] <= longest <= EXTENT_MM[1]:
        raise SynthError(
            f"{name}: the scan is {longest:.3g} mm long", hint="are its voxel sizes in millimetres?"
        )


def _corner_distance_mm(a: Volume, b: Volume) -> float:
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array(a.shape) - 1
    return float(np.abs(corners @ (a.affine - b.affine).T).max())
