"""Every write, rename and sync made to fail, signals at any instant, two processes at once.

After each, the same command gives what an undisturbed run gives, and nothing is left over.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmentation.config import PRESETS
from segmentation.network import build
from synth.base.files import file_hash
from synth.base.stopping import SENTENCE, STOPPED
from synth.checkpoints import checkpoint
from synth.cli import main
from synth.jobs.job import python_environment
from synth.phantom.cohort import write_cohort
from tests.conftest import write_case

NET = "--width 2 --patch 32,32,32 --batch-size 1 --seed 1 --workers 0"
VERBS = {
    "split": "split data -o out/split.json --folds 2",
    "masks": "masks -o out --count 2 --device cpu",
    "placed": "masks cohort -o out --kind tumour --only-real --per-case 1 --workers 1 --device cpu",
    "segment": "segment data -o out --models model --device cpu",
    "phantom": "phantom out --cases 1 --workers 1",
    "train": f"train segmentation --data data -o out --steps 3 --save-every 1 --device cpu {NET}",
    "inpaint": "inpaint cohort -o out --model weights/wdm3d_known --steps 2 --estimate sample "
    "--device cpu",
    "sample": "sample -o out --end 1 --steps 2 --device cpu",
}
FAST = ("split", "segment")
KINDS = ("replace", "fsync", "rename", "open")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder with two cases, for some verbs phantoms, and a small model; the current one."""
    if "cohort" in VERBS[request.node.callspec.params["verb"]]:
        write_cohort(tmp_path / "cohort", cases=2, workers=1, progress=False)
    for number in (1, 2):
        write_case(tmp_path / "data", f"BraTS-GLI-0000{number}-000", seed=number)
    config = PRESETS["tiny"]
    checkpoint.save(
        tmp_path / "model", model=build(config), family="segmentation", preset="tiny", config=config
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def failing(kind: str, number: int, out: Path, code: int) -> Generator[list[str]]:
    """Let the n-th call of a kind that concerns `out` fail; yield the calls there were."""
    calls: list[str] = []

    def fail(original: Callable, path: Any) -> bool:
        own = isinstance(path, int) or Path(os.path.abspath(os.fsdecode(path))).is_relative_to(out)
        if own:
            calls.append(str(path))
        return own and len(calls) - 1 == number

    def wrapped(original: Callable) -> Callable:
        def call(path: Any, *more: Any, **named: Any) -> Any:
            mode = str(more[0] if more else named.get("mode", "r"))
            writes = kind != "open" or bool(set(mode) & set("wax+"))
            if writes and fail(original, path):
                raise OSError(code, os.strerror(code), str(path))
            return original(path, *more, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        if kind == "open":
            patch.setattr(io, "open", wrapped(io.open))
            patch.setattr(builtins, "open", wrapped(builtins.open))
        else:
            patch.setattr(os, kind, wrapped(getattr(os, kind)))
        yield calls


def images(out: Path) -> dict[str, str]:
    """Hashes of what a verb made, but for logs and records, which hold seconds."""
    kept = (".nii.gz", ".safetensors", "split.json")
    return {str(p.relative_to(out)): file_hash(p) for p in sorted(out.rglob("*"))
            if p.name.endswith(kept) and ".part" not in str(p)}  # fmt: skip


def left_over(out: Path) -> list[Path]:
    return list(out.rglob("*.part"))


def slow_but(*names: str) -> list[Any]:
    return [v if v in names else pytest.param(v, marks=pytest.mark.slow) for v in VERBS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", slow_but(*FAST))
def test_every_call_that_fails_is_told_and_made_good(
    place: Path, verb: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = VERBS[verb].split()
    out = place / "out"
    assert main(words) == 0
    whole = images(out)
    shutil.rmtree(out)
    number, most = 0, 200
    while number < most:
        code = (errno.ENOSPC, errno.EIO, errno.EACCES)[number % 3]
        with failing(kind, number, out, code) as calls:
            found = main(words)
        said = capsys.readouterr().err
        if len(calls) <= number:  # no such call any more
            assert found == 0, said
            break
        assert "Traceback" not in said
        assert found in (0, 2), said  # 0: another attempt of a library made it good
        assert main(words) == 0, capsys.readouterr().err
        assert images(out) == whole, f"{kind} {number}: {calls[number]}"
        assert not left_over(out)
        capsys.readouterr()
        shutil.rmtree(out)
        number += 1
    assert number or kind in ("rename", "fsync")


def start(words: str, **more: Any) -> subprocess.Popen:
    environment = {**os.environ, **python_environment(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "synth", *words.split()], env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


STOPS = [(verb, number, twice) for verb in VERBS for number in (signal.SIGINT, signal.SIGTERM)
         for twice in (False, True)]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "number", "twice"),
    [s if s[0] in ("split", "train") and s[2] else pytest.param(*s, marks=pytest.mark.slow)
     for s in STOPS],
)  # fmt: skip
def test_a_signal_at_any_instant_ends_with_one_sentence(
    place: Path, verb: str, number: int, twice: bool
) -> None:
    rng = np.random.default_rng([number, twice, len(verb)])
    for delay in (0.15, 0.3, 0.6, float(rng.uniform(0.7, 6))):
        process = start(VERBS[verb])
        time.sleep(delay)
        process.send_signal(number)
        if twice:
            time.sleep(float(rng.uniform(0, 0.1)))
            process.send_signal(number)
        said = process.communicate(timeout=90)[1]
        if process.returncode in (-number, -signal.SIGINT) and SENTENCE not in said:
            assert "synth/" not in said  # Python itself was still starting
            continue
        assert "Traceback" not in said, (delay, said)
        if process.returncode not in (0, 2):  # it was not faster
            assert process.returncode == 128 + number in STOPPED
            if verb != "train":
                assert said.count(SENTENCE) == 1
    process = start(VERBS[verb])
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert not left_over(place / "out")


@pytest.mark.parametrize("verb", slow_but("split"))
def test_kills_at_any_instant_change_nothing(place: Path, verb: str) -> None:
    began = time.monotonic()
    process = start(VERBS[verb])
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    seconds, whole = time.monotonic() - began, images(place / "out")
    rng = np.random.default_rng(len(verb))
    for chain in range(1 if verb in FAST[:1] else 5):
        shutil.rmtree(place / "out")
        for _ in range(3 if verb in FAST[:1] else 10):
            process = start(VERBS[verb])
            time.sleep(float(rng.uniform(0.1, seconds)))
            process.kill()
            process.communicate()
        process = start(VERBS[verb])
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
        assert "Traceback" not in said
        assert images(place / "out") == whole, chain
        assert not left_over(place / "out")


PAIRS = [
    (verb, 0) if verb in ("segment", "train") and not later
    else pytest.param(verb, later, marks=pytest.mark.slow)
    for verb in VERBS for later in (0, 0.5, 1, 3)
]  # fmt: skip


@pytest.mark.parametrize(("verb", "later"), PAIRS)
def test_two_identical_commands_end_in_one_result(place: Path, verb: str, later: float) -> None:
    assert main(VERBS[verb].split()) == 0
    whole = images(place / "out")
    shutil.rmtree(place / "out")
    pair = [start(VERBS[verb])]
    time.sleep(later)
    pair.append(start(VERBS[verb]))
    told = [process.communicate(timeout=300)[1] for process in pair]
    codes = sorted(process.returncode for process in pair)
    assert codes in ([0, 0], [0, 2]), told
    if codes == [0, 2]:
        assert re.search(r"another process, pid \d+ on .*, works here", "".join(told)), told
    assert images(place / "out") == whole
    assert not left_over(place / "out")
