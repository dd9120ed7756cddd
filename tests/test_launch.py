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
from pathlib import Path

import pytest

from synth.base.errors import SynthError
from synth.jobs import locks, workers
from synth.jobs.launch import Options, cluster_options, launch, status, statuses, table
from synth.jobs.locks import attempts, claim
from synth.jobs.workers import work

ROOT = Path(__file__).parents[1]
TOY = Options(program="tests.toy_verb", retries=2)
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
    assert sorted(statuses(tmp_path / "jobs"), key=str) == sorted(again, key=str)
    assert [row[:4] for row in table(again)][1] == ["good", "done", "0", "1"]


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
    assert [s.state for s in statuses(tmp_path / "jobs")] == ["stopped", "waiting"]
    (tmp_path / "jobs/a/command.json").write_text(json.dumps(["save", str(tmp_path / "a"), "0"]))
    two["a"][2] = "0"
    assert [s.state for s in launch(two, folder=tmp_path / "jobs", options=TOY)] == ["done"] * 2


def _terminate_once(path: Path, pid: int) -> None:
    while not path.exists():
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)


def test_of_many_claimants_one_wins(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        for number in range(1, 11):
            won = pool.map(_claims, [(tmp_path / "job", number)] * 8)
            assert sum(won) == 1


def _claims(arguments: tuple[Path, int]) -> bool:
    return claim(*arguments) is not None


def test_a_dead_workers_attempt_is_lost_and_a_living_ones_is_not(tmp_path, monkeypatch):
    made = claim(tmp_path, 1)
    assert made is not None
    assert claim(tmp_path, 1) is None
    assert attempts(tmp_path)[-1].state == "running"

    path = tmp_path / "attempt-1.json"
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    time.sleep(0.3)
    assert not locks._alive(dead.pid)  # ended, and not waited for yet
    dead.wait()
    path.write_text(json.dumps(made.record | {"pids": [dead.pid]}))
    assert attempts(tmp_path)[-1].state == "lost"
    made.helped_by(os.getpid())  # a child lives on
    path.write_text(json.dumps(made.record | {"pids": [dead.pid, os.getpid()]}))
    assert attempts(tmp_path)[-1].state == "running"

    path.write_text(json.dumps(made.record | {"host": "elsewhere", "pids": [dead.pid]}))
    assert attempts(tmp_path)[-1].state == "running"  # its process cannot be seen from here
    os.utime(path, (0, time.time() - locks.STALE_SECONDS - 1))
    assert attempts(tmp_path)[-1].state == "lost"
    path.write_text("")  # killed between making the file and filling it
    assert attempts(tmp_path)[-1].state == "running"
    os.utime(path, (0, time.time() - locks.STALE_SECONDS - 1))
    assert attempts(tmp_path)[-1].state == "lost"
    made.close("done", 0)
    assert (attempts(tmp_path)[-1].state, attempts(tmp_path)[-1].exit) == ("done", 0)


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    made = claim(tmp_path, 1)
    assert made is not None
    os.utime(made.path, (0, 1000.0))
    time.sleep(0.2)
    assert time.time() - made.path.stat().st_mtime < 60
    made.close("failed", 1)


SCRIPT = """
import sys
from pathlib import Path
from synth.jobs.launch import Options, launch
out = Path(sys.argv[1])
many = {f"job-{i:02d}": ["save", str(out / f"done-{i:02d}"), "0.1"] for i in range(12)}
launch(many, folder=out / "jobs", options=Options(program="tests.toy_verb"))
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
    found = statuses(tmp_path / "jobs")
    assert [s.state for s in found] == ["done"] * 12
    taken_over = [s.name for s in found if s.attempts == 2]
    assert len(taken_over) <= 1  # a kill between two jobs loses none
    made = [attempts(tmp_path / "jobs" / name)[0].state for name in taken_over]
    assert made == ["lost"] * len(taken_over)
    total = sum(calls(p) for p in tmp_path.glob("done-*"))
    assert total == 12 + len(taken_over)


@needs_submitit
def test_processes_of_this_machine_do_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    jobs = commands(tmp_path) | {"die": ["die", str(tmp_path / "die")]}
    options = Options(program="tests.toy_verb", retries=1, at_once=2)
    found = launch(jobs, folder=tmp_path / "jobs", where="local", options=options)
    assert [(s.name, s.state, s.exit, s.attempts) for s in found] == [
        ("good", "done", 0, 1), ("twice", "done", 0, 2), ("never", "failed", 1, 2),
        ("mend", "failed", 2, 1), ("raise", "done", 0, 2), ("die", "done", 0, 2),
    ]  # fmt: skip
    assert attempts(tmp_path / "jobs/die")[0].exit == -signal.SIGKILL
    assert found[3].line == "give another folder"


@needs_submitit
def test_a_preempted_worker_lets_its_verb_save_and_is_queued_again(tmp_path):
    one = {"a": ["save", str(tmp_path / "a"), "2"]}
    context = multiprocessing.get_context("fork")
    signaller = context.Process(target=_preempt, args=(tmp_path / "jobs/a",))
    signaller.start()
    (found,) = launch(one, folder=tmp_path / "jobs", where="local", options=TOY)
    signaller.join()
    assert (found.state, found.attempts) == ("done", 2)
    assert attempts(tmp_path / "jobs/a")[0].state == "stopped"


def _preempt(job: Path) -> None:
    """Send what SLURM sends before it takes the node away."""
    while not (made := attempts(job)) or len(made[0].pids) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(made[0].pids[0], signal.SIGUSR2)


@needs_submitit
def test_a_killed_workers_job_goes_to_the_next_round(tmp_path):
    one = {"a": ["save", str(tmp_path / "a"), "1"]}
    context = multiprocessing.get_context("fork")
    killer = context.Process(target=_kill, args=(tmp_path / "jobs/a",))
    killer.start()
    (found,) = launch(one, folder=tmp_path / "jobs", where="local", options=TOY)
    killer.join()
    assert (found.state, found.attempts) == ("done", 2)
    assert attempts(tmp_path / "jobs/a")[0].state == "lost"


def _kill(job: Path) -> None:
    while not (made := attempts(job)) or len(made[0].pids) < 2:
        time.sleep(0.05)
    for pid in made[0].pids:
        os.kill(pid, signal.SIGKILL)


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
    signaller = context.Process(target=_preempt, args=(tmp_path / "jobs/a",))
    signaller.start()
    options = Options(
        program="tests.toy_verb", at_once=5, cluster={"timeout_min": 90, "slurm_partition": "gpu"}
    )
    found = launch(two, folder=tmp_path / "jobs", where="slurm", options=options)
    signaller.join()
    assert [(s.name, s.state, s.attempts) for s in found] == [("a", "done", 2), ("b", "done", 1)]
    assert attempts(tmp_path / "jobs/a")[0].state == "stopped"
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
    options = Options(program="tests.toy_verb", cluster={"partiton": "gpu"})
    with pytest.raises(SynthError, match="partiton"):
        launch({"a": ["w"]}, folder=tmp_path / "more", where="local", options=options)


def test_without_submitit_the_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SynthError, match="needs submitit") as error:
        launch({"a": ["w"]}, folder=tmp_path, where="local", options=TOY)
    assert "EXTRAS=cluster" in error.value.hint


def test_a_worker_with_a_share_stops_after_it(tmp_path):
    done: list[str] = []

    def do(name: str, _: locks.Claim) -> int:
        done.append(name)
        return 0

    work(tmp_path, ["a", "b", "c"], do, before={}, retries=0, jobs=2)
    assert done == ["a", "b"]
    assert status(tmp_path / "c").state == "waiting"
    assert workers.python_path().split(os.pathsep)[0] == str(ROOT)
