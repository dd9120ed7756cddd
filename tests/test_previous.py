"""What an earlier version wrote is read, taken for done, and gone on with.

tests/golden/previous holds runs of two steps, records, splits and outputs of two small patients, as
the version of 2026-11-22 wrote them.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from synth.checkpoints import checkpoint
from synth.cli import main
from synth.data.split import read_split
from tests.golden.record import PREVIOUS

RUNS = {"label_gan": "label_gan", "wdm3d": "wdm3d", "ddpm_lora": "ddpm_lora",
        "lora": "ddpm_lora", "segmentation": "segmentation"}  # fmt: skip
AGAIN = {
    "inpaint": "inpaint cohort -o inpainted --model runs/wdm3d --end 1 --device cpu",
    "segment": "segment cohort -o segmented --models runs/segmentation --end 1 --device cpu",
    "masks": "masks . --split split.json -o tumours --kind tumour --only-real --per-case 1 "
    "--workers 1 --begin 1 --device cpu",
    "sample": "sample tumours -o synthetic --model runs/ddpm_lora --steps 1 --append-to with.json "
    "--end 1 --device cpu",
}
SETTINGS = "--split split.json --fold 0 --batch-size 1 --device cpu --data ."
GO_ON = {
    "segmentation": "segmentation --width 2 --patch 32,32,32",
    "wdm3d": "wdm3d --width 4 --groups 2 --multipliers 1 --blocks-per-level 1 --crop 32 --atlas 0",
    "lora": "ddpm_lora --lora-from runs/ddpm_lora --lora-rank 1",
}


@pytest.fixture
def previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "previous"
    shutil.copytree(PREVIOUS, folder)
    monkeypatch.chdir(folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("run", RUNS)
def test_checkpoints_load(run: str, previous: Path) -> None:
    loaded = checkpoint.load(previous / "runs" / run)
    assert loaded.family == RUNS[run]
    assert loaded.metadata.get("step", 2) == 2  # a merged adapter is of no step
    assert all(p.isfinite().all() for p in loaded.model.parameters())


@pytest.mark.parametrize("verb", AGAIN)
def test_what_is_done_is_known_to_be(
    verb: str, previous: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(previous)
    assert main(AGAIN[verb].split()) == 0
    assert "0 made, 1 already there, 0 failed" in capsys.readouterr().err
    assert hashes(previous) == before


@pytest.mark.parametrize("run", [pytest.param(run, marks=[pytest.mark.slow] * (run == "lora"))
                                 for run in GO_ON])  # fmt: skip
def test_runs_go_on(run: str, previous: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"train {GO_ON[run]} {SETTINGS} --out runs/{run} --steps 3"
    assert main(words.split()) == 0
    assert "from step 2 to 3" in capsys.readouterr().err
    assert json.loads((previous / "runs" / run / "last" / "config.json").read_text())["step"] == 3


def test_splits_are_read() -> None:
    plain, more = (read_split(PREVIOUS / f"{name}.json", PREVIOUS) for name in ("split", "with"))
    assert [entry.fold for entry in plain.training] == [0, 1]
    (made,) = more.training[2:]
    assert (made.fold, made.source) == (-1, plain.training[1].case.id)
    assert all(path.exists() for entry in more.training for path in entry.case.files.values())
