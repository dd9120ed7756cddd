"""FreeSurfer's volumes go in and come out; the conformed one lies where the scan lies."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synth.base.errors import SynthError
from synth.cli import main
from synth.data.exchange.freesurfer import read, write
from synth.data.volume import Volume
from tests.conftest import LPS, ball, brain
from tests.test_wdm3d_generate import save_model


def scan() -> Volume:
    return Volume(data=brain((20, 24, 18))[None].astype(np.float32), affine=LPS)


def test_a_scan_comes_back(tmp_path: Path) -> None:
    volume = scan()
    path = write(volume, tmp_path / "a.mgz")
    image = nib.freesurfer.mghformat.MGHImage.from_filename(path)
    assert np.array_equal(np.asarray(image.dataobj), volume.data[0])
    back = read(path)
    assert np.array_equal(back.data, volume.data)
    assert np.allclose(back.affine, volume.affine)


def test_a_conformed_scan_is_as_recon_all_wants_it_and_where_it_was(tmp_path: Path) -> None:
    volume = Volume(data=scan().data, affine=LPS @ np.diag([2.0, 1.5, 1.2, 1]))
    image = nib.freesurfer.mghformat.MGHImage.from_filename(
        write(volume, tmp_path / "a.mgz", conform=True)
    )
    assert image.shape == (256, 256, 256)
    assert nib.orientations.aff2axcodes(image.affine) == ("L", "I", "A")
    assert np.allclose(np.abs(image.affine[:3, :3]).sum(0), 1)
    data = np.asarray(image.dataobj)
    centres = []
    for values, affine in ((volume.data[0], volume.affine), (data, image.affine)):
        weights = values / values.sum()
        index = [float((weights * i).sum()) for i in np.indices(values.shape)]
        centres.append(affine[:3] @ np.append(index, 1))
    assert np.allclose(*centres, atol=0.3)
    assert volume.data.min() <= data.min()
    assert data.max() <= volume.data.max()


def test_mgz_in_and_out_with_one_command(tmp_path: Path) -> None:
    volume = scan()
    path = write(volume, tmp_path / "orig.mgz")
    mask = ball(volume.shape, (12, 12, 9), 3) & (volume.data[0] > 0)
    hole = write(volume.with_data(mask.astype(np.float32)), tmp_path / "lesion.mgz")
    model = save_model(tmp_path / "model")
    words = ["inpaint", path, "--mask", hole, "-o", tmp_path / "out", "--model", model, "--mgz"]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    made = read(tmp_path / "out" / "orig-t1n-inference.mgz")
    assert np.array_equal(made.data[0][~mask], volume.data[0][~mask])
    assert (made.data[0][mask] != volume.data[0][mask]).any()
    assert np.allclose(made.affine, volume.affine)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mgz").write_bytes(b"x" * 50)
    with pytest.raises(SynthError, match="cannot be read"):
        read(tmp_path / "a.mgz")
