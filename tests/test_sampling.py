"""Samplers against MONAI, diffusers, and a Gaussian whose every answer is known."""

import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from synth.base.errors import SynthError
from synth.diffusion.sampling import (
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    levels,
    noise_like,
    noised,
    with_known,
)
from synth.diffusion.schedule import Schedule, alpha_sigma, coefficients

SPACINGS = ["uniform", "karras", "logsnr"]
SAMPLERS = {
    "ddpm": ddpm,
    "ddim": lambda denoise, x, walk, _: ddim(denoise, x, walk),
    "2m": lambda denoise, x, walk, _: dpmpp_2m(denoise, x, walk),
    "2m_sde": dpmpp_2m_sde,
}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def start(batch: int = 1, size: int = 3) -> torch.Tensor:
    return noise_like(torch.empty(batch, 2, size, size, size).double(), generators(*range(batch)))


def curved(x, logsnr, _cond=None):
    """Some smooth nonlinear answer that depends on the level."""
    _, sigma = coefficients(logsnr, x)
    return torch.tanh(x * (1.5 - sigma)) + 0.1 * sigma


class Gaussian:
    """Data N(mean, spread²): the exact x0, and where the exact probability flow leads."""

    mean = 0.4

    def __init__(self, spread: float = 0.5):
        self.spread = spread

    def __call__(self, x, logsnr, _cond=None):
        alpha, sigma = coefficients(logsnr, x)
        gain = alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def flow(self, x, logsnr):
        """The flow keeps standardised values: x = α·mean + √(α²spread² + σ²)·z."""
        alpha, sigma = (float(v) for v in alpha_sigma(logsnr))
        z = (x - alpha * self.mean) / math.hypot(alpha * self.spread, sigma)
        return self.mean + self.spread * z


def exact(scheduler, schedule: Schedule):
    """A MONAI scheduler on float64 levels, to compare arithmetic instead of roundings."""
    abar = schedule.alphas_cumprod
    scheduler.alphas_cumprod = abar
    scheduler.alphas = torch.cat([abar[:1], abar[1:] / abar[:-1]])
    scheduler.betas = 1 - scheduler.alphas
    scheduler.one = torch.ones((), dtype=torch.float64)
    return scheduler


def predicted_by(schedule: Schedule, scheduler_timestep: int, x: torch.Tensor) -> torch.Tensor:
    return curved(x, schedule.logsnr(torch.tensor([scheduler_timestep])))


# --- Trajectories -------------------------------------------------------------------------------


def test_ddpm_equals_monai_step_by_step():
    schedule = Schedule.linear(50)
    other = exact(
        DDPMScheduler(50, variance_type="fixed_small", prediction_type="sample", clip_sample=False),
        schedule,
    )
    x = y = start()
    # MONAI draws the noise of a whole batch at once; for one sample that is the same row.
    theirs = torch.Generator().manual_seed(5)
    walk = levels(schedule, 50, "uniform")
    steps = list(ddpm(curved, x, walk, generators(5)))
    for t, step in zip(range(49, -1, -1), steps, strict=True):
        x0 = predicted_by(schedule, t, y)
        y, _ = other.step(x0, t, y, generator=theirs)
        torch.testing.assert_close(step.x, y, atol=1e-9, rtol=0)


def test_ddim_equals_monai_step_by_step():
    schedule = Schedule.cosine(100)
    other = exact(DDIMScheduler(100, prediction_type="sample", clip_sample=False), schedule)
    other.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    other.set_timesteps(20)
    # MONAI spreads its timesteps over 0 … 99 but steps back by 5 from each: make the two agree.
    other.timesteps = torch.arange(95, -1, -5)
    walk = torch.cat([schedule.logsnr(other.timesteps), torch.tensor([math.inf]).double()])
    x = y = start()
    for t, step in zip(other.timesteps, ddim(curved, x, walk), strict=True):
        y, _ = other.step(predicted_by(schedule, int(t), y), t, y, eta=0.0)
        torch.testing.assert_close(step.x, y, atol=1e-9, rtol=0)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("steps", [4, 20])
def test_dpmpp_equals_diffusers_step_by_step(algorithm, steps):
    schedule = Schedule.linear()
    betas = np.diff(schedule.alphas_cumprod.numpy(), prepend=1.0)
    betas = -betas / np.concatenate([[1.0], schedule.alphas_cumprod.numpy()[:-1]])
    other = DPMSolverMultistepScheduler(
        trained_betas=betas, algorithm_type=algorithm, prediction_type="sample",
        solver_order=2, final_sigmas_type="zero", use_karras_sigmas=True,
    )  # fmt: skip
    other.set_timesteps(steps)
    walk = -2 * other.sigmas.double().log()  # their sigma is σ/α; the last is 0, λ = ∞
    x = y = start().float()
    sde = algorithm.startswith("sde")
    ours = dpmpp_2m_sde(curved, x, walk, generators(5)) if sde else dpmpp_2m(curved, x, walk)
    theirs = generators(5)
    for i, step in enumerate(ours):
        noise = noise_like(y, theirs) if sde and i < steps - 1 else torch.zeros_like(y)
        x0 = curved(y, walk[i : i + 1])
        y = other.step(x0, other.timesteps[i], y, variance_noise=noise).prev_sample
        torch.testing.assert_close(step.x, y, atol=1e-5, rtol=0)  # they work in float32


# --- A Gaussian ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("2m", 2)])
def test_order_of_convergence(name, order):
    gaussian, x = Gaussian(), start()
    schedule = Schedule.linear()
    counts, errors = [40, 80, 160, 320], []
    for count in counts:
        walk = levels(schedule, count, "logsnr")
        # Stop before the clean end: the last, first-order, step to λ = ∞ has the same size always.
        *_, last = SAMPLERS[name](gaussian, x, walk[:-1], None)
        alpha, sigma = (float(v) for v in alpha_sigma(walk[-2]))
        first = gaussian.flow(x, walk[0])
        z = (first - gaussian.mean) / gaussian.spread
        truth = alpha * gaussian.mean + math.hypot(alpha * gaussian.spread, sigma) * z
        errors.append(float((last.x - truth).abs().max()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("spread", [0.3, 0.5, 0.7, 1.0])
def test_2m_hits_mean_and_variance_in_20_steps(spread):
    gaussian = Gaussian(spread=spread)
    walk = levels(Schedule.linear(), 20, "logsnr")
    # The sampler is affine in x for a Gaussian: two points give its exact mean and spread.
    points = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1, 1)
    *_, last = dpmpp_2m(gaussian, points, walk)
    at_zero, at_one = last.x.flatten().tolist()
    assert at_zero == pytest.approx(gaussian.mean, rel=0.01)
    assert (at_one - at_zero) ** 2 == pytest.approx(gaussian.spread**2, rel=0.01)


@pytest.mark.parametrize("name", ["ddpm", "2m_sde"])
def test_stochastic_samplers_hit_mean_and_variance(name):
    gaussian = Gaussian()
    x = noise_like(torch.empty(1, 1, 32, 32, 32), generators(0))
    *_, last = SAMPLERS[name](gaussian, x, levels(Schedule.linear(), 500), generators(1))
    # 32768 samples: standard errors 0.003 (mean) and 0.002 (spread). The posterior variance of
    # few steps is too small at first order: 5 % of the spread in 100 steps, 1 % in 500.
    assert float(last.x.mean()) == pytest.approx(gaussian.mean, abs=0.012)
    assert float(last.x.std()) == pytest.approx(gaussian.spread, abs=0.012)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ideal_denoiser_returns_a_training_volume(name, spacing):
    training = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(3)).double()

    def ideal(x, logsnr, _cond=None):
        alpha, sigma = coefficients(logsnr, x)
        distance = (x[:, None] - alpha[:, None] * training).square().flatten(2).sum(2)  # (B, 2)
        weights = torch.softmax(-distance / (2 * sigma.view(-1, 1) ** 2), dim=1)
        return torch.einsum("bn,n...->b...", weights, training)

    x = noise_like(torch.empty(6, 1, 4, 4, 4).double(), generators(*range(6)))
    walk = levels(Schedule.linear(), 25, spacing)
    *_, last = SAMPLERS[name](ideal, x, walk, generators(*range(6)))
    away = (last.x[:, None] - training).abs().flatten(2).amax(2)  # (6, 2)
    assert away.min(1).values.max() < 1e-6
    assert set(away.argmin(1).tolist()) == {0, 1}  # and not always the same one


# --- Contracts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_call_a_step_at_the_stated_levels(name):
    seen = []

    def spy(x, logsnr, _cond=None):
        seen.append(logsnr.clone())
        return curved(x, logsnr)

    walk = levels(Schedule.cosine(250), 7)
    steps = list(SAMPLERS[name](spy, start(2), walk, generators(0, 1)))
    assert torch.equal(torch.stack(seen), walk[:-1, None].expand(7, 2))
    assert [step.index for step in steps] == list(range(7))
    assert torch.equal(steps[-1].x, steps[-1].x0)  # the last step is the denoiser's own answer
    walk = torch.tensor([-math.inf, -2.0, 2.0, math.inf]).double()  # from infinite noise
    *_, last = SAMPLERS[name](curved, start(), walk, generators(0))
    assert last.x.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_depends_on_its_own_seed_only(name):
    walk = levels(Schedule.linear(), 6)

    def run(*seeds):
        gens = generators(*seeds)
        x = noise_like(torch.empty(len(seeds), 2, 3, 3, 3), gens)
        *_, last = SAMPLERS[name](curved, x, walk, gens)
        return last.x

    together = run(7, 8, 9)
    for k, seed in enumerate((7, 8, 9)):
        assert torch.equal(run(seed)[0], together[k])
    assert torch.equal(run(9, 7)[1], together[0])


def test_condition_reaches_the_denoiser():
    def told(x, _logsnr, cond):
        return cond.expand_as(x)

    walk, cond = levels(Schedule.linear(), 3), torch.ones(1, 1, 3, 3, 3)
    for sampler in (ddpm, dpmpp_2m_sde):
        *_, last = sampler(told, start(), walk, generators(0), cond=cond)
        assert torch.equal(last.x, torch.ones_like(last.x))
    for sampler in (ddim, dpmpp_2m):
        *_, last = sampler(told, start(), walk, cond=cond)
        assert torch.equal(last.x, torch.ones_like(last.x))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [Schedule.linear(), Schedule.cosine(250)])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_levels_rise_from_trained_noise_to_clean(schedule, spacing, steps):
    walk = levels(schedule, steps, spacing)
    assert len(walk) == steps + 1
    assert (walk.diff() > 0).all()
    assert walk[-1] == math.inf
    assert walk[0] >= schedule.logsnrs[-1]
    assert walk[0] <= -9.9  # 0.7 % of the image's amplitude at most
    if steps > 1:
        assert alpha_sigma(walk[-2])[1] < 0.05  # the last call sees an almost clean image
    if spacing == "uniform":
        every = levels(schedule, schedule.timesteps, "uniform")
        assert torch.equal(every[:-1], schedule.logsnrs.flip(0))
    # No two calls at what is the same trained level: the budget goes where the image is made.
    if steps == 20 and spacing != "karras":
        assert schedule.timestep(walk[:-1]).diff().abs().min() > 0.05


def test_mistakes_are_explained():
    with pytest.raises(SynthError, match="at least 1 step, got 0"):
        levels(Schedule.linear(), 0)
    with pytest.raises(SynthError, match="2 samples need as many generators, got 1"):
        noise_like(torch.zeros(2, 1), generators(0))
    with pytest.raises(SynthError, match="strictly rising"):
        next(dpmpp_2m(curved, start(), torch.tensor([1.0, 0.0])))


# --- Known regions ------------------------------------------------------------------------------


def mixing(x, _logsnr, _cond=None):
    """A denoiser that looks at its neighbours, so that the context matters."""
    return torch.tanh(sum(x.roll(1, axis) for axis in (2, 3, 4)))


def half() -> torch.Tensor:
    unknown = torch.zeros(1, 1, 3, 3, 3, dtype=torch.bool)
    unknown[..., :2] = True
    return unknown


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_region_comes_out_as_it_went_in(name):
    known = start(2).clamp(-1, 1)
    denoise = with_known(mixing, known, half(), noised(known, generators(5, 6)))
    *_, last = SAMPLERS[name](denoise, start(2), levels(Schedule.linear(), 5), generators(0, 1))
    assert torch.equal(last.x[~half().expand_as(known)], known[~half().expand_as(known)])


def test_wrapping_the_denoiser_equals_overwriting_x_at_every_step():
    """RePaint as written: replace the known part of x, take one DDIM step, again."""
    known, walk = start(), levels(Schedule.linear(), 8)
    denoise = with_known(mixing, known, half(), noised(known, generators(5)))
    *_, ours = ddim(denoise, start(), walk)
    x, view = start(), noised(known, generators(5))
    for i in range(8):
        x = torch.where(half(), x, view(walk[i : i + 1]))
        x = next(ddim(mixing, x, walk[i : i + 2])).x
    torch.testing.assert_close(ours.x[half().expand_as(x)], x[half().expand_as(x)])


def test_the_noised_context_has_the_stated_signal_and_noise():
    level = torch.tensor([-1.0])
    alpha, sigma = (float(v) for v in alpha_sigma(level))
    seen = noised(torch.full((1, 8, 16, 16, 16), 0.7), generators(0))(level)
    # 4096 draws a band: standard errors 1/64 of σ and 1/90 of σ; four of each.
    for band in seen[0]:
        assert float(band.mean()) == pytest.approx(0.7 * alpha, abs=4 * sigma / 64)
        assert float(band.std()) == pytest.approx(sigma, rel=4 / 90)
