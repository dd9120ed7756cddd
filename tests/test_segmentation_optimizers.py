"""Schedule-free AdamW, how the loop judges and saves its average, and the learning rates."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, RMSprop, lr_scheduler

from segmentation.config import Config
from segmentation.optimizers import ScheduleFreeAdamW, build_optimizer
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.training.config import TrainConfig
from synth.training.learning_rate import Patience, learning_rate_scale
from synth.training.loop import train
from tests.toy_recipe import Config as ToyConfig
from tests.toy_recipe import Items, OneRecipe, assert_same, register, state

DESCRIBE = {"family": "toy", "preset": "tiny", "config": ToyConfig()}


@pytest.fixture(autouse=True)
def toy_family():
    register()


def layer() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, 3).double()


def gradients(model: nn.Module, step: int) -> None:
    """Those of a quadratic bowl, with some noise."""
    random = torch.Generator().manual_seed(step)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=random, dtype=torch.double)
        p.grad = p.detach() * 3 - 1 + 0.3 * noise


def test_schedule_free_equals_the_authors_package():
    package = pytest.importorskip("schedulefree", reason="an oracle for tests only")
    ours, theirs = layer(), layer()
    settings = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.98)}
    mine = ScheduleFreeAdamW(ours.parameters(), **settings)
    other = package.AdamWScheduleFree(theirs.parameters(), warmup_steps=10, **settings)
    other.train()
    for step in range(60):
        config = TrainConfig(steps=60, warmup_steps=10)
        mine.param_groups[0]["lr"] = 0.02 * learning_rate_scale(step, config)
        for model, optimizer in ((ours, mine), (theirs, other)):
            gradients(model, step)
            optimizer.step()
        # double precision; theirs recovers x from y and z, which costs a few digits
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    y = ours.weight.clone()
    mine.eval()
    other.eval()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-11)
    assert (ours.weight - y).abs().max() > 1e-4


def test_the_answer_is_the_mean_of_the_steps_and_y_lies_between():
    model = layer()
    optimizer = ScheduleFreeAdamW(model.parameters(), lr=0.01)
    seen = []
    for step in range(25):
        gradients(model, step)
        optimizer.step()
        seen.append(optimizer.state[model.weight]["z"].clone())
    y, mean = model.weight.detach().clone(), torch.stack(seen).mean(0)
    torch.testing.assert_close(y, 0.1 * seen[-1] + 0.9 * mean)
    optimizer.eval()
    torch.testing.assert_close(model.weight.detach(), mean)


def test_looking_at_the_average_leaves_no_trace():
    plain, watched = layer(), layer()
    a, b = (ScheduleFreeAdamW(m.parameters(), lr=0.01) for m in (plain, watched))
    b.eval()  # before the first step the average is the start
    assert torch.equal(watched.weight, plain.weight)
    b.train()
    for step in range(7):
        for model, optimizer in ((plain, a), (watched, b)):
            gradients(model, step)
            optimizer.step()
        before = watched.weight.detach().clone()
        b.eval()
        b.eval()
        assert not torch.equal(watched.weight, before) or step == 0
        with pytest.raises(AssertionError, match="call train"):
            b.step()
        b.train()
        b.train()
        assert torch.equal(watched.weight, plain.weight)


class Free(OneRecipe):
    """The toy regression without a schedule; remembers what was judged."""

    def optimizers(self):
        self.optimizer = ScheduleFreeAdamW(self.model.parameters(), lr=self.lr)
        self.judged = []
        return {"model": self.optimizer}

    def validate(self, batch):
        self.judged.append(self.model[0].weight.detach().clone())
        return super().validate(batch)


def go(out, steps, **settings):
    recipe = Free()
    common = {"validate_every": 4, "save_every": 5, "warmup_steps": 3, "batch_size": 4}
    config = TrainConfig(steps=steps, **(common | settings))
    summary = train(recipe, Items(), out, config, describe=DESCRIBE, validation=Items(1))
    return recipe, summary


def test_the_average_is_judged_and_saved_and_training_goes_on_at_y(tmp_path):
    recipe, _ = go(tmp_path / "run", 20)
    y = recipe.model[0].weight.detach()
    x = recipe.optimizer.state[recipe.model[0].weight]["x"]
    assert (x - y).abs().max() > 1e-4
    published = checkpoint.load(tmp_path / "run" / "last").model
    assert torch.equal(published[0].weight, x)
    assert torch.equal(recipe.judged[-1], x)
    saved = state(tmp_path / "run")
    assert torch.equal(saved["model"]["0.weight"], y)
    assert torch.equal(saved["ema"]["0.weight"], x)


def test_a_resumed_run_is_the_same_however_often_it_is_judged(tmp_path):
    go(tmp_path / "whole", 20)
    go(tmp_path / "parts", 10)  # validates and saves at 10, which the other does not
    go(tmp_path / "parts", 20)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    go(tmp_path / "often", 20, validate_every=1)
    for part in ("model", "ema", "optimizers"):
        assert_same(
            state(tmp_path / "whole")[part] | {"training": 0},
            state(tmp_path / "often")[part] | {"training": 0},
        )


def test_neither_decay_nor_another_average_is_laid_over_it(tmp_path, caplog):
    with caplog.at_level("INFO"):
        recipe, _ = go(tmp_path / "a", 9, decay="cosine", ema_decay=0.99)
    assert "averages by itself" in caplog.text
    plain, _ = go(tmp_path / "b", 9, decay="constant", ema_decay=0.0)
    assert torch.equal(recipe.model[0].weight, plain.model[0].weight)
    assert torch.equal(recipe.judged[-1], plain.judged[-1])


def test_optimizers_by_name():
    def of(name: str):
        return build_optimizer(
            Config(optimizer=name, lr=0.3, weight_decay=0.2), layer().parameters()
        )

    kinds = {
        "adamw": AdamW, "sgd": SGD, "rmsprop": RMSprop, "schedule_free": ScheduleFreeAdamW
    }  # fmt: skip
    for name, kind in kinds.items():
        optimizer = of(name)
        assert type(optimizer) is kind
        group = optimizer.param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (0.3, 0.2)
    group = of("sgd").param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.99, True)


def rates(scheduler_of, steps: int) -> list[float]:
    """The rates of one of torch's schedules with a base of 1."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = scheduler_of(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("decay", "scheduler_of"),
    [
        ("poly", lambda o: lr_scheduler.PolynomialLR(o, 30, power=0.9)),
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, 30)),
        ("step", lambda o: lr_scheduler.StepLR(o, 10, gamma=0.1)),
        # a cycle of 5 down and 5 up; torch begins at the bottom, hence five more steps
        ("cyclic", lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, 5, cycle_momentum=False)),
    ],
)
def test_schedules_equal_torch(decay, scheduler_of):
    config = TrainConfig(steps=35, warmup_steps=5, decay=decay)
    expected = rates(scheduler_of, 35)[5 if decay == "cyclic" else 0 :][:30]
    assert [learning_rate_scale(s, config) for s in range(5, 35)] == pytest.approx(expected)
    assert learning_rate_scale(0, config) == pytest.approx(0.2)  # the warm-up comes first


def test_the_plateau_equals_torch():
    config = TrainConfig(decay="plateau", plateau_validations=3, decay_factor=0.5)
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, threshold=0)
    mine, best = Patience(), float("inf")
    for value in (5, 4, 4, 4, 4, 3, 3, 9, 9, 9, 9, 9, 9, 2, 2):
        theirs.step(value)
        mine.note(value < best, config)
        best = min(best, value)
        scale = learning_rate_scale(10**6, config, lowered=mine.lowered)
        assert scale == pytest.approx(optimizer.param_groups[0]["lr"])
    assert mine.lowered == 0.125


class Told(OneRecipe):
    """Validates to given values."""

    def __init__(self, values) -> None:
        super().__init__()
        self.values = iter(values)
        self.rates = []

    def losses(self, batch):
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        yield from super().losses(batch)

    def optimizers(self):
        self.optimizer = SGD(self.model.parameters(), lr=1.0)
        return {"model": self.optimizer}

    def validate(self, batch):
        return {"loss": next(self.values)}


def follow(out, values, steps=40, **settings):
    recipe = Told(values)
    config = TrainConfig(steps=steps, validate_every=2, save_every=2, **settings)
    summary = train(recipe, Items(), out, config, describe=DESCRIBE, validation=Items(1))
    return recipe, summary


def test_training_ends_when_nothing_gets_better(tmp_path):
    values = [5.0, 4.0, 6.0, 3.0, 3.0, 7.0, float("nan"), 1.0, 1.0]
    _, summary = follow(tmp_path / "run", values, patience=3)
    assert (summary["step"], summary["best"], summary["stopped"]) == (14, 3.0, False)
    _, again = follow(tmp_path / "run", [], patience=3)  # finished: nothing is called
    assert again["step"] == 14
    _, more = follow(tmp_path / "run", [1.0, 1.0], steps=18, patience=4)
    assert (more["step"], more["best"]) == (18, 1.0)


def test_patience_and_plateau_survive_a_resumption(tmp_path):
    values = [5.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0]
    settings = {"decay": "plateau", "plateau_validations": 2, "patience": 7}
    whole, once = follow(tmp_path / "whole", values, **settings)
    assert [round(r, 6) for r in whole.rates[::2]] == [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]
    first, _ = follow(tmp_path / "parts", values[:4], steps=8, **settings)
    second, twice = follow(tmp_path / "parts", values[4:], **settings)
    assert first.rates + second.rates == whole.rates
    assert once["step"] == twice["step"] == 16
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_what_follows_validations_needs_some(tmp_path):
    config = TrainConfig(steps=3, patience=2)
    with pytest.raises(SynthError, match="held-out"):
        train(OneRecipe(), Items(), tmp_path, config, describe=DESCRIBE)
    with pytest.raises(SynthError, match="need a metric"):
        replace(config, keep="")
    with pytest.raises(SynthError, match="decay_factor"):
        replace(config, decay_factor=1.0)
