"""Random grids, orientations, kinds of voxels and headers: nothing but the mask changes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synth.base.errors import SynthError
from synth.data.volume import Volume
from tests.conftest import ball, brain
from wdm3d.config import SamplerOptions
from wdm3d.generate import inpaint, load

TYPES = ("i1", "u1", "<i2", ">i2", "<u2", ">i4", "<f4", ">f4", "<f8")
MAY_CHANGE = {
    *("datatype", "bitpix", "scl_slope", "scl_inter", "cal_min", "cal_max", "magic", "vox_offset"),
    *("sizeof_hdr", "descrip", "aux_file", "db_name", "intent_name"),
}


def random_scan(rng: np.random.Generator) -> nib.Nifti1Image:
    """A small brain on any grid that a scanner or a converter may have made."""
    shape = tuple(int(n) for n in rng.integers(18, 30, 3))
    values = brain(shape, seed=int(rng.integers(1000)))
    kind = np.dtype(str(rng.choice(TYPES)))
    if kind.kind in "ui":
        top = 100 if kind.itemsize == 1 else 1000
        values = values / values.max() * top
    turned = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag(rng.uniform(0.8, 4, 3))
    if rng.random() < 0.5:
        affine[:3, :3] += rng.uniform(-0.1, 0.1, (3, 3))
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    image_kind = nib.Nifti2Image if rng.random() < 0.3 else nib.Nifti1Image
    header = image_kind.header_class(endianness=">" if kind.byteorder == ">" else "<")
    image = image_kind(values.astype(kind), affine, header)
    image.header.set_data_dtype(kind)
    codes = [(1, 0), (0, 1), (4, 1), (2, 2)][int(rng.integers(4))]
    orthogonal = np.allclose(np.cov(affine[:3, :3]), np.diag(np.diag(np.cov(affine[:3, :3]))))
    if codes[0] == 0:  # a quaternion holds no shear
        affine[:3, :3] = turned @ np.diag(rng.uniform(0.8, 4, 3))
    image.set_sform(affine if codes[0] else None, code=codes[0])
    if codes[1] and (orthogonal or codes[0] == 0):
        image.set_qform(affine, code=codes[1])
    else:
        image.set_qform(None, code=0)
    image.header["toffset"], image.header["intent_code"] = 3, 0
    image.header.set_xyzt_units("mm", "sec")
    if kind.kind in "ui" and rng.random() < 0.3:
        image.header.set_slope_inter(0.5, 2)
    return image


@pytest.mark.parametrize(
    ("first", "count"), [(0, 12), pytest.param(12, 1000, marks=pytest.mark.slow)]
)
def test_nothing_but_the_mask_changes(tmp_path: Path, first: int, count: int) -> None:
    model = load(Path(__file__).parents[2] / "weights" / "wdm3d_known")
    options = SamplerOptions(estimate="sample", steps=1)
    refused = 0
    for seed in range(first, first + count):
        image = random_scan(np.random.default_rng([seed, 7]))
        path = tmp_path / "a.nii"
        nib.save(image, path)
        scan = Volume.load(path)
        inside = np.argwhere(scan.data[0] > np.median(scan.data[0]))
        hole = ball(scan.shape, tuple(inside[len(inside) // 2]), 3)
        try:
            filled = inpaint(scan, scan.with_data(hole), model=model, options=options).image
        except SynthError:
            refused += 1
            continue
        again = nib.load(filled.save(tmp_path / "b.nii.gz"))
        before = nib.load(path)
        known = ~hole
        assert type(again) is type(before)
        assert np.array_equal(np.asanyarray(again.dataobj)[known], scan.data[0][known]), seed
        assert np.array_equal(again.affine, before.affine), seed
        for name in {*before.header.keys()} - MAY_CHANGE:
            assert np.array_equal(again.header[name], before.header[name]), (
                seed,
                name,
            )
    assert refused <= count // 20
