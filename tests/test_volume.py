"""NIfTI in and out: values, grid and header survive; damage is named in one line."""

import contextlib
import gzip
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synth.base.errors import SynthError
from synth.base.files import atomic_path
from synth.data.volume import Volume
from tests.conftest import LPS, brain


def write(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, LPS), path)
    return path


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64]
)
def test_values_of_every_dtype_survive_the_round_trip(tmp_path: Path, dtype: type) -> None:
    data = (brain() / 5).astype(dtype)
    volume = Volume.load(write(tmp_path / "a.nii.gz", data))
    again = nib.load(volume.save(tmp_path / "b.nii.gz"))
    assert again.get_data_dtype() == np.float32
    assert np.array_equal(np.asanyarray(again.dataobj), data.astype(np.float32))
    assert np.array_equal(again.affine, LPS)
    assert (tmp_path / "b.nii.gz").read_bytes() == volume.save(tmp_path / "c.nii.gz").read_bytes()


def test_slope_and_intercept_are_applied_once(tmp_path: Path) -> None:
    raw = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    blob = bytearray(nib.Nifti1Image(raw, LPS @ np.diag([4, 4, 4, 1])).to_bytes())
    header = nib.Nifti1Header(bytes(blob[:348]), check=False)
    header["scl_slope"], header["scl_inter"] = 0.5, 3
    blob[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(bytes(blob))
    volume = Volume.load(tmp_path / "a.nii")
    assert np.array_equal(volume.data[0], 0.5 * raw + 3)
    again = nib.load(volume.save(tmp_path / "b.nii.gz"))
    assert np.array_equal(np.asanyarray(again.dataobj), volume.data[0])


def test_header_facts_are_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(brain(), LPS)
    image.header["descrip"] = b"scanner 7"
    image.set_sform(LPS, code=4)
    image.set_qform(LPS, code=1)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "a.nii.gz")
    again = nib.load(Volume.load(tmp_path / "a.nii.gz").save(tmp_path / "b.nii.gz")).header
    assert (int(again["sform_code"]), int(again["qform_code"])) == (4, 1)
    assert again["descrip"].item() == b""  # it may name a patient
    assert not again.extensions


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_qform_alone_stays_alone_and_nifti_2_stays_nifti_2(tmp_path: Path, kind: type) -> None:
    image = kind(brain(), LPS)
    image.set_sform(None, code=0)
    image.set_qform(LPS, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    again = nib.load(Volume.load(tmp_path / "a.nii.gz").save(tmp_path / "b.nii.gz"))
    assert type(again) is kind
    for name in {*image.header.keys()} - {"datatype", "bitpix", "scl_slope", "scl_inter", "magic"}:
        assert np.array_equal(again.header[name], nib.load(tmp_path / "a.nii.gz").header[name]), (
            name
        )


def singular(path: Path) -> None:
    image = nib.Nifti1Image(brain(), None)
    image.header["sform_code"] = 1  # and its rows are all zero
    nib.save(image, path)


def boast(path: Path) -> None:
    """Claim more voxels than there can be."""
    header = nib.Nifti2Header()
    header.set_data_shape((10**5, 10**5, 10**5))
    header["vox_offset"], header["magic"] = 544, b"n+2\0\r\n\x1a\n"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(100)))


@pytest.mark.parametrize(
    ("damage", "words"),  # more of it in test_check.py
    [
        (lambda _: None, "no such file"),
        (boast, "claims 100000×100000×100000"),
        (singular, "singular"),
        (lambda p: write(p, brain().astype(np.complex64)), "complex64"),
    ],
)
def test_damage_is_named_with_a_hint(tmp_path: Path, damage, words: str) -> None:
    damage(tmp_path / "bad.nii.gz")
    with pytest.raises(SynthError, match=words) as caught:
        Volume.load(tmp_path / "bad.nii.gz")
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_masks_and_labels_are_strict(tmp_path: Path) -> None:
    fractions = write(tmp_path / "half.nii.gz", (brain() > 0) * 0.5)
    with pytest.raises(SynthError, match="0 and 1 only"):
        Volume.load_mask(fractions)
    with pytest.raises(SynthError, match="whole numbers"):
        Volume.load_labels(fractions)
    assert Volume.load_mask(write(tmp_path / "m.nii.gz", (brain() > 0) * 1.0)).data.dtype == bool


def test_different_grids_are_refused() -> None:
    a = Volume(data=brain()[None], affine=LPS)
    with pytest.raises(SynthError, match=r"differ in shape: \(20, 24, 17\) vs \(20, 24, 18\)"):
        a.require_same_grid(Volume(data=a.data[..., :-1], affine=LPS))
    moved = LPS.copy()
    moved[0, 3] += 2
    with pytest.raises(SynthError, match="up to 2 mm apart"):
        a.require_same_grid(Volume(data=a.data, affine=moved))


def test_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with contextlib.suppress(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with pytest.raises(SynthError, match="cannot write"):
        Volume(data=brain()[None], affine=LPS).save(path / "a.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The kernel refuses to write past 4 kB, as it does on a full disk."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from synth.base.errors import SynthError\n"
        "from synth.data.volume import Volume\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "noise = np.random.default_rng(0).normal(size=(1, 40, 40, 40)).astype(np.float32)\n"
        "volume = Volume(data=noise, affine=np.eye(4))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: volume.save(sys.argv[1])\n"
        "except SynthError as error: print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.nii.gz")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "cannot write" in answer.stdout
    assert "free space" in answer.stdout
    assert list(tmp_path.iterdir()) == []
