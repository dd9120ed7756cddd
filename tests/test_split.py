"""Folds never split a patient, nothing of a held-out case is trained on, old files are read."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from synth.base.errors import SynthError
from synth.cli import main
from synth.data.case import MODALITIES, Case
from synth.data.split import (
    Entry,
    Split,
    assign_folds,
    hold_out,
    join,
    keep_folds,
    read_split,
    set_folds_aside,
    split_cases,
    write_split,
)


def cohort(patients: int, folder: Path = Path("/d")) -> list[Case]:
    """Two scans of each patient."""
    names = [f"BraTS-GLI-{p:05d}-{scan:03d}" for p in range(patients) for scan in (0, 1)]
    return [Case(id=n, files={"t1n": folder / n / f"{n}-t1n.nii.gz"}) for n in names]


def patients_of(entries: Sequence[Entry], fold: int) -> set[str]:
    return {e.case.patient for e in entries if e.fold == fold}


def test_patients_stay_together_and_the_seed_alone_decides() -> None:
    cases = cohort(11)
    entries = split_cases(cases, count=5, seed=3).training
    sizes = [len(patients_of(entries, fold)) for fold in range(5)]
    assert sum(sizes) == 11
    assert max(sizes) - min(sizes) == 1
    assert split_cases(cases[::-1], count=5, seed=3).training[::-1] == entries
    assert split_cases(cases, count=5, seed=4).training != entries
    with pytest.raises(SynthError, match="11 patients cannot fill 12 folds"):
        split_cases(cases, count=12)
    train, held = hold_out(cases, 0.2, seed=1)
    assert len(held) == 4
    assert not {c.patient for c in train} & {c.patient for c in held}


def test_folds_of_given_sizes_are_kept_and_put_aside_whole() -> None:
    split = split_cases(cohort(7), sizes=(4, 3), seed=3)
    of = [patients_of(split.training, fold) for fold in (0, 1)]
    assert [len(patients) for patients in of] == [4, 3]
    without = set_folds_aside(split, (1,))
    assert {e.case.patient for e in without.training} == of[0]
    assert {e.case.patient for e in without.testing} == of[1]
    assert {e.case.patient for e in keep_folds(split, (1,)).training} == of[1]
    assert assign_folds(split, count=0, sizes=(), seed=9) == split
    torn = Split(training=tuple(replace(e, fold=i % 2) for i, e in enumerate(split.training)))
    for words, wrong in {
        r"4 \+ 4 patients, but there are 7": lambda: split_cases(cohort(7), sizes=(4, 4)),
        "no fold 2": lambda: set_folds_aside(split, (2,)),
        "in another": lambda: set_folds_aside(torn, (1,)),
        "already": lambda: assign_folds(split, count=5, sizes=(), seed=9),
    }.items():
        with pytest.raises(SynthError, match=words):
            wrong()


def test_made_cases_of_two_folds_are_joined_under_ids_of_their_own() -> None:
    real = split_cases(cohort(3), count=3)
    source = real.training[0].case
    made = Entry(case=Case(id=f"{source.id}-tumour00-synth00", files={}), fold=-1,
                 source=source.id, seen_folds=(0,))  # fmt: skip
    split = replace(real, training=(*real.training, made))
    joined = join([split, split])
    found = [e.case for e in joined.training if e.source]
    assert len({c.id for c in found}) == 2
    assert {(c.patient, c.origin) for c in found} == {(source.patient, source.id)}
    assert joined.real == list(real.training)
    with pytest.raises(SynthError, match="differ in their real cases"):
        join([split, split_cases(cohort(4), count=3)])


def test_a_split_that_has_made_cases_already_is_left_as_it_is(tmp_path: Path) -> None:
    for case in cohort(2, tmp_path / "data"):
        case.files["t1n"].parent.mkdir(parents=True)
        case.files["t1n"].touch()
    file = tmp_path / "folds.json"
    words = ["split", str(tmp_path / "data"), "-o", str(file), "--folds", "2"]
    assert main(words) == 0
    assert {e.fold for e in read_split(file).training} == {0, 1}
    values = json.loads(file.read_text())
    row = dict(values["training"][0], case="a-synth00", source=values["training"][0]["case"])
    values["training"].append(row | {"fold": -1})
    file.write_text(json.dumps(values))
    before = file.read_bytes()
    assert main(words) == 0
    assert main([*words, "--seed", "1"]) == 0  # the same folds by chance
    assert main([*words, "--seed", "3"]) == 2  # other folds are refused
    assert file.read_bytes() == before
    assert main([*words[:2], "-o", str(file), "--sizes", "1", "1", "--only", "0"]) == 2


def test_split_round_trip_and_no_leak_of_offspring(tmp_path: Path) -> None:
    a, b, c, d = cohort(2, tmp_path)
    entries = (
        Entry(case=a, fold=0), Entry(case=b, fold=0), Entry(case=c, fold=1),
        Entry(case=d, fold=-1, source=a.id, seen_folds=(0,)),
    )  # fmt: skip
    split = Split(training=entries)
    again = read_split(write_split(tmp_path / "split.json", split, tmp_path), tmp_path)
    assert again == split
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
        ("[]", "not an object"),
        ("{}", "not a split"),
        ('{"training": 3}', "training = 3 is not a list"),
        ('{"training": [{"t1n": "../../etc/passwd"}]}', "leaves the data folder"),
        ('{"training": [{"t1n": "/etc/passwd"}]}', "leaves the data folder"),
        ('{"training": [{"fold": 0}]}', "names no file"),
        ('{"training": [{"t1n": "a.nii", "fold": "x"}]}', "fold = 'x' is not of type"),
        ('{"training": [{"t1n": "a.nii", "fold": true}]}', "fold = True is not of type"),
        ('{"training": [{"t1n": "a.nii", "fold": -2}]}', "fold -2"),
        ('{"training": [{"t1n": "a.nii", "seen_folds": "12"}]}', "not a list"),
        ('{"training": [{"t1n": "a.nii", "seen_folds": [1.5]}]}', "1.5 is not of type int"),
        ('{"training": [{"t1n": "a.nii", "source": 1}]}', "source = 1 is not"),
        ('{"training": [{"image": null}]}', "image = None is not"),
        ('{"training": [{"image": [5]}]}', "image"),
        ('{"training": [{"t1n": "\\u0000.nii"}]}', "null byte"),
        ('{"training": [{"t1n": "%s.nii"}]}' % ("a" * 300), "too long"),
        ('{"training": [{"t1n": "a.nii", "case": "../x"}]}', "case id '../x'"),
        ('{"training": [{"t1n": "a.nii", "case": "a\\u001b[2J"}]}', "case id"),
        ('{"training": [{"t1n": "a.nii", "case": 5}]}', "case = 5 is not"),
        ('{"training": [{"t1n": "a.nii", "scheme": {}}]}', "scheme"),
        ('{"format": "1", "training": []}', "format = '1'"),
        ('{"format": 2, "training": []}', "format 2"),
        ('{"training": [], "training": []}', "occurs twice"),
        ("[" * 5000, "not valid JSON"),
        ('{"format": %s}' % ("9" * 5000), "not valid JSON"),
        ('{"training": [{"t1n": "a.nii", "scheme": "brats23"}]}', "scheme"),
    ],
)
def test_bad_splits_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(SynthError, match=words) as caught:
        read_split(tmp_path / "s.json")
    assert caught.value.hint
