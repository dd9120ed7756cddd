"""Optimizers by name, and the schedule-free AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from segmentation.config import Config


def build_optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the configured optimizer over what is trained."""
    lr, decay = config.lr, config.weight_decay
    match config.optimizer:
        case "adamw":
            return AdamW(parameters, lr=lr, weight_decay=decay)
        case "sgd":  # nnU-Net's
            return SGD(parameters, lr=lr, momentum=0.99, nesterov=True, weight_decay=decay)
        case "rmsprop":
            return RMSprop(parameters, lr=lr, weight_decay=decay)
        case "schedule_free":
            return ScheduleFreeAdamW(parameters, lr=lr, weight_decay=decay)


class ScheduleFreeAdamW(Optimizer):
    """AdamW without a schedule ("The Road Less Scheduled", Defazio et al. 2024, Algorithm 1).

    Three points in place of one: z takes the steps, x is their average and the answer, y between
    them is where gradients are measured:

        y = (1 - β₁) z + β₁ x
        z ← z - γ (g(y) / √v̂ + λ y)
        x ← (1 - c) x + c z,    c = γ² / Σ γ²

    The parameters hold y in training. `eval()` puts x there and `train()` takes it out again: the
    storage changes hands, nothing is computed, so that a look at x leaves no trace in the training.
    γ is the group's "lr", which the training loop warms up; the weights of the average follow the
    largest so far, so that the steps of the warm-up hardly count.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"steps": 0, "largest_lr": 0.0, "weight_sum": 0.0})
        self.shows_average = False

    def eval(self) -> None:
        """Let the parameters be x, the average."""
        if not self.shows_average:
            self._exchange()
        self.shows_average = True

    def train(self) -> None:
        """Let the parameters be y again."""
        if self.shows_average:
            self._exchange()
        self.shows_average = False

    def _exchange(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:  # before its first step a parameter is x, y and z at once
                    state = self.state[p]
                    p.data, state["x"] = state["x"], p.data

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # ty: ignore[incompatible-method-override]
        """Take one step from gradients measured at y."""
        assert not self.shows_average, "gradients at x are of no use: call train() first"
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._step(group, moved)
        return loss

    def _step(self, group: dict[str, Any], ys: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        lr, decay = float(group["lr"]), group["weight_decay"]
        group["steps"] += 1
        group["largest_lr"] = max(group["largest_lr"], lr)
        weight = group["largest_lr"] ** 2
        group["weight_sum"] += weight
        c = weight / group["weight_sum"] if weight else 0.0
        states = [self._state(y) for y in ys]
        xs, zs, vs = ([s[name] for s in states] for name in ("x", "z", "v"))
        grads = [y.grad for y in ys if y.grad is not None]

        torch._foreach_mul_(vs, beta2)
        torch._foreach_addcmul_(vs, grads, grads, 1 - beta2)
        scale = torch._foreach_div(vs, 1 - beta2 ** group["steps"])
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        direction = torch._foreach_div(grads, scale)
        if decay:
            torch._foreach_add_(direction, ys, alpha=decay)
        torch._foreach_add_(zs, direction, alpha=-lr)
        torch._foreach_lerp_(xs, zs, c)
        for y, x, z in zip(ys, xs, zs, strict=True):
            y.copy_(torch.lerp(x, z, 1 - beta1))

    def _state(self, y: Tensor) -> dict[str, Tensor]:
        state = self.state[y]
        if not state:
            kind = torch.preserve_format
            state["x"] = y.detach().clone(memory_format=kind)
            state["z"] = y.detach().clone(memory_format=kind)
            state["v"] = torch.zeros_like(y, memory_format=kind)
        return state
