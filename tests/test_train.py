"""The loop: bit-exact resume, processes equal accumulation, kills, signals, guards."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from synth.base.errors import SynthError
from synth.base.seeding import mix
from synth.checkpoints import checkpoint
from synth.training.config import TrainConfig
from synth.training.data_order import micro_batches
from synth.training.ema import build_ema, run_on_ema
from synth.training.log import read_metrics
from synth.training.loop import train
from synth.training.step import learning_rate_scale
from tests import toy_recipe
from tests.toy_recipe import (
    Config,
    GanRecipe,
    Items,
    OneRecipe,
    assert_same,
    environment,
    register,
    run,
    state,
)

DESCRIBE = {"family": "toy", "preset": "tiny", "config": Config()}


@pytest.fixture(autouse=True)
def toy():
    register()


def teach(recipe: OneRecipe, out: Path, items: Items | None = None, **settings) -> dict:
    """Train a recipe on the processor."""
    describe = DESCRIBE | {"config": settings.pop("config", Config())}
    validation = settings.pop("validation", None)
    items = Items() if items is None else items
    config = TrainConfig(**settings)
    return train(recipe, items, out, config, describe=describe, validation=validation, device="cpu")


def script(out: Path, **settings) -> list[str]:
    """Return the command of a toy training."""
    return [toy_recipe.__file__, str(out), json.dumps(settings)]


def call(command: list[str], **more: str) -> str:
    answer = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=240,
        env=environment(**more), check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer.stdout


class Killed(BaseException):
    pass


class Mortal(Items):
    """Dies in step 13, after the save at 10: steps 11 to 13 are logged, lost and taken again."""

    count = 0

    def item(self, index, seed):
        self.count += 1
        if self.count > 13 * 10:
            raise Killed
        return super().item(index, seed)


@pytest.mark.parametrize(("kind", "workers"), [("one", 0), ("one", 1), ("gan", 0)])
def test_twenty_steps_equal_ten_and_ten(tmp_path, kind, workers):
    common = {"kind": kind, "batch_size": 5, "accumulate": 2, "decay": "cosine", "warmup_steps": 3}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, steps=20, **common)
    with pytest.raises(Killed):
        run(parts, steps=20, items=Mortal(), **common)
    assert state(parts)["step"] == 10
    summary = run(parts, steps=20, workers=workers, **common)
    assert (summary["step"], summary["stopped"]) == (20, False)
    assert_same(state(whole), state(parts))
    one, other = ((out / "last" / "model.safetensors").read_bytes() for out in (whole, parts))
    assert one == other
    records = read_metrics(parts / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 21))
    assert records == read_metrics(whole / "metrics.jsonl")


def test_training_overfits(tmp_path):
    recipe, items = OneRecipe(lr=2e-2), Items(8, noise=0)
    recipe.model[2].p = 0.0
    one = [{k: torch.as_tensor(v)[None] for k, v in items.item(i, 0).items()} for i in range(8)]

    def loss(model: nn.Module) -> float:
        recipe.model = model.eval()
        return sum(recipe.validate(b)["loss"] for b in one) / 8

    untrained = loss(recipe.model)
    summary = teach(recipe, tmp_path / "run", items, validation=items, steps=400, batch_size=8,
                    ema_decay=0.9, validate_every=0, save_every=0)  # fmt: skip
    assert summary["metrics"]["loss"] < untrained / 5
    # What was saved is what was validated: the averaged weights.
    saved = loss(checkpoint.load(tmp_path / "run").model)
    assert saved == pytest.approx(summary["best"], rel=1e-5)  # batched differently


def test_accumulation_equals_one_large_batch(tmp_path):
    # Without randomness in the loss, mean over micro-batches = mean over the batch.
    class Plain(OneRecipe):
        def losses(self, batch):
            yield "model", nn.functional.mse_loss(self.model(batch["x"]), batch["y"])

    states = []
    for batch, accumulate in ((8, 1), (2, 4)):
        recipe, out = Plain(), tmp_path / f"{accumulate}"
        recipe.model[2].p = 0.0
        teach(recipe, out, steps=5, batch_size=batch, accumulate=accumulate, clip_norm=0.05)
        states.append(state(out)["model"])
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["one", "gan"])
def test_two_processes_equal_accumulating_twice(tmp_path, kind):
    settings = {"steps": 6, "batch_size": 4, "save_every": 3}
    launch = [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0"),
    ]
    command = [*launch, *script(tmp_path / "two", kind=kind, **settings)]
    call(command, ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
    run(tmp_path / "one", kind=kind, accumulate=2, **settings)
    two, one = state(tmp_path / "two"), state(tmp_path / "one")
    if kind == "gan":  # batch norm sees one micro-batch in each process, both when accumulating
        for s in (one, two):
            for part in ("model", "ema"):
                s[part] = {k: v for k, v in s[part].items() if "generator.2." not in k}
            del s["best"], s["metrics"]
    assert_same(one, two, tolerance=1e-6)


@pytest.mark.parametrize(
    ("kills", "steps", "least"), [(4, 60, 1), pytest.param(30, 900, 5, marks=pytest.mark.slow)]
)
def test_four_kills_leave_readable_checkpoints(tmp_path, kills, steps, least):
    settings = {"steps": steps, "batch_size": 2, "save_every": 1, "validate_every": 3}
    lines = call(script(tmp_path / "run", kills=kills, **settings)).splitlines()
    assert sum(json.loads(line)["killed"] for line in lines[:-1]) >= least
    run(tmp_path / "whole", **settings)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "run"))
    logged = [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert logged == list(range(1, steps + 1))
    assert not list((tmp_path / "run").glob(".*.part"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_zero(tmp_path, number):
    settings = {"steps": 100_000, "batch_size": 2, "save_every": 0, "validate_every": 0}
    command = script(tmp_path / "run", seconds=0.01, **settings, workers=1)
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(), start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size > 200):
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does: workers too
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr[-3000:]
    assert "run the same command to go on" in stderr
    summary = json.loads(stdout)
    assert summary["stopped"]
    assert state(tmp_path / "run")["step"] == summary["step"] > 0


def test_time_limit_stops_and_a_finished_run_is_left_alone(tmp_path):
    first = run(tmp_path / "run", steps=8, batch_size=2, max_seconds=1e-6)
    assert (first["stopped"], first["step"]) == (True, 1)
    done = run(tmp_path / "run", steps=8, batch_size=2)
    run(tmp_path / "whole", steps=8, batch_size=2)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "run"))
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    again = run(tmp_path / "run", steps=8, batch_size=2)
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert {**done, "seconds": 0} == {**again, "seconds": 0}


def test_another_network_or_order_is_refused(tmp_path):
    out = tmp_path / "run"
    run(out, steps=2)
    wide = Config(width=32)
    for words, wrong in {
        r"begun with width = 16.*says 32": lambda: teach(OneRecipe(wide), out, config=wide),
        "begun with seed = 0": lambda: run(out, steps=4, seed=1),
        "begun with items = 24": lambda: teach(OneRecipe(), out, Items(5), steps=4),
        "processes = 1": lambda: run(out, steps=4, accumulate=2),
    }.items():
        with pytest.raises(SynthError, match=words):
            wrong()


class Poisoned(OneRecipe):
    """NaN from step `start` on, for `length` steps."""

    def __init__(self, start: int, length: int) -> None:
        super().__init__()
        self.bad, self.calls = range(start, start + length), 0

    def losses(self, batch):
        factor = math.nan if self.calls in self.bad else 1.0
        self.calls += 1
        for name, loss in super().losses(batch):
            yield name, loss * factor


def test_bad_losses_are_skipped_and_ten_of_them_stop(tmp_path, caplog):
    summary = teach(Poisoned(3, 2), tmp_path / "run", steps=6, log_every=1)
    assert summary["skipped"] == {"model": 2}
    saved = state(tmp_path / "run")
    assert all(bool(v.isfinite().all()) for v in saved["model"].values())
    assert all(s["step"] == 4 for s in saved["optimizers"]["model"]["state"].values())
    assert "step 3, model: loss nan" in caplog.text
    losses = [r["train/model"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert [i for i, v in enumerate(losses) if v is None] == [3, 4]
    with pytest.raises(SynthError, match=r"step 14, model: 10 .*last good checkpoint is .*last"):
        teach(Poisoned(5, 99), tmp_path / "stopped", steps=50, save_every=2)
    good = checkpoint.load(tmp_path / "stopped").model
    assert all(bool(p.isfinite().all()) for p in good.parameters())


def test_recipes_that_break_the_contract(tmp_path):
    class Silent(OneRecipe):
        def losses(self, batch):
            yield from ()

    class Unknown(OneRecipe):
        def losses(self, batch):
            yield "critic", self.model(batch["x"]).mean()

    for words, wrong in {
        "yielded nothing": lambda: teach(Silent(), tmp_path / "a", steps=2),
        r"'critic' .its optimizers are: model": lambda: teach(Unknown(), tmp_path / "b", steps=2),
        "0 items": lambda: teach(OneRecipe(), tmp_path / "c", Items(0), steps=2),
        r"no metric 'dice'.*keep one of: loss": lambda: run(tmp_path / "d", steps=2, keep="dice"),
    }.items():
        with pytest.raises(SynthError, match=words):
            wrong()


def test_best_is_kept_by_the_metric(tmp_path):
    values = iter([3.0, 1.0, math.nan, 2.0])

    class Told(OneRecipe):
        def validate(self, batch):
            return {"score": next(values)}

    summary = teach(Told(), tmp_path / "run", steps=8, validate_every=2, keep="score",
                    keep_mode="min", validation=Items(1))  # fmt: skip
    assert summary["best"] == 1.0
    best = checkpoint.load(tmp_path / "run").metadata
    assert (best["step"], best["metrics"]) == (4, {"score": 1.0})
    assert checkpoint.load(tmp_path / "run" / "last").metadata["step"] == 8


def test_bf16_autocasts_the_forward_pass_only(tmp_path):
    seen = []

    class Watching(OneRecipe):
        def losses(self, batch):
            seen.append(self.model[0](batch["x"]).dtype)
            yield from super().losses(batch)

    for precision in ("bf16", "no"):
        teach(Watching(), tmp_path / precision, steps=1, precision=precision)
        assert all(v.dtype == torch.float32 for v in state(tmp_path / precision)["model"].values())
    assert seen == [torch.bfloat16, torch.float32]


def test_the_recipes_writer_decides_what_is_published(tmp_path):
    class Publishing(GanRecipe):
        def writer(self, describe):
            def write(folder, model, facts):
                inner = nn.Sequential(*model["critic"][:2], nn.Dropout(0.1), model["critic"][3])
                known = {"family": "toy", "preset": "p", "config": Config()}
                checkpoint.write(folder, model=inner, **known, **facts)

            return write

    teach(Publishing(), tmp_path / "run", config=Config(kind="gan"), steps=2, batch_size=2)
    published = checkpoint.load(tmp_path / "run").model
    assert torch.equal(published[3].weight, state(tmp_path / "run")["ema"]["critic.3.weight"])


def test_data_order_is_each_epoch_once_and_shared_by_two_ranks():
    config = TrainConfig(steps=12, batch_size=3, accumulate=2, seed=5)
    batches = list(micro_batches(config, 8, start=0, rank=0, world=1))
    order = [pair for b in batches for pair in b]
    assert len(order) == len({seed for _, seed in order}) == 72
    epochs = [[i for i, _ in order[k : k + 8]] for k in range(0, 72, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert list(micro_batches(config, 8, start=7, rank=0, world=1)) == batches[7 * 2 :]
    single = TrainConfig(steps=12, batch_size=3, seed=5)
    ranks = [micro_batches(single, 8, start=0, rank=r, world=2) for r in (0, 1)]
    assert [b for pair in zip(*ranks, strict=True) for b in pair] == batches


def test_learning_rate_schedule_at_its_landmarks():
    config = TrainConfig(steps=110, warmup_steps=10, decay="cosine")
    at = [learning_rate_scale(step, config) for step in (0, 4, 9, 10, 60, 109, 110)]
    assert at == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0.5 * (1 + math.cos(math.pi * 0.99)), 0])
    assert learning_rate_scale(10**6, TrainConfig(steps=5)) == 1.0


def test_ema_follows_the_recurrence_and_leaves_frozen_weights_alone():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    frozen = model.bias.clone()
    ema = build_ema(model, 0.5)
    expected = None
    for n in range(8):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(n)))
        ema.update_parameters(model)
        d = min(0.5, (1 + n) / (10 + n))
        now = model.weight.detach().double()
        expected = now if expected is None else d * expected + (1 - d) * now
    # eight float32 roundings of numbers near 1
    torch.testing.assert_close(ema.module.weight.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(ema.module.bias, frozen)
    before, mine = ema.module.weight.clone(), model.weight.clone()
    with run_on_ema(model, ema.module):
        assert torch.equal(model.weight, before)
        assert not model.training
    assert torch.equal(model.weight, mine)
    assert torch.equal(ema.module.weight, before)
    assert model.training


def test_mix_is_stable_and_unambiguous():
    # The values are a promise: every trained model's data order hangs on them.
    assert mix(0, "item", 3) == 3385892537307393073
    seeds = [mix(1, 23), mix(12, 3), mix(123), mix("1", 23), mix("1", "23"), mix(), mix("", 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_settings_are_checked():
    for wrong in ({"steps": 0}, {"ema_decay": 1.0}, {"clip_norm": -1.0}, {"batch_size": 0}):
        with pytest.raises(SynthError):
            TrainConfig(**wrong)
