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
from synth.training import processes
from synth.training.config import TrainConfig
from synth.training.data_order import MicroBatches, permutation, place
from synth.training.ema import averaged, exchanged
from synth.training.log import Progress, read_metrics
from synth.training.loop import train
from synth.training.step import learning_rate_scale
from tests.toy_recipe import Config, GanRecipe, Items, OneRecipe, register, run

SCRIPT = Path(__file__).parent / "toy_recipe.py"
DESCRIBE = {"family": "toy", "preset": "tiny", "config": Config()}


@pytest.fixture(autouse=True)
def one_thread():
    register()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"} | more


def script(out: Path, *words: str, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), str(out), "--settings", json.dumps(settings), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment(), check=False
    )


def state(out: Path) -> dict:
    return torch.load(out / "last" / "state.pt", weights_only=True)


def leaves(tree, name="") -> dict:
    """Flatten nested containers, so that two states can be compared entry by entry."""
    if isinstance(tree, dict):
        pairs = tree.items()
    elif isinstance(tree, list | tuple):
        pairs = enumerate(tree)
    else:
        return {name: tree}
    return {k: v for key, inner in pairs for k, v in leaves(inner, f"{name}/{key}").items()}


def assert_same(a: dict, b: dict, *, tolerance: float = 0.0) -> None:
    a, b = leaves(a), leaves(b)
    a.pop("/training"), b.pop("/training")
    assert a.keys() == b.keys()
    for key, value in a.items():
        if not isinstance(value, torch.Tensor):
            assert value == (pytest.approx(b[key], abs=tolerance) if tolerance else b[key]), key
        elif tolerance:
            torch.testing.assert_close(value, b[key], rtol=0, atol=tolerance)
        else:
            assert torch.equal(value, b[key]), key


def weights(out: Path) -> bytes:
    return (out / "last" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["one", "gan"])
@pytest.mark.parametrize("workers", [0, 1])
def test_twenty_steps_equal_ten_and_ten(tmp_path, kind, workers):
    common = {"kind": kind, "batch_size": 5, "accumulate": 2, "decay": "cosine", "warmup_steps": 3}
    run(tmp_path / "whole", steps=20, **common)

    class Killed(BaseException):
        pass

    # Dies in step 13, after the save at 10: steps 11 to 13 are logged, lost and taken again.
    def dies(self, index, seed):
        self.count = getattr(self, "count", 0) + 1
        if self.count > 13 * 10:
            raise Killed
        return Items.item(self, index, seed)

    mortal = type("Mortal", (Items,), {"item": dies})
    settings = {k: v for k, v in common.items() if k != "kind"}
    config = TrainConfig(steps=20, validate_every=5, save_every=5, log_every=1, **settings)
    describe = DESCRIBE | {"config": Config(kind=kind)}
    recipe = {"one": OneRecipe, "gan": GanRecipe}[kind]
    with pytest.raises(Killed):
        train(recipe(), mortal(), tmp_path / "parts", config, describe=describe,
              validation=Items(3), device="cpu")  # fmt: skip
    assert state(tmp_path / "parts")["step"] == 10
    summary = run(tmp_path / "parts", steps=20, workers=workers, **common)
    assert summary["step"] == 20
    assert not summary["stopped"]
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    whole, parts = (read_metrics(tmp_path / n / "metrics.jsonl") for n in ("whole", "parts"))
    assert [r["step"] for r in parts] == list(range(1, 21))
    assert whole == parts


def test_training_overfits(tmp_path):
    before = OneRecipe()
    recipe = OneRecipe(lr=2e-2)
    recipe.model[2].p = 0.0
    items = Items(8, noise=0)
    config = TrainConfig(steps=400, batch_size=8, ema_decay=0.9, validate_every=0, save_every=0)
    summary = train(recipe, items, tmp_path / "run", config, describe=DESCRIBE, validation=items)
    before.model.eval()
    one = [{k: torch.as_tensor(v)[None] for k, v in items.item(i, 0).items()} for i in range(8)]
    untrained = sum(before.validate(b)["loss"] for b in one) / 8
    assert summary["metrics"]["loss"] < untrained / 5
    # What was saved is what was validated: the averaged weights.
    recipe.model = checkpoint.load(tmp_path / "run").model
    saved = sum(recipe.validate(b)["loss"] for b in one) / 8
    assert saved == pytest.approx(summary["best"], rel=1e-5)  # batched differently


def test_accumulation_equals_one_large_batch(tmp_path):
    # Without randomness in the loss, mean over micro-batches = mean over the batch.
    class Plain(OneRecipe):
        def losses(self, batch):
            yield "model", nn.functional.mse_loss(self.model(batch["x"]), batch["y"])

    states = []
    for batch, accumulate in ((8, 1), (2, 4)):
        recipe = Plain()
        recipe.model[2].p = 0.0
        config = TrainConfig(steps=5, batch_size=batch, accumulate=accumulate, clip_norm=0.05)
        out = tmp_path / f"{accumulate}"
        train(recipe, Items(), out, config, describe=DESCRIBE)
        states.append(state(out)["model"])
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["one", "gan"])
def test_two_processes_equal_accumulating_twice(tmp_path, kind):
    settings = {"steps": 6, "batch_size": 4, "save_every": 3}
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", "0"),
        *(str(SCRIPT), str(tmp_path / "two"), "--kind", kind, "--settings", json.dumps(settings)),
    ]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False,
        env=environment(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES=""),
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    run(tmp_path / "one", kind=kind, accumulate=2, **settings)
    two, one = state(tmp_path / "two"), state(tmp_path / "one")
    if kind == "gan":  # batch norm sees one micro-batch in each process, both when accumulating
        for s in (one, two):
            for part in ("model", "ema"):
                s[part] = {k: v for k, v in s[part].items() if "generator.2." not in k}
            del s["best"], s["metrics"]
    assert_same(one, two, tolerance=1e-6)


def check_kills(tmp_path: Path, kills: int, steps: int) -> list[dict]:
    settings = {"steps": steps, "batch_size": 2, "save_every": 1, "validate_every": 3}
    settings |= {"log_every": 1}
    words = ("--kills", str(kills))
    answer = script(tmp_path / "run", *words, **settings)
    assert answer.returncode == 0, answer.stderr[-3000:]
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    run(tmp_path / "whole", **settings)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "run"))
    logged = [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert logged == list(range(1, steps + 1))
    assert not list((tmp_path / "run").glob(".*.part"))
    return lines[:-1]


def test_four_kills_leave_readable_checkpoints(tmp_path):
    assert sum(k["killed"] for k in check_kills(tmp_path, 4, 60)) >= 1


@pytest.mark.slow
def test_thirty_kills_leave_readable_checkpoints(tmp_path):
    assert sum(k["killed"] for k in check_kills(tmp_path, 30, 900)) >= 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_zero(tmp_path, number):
    settings = {"steps": 100_000, "batch_size": 2, "save_every": 0, "validate_every": 0}
    words = ["--seconds", "0.01", "--settings", json.dumps(settings | {"workers": 1})]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path / "run"), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        start_new_session=True,
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


def test_time_limit_stops_and_resumes(tmp_path):
    first = run(tmp_path / "run", steps=8, batch_size=2, max_seconds=1e-6)
    assert first["stopped"]
    assert first["step"] == 1
    run(tmp_path / "run", steps=8, batch_size=2)
    run(tmp_path / "whole", steps=8, batch_size=2)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "run"))


def test_finished_run_is_left_alone(tmp_path):
    first = run(tmp_path / "run", steps=3)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    again = run(tmp_path / "run", steps=3)
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_progress_goes_by_its_label_or_the_folder(tmp_path, monkeypatch):
    shown, whole = [], Progress

    def noted(total, *, label, **options):
        shown.append(label)
        return whole(total, label=label, **options)

    monkeypatch.setattr("synth.training.loop.Progress", noted)
    config = TrainConfig(steps=1)
    for name, given in (("a", {}), ("b", {"label": "[4/9] fold 1"})):
        train(OneRecipe(), Items(), tmp_path / name, config, describe=DESCRIBE, **given)
    assert shown == ["a", "[4/9] fold 1"]


def test_another_network_or_order_is_refused(tmp_path):
    run(tmp_path / "run", steps=2)
    other = DESCRIBE | {"config": Config(width=32)}
    config = TrainConfig(steps=4)
    with pytest.raises(SynthError, match=r"begun with width = 16.*says 32"):
        train(OneRecipe(Config(width=32)), Items(), tmp_path / "run", config, describe=other)
    with pytest.raises(SynthError, match="begun with seed = 0"):
        run(tmp_path / "run", steps=4, seed=1)
    with pytest.raises(SynthError, match="begun with items = 24"):
        train(OneRecipe(), Items(5), tmp_path / "run", config, describe=DESCRIBE)
    with pytest.raises(SynthError, match="processes = 1"):
        run(tmp_path / "run", steps=4, accumulate=2)


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


def test_one_bad_loss_is_skipped(tmp_path, caplog):
    summary = train(
        Poisoned(3, 2), Items(), tmp_path / "run", TrainConfig(steps=6, log_every=1),
        describe=DESCRIBE,
    )  # fmt: skip
    assert summary["skipped"] == {"model": 2}
    saved = state(tmp_path / "run")
    assert all(bool(v.isfinite().all()) for v in saved["model"].values())
    assert all(s["step"] == 4 for s in saved["optimizers"]["model"]["state"].values())
    assert "step 3, model: loss nan" in caplog.text
    losses = [r["train/model"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert [i for i, v in enumerate(losses) if v is None] == [3, 4]


def test_ten_bad_losses_stop(tmp_path):
    config = TrainConfig(steps=50, save_every=2)
    with pytest.raises(SynthError, match=r"step 14, model: 10 .*last good checkpoint is .*last"):
        train(Poisoned(5, 99), Items(), tmp_path / "run", config, describe=DESCRIBE)
    assert inspect_finite(tmp_path / "run")


def inspect_finite(out: Path) -> bool:
    return all(bool(p.isfinite().all()) for p in checkpoint.load(out).model.parameters())


def test_recipes_that_break_the_contract(tmp_path):
    class Silent(OneRecipe):
        def losses(self, batch):
            yield from ()

    class Unknown(OneRecipe):
        def losses(self, batch):
            yield "critic", self.model(batch["x"]).mean()

    config = TrainConfig(steps=2)
    with pytest.raises(SynthError, match="yielded nothing"):
        train(Silent(), Items(), tmp_path / "a", config, describe=DESCRIBE)
    with pytest.raises(SynthError, match=r"'critic' .its optimizers are: model"):
        train(Unknown(), Items(), tmp_path / "b", config, describe=DESCRIBE)
    with pytest.raises(SynthError, match="0 items"):
        train(OneRecipe(), Items(0), tmp_path / "c", config, describe=DESCRIBE)
    with pytest.raises(SynthError, match=r"no metric 'dice'.*keep one of: loss"):
        run(tmp_path / "d", steps=2, keep="dice")


def test_best_is_kept_by_the_metric(tmp_path):
    values = iter([3.0, 1.0, math.nan, 2.0])

    class Told(OneRecipe):
        def validate(self, batch):
            return {"score": next(values)}

    config = TrainConfig(steps=8, validate_every=2, keep="score", keep_mode="min")
    summary = train(
        Told(), Items(), tmp_path / "run", config, describe=DESCRIBE, validation=Items(1)
    )
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
        config = TrainConfig(steps=1, precision=precision)
        train(Watching(), Items(), tmp_path / precision, config, describe=DESCRIBE, device="cpu")
        assert all(v.dtype == torch.float32 for v in state(tmp_path / precision)["model"].values())
    assert seen == [torch.bfloat16, torch.float32]


def test_own_writer_decides_what_is_published(tmp_path):
    def write(folder, model, facts):
        config = Config(width=16)
        inner = nn.Sequential(*model["critic"][:2], nn.Dropout(0.1), model["critic"][3])
        checkpoint.write(folder, model=inner, family="toy", preset="p", config=config, **facts)

    describe = DESCRIBE | {"config": Config(kind="gan")}
    config = TrainConfig(steps=2, batch_size=2)
    train(GanRecipe(), Items(), tmp_path / "run", config, describe=describe, write=write)
    published = checkpoint.load(tmp_path / "run").model
    trained = state(tmp_path / "run")["ema"]
    assert torch.equal(published[3].weight, trained["critic.3.weight"])


def test_data_order_is_each_epoch_once_and_does_not_depend_on_the_start():
    config = TrainConfig(steps=12, batch_size=3, accumulate=2, seed=5)
    order = [pair for b in MicroBatches(config, 8, start=0, rank=0, world=1) for pair in b]
    assert len(order) == 72
    for epoch in range(9):
        assert sorted(i for i, _ in order[epoch * 8 : epoch * 8 + 8]) == list(range(8))
    assert len({seed for _, seed in order}) == 72
    later = [pair for b in MicroBatches(config, 8, start=7, rank=0, world=1) for pair in b]
    assert later == order[7 * 6 :]
    assert permutation(5, 0, 8) != permutation(5, 1, 8)
    assert place(9, seed=5, size=8) == order[9]


def test_two_ranks_share_the_order_of_one_that_accumulates_twice():
    two = TrainConfig(steps=4, batch_size=3)
    one = TrainConfig(steps=4, batch_size=3, accumulate=2)
    ranks = [list(MicroBatches(two, 8, start=0, rank=r, world=2)) for r in (0, 1)]
    together = [b for pair in zip(*ranks, strict=True) for b in pair]
    assert together == list(MicroBatches(one, 8, start=0, rank=0, world=1))


def test_learning_rate_schedule_at_its_landmarks():
    config = TrainConfig(steps=110, warmup_steps=10, decay="cosine")
    at = [learning_rate_scale(step, config) for step in (0, 4, 9, 10, 60, 109, 110)]
    assert at == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0.5 * (1 + math.cos(math.pi * 0.99)), 0])
    assert learning_rate_scale(10**6, TrainConfig(steps=5)) == 1.0


def test_ema_follows_the_recurrence_and_leaves_frozen_weights_alone():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    frozen = model.bias.clone()
    ema = averaged(model, 0.5)
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
    model.train()
    with exchanged(model, ema.module):
        assert torch.equal(model.weight, before)
        assert not model.training
    assert torch.equal(model.weight, mine)
    assert torch.equal(ema.module.weight, before)
    assert model.training


def test_mix_is_stable_and_unambiguous():
    # The value itself is a promise: every trained model's data order hangs on it.
    assert mix(0, "item", 3) == 3385892537307393073
    seeds = [mix(1, 23), mix(12, 3), mix(123), mix("1", 23), mix("1", "23"), mix(), mix("", 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    code = "from synth.base.seeding import mix; print(mix(7, 'epoch', 2))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=environment(PYTHONHASHSEED="1"),
    )  # fmt: skip
    assert int(answer.stdout) == mix(7, "epoch", 2)


def test_settings_are_checked():
    for wrong in ({"steps": 0}, {"ema_decay": 1.0}, {"clip_norm": -1.0}, {"batch_size": 0}):
        with pytest.raises(SynthError):
            TrainConfig(**wrong)


def test_one_process_reduces_nothing(monkeypatch):
    accelerator = processes.accelerator("no", "cpu")
    monkeypatch.setattr(accelerator, "reduce", None)  # would fail if called
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    processes.average_gradients([p], accelerator)
    assert torch.equal(p.grad, torch.ones(2))
    assert processes.mean(torch.tensor(2.0), accelerator) == 2.0
