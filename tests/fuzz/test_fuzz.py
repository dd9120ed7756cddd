"""Damaged files are refused in one line: no traceback, no hang, no gigabytes, no silent NaN.

Fast: some hundred files. `-m slow` (MODE=test_all): more than twenty thousand; FUZZ_SEED=N begins
at other seeds.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_lora.lora import adapters, merging
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.checkpoints.convert import read_weights, unwrap
from synth.data.case import Case
from synth.data.check import check
from synth.data.split import read_split
from synth.data.volume import Volume
from synth.evaluate.quality_filter import read_kept
from synth.jobs.cases import Output
from synth.jobs.job import read_attempts
from synth.jobs.sweep import open_sweep
from synth.study.progress import StudyState
from synth.training import run_state
from synth.training.log import read_metrics
from tests.conftest import LPS, brain
from tests.fuzz.damage import damage_bytes, damage_json, damage_nifti

MOST_SECONDS, MOST_BYTES = 30, 2 * 2**30
SHIPPED = Path(__file__).parents[2] / "weights"
FAST, SLOW = 25, 1600
"""Files of each kind."""


@contextlib.contextmanager
def bounded() -> Generator[None]:
    """Bound the seconds of a call, and the memory of the process while it runs."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {MOST_SECONDS} s")

    most = max(MOST_BYTES, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 <= most


def refused_or_read(read: Callable[[], object]) -> object:
    """Read; what cannot be is a SynthError of one line."""
    with bounded():
        try:
            return read()
        except SynthError:
            return None


def scans(folder: Path) -> list[Path]:
    """Sound files of several kinds."""
    kinds = {
        "a.nii": (nib.Nifti1Image, np.int16, 1), "b.nii.gz": (nib.Nifti1Image, np.float32, 1),
        "c.nii.gz": (nib.Nifti1Image, np.int16, 0.5), "d.nii": (nib.Nifti2Image, np.float64, 1),
        "e.nii": (nib.Nifti1Image, np.uint8, 1),
    }  # fmt: skip
    for name, (kind, dtype, slope) in kinds.items():
        image = kind((brain() / 8).astype(dtype), LPS)
        image.header.set_data_dtype(dtype)
        if slope != 1:
            image.header.set_slope_inter(slope, 3)
        nib.save(image, folder / name)
    return [folder / name for name in kinds]


def counts(test: Callable) -> Callable:
    """Run a test over few files, and as a slow one over many."""
    first = int(os.environ.get("FUZZ_SEED", FAST))  # another number: files that nobody has seen
    many = pytest.param(first, SLOW, marks=pytest.mark.slow)
    return pytest.mark.parametrize(("first", "count"), [(0, FAST), many])(test)


@counts
def test_damaged_scans(tmp_path: Path, first: int, count: int) -> None:
    sound = [path.read_bytes() for path in scans(tmp_path)]
    for seed in range(first, first + 8 * count):
        rng = np.random.default_rng([seed, 1])
        blob = damage_nifti(sound[seed % len(sound)], rng)
        path = tmp_path / ("x-t1n.nii.gz" if blob[:1] == b"\x1f" else "x-t1n.nii")
        path.write_bytes(blob)
        loaded = refused_or_read(lambda path=path: Volume.load(path))
        assert loaded is None or np.isfinite(loaded.data).all()
        for read in (Volume.load_mask, Volume.load_labels):
            refused_or_read(lambda path=path, read=read: read(path))
        case = Case(id="x", files={"t1n": path, "seg": path})
        (finding,) = check([case])  # never stops at a bad case
        assert finding.ok or finding.lines()
        path.unlink()


SPLIT = {
    "format": 1,
    "training": [
        {"case": f"P-{i}", "t1n": f"P-{i}/t1n.nii.gz", "label": f"P-{i}/seg.nii.gz", "fold": i % 2,
         "image": [f"P-{i}/{m}.nii.gz" for m in ("t1n", "t1c", "t2w", "t2f")],
         "scheme": "brats2023", "source": "P-0" if i else None, "seen_folds": [1]}
        for i in range(3)
    ],
    "testing": [{"case": "P-9", "t1n": "P-9/t1n.nii.gz"}],
}  # fmt: skip
RECORD = {"verb": "x", "arguments": {"seed": 0}, "inputs": {"a": "0" * 64},
          "outputs": {"a.txt": "0" * 64}, "gave_up": None, "network_calls": 3}  # fmt: skip
STAGE = {"name": "a", "purpose": "b", "command": "synth x", "state": "done", "seconds": 1.0,
         "started": None, "peak_memory_mb": 1.0, "network_calls": None}  # fmt: skip
FILES: dict[str, tuple[str, object, Callable[[Path], object]]] = {
    "split": ("split.json", SPLIT, lambda f: read_split(f / "split.json")),
    "record": (
        "records/a.json", RECORD,
        lambda f: Output(path=f / "a.txt", record=f / "records/a.json",
                         settings={"seed": 0}).is_done(),
    ),
    "study": ("study.json", {"format": 1, "stages": [STAGE]}, lambda f: StudyState(f, [])),
    "sweep": ("sweep.json", {"command": ["train"], "keep": "loss", "keep_mode": "min"}, open_sweep),
    "attempt": (
        "attempt-1.json",
        {"host": "x", "pid": 5, "began": 1.0, "state": "done", "exit": 0, "seconds": 2.0},
        read_attempts,
    ),
    "kept": ("kept.json", {"format": 1, "kept": {"a": "0"}, "dropped": {}}, read_kept),
    "metrics": ("metrics.jsonl", {"step": 5, "loss": 1.0},
                lambda f: read_metrics(f / "metrics.jsonl")),
}  # fmt: skip


@counts
@pytest.mark.parametrize("kind", FILES)
def test_damaged_json(tmp_path: Path, kind: str, first: int, count: int) -> None:
    name, value, read = FILES[kind]
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "records").mkdir()
    for seed in range(first, first + count):
        text = damage_json(json.dumps(value), np.random.default_rng([seed, 2]))
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        found = refused_or_read(lambda: read(tmp_path))
        if kind == "split" and found is not None:
            files = [p for e in (*found.training, *found.testing) for p in e.case.files.values()]
            assert all(path.is_relative_to(tmp_path.resolve()) for path in files)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of all families, an adapter, a .pt file and a run's state, all sound."""
    folder = tmp_path_factory.mktemp("sound")
    network = checkpoint.load(SHIPPED / "label_gan")
    torch.save({"model": network.model.state_dict()}, folder / "weights.pt")
    state = {"format": 1, "identity": "{}", "training": "{}", "model": {"a": torch.ones(99)}}
    torch.save(state, folder / "state.pt")
    return folder


@counts
@pytest.mark.parametrize("name", ["label_gan", "wdm3d", "ddpm_lora"])
def test_damaged_settings_of_weights(tmp_path: Path, name: str, first: int, count: int) -> None:
    file = tmp_path / "model.safetensors"
    tensors = load_file(SHIPPED / name / "model.safetensors")
    with safe_open(SHIPPED / name / "model.safetensors", "pt") as handle:
        text = handle.metadata()["synth"]
    for seed in range(first, first + count // 5):
        damaged = damage_json(text, np.random.default_rng([seed, 3]))
        damaged = damaged.encode("utf-8", "replace").decode()
        save_file(tensors, file, metadata={"synth": damaged})
        loaded = refused_or_read(lambda: checkpoint.load(file))
        if loaded is not None:
            assert all(torch.isfinite(v).all() for v in loaded.model.state_dict().values())


@counts
def test_damaged_bytes_of_weights(tmp_path: Path, weights: Path, first: int, count: int) -> None:
    small = (SHIPPED / "label_gan" / "model.safetensors").read_bytes()
    packed, state = (weights / "weights.pt").read_bytes(), (weights / "state.pt").read_bytes()
    for seed in range(first, first + count // 5):
        rng = np.random.default_rng([seed, 4])
        (tmp_path / "m.safetensors").write_bytes(damage_bytes(small, rng))
        loaded = refused_or_read(lambda: checkpoint.load(tmp_path / "m.safetensors"))
        if loaded is not None:
            assert all(torch.isfinite(v).all() for v in loaded.model.state_dict().values())
        (tmp_path / "m.pt").write_bytes(damage_bytes(packed, rng))
        refused_or_read(lambda: unwrap(read_weights(tmp_path / "m.pt"), name="m.pt"))
        (tmp_path / "state.pt").write_bytes(damage_bytes(state, rng))
        found = refused_or_read(lambda: run_state._load(tmp_path / "state.pt"))
        assert found is None or torch.equal(found["model"]["a"], torch.ones(99))


@counts
def test_damaged_adapters(tmp_path: Path, first: int, count: int) -> None:
    for name in ("adapter_model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((SHIPPED / "site_b" / name).read_bytes())
    text = (SHIPPED / "site_b" / "adapter_config.json").read_text(encoding="utf-8")
    base = checkpoint.load(SHIPPED / "ddpm_lora").model.state_dict()
    for seed in range(first, first + count // 5):
        damaged = damage_json(text, np.random.default_rng([seed, 5]))
        path = tmp_path / "adapter_config.json"
        path.write_text(damaged, encoding="utf-8", errors="surrogateescape")
        adapter = refused_or_read(lambda: adapters.read(tmp_path))
        if adapter is not None:
            found = refused_or_read(lambda adapter=adapter: list(merging.deltas(adapter, base)))
            assert found is None or all(torch.isfinite(v).all() for _, v in found)


def test_odd_files_of_nibabel() -> None:
    """Files that nibabel keeps because readers stumbled over them: read, or refused by name."""
    folder = Path(nib.__file__).parent / "tests" / "data"
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix not in (".py", ".rst")]
    assert len(files) > 50
    for path in files:
        for read in (Volume.load, Volume.load_labels):
            refused_or_read(lambda path=path, read=read: read(path))
