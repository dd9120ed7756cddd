"""The command line. A verb parses, calls and prints; the work is done elsewhere.

Nothing here imports torch, so that `--help` answers at once; a verb imports what it needs when it
is called.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.base.version import __version__


@dataclass(frozen=True)
class Verb:
    """Where a verb is; the function has the verb's name."""

    module: str
    about: str
    settings: str = ""
    """Function of that module: words → dataclasses whose fields are flags, too."""


VERBS = {
    "demo": Verb("synth.cli.study", "the whole story on made-up patients, in minutes, to one page"),
    "study": Verb(
        "synth.cli.study", "the same story on your cohort: fold by fold, nothing leaking"
    ),
    "phantom": Verb("synth.cli.data", "write a demo cohort of brains with tumours"),
    "check": Verb(
        "synth.cli.data", "examine a data folder: one line a case, what is wrong and how to mend it"
    ),
    "split": Verb("synth.cli.data", "deal patients into folds, or put a fold aside"),
    "evaluate": Verb(
        "synth.cli.evaluate", "judge what was made: inpainting, masks, synthesis or segmentation"
    ),
    "train": Verb(
        "synth.cli.models", "train a family on a cohort; the same command resumes", "train_settings"
    ),
    "masks": Verb(
        "synth.cli.masks", "new tumours and healthy masks: drawn from noise, placed in brains"
    ),
    "inpaint": Verb("synth.cli.inpaint", "paint healthy tissue where a mask or a tumour is"),
    "sample": Verb(
        "synth.cli.sample", "draw t1n, t1c, t2w and t2f from label maps, as a site's scans look"
    ),
    "segment": Verb("synth.cli.segment", "find WT, TC and ET in scans, by one network or several"),
    "compare": Verb(
        "synth.cli.compare",
        "does synthetic data help? Arms, folds, seeds, and a plain answer",
        "compare_settings",
    ),
    "soup": Verb(
        "synth.cli.soup", "average the weights of several segmentation checkpoints, where it helps"
    ),
    "report": Verb(
        "synth.cli.report",
        "one self-contained page about a study: pictures, figures, verdict, cost",
    ),
    "view": Verb(
        "synth.cli.view", "scroll through a case with its labels, or save it as a PNG or GIF"
    ),
    "sweep": Verb(
        "synth.cli.sweep", "train one command with many settings: a grid, or what Optuna proposes"
    ),
    "launch": Verb(
        "synth.cli.sweep", "run a verb in shares, by processes of this machine or on SLURM"
    ),
    "convert": Verb(
        "synth.cli.models", "read the weights of a public project into a checkpoint folder"
    ),
    "info": Verb(
        "synth.cli.models", "show versions, devices, families, presets and verbs, or a checkpoint"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code: 0 done, 2 something the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(usage())
            return 0
        if words[0] == "--version":
            print(__version__)
            return 0
        return run(words[0], words[1:])
    except SynthError as error:
        hint = f" → {error.hint}" if error.hint else ""
        print(f"synth: {error.message}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("synth: stopped; the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `synth check … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def usage() -> str:
    """Return the overview that `synth --help` prints."""
    lines = [f"  {verb:<10} {row.about}" for verb, row in VERBS.items()]
    return "\n".join(
        ["usage: synth VERB ...   (synth VERB --help for its flags; synth --version)", "", *lines]
    )


def function(verb: str) -> Callable[..., Any]:
    """Return the Python function behind a verb."""
    if verb not in VERBS:
        raise SynthError(f"unknown verb '{verb}'", hint=did_you_mean(verb, VERBS))
    return getattr(importlib.import_module(VERBS[verb].module), verb)


def run(verb: str, words: list[str]) -> int:
    """Parse the words of a verb and call it."""
    from synth.cli.parser import build, bundled

    work = function(verb)
    settings = settings_of(verb, words)
    parser = build(work, prog=f"synth {verb}", settings=settings)
    parser.add_argument("-v", "--verbose", action="store_true", help="say more")
    words, command = (
        _apart(words) if "command" in inspect.signature(work).parameters else (words, [])
    )
    values = parser.parse(words) | ({"command": tuple(command)} if command else {})
    if verb == "info":
        values["verbs"] = {name: row.about for name, row in VERBS.items()}
    from synth.training import log

    outermost = not logging.getLogger("synth").handlers  # a verb may run others
    log.configure(1 if values.pop("verbose") else 0)
    try:
        return int(work(**bundled(work, values)) or 0)
    finally:
        if outermost:
            log.silence()


def settings_of(verb: str, words: list[str]) -> tuple[type, ...]:
    """Return the dataclasses whose fields are flags of the verb, too."""
    row = VERBS[verb]
    if not row.settings:
        return ()
    return getattr(importlib.import_module(row.module), row.settings)(words)


def _apart(words: list[str]) -> tuple[list[str], list[str]]:
    """Split at --, after which another verb's command line stands."""
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]
