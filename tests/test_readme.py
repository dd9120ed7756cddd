"""The pages tell the truth: every block of the README, docs/ and CONTRIBUTING.md runs, in order.

Lines `bash run.sh …` are not run here: test_run_sh.py says what they call.
"""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from synth.cli import VERBS, look_up, main
from synth.data.split import read_split
from synth.data.volume import Volume
from synth.training.log import read_metrics

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/data.md", "docs/reference.md", "docs/results.md", "CONTRIBUTING.md")

# A page shows sensible numbers, a test has seconds.
SMALLER = {
    "--cases 20 --seed 1": "--cases 5 --seed 1",
    "--cases 20": "--cases 3",
    "--cases 4": "--cases 1",
    "--estimate sample --samples 2 --end 1": "--estimate sample --samples 2 --end 1 --steps 1",
    "inpaint data/demo -o filled ": "inpaint data/demo -o filled --end 1 --no-tta ",
    "-o tonight": "-o tonight --no-tta",
    "-o sharp --estimate sharp": "-o sharp --estimate sharp --no-tta",
    "--cases 2 --size full": "--cases 1 --size small",
    "--steps 200": "--steps 1 --batch-size 1",
    "--steps 400": "--steps 2 --batch-size 1",
    "-o drawn-scans": "-o drawn-scans --steps 2 --end 1",
    "-o made-scans --end 2 --samples 2": "-o made-scans --end 2 --steps 2",
}
SLOW = (
    "head.nii.gz",
    "filled-unseen",
    "accelerate launch",
    "--fold 0",
    "--site B",
    "synth convert",
    "synth compare",
)
"""Blocks that hold one of these run in the slow test only."""

PARSED = ("--heads",)
"""Blocks that hold one of these take hours; they are parsed and not run."""
GUIDED = "head.nii.gz"
"""A block with this file needs a whole head to be written first."""

PRELUDE = 'synth() { "$PYTHON" -m synth "$@"; }\n'


@dataclass(frozen=True)
class Block:
    """A fenced block and where it begins."""

    page: str
    line: int
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Commands without comments, continued lines joined."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for line in (raw.split(" #")[0].strip() for raw in joined) if line]

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start()].count("\n") + 2, found[1], found[2])
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


ALL = [block for page in PAGES for block in blocks(page)]
OF_RUN_SH = [b for b in ALL if b.language == "bash" and b.lines[0].startswith("bash run.sh")]
STORY = [b for b in ALL if b.language in ("bash", "python") and b not in OF_RUN_SH]


def smaller(text: str) -> str:
    for shown, tested in SMALLER.items():
        text = re.sub(rf"{re.escape(shown)}(?!\w)", tested, text)
    return text


def play(block: Block, folder: Path) -> None:
    """Run one block where the blocks before it have run."""
    if block.language == "python":
        snippet = folder / f"{Path(block.page).name}.{block.line}.py"
        snippet.write_text(block.text, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(str(snippet))
        return
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CHECKOUT": str(ROOT)}
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", PRELUDE + smaller(block.text)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | threads | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable,
                                    "PATH": beside},
    )  # fmt: skip
    assert answer.returncode == 0, f"{block.name}\n{block.text}\n{answer.stderr[-2000:]}"


def write_public_weights(path: Path) -> None:
    """A file as wdm-3d publishes them, narrower: the page asks the reader to download one."""
    import torch

    from wdm3d.config import Config
    from wdm3d.network import build as network

    config = Config(mode="default", crop=128, width=32, multipliers=(1, 2, 2, 4, 4))
    torch.save(network(config).state_dict(), path)


def write_whole_head(folder: Path) -> None:
    """A head with something around its brain, a hole, and where the brain is."""
    case = folder / "data/demo/BraTS-GLI-00001-000/BraTS-GLI-00001-000"
    scan = Volume.load(f"{case}-t1n.nii.gz")
    brain = scan.data[0] > 0
    skull = ndimage.binary_dilation(brain, iterations=4) & ~ndimage.binary_dilation(brain)
    scan.with_data(np.where(skull, scan.data[0].max(), scan.data[0])).save(folder / GUIDED)
    scan.with_data(brain.astype(np.uint8)).save(folder / "brain.nii.gz")
    Volume.load_mask(f"{case}-mask.nii.gz").save(folder / "lesion.nii.gz")


def is_run(block: Block, *, patient: bool) -> bool:
    if any(word in block.text for word in PARSED):
        return False
    return patient or not any(word in block.text for word in SLOW)


def read_through(folder: Path, monkeypatch: pytest.MonkeyPatch, *, patient: bool) -> None:
    monkeypatch.chdir(folder)
    for block in STORY:
        if is_run(block, patient=patient):
            if GUIDED in block.text:
                write_whole_head(folder)
            play(block, folder)
        elif "synth phantom" in block.text:  # the others need this cohort
            play(Block(block.page, block.line, "bash", block.lines[0]), folder)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_through(tmp_path, monkeypatch, patient=False)
    assert len(json.loads((tmp_path / "check.json").read_text())["cases"]) == 3
    assert read_metrics(tmp_path / "runs/first/metrics.jsonl")[-1]["step"] == 2
    assert (tmp_path / "painted.nii.gz").exists()
    example_of_check(tmp_path)


def example_of_check(folder: Path) -> None:
    """What the page shows of `synth check` is what it prints when that file is lost."""
    shutil.copytree(folder / "data/demo", folder / "damaged")
    next((folder / "damaged").rglob("BraTS-GLI-00002-000-t2f.nii.gz")).unlink()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["check", str(folder / "damaged")]) == 2
    (shown,) = [b.text for b in ALL if b.language == "text" and b.page == "docs/data.md"]
    millilitres = re.compile(r"[\d.]+ ml")  # to the last voxel, they depend on the machine
    assert millilitres.sub("", printed.getvalue()) == millilitres.sub("", shown)


@pytest.mark.slow
def test_the_page_runs_to_its_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_public_weights(tmp_path / "brats_unet_128_1200k.pt")
    read_through(tmp_path, monkeypatch, patient=True)
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {
        *("first", "fold0", "masked", "two", "site_b", "segmenter", "once-more", "sweep", "jobs"),
    }
    assert (tmp_path / "weights/wdm-public/model.safetensors").exists()
    assert {p.name for p in (tmp_path / "data").iterdir()} >= {"demo", "site_b", "full"}


def test_smaller_numbers_stand_on_the_page() -> None:
    text = "".join(b.text for b in STORY)
    assert [word for word in (*SMALLER, *SLOW, *PARSED, GUIDED) if word not in text] == []


@pytest.mark.parametrize("block", STORY, ids=lambda b: b.name)
def test_every_verb_is_parsed_as_printed(block: Block) -> None:
    """Fast and slow blocks, before any number is made smaller."""
    for line in block.lines if block.language == "bash" else []:
        words = shlex.split(line.split(">")[0])
        if ("=" in words[0] and len(words) == 1) or "testing/inference.py" in line:
            continue  # a shell variable; the entry point has a parser of its own
        assert "synth" in words, line
        parse(words[words.index("synth") + 1 :])


def parse(words: list[str]) -> None:
    call = look_up(words)
    call.parse()
    if call.command:  # of sweep and launch
        parse(list(call.command))


def test_the_split_of_the_page_is_read(tmp_path: Path) -> None:
    (shown,) = [b.text for b in ALL if b.language == "json"]
    (tmp_path / "split.json").write_text(shown)
    split = read_split(tmp_path / "split.json")
    assert [e.case.id for e in split.training] == [
        "BraTS-GLI-00001-000", "BraTS2021_00002", "made-17",
    ]  # fmt: skip
    assert [e.case.scheme for e in split.training] == ["brats2023", "brats2021", "brats2023"]
    assert [e.fold for e in split.training] == [None, 0, -1]
    assert split.training[1].case.path("t1c").name == "BraTS2021_00002_t1ce.nii.gz"


def test_the_tables_are_those_of_the_code() -> None:
    from synth.data.case import FOLDERS, SUFFIXES
    from synth.data.labels import SCHEMES

    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert [s for s in SUFFIXES if f"`{s}`" not in text] == []
    assert [f for f in FOLDERS if f"`{f}/`" not in text] == []
    for scheme, regions in SCHEMES.items():
        (row,) = re.findall(rf"^\| `{scheme}` \|.*$", text, re.MULTILINE)
        columns = [cell.strip() for cell in row.split("|")[2:6]]
        for region, column in zip(("WT", "TC", "ET"), columns, strict=False):
            assert column == " ".join(map(str, regions[region]))
        for region in set(regions) - {"WT", "TC", "ET"}:
            assert f"{region} {regions[region][0]}" in columns[3]


def test_every_promised_test_exists() -> None:
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    promised = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(promised) > 10
    for file, name in promised:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


def test_every_dependency_is_accounted_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    text = page.partition("## What it stands on")[2]
    extras = [p for ps in project["optional-dependencies"].values() for p in ps]
    for requirement in (*project["dependencies"], *extras):
        name = re.split(r"[<>=]", requirement)[0]
        assert re.search(rf"\b{re.escape(name)}\b", text), name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", text):
            there = (ROOT / page).parent / target if target else ROOT / page
            assert there.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(there), f"{page}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_verbs_of_the_page_exist() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"`synth (\w+)", text)) - {"VERB"} <= set(VERBS)
