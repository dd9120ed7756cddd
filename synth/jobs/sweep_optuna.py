"""A sweep whose settings Optuna proposes, through a shared journal file.

The sweep has numbered slots, claimed as jobs are (`synth.jobs.locks`): exactly so many trials come
about, however many workers there are and whichever of them die. What was proposed for a slot is
noted beside it, so that whoever inherits the slot goes on with the same trial.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synth.base.errors import SynthError
from synth.base.files import read_json, write_json
from synth.base.seeding import mix
from synth.jobs.launch import Options, Where, launch, status
from synth.jobs.locks import Claim, attempts
from synth.jobs.sweep import SETTINGS, Resolve, Sweep, prepare
from synth.jobs.sweep_space import Choices, Range, Space
from synth.jobs.workers import MEND, work

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)


def try_optuna(
    sweep: Sweep,
    space: Space,
    resolve: Resolve,
    *,
    trials: int,
    seed: int,
    options: Options,
) -> None:
    """Fill the open ones of `trials` slots in this process; others may do the same meanwhile."""
    _require_same_space(sweep, space)
    study = _study(sweep)
    names = [f"trial-{number:03d}" for number in range(trials)]
    slots = sweep.out / "trials"

    def fill(name: str, _: Claim) -> int:
        number, settings = _proposal(study, space, slots / name, seed)
        try:
            job, words = prepare(sweep, settings, resolve)
        except SynthError as error:
            log.error("%s: %s → %s", name, error.message, error.hint)
            return MEND
        (told,) = launch({job: words}, folder=sweep.jobs, options=options)
        if told.state != "done":
            return MEND  # stays open in the journal, too: the next sweep tries it again
        _tell(study, number, sweep.score(job))
        return 0

    before = {name: len(attempts(slots / name)) for name in names}
    work(slots, names, fill, before=before, retries=options.retries)
    if all(status(slots / name).state == "done" for name in names):
        _tidy(study, slots)


def hire(
    sweep: Sweep, words: Sequence[str], *, trials: int, where: Where, options: Options
) -> None:
    """Launch workers that each run `words`, the command of this sweep done here."""
    workers = options.at_once or (max(1, trials // 4) if where == "slurm" else 1)
    folder = sweep.out / "workers" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    commands = {f"worker-{number}": words for number in range(min(workers, trials))}
    launch(commands, folder=folder, where=where, options=replace(options, at_once=workers))


def _require_same_space(sweep: Sweep, space: Space) -> None:
    """Refuse another space on the same journal: the samplers cannot learn across them."""
    plain = {
        name: dataclasses.asdict(options) if isinstance(options, Range) else list(options)
        for name, options in space.items()
    }
    path = sweep.out / "space.json"
    if not path.exists():
        write_json(path, plain)
    elif (before := read_json(path)) != plain:
        raise SynthError(
            f"{sweep.out} searches {before}", hint="give the same --optuna, or another folder"
        )


def _study(sweep: Sweep) -> optuna.Study:
    """Open the journal."""
    try:
        import optuna
    except ImportError as error:
        raise SynthError(
            "--optuna needs optuna", hint="bash run.sh MODE=setup EXTRAS=cluster, or use --grid"
        ) from error
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(sweep.out / "journal.log"))),
        direction="maximize" if sweep.larger_is_better else "minimize",
        load_if_exists=True,
    )


def _proposal(
    study: optuna.Study, space: Space, slot: Path, seed: int
) -> tuple[int, dict[str, Any]]:
    """Return the number and settings of a slot's trial: those of a worker that died, or new."""
    path = slot / SETTINGS
    if not path.exists():
        from optuna.samplers import TPESampler

        # A seed for each slot: workers with one seed would all propose the same.
        study.sampler = TPESampler(seed=mix(seed, slot.name) % 2**32)
        trial = study.ask()
        settings = {name: _suggest(trial, name, space[name]) for name in space}
        write_json(path, {"number": trial.number, "settings": settings})
    record = read_json(path)
    return record["number"], record["settings"]


def _suggest(trial: optuna.Trial, name: str, options: Choices | Range) -> Any:
    if not isinstance(options, Range):
        texts = [json.dumps(option) for option in options]  # Optuna's choices are plain words
        return json.loads(trial.suggest_categorical(name, texts))
    if options.whole:
        return trial.suggest_int(name, int(options.low), int(options.high), log=options.log)
    return trial.suggest_float(name, options.low, options.high, log=options.log)


def _tell(study: optuna.Study, number: int, score: float | None) -> None:
    from optuna.trial import TrialState

    if study.get_trials(deepcopy=False)[number].state.is_finished():
        return  # told by a worker that died before it closed the slot
    study.tell(number, score, state=TrialState.FAIL if score is None else None)


def _tidy(study: optuna.Study, slots: Path) -> None:
    """Close trials that were asked for by a worker which died before it noted them."""
    from optuna.trial import TrialState

    known = {read_json(path)["number"] for path in slots.glob(f"*/{SETTINGS}")}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number not in known:
            study.tell(trial.number, state=TrialState.FAIL)
