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
from typing import TYPE_CHECKING, Any

from synth.base import stopping
from synth.base.config import did_you_mean
from synth.base.errors import SynthError, as_user_error, one_line
from synth.base.version import __version__

if TYPE_CHECKING:
    from synth.cli.parser import Parser


@dataclass(frozen=True)
class Verb:
    """Where a verb is: a function of its own name, or one for each kind."""

    module: str
    about: str
    kinds: tuple[str, ...] = ()
    """Sub-verbs, each a function of its own name."""
    settings: str = ""
    """Function of that module: words → dataclasses whose fields are options, too."""


VERBS = {
    "demo": Verb("synth.cli.study", "all steps on made-up patients, in minutes, to one page"),
    "study": Verb("synth.cli.study", "all steps on your patients, fold by fold"),
    "phantom": Verb("synth.cli.data", "write a cohort of made-up patients"),
    "check": Verb("synth.cli.data", "check a data folder: one line for each case"),
    "split": Verb("synth.cli.data", "divide patients into folds, or put a fold aside"),
    "export": Verb("synth.cli.data", "write a split as a data set of nnU-Net", kinds=("nnunet",)),
    "evaluate": Verb(
        "synth.cli.evaluate",
        "judge results: inpainting, masks, segmentation or synthesis",
        kinds=("inpainting", "masks", "segmentation", "synthesis"),
    ),
    "train": Verb(
        "synth.cli.train",
        "train a family of models; the same command continues",
        settings="settings",
    ),
    "masks": Verb("synth.cli.masks", "draw tumours and healthy masks, and place them in brains"),
    "inpaint": Verb("synth.cli.inpaint", "paint healthy tissue where a mask or a tumour is"),
    "bids": Verb("synth.cli.inpaint", "the same for a BIDS data set: a BIDS app"),
    "sample": Verb("synth.cli.sample", "draw t1n, t1c, t2w and t2f scans for label maps"),
    "segment": Verb("synth.cli.segment", "segment tumours in scans, with one network or several"),
    "compare": Verb(
        "synth.cli.compare", "measure whether synthetic data help", settings="settings"
    ),
    "soup": Verb("synth.cli.soup", "average the weights of several segmentation checkpoints"),
    "report": Verb("synth.cli.study", "write the page about a study"),
    "view": Verb("synth.cli.view", "show a case with its labels, or save it as PNG or GIF"),
    "sweep": Verb("synth.cli.sweep", "train with many settings: a grid, or proposed by Optuna"),
    "launch": Verb("synth.cli.sweep", "run a verb in parts, in processes or on SLURM"),
    "convert": Verb("synth.cli.models", "convert weights of a public project to a checkpoint"),
    "info": Verb("synth.cli.models", "describe this installation, or a checkpoint"),
}
HELP = ("-h", "--help", "--help-all")
ALIASES = {"scans": "synthesis"}
"""Other words for kinds."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A command line that has been looked up: the function, its parser, the words left to parse."""

    function: Callable[..., Any]
    parser: Parser
    words: tuple[str, ...]
    command: tuple[str, ...] = ()
    """The command line after --, of verbs that run others."""

    def parse(self) -> dict[str, Any]:
        """Return the values of all arguments."""
        values = self.parser.parse(self.words)
        return values | ({"command": self.command} if self.command else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code: 0 done, 2 a mistake that the user can correct."""
    words = list(sys.argv[1:] if argv is None else argv)
    if logging.getLogger("synth").handlers:  # a verb that runs another
        return _run_to_code(words)
    stopping.forget()
    with stopping.handled(stopping.interrupt):
        code = _run_to_code(words)
        return stopping.exit_code() if code in stopping.STOPPED else code


def _run_to_code(words: Sequence[str]) -> int:
    try:
        if words[:1] == ["help"] or (len(words) > 1 and words[0] in HELP):
            words = [*words[1:], "--help"]  # synth help inpaint, synth -h inpaint
        if not words or words[0] in HELP:
            print(usage())
            return 0
        if words[0] == "--version":
            print(__version__)
            return 0
        return run(words[0], words[1:])
    except KeyboardInterrupt:
        print(stopping.SENTENCE, file=sys.stderr)
        return stopping.STOPPED[0]
    except BrokenPipeError:  # `synth check … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SynthError, OSError, MemoryError) as error:
        logging.getLogger("synth").debug("", exc_info=True)
        found = as_user_error(error)
        hint = f" → {found.hint}" if found.hint else ""
        print(one_line(f"synth: {found.message}{hint}"), file=sys.stderr)
        return 2
    except Exception:
        if not stopping.was_asked():
            raise
        print(stopping.SENTENCE, file=sys.stderr)  # a library made another error of Ctrl-C
        return stopping.STOPPED[0]


def usage() -> str:
    """Return the overview that `synth --help` prints."""
    lines = [f"  {verb:<10} {row.about}" for verb, row in VERBS.items()]
    head = "usage: synth VERB ...   (synth VERB --help explains its options; synth --version)"
    return "\n".join([head, "", *lines])


def look_up(words: Sequence[str]) -> Call:
    """Find the verb of a command line and build its parser."""
    from synth.cli.parser import build

    verb, *rest = words
    if verb not in VERBS:
        raise SynthError(f"unknown verb '{verb}'", hint=did_you_mean(verb, VERBS))
    row, name, prog = VERBS[verb], verb, f"synth {verb}"
    if row.kinds:
        name, *rest = _kind(verb, rest)
        prog += f" {name}"
    module = importlib.import_module(row.module)
    function = getattr(module, name)
    command: list[str] = []
    if "command" in inspect.signature(function).parameters and "--" in rest:
        cut = rest.index("--")
        rest, command = rest[:cut], rest[cut + 1 :]
    settings = getattr(module, row.settings)(rest) if row.settings else ()
    parser = build(function, prog=prog, settings=settings, everything="--help-all" in rest)
    return Call(function=function, parser=parser, words=tuple(rest), command=tuple(command))


def run(verb: str, words: Sequence[str]) -> int:
    """Parse the words of a verb and call it."""
    from synth.cli.parser import bundle

    if verb in VERBS and VERBS[verb].kinds and words and words[0] in HELP:
        print(_usage_of_kinds(verb))
        return 0
    call = look_up([verb, *words])
    values = call.parse()
    if verb == "info":
        values["verbs"] = {name: row.about for name, row in VERBS.items()}
    from synth.training import log

    outermost = not logging.getLogger("synth").handlers  # a verb may run others
    log.configure(verbose=bool(values.pop("verbose")))
    try:
        return int(call.function(**bundle(call.function, values)) or 0)
    finally:
        if outermost:
            log.silence()


def _kind(verb: str, words: Sequence[str]) -> list[str]:
    """Return the words with the name of the sub-verb first."""
    kinds = VERBS[verb].kinds
    if not words or words[0].startswith("-"):
        raise SynthError(f"synth {verb} needs a kind", hint=f"one of: {', '.join(kinds)}")
    kind = ALIASES.get(words[0], words[0])
    if kind not in kinds:
        raise SynthError(f"unknown kind '{words[0]}'", hint=did_you_mean(words[0], kinds))
    return [kind, *words[1:]]


def _usage_of_kinds(verb: str) -> str:
    row = VERBS[verb]
    module = importlib.import_module(row.module)
    lines = [f"  {kind:<14} {(getattr(module, kind).__doc__ or '').splitlines()[0]}"
             for kind in row.kinds]  # fmt: skip
    head = f"usage: synth {verb} KIND ...   (synth {verb} KIND --help explains its options)"
    return "\n".join([head, "", f"{row.about}", "", *lines])
