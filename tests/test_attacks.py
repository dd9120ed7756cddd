"""What broke under attack, and must not again: damaged, hostile and misplaced files."""

import contextlib
import gzip
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage

from ddpm_lora.lora.merging import _scaling
from synth.base import patient_marks
from synth.base.errors import SynthError
from synth.base.files import read_json, write_json
from synth.checkpoints import checkpoint
from synth.checkpoints.checkpoint import read_metadata, require_finite
from synth.checkpoints.convert import read_weights, unwrap
from synth.cli import main
from synth.data import fill
from synth.data.cache import ArrayCache
from synth.data.case import discover
from synth.data.volume import Volume
from synth.jobs.job import python_environment
from synth.training import run_state
from tests.conftest import write_case
from wdm3d.cases import Inpainter, find_doubts
from wdm3d.generate import inpaint, load

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


def test_marks_tell_a_leak_and_nothing_else(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SYNTH_PATIENT_KEY", str(tmp_path / "keys" / "a.key"))
    one = patient_marks.mark("BraTS-GLI-00001")
    assert patient_marks.mark("BraTS-GLI-00001") == one != patient_marks.mark("BraTS-GLI-00002")
    assert (tmp_path / "keys" / "a.key").stat().st_mode & 0o077 == 0
    assert not patient_marks.are_foreign([one, "0123456789ab"])
    assert hashlib.blake2b(b"BraTS-GLI-00001", digest_size=6).hexdigest() in (
        patient_marks.marks_of("BraTS-GLI-00001")  # as weights of earlier versions have it
    )
    monkeypatch.setenv("SYNTH_PATIENT_KEY", str(tmp_path / "b.key"))
    assert one not in patient_marks.marks_of("BraTS-GLI-00001")
    assert patient_marks.are_foreign([one])
    (tmp_path / "c.key").write_text("not a key")
    monkeypatch.setenv("SYNTH_PATIENT_KEY", str(tmp_path / "c.key"))
    with pytest.raises(SynthError, match="is not a key"):
        patient_marks.mark("x")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("P1_T1", "P1_T1GD", "P1_T2", "P1_FLAIR", "P1_seg"), "P1: ok"),
        (("P1_seg", "P1_scan"), "P1: no scan, only seg"),
        (("P1_t1", "p1_t1", "P1_seg", "p1_seg"), "differs from another's in capitals alone"),
        (("P1_t1", "P1_seg", "odd"), "odd.nii.gz: not read: no naming fits its name"),
    ],
)
def test_check_tells_what_is_there(tmp_path, capsys, names: tuple[str, ...], said: str) -> None:
    case = write_case(tmp_path / "whole")
    (tmp_path / "data").mkdir()
    for name in names:
        role = "seg" if name.endswith("seg") else "t1n"
        source = case / f"{case.name}-{role}.nii.gz"
        (tmp_path / "data" / f"{name}.nii.gz").write_bytes(source.read_bytes())
    main(["check", str(tmp_path / "data")])
    assert said in capsys.readouterr().out


def test_a_split_whose_ids_collide_is_refused_by_check_and_train(tmp_path, capsys) -> None:
    rows = [{"t1n": f"p{k}/anat/p{k}_scan.nii.gz", "fold": k % 2} for k in range(3)]
    write_json(tmp_path / "split.json", {"training": rows})
    for words in (
        f"check {tmp_path} --split {tmp_path}/split.json",
        f"train segmentation --data {tmp_path} --split {tmp_path}/split.json --fold 0 -o x",
    ):
        assert main(words.split()) == 2
        assert "case id anat stands for different scans" in capsys.readouterr().err


def test_what_a_model_does_not_know_is_said_once(tmp_path, caplog) -> None:
    write_case(tmp_path / "data", seed=1)
    write_case(tmp_path / "data", "BraTS-GLI-00002-000", seed=2)
    (first, _) = discover(tmp_path / "data")
    scan = first.load("t1n")
    model = load("weights/wdm3d_known")
    assert find_doubts(first, scan, model) == [
        "the model was trained on made-up brains only (synth phantom)"
    ]
    thick = replace(scan, affine=scan.affine @ np.diag([1, 1, 9.0, 1]))
    assert any("slices of 9 mm" in doubt for doubt in find_doubts(first, thick, model))
    scored = scan.with_data(np.where(scan.data > 0, scan.data - 500, 0))
    assert any("normalised" in doubt for doubt in find_doubts(first, scored, model))
    head = replace(scan, affine=scan.affine @ np.diag([12.0, 12, 12, 1]))
    assert any("skull" in doubt for doubt in find_doubts(first, head, model))


def test_a_single_scan_of_another_contrast_is_named_after_it(tmp_path, capsys) -> None:
    case = write_case(tmp_path, seed=1)
    scan, mask = (f"{case}/{case.name}-{n}.nii.gz" for n in ("t1c", "mask-healthy"))
    words = f"inpaint {scan} --mask {mask} --model {ROOT}/weights/wdm3d_known --device cpu"
    assert main([*words.split(), "-o", str(tmp_path / "out")]) == 0
    assert "the model knows t1n, the scan is t1c" in capsys.readouterr().err
    assert (tmp_path / "out" / f"{case.name}-t1c-inference.nii.gz").exists()


def test_a_volume_given_as_t1n_is_taken_for_it(tmp_path: Path) -> None:
    case = write_case(tmp_path, seed=1)
    scan, mask = (case / f"{case.name}-{n}.nii.gz" for n in ("t2f", "mask-healthy"))
    painter = Inpainter(ROOT / "weights" / "wdm3d_known", force_cpu=True)
    assert painter.infer_single(scan, mask, tmp_path / "out.nii.gz").exists()


def test_a_number_that_no_float_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1%s}' % ("0" * 400))
    with pytest.raises(SynthError, match="not valid JSON"):
        read_json(tmp_path / "a.json", dict[str, float])


@pytest.mark.parametrize(
    "change",
    [{"width": 10**9}, {"multipliers": [10**6]}, {"groups": -5}, {"timesteps": 10**12},
     {"multipliers": [1] * 100_000}, {"groups": 7}, {"crop": 0}],
)  # fmt: skip
def test_absurd_settings_of_weights_cost_nothing(tmp_path: Path, change: dict) -> None:
    file = ROOT / "weights" / "wdm3d_known" / "model.safetensors"
    metadata = read_metadata(file)
    metadata["config"] |= change
    save_file(load_file(file), tmp_path / "m.safetensors", metadata={"synth": json.dumps(metadata)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SynthError):
        checkpoint.load(tmp_path / "m.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


def test_bit_rot_in_a_runs_state_is_found(tmp_path: Path) -> None:
    state = {"format": 1, "identity": "{}", "training": "{}", "model": torch.arange(1000.0)}
    torch.save(state, tmp_path / "state.pt")
    blob = bytearray((tmp_path / "state.pt").read_bytes())
    place = blob.index(torch.arange(100.0, 104.0).numpy().tobytes())
    blob[place : place + 4] = b"\x00" * 4
    (tmp_path / "state.pt").write_bytes(blob)
    with pytest.raises(SynthError, match="differs from its checksum"):
        run_state._load(tmp_path / "state.pt")


def test_a_damaged_cache_entry_is_made_again(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    assert cache.get("a", "r", lambda: {"x": np.arange(3)})["x"].sum() == 3
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:20])
    assert ArrayCache(tmp_path).get("a", "r", lambda: {"x": np.arange(4)})["x"].sum() == 6


def test_a_large_hole_is_filled_as_before(monkeypatch) -> None:
    image = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    image = ndimage.gaussian_filter(image, 4) * 20
    hole = np.zeros(image.shape, bool)
    hole[4:36, 6:34, 5:35] = True
    for name in ("harmonic", "biharmonic"):
        whole = fill.BASELINES[name](image, hole)
        monkeypatch.setattr(fill, "LARGE", 1000)
        assert fill.BASELINES[name](image, hole) == pytest.approx(whole, abs=0.01)
        monkeypatch.undo()


def test_a_zip_bomb_costs_nothing(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(20_000_000)}}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(SynthError, match="would become 80,"):
        read_weights(tmp_path / "packed.pt")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda v: v.with_data(np.where(v.data == v.data.max(), np.inf, v.data)), "NaN or Inf"),
        (lambda v: v.with_data(np.where(v.data == v.data.max(), np.nan, v.data)), "NaN or Inf"),
        (lambda v: v.with_data(v.data * np.float32(1e35)), "intensities of up to"),
        (lambda v: v.with_data(v.data * np.float32(1e-42)), "intensities of up to"),
        (lambda v: replace(v, affine=v.affine @ np.diag([1e-3, 1e-3, 1e-3, 1])), "mm long"),
    ],
)
def test_odd_volumes_of_the_programming_interface_are_refused(tmp_path, spoil, said) -> None:
    write_case(tmp_path, seed=1)
    (case,) = discover(tmp_path)
    scan, mask = spoil(case.load("t1n")), case.load("healthy")
    with pytest.raises(SynthError, match=said), np.errstate(all="ignore"):
        inpaint(scan, replace(mask, affine=scan.affine), model="weights/wdm3d_known")


def test_other_formats_are_named_with_what_converts_them(tmp_path, capsys) -> None:
    for name, said in (("a.dcm", "dcm2niix"), ("a.nrrd", "NRRD"), ("a.mgz", "mri_convert")):
        (tmp_path / name).write_bytes(b"DICM" * 100)
        with pytest.raises(SynthError) as caught:
            Volume.load(tmp_path / name)
        assert said in caught.value.hint
    assert main(["phantom", str(tmp_path / "a.dcm" / "x"), "--cases", "1"]) == 2
    assert "a.dcm is a file, not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["help", "check"], ["-h", "check"], ["check", "--help"]])
def test_help_is_found_by_any_order_of_words(capsys, words: list[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main(words) == 0
    assert "usage: synth check" in capsys.readouterr().out


def test_names_of_cases_move_no_cursor(tmp_path, capsys) -> None:
    case = write_case(tmp_path)
    scan = case / f"{case.name}-t1n.nii.gz"
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a\x1b[2Jb_t1.nii.gz").write_bytes(scan.read_bytes())
    main(["check", str(tmp_path / "odd")])
    main(["inpaint", str(tmp_path / "odd"), "-o", str(tmp_path / "out"), "--device", "cpu"])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "\\x1b[2J" in said.out
