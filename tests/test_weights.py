"""The shipped weights load, say what trained them, and do what the page says of them."""

import contextlib
import inspect
import json
import re
import resource
import shlex
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from ddpm_lora.lora import adapters
from segmentation.augment import AIR
from segmentation.config import PRESETS
from segmentation.data import SegmentationData
from synth.base.config import to_dict
from synth.checkpoints import checkpoint
from synth.cli import look_up, main
from synth.cli.train import train
from synth.data.case import MODALITIES, discover
from synth.data.split import data_hash, hold_out, read_split
from synth.data.volume import Volume
from synth.evaluate.inpainting import evaluate_inpainting
from synth.training.settings import resolve

WEIGHTS = Path(__file__).parents[1] / "weights"
BASE = WEIGHTS / "ddpm_lora"
FOLDERS = sorted(p.parent for p in WEIGHTS.rglob("model.safetensors"))
ADAPTERS = sorted(p.parent for p in WEIGHTS.rglob(checkpoint.ADAPTER_CONFIG))
LABELS = sorted((WEIGHTS / "labels").glob("*-seg.nii.gz"))
GIGABYTE = 2**30


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_weights_know_what_they_are(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert loaded.metadata["step"] > 0
    assert loaded.metadata["metrics"]
    assert loaded.family in folder.name
    assert "| step |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda p: p.name)
def test_adapters_know_what_they_are_and_where_their_base_is(folder: Path) -> None:
    adapter = adapters.read(folder)
    assert adapter.facts["step"] > 0
    assert adapter.facts["metrics"]
    assert "| step |" in (folder / "README.md").read_text()
    base = folder / adapter.facts["base"]["path"]
    assert base.resolve() in FOLDERS  # where the pointer says, without looking around
    assert adapter.settings["base_model_name_or_path"] == adapter.facts["base"]["path"]
    network = checkpoint.load(base).model
    assert adapters.fingerprint(network) == adapter.facts["base"]["fingerprint"]


@pytest.mark.parametrize("folder", [*FOLDERS, *ADAPTERS], ids=lambda p: p.name)
def test_the_command_on_a_card_gives_the_settings_of_the_weights(folder: Path) -> None:
    facts = checkpoint.read_metadata(folder)
    assert facts["command"] in (folder / "README.md").read_text()
    words = shlex.split(facts["command"].replace("--lora-from ddpm_lora", f"--lora-from {BASE}"))
    assert words[:2] == ["synth", "train"]
    values = look_up(words[1:]).parse()
    asked = {k: v for k, v in values.items() if k not in inspect.signature(train).parameters}
    preset, config, loop = resolve(facts["family"], values["preset"], asked)
    later = set(to_dict(config)) - set(facts["config"])  # settings that came after these weights
    assert later <= {"heads", "exclude", "holes"}
    told = {k: v for k, v in to_dict(config).items() if k not in {"lora_from", *later}}
    assert told == {k: v for k, v in facts["config"].items() if k != "lora_from"}
    assert preset == facts["preset"]
    assert facts["step"] <= loop.steps
    assert loop.seed == facts["seed"]


def test_info_lists_what_is_shipped(capsys) -> None:
    assert main(["info", str(WEIGHTS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(
        folder.name for folder in [*FOLDERS, *ADAPTERS]
    )
    assert any(line.startswith("wdm3d: wdm3d heads, step") for line in lines)


def test_all_weights_together_are_small() -> None:
    assert FOLDERS
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) < 40e6


@pytest.mark.slow
def test_the_page_makes_the_patients_of_the_cards_again(tmp_path: Path) -> None:
    page = (WEIGHTS / "README.md").read_text()
    commands, python = re.findall(r"^```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    with contextlib.chdir(tmp_path):
        for line in commands.splitlines():
            assert main(shlex.split(line)[1:]) == 0
        exec(python, {})  # noqa: S102 (our own page)
    made = tmp_path / "made"
    train, chosen = read_split(made / "site_a.json", made / "site_a").fold(1)
    assert (len(train), len(chosen)) == (64, 12)
    shapes, scans, few = (discover(made / name) for name in ("shapes", "scans", "site_b"))
    names = [folder.name for folder in [*FOLDERS, *ADAPTERS]]
    told = {f: checkpoint.read_metadata(WEIGHTS / f)["data_hash"] for f in names}
    assert told == {
        "label_gan": data_hash(chain(*hold_out(shapes, 0.2))),
        "site_b": data_hash(chain(*hold_out(few, 0.2))),
        "wdm3d": data_hash([]),  # it draws its heads
        "ddpm_lora": data_hash(chain(*hold_out(scans, 0.1))),
        "wdm3d_known": data_hash([*train, *chosen]),
    }


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
def test_four_label_maps_become_scans_in_two_minutes_that_train_a_segmenter(tmp_path: Path) -> None:
    began = time.monotonic()
    draw(tmp_path / "once", "--lora", str(WEIGHTS))
    assert time.monotonic() - began < 120
    draw(tmp_path / "twice", "--lora", str(WEIGHTS))
    require_usable(tmp_path / "once", tmp_path / "twice")


def draw(out: Path, *words: str) -> None:
    command = [sys.executable, "-m", "synth.sample", *words, "-o", str(out), "--device", "cpu"]
    subprocess.run(command, check=True, cwd=WEIGHTS.parent)


def require_usable(once: Path, twice: Path) -> None:
    """Assert that two runs drew the same, and what the next stage needs."""
    names = [path.name.replace("-seg.nii.gz", "-synth00") for path in LABELS]
    assert len(names) == 4
    cases = discover(once)
    assert [case.id for case in cases] == names
    for case, name in zip(cases, names, strict=True):
        assert {"seg", *MODALITIES} <= case.files.keys()
        assert json.loads((once / "records" / f"{name}.json").read_text())
        assert (once / "pictures" / f"{name}.png").stat().st_size > 5000
        for role in (*MODALITIES, "seg"):
            path = case.path(role)
            volume, again = Volume.load(path), Volume.load(twice / path.relative_to(once))
            assert volume.data.tobytes() == again.data.tobytes()
            assert np.array_equal(volume.affine, again.affine)
    assert main(["check", str(once)]) == 0
    data = SegmentationData(cases, PRESETS["tiny"], fixed=True)
    for index in range(len(data)):
        item = data.item(index, 0)
        assert (item["image"] > AIR).flatten(1).any(1).all()
        assert item["regions"].flatten(1).any(1).all()


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
