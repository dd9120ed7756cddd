"""run.sh: keys reach the verb, mistakes are one line, a half set-up never counts as done."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from synth.cli import look_up
from tests import core_lock

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))

# Stands in for an interpreter: its venv gets a `python` that runs the words after FAKE_PIP as pip
# and prints whatever else it is called with.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit "${FAKE_OLD:-0}" ;;
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
    for name in ("run.sh", "pyproject.toml", "constraints.txt", "core.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name, text in {
        "python": FAKE_PYTHON,
        "bin/nvidia-smi": "#!/bin/sh\nexit 1\n",
        "bin/df": "#!/bin/sh\necho header; echo x 1 1 ${FAKE_KB:-9000000} x /\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(checkout, *words, **env):
    """Run the copy of run.sh and return (exit code, stdout, stderr)."""
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "FAKE_LOG": str(checkout / "pip.log"), **env}
    done = subprocess.run(
        ["bash", "run.sh", *words], cwd=checkout, env=env, capture_output=True, text=True,
        timeout=60, start_new_session=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def called(checkout, *words: str) -> list[str]:
    """Return the words that Python is called with."""
    environment = {"SEED": "7", "CASES": "9", "MODE": "lint"}  # only the command line counts
    code, out, error = run(checkout, "PYTHON=./python", *words, **environment)
    assert code == 0, error
    return re.findall(r"\[([^]]*)\]", out)


def parse(words: list[str]) -> dict[str, Any]:
    assert words[:2] == ["-m", "synth"]
    return look_up(words[2:]).parse()


def test_help_needs_no_venv_and_lists_every_mode(checkout):
    code, out, _ = run(checkout, "MODE=help")
    assert code == 0
    assert not (checkout / ".venv").exists()
    for mode in (*MODES, "test", "test_all", "lint", "setup"):
        assert f"MODE={mode} " in out
    for key in ("CHANNELS", "BEG", "END", "SAMPLING_STEPS=steps", ".venv/bin/synth VERB --help"):
        assert key in out


# mode → the keys that it has always had, and what the verb reads from them
LOOP = {"FOLD=1": 1, "PRESET=tiny": "tiny", "BATCH_SIZE=2": 2, "SEED=3": 3, "DEVICE=cpu": "cpu",
        "WORKERS=1": 1}  # fmt: skip
TRAIN = LOOP | {
    "DATA_DIR=a b": ("data", Path("a b")), "DATA_SPLIT_JSON=s": ("split", Path("s")),
    "ITERATIONS=5": ("steps", 5), "RUN_DIR=r": ("out", Path("r")), "RESUME=r": Path("r"),
}  # fmt: skip
RANGE = {"BEG=1": ("begin", 1), "END=7": "7", "DEVICE=cpu": "cpu"}
OUT = {"OUTPUT_DIR=o": ("out", Path("o"))}
MODES = {
    "demo": OUT | {"CASES=12": 12, "FROM_SCRATCH=1": True, "SEED=4": 4, "WORKERS=2": 2},
    "study": OUT | {
        "DATA_DIR=d": ("data", Path("d")), "DATA_SPLIT_JSON=s": ("split", Path("s")), "FOLDS=3": 3,
        "FOLD=1": 1, "PRESET=brats23": "brats23", "FROM_SCRATCH=0": False,
        "LAUNCHER=slurm": "slurm",
        "SHARDS=2": 2, "CLUSTER=a=1,b=2": ["a=1", "b=2"], "WORKERS=1": 1,
    },
    "phantom": OUT | {"CASES=2": 2, "SIZE=full": "full", "SEED=1": 1, "WORKERS=0": 0},
    "check": {"DATA_DIR=a b/*": ("data_dir", Path("a b/*"))},
    "train": TRAIN | {"MODEL=label_gan": ("family", "label_gan")},
    "c_train": TRAIN | {
        "TRAIN_MODE=only_roi": ("mode", "only_roi"),
        "NOISE_SCHEDULE=linear": ("schedule", "linear"),
        "CHANNELS=t1n,t2f": ("modalities", ["t1n", "t2f"]),
    },
    "c_sample": OUT | RANGE | {
        "DATA_DIR=d": ("data", Path("d")), "MASK=m": Path("m"), "SEG=s": Path("s"), "SEED=1": 1,
        "BRAIN=b": Path("b"), "CONTRASTS=t1n,t2f": ["t1n", "t2f"], "MODEL=m": Path("m"),
        "RUN_DIR=m": ("model", Path("m")), "ESTIMATE=sample": "sample", "SAMPLES=2": 2,
        "SAMPLING_STEPS=20": ("steps", 20), "STEPS_SCHEDULER=linear": "linear",
        "TRAIN_MODE=known": ("mode", "known"), "NOISE_SCHEDULE=linear": "linear",
    },
    "masks": OUT | {
        "DATA_DIR=d": ("data", Path("d")), "JSON_FILE=s.json": ("split", Path("s.json")),
        "SAVE_FOLDER=o": ("out", Path("o")), "MODEL_PATH=g": ("model", Path("g")), "BEGIN=2": 2,
        "ONLY_REAL_SEG=False": "False", "ONLY_FAKE_SEG=True": "True", "END=end": "end",
        "NEW_CASES_PER_CASE=5": ("per_case", 5), "KIND=tumour": "tumour", "WORKERS=1": 1,
    },
    "sample": OUT | RANGE | {
        "LABELS=maps": ("label_maps", [Path("maps")]), "LORA=a:0.7,b": ["a:0.7", "b"],
        "MODEL=m": Path("m"), "BRAIN=b": Path("b"), "SCHEME=meddpm": "meddpm", "SAMPLES=3": 3,
        "SAMPLING_STEPS=12": ("steps", 12), "SAMPLER=ddim": "ddim", "GUIDANCE=1.5": 1.5,
        "APPEND_TO=s": Path("s"), "FOLD=0": 0, "DATA_DIR=d": ("data", Path("d")), "SEED=4": 4,
    },
    "segment": OUT | RANGE | {
        "DATA_DIR=d": ("data", Path("d")), "MODELS=a,b": [Path("a"), Path("b")], "SHARD=1/3": "1/3",
        "WEIGHTS=1,2": ["1", "2"], "THRESHOLDS=0.5,0.6,0.7": [0.5, 0.6, 0.7], "MIN_ML=0.06": [0.06],
        "OVERLAP=0.25": 0.25, "SCHEME=brats2021": "brats2021",
    },
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_the_keys_of_every_mode_reach_the_verb(checkout, mode):
    values = parse(called(checkout, *MODES[mode], *([] if mode == "demo" else [f"MODE={mode}"])))
    for word, wanted in MODES[mode].items():
        name, value = wanted if isinstance(wanted, tuple) else (word.split("=")[0].lower(), wanted)
        assert values[name] == value, word


def test_other_modes_and_empty_values(checkout):
    assert called(checkout, "MODE=info") == ["-m", "synth", "info"]
    assert called(checkout, "CASES=") == ["-m", "synth", "demo"]
    tests = called(checkout, "MODE=test", "WORKERS=3")
    assert tests[:3] + tests[-4:] == ["-m", "pytest", "--numprocesses", "-m", "not slow",
                                      "--numprocesses", "3"]  # fmt: skip
    assert "not slow" not in called(checkout, "MODE=test_all")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["MODE=inpiant"], "unknown verb 'inpiant' → did you mean inpaint?"),
        (["MODE="], "unknown verb ''"),
        (['MODE=x" { print'], "unknown verb"),
        (["MODE=c_train", "DATADIR=x"], "unknown argument --datadir → did you mean --data?"),
        (["SEDE=1"], "unknown argument --sede → did you mean --seed?"),
        (["MODE=check"], "required: DATA_DIR"),
        (["FROM_SCRATCH=yes"], "unknown argument yes"),
        (["SAMPLING_STEPS=5", "MODE=check", "DATA_DIR=x"], "unknown argument --steps"),
    ],
)
def test_synth_answers_a_wrong_word(checkout, words, answer, capsys):
    from synth.cli import main

    assert main(called(checkout, *words)[2:]) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize("word", ["test", "mode=test", "--quick"])
def test_what_is_not_a_key_is_refused_before_the_set_up(checkout, word):
    code, out, error = run(checkout, word)
    assert (code, out) == (2, "")
    assert error == f"run.sh: '{word}' is not KEY=VALUE; MODE=help lists the modes\n"


LINES = {
    (page, found)
    for page in PAGES
    for found in re.findall(r"bash run\.sh(?: \w+=[^\s`)]+)*", (ROOT / page).read_text("utf-8"))
}


@pytest.mark.parametrize(("page", "line"), sorted(LINES))
def test_lines_of_the_pages_reach_a_verb(page: str, line: str, checkout: Path) -> None:
    words = shlex.split(line)[2:]
    if not {"MODE=help", "MODE=setup", "MODE=test", "MODE=test_all", "MODE=lint"} & {*words}:
        parse(called(checkout, *words))


def test_an_old_python_and_a_full_disk_are_told_before_anything_is_made(checkout):
    for words, env, answer in (
        (["PYTHON=./python"], {"FAKE_OLD": "1"}, "3.12 or 3.13, and ./python is none"),
        (["PYTHON=./nowhere"], {}, "and ./nowhere is none"),
        (["PYTHON=./python"], {"FAKE_KB": "20480"}, "20 MB are free"),
    ):
        code, _, error = run(checkout, "MODE=setup", *words, **env)
        assert code == 1
        assert answer in error
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
    code, _, error = run(checkout, "MODE=setup", "PYTHON=./python", FAKE_PIP=pip)
    assert code != 0
    assert answer in error
    leftover = checkout / ".venv" / "half-written"
    leftover.touch()
    code, _, error = run(checkout, "MODE=setup", "PYTHON=./python")
    assert code == 0, error
    assert not leftover.exists()


def test_setup_runs_once_and_again_when_its_input_changes(checkout):
    log = checkout / "pip.log"

    def installs(*words, **env):
        log.write_text("")
        run(checkout, "PYTHON=./python", *words, **env)
        lines = log.read_text().splitlines()
        assert all("--index-url" not in line or "--no-deps" in line for line in lines)
        return [line for line in lines if "-e" in line.split() or env]

    (first,) = installs("MODE=setup")
    assert "-c constraints.txt" in first
    assert first.endswith("-e .")
    assert installs("MODE=setup") == installs("MODE=demo") == []
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert len(installs("MODE=demo", FAKE_PIP="exit 1")) == 1
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
    code, _, error = run(
        checkout, "MODE=setup", f"PYTHON={sys.executable}",
        "DEVICE=cuda",  # asks no other index
        FAKE_KB="99000000", PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="",
        PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="1",
    )  # fmt: skip
    assert code == 1
    assert error.endswith(
        "no network: the package index does not answer; run the same command when it does\n"
    )
    assert not (checkout / ".venv" / ".setup").exists()


def test_the_lock_holds_the_core_and_agrees_with_the_pins():
    lines = (ROOT / "core.lock").read_text().splitlines()
    locked = dict(re.fullmatch(r"(\S+)==(\S+) \\", line).groups() for line in lines if "==" in line)
    assert locked == {name: core_lock.pins()[name] for name in core_lock.core()}
    hashes = [line for line in lines if line.startswith("    --hash=sha256:")]
    assert len(hashes) > 4 * len(locked)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes)


def test_another_file_than_the_locked_one_is_refused(tmp_path):
    wheel = tmp_path / "einops-0.8.2-py3-none-any.whl"
    wheel.write_bytes(b"another")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--dry-run",
         "--ignore-installed", "--no-index", "--find-links", tmp_path, "-r", "einops.lock"],
        cwd=write_lock_of("einops", tmp_path), capture_output=True, text=True,
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
    )  # fmt: skip
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def write_lock_of(name: str, folder: Path) -> Path:
    text = (ROOT / "core.lock").read_text()
    (found,) = re.findall(rf"^{name}==(?:.*\\\n)+.*", text, re.MULTILINE)
    (folder / f"{name}.lock").write_text(found + "\n")
    return folder


@pytest.mark.parametrize(("code", "said"), [("1", "does not answer"), ("0", "[-m][pip_audit]")])
def test_lint_says_whether_packages_were_searched_for_holes(checkout, code, said):
    fake = FAKE_PYTHON.replace('"-m pip "*', f'*vulns*) exit {code} ;;\n  "-m pip "*')
    (checkout / "python").write_text(fake)
    found, out, error = run(checkout, "MODE=lint", "PYTHON=./python")
    assert found == 0, error
    assert "[ruff]" in out
    assert said in out + error
