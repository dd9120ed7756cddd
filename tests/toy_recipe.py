"""Two toy trainings, one optimizer and three, importable and runnable as a script.

The script is what the tests kill, stop, and launch on two processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from synth.base import families
from synth.base.seeding import generator
from synth.checkpoints import checkpoint
from synth.data.volume import Volume
from synth.training import log
from synth.training.config import TrainConfig
from synth.training.loop import train
from synth.training.recipe import whole_model_writer


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 16
    kind: str = "one"
    shape: tuple[int, ...] = (3, 2)


def build(config: Config) -> nn.Module:
    """One network with dropout, or three players with batch norm."""
    w = config.width

    def mlp(inputs: int, outputs: int, middle: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, w), nn.SiLU(), middle, nn.Linear(w, outputs))

    if config.kind == "one":
        return mlp(4, 1, nn.Dropout(0.1))
    return nn.ModuleDict(
        {
            "generator": mlp(2, 4, nn.BatchNorm1d(w)),
            "encoder": mlp(4, 2, nn.Identity()),
            "critic": mlp(4, 1, nn.Dropout(0.2)),
            "code_critic": mlp(2, 1, nn.Identity()),
        }
    )


def assemble(*_: object, **__: object):
    raise NotImplementedError("these trainings are put together by `run`")


PRESETS: dict[str, Config] = {}
TOY = families.Family(
    name="toy",
    about="for the tests",
    config=families.Lazy(f"{__name__}:Config"),
    presets=families.Lazy(f"{__name__}:PRESETS"),
    training=families.Lazy(f"{__name__}:PRESETS"),
    build=families.Lazy(f"{__name__}:build"),
    assemble=families.Lazy(f"{__name__}:assemble"),
)


def register() -> None:
    """Make `toy` a family."""
    families.FAMILIES.setdefault("toy", TOY)


class Items:
    """x in R^4 with y = sin(sum x) / 2; the seed adds a little noise to x."""

    def __init__(self, size: int = 24, *, seconds: float = 0.0, noise: float = 0.01) -> None:
        self.size, self.seconds, self.noise = size, seconds, noise

    def __len__(self) -> int:
        return self.size

    def item(self, index: int, seed: int) -> dict[str, torch.Tensor | int]:
        time.sleep(self.seconds)
        x = torch.randn(4, generator=generator("x", index))
        noise = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        return {"x": x + self.noise * noise, "y": torch.sin(x.sum())[None] / 2, "index": index}


class OneRecipe:
    """Regression: one optimizer, one loss."""

    def __init__(self, config: Config | None = None, *, lr: float = 1e-2) -> None:
        torch.manual_seed(0)
        self.model = build(config or Config())
        self.lr = lr

    def optimizers(self):
        return {"model": torch.optim.AdamW(self.model.parameters(), lr=self.lr)}

    def losses(self, batch):
        x = batch["x"] + 0.01 * torch.randn_like(batch["x"])
        yield "model", nn.functional.mse_loss(self.model(x), batch["y"])

    def validate(self, batch):
        return {"loss": nn.functional.mse_loss(self.model(batch["x"]), batch["y"]).item()}

    def preview(self, batch):
        grid = batch["x"].cpu().numpy().reshape(1, 2, 2, 1).astype(np.float32)
        return {"x": Volume(data=grid, affine=np.diag([2.0, 2.0, 2.0, 1.0]))}

    def writer(self, describe):
        return whole_model_writer(describe)


class GanRecipe(OneRecipe):
    """Generator with encoder, critic, code critic: three optimizers in turn."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config(kind="gan"))

    def optimizers(self):
        m = self.model
        makers = [*m["generator"].parameters(), *m["encoder"].parameters()]
        return {
            "generator": torch.optim.Adam(makers, lr=1e-3, betas=(0.5, 0.9)),
            "critic": torch.optim.Adam(m["critic"].parameters(), lr=1e-3),
            "code_critic": torch.optim.SGD(m["code_critic"].parameters(), lr=1e-2, momentum=0.9),
        }

    def losses(self, batch):
        m, x = self.model, batch["x"]
        code = m["encoder"](x)
        fake = m["generator"](torch.randn(len(x), 2, device=x.device))
        again = nn.functional.l1_loss(m["generator"](code), x)
        yield "generator", again - m["critic"](fake).mean() - m["code_critic"](code).mean()
        fake = m["generator"](torch.randn(len(x), 2, device=x.device)).detach()
        yield "critic", m["critic"](fake).mean() - m["critic"](x).mean()
        drawn = torch.randn_like(code)
        yield "code_critic", m["code_critic"](code.detach()).mean() - m["code_critic"](drawn).mean()

    def validate(self, batch):
        again = self.model["generator"](self.model["encoder"](batch["x"]))
        return {"loss": nn.functional.l1_loss(again, batch["x"]).item()}


RECIPES = {"one": OneRecipe, "gan": GanRecipe}


def run(out: Path, *, kind: str = "one", items: Items | None = None, **settings):
    register()
    config = TrainConfig(**{"validate_every": 5, "save_every": 5, "log_every": 1} | settings)
    return train(
        RECIPES[kind](),
        Items() if items is None else items,
        out,
        config,
        describe={"family": "toy", "preset": "tiny", "config": Config(kind=kind)},
        validation=Items(3),
        device="cpu",
    )


def environment(**more: str) -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | more


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


def killed(out: Path, kind: str, kills: int, **settings) -> None:
    """Train in forked processes, each killed at a random instant; look at what is left each time.

    Forking spares importing torch for every kill; with one thread there is no pool to lose.
    """
    register()
    random = np.random.default_rng(0)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            run(out, kind=kind, **settings)
            os._exit(0)
        time.sleep(random.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"step": inspect_run(out), "killed": os.WIFSIGNALED(status)}))


def inspect_run(out: Path) -> int:
    """Read every file that a kill may have torn; return the saved step."""
    for folder in (out / "best", out / "last"):
        if folder.exists():
            assert checkpoint.load(folder).metadata["family"] == "toy"
            json.loads((folder / "config.json").read_text())
    return state(out)["step"] if (out / "last").exists() else 0


def main() -> None:
    """Train as the words say: OUT, and settings as JSON, with kind, seconds and kills."""
    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    kind, kills = options.pop("kind", "one"), options.pop("kills", 0)
    items = Items(seconds=options.pop("seconds", 0.0))
    torch.set_num_threads(1)
    log.configure()
    if kills:
        killed(out, kind, kills, **options)
    print(json.dumps(run(out, kind=kind, items=items, **options)))


if __name__ == "__main__":
    main()
