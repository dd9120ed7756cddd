"""`synth sweep`: every trial once, whoever dies; the best gathered; mistakes named at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from synth.base import families
from synth.base.config import from_dict, to_dict
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.cli import look_up, main
from synth.cli.sweep import _job_commands
from synth.cli.sweep import sweep as sweep_verb
from synth.jobs.job import JobOptions
from synth.jobs.sweep import (
    begin_sweep,
    create_trial,
    gather_best,
    open_sweep,
    read_rows,
    trial_table,
    try_grid,
)
from synth.jobs.sweep_space import Range, flags, grid, read_space
from synth.training.config import TrainConfig
from synth.training.log import read_metrics
from synth.training.settings import resolve as resolve_settings
from synth.training.stopping import Stop
from tests import toy_recipe, toy_train
from tests.conftest import write_case
from tests.test_launch import submitit  # noqa: F401 (a fixture)
from tests.toy_train import COMMAND, Config, resolve, sweep_in

ROOT = Path(__file__).parents[1]
TOY = JobOptions(program="tests.toy_train")
KINDS = (Config, TrainConfig)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    toy_recipe.register()


def calls(out: Path) -> list[int]:
    return sorted(len(p.read_text().splitlines()) for p in out.glob("runs/*/calls"))


def test_words_become_values_of_the_fields_types():
    words = [
        "lr=1e-3,1",
        "loss=l1,l2",
        "patch=[4,4],[8,16]",
        "name=5,b",
        "fast=true",
        "batch-size=2",
    ]
    space = read_space(words, KINDS, ranges=False)
    assert space == {
        "lr": (0.001, 1.0), "loss": ("l1", "l2"), "patch": ([4, 4], [8, 16]), "name": ("5", "b"),
        "fast": (True,), "batch_size": (2,),
    }  # fmt: skip
    assert isinstance(space["lr"][1], float)
    trials = grid(space)
    assert len(trials) == 2**4
    assert [t["name"] for t in trials[:3]] == ["5", "b", "5"]
    ranges = read_space(["lr=1e-4..1e-2", "width=8..32", "ema_decay=0..0.9"], KINDS, ranges=True)
    assert ranges["lr"] == Range(low=1e-4, high=1e-2, whole=False)
    assert [r.log for r in ranges.values()] == [True, False, False]
    assert ranges["width"].whole


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("rl=1", "unknown setting 'rl' .*did you mean lr"),
        ("batchsize=1", "did you mean batch_size"),
        ("lr", "names no values"),
        ("lr=", "names no values"),
        ("lr=fast", "lr = 'fast' is not of type float"),
        ("loss=l3", "l3.*did you mean"),
        ("width=1.5", "width = .*1.5"),
        ("patch=4", "patch = "),
        ("lr=1e-2..1e-4", "is empty"),
        ("loss=a..b", "loss has no range"),
        ("width=2..x", "width = 'x'"),
    ],
)
def test_a_mistake_in_a_space_is_named(word, answer):
    with pytest.raises(SynthError, match=answer):
        read_space([word], KINDS, ranges=True)
    with pytest.raises(SynthError, match="lr is given twice"):
        read_space(["lr=1", "lr=2"], KINDS, ranges=False)


def test_flags_say_what_the_settings_say():
    """Through the real parser of `train`, field types of every sort come back as they were."""
    settings = {
        "lr": 3e-5, "patch": [16, 32, 48], "deep_supervision": False, "loss": "dice_ce",
        "freeze": [], "reset": ["heads", "dec3"], "steps": 7, "keep": "", "init_from": "-odd=name",
    }  # fmt: skip
    values = look_up(["train", "segmentation", "--data=x", *flags(settings)]).parse()
    given = {name: values[name] for name in settings}
    assert {k: v for k, v in values.items() if k in settings and v is not None} == given == settings


def test_a_trials_name_is_its_configuration(tmp_path):
    sweep = sweep_in(tmp_path)
    name, words = create_trial(sweep, {"lr": 1e-2}, resolve)
    assert words == [*COMMAND, f"--out={tmp_path}/runs/{name}", "--lr=0.01"]
    assert create_trial(sweep, {"width": 8, "lr": 1e-2}, resolve) == (
        name,
        words,
    )  # 8 is the default
    others = [{"lr": 1e-3}, {"lr": 1e-2, "width": 4}, {"lr": 1e-2, "steps": 3}]
    assert len({name, *(create_trial(sweep, other, resolve)[0] for other in others)}) == 4


def test_a_grid_is_tried_told_and_gathered(tmp_path, monkeypatch):
    sweep = sweep_in(tmp_path)
    trials = grid(read_space(["lr=1e-2,1e-3,1e-4", "width=4,8"], KINDS, ranges=False))
    monkeypatch.setenv("TOY_FAILS", "1")  # at a large rate
    try_grid(sweep, trials, resolve, options=TOY)
    found = gather_best(sweep, top=2)
    assert [r.settings["lr"] for r in found] == [1e-3] * 2 + [1e-4] * 2 + [1e-2] * 2
    assert [(r.status.state, r.status.attempts) for r in found] == [("done", 1)] * 4 + [
        ("failed", 3)
    ] * 2
    assert found[0].score == pytest.approx(0.04)  # (log10(1e-3) + 3.2)²
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == [
        f"{i + 1}-{r.name}" for i, r in enumerate(found[:2])
    ]
    facts = checkpoint.read_metadata(tmp_path / "best" / f"1-{found[0].name}")
    assert facts["metrics"] == {"loss": found[0].score}
    text = (tmp_path / "table.csv").read_text().splitlines()
    assert text[0] == "trial,lr,width,loss,state,attempts,seconds,last line"
    assert text[1].startswith(f"{found[0].name},0.001,4,0.04,done,1,")

    monkeypatch.delenv("TOY_FAILS")  # mended: the same call tries what failed, and only that
    try_grid(sweep, [*trials, {"lr": 6e-4}], resolve, options=TOY)
    found = gather_best(sweep, top=1)
    assert [r.status.state for r in found] == ["done"] * 7
    assert calls(tmp_path) == [1] * 5 + [4] * 2
    assert [p.name for p in (tmp_path / "best").iterdir()] == [f"1-{found[0].name}"]
    assert found[0].settings == {"lr": 6e-4}
    assert trial_table(sweep, found)[1][1:3] == ["0.0006", ""]


def test_another_sweep_in_the_folder_is_refused(tmp_path):
    begin_sweep(tmp_path, ["train", "toy"], TrainConfig(keep="dice", keep_mode="max"))
    assert open_sweep(tmp_path).larger_is_better
    with pytest.raises(SynthError, match="is a sweep of: train toy, by dice"):
        begin_sweep(
            tmp_path, ["train", "toy", "--data=x"], TrainConfig(keep="dice", keep_mode="max")
        )
    with pytest.raises(SynthError, match="is not a sweep"):
        open_sweep(tmp_path / "x")
    with pytest.raises(SynthError, match="by a metric"):
        begin_sweep(tmp_path / "x", ["train", "toy"], TrainConfig(keep=""))
    bad = [{"lr": 1e-3}, {"loss": "l3"}]
    with pytest.raises(SynthError, match="l3"):
        try_grid(sweep_in(tmp_path / "y"), bad, resolve, options=TOY)
    assert not (tmp_path / "y/runs").exists()  # nothing was begun


def space_of(*words: str):
    return read_space(words or ["lr=1e-4..1e-2", "width=4,8"], KINDS, ranges=True)


def journal(out: Path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(out / "journal.log")))
    return optuna.load_study(study_name="sweep", storage=storage)


def test_optuna_learns_and_its_proposals_depend_on_the_seed_alone(tmp_path):
    pytest.importorskip("optuna")
    from synth.jobs.sweep_optuna import try_optuna

    tried = {}
    for name, seed, steps in (("a", 1, (14,)), ("b", 1, (5, 14)), ("c", 2, (14,))):
        sweep = sweep_in(tmp_path / name)
        for trials in steps:  # b in two sittings
            try_optuna(sweep, space_of(), resolve, trials=trials, seed=seed, options=TOY)
        tried[name] = [t.params["lr"] for t in journal(sweep.out).trials]
        assert len(tried[name]) == 14
    assert tried["a"] == tried["b"] != tried["c"]
    best = read_rows(open_sweep(tmp_path / "a"))[0]
    assert best.score == pytest.approx(journal(tmp_path / "a").best_value, rel=1e-12)
    assert min(toy_train.loss(lr) for lr in tried["a"][10:]) < 0.15  # ten are drawn blindly

    with pytest.raises(SynthError, match="searches"):
        try_optuna(sweep, space_of("lr=1e-4..1e-3"), resolve, trials=14, seed=2, options=TOY)


def test_a_trial_that_fails_stays_open_for_the_next_sweep(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    from synth.jobs.sweep_optuna import try_optuna

    sweep, space = sweep_in(tmp_path), space_of("lr=1e-3,1e-2")
    monkeypatch.setenv("TOY_FAILS", "1")
    options = JobOptions(program="tests.toy_train", retries=1)
    try_optuna(sweep, space, resolve, trials=4, seed=0, options=options)
    states = [t.state.name for t in journal(tmp_path).trials]
    assert set(states) == {"COMPLETE", "RUNNING"}
    monkeypatch.delenv("TOY_FAILS")
    try_optuna(sweep, space, resolve, trials=4, seed=0, options=options)
    assert [t.state.name for t in journal(tmp_path).trials] == ["COMPLETE"] * 4
    assert [len(read_rows(sweep)), len(calls(tmp_path))] == [2, 2]  # alike proposals are one run


SCRIPT = """
import os, sys, time
from pathlib import Path
from synth.jobs.job import JobOptions
from synth.training.log import read_metrics
from synth.training.stopping import Stop
from synth.jobs.sweep_optuna import try_optuna
from synth.jobs.sweep_space import read_space
from tests.toy_train import Config, resolve, sweep_in
space = read_space(["lr=1e-4..1e-2", "width=4,8"], [Config], ranges=True)
options = JobOptions(program="tests.toy_train")
(Path(sys.argv[1]) / f"ready-{os.getpid()}").touch()
while len(list(Path(sys.argv[1]).glob("ready-*"))) < 2:
    time.sleep(0.01)
try_optuna(sweep_in(Path(sys.argv[1])), space, resolve, trials=16, seed=0, options=options)
"""


def start(out: Path, monkeypatch) -> subprocess.Popen:
    monkeypatch.setenv("TOY_SECONDS", "0.2")
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], cwd=ROOT)


def kill_in_a_trial(out: Path, worker: subprocess.Popen) -> None:
    """Kill it once four trials are made and it is in the middle of one."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        for path in out.glob("runs/*/calls"):
            own = path.read_text() == f"{worker.pid}\n" and not (path.parent / "best").exists()
            if own and len(calls(out)) > 4:
                worker.kill()
                return
        time.sleep(0.01)


@pytest.mark.parametrize("killed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_workers_on_one_journal_lose_no_trial_and_run_none_twice(tmp_path, monkeypatch, killed):
    pytest.importorskip("optuna")
    begin_sweep(tmp_path, COMMAND, TrainConfig(keep="loss"))
    workers = [start(tmp_path, monkeypatch) for _ in range(2)]
    if killed:
        kill_in_a_trial(tmp_path, workers[0])
    assert [w.wait(timeout=120) for w in workers] == ([-9, 0] if killed else [0, 0])

    trials = journal(tmp_path).trials
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert len(trials) == len(complete) == 16
    assert calls(tmp_path) in ([[1] * 16] if not killed else [[1] * 16, [1] * 15 + [2]])
    for trial in complete:
        assert trial.value == pytest.approx(toy_train.loss(trial.params["lr"]), rel=1e-12)
    who = {p.read_text().splitlines()[-1] for p in tmp_path.glob("runs/*/calls")}
    assert len(who) == 2  # both took part


@pytest.mark.usefixtures("submitit")
def test_workers_are_started_for_a_sweep(tmp_path):
    pytest.importorskip("optuna")
    from synth.jobs.sweep_optuna import start_workers

    options = JobOptions(program="tests.toy_verb", at_once=2)
    words = ["write", f"{tmp_path}/made"]
    start_workers(sweep_in(tmp_path), words, trials=2, where="local", options=options)
    assert len((tmp_path / "made").read_text().splitlines()) == 2


SETTINGS = ["--patch", "16", "16", "16", "--width", "4", "--augment", "none", "--device", "cpu",
            "--steps", "2"]  # fmt: skip


@pytest.fixture
def command(tmp_path) -> list[str]:
    for number in (1, 2, 3):
        write_case(tmp_path / "data", f"BraTS-GLI-0000{number}-000", seed=number)
    data = ["--data", str(tmp_path / "data"), "--validation-share", "0.4"]
    return ["train", "segmentation", *data, *SETTINGS]


def test_the_verb_trains_a_real_family_and_goes_on_after_a_stop(
    tmp_path, command, capsys, monkeypatch
):
    out = tmp_path / "sweep"
    words = ["sweep", str(out), "--grid", "lr=1e-3,1e-2", "--top", "1", "--", *command]
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "asked", lambda self: True)  # as after SIGTERM
        assert main(words) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert sorted(r.status.state for r in read_rows(open_sweep(out))) == ["stopped", "waiting"]

    code = main(words)
    told = capsys.readouterr()
    assert code == 0, told
    assert sorted(r.status.attempts for r in read_rows(open_sweep(out))) == [1, 2]
    for path in out.glob("runs/*/metrics.jsonl"):
        assert [record["step"] for record in read_metrics(path)][-1] == 2
    assert f"2 of 2 trials done → {out}/best" in told.out
    (best,) = (out / "best").iterdir()
    facts = checkpoint.read_metadata(best)
    wanted = resolve_settings("segmentation", "tiny", {"patch": [16] * 3, "width": 4})[1]
    lr = read_rows(open_sweep(out))[0].settings["lr"]
    assert facts["config"] == to_dict(wanted) | {"augment": "none", "lr": lr}
    from_dict(type(wanted), facts["config"])
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/last/state.pt")}
    assert len(before) == 2

    assert main(words) == 0  # the same command again does nothing
    assert {p: p.stat().st_mtime_ns for p in before} == before
    capsys.readouterr()
    assert main(["sweep", str(out), "--status"]) == 0
    assert capsys.readouterr().out.count(" done ") == 2 + 1  # and the line below the table


def test_mistakes_in_the_command_come_before_any_training(tmp_path, command, capsys):
    out = str(tmp_path / "sweep")
    for words, answer in {
        ("--grid", "lr=1"): "a sweep varies a training → write it last",
        ("--", *command): "a sweep needs --grid or --optuna",
        ("--grid", "rl=1", "--", *command): "unknown setting 'rl' → did you mean lr?",
        ("--grid", "keep=a,b", "--", *command): "keep cannot vary",
        ("--grid", "kernel=3,4", "--", *command): "kernel = 4 → 3 or 5",
        ("--grid", "lr=1", "--", "train", "segmentaton"): "did you mean segmentation?",
        ("--grid", "lr=1", "--", *command, "--out", "x"): "the sweep names the run folders",
        ("--grid", "lr=1", "--", *command, "--stepz", "3"): "did you mean --steps?",
        ("--status",): "is not a sweep",
        ("--grid", "lr=1", "--where", "cloud", "--", *command): "invalid choice: 'cloud'",
    }.items():
        assert main(["sweep", out, *words]) == 2, words
        assert answer in capsys.readouterr().err, words
    assert not (tmp_path / "sweep" / "runs").exists()
    assert sweep_verb.__doc__


def test_launch_runs_shards_and_words(tmp_path, capsys):
    for number in (1, 2):
        write_case(tmp_path / f"data{number}", f"BraTS-GLI-0000{number}-000", seed=number)
    jobs = str(tmp_path / "jobs")
    words = ["launch", jobs, "--each", "1,2", "--", "check", str(tmp_path / "data{}")]
    assert main(words) == 0, capsys.readouterr()
    for number in (1, 2):
        log = (tmp_path / "jobs" / str(number) / "log.txt").read_text()
        assert f"BraTS-GLI-0000{number}-000" in log
        assert f"BraTS-GLI-0000{3 - number}-000" not in log
    capsys.readouterr()
    assert main(["launch", jobs, "--status"]) == 0
    assert capsys.readouterr().out.count(" done ") == 2
    assert _job_commands(("segment", "D"), 2, ()) == {
        "0-of-2": ["segment", "D", "--shard=0/2"], "1-of-2": ["segment", "D", "--shard=1/2"]
    }  # fmt: skip
    for wrong, answer in {
        ("--shards", "2"): "nothing to launch",
        ("--", "check", "x"): "needs --shards or --each",
        ("--each", "1", "--", "check", "x"): "no {} in the command",
    }.items():
        assert main(["launch", jobs, *wrong]) == 2
        assert answer in capsys.readouterr().err
    assert main(["launch", str(tmp_path / "m"), "--shards", "2", "--", "check", "nowhere"]) == 2
    assert "unknown argument --shard " in capsys.readouterr().err
