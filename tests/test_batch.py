"""A batch goes on after a bad case, and says once what is wrong with many."""

import errno
import fcntl
import logging
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from synth.base.errors import SynthError
from synth.base.files import lock, only_process, read_json, temporary_of, write_json
from synth.jobs.cases import Output, run_cases, write_record


def nowhere(case: str) -> list[Output]:
    return [Output(path=Path("nowhere") / case)]


def test_a_mistake_of_many_cases_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def work(case: str) -> str:
        if case == "P-3":
            return "fine"
        raise SynthError(f"out/{case} was made otherwise", hint="--force draws it again")

    with caplog.at_level(logging.INFO, "synth.jobs.cases"):
        assert run_cases(["P-1", "P-2", "P-3", "P-4"], work, name=str, outputs=nowhere) == 3
    assert [r.getMessage() for r in caplog.records] == [
        "[1/4] P-1: out/P-1 was made otherwise → --force draws it again",
        "[2/4] P-2: the same",
        "[3/4] P-3: fine",
        "[4/4] P-4: the same",
        "1 made, 0 already there, 3 failed",
    ]


def test_the_name_of_a_case_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def work(case: str) -> str:
        raise SynthError(f"{case}: no mask file", hint="draw one")

    with caplog.at_level(logging.INFO, "synth.jobs.cases"):
        run_cases(["P-1", "P-2"], work, name=str, outputs=nowhere)
    assert [r.getMessage() for r in caplog.records[:2]] == [
        "[1/2] P-1: no mask file → draw one",
        "[2/2] P-2: the same",
    ]


@dataclass
class Folder:
    """Results of one case: a file, and a record that vouches for it."""

    out: Path
    settings: dict = field(default_factory=lambda: {"seed": 0})
    made: int = 0

    @property
    def output(self) -> Output:
        return Output(
            path=self.out / "a.txt", record=self.out / "records" / "a.json", settings=self.settings
        )

    def work(self, case: str) -> str:
        self.made += 1
        write_record(self.out / "records" / "a.json", {"arguments": self.settings})
        files = [self.out / "b.txt", self.out / "a.txt"]
        for file in files:
            file.write_text("result")
        write_record(self.out / "records" / "a.json", {"arguments": self.settings}, files)
        return ""

    def run(self) -> int:
        return run_cases(["a"], self.work, lambda _: [self.output], name=str)


def begin(folder: Folder) -> None:
    write_record(folder.out / "records" / "a.json", {"arguments": folder.settings})


@pytest.mark.parametrize(
    ("spoil", "made", "failed"),
    [
        (lambda f: None, 0, 0),
        (lambda f: (f.out / "a.txt").unlink(), 1, 0),
        (lambda f: (f.out / "b.txt").unlink(), 1, 0),
        (lambda f: (f.out / "a.txt").write_text("resul"), 0, 1),
        (lambda f: (f.out / "records/a.json").write_text("{"), 1, 0),
        (lambda f: (f.out / "records/a.json").write_text("[]"), 1, 0),
        (lambda f: (f.out / "records/a.json").write_text('{"arguments": 5}'), 1, 0),
        (begin, 1, 0),  # killed before its record was whole
        (lambda f: write_json(f.out / "records/a.json", {"arguments": f.settings}), 0, 0),
    ],
    ids=["whole", "gone", "other", "changed", "torn", "list", "wrong", "begun", "older"],
)
def test_what_is_there_is_believed_as_far_as_its_record_vouches(
    tmp_path: Path, spoil: Callable[[Folder], None], made: int, failed: int
) -> None:
    folder = Folder(tmp_path)
    assert folder.run() == 0
    spoil(folder)
    before = folder.made
    assert (folder.run(), folder.made - before) == (failed, made)


def test_files_of_others_and_other_settings_are_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (tmp_path / "a.txt").write_text("precious")
    with pytest.raises(SynthError, match="`synth` did not write it"):
        folder.run()
    assert (tmp_path / "a.txt").read_text() == "precious"
    (tmp_path / "a.txt").unlink()
    folder.run()
    folder.settings = {"seed": 1}
    with pytest.raises(SynthError, match="made with seed = 0, not 1"):
        folder.run()


def test_results_that_vanish_meanwhile_are_missed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    work = folder.work

    def vanish(case: str) -> str:
        work(case)
        (tmp_path / "a.txt").unlink()
        return ""

    folder.work = vanish
    with pytest.raises(SynthError, match=r"a\.txt is gone"):
        folder.run()


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(28, "No space left on device", "x"), "x: No space left"), (MemoryError(), "memory")],
)
def test_a_full_disk_stops_only_a_case(caplog, error: Exception, said: str) -> None:
    def work(case: str) -> str:
        if case == "a":
            raise error
        return "fine"

    with caplog.at_level(logging.INFO, "synth.jobs.cases"):
        assert run_cases(["a", "b"], work, lambda _: [], name=str, force=True) == 1
    assert said in caplog.text
    assert "b: fine" in caplog.text


def test_a_run_on_a_file_system_without_locks_is_only_warned_of(
    tmp_path, monkeypatch, caplog
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_process(tmp_path):
        pass
    assert "cannot be locked: No locks available" in caplog.text
    with pytest.raises(SynthError, match="cannot be locked"), lock(tmp_path / "job"):
        pass


def test_a_file_is_replaced_whole_and_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine, alive = temporary_of(path), temporary_of(path).name.replace(str(os.getpid()), "1")
    left = [tmp_path / mine.name.replace(str(os.getpid()), str(dead.pid)),
            tmp_path / f".a.json.{dead.pid}.part"]  # fmt: skip
    for name in (*left, tmp_path / alive, tmp_path / ".a.json.elsewhere-5.part"):
        name.write_text("half")
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path, dict[str, int]) == {"a": 2}
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", alive, ".a.json.elsewhere-5.part"}
