"""The command line: fast, lazy, one-line errors with the nearest word, a function for each verb."""

import argparse
import dataclasses
import inspect
import json
import signal
import subprocess
import sys
import typing
from pathlib import Path
from typing import Literal

import pytest

from synth.base.config import field_docs, from_dict, to_dict
from synth.base.errors import SynthError
from synth.cli import ALIASES, VERBS, look_up, main
from synth.cli.parser import build
from synth.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
COMMANDS = [
    f"{verb} {kind}".split() for verb, row in VERBS.items() for kind in (row.kinds or ("",))
] + [["train", family] for family in ("label_gan", "wdm3d", "ddpm_lora", "segmentation")]


def test_an_error_that_a_library_makes_of_a_signal_is_no_traceback(monkeypatch, capsys) -> None:
    def interrupted(*_: object) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("numpy C-extensions failed") from None
        return 0

    monkeypatch.setattr("synth.cli.run", interrupted)
    assert main(["check", "x"]) == 143
    assert capsys.readouterr().err == "synth: stopped; the same command goes on\n"
    monkeypatch.setattr("synth.cli.run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["check", "x"])


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    """Every verb explains itself in one process, in a tenth of a second for each at most."""
    code = f"""
import contextlib, io, json, sys, time
started = time.monotonic()
import synth.cli
seconds = {{"import": time.monotonic() - started}}
for words in {[[], *COMMANDS]!r}:
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        synth.cli.main([*words, "--help"])
    seconds[" ".join(words)] = time.monotonic() - started
print(json.dumps([seconds, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    seconds, modules = json.loads(answer.stdout)
    assert not {"torch", "numpy", "scipy", "monai", "peft", "nilearn", "matplotlib"} & {*modules}
    assert max(seconds.values()) < 0.3, seconds


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_two_screens_and_names_every_option(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in ("80", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        short, full = (look_up([*words, flag]).parser for flag in ("--help", "--help-all"))
        lines = short.format_help().splitlines()
        assert len(lines) <= 48
        assert max(map(len, lines)) <= int(columns)
        for action in short._actions:
            if action.dest != "help":
                flags = [flag for flag in action.option_strings if flag.startswith("--")]
                name = flags[0] if flags else action.dest.upper()
                assert all(name in parser.format_help() for parser in (short, full))
        assert all(a.help and a.help != argparse.SUPPRESS for a in full._actions)
    kinds = typing.get_type_hints(look_up(words).function)
    own = [name for name, kind in kinds.items() if not dataclasses.is_dataclass(kind)]
    assert len({*own} - {"return", "settings", "tables"}) <= 12


def test_evaluate_has_sub_verbs_with_options_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(
        kind in shown and kind in VERBS["evaluate"].about for kind in VERBS["evaluate"].kinds
    )
    given = ["a", "b", "-o", "c"]
    assert "baselines" in look_up(["evaluate", "inpainting", *given]).parse()
    assert "baselines" not in look_up(["evaluate", "masks", *given]).parse()
    for alias, kind in ALIASES.items():
        one, other = (look_up(["evaluate", word, *given]) for word in (alias, kind))
        assert (one.function, one.parse()) == (other.function, other.parse())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chek"], "unknown verb 'chek' → did you mean check?"),
        (["evaluate"], "evaluate needs a kind → one of: inpainting"),
        (["evaluate", "mask", "a", "b"], "unknown kind 'mask' → did you mean masks?"),
        (["evaluate", "masks", "a", "b", "-o", "c", "--use"], "unknown argument --use"),
        (["check", ".", "--shceme", "x"], "unknown argument --shceme → did you mean --scheme?"),
        (["inpaint", "x", "--ouput", "y"], "unknown argument --ouput → did you mean --out?"),
        (["inpaint", "--ouput=y z"], "unknown argument --ouput → did you mean --out?"),
        (["inpaint", "x", "--stesp", "5"], "did you mean --steps?"),
        (["check", "-x"], "unknown argument -x"),
        (["inpaint", "x"], "required: -o/--out"),
        (["check", "/no/such/folder"], "no such file or folder"),
        (["check"], "required: DATA_DIR"),
        (["phantom", "x", "--size", "medium"], "invalid choice"),
        (["check", ".", "--scheme", "brats23"], "did you mean brats2023?"),
        (["info", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def sample(
    source: Path, *, count: int = 3, kind: Literal["a", "b"] = "a",
    names: tuple[str, ...] = (), limit: float | None = None, fast: bool = False,
    sizes: tuple[int, ...] = (), config: TrainConfig,
) -> None:  # fmt: skip
    """Do a thing.

    Args:
        source: where from.
        count: how many,
            really.
        kind: which.
        steps: this field is shown.
    """


def test_a_signature_becomes_options() -> None:
    parser = build(sample, prog="synth sample")
    values = parser.parse(["x", "--count", "5", "--names", "p", "q", "--limit", "2", "--fast"])
    values = {
        name: values[name] for name in inspect.signature(sample).parameters if name != "config"
    }
    assert values == {
        "source": Path("x"), "count": 5, "kind": "a", "names": ["p", "q"], "limit": 2.0,
        "fast": True, "sizes": (),
    }  # fmt: skip
    assert parser.parse(["x", "--accumulate", "2"])["accumulate"] == 2
    text = " ".join(parser.format_help().split())
    assert "how many, really [3]" in text
    assert "--steps INT this field is shown [100000]" in text
    assert "more options: --batch-size --accumulate" in text
    assert parser.parse(["x", "--names", "p,q", "r"])["names"] == ["p", "q", "r"]
    assert parser.parse(["x", "--names", "p=1,2"])["names"] == ["p=1,2"]
    for words in (["1,2", "4"], ["1", "2", "4"], ["1,2,4"]):
        assert parser.parse(["x", "--sizes", *words])["sizes"] == [1, 2, 4]
    with pytest.raises(SynthError, match="invalid int value: '1,b'"):
        parser.parse(["x", "--sizes", "1,b"])
    with pytest.raises(SynthError, match="invalid int value"):
        parser.parse(["x", "--count", "many"])
    assert parser.parse(["--limit", "-2.5", "--", "--x"])["source"] == Path("--x")
    assert parser.parse(["-- a folder"])["source"] == Path("-- a folder")


def test_configs_round_trip_and_are_strict() -> None:
    config = TrainConfig(steps=7, precision="bf16")
    assert from_dict(TrainConfig, to_dict(config)) == config
    with pytest.raises(SynthError, match="unknown setting 'stesp'") as caught:
        from_dict(TrainConfig, {"stesp": 1})
    assert caught.value.hint == "did you mean steps?"
    with pytest.raises(SynthError, match="'many' is not of type int"):
        from_dict(TrainConfig, {"steps": "many"})
    with pytest.raises(SynthError, match="unknown precision 'fp8'"):
        from_dict(TrainConfig, {"precision": "fp8"})
    assert set(field_docs(TrainConfig)) == set(to_dict(config))
