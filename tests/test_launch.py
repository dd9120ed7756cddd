"""`synth.jobs.launch`: every job once, tried again where that helps, taken over from the dead."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from synth.base.errors import SynthError
from synth.base.files import write_json
from synth.jobs.job import (
    JobOptions,
    create_job,
    is_open,
    read_attempts,
    read_status,
    run_in_process,
    run_job,
)
from synth.jobs.launch import Task, cluster_options, launch, read_statuses, status_table

ROOT = Path(__file__).parents[1]
TOY = JobOptions(program="tests.toy_verb", retries=2)
needs_submitit = pytest.mark.usefixtures("submitit")


@pytest.fixture
def submitit(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytest.importorskip("submitit")


def calls(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def commands(tmp_path: Path) -> dict[str, list[str]]:
    return {
        "good": ["write", str(tmp_path / "good")],
        "twice": ["fail", str(tmp_path / "twice"), "1"],
        "never": ["fail", str(tmp_path / "never"), "99"],
        "mend": ["mend", str(tmp_path / "mend")],
        "raise": ["raise", str(tmp_path / "raise")],
    }


def test_failures_are_tried_again_and_what_needs_mending_waits_for_the_user(tmp_path):
    found = {s.name: s for s in launch(commands(tmp_path), folder=tmp_path / "jobs", options=TOY)}
    told = {name: (s.state, s.exit, s.attempts) for name, s in found.items()}
    assert told == {
        "good": ("done", 0, 1),
        "twice": ("done", 0, 2),
        "never": ("failed", 1, 3),
        "mend": ("failed", 2, 1),
        "raise": ("done", 0, 2),
    }
    assert {name: calls(tmp_path / name) for name in told} == {n: t[2] for n, t in told.items()}
    assert found["mend"].line == "give another folder"
    assert "RuntimeError: a bug" in (tmp_path / "jobs/raise/log.txt").read_text()

    again = launch(commands(tmp_path), folder=tmp_path / "jobs", options=TOY)
    assert [s.attempts for s in again] == [1, 2, 6, 2, 2]  # a new launch: what failed, not the rest
    assert sorted(read_statuses(tmp_path / "jobs"), key=str) == sorted(again, key=str)
    assert [row[:4] for row in status_table(again)][1] == ["good", "done", "0", "1"]


def test_another_command_under_a_name_is_refused(tmp_path):
    launch({"a": ["write", str(tmp_path / "x")]}, folder=tmp_path, options=TOY)
    with pytest.raises(SynthError, match="was begun as: write"):
        launch({"a": ["write", str(tmp_path / "y")]}, folder=tmp_path, options=TOY)
    with pytest.raises(SynthError, match=r"job '\.\./a'"):
        launch({"../a": ["write"]}, folder=tmp_path, options=TOY)
    with pytest.raises(SynthError, match="cluster option 'x'"):
        cluster_options(["x"])
    assert cluster_options(["timeout_min=60", "slurm_partition=gpu"]) == {
        "timeout_min": 60, "slurm_partition": "gpu"
    }  # fmt: skip


def test_being_asked_to_stop_stops_the_launch_and_the_next_goes_on(tmp_path):
    two = {n: ["save", str(tmp_path / n), "30" if n == "a" else "0"] for n in "ab"}
    with multiprocessing.get_context("fork").Pool(1) as pool:  # somebody sends SIGTERM
        pool.apply_async(_terminate_once, (tmp_path / "a", os.getpid()))
        with pytest.raises(KeyboardInterrupt):
            launch(two, folder=tmp_path / "jobs", options=TOY)
    assert [s.state for s in read_statuses(tmp_path / "jobs")] == ["stopped", "waiting"]
    (tmp_path / "jobs/a/command.json").write_text(json.dumps(["save", str(tmp_path / "a"), "0"]))
    two["a"][2] = "0"
    assert [s.state for s in launch(two, folder=tmp_path / "jobs", options=TOY)] == ["done"] * 2


def _terminate_once(path: Path, pid: int) -> None:
    while not path.exists():
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)


def test_of_many_processes_one_runs_a_job(tmp_path):
    create_job(tmp_path, "job", ["write", str(tmp_path / "made")])
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_run, [tmp_path / "job"] * 8)
    assert calls(tmp_path / "made") == 1
    assert read_status(tmp_path / "job").attempts == 1


def _run(job: Path) -> None:
    run_job(job, TOY, partial(run_in_process, TOY.program))


def test_a_job_runs_as_long_as_its_worker_or_the_workers_child_lives(tmp_path):
    job = create_job(tmp_path / "jobs", "a", ["save", str(tmp_path / "a"), "30"])
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=Task(jobs=[job], options=TOY, environment={}))
    worker.start()
    child = verb_pid(tmp_path / "a")
    assert read_status(job).state == "running"
    worker.kill()
    worker.join()
    assert read_status(job).state == "running"
    assert not is_open(job, TOY)
    os.kill(child, signal.SIGKILL)
    while (found := read_status(job)).state == "running":  # the system has to end it first
        time.sleep(0.01)
    assert (found.state, found.exit, found.attempts) == ("lost", None, 1)
    assert is_open(job, replace(TOY, began=time.time()))


def test_attempts_of_an_earlier_version_are_read(tmp_path):
    old = {"host": "h", "pids": [1], "began": 5.0, "state": "done", "exit": 0, "seconds": 2.0}
    write_json(tmp_path / "a/attempt-1.json", old)
    found = launch({"a": ["write", str(tmp_path / "x")]}, folder=tmp_path, options=TOY)
    assert [(s.state, s.attempts, s.seconds) for s in found] == [("done", 1, 2.0)]


SCRIPT = """
import sys
from pathlib import Path
from synth.jobs.launch import JobOptions, launch
out = Path(sys.argv[1])
many = {f"job-{i:02d}": ["save", str(out / f"done-{i:02d}"), "0.1"] for i in range(12)}
launch(many, folder=out / "jobs", options=JobOptions(program="tests.toy_verb"))
"""


def start(tmp_path: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT)


def test_two_workers_share_the_jobs_and_one_inherits_what_a_killed_one_leaves(tmp_path):
    first = start(tmp_path)
    while calls(tmp_path / "done-01") == 0:  # in the middle of a job
        time.sleep(0.01)
    second = start(tmp_path)
    while sum(calls(p) for p in tmp_path.glob("done-*")) < 6:
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert second.wait(timeout=60) == 0
    found = read_statuses(tmp_path / "jobs")
    assert [s.state for s in found] == ["done"] * 12
    taken_over = [s.name for s in found if s.attempts == 2]
    assert len(taken_over) <= 1  # a kill between two jobs loses none
    made = [read_attempts(tmp_path / "jobs" / name)[0]["state"] for name in taken_over]
    assert made == ["lost"] * len(taken_over)
    total = sum(calls(p) for p in tmp_path.glob("done-*"))
    assert total == 12 + len(taken_over)


@needs_submitit
def test_processes_of_this_machine_do_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    jobs = commands(tmp_path) | {"die": ["die", str(tmp_path / "die")]}
    options = JobOptions(program="tests.toy_verb", retries=1, at_once=2)
    found = launch(jobs, folder=tmp_path / "jobs", where="local", options=options)
    assert [(s.name, s.state, s.exit, s.attempts) for s in found] == [
        ("good", "done", 0, 1), ("twice", "done", 0, 2), ("never", "failed", 1, 2),
        ("mend", "failed", 2, 1), ("raise", "done", 0, 2), ("die", "done", 0, 2),
    ]  # fmt: skip
    assert read_attempts(tmp_path / "jobs/die")[0]["exit"] == -signal.SIGKILL
    assert found[3].line == "give another folder"


@needs_submitit
def test_a_preempted_worker_lets_its_verb_save_and_is_queued_again(tmp_path):
    one = {"a": ["save", str(tmp_path / "a"), "2"]}
    context = multiprocessing.get_context("fork")
    signaller = context.Process(target=_preempt, args=(tmp_path / "jobs/a", tmp_path / "a"))
    signaller.start()
    (found,) = launch(one, folder=tmp_path / "jobs", where="local", options=TOY)
    signaller.join()
    assert (found.state, found.attempts) == ("done", 2)
    assert read_attempts(tmp_path / "jobs/a")[0]["state"] == "stopped"


def _preempt(job: Path, made: Path) -> None:
    """Send what SLURM sends before it takes the node away."""
    verb_pid(made)
    time.sleep(0.2)
    os.kill(read_attempts(job)[0]["pid"], signal.SIGUSR2)


def verb_pid(made: Path) -> int:
    """Return the process of a verb, once it has begun."""
    while not calls(made):
        time.sleep(0.02)
    return int(made.read_text().split()[1])


@needs_submitit
def test_a_killed_workers_job_goes_to_the_next_round(tmp_path):
    one = {"a": ["save", str(tmp_path / "a"), "1"]}
    context = multiprocessing.get_context("fork")
    killer = context.Process(target=_kill, args=(tmp_path / "jobs/a", tmp_path / "a"))
    killer.start()
    (found,) = launch(one, folder=tmp_path / "jobs", where="local", options=TOY)
    killer.join()
    assert (found.state, found.attempts) == ("done", 2)
    assert read_attempts(tmp_path / "jobs/a")[0]["state"] == "lost"


def _kill(job: Path, made: Path) -> None:
    os.kill(verb_pid(made), signal.SIGSTOP)  # it must not end by itself meanwhile
    os.kill(read_attempts(job)[0]["pid"], signal.SIGKILL)
    os.kill(verb_pid(made), signal.SIGKILL)


FAKE_SLURM = {
    # runs every task of an array at once; the submission file and its id are kept for requeueing
    "sbatch": """
        id=$((100 + $(ls "$FAKE" | wc -l))); cp "$1" "$FAKE/$id"; echo "Submitted batch job $id"
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
        [ -n "$last" ] || { task "$id" "$id" ""; exit; }
        for i in $(seq 0 "$last"); do task "${id}_$i" "$id" "$i"; done""",
    "scontrol": """
        [ "$1" = requeue ] || exit 1
        touch "$FAKE/requeued-$2"; task "$2" "${2%_*}" "${2#*_}" """,
    "srun": """while [ "$1" != "$PYTHON" ]; do shift; done; exec "$@" """,
    "sacct": "exit 1",
}
TASK = """#!/bin/bash
task() {
  SLURM_JOB_ID=$1 SLURM_ARRAY_JOB_ID=${3:+$2} SLURM_ARRAY_TASK_ID=$3 SLURM_PROCID=0 \\
    SLURM_LOCALID=0 SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here \\
    setsid bash "$FAKE/$2" >>"$FAKE.log" 2>&1 </dev/null &
}
"""


@pytest.fixture
def slurm(submitit, tmp_path, monkeypatch) -> Path:
    """A cluster of this machine: what submitit hands to sbatch is really run."""
    for name, text in FAKE_SLURM.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(TASK + textwrap.dedent(text))
        path.chmod(0o755)
    (tmp_path / "slurm").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path / "slurm"))
    monkeypatch.setenv("PYTHON", sys.executable)
    return tmp_path / "slurm"


def test_on_slurm_an_array_has_a_task_for_each_job_and_preempted_ones_come_back(slurm, tmp_path):
    two = {n: ["save", str(tmp_path / n), "3"] for n in "ab"}
    context = multiprocessing.get_context("fork")
    signaller = context.Process(target=_preempt, args=(tmp_path / "jobs/a", tmp_path / "a"))
    signaller.start()
    options = JobOptions(
        program="tests.toy_verb", at_once=5, cluster={"timeout_min": 90, "slurm_partition": "gpu"}
    )
    found = launch(two, folder=tmp_path / "jobs", where="slurm", options=options)
    signaller.join()
    assert [(s.name, s.state, s.attempts) for s in found] == [("a", "done", 2), ("b", "done", 1)]
    assert read_attempts(tmp_path / "jobs/a")[0]["state"] == "stopped"
    requeued, script = sorted(slurm.iterdir(), key=lambda p: p.name, reverse=True)
    assert requeued.name.startswith("requeued-100_")
    lines = script.read_text().splitlines()
    for line in ("--array=0-1%2", "--time=90", "--partition=gpu", "--signal=USR2@90"):
        assert f"#SBATCH {line}" in lines


@needs_submitit
def test_slurm_without_slurm_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SynthError, match="srun"):
        launch(
            {"a": ["write", str(tmp_path / "x")]},
            folder=tmp_path / "jobs",
            where="slurm",
            options=TOY,
        )
    options = JobOptions(program="tests.toy_verb", cluster={"partiton": "gpu"})
    with pytest.raises(SynthError, match="partiton"):
        launch({"a": ["w"]}, folder=tmp_path / "more", where="local", options=options)


def test_without_submitit_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SynthError, match="needs submitit") as error:
        launch({"a": ["w"]}, folder=tmp_path, where="local", options=TOY)
    assert "EXTRAS=cluster" in error.value.hint
