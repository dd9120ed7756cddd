"""The shipped weights load, say what trained them, and do what the page says of them."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synth import checkpoint
from synth.cli import main
from synth.judge_inpainting import evaluate_inpainting

WEIGHTS = Path(__file__).parents[1] / "weights"
FOLDERS = sorted(p.parent for p in WEIGHTS.rglob("model.safetensors"))
GIGABYTE = 2**30


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_weights_know_what_they_are(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert loaded.metadata["step"] > 0
    assert loaded.metadata["metrics"]
    assert loaded.family in folder.name
    assert "| step |" in (folder / "README.md").read_text()


def test_all_weights_together_are_small() -> None:
    assert FOLDERS
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) < 25e6


@pytest.mark.slow
def test_a_full_size_case_takes_less_than_a_minute_and_4_gb(tmp_path: Path) -> None:
    assert main(["phantom", str(tmp_path / "data"), "--cases", "1", "--size", "full"]) == 0
    words = ["-m", "synth", "inpaint", str(tmp_path / "data"), "-o", str(tmp_path / "out")]
    began = time.monotonic()
    subprocess.run([sys.executable, *words, "--device", "cpu"], check=True, cwd=WEIGHTS.parent)
    assert time.monotonic() - began < 60
    # The largest child so far; pytest's other children only make this stricter.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 4 * GIGABYTE


@pytest.mark.slow
def test_they_beat_every_classical_fill_on_unseen_phantoms(tmp_path: Path) -> None:
    assert main(["phantom", str(tmp_path / "data"), "--cases", "16", "--seed", "20261121"]) == 0
    assert main(["inpaint", str(tmp_path / "data"), "-o", str(tmp_path / "filled")]) == 0
    judged = evaluate_inpainting(
        tmp_path / "filled", tmp_path / "data", tmp_path / "judged", pictures=False
    )
    for name, differences in judged.summary["prediction_minus"].items():
        for metric, sign in (("ssim", 1), ("psnr_01", 1), ("mse", -1)):
            found = differences[metric]
            assert min(sign * found["low"], sign * found["high"]) > 0, (name, metric, found)
