"""Doors that other people's scripts knock at: the challenge's script, the Orchestrator's class."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from synth.base.errors import SynthError
from synth.checkpoints.checkpoint import read_metadata
from synth.cli import main
from synth.data.volume import Volume
from testing import inference
from tests.conftest import write_case
from tests.test_wdm3d_generate import cohort, save_model, scans
from wdm3d import Inpainter, SamplerOptions

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "wdm3d")


def challenge(folder: Path, count: int) -> Path:
    """Cases as a challenge gives them: the voided scan and the mask, nothing else."""
    cohort(folder, count)
    for path in folder.rglob("*.nii.gz"):
        if not path.name.endswith(("t1n-voided.nii.gz", "-mask.nii.gz")):
            path.unlink()
    return folder


def test_the_predecessors_arguments(model: Path, tmp_path: Path) -> None:
    data = challenge(tmp_path / "cases", 3)
    # The predecessor took a trailing slash for an empty name, and numbers for strings.
    words = ["--data_path", f"{data}/", "--output_path", str(tmp_path / "new" / "out")]
    words += ["--model_path", str(model), "--beg_case", "1", "--end_case", "3"]
    assert inference.main(words) == 0
    made = scans(tmp_path / "new" / "out")
    assert list(made) == [f"BraTS-GLI-0000{k}-000-t1n-inference.nii.gz" for k in (2, 3)]
    assert main(["inpaint", str(data), "-o", str(tmp_path / "b"), "--model", str(model)]) == 0
    assert scans(tmp_path / "b").items() >= made.items()


def test_public_weights_are_converted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wdm3d.legacy.CROPS", {5: 32, 6: 32})
    data = challenge(tmp_path / "cases", 1)
    source = tmp_path / "weights" / "c_brats_3000000.pt"
    source.parent.mkdir()
    torch.save(narrow_weights(), source)
    words = ["--data_path", str(data), "--output_path", str(tmp_path / "out")]
    words += ["--model_path", str(source)]
    assert inference.main([*words, "--steps", "2"]) == 0
    folder = source.with_suffix("")
    assert read_metadata(folder)["config"]["known"] == "scaled"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert len(scans(tmp_path / "out")) == 1
    assert "2 calls" in capsys.readouterr().err
    assert inference.main([*words, "--force"]) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert "20 calls" in capsys.readouterr().err, "published weights are sampled by default"
    source.write_bytes(b"newer, and broken")
    os.utime(source, ns=(written + 10**9, written + 10**9))
    assert inference.main(words) == 2
    assert "or no weights" in capsys.readouterr().err


def narrow_weights() -> dict[str, torch.Tensor]:
    """A network of the public kind; no file tells its number of groups, which is 32."""
    from wdm3d.config import Config
    from wdm3d.network import build

    mult = (1, 2, 2, 4, 4)
    config = Config(mode="always_known_healthy", width=32, groups=32, multipliers=mult, crop=128)
    return build(config).state_dict()


def test_the_container_contract(model: Path, tmp_path: Path) -> None:
    """No arguments, from anywhere, not installed: /input → /output, found by *{00000-000}*."""
    app, data = tmp_path / "app", tmp_path / "input"
    for name in ("synth", "wdm3d", "testing", "label_gan", "ddpm_lora", "segmentation"):
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(model, app / "weights" / "wdm3d")
    script = app / "testing" / "inference.py"
    script.write_text(
        script.read_text()
        .replace('"/input"', f'"{data}"')
        .replace('"/output"', f'"{tmp_path / "output"}"')
    )
    write_case(data, "BraTS-GLI-00000-000")
    write_case(data, "BraTS-GLI-00001-000", seed=1)
    run = [sys.executable, "-P", str(script)]
    answer = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    for name in ("00000-000", "00001-000"):
        (found,) = (tmp_path / "output").glob(f"*{name}*")
        Volume.load(found)


def test_the_container_holds_what_it_needs_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    assert kept >= {"synth", "wdm3d", "testing", "weights", "pyproject.toml", "constraints.txt"}
    assert all((ROOT / name).exists() for name in kept)
    recipe = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["python", "testing/inference.py"]' in recipe


def test_the_orchestrators_methods(model: Path, tmp_path: Path) -> None:
    data = challenge(tmp_path / "cases", 2)
    painter = Inpainter(model, force_cpu=True, seed=3)
    made = painter.infer_batch(data_folder=data, output_folder=tmp_path / "new" / "out")
    assert [p.name for p in made] == ["BraTS-GLI-00001-000.nii.gz", "BraTS-GLI-00002-000.nii.gz"]
    case = "BraTS-GLI-00002-000"
    t1n, mask = (data / case / f"{case}-{role}.nii.gz" for role in ("t1n-voided", "mask"))
    one = painter.infer_single(t1n=t1n, mask=mask, output_file=tmp_path / "one.nii.gz")
    assert one.read_bytes() == made[1].read_bytes()
    hole = Volume.load_mask(mask).data
    assert np.array_equal(Volume.load(one).data[~hole], Volume.load(t1n).data[~hole])
    assert Volume.load(one).data[hole].any()
    words = ["inpaint", str(data), "-o", str(tmp_path / "verb"), "--model", str(model)]
    assert main([*words, "--seed", "3"]) == 0
    assert list(scans(tmp_path / "verb").values()) == [p.read_bytes() for p in made]


def test_names_of_any_kind_and_a_bad_case(model: Path, tmp_path: Path) -> None:
    data = challenge(tmp_path / "cases", 2)
    for old, new in (("BraTS-GLI-00001-000", "A"), ("BraTS-GLI-00002-000", "B")):
        (data / old).rename(data / new)
        for path in (data / new).iterdir():
            path.rename(path.with_name(path.name.replace(old, new)))
    painter = Inpainter(model, force_cpu=True, options=SamplerOptions(estimate="sample", steps=2))
    (data / "B" / "B-mask.nii.gz").write_text("nothing")
    with pytest.raises(SynthError, match="1 of 2 cases could not be filled"):
        painter.infer_batch(data, tmp_path / "out")
    assert list(scans(tmp_path / "out")) == ["A.nii.gz"]
