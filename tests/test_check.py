"""`check` names every kind of damage, in one line with a hint, and goes on with the other cases."""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synth.cli import main
from synth.data.case import discover
from synth.data.check import check
from synth.data.volume import Volume
from tests.conftest import LPS, brain, write_case

BAD = "BraTS-GLI-00002-000"
Damage = Callable[[Path], object]


def save(path: Path, data: np.ndarray, affine: np.ndarray = LPS) -> None:
    nib.save(nib.Nifti1Image(data, affine), path)


def role(name: str) -> Callable[[Path], Path]:
    return lambda folder: folder / f"{BAD}-{name}.nii.gz"


t1n, mask, healthy, seg = (role(r) for r in ("t1n", "mask", "mask-healthy", "seg"))
moved = LPS + np.diag([0, 0, 0.5, 0])
nan = brain()
nan[4, 4, 4] = np.nan
DAMAGE: dict[str, tuple[Damage, str]] = {
    "missing modality": (lambda f: t1n(f).unlink(), "no t1n file"),
    "missing mask": (lambda f: mask(f).unlink(), "no mask file"),
    "text": (lambda f: t1n(f).write_text("hello"), "cannot be read"),
    "truncated": (lambda f: t1n(f).write_bytes(t1n(f).read_bytes()[:900]), "cannot be read"),
    "shape": (lambda f: save(mask(f), np.zeros((20, 24, 17), np.uint8)), "differ in shape"),
    "affine": (lambda f: save(healthy(f), (brain() > 600) * np.uint8(1), moved), "affine"),
    "4-D": (lambda f: save(t1n(f), np.zeros((20, 24, 18, 2), np.int16)), "3-D"),
    "zero": (lambda f: save(t1n(f), np.zeros((20, 24, 18), np.int16)), "same value"),
    "nan": (lambda f: save(t1n(f), nan), "NaN"),
    "empty mask": (lambda f: save(mask(f), np.zeros((20, 24, 18), np.uint8)), "empty"),
    "whole brain": (lambda f: save(mask(f), (brain(seed=1) > 0) * np.uint8(1)), "whole brain"),
    "not binary": (lambda f: save(mask(f), np.arange(8640.0).reshape(20, 24, 18)), "0 and 1"),
    "labels": (lambda f: save(seg(f), (brain() > 0) * np.uint8(7)), "label 7 is outside"),
    "huge": (
        lambda f: t1n(f).write_bytes(
            gzip.compress(_huge().binaryblock + bytes(100))
        ),
        "claims 32767",
    ),
    "duplicate": (
        lambda f: save(f.parent / f"{BAD}-t1n.nii.gz", brain()),
        "occurs twice",
    ),
}  # fmt: skip


def _huge() -> nib.Nifti1Header:
    header = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), LPS).header
    header["dim"][1:4] = 32767
    return header


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_others_pass(tmp_path: Path, kind: str) -> None:
    for number in (1, 2, 3):
        write_case(tmp_path, f"BraTS-GLI-{number:05d}-000", seed=number)
    damage, words = DAMAGE[kind]
    damage(tmp_path / BAD)
    findings = {f.id: f for f in check(discover(tmp_path))}
    assert [f.id for f in findings.values() if not f.ok] == [BAD]
    assert any(words in p for p in findings[BAD].problems), findings[BAD].problems
    assert all(findings[BAD].hints)
    assert not any("\n" in p for p in findings[BAD].problems)


def test_command_line_prints_a_line_a_case_and_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path, "BraTS-GLI-00001-000")
    assert main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 case, 1 ok, 0 with problems"
    write_case(tmp_path, BAD)
    assert main(["check", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("BraTS-GLI-00001-000: ok (20×24×18 at 1×1×1 mm, tumour 0.")
    assert out[-1] == "2 cases, 2 ok, 0 with problems"
    t1n(tmp_path / BAD).write_text("x")
    assert main(["check", str(tmp_path), "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["bad"] == [BAD]
    assert [c["ok"] for c in answer["cases"]] == [True, False]


def test_scheme_can_be_given(tmp_path: Path) -> None:
    folder = write_case(tmp_path)
    labels = Volume.load_labels(folder / f"{folder.name}-seg.nii.gz")
    four = np.where(labels.data == 3, 4, labels.data)
    dataclasses.replace(labels, data=four).save(folder / f"{folder.name}-seg.nii.gz")
    (finding,) = check(discover(tmp_path))
    assert "brats2021" in finding.hints[0]
    (finding,) = check(discover(tmp_path, scheme="brats2021"))
    assert finding.ok


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"training": [{"t1n": "../x.nii.gz"}]}', "leaves the data folder"),
        ('{"training": [{"t1n": "a/a-t1n.nii.gz"}]}', "no such file"),
        (None, "cannot be read"),
    ],
)
def test_splits_are_examined_too(
    tmp_path: Path, text: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    split = tmp_path / "split.json"
    if text is not None:
        split.write_text(text)
    assert main(["check", str(tmp_path), "--split", str(split)]) == 2
    shown = capsys.readouterr()
    assert words in shown.out + shown.err
    assert "→" in shown.out + shown.err
