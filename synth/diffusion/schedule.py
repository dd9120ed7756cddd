"""Gaussian diffusion: pure functions of the log signal-to-noise ratio.

x_t = α x0 + σ ε with α² = sigmoid(λ), σ² = sigmoid(-λ), λ = log(α²/σ²) (Kingma et al. 2021, "VDM").
λ is the only name of a noise level: -∞ is noise, +∞ the clean image. A `Schedule` translates to the
integer timesteps that a network was trained on, exactly and in both directions, so that the network
is always told the true level, however many steps a sampler takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from synth.base.errors import SynthError

Kind = Literal["x0", "eps", "v", "flow"]
Network = Callable[[Tensor, Tensor], Tensor]
"""(x_t with its conditions on channels, timesteps (B,)) to the prediction."""


class Denoiser(Protocol):
    """The clean image that a noisy one came from, as far as one can tell."""

    def __call__(self, x_t: Tensor, logsnr: Tensor, cond: Tensor | None = None) -> Tensor:
        """x_t (B, C, …), logsnr (B,), cond (B, C', …) to x0 (B, C, …)."""
        ...


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels a network was trained on, one for each timestep 0 … N-1."""

    alphas_cumprod: Tensor
    """(N,) float64, strictly falling: α² of each timestep."""

    def __post_init__(self) -> None:
        abar = self.alphas_cumprod
        inside = bool(((abar > 0) & (abar < 1)).all())
        if abar.dtype != torch.float64 or abar.ndim != 1 or len(abar) < 2 or not inside:
            raise SynthError("a schedule is a row of two or more float64 numbers between 0 and 1")
        if not bool((abar.diff() < 0).all()):
            raise SynthError("alphas_cumprod must fall strictly: noise grows with the timestep")

    @classmethod
    def from_betas(cls, betas: Tensor) -> Schedule:
        """ᾱ_t = Π (1 - β_s) (Ho et al. 2020, below equation 4)."""
        return cls((1 - betas.double()).cumprod(0))

    @classmethod
    def linear(cls, timesteps: int = 1000) -> Schedule:
        """β from 1e-4 to 2e-2 for 1000 timesteps, scaled to any other number (Ho et al. 2020)."""
        scale = 1000 / timesteps
        if scale * 2e-2 >= 1:
            raise SynthError(
                f"a linear schedule needs more than 20 timesteps, got {timesteps}",
                hint="train on more; sampling may still take fewer steps",
            )
        start, end = scale * 1e-4, scale * 2e-2
        return cls.from_betas(torch.linspace(start, end, timesteps, dtype=torch.float64))

    @classmethod
    def cosine(cls, timesteps: int = 1000) -> Schedule:
        """ᾱ ∝ cos²(π/2·(t/N + s)/(1 + s)), s = 0.008, β ≤ 0.999 (Nichol, Dhariwal 2021, eq. 17)."""
        if timesteps < 2:
            raise SynthError(f"a cosine schedule needs 2 timesteps or more, got {timesteps}")
        time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
        abar = ((time + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        return cls.from_betas((1 - abar[1:] / abar[:-1]).clamp(max=0.999))

    @classmethod
    def flow(cls, timesteps: int = 1000) -> Schedule:
        """Equal steps of s, of (1 - s) x0 + s ε scaled to variance 1 (Liu et al. 2023, eq. 1)."""
        s = (torch.arange(timesteps, dtype=torch.float64) + 0.5) / timesteps
        return cls((1 - s) ** 2 / ((1 - s) ** 2 + s**2))

    @property
    def timesteps(self) -> int:
        """N, the number of levels trained on."""
        return len(self.alphas_cumprod)

    @property
    def logsnrs(self) -> Tensor:
        """(N,) float64, λ of each timestep, falling."""
        return torch.logit(self.alphas_cumprod)

    def logsnr(self, t: Tensor) -> Tensor:
        """λ at real t in [0, N-1], linear between timesteps; float64."""
        knots = self.logsnrs.to(t.device)
        t = t.double().clamp(0, self.timesteps - 1)
        low = t.floor().long().clamp(max=self.timesteps - 2)
        return torch.lerp(knots[low], knots[low + 1], t - low)

    def timestep(self, logsnr: Tensor) -> Tensor:
        """The inverse of `logsnr`: real t in [0, N-1], levels outside it clipped; float64."""
        knots = -self.logsnrs.to(logsnr.device)  # rising
        wanted = (-logsnr.double()).clamp(knots[0], knots[-1])
        low = (torch.searchsorted(knots, wanted, right=True) - 1).clamp(0, self.timesteps - 2)
        return low + (wanted - knots[low]) / (knots[low + 1] - knots[low])


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """α = √sigmoid(λ) and σ = √sigmoid(-λ); exact at ±∞."""
    return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()


def coefficients(logsnr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ as (B, 1, 1, …) in the precision of `like`."""
    shape = (-1,) + (1,) * (like.ndim - 1)
    alpha, sigma = alpha_sigma(logsnr.double())
    return alpha.to(like).view(shape), sigma.to(like).view(shape)


def q_sample(x0: Tensor, noise: Tensor, logsnr: Tensor) -> Tensor:
    """x_t = α x0 + σ ε; logsnr (B,)."""
    alpha, sigma = coefficients(logsnr, x0)
    return alpha * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, logsnr: Tensor, kind: Kind) -> Tensor:
    """What a network of this kind should answer; v = α ε - σ x0 (Salimans & Ho 2022).

    flow is the straight line ε - x0 (Liu et al. 2023): their (1 - s) x0 + s ε is x_t / (α + σ) at
    s = σ / (α + σ), so that the same x_t, levels and samplers serve it.
    """
    if kind == "x0":
        return x0
    if kind == "eps":
        return noise
    if kind == "flow":
        return noise - x0
    alpha, sigma = coefficients(logsnr, x0)
    return alpha * noise - sigma * x0


def to_x0(output: Tensor, x_t: Tensor, logsnr: Tensor, kind: Kind) -> Tensor:
    """x0 from whatever the network predicts.

    Noise alone (λ = -∞) says nothing about x0 to an eps network: the answer there is 0.
    """
    if kind == "x0":
        return output
    alpha, sigma = coefficients(logsnr, x_t)
    if kind == "v":
        return alpha * x_t - sigma * output
    if kind == "flow":
        return (x_t - sigma * output) / (alpha + sigma)
    possible = alpha > 0
    return torch.where(possible, (x_t - sigma * output) / torch.where(possible, alpha, 1), 0)


def denoiser(network: Network, schedule: Schedule, kind: Kind = "x0") -> Denoiser:
    """A Denoiser from a network that takes timesteps and predicts x0, eps, v or flow.

    The condition is put behind x_t on the channel axis. Timesteps are told as real numbers.
    """

    def denoise(x_t: Tensor, logsnr: Tensor, cond: Tensor | None = None) -> Tensor:
        entering = x_t if cond is None else torch.cat([x_t, cond], dim=1)
        output = network(entering, schedule.timestep(logsnr).float())
        return to_x0(output, x_t, logsnr, kind)

    return denoise
