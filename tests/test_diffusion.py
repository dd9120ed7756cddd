"""Noise levels and conversions against MONAI's schedules and against each other."""

import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from synth.base.errors import SynthError
from synth.diffusion.schedule import (
    Schedule,
    alpha_sigma,
    clamped,
    denoiser,
    q_sample,
    target,
    to_eps,
    to_x0,
)

KINDS = ["x0", "eps", "v", "flow"]


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
    torch.testing.assert_close(ours.alphas_cumprod.float(), other.alphas_cumprod, atol=2e-5, rtol=0)


def test_schedules_have_the_published_values():
    abar = Schedule.linear(1000).alphas_cumprod[[0, 250, 500, 750, 999]]
    published = torch.tensor([0.9999, 0.5214, 0.0778, 0.0033, 4.0e-5], dtype=torch.float64)
    torch.testing.assert_close(abar, published, atol=5e-5, rtol=0)
    cosine = Schedule.cosine(250).alphas_cumprod
    assert cosine[0].item() == pytest.approx(0.99981, abs=1e-5)
    assert cosine[-1].item() == pytest.approx(3.9e-8, rel=0.02)


@pytest.mark.parametrize(
    "schedule", [Schedule.linear(), Schedule.cosine(), Schedule.cosine(250), Schedule.flow()]
)
def test_timestep_and_logsnr_are_inverse(schedule):
    t = torch.linspace(0, schedule.timesteps - 1, 3001, dtype=torch.float64)
    torch.testing.assert_close(schedule.timestep(schedule.logsnr(t)), t, atol=1e-9, rtol=0)
    whole = torch.arange(schedule.timesteps)
    torch.testing.assert_close(schedule.logsnr(whole), schedule.logsnrs, atol=0, rtol=0)
    alpha, _ = alpha_sigma(schedule.logsnr(whole))
    torch.testing.assert_close(alpha**2, schedule.alphas_cumprod, atol=1e-14, rtol=1e-12)


def test_levels_beyond_training_are_its_ends():
    schedule = Schedule.linear()
    ends = schedule.timestep(torch.tensor([math.inf, 50.0, -50.0, -math.inf]))
    assert ends.tolist() == [0, 0, 999, 999]


@pytest.mark.parametrize("betas", [[0.1], [0.1, 1.0], [0.1, 0.0]])
def test_impossible_schedules_are_refused(betas):
    with pytest.raises(SynthError):
        Schedule.from_betas(torch.tensor(betas))


def test_linear_schedule_needs_more_than_twenty_timesteps():
    with pytest.raises(SynthError, match="more than 20 timesteps, got 20"):
        Schedule.linear(20)


def test_q_sample_equals_monai():
    schedule, other = Schedule.linear(), DDPMScheduler(beta_start=1e-4, beta_end=2e-2)
    x0, eps, t = noise(4, 2, 3, 3, 3), noise(4, 2, 3, 3, 3, seed=1), torch.tensor([0, 10, 500, 999])
    theirs = other.add_noise(x0, eps, t)
    ours = q_sample(x0, eps, schedule.logsnr(t))
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)  # MONAI's float32 ᾱ
    theirs = other.get_velocity(x0, eps, t)
    torch.testing.assert_close(target(x0, eps, schedule.logsnr(t), "v"), theirs, atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_recover_image_and_noise(kind):
    x0, eps = noise(5, 2, 3, 4, 5), noise(5, 2, 3, 4, 5, seed=1)
    logsnr = torch.tensor([-12.0, -3.0, 0.0, 3.0, 12.0], dtype=torch.float64)
    x_t = q_sample(x0, eps, logsnr)
    output = target(x0, eps, logsnr, kind)
    # Dividing by α = σ = e^-6 costs a factor of 400 on 1e-16.
    torch.testing.assert_close(to_x0(output, x_t, logsnr, kind), x0, atol=1e-12, rtol=0)
    torch.testing.assert_close(to_eps(output, x_t, logsnr, kind), eps, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_are_finite_with_gradients(kind):
    x0, eps = noise(2, 1, 2, 2, 2), noise(2, 1, 2, 2, 2, seed=1)
    ends = torch.tensor([math.inf, -math.inf])
    x_t = q_sample(x0, eps, ends)
    assert torch.equal(x_t, torch.stack([x0[0], eps[1]]))
    output = target(x0, eps, ends, kind).clone().requires_grad_()
    image, guess = to_x0(output, x_t, ends, kind), to_eps(output, x_t, ends, kind)
    assert torch.equal(image[0], x0[0])  # clean: the image is there to see
    assert torch.equal(guess[1], eps[1])  # noise: the noise is
    (gradient,) = torch.autograd.grad((image + guess).sum(), output)
    assert all(bool(part.isfinite().all()) for part in (image, guess, gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_tells_the_network_the_true_timestep(kind):
    schedule = Schedule.cosine(250)
    x0, eps = noise(3, 2, 2, 2, 2), noise(3, 2, 2, 2, 2, seed=1)
    t = torch.tensor([3.0, 100.25, 240.0])
    told = []

    def perfect(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        told.append((x.shape[1], timestep))
        return target(x0, eps, schedule.logsnr(t), kind)

    logsnr = schedule.logsnr(t)
    denoise = denoiser(perfect, schedule, kind)
    answer = denoise(q_sample(x0, eps, logsnr), logsnr, torch.zeros(3, 1, 2, 2, 2))
    torch.testing.assert_close(answer, x0, atol=1e-10, rtol=0)
    assert told[0][0] == 3  # two noisy channels, one of condition
    torch.testing.assert_close(told[0][1], t, atol=1e-5, rtol=0)  # float32


def test_flow_is_the_straight_line_of_rectified_flow():
    """y = (1 - s) x0 + s ε, dy/ds = ε - x0: Euler along it is what DDIM does with our x_t."""
    schedule = Schedule.flow(10)
    x0, eps = noise(10, 1, 2, 2, 2), noise(10, 1, 2, 2, 2, seed=1)
    s = ((torch.arange(10, dtype=torch.float64) + 0.5) / 10).view(-1, 1, 1, 1, 1)
    logsnr = schedule.logsnr(torch.arange(10))
    alpha, sigma = (v.view(-1, 1, 1, 1, 1) for v in alpha_sigma(logsnr))
    straight = (1 - s) * x0 + s * eps
    torch.testing.assert_close(q_sample(x0, eps, logsnr) / (alpha + sigma), straight)
    guess = noise(10, 1, 2, 2, 2, seed=2)  # whatever a network answers
    ours_x0 = to_x0(guess, q_sample(x0, eps, logsnr), logsnr, "flow")
    ours_eps = to_eps(guess, q_sample(x0, eps, logsnr), logsnr, "flow")
    later = 0.4 * s
    euler = straight + (later - s) * guess
    torch.testing.assert_close((1 - later) * ours_x0 + later * ours_eps, euler)


def test_clamped_keeps_the_answer_between_bounds():
    answer = clamped(lambda x, _logsnr, _cond=None: 3 * x)(
        torch.tensor([-1.0, 0.1, 1]), torch.zeros(1)
    )
    torch.testing.assert_close(answer, torch.tensor([-1.0, 0.3, 1]))
