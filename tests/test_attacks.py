"""What broke under attack, and must not again: damaged, hostile and misplaced files."""

import gzip
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from ddpm_lora.lora.merging import _scaling
from synth.base.errors import SynthError
from synth.checkpoints.checkpoint import require_finite
from synth.checkpoints.convert import unwrap
from synth.data.case import discover
from synth.data.volume import Volume
from synth.jobs.job import python_environment
from tests.conftest import write_case

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("words", [["-m", "synth"], ["-m", "synth.sample", "--help"]])
def test_code_in_the_current_folder_does_not_run(tmp_path: Path, words: list[str]) -> None:
    for name in ("numpy", "argparse", "nibabel", "torch"):
        (tmp_path / f"{name}.py").write_text("print('OWNED')\nraise SystemExit(9)\n")
    for own in ({"PYTHONPATH": str(ROOT)}, python_environment()):
        environment = {**os.environ, **own}
        line = [sys.executable, *words] if "PYTHONSAFEPATH" not in own else [
            sys.executable, "-c", "from synth.cli import main; main(['check', 'x'])"
        ]  # fmt: skip
        answer = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert "OWNED" not in answer.stdout + answer.stderr


def test_run_sh_runs_no_code_of_the_current_folder() -> None:
    script = (ROOT / "run.sh").read_text(encoding="utf-8")
    first = min(script.index(word) for word in ("$python", '"$PY"'))
    assert script.index("export PYTHONSAFEPATH=1") < first


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(SynthError, match="'b' holds NaN or infinity"):
        require_finite({"a": torch.ones(2), "b": torch.tensor([1.0, value])}, name="x")


def test_what_a_killed_process_left_is_no_case(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    (tmp_path / f".{case.name}.4711.part").mkdir()
    for path in case.iterdir():
        (tmp_path / f".{case.name}.4711.part" / path.name).write_bytes(path.read_bytes())
    assert [c.id for c in discover(tmp_path)] == [case.name]


def claim(folder: Path, shape: tuple[int, ...], dtype: type, *, packed: bool) -> Path:
    """Write a header without voxels."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    blob = header.binaryblock + bytes(4)
    path = folder / ("claim.nii.gz" if packed else "claim.nii")
    path.write_bytes(gzip.compress(blob) if packed else blob)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((1024,) * 3, np.float64), ((512,) * 3, np.float64), ((64,) * 3, np.int16)]
)
def test_a_claim_without_voxels_costs_nothing(tmp_path, packed, shape, dtype) -> None:
    path = claim(tmp_path, shape, dtype, packed=packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SynthError, match=r"header claims|cannot be read"):
        Volume.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize(
    ("unit", "edge_mm", "said"),
    [("micron", 1000.0, "lengths in microns"), ("meter", 0.001, "lengths in meters"),
     ("mm", 1000.0, "32000|3.2e+04"), ("mm", 0.0028, "0.0896 mm long")],
)  # fmt: skip
def test_a_wrong_unit_is_refused(tmp_path: Path, unit: str, edge_mm: float, said: str) -> None:
    image = nib.Nifti1Image(np.ones((32, 32, 32), np.float32), np.diag([edge_mm] * 3 + [1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii.gz")
    with pytest.raises(SynthError, match=said.replace("+", r"\+")):
        Volume.load(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize(
    "dtype", [np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), np.dtype(np.complex64)]
)
def test_colours_and_complex_numbers_are_named(tmp_path: Path, dtype: np.dtype) -> None:
    image = nib.Nifti1Image(np.zeros((16, 16, 16), dtype), np.eye(4))
    nib.save(image, tmp_path / "scan.nii")
    with pytest.raises(SynthError, match=r"RGB colours|complex64"):
        Volume.load(tmp_path / "scan.nii")


def test_a_pattern_that_would_never_end_is_refused() -> None:
    began = time.monotonic()
    with pytest.raises(SynthError, match="repeats a group"):
        _scaling({"alpha_pattern": {"(([a-z_0-9.]+)+)+!": 4}}, "a" * 60, 4)
    assert time.monotonic() - began < 1
    assert _scaling({"alpha_pattern": {r"output_blocks\.\d+\.0": 4}}, "output_blocks.3.0", 4) == 1


def test_weights_that_hold_themselves_come_to_an_end() -> None:
    loop: dict = {}
    loop["model"] = loop
    with pytest.raises(SynthError, match="holds no weights"):
        unwrap(loop, name="x")
