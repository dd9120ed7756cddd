"""Noise levels and conversions against MONAI's schedules and against each other."""

import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from synth.base.errors import SynthError
from synth.diffusion.schedule import Schedule, alpha_sigma, denoiser, q_sample, target, to_x0

KINDS = ["x0", "eps", "v", "flow"]
close = torch.testing.assert_close


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Schedule.linear(1000), {"schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 2e-2}),
        (Schedule.linear(250), {"schedule": "linear_beta", "beta_start": 4e-4, "beta_end": 8e-2}),
        (Schedule.cosine(250), {"schedule": "cosine"}),
    ],
)
def test_schedules_equal_monai(ours, theirs):
    other = DDPMScheduler(num_train_timesteps=ours.timesteps, **theirs)
    # MONAI multiplies up to 1000 factors in float32: 1000 roundings of 6e-8.
    close(ours.alphas_cumprod.float(), other.alphas_cumprod, atol=2e-5, rtol=0)


@pytest.mark.parametrize("schedule", [Schedule.linear(), Schedule.cosine(250), Schedule.flow()])
def test_timestep_and_logsnr_are_inverse(schedule):
    t = torch.linspace(0, schedule.timesteps - 1, 3001, dtype=torch.float64)
    close(schedule.timestep(schedule.logsnr(t)), t, atol=1e-9, rtol=0)
    whole = torch.arange(schedule.timesteps)
    alpha, _ = alpha_sigma(schedule.logsnr(whole))
    close(alpha**2, schedule.alphas_cumprod, atol=1e-14, rtol=1e-12)
    ends = schedule.timestep(torch.tensor([math.inf, 50.0, -50.0, -math.inf]))
    last = schedule.timesteps - 1
    assert ends.tolist() == [0, 0, last, last]  # levels beyond training are its ends


def test_impossible_schedules_are_refused():
    for betas in ([0.1], [0.1, 1.0], [0.1, 0.0]):
        with pytest.raises(SynthError):
            Schedule.from_betas(torch.tensor(betas))
    with pytest.raises(SynthError, match="more than 20 timesteps, got 20"):
        Schedule.linear(20)


def test_q_sample_and_velocity_equal_monai():
    schedule, other = Schedule.linear(), DDPMScheduler(beta_start=1e-4, beta_end=2e-2)
    x0, eps, t = noise(4, 2, 3, 3, 3), noise(4, 2, 3, 3, 3, seed=1), torch.tensor([0, 10, 500, 999])
    logsnr = schedule.logsnr(t)  # the tolerance is MONAI's float32 ᾱ
    close(q_sample(x0, eps, logsnr), other.add_noise(x0, eps, t), atol=5e-5, rtol=0)
    close(target(x0, eps, logsnr, "v"), other.get_velocity(x0, eps, t), atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_recover_the_image_and_are_finite_at_both_ends(kind):
    x0, eps = noise(5, 2, 3, 4, 5), noise(5, 2, 3, 4, 5, seed=1)
    logsnr = torch.tensor([-12.0, -3.0, 0.0, 3.0, 12.0], dtype=torch.float64)
    x_t = q_sample(x0, eps, logsnr)
    # Dividing by α = e^-6 costs a factor of 400 on 1e-16.
    close(to_x0(target(x0, eps, logsnr, kind), x_t, logsnr, kind), x0, atol=1e-12, rtol=0)
    ends = torch.tensor([math.inf, -math.inf])
    x0, eps = x0[:2], eps[:2]
    x_t = q_sample(x0, eps, ends)
    assert torch.equal(x_t, torch.stack([x0[0], eps[1]]))
    output = target(x0, eps, ends, kind).clone().requires_grad_()
    image = to_x0(output, x_t, ends, kind)
    assert torch.equal(image[0], x0[0])  # clean: the image is there to see
    (gradient,) = torch.autograd.grad(image.sum(), output)
    assert bool(image.isfinite().all() and gradient.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_tells_the_network_the_true_timestep(kind):
    schedule = Schedule.cosine(250)
    x0, eps = noise(3, 2, 2, 2, 2), noise(3, 2, 2, 2, 2, seed=1)
    t = torch.tensor([3.0, 100.25, 240.0])
    logsnr = schedule.logsnr(t)
    calls = []

    def perfect(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        calls.append((x.shape[1], timestep))
        return target(x0, eps, logsnr, kind)

    denoise = denoiser(perfect, schedule, kind)
    answer = denoise(q_sample(x0, eps, logsnr), logsnr, torch.zeros(3, 1, 2, 2, 2))
    close(answer, x0, atol=1e-10, rtol=0)
    assert calls[0][0] == 3  # two noisy channels, one of condition
    close(calls[0][1], t, atol=1e-5, rtol=0)  # float32


def test_flow_is_the_straight_line_of_rectified_flow():
    """y = (1 - s) x0 + s ε, dy/ds = ε - x0: Euler along it is what DDIM does with our x_t."""
    schedule = Schedule.flow(10)
    x0, eps = noise(10, 1, 2, 2, 2), noise(10, 1, 2, 2, 2, seed=1)
    s = ((torch.arange(10, dtype=torch.float64) + 0.5) / 10).view(-1, 1, 1, 1, 1)
    logsnr = schedule.logsnr(torch.arange(10))
    alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in alpha_sigma(logsnr))
    x_t = q_sample(x0, eps, logsnr)
    straight = (1 - s) * x0 + s * eps
    close(x_t / (alpha + sigma), straight)
    guess = noise(10, 1, 2, 2, 2, seed=2)  # whatever a network answers
    found = to_x0(guess, x_t, logsnr, "flow")
    later = 0.4 * s
    ddim = (1 - later) * found + later * (x_t - alpha * found) / sigma
    close(ddim, straight + (later - s) * guess)
