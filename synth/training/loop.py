"""The training loop of all families: a recipe yields losses, the loop does the rest.

20 steps are 10 steps, a kill and 10 more, bit for bit: the data order is a function of (seed,
step), every draw inside a loss is seeded by (seed, step, micro-batch, phase), and state.pt holds
the rest. N processes equal N-fold accumulation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import default_collate

from synth.base.errors import SynthError, first_line
from synth.base.files import only_process
from synth.base.seeding import mix
from synth.checkpoints import checkpoint
from synth.data.volume import Volume
from synth.training import processes, run_state
from synth.training.config import TrainConfig
from synth.training.data_order import Items, loader
from synth.training.ema import build_ema, run_on_ema, switch_to_average
from synth.training.log import Progress, RunLog
from synth.training.recipe import Recipe, Writer
from synth.training.step import DivergedError, Stepper
from synth.training.stopping import Stop

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    data: Items,
    out: str | Path,
    config: TrainConfig,
    *,
    describe: Mapping[str, Any],
    validation: Items | None = None,
    device: str = "auto",
    label: str = "",
) -> dict[str, Any]:
    """Train, or go on where the run in `out` stopped; return a summary.

    `describe` holds `family`, `preset`, `config` (the family's Config) and, if known, `data_hash`.
    `label` stands before the lines of progress; default the name of `out`.
    """
    if len(data) == 0:
        raise SynthError("there is nothing to train on: 0 items", hint="check the data folder")
    if config.follows_validation and not validation:
        raise SynthError("a plateau and patience need held-out cases", hint="hold some out")
    own_group = not torch.distributed.is_initialized()
    with Stop(config.max_seconds) as stop:
        run = _begin(recipe, len(data), Path(out), config, describe, device)
        alone = only_process(run.out) if run.accelerator.is_main_process else nullcontext()
        with alone:
            _resume(run)
            if run.finished:
                log.info("%s is finished: %d steps", run.out, run.stepper.step)
            else:
                log.info("%s: from step %d to %d", run.out, run.stepper.step, config.steps)
                _loop(run, data, validation, stop, label or run.out.name)
    if own_group and torch.distributed.is_initialized():
        run.accelerator.wait_for_everyone()  # who leaves while others still write may be aborted
        torch.distributed.destroy_process_group()
    return {
        "step": run.stepper.step,
        "stopped": not run.finished,
        "best": run.best,
        "metrics": run.metrics,
        "skipped": run.stepper.skipped,
        "seconds": stop.seconds,
        "last": str(run.out / "last"),
    }


@dataclass(kw_only=True)
class _Run:
    """All that changes during a training, and where it is kept."""

    recipe: Recipe
    out: Path
    config: TrainConfig
    accelerator: Accelerator
    stepper: Stepper
    ema: AveragedModel
    identity: dict[str, Any]
    write: Writer
    best: float | None = None
    metrics: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or none of the last validations was a new best."""
        return self.stepper.step >= self.config.steps or self.stepper.patience.exhausted(
            self.config
        )

    def facts(self) -> dict[str, Any]:
        finite = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        return {"seed": self.config.seed, "step": self.stepper.step, "metrics": finite}

    def batch(self, content: dict[str, Any]) -> dict[str, Any]:
        return send_to_device(content, self.accelerator.device, non_blocking=True)

    def one(self, items: Items, index: int) -> dict[str, Any]:
        """Return one item as a batch; the same item and the same draws in every validation."""
        seed = mix(self.config.seed, "validation", index)
        torch.manual_seed(seed)
        return self.batch(default_collate([items.item(index, seed)]))


def _begin(
    recipe: Recipe,
    items: int,
    out: Path,
    config: TrainConfig,
    describe: Mapping[str, Any],
    device: str,
) -> _Run:
    """Build the run on its device."""
    accelerator = processes.accelerator(config.precision, device)
    recipe.model.to(accelerator.device).train()
    processes.copy_from_first(recipe.model.state_dict().values(), accelerator)
    stepper = Stepper(recipe, config, accelerator)
    config = stepper.config  # without what its optimizers do by themselves
    return _Run(
        recipe=recipe,
        out=out,
        config=config,
        accelerator=accelerator,
        stepper=stepper,
        ema=build_ema(recipe.model, config.ema_decay),
        identity=run_state.identity(describe, config, items=items, world=accelerator.num_processes),
        write=recipe.writer(describe),
        metrics={},
    )


def _resume(run: _Run) -> None:
    """Go on where the folder left the run, if it holds one."""
    state = run_state.read(run.out / "last", run.identity, run.config)
    if state is None:
        return
    try:
        run_state.unpack(state, run.stepper, run.ema)
        run.best, run.metrics = state["best"], state["metrics"]
    except checkpoint.TORN as error:
        raise SynthError(
            f"{run.out / 'last' / checkpoint.STATE}: does not fit this run: {first_line(error)}",
            hint="the file is damaged; start in another output folder",
        ) from error


def _loop(run: _Run, data: Items, validation: Items | None, stop: Stop, label: str) -> None:
    c, stepper, accelerator = run.config, run.stepper, run.accelerator
    main, world = accelerator.is_main_process, accelerator.num_processes
    batches = iter(
        loader(
            data, c, start=stepper.step, rank=accelerator.process_index, world=world,
            pin=accelerator.device.type == "cuda",
        )
    )  # fmt: skip
    with (
        RunLog(run.out, resumed_step=stepper.step) if main else nullcontext() as board,
        Progress(c.steps, label=label, start=stepper.step, shown=main) as progress,
    ):
        while not run.finished:
            losses = _step(run, [run.batch(next(batches)) for _ in range(c.accumulate)])
            step, last = stepper.step, stepper.step == c.steps
            record: dict[str, float] = {}
            if validation and (last or _due(step, c.validate_every)):
                record = _validate(run, validation)
            if board and (last or record or _due(step, c.log_every)):
                board.scalars(step, {f"train/{k}": v for k, v in losses.items()} | record)
            if board and _due(step, c.preview_every):
                board.images(step, _preview(run, validation or data))
            progress.advance(**losses)
            stopping = processes.any_of(stop.asked(), accelerator)
            if run.finished or stopping or _due(step, c.save_every):
                _save(run)
            if run.finished and not last:
                n = stepper.patience.without_best
                log.info("step %d: no better %s in %d validations: the end", step, c.keep, n)
            elif stopping and not last:
                reason = stop.reason or "another process was asked to stop"
                log.info("%s: step %d is saved; run the same command to go on", reason, step)
                break


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _step(run: _Run, batches: list[dict[str, Any]]) -> dict[str, float]:
    try:
        losses = run.stepper.take(batches)
    except DivergedError as error:
        last = run.out / "last"
        good = f"the last good checkpoint is {last}" if last.exists() else "nothing was saved yet"
        raise SynthError(error.message, hint=f"{good}; {error.hint}") from error
    with switch_to_average(run.stepper.optimizers.values()):
        run.ema.update_parameters(run.recipe.model)
    return losses


def _validate(run: _Run, items: Items) -> dict[str, float]:
    """Return the mean of each metric over the items, and keep the best weights so far."""
    records: list[tuple[int, dict[str, float]]] = []
    with run_on_ema(run.recipe.model, run.ema.module), run.accelerator.autocast():
        # One item a batch, as whole volumes differ in shape; each process takes its share.
        for i in range(run.accelerator.process_index, len(items), run.accelerator.num_processes):
            found = run.recipe.validate(run.one(items, i))
            records.append((i, {name: float(value) for name, value in found.items()}))
    records = sorted(processes.gather(records, run.accelerator), key=lambda record: record[0])
    values: dict[str, list[float]] = {}
    for _, found in records:
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    run.metrics = {name: sum(v) / len(v) for name, v in values.items()}
    _keep_best(run)
    return {f"validation/{name}": value for name, value in run.metrics.items()}


def _keep_best(run: _Run) -> None:
    keep, sign = run.config.keep, 1 if run.config.keep_mode == "max" else -1
    if not keep:
        return
    if keep not in run.metrics:
        raise SynthError(
            f"validation gives no metric '{keep}' to keep the best by",
            hint=f"keep one of: {', '.join(run.metrics)}",
        )
    value = run.metrics[keep]
    better = math.isfinite(value) and (run.best is None or sign * value > sign * run.best)
    run.stepper.patience.note(better, run.config)
    if better:
        run.best = value
        if run.accelerator.is_main_process:
            with checkpoint.staged(run.out / "best") as folder:
                run.write(folder, run.ema.module, run.facts())


def _preview(run: _Run, items: Items) -> dict[str, Volume]:
    with run_on_ema(run.recipe.model, run.ema.module), run.accelerator.autocast():
        return run.recipe.preview(run.one(items, 0))


def _save(run: _Run) -> None:
    """Write last/: the averaged weights, and the state to go on from."""
    if run.accelerator.is_main_process:
        state = run_state.pack(run.stepper, run.ema, run.identity)
        with checkpoint.staged(run.out / "last") as folder:
            run.write(folder, run.ema.module, run.facts())
            run_state.write(folder, state | {"best": run.best, "metrics": run.metrics})
    run.accelerator.wait_for_everyone()
