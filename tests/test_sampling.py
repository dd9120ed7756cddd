"""Samplers against MONAI and diffusers, and a Gaussian whose every answer is known."""

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


def monai(kind: type, schedule: Schedule, **options):
    """A MONAI scheduler on float64 levels, to compare arithmetic instead of roundings."""
    other = kind(schedule.timesteps, prediction_type="sample", clip_sample=False, **options)
    abar = schedule.alphas_cumprod
    other.alphas_cumprod = abar
    other.alphas = torch.cat([abar[:1], abar[1:] / abar[:-1]])
    other.betas = 1 - other.alphas
    other.one = other.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return other


# --- Trajectories -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_ddpm_and_ddim_equal_monai_step_by_step(name):
    if name == "ddpm":
        schedule = Schedule.linear(50)
        other = monai(DDPMScheduler, schedule, variance_type="fixed_small")
        timesteps = torch.arange(49, -1, -1)
    else:
        schedule = Schedule.cosine(100)
        other = monai(DDIMScheduler, schedule)
        other.set_timesteps(20)
        # MONAI spreads its timesteps over 0 … 99 but steps back by 5 from each: make both agree.
        timesteps = other.timesteps = torch.arange(95, -1, -5)
    walk = torch.cat([schedule.logsnr(timesteps), torch.tensor([math.inf]).double()])
    # MONAI draws the noise of a whole batch at once; for one sample that is the same row.
    x, y, theirs = start(), start(), torch.Generator().manual_seed(5)
    for t, step in zip(timesteps, SAMPLERS[name](curved, x, walk, generators(5)), strict=True):
        x0 = curved(y, schedule.logsnr(t[None]))
        y, _ = other.step(x0, t, y, generator=theirs)
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
    ours = SAMPLERS["2m_sde" if sde else "2m"](curved, x, walk, generators(5))
    theirs = generators(5)
    for i, step in enumerate(ours):
        noise = noise_like(y, theirs) if sde and i < steps - 1 else torch.zeros_like(y)
        x0 = curved(y, walk[i : i + 1])
        y = other.step(x0, other.timesteps[i], y, variance_noise=noise).prev_sample
        torch.testing.assert_close(step.x, y, atol=1e-5, rtol=0)  # they work in float32


@pytest.mark.parametrize("spread", [0.3, 0.5, 0.7, 1.0])
def test_2m_hits_mean_and_variance_of_a_gaussian_in_20_steps(spread):
    mean = 0.4

    def exact(x, logsnr, _cond=None):
        alpha, sigma = coefficients(logsnr, x)
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    # The sampler is affine in x for a Gaussian: two points give its exact mean and spread.
    points = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1, 1)
    *_, last = dpmpp_2m(exact, points, levels(Schedule.linear(), 20, "logsnr"))
    at_zero, at_one = last.x.flatten().tolist()
    assert at_zero == pytest.approx(mean, rel=0.01)
    assert (at_one - at_zero) ** 2 == pytest.approx(spread**2, rel=0.01)


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


@pytest.mark.parametrize("sampler", [ddpm, dpmpp_2m_sde, ddim, dpmpp_2m])
def test_condition_reaches_the_denoiser(sampler):
    walk, cond = levels(Schedule.linear(), 3), torch.ones(1, 1, 3, 3, 3)
    sources = () if sampler in (ddim, dpmpp_2m) else (generators(0),)
    *_, last = sampler(lambda x, _, c: c.expand_as(x), start(), walk, *sources, cond=cond)
    assert torch.equal(last.x, torch.ones_like(last.x))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [Schedule.linear(), Schedule.cosine(250)])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_levels_rise_from_trained_noise_to_clean(schedule, spacing, steps):
    walk = levels(schedule, steps, spacing)
    assert len(walk) == steps + 1
    assert (walk.diff() > 0).all()
    assert walk[-1] == math.inf
    assert schedule.logsnrs[-1] <= walk[0] <= -9.9  # 0.7 % of the image's amplitude at most
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
    *_, ours = ddim(with_known(mixing, known, half(), noised(known, generators(5))), start(), walk)
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
