"""run.sh: one clear line for whatever is wrong, and never a half set-up that counts as done."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synth.cli import look_up
from synth.cli.parser import Parser

ROOT = Path(__file__).parents[1]

# Stands in for an interpreter: its venv gets a `python` that runs the words after FAKE_PIP as pip
# and prints whatever else it is called with.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) echo "${FAKE_VERSION:-3.11}" ;;
  "-V") echo "Python 3.11.0" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install "*) echo "$@" >> "$FAKE_LOG"; eval "${FAKE_PIP:-true}" ;;
  "-m pip "* | "-c "*) exit 0 ;;
  *) printf '[%s]' "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout without .venv, and a stand-in for the interpreter in it."""
    for name in ("run.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    for name, text in {
        "nvidia-smi": "#!/bin/sh\nexit 1\n",
        "df": "#!/bin/sh\necho header; echo x 1 1 ${FAKE_KB:-9000000} x /\n",
    }.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def run(checkout, *words, **env):
    """Run the copy of run.sh and return (exit code, stdout, stderr)."""
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "run.sh", *words],
        cwd=checkout,
        env={**os.environ, "PATH": path, "FAKE_LOG": str(checkout / "pip.log"), **env},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_help_needs_no_venv_and_lists_every_mode(checkout):
    started = time.monotonic()
    code, out, _ = run(checkout, "MODE=help")
    assert code == 0
    assert time.monotonic() - started < 3
    assert not (checkout / ".venv").exists()
    for mode in ("demo", "test", "c_train", "c_sample", "setup"):
        assert f"MODE={mode} " in out
    assert "SAMPLING_STEPS" in out
    assert ".venv/bin/synth VERB --help" in out
    explained = out.partition("MODE=help")[2]
    for key in ("STEPS_SCHEDULER", "CHANNELS", "BEG", "END", "MIN_ML"):
        assert re.search(rf"^  .*\b{key}\b.*   ", explained, re.MULTILINE), key


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["MODE=c_trian"], "unknown mode 'c_trian'; did you mean MODE=c_train?"),
        (["MODE=tests"], "did you mean MODE=test?"),
        (["MODE="], "unknown mode ''"),
        (['MODE=x" { print'], "unknown mode"),
        (["mode=test"], "unknown key mode; did you mean MODE=?"),
        (["MODE=c_train", "DATADIR=x"], "unknown key DATADIR; did you mean DATA_DIR=?"),
        (["SEDE=1"], "did you mean SEED=?"),
        (["test"], "did you mean MODE=test?"),
        (["MODE=check"], "MODE=check needs DATA_DIR="),
        (["FROM_SCRATCH=yes"], "FROM_SCRATCH=yes is neither 1 nor 0"),
        (["SAMPLING_STEPS=5", "MODE=check", "DATA_DIR=x"], "MODE=check takes no SAMPLING_STEPS"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(checkout, words, answer):
    code, out, err = run(checkout, *words)
    assert (code, out) == (2, "")
    assert answer in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["CASES=2"], ["-m", "synth", "demo", "--cases", "2"]),
        (["FROM_SCRATCH=1"], ["-m", "synth", "demo", "--from-scratch"]),
        (["FROM_SCRATCH=0"], ["-m", "synth", "demo"]),
        (
            ["MODE=study", "DATA_DIR=d", "PRESET=brats23", "FOLDS=5", "LAUNCHER=slurm"],
            [
                "-m",
                "synth",
                "study",
                "d",
                "--folds",
                "5",
                "--preset",
                "brats23",
                "--launcher",
                "slurm",
            ],
        ),
        (["DATA_DIR=a b/*", "MODE=check"], ["-m", "synth", "check", "a b/*"]),
        (
            ["CHANNELS=t1n,t2f", "DATA_DIR=d", "MODE=c_train", "TRAIN_MODE=only_roi"],
            [
                "-m",
                "synth",
                "train",
                "wdm3d",
                "--mode",
                "only_roi",
                "--modalities",
                "t1n",
                "t2f",
                "--data",
                "d",
            ],
        ),
    ],
)
def test_keys_become_the_flags_of_a_verb(checkout, words, called):
    environment = {"SEED": "7", "CASES": "9", "MODE": "lint"}  # only the command line counts
    code, out, err = run(checkout, "PYTHON=./python", *words, **environment)
    assert code == 0, err
    assert out == "".join(f"[{word}]" for word in called)


def verbs() -> dict[str, tuple[list[str], list[str]]]:
    """Mode → (words of the verb, KEY:--flag pairs), of the modes that are verbs."""
    script = "eval \"$(sed -n '/^TRAIN=/,/^)/p' run.sh)\"; printf '%s\\n' \"${MODES[@]}\""
    answer = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = {}
    for row in answer.stdout.splitlines():
        mode, _, command, keys, _ = (cell.strip() for cell in row.split("|"))
        if command.startswith("synth "):
            found[mode] = (command.split()[1:], keys.split())
    return found


def parser_of(words: list[str]) -> Parser:
    return look_up(words).parser


@pytest.mark.parametrize("mode", verbs())
def test_every_flag_of_the_table_exists_in_its_verb(mode):
    words, keys = verbs()[mode]
    # MODE=train takes the family from MODEL; any that can be trained will do.
    parser = parser_of([*words, "wdm3d"] if mode == "train" else words)
    flags = {option: action for action in parser._actions for option in action.option_strings}
    positional = [action for action in parser._actions if not action.option_strings]
    for pair in keys:
        key, _, flag = pair.partition(":")
        if not flag:
            continue
        assert flag.rstrip("+?") in flags, f"MODE={mode} {key}"
        takes = {"+": "+", "?": 0}.get(flag[-1])
        assert flags[flag.rstrip("+?")].nargs == takes, key
    bare = [pair for pair in keys if ":" not in pair]
    assert len(bare) + len(words) - 1 == len(positional)


VALUES = {
    "DATA_DIR": "data", "DATA_SPLIT_JSON": "s.json", "FOLD": "0", "PRESET": "tiny",
    "ITERATIONS": "5", "BATCH_SIZE": "2", "SEED": "3", "DEVICE": "cpu", "WORKERS": "1",
    "RUN_DIR": "runs/a", "RESUME": "runs/a", "NOISE_SCHEDULE": "linear", "CHANNELS": "t1n,t2f",
    "TRAIN_MODE": "Conditional_always_known_only_healthy", "MODEL": "runs/a", "OUTPUT_DIR": "out",
    "ESTIMATE": "sample", "SAMPLES": "2", "SAMPLING_STEPS": "20", "BEG": "0", "END": "end",
    "MASK": "m.nii.gz", "SEG": "s.nii.gz", "BRAIN": "b.nii.gz", "CONTRASTS": "t1n,t2f",
    "STEPS_SCHEDULER": "DPM_plus_plus_2M_Karras",
}  # fmt: skip


@pytest.mark.parametrize("mode", ["c_train", "c_sample"])
def test_the_predecessors_keys_reach_the_verb(checkout, mode):
    keys = [pair.split(":")[0] for pair in verbs()[mode][1]]
    given = [f"{key}={VALUES[key]}" for key in keys]
    code, out, err = run(checkout, "PYTHON=./python", f"MODE={mode}", *given)
    assert code == 0, err
    words = out.strip("[]").split("][")[2:]
    values = parser_of(words).parse(words[1:])
    if mode == "c_train":
        assert values["mode"] == VALUES["TRAIN_MODE"]
        assert (values["steps"], values["batch_size"], values["fold"]) == (5, 2, 0)
        assert values["modalities"] == ["t1n", "t2f"]
        assert values["out"] == values["resume"] == Path("runs/a")
    else:
        assert (values["steps"], values["samples"], values["noise_schedule"]) == (20, 2, "linear")
        assert values["steps_scheduler"] == VALUES["STEPS_SCHEDULER"]
        assert (values["brain"], values["contrasts"]) == (Path("b.nii.gz"), ["t1n", "t2f"])
        assert (values["begin"], values["end"], values["model"]) == (0, "end", Path("runs/a"))


def test_an_old_python_is_named_and_nothing_is_made(checkout):
    code, _, err = run(checkout, "MODE=setup", "PYTHON=./python", FAKE_VERSION="3.9")
    assert code == 1
    assert "needs Python 3.11, 3.12 or 3.13, but ./python is 3.9" in err
    code, _, err = run(checkout, "MODE=setup", "PYTHON=./nowhere")
    assert code == 1
    assert "there is no ./nowhere" in err
    assert not (checkout / ".venv").exists()


def test_a_full_disk_is_told_before_anything_is_made(checkout):
    code, _, err = run(checkout, "MODE=setup", "PYTHON=./python", FAKE_KB="20480")
    assert code == 1
    assert "20 MB are free" in err
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("pip", "answer"),
    [
        ("echo 'OSError: [Errno 28] No space left on device'; exit 1", "the disk is full"),
        ("echo 'Retrying after connection broken by X'; exit 1", "no network"),
        ("echo 'ERROR: bad wheel'; exit 1", "ERROR: bad wheel"),
        ("kill -9 0", ""),  # the whole process group, at the worst moment
    ],
)
def test_a_failed_setup_is_never_taken_for_done(checkout, pip, answer):
    code, _, err = run(checkout, "MODE=setup", "PYTHON=./python", FAKE_PIP=pip)
    assert code != 0
    assert answer in err
    leftover = checkout / ".venv" / "half-written"
    leftover.touch()
    code, _, err = run(checkout, "MODE=setup", "PYTHON=./python")
    assert code == 0, err
    assert not leftover.exists()


def test_setup_runs_once_and_again_when_its_input_changes(checkout):
    log = checkout / "pip.log"

    def installs(*words, **env):
        log.write_text("")
        run(checkout, "PYTHON=./python", *words, **env)
        return log.read_text().splitlines()

    (first,) = installs("MODE=setup")
    assert "-c constraints.txt" in first
    assert first.endswith("-e .")
    assert installs("MODE=setup") == installs("MODE=demo") == []
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert len(installs("MODE=demo")) == 1
    (dev,) = installs("MODE=test")
    assert dev.endswith("-e .[dev]")
    assert installs("MODE=test") == installs("MODE=demo") == []

    # Offline, an extra that cannot be fetched leaves the modes that do without it usable.
    offline = "echo 'connection broken'; exit 1"
    assert len(installs("MODE=setup", "EXTRAS=cluster", FAKE_PIP=offline)) == 1
    assert installs("MODE=test") == []


@pytest.mark.slow
def test_no_network_is_one_sentence_with_the_real_pip(checkout):
    code, _, err = run(
        checkout,
        "MODE=setup",
        f"PYTHON={sys.executable}",
        "DEVICE=cuda",  # asks no other index
        FAKE_KB="99000000",
        PIP_CONFIG_FILE=os.devnull,
        PIP_FIND_LINKS="",
        PIP_INDEX_URL="http://127.0.0.1:9/",
        PIP_RETRIES="1",
    )
    assert code == 1
    assert err.endswith(
        "no network: the package index does not answer; run the same command when it does\n"
    )
    assert (checkout / ".venv" / ".setup").read_text() == "building\n"
