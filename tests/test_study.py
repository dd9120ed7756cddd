"""The whole story: a pure list of command lines, nothing leaking, no kill that does harm."""

import json
import logging
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synth.base.errors import SynthError
from synth.base.files import write_json
from synth.cli import look_up, main
from synth.data.case import discover
from synth.data.split import Entry, Split, read_split, write_split
from synth.evaluate.quality_filter import read_kept
from synth.evaluate.scans.judge import evaluate_synthesis
from synth.study import presets
from synth.study.progress import STATE, Outcome, Stage, StudyState, network_calls
from synth.study.run import _environment, run
from synth.study.stages import DEMO_WEIGHTS, Plan, stages_of
from tests import toy_scans

ROOT = Path(__file__).parents[1]
STUB = "tests.toy_verb"
WEIGHTS = {"label_gan": Path("w/gan"), "wdm3d": Path("w/wdm"), "base": Path("w/base")}


def plan(kind: str) -> Plan:
    demo = Plan(out=Path("s"), data=Path("s/cohort"), folds=(1,), preset=presets.DEMO)
    real = Plan(out=Path("s"), data=Path("d"), folds=(0, 1, 2), preset=presets.BRATS23, dealt=3)
    slurm = {"launcher": "slurm", "cluster": ("slurm_partition=gpu", "mem_gb=64")}
    return {
        "demo": replace(demo, taught=Path("s/taught"), **WEIGHTS),
        "from scratch": replace(demo, from_scratch=True),
        "tiny": replace(real, preset=presets.TINY, folds=(0, 1), split=Path("f.json"), **WEIGHTS),
        "brats23": real,
        "one fold": replace(real, folds=(2,)),
        "slurm": replace(real, **slurm),
        "slurm, one fold": replace(real, folds=(2,), **slurm),
    }[kind]


PLANS = ("demo", "from scratch", "tiny", "brats23", "one fold", "slurm", "slurm, one fold")


def parsed(words: Sequence[str]) -> dict:
    return look_up(words).parse()


def verbs(stages: Sequence[Stage]) -> Iterator[tuple[str, list[str]]]:
    """Yield (stage, words) as they reach a verb: launched ones once for each fold."""
    for stage in stages:
        if stage.words[0] != "launch":
            yield stage.name, list(stage.words)
            continue
        cut = stage.words.index("--")
        launched = parsed(stage.words[:cut])
        assert bool(launched["shards"]) != bool(launched["each"])
        inner = list(stage.words[cut + 1 :])
        assert not launched["each"] or any("{}" in word for word in inner)
        for fold in launched["each"] or ["no"]:
            yield stage.name, [word.replace("{}", fold) for word in inner]


@pytest.mark.parametrize("kind", PLANS)
def test_every_stage_is_a_command_line_of_its_verb(kind: str) -> None:
    stages = stages_of(plan(kind))
    assert len({stage.name for stage in stages}) == len(stages)
    for _, words in verbs(stages):
        parsed(words)
    assert [s.name for s in stages if s.always] == ["report"]
    assert stages_of(plan(kind)) == stages


@pytest.mark.parametrize("kind", PLANS)
def test_no_stage_reads_what_a_later_one_writes(kind: str) -> None:
    own = plan(kind)
    study, root = str(own.out.resolve()), str(own.root)
    written: list[str] = []
    for name, words in verbs(stages_of(own)):
        values = parsed(words)
        if words[0] == "report":  # of whatever there is
            continue
        outputs = [values.get("out"), values.get("append_to")]
        if words[0] == "phantom":
            outputs = [words[1]]
        made = {str(Path(path).resolve()) for path in outputs if path is not None}
        for word in words:
            path = str(Path(word).resolve())
            if not path.startswith(f"{study}/") or path in made or word in (root, str(own.out)):
                continue
            assert any(path == w or path.startswith(f"{w}/") for w in written), (name, word)
        written += made
    assert f"{study}/comparison" in written


@pytest.mark.parametrize("kind", PLANS)
def test_what_serves_a_fold_never_sees_it(kind: str) -> None:
    own = plan(kind)
    study, seen = own.out, 0
    puts_aside = {}
    for name, words in verbs(stages_of(own)):
        values = parsed(words)
        split = str(values.get("split") or "")
        folder = str(values.get("out") or "")
        if words[0] == "split":
            puts_aside[folder] = values["testing"]
            continue
        trains = words[0] == "train" and not folder.startswith(f"{study}/weights/")
        places = words[0] == "masks" and values["data"] and not folder.endswith("/healthy")
        if trains or places:
            parts = re.search(r"without_fold(\d)(\.json|/split\.json)$", split)
            assert parts, (name, split)
            fold = int(parts[1])
            assert puts_aside[f"{study}/without_fold{fold}.json"] == [fold]
            if own.spread:
                assert folder.startswith(f"{study}/fold{fold}/")
            assert fold in own.folds
            seen += 1
        if words[0] == "sample":
            assert values["fold"] in own.folds
            if own.spread:
                assert folder == f"{study}/fold{values['fold']}/synthetic"
        for model in re.findall(r"\S*/(?:label_gan|wdm3d|lora)/\S+", " ".join(words)):
            # nothing that a tested fold chose
            assert model.endswith("/last") or words[0] == "train", model
    assert seen >= 2 * len(own.folds)


@pytest.mark.parametrize("kind", ["demo", "tiny", "brats23"])
def test_a_few_holes_are_drawn_several_times_for_the_report(kind: str) -> None:
    own = plan(kind)
    for name, words in verbs(stages_of(own)):
        if name.endswith("inpainted"):
            once = parsed(words)
        if not name.endswith("inpainted_draws"):
            continue
        values = parsed(words)
        assert values["out"] == once["out"].with_name("inpainted_draws")
        assert {k: values[k] for k in ("data", "model", "seed")} == {
            k: once[k] for k in ("data", "model", "seed")
        }
        assert (values["estimate"], values["samples"]) == ("sample", 3)
        assert values["end"] == ("1" if kind == "demo" else "3")


def test_the_stages_say_whose_weights_they_use() -> None:
    demo = replace(plan("demo"), label_gan=DEMO_WEIGHTS / "label_gan", wdm3d=DEMO_WEIGHTS / "wdm3d")
    said = {s.name: s.purpose for s in stages_of(replace(demo, base=DEMO_WEIGHTS / "ddpm_lora"))}
    assert said["masks"].endswith("label_gan as shipped, taught by phantoms")
    assert said["inpainted"].endswith("wdm3d as shipped, taught by phantoms")
    assert said["lora"] == "fine-tune to this site, by LoRA: ddpm_lora as shipped"
    said = {s.name: s.purpose for s in stages_of(plan("demo"))}
    assert said["inpainted"].endswith("wdm3d as given")
    for kind in ("from scratch", "one fold"):
        said = {s.name: s.purpose for s in stages_of(plan(kind))}
        assert said["masks"].endswith("label_gan as trained here")
        assert said["inpainted"].endswith("wdm3d as trained here")


def test_a_demo_looks_for_copies_of_the_masks_that_taught_its_weights() -> None:
    for kind, taught in (("demo", "s/taught"), ("from scratch", "s/weights/cohort")):
        made = {s.words[1] for s in stages_of(plan(kind)) if s.words[0] == "phantom"}
        (judged,) = [s for s in stages_of(plan(kind)) if s.name == "masks_eval"]
        assert str(parsed(judged.words)["train"]) == taught
        assert taught in made


def test_a_scan_whose_tumour_is_elsewhere_passes_no_gate(tmp_path: Path) -> None:
    for k in range(8):
        toy_scans.write(tmp_path / "real", f"BraTS-GLI-0000{k}-000", toy_scans.patient(k))
    for k in range(4):
        files = toy_scans.patient(20 + k)
        toy_scans.write(tmp_path / "made", f"BraTS-GLI-0002{k}-000", files)
        elsewhere = np.where(files["t1n"] > 0, np.flip(files["seg"]), 0).astype(np.uint8)
        moved = files | {"seg": np.roll(elsewhere, 5, 1)}
        toy_scans.write(tmp_path / "made", f"BraTS-GLI-0003{k}-000", moved)
    scales = (presets.DEMO, presets.TINY, presets.BRATS23)
    (rule,) = {rule for own in scales for rule in own.gate if rule.startswith("signs")}
    assert all(rule in own.gate for own in scales)
    evaluate_synthesis(
        tmp_path / "made", tmp_path / "real", tmp_path / "out", keep=[rule], pictures=False
    )
    assert sorted(read_kept(tmp_path / "out")) == [f"BraTS-GLI-0002{k}-000" for k in range(4)]


def stub(name: str, *words: str, folder: Path, always: bool = False) -> Stage:
    verb, *rest = words
    return Stage(
        name=name, words=(verb, str(folder / f"{name}.txt"), *rest), purpose="pretend",
        always=always,
    )  # fmt: skip


def calls(folder: Path, name: str) -> int:
    path = folder / f"{name}.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def states(out: Path) -> dict[str, str]:
    return {s["name"]: s["state"] for s in json.loads((out / STATE).read_text())["stages"]}


def test_what_is_done_is_not_done_again_but_the_report(tmp_path: Path) -> None:
    stages = [stub("a", "go", folder=tmp_path), stub("b", "go", folder=tmp_path),
              stub("page", "go", folder=tmp_path, always=True)]  # fmt: skip
    for _ in range(2):
        run(stages, tmp_path / "s", program=STUB)
    assert [calls(tmp_path, n) for n in ("a", "b", "page")] == [1, 1, 2]
    (first, *_) = json.loads((tmp_path / "s" / STATE).read_text())["stages"]
    assert shlex.split(first["command"]) == ["synth", "go", str(tmp_path / "a.txt")]
    assert first["seconds"] > 0
    # Linux counts what the forking process held, here all that other tests have loaded.
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    assert 5 < first["peak_memory_mb"] < here + 500
    assert first["started"] is not None
    # other words: that stage again, and what may depend on it
    stages[1] = replace(stages[1], words=(*stages[1].words, "more"))
    run(stages, tmp_path / "s", program=STUB)
    assert [calls(tmp_path, n) for n in ("a", "b", "page")] == [1, 2, 3]


def test_a_failed_stage_says_which_and_how_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = [stub("a", "go", folder=tmp_path), stub("b", "fail", "1", folder=tmp_path),
              stub("c", "go", folder=tmp_path)]  # fmt: skip
    with (
        caplog.at_level(logging.INFO, logger="synth"),
        pytest.raises(SynthError, match=r"stage b failed \(1\): synth fail ") as caught,
    ):
        run(stages, tmp_path / "s", program=STUB)
    assert "the same command goes on" in caught.value.hint
    assert "call 1 of fail" in caplog.text
    assert states(tmp_path / "s") == {"a": "done", "b": "failed", "c": "waiting"}
    run(stages, tmp_path / "s", program=STUB)
    assert set(states(tmp_path / "s").values()) == {"done"}
    assert [calls(tmp_path, n) for n in "abc"] == [1, 2, 1]


def test_a_stage_that_is_killed_is_named_and_taken_up_again(tmp_path: Path) -> None:
    stages = [stub("a", "die", folder=tmp_path)]
    with pytest.raises(SynthError, match="stage a was ended by SIGKILL"):
        run(stages, tmp_path / "s", program=STUB)
    run(stages, tmp_path / "s", program=STUB)
    assert states(tmp_path / "s") == {"a": "done"}


SCRIPT = """
import sys
from pathlib import Path
from tests.test_study import stub, STUB
from synth.study.run import run
folder = Path(sys.argv[1])
seconds = {"a": "0", "b": sys.argv[2], "c": "0"}
stages = [stub(n, "save", s, folder=folder) for n, s in seconds.items()]
try: run(stages, folder / "s", program=STUB)
except KeyboardInterrupt: sys.exit(130)
"""


def begun(folder: Path, seconds: float) -> subprocess.Popen:
    """Start a study of three stages, the second of which takes its time, and wait for that."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(seconds)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


def test_a_killed_study_waits_for_the_stage_it_left_behind(tmp_path: Path) -> None:
    process = begun(tmp_path, 3)
    wait_for(tmp_path / "b.txt")
    busy_until = time.monotonic() + 2.5  # of 3; less what it took to be seen
    process.kill()  # the stage goes on alone
    process.wait()
    assert states(tmp_path / "s")["b"] == "running"
    again = begun(tmp_path, 0)
    assert again.wait(60) == 0
    assert time.monotonic() > busy_until
    assert set(states(tmp_path / "s").values()) == {"done"}
    assert [calls(tmp_path, n) for n in "abc"] == [1, 2, 1]


def test_asked_to_stop_a_study_lets_its_stage_save(tmp_path: Path) -> None:
    process = begun(tmp_path, 60)
    wait_for(tmp_path / "b.txt")
    time.sleep(0.3)  # the stub's handler
    process.terminate()
    assert process.wait(60) == 130
    assert states(tmp_path / "s") == {"a": "done", "b": "stopped", "c": "waiting"}


def test_killed_at_random_moments_it_ends_all_the_same(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(4):
        process = begun(tmp_path, 0.3)
        time.sleep(rng.uniform(0.2, 1.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert begun(tmp_path, 0.3).wait(60) == 0
    assert set(states(tmp_path / "s").values()) == {"done"}


def test_network_calls_are_those_of_the_records(tmp_path: Path) -> None:
    assert network_calls(tmp_path) is None
    (tmp_path / "records").mkdir()
    for name, count in (("a", 20), ("b", 1)):
        (tmp_path / "records" / f"{name}.json").write_text(json.dumps({"network_calls": count}))
    assert network_calls(tmp_path) == 21


def test_the_verbs_show_their_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path / "s"), "--from-scratch", "--show"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("synth ")]
    assert [shlex.split(line)[1] for line in lines[:3]] == ["phantom", "check", "split"]
    assert not (tmp_path / "s").exists()
    words = ["study", "data", "-o", str(tmp_path / "s"), "--preset", "brats23", "--show"]
    assert main([*words, "--folds", "3"]) == 0
    assert "--folds 0 1 2" in capsys.readouterr().out
    assert main([*words, "--folds", "3", "--fold", "3"]) == 2
    assert "no fold 3 in this study → it has [0, 1, 2]" in capsys.readouterr().err
    assert main(["demo", "--cases", "3"]) == 2
    assert main(["study", str(tmp_path / "nowhere"), "-o", str(tmp_path / "s")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()  # nothing is begun


@pytest.mark.slow
def test_a_small_story_is_told_to_its_end(tmp_path: Path) -> None:
    """Ten patients and a few steps of everything, from nothing; then only the page again."""
    few = dict.fromkeys(presets.DEMO.training, ("--steps", "2", "--batch-size", "1"))
    small = replace(
        presets.demo(10), pretraining=4, drawings=6, holes=1, training=few,
        adapting=("--steps", "2"), sampling=("--steps", "2"), gate=("z_intensity<=1e9",),
        compare=("--seeds", "0", "--steps", "2", "--warmup-steps", "1", "--width", "4"), threads=1,
    )  # fmt: skip
    own = Plan(out=tmp_path, data=tmp_path / "cohort", folds=(1,), preset=small, from_scratch=True)
    run(stages_of(own), tmp_path, threads=1)
    assert set(states(tmp_path).values()) == {"done"}
    made = [e for e in read_split(tmp_path / "split.json").training if e.source]
    tested = {e.case.patient for e in read_split(tmp_path / "without_fold1.json").testing}
    assert made
    assert not tested & {e.case.patient for e in made}
    assert {e.seen_folds for e in made} == {(0,)}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}
    page = (tmp_path / "report.html").stat().st_mtime_ns
    run(stages_of(own), tmp_path, threads=1)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}
    assert (tmp_path / "report.html").stat().st_mtime_ns > page


def killable(folder: Path) -> Plan:
    """A story of ten toy patients that are there already, with shipped and random weights."""
    small = replace(
        presets.TINY, drawings=4, holes=1, draws=("--samples", "2", "--steps", "2", "--end", "1"),
        adapting=("--steps", "4", "--save-every", "1", "--validate-every", "0"),
        sampling=("--steps", "2"), gate=("z_intensity<=1e9",), threads=1,
        compare=("--seeds", "0", "--steps", "4", "--warmup-steps", "1", "--width", "4",
                 "--patch", "32,32,32", "--save-every", "1", "--validate-every", "2",
                 "--preview-every", "0"),
    )  # fmt: skip
    return Plan(
        out=folder / "study", data=folder / "cohort", folds=(1,), split=folder / "split.json",
        preset=small, label_gan=DEMO_WEIGHTS / "label_gan", wdm3d=DEMO_WEIGHTS / "wdm3d",
        base=folder / "base", workers=1,
    )  # fmt: skip


STORY = """
import sys
from pathlib import Path
from tests.test_study import killable, run, stages_of
plan = killable(Path(sys.argv[1]))
run(stages_of(plan), plan.out, threads=1)
"""
SUMMARIES = ("masks_eval", "inpainted_eval", "synthetic_eval", "comparison")


def told(folder: Path) -> subprocess.Popen:
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", STORY, str(folder)], cwd=ROOT, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip


def figures(study: Path) -> dict[str, object]:
    """Return what the judges found, and what of it the page shows, but no times."""
    found: dict[str, object] = {
        part: without_times(json.loads((study / part / "summary.json").read_text()))
        for part in SUMMARIES
    }
    page = (study / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r"<data [^>]*>[^<]*</data>", page)
    return found | {"page": [figure for figure in shown if "seconds" not in figure]}


def without_times(value: object) -> object:
    if isinstance(value, list):
        return [without_times(item) for item in value]
    if not isinstance(value, dict):
        return value
    times = ("seconds", "peak_memory_mb", "git_commit")
    return {key: without_times(item) for key, item in value.items() if key not in times}


@pytest.mark.slow
def test_killed_at_five_random_moments_the_report_has_the_same_figures(tmp_path: Path) -> None:
    from tests.test_ddpm_lora_generate import SMALL, save_model
    from tests.test_report import varied

    for k in range(10):
        files = varied(toy_scans.patient(k), k)
        toy_scans.write(tmp_path / "cohort", f"BraTS-GLI-0000{k}-000", files)
    patients = discover(tmp_path / "cohort")
    training = tuple(Entry(case=c, fold=int(i > 5)) for i, c in enumerate(patients))
    write_split(tmp_path / "split.json", Split(training=training), tmp_path / "cohort")
    save_model(tmp_path / "base", replace(SMALL, spacing_mm=toy_scans.MM, crop=(40, 40, 40)))
    began = time.monotonic()
    assert told(tmp_path).wait(600) == 0, (tmp_path / "said.txt").read_text()
    whole = time.monotonic() - began
    study = tmp_path / "study"
    wanted = figures(study)
    study.rename(tmp_path / "uninterrupted")  # the paths in the figures are the same then
    rng, killed = random.Random(7), []
    for _ in range(5):
        process = told(tmp_path)
        time.sleep(whole * rng.uniform(0.12, 0.26))
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += [name for name, state in states(study).items() if state == "running"]
    assert len(set(killed)) > 1, killed  # not all in one stage
    assert told(tmp_path).wait(600) == 0, (tmp_path / "said.txt").read_text()
    assert figures(study) == wanted


def test_threads_of_a_stage_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert "OMP_NUM_THREADS" not in _environment(0)
    own = _environment(2)
    assert (own["OMP_NUM_THREADS"], own["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # who says, decides
    assert _environment(2)["OMP_WAIT_POLICY"] == "ACTIVE"


def test_network_calls_stay_whole_numbers(tmp_path: Path) -> None:
    """The report writes them as such: a float was an error in the last stage of the demo."""
    for name, calls in (("a", 3), ("b", 5)):
        write_json(tmp_path / "records" / f"{name}.json", {"network_calls": calls})
    stage = Stage("inpainted", ("inpaint",), "fills holes", made=tmp_path)
    for _ in range(2):  # made new, and read back
        state = StudyState(tmp_path, [stage])
        state.end(stage, "done", Outcome(code=0, seconds=1.0, peak_memory_mb=2.0))
        row = json.loads((tmp_path / STATE).read_text())["stages"][0]
        assert repr(row["network_calls"]) == "8"
