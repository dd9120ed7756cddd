"""A sweep whose settings Optuna proposes, through a journal file that several workers share.

A trial is a trial of the journal. A worker locks a file of its number while it works on it: a trial
that is begun and not locked is one whose worker died, and the next worker goes on with it.
"""

from __future__ import annotations

import contextlib
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
from synth.base.files import lock
from synth.base.seeding import mix
from synth.jobs.job import POLL_SECONDS, JobOptions
from synth.jobs.launch import Where, launch
from synth.jobs.sweep import Resolve, Sweep, create_trial
from synth.jobs.sweep_space import Choices, Range, Space

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)


def try_optuna(
    sweep: Sweep, space: Space, resolve: Resolve, *, trials: int, seed: int, options: JobOptions
) -> None:
    """Run trials in this process until so many are finished; others may do the same meanwhile."""
    study = _open_study(sweep, space)
    options = replace(options, began=options.began or time.time())
    tried: set[int] = set()
    while True:
        with contextlib.ExitStack() as locks:
            trial = _take_trial(study, sweep.out / "trials", trials, seed, tried, locks)
            if trial is not None:
                tried.add(trial.number)
                _run_trial(study, trial, sweep, space, resolve, options)
                continue
        if not _unfinished(study, tried):
            return
        time.sleep(POLL_SECONDS)  # others are busy: they may die


def start_workers(
    sweep: Sweep, words: Sequence[str], *, trials: int, where: Where, options: JobOptions
) -> None:
    """Launch workers that each run `words`, the command of this sweep done here."""
    workers = options.at_once or (max(1, trials // 4) if where == "slurm" else 1)
    folder = sweep.out / "workers" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    commands = {f"worker-{number}": words for number in range(min(workers, trials))}
    launch(commands, folder=folder, where=where, options=replace(options, at_once=workers))


def _open_study(sweep: Sweep, space: Space) -> optuna.Study:
    """Open the journal; refuse another space, because the sampler cannot learn across them."""
    try:
        import optuna
    except ImportError as error:
        raise SynthError(
            "--optuna needs optuna", hint="bash run.sh MODE=setup EXTRAS=cluster, or use --grid"
        ) from error
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(sweep.out / "journal.log"))),
        direction="maximize" if sweep.larger_is_better else "minimize",
        load_if_exists=True,
    )
    plain = {
        name: dataclasses.asdict(options) if isinstance(options, Range) else list(options)
        for name, options in space.items()
    }
    before = study.user_attrs.get("space")
    if before is None:
        study.set_user_attr("space", plain)
    elif before != plain:
        raise SynthError(
            f"{sweep.out} searches {before}", hint="give the same --optuna, or another folder"
        )
    return study


def _unfinished(study: optuna.Study, tried: set[int]) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that have begun without a result, except those tried here."""
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if trial.number not in tried]


def _take_trial(
    study: optuna.Study, folder: Path, trials: int, seed: int, tried: set[int],
    locks: contextlib.ExitStack,
) -> optuna.Trial | None:  # fmt: skip
    """Lock an idle unfinished trial, or a new one; None if there is none."""
    import optuna

    def take(number: int) -> bool:
        # Each trial has a seed of its own: workers with one seed would all propose the same.
        own_seed = mix(seed, f"trial-{number:03d}") % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=own_seed)
        return locks.enter_context(lock(folder / f"{number:03d}.lock")) is not None

    with lock(folder / "lock", wait=True):
        for left in _unfinished(study, tried):
            if take(left.number):
                return optuna.Trial(study, left._trial_id)
        count = len(study.get_trials(deepcopy=False))
        return study.ask() if count < trials and take(count) else None


def _run_trial(
    study: optuna.Study, trial: optuna.Trial, sweep: Sweep, space: Space, resolve: Resolve,
    options: JobOptions,
) -> None:  # fmt: skip
    """Train with the settings of a trial, and tell the score; a failed trial stays unfinished."""
    from optuna.trial import TrialState

    settings = {name: _suggest(trial, name, space[name]) for name in space}
    try:
        name, words = create_trial(sweep, settings, resolve)
    except SynthError as error:
        log.error("trial-%03d: %s → %s", trial.number, error.message, error.hint)
        return
    (status,) = launch({name: words}, folder=sweep.jobs, options=options)
    if status.state == "done":
        score = sweep.read_score(name)
        study.tell(trial.number, score, state=TrialState.FAIL if score is None else None)


def _suggest(trial: optuna.Trial, name: str, options: Choices | Range) -> Any:
    if not isinstance(options, Range):
        texts = [json.dumps(option) for option in options]  # Optuna's choices are plain words
        return json.loads(trial.suggest_categorical(name, texts))
    if options.whole:
        return trial.suggest_int(name, int(options.low), int(options.high), log=options.log)
    return trial.suggest_float(name, options.low, options.high, log=options.log)
