"""Every verb says and writes what it did when tests/golden/outputs.json was recorded."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from synth.base import families
from tests.golden import record

GOLDEN = json.loads(record.OUTPUTS.read_text(encoding="utf-8"))
SAME_MACHINE = record.machine() == GOLDEN["machine"]
# On another processor sums are taken in another order; what a threshold cuts then moves a little.
TOLERANCE = 0.05


def alike(found: Any, golden: Any, where: str) -> list[str]:
    """Return what differs: everything here, on another machine only what no last bit decides."""
    if isinstance(golden, dict) and isinstance(found, dict):
        names = [f"{where}/{name}: {'new' if name in found else 'lost'}"
                 for name in sorted(golden.keys() ^ found.keys())]  # fmt: skip
        both = [k for k in golden if k in found and (SAME_MACHINE or k not in ("sha", "inputs"))]
        return names + [line for k in both for line in alike(found[k], golden[k], f"{where}/{k}")]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        pairs = enumerate(zip(found, golden, strict=True))
        return [line for i, (f, g) in pairs for line in alike(f, g, f"{where}/{i}")]
    if found == golden or (not SAME_MACHINE and close(found, golden)):
        return []
    return [f"{where}: {found!r}, was {golden!r}"]


def close(found: Any, golden: Any) -> bool:
    if isinstance(found, str) and isinstance(golden, str):  # sentences with figures in them
        return len(found.split()) == len(golden.split())
    number = isinstance(found, int | float) and isinstance(golden, int | float)
    return number and math.isclose(found, golden, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def compare(names: list[str], work: Path) -> None:
    threads = torch.get_num_threads()
    try:
        found = record.record(names, work.resolve())
    finally:
        torch.set_num_threads(threads)
    differences = []
    for name in names:
        differences += alike(json.loads(json.dumps(found[name])), GOLDEN["outputs"][name], name)
    assert differences == []


@pytest.fixture(autouse=True)
def no_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests add a family, which `synth info` would list."""
    monkeypatch.delitem(families.FAMILIES, "toy", raising=False)


def test_quick_verbs_do_what_they_did(tmp_path: Path) -> None:
    compare(list(record.FAST), tmp_path)


@pytest.mark.slow
def test_every_verb_does_what_it_did(tmp_path: Path) -> None:
    compare([*record.FAST, *record.SLOW], tmp_path)


def test_every_command_was_recorded() -> None:
    assert list(GOLDEN["outputs"]) == [*record.FAST, *record.SLOW]


def test_a_changed_voxel_is_noticed() -> None:
    golden = GOLDEN["outputs"]["inpaint one"]
    changed = json.loads(json.dumps(golden))
    image = next(k for k in changed["writes"] if k.endswith(".nii.gz"))
    assert alike(changed, golden, "x") == []
    changed["writes"][image]["about"][0] *= 1.2
    assert alike(changed, golden, "x")
    del changed["writes"][image]
    assert alike(changed, golden, "x") == [f"x/writes/{image}: lost"]
