"""A batch goes on after a bad case, and says once what is wrong with many."""

import logging
from pathlib import Path

import pytest

from synth.base.errors import SynthError
from synth.jobs.cases import Output, run_cases


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
