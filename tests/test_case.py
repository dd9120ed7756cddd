"""Every naming is found, and every label belongs to its scheme."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case, discover, guess_scheme, require_unique, split_name
from synth.data.labels import ED, ET, NCR, SCHEMES, from_regions, region, require_scheme

GLI = "BraTS-GLI-00001-000"


@pytest.mark.parametrize(
    ("name", "case_id", "role"),
    [
        (f"{GLI}/{GLI}-t1n.nii.gz", GLI, "t1n"),
        ("x/BraTS-SSA-00002-000-t1c.nii.gz", "BraTS-SSA-00002-000", "t1c"),
        ("x/BraTS-PED-00003-000-seg.nii.gz", "BraTS-PED-00003-000", "seg"),
        ("x/BraTS-MET-00003-000-t2f.nii", "BraTS-MET-00003-000", "t2f"),
        ("x/BraTS2021_00000_t1ce.nii.gz", "BraTS2021_00000", "t1c"),
        ("x/BraTS20_Training_001_flair.nii.gz", "BraTS20_Training_001", "t2f"),
        (f"x/{GLI}-t1n-voided.nii.gz", GLI, "voided"),
        (f"x/{GLI}-mask.nii.gz", GLI, "mask"),
        (f"x/{GLI}-mask-healthy.nii.gz", GLI, "healthy"),
        (f"x/{GLI}-mask-unhealthy.nii.gz", GLI, "unhealthy"),
        ("flair/patient7.nii.gz", "patient7", "t2f"),
        ("seg/patient7.nii.gz", "patient7", "seg"),
        ("t1ce/BraTS2021_00000_t1ce.nii.gz", "BraTS2021_00000", "t1c"),
        ("x/readme.txt", None, None),
        ("x/t1.nii.gz", None, None),
        ("x/.hidden-t1n.nii.gz", None, None),
    ],
)
def test_every_naming_is_understood(name: str, case_id: str | None, role: str | None) -> None:
    assert split_name(Path(name)) == (case_id and (case_id, role))


def test_modality_folders_make_one_case(tmp_path: Path) -> None:
    for folder in ("t1", "t1ce", "t2", "flair", "seg"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p1.nii.gz").touch()
    (case,) = discover(tmp_path)
    assert set(case.files) == {*MODALITIES, "seg"}


def test_files_with_odd_names_are_counted(tmp_path: Path) -> None:
    def refusal(root: Path) -> str:
        with pytest.raises(SynthError) as caught:
            discover(root)
        assert f"{GLI}-t1n.nii.gz" in caught.value.hint
        return caught.value.message.removeprefix(f"{root}: no case found")

    notes, odd = tmp_path / "notes.txt", tmp_path / "Müller_T1 post.nii.gz"
    notes.touch()
    (tmp_path / "._M-t1n.nii.gz").touch()  # macOS leaves such beside a file
    assert refusal(tmp_path) == refusal(notes) == ""
    odd.touch()
    one = f": 1 NIfTI file, with no name it knows: {odd.name}"
    assert refusal(tmp_path) == refusal(odd) == one
    for k in range(4):
        (tmp_path / f"scan {k}.nii").touch()
    assert refusal(tmp_path) == f": 5 NIfTI files, none with a name it knows, e.g. {odd.name}"


def test_discovery_and_loading(make_case: Callable[..., Path]) -> None:
    make_case("BraTS-GLI-00002-000")
    first, second = discover(make_case(GLI).parent)
    assert (first.id, second.id) == (GLI, "BraTS-GLI-00002-000")
    assert first.patient == "BraTS-GLI-00001"
    assert set(np.unique(first.load("seg").data)) == {0, 1, 2, 3}
    hole = first.load("mask").data | (first.load("t1n").data == 0)
    assert np.array_equal(first.load("voided").data == 0, hole)
    with pytest.raises(SynthError, match=r"a: no seg file \(it has: t1n\)"):
        Case(id="a", files={"t1n": Path("a")}).load("seg")


def test_two_files_for_one_role_are_reported(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{GLI}-t1n.nii.gz").touch()
    with pytest.raises(SynthError, match="occurs twice"):
        require_unique(discover(tmp_path))


@pytest.mark.parametrize(
    ("case_id", "scheme"),
    [
        ("BraTS2021_00001", "brats2021"),
        ("BraTS20_Training_001", "brats2021"),
        (GLI, "brats2023"),
        ("BraTS-GLI-00001-101", "brats2024"),
        ("BraTS-PED-00001-000", "ped2024"),
        ("hospital-7", "brats2023"),
    ],
)
def test_scheme_follows_from_the_id(case_id: str, scheme: str) -> None:
    assert guess_scheme(case_id) == scheme


def test_labels_outside_the_scheme_are_an_error_that_names_the_right_one() -> None:
    labels = np.array([0, 1, 2, 4])
    with pytest.raises(SynthError, match="label 4 is outside the scheme brats2023") as caught:
        require_scheme(labels, "brats2023", name="x")
    assert "brats2021" in caught.value.hint
    require_scheme(labels, "brats2021", name="x")


def test_regions_follow_their_scheme() -> None:
    labels = np.array([0, 1, 2, 3, 4])
    assert region(labels, "brats2021", "ET").tolist() == [False, False, False, False, True]
    assert region(labels, "brats2023", "TC").tolist() == [False, True, False, True, False]
    assert region(labels, "ped2024", "ET").tolist() == [False, True, False, False, False]
    assert region(labels, "brats2024", "WT").tolist() == [False, True, True, True, False]
    for regions in SCHEMES.values():
        assert set(regions["ET"]) <= set(regions["TC"]) <= set(regions["WT"])


def test_regions_become_classes() -> None:
    wt, tc, et = np.array([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
    classes = from_regions(np.stack([wt, tc, et])[:, None, None])
    assert classes.ravel().tolist() == [0, ED, NCR, ET, 0]
