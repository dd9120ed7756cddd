"""Every naming is found, every label belongs to its scheme, folds never split a patient."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case, discover, guess_scheme, require_unique, split_name
from synth.data.labels import SCHEMES, region, require_scheme
from synth.data.split import Entry, Split, folds, hold_out, read_split, write_split

NAMINGS = [
    ("BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz", "BraTS-GLI-00001-000", "t1n"),
    ("x/BraTS-SSA-00002-000-t1c.nii.gz", "BraTS-SSA-00002-000", "t1c"),
    ("x/BraTS-PED-00003-000-seg.nii.gz", "BraTS-PED-00003-000", "seg"),
    ("x/BraTS-MET-00003-000-t2f.nii", "BraTS-MET-00003-000", "t2f"),
    ("x/BraTS2021_00000_t1ce.nii.gz", "BraTS2021_00000", "t1c"),
    ("x/BraTS20_Training_001_flair.nii.gz", "BraTS20_Training_001", "t2f"),
    ("x/BraTS-GLI-00001-000-t1n-voided.nii.gz", "BraTS-GLI-00001-000", "voided"),
    ("x/BraTS-GLI-00001-000-mask.nii.gz", "BraTS-GLI-00001-000", "mask"),
    ("x/BraTS-GLI-00001-000-mask-healthy.nii.gz", "BraTS-GLI-00001-000", "healthy"),
    ("x/BraTS-GLI-00001-000-mask-unhealthy.nii.gz", "BraTS-GLI-00001-000", "unhealthy"),
    ("flair/patient7.nii.gz", "patient7", "t2f"),
    ("seg/patient7.nii.gz", "patient7", "seg"),
    ("t1ce/BraTS2021_00000_t1ce.nii.gz", "BraTS2021_00000", "t1c"),
]


@pytest.mark.parametrize(("name", "case_id", "role"), NAMINGS)
def test_every_naming_is_understood(name: str, case_id: str, role: str) -> None:
    assert split_name(Path(name)) == (case_id, role)


@pytest.mark.parametrize("name", ["x/readme.txt", "x/t1.nii.gz", "x/.hidden-t1n.nii.gz"])
def test_other_files_are_left_alone(name: str) -> None:
    assert split_name(Path(name)) is None


def test_modality_folders_make_one_case(tmp_path: Path) -> None:
    for folder in ("t1", "t1ce", "t2", "flair", "seg"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p1.nii.gz").touch()
    (case,) = discover(tmp_path)
    assert set(case.files) == {*MODALITIES, "seg"}


def test_files_with_odd_names_are_counted(tmp_path: Path) -> None:
    def refusal(root: Path = tmp_path) -> str:
        with pytest.raises(SynthError) as caught:
            discover(root)
        assert "BraTS-GLI-00001-000-t1n.nii.gz" in caught.value.hint
        return caught.value.message

    (tmp_path / "notes.txt").touch()
    (tmp_path / "._M-t1n.nii.gz").touch()  # macOS leaves such beside a file
    assert refusal() == f"{tmp_path}: no case found"
    assert refusal(tmp_path / "notes.txt") == f"{tmp_path / 'notes.txt'}: no case found"
    odd = tmp_path / "Müller_T1 post.nii.gz"
    odd.touch()
    for root in (tmp_path, odd):
        assert refusal(root) == (
            f"{root}: no case found: 1 NIfTI file, with no name it knows: Müller_T1 post.nii.gz"
        )
    for k in range(4):
        (tmp_path / f"scan {k}.nii").touch()
    assert refusal() == (
        f"{tmp_path}: no case found: 5 NIfTI files, none with a name it knows, "
        "e.g. Müller_T1 post.nii.gz"
    )


def test_discovery_and_loading(make_case: Callable[..., Path]) -> None:
    make_case("BraTS-GLI-00002-000")
    root = make_case("BraTS-GLI-00001-000").parent
    first, second = discover(root)
    assert (first.id, second.id) == ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000")
    assert first.patient == "BraTS-GLI-00001"
    assert set(np.unique(first.load("seg").data)) == {0, 1, 2, 3}
    assert first.load("healthy").data.dtype == bool
    assert np.array_equal(first.load("voided").data == 0, first.load("mask").data
                          | (first.load("t1n").data == 0))  # fmt: skip


def test_missing_role_says_what_there_is(tmp_path: Path) -> None:
    case = Case(id="a", files={"t1n": tmp_path / "a"})
    with pytest.raises(SynthError, match=r"a: no seg file \(it has: t1n\)"):
        case.load("seg")


def test_two_files_for_one_role_are_reported(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "BraTS-GLI-00001-000-t1n.nii.gz").touch()
    cases = discover(tmp_path)
    with pytest.raises(SynthError, match="occurs twice"):
        require_unique(cases)


@pytest.mark.parametrize(
    ("case_id", "scheme"),
    [
        ("BraTS2021_00001", "brats2021"),
        ("BraTS20_Training_001", "brats2021"),
        ("BraTS-GLI-00001-000", "brats2023"),
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


def cohort(tmp_path: Path, patients: int, scans: int = 2) -> list[Case]:
    cases = []
    for p in range(patients):
        for s in range(scans):
            name = f"BraTS-GLI-{p:05d}-00{s}"
            path = tmp_path / name / f"{name}-t1n.nii.gz"
            path.parent.mkdir(parents=True)
            path.touch()
            cases.append(Case(id=name, files={"t1n": path}))
    return cases


def test_folds_group_patients_and_depend_on_the_seed_only(tmp_path: Path) -> None:
    cases = cohort(tmp_path, 11)
    entries = folds(cases, 5, seed=3)
    by_patient: dict[str, set] = {}
    for e in entries:
        by_patient.setdefault(e.case.patient, set()).add(e.fold)
    assert all(len(f) == 1 for f in by_patient.values())
    assert folds(list(reversed(cases)), 5, seed=3)[::-1] == entries
    assert folds(cases, 5, seed=4) != entries
    sizes = np.bincount([e.fold for e in entries])
    assert sizes.max() - sizes.min() <= 2


def test_hold_out_never_shares_a_patient(tmp_path: Path) -> None:
    train, held = hold_out(cohort(tmp_path, 10), 0.2, seed=1)
    assert len(held) == 4
    assert not {c.patient for c in train} & {c.patient for c in held}


def test_split_round_trip_and_no_leak_of_offspring(tmp_path: Path) -> None:
    a, b, c, d = cohort(tmp_path, 2)
    entries = (
        Entry(case=a, fold=0), Entry(case=b, fold=0), Entry(case=c, fold=1),
        Entry(case=d, fold=-1, source=a.id),
    )  # fmt: skip
    split = Split(training=entries)
    again = read_split(write_split(tmp_path / "split.json", split, tmp_path), tmp_path)
    assert [e.case.id for e in again.training] == [x.id for x in (a, b, c, d)]
    assert [e.fold for e in again.training] == [0, 0, 1, -1]
    train, held = again.fold(0)
    assert [x.id for x in held] == [a.id, b.id]
    assert [x.id for x in train] == [c.id], "d was made from a held-out case"
    assert {x.id for x in again.fold(1)[0]} == {a.id, b.id}, "d is a scan of c's patient"


def test_predecessors_files_are_read(tmp_path: Path) -> None:
    inpainting = {
        "training": [
            {
                "t1n": "A/A-t1n.nii.gz", "mask": "A/A-mask.nii.gz",
                "t1n_voided": "N/A-t1n-voided-fake_0.nii.gz",
                "mask_healthy": "N/A-mask-healthy-fake_0.nii.gz",
                "mask_unhealthy": "A/A-mask-unhealthy.nii.gz",
            }
        ],
        "testing": [{"t1n_voided": "B/B-t1n-voided.nii.gz", "mask": "B/B-mask.nii.gz"}],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(inpainting))
    split = read_split(tmp_path / "a.json")
    assert split.training[0].case.id == "A"
    assert set(split.training[0].case.files) == {"t1n", "mask", "voided", "healthy", "unhealthy"}
    assert split.testing[0].case.files["voided"].name == "B-t1n-voided.nii.gz"
    x = "BraTS-SSA-00001-000"
    row = {"fold": -1, "label": f"{x}/{x}-seg.nii.gz",
           "image": [f"{x}/{x}-{m}.nii.gz" for m in ("t2f", "t1c", "t1n", "t2w")]}  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps({"training": [row]}))
    (entry,) = read_split(tmp_path / "b.json").training
    assert entry.fold == -1
    assert all(entry.case.files[m].name.endswith(f"-{m}.nii.gz") for m in MODALITIES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a split"),
        ('{"training": 3}', "not a list"),
        ('{"training": [{"t1n": "../../etc/passwd"}]}', "leaves the data folder"),
        ('{"training": [{"t1n": "/etc/passwd"}]}', "leaves the data folder"),
        ('{"training": [{"fold": 0}]}', "names no file"),
        ('{"training": [{"t1n": "a.nii", "fold": "x"}]}', "fold 'x'"),
        ('{"training": [{"t1n": "a.nii", "scheme": "brats23"}]}', "scheme"),
    ],
)
def test_bad_splits_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(SynthError, match=words) as caught:
        read_split(tmp_path / "s.json")
    assert caught.value.hint
