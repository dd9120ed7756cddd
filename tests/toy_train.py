"""A stand-in for `synth.cli` whose `train` takes no time to learn: the loss is a function of lr.

It writes a whole checkpoint, and a line for every call beside the run folder.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from synth.base.config import from_dict, to_dict
from synth.checkpoints import checkpoint
from synth.jobs.sweep import begin_sweep
from synth.training.config import TrainConfig
from tests import toy_recipe

COMMAND = ("train", "toy", "--data=nowhere")


@dataclass(frozen=True, kw_only=True)
class Config:
    lr: float = 1e-3
    width: int = 8
    loss: Literal["l1", "l2"] = "l2"
    patch: tuple[int, int] = (4, 4)
    name: str = ""
    fast: bool = False


def resolve(settings) -> tuple[str, Any, TrainConfig]:
    own = to_dict(Config())
    loop = {k: v for k, v in settings.items() if k not in own}
    config = from_dict(Config, own | {k: v for k, v in settings.items() if k in own})
    return "tiny", config, from_dict(TrainConfig, loop)


def sweep_in(out: Path):
    return begin_sweep(out, COMMAND, TrainConfig(keep="loss"))


def loss(lr: float) -> float:
    return (math.log10(lr) + 3.2) ** 2


def main(words: list[str]) -> int:
    values = dict(w.removeprefix("--").split("=", 1) for w in words if w.startswith("--"))
    out, lr = Path(values["out"]), float(values["lr"])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "calls").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    if os.environ.get("TOY_FAILS") and lr > 2e-3:
        return 1
    toy_recipe.register()
    checkpoint.save(
        out / "best", model=nn.Linear(1, 1), family="toy", preset="tiny",
        config=toy_recipe.Config(), step=1, metrics={"loss": loss(lr)},
    )  # fmt: skip
    print(f"loss {loss(lr):.3f}")
    return 0
