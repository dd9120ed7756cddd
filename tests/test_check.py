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
from tests import spoil
from tests.conftest import LPS, brain, write_case

BAD = "BraTS-GLI-00002-000"


def save(path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data, LPS), path)


def claim(path: Path) -> None:
    """Claim more voxels than there can be."""
    header = nib.load(path).header
    header["dim"][1:4] = 32767
    path.write_bytes(gzip.compress(header.binaryblock + bytes(100)))


def duplicate(path: Path) -> None:
    save(path.parents[1] / path.name, brain())


@pytest.mark.parametrize(
    ("role", "damage", "words"),
    [
        ("t1n", spoil.remove, "no t1n file"),
        ("mask", spoil.remove, "no mask file"),
        ("t1n", spoil.text, "cannot be read"),
        ("t1n", spoil.truncate, "cannot be read"),
        ("mask", spoil.crop, "differ in shape"),
        ("mask-healthy", spoil.move, "affine"),
        ("t1n", spoil.stack, "3-D"),
        ("t1n", spoil.blank, "same value"),
        ("t1n", spoil.not_a_number, "NaN"),
        ("mask", spoil.blank, "empty"),
        ("mask", lambda p: save(p, (brain(seed=2) > 0) * np.uint8(1)), "whole brain"),
        ("mask", spoil.triple, "0 and 1"),
        ("seg", spoil.relabel(3, 7), "label 7 is outside"),
        ("t1n", claim, "claims 32767"),
        ("t1n", duplicate, "occurs twice"),
    ],
)
def test_damage_is_named_and_the_others_pass(
    tmp_path: Path, role: str, damage: Callable[[Path], object], words: str
) -> None:
    for number in (1, 2, 3):
        write_case(tmp_path, f"BraTS-GLI-{number:05d}-000", seed=number)
    damage(tmp_path / BAD / f"{BAD}-{role}.nii.gz")
    findings = {f.id: f for f in check(discover(tmp_path))}
    assert [f.id for f in findings.values() if not f.ok] == [BAD]
    assert any(words in p for p in findings[BAD].problems), findings[BAD].problems
    assert all(findings[BAD].hints)
    assert not any("\n" in p for p in findings[BAD].problems)


def test_command_line_prints_a_line_a_case_and_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case_id in ("BraTS-GLI-00001-000", BAD):
        write_case(tmp_path, case_id)
    assert main(["check", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("BraTS-GLI-00001-000: ok (20×24×18 at 1×1×1 mm, tumour 0.")
    assert out[-1] == "2 cases, 2 ok, 0 with problems"
    spoil.text(tmp_path / BAD / f"{BAD}-t1n.nii.gz")
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
    shown = "".join(capsys.readouterr())
    assert words in shown
    assert "→" in shown
