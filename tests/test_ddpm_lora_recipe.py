"""The recipe asks for the right thing, learns it, and trains through the real command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from ddpm_lora.assemble import assemble
from ddpm_lora.conditioning import planes_of, unlabelled
from ddpm_lora.config import Config
from ddpm_lora.data import SynthesisData
from ddpm_lora.network import build, denoiser, schedule_of
from ddpm_lora.recipe import LEAST_NOISE, Recipe, head_of, measure
from ddpm_lora.state_space import space_of
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.cli import main
from synth.data.case import MODALITIES, discover
from synth.diffusion.sampling import levels
from synth.diffusion.schedule import coefficients, q_sample, target
from tests.conftest import write_case

SMALL = Config(
    width=8, groups=4, multipliers=(1, 2), blocks_per_level=1, crop=(20, 24, 16), lr=3e-3,
    augment=False, timesteps=100,
)  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(1, 5):
        write_case(folder, f"BraTS-GLI-{number:05d}-000", seed=number)
    return folder


def recipe_of(config: Config, data: SynthesisData) -> Recipe:
    torch.manual_seed(0)
    network = build(config)
    if config.space == "wavelet":
        measure(network, data)
    return Recipe(config, network)


class Knowing(nn.Module):
    """Answers what the objective asks for, plus a known error."""

    def __init__(self, recipe: Recipe, clean: torch.Tensor, off: float) -> None:
        super().__init__()
        self.recipe, self.clean, self.off = recipe, clean, off
        for name, buffer in recipe.network.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        logsnr = self.recipe.schedule.logsnr(t)
        x_t = x[:, : self.clean.shape[1]]
        alpha, sigma = (
            level.float().sqrt().view(-1, 1, 1, 1, 1)
            for level in (logsnr.sigmoid(), (-logsnr).sigmoid())
        )
        noise = (x_t - alpha * self.clean) / sigma
        return target(self.clean, noise, logsnr, self.recipe.config.objective) + self.off


@pytest.mark.parametrize("objective", ["eps", "v", "flow"])
@pytest.mark.parametrize("space", ["wavelet", "pixel"])
def test_a_perfect_answer_costs_nothing_and_a_known_error_its_size(
    cohort: Path, space: str, objective: str
) -> None:
    config = replace(SMALL, space=space, objective=objective, image_weight=2.0)
    data = SynthesisData(discover(cohort), config)
    batch = default_collate([data.item(0, 0), data.item(1, 0)])
    recipe = recipe_of(config, data)
    if space == "wavelet":  # the head's edge, on a scale of its own, makes no unit error
        edge, spread = map(recipe.network.get_buffer, ("edge_spread", "band_spread"))
        edge.copy_(spread)
    clean = recipe.space.state(batch["image"], head_of(batch))
    for off in (0.0, 0.5):
        recipe.network = Knowing(recipe, clean, off)
        torch.manual_seed(3)
        ((name, loss),) = recipe.losses(batch)
        parts = 3.0 if space == "wavelet" else 1.0
        assert name == "model"
        # float32: noise recovered at high log-SNR loses three digits
        assert float(loss) == pytest.approx(parts * off**2, abs=1e-3, rel=1e-2)
    recipe.network = Knowing(recipe, clean[:1], 0.0)
    found = recipe.validate({k: v[:1] for k, v in batch.items()})
    assert set(found) == {"loss", "rmse_NCR", "rmse_ED", "rmse_ET", "rmse_brain"}
    if space == "wavelet":  # a pixel model's ceiling and float16 cut a little off
        assert max(found.values()) < 1e-3


def test_a_clean_image_is_judged_as_its_velocity(cohort: Path) -> None:
    data = SynthesisData(discover(cohort), SMALL)
    asked = {kind: recipe_of(replace(SMALL, objective=kind), data) for kind in ("x0", "v")}
    clean, noise, guess = torch.randn(3, 1, 32, 4, 4, 4).unbind()
    for level, kept in ((-3.0, True), (2.0, True), (6.0, False)):
        logsnr = torch.full((1,), level)
        x_t, (alpha, sigma) = q_sample(clean, noise, logsnr), coefficients(logsnr, clean)
        velocity = (alpha * x_t - guess) / sigma
        of_image = asked["x0"].error(guess, clean, noise, logsnr)
        of_velocity = asked["v"].error(velocity, clean, noise, logsnr)
        if kept:
            torch.testing.assert_close(of_image, -of_velocity)
        else:  # nearly no noise: the error of the image, times a bounded number
            torch.testing.assert_close(of_image, (guess - clean) / LEAST_NOISE)


@pytest.mark.parametrize("objective", ["x0", "eps", "v", "flow"])
def test_a_perfect_network_denoises_to_the_scans(cohort: Path, objective: str) -> None:
    config = replace(SMALL, objective=objective)
    data = SynthesisData(discover(cohort), config)
    batch = default_collate([data.item(0, 0)])
    recipe = recipe_of(config, data)
    head, planes = head_of(batch), planes_of(batch["classes"])
    clean = recipe.space.state(batch["image"], head)
    knowing = Knowing(recipe, clean, 0.0)
    denoise = denoiser(knowing, config, planes, guidance=1.5)
    for level in levels(schedule_of(config), 5)[:-1]:
        logsnr = level.view(1)
        x_t = q_sample(clean, torch.randn_like(clean), logsnr)
        image = space_of(config, knowing).image(denoise(x_t, logsnr), head)
        # at λ = -10, α = 0.007 lifts float32's rounding of x_t two hundredfold
        torch.testing.assert_close(image, batch["image"], atol=2e-4, rtol=0)


class Seeing(nn.Module):
    """Answers the mean of the first condition channel everywhere: what guidance mixes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x[:, self.channels :].mean() * torch.ones_like(x[:, : self.channels])


def test_guidance_goes_on_from_hidden_to_shown() -> None:
    config = replace(SMALL, space="pixel", objective="flow", ceiling=100.0)
    planes = planes_of(torch.ones(1, 4, 4, 4))
    planes[:, :, 0] = 0
    planes[:, 0, 1] = 7.0  # so that hidden and shown differ
    network, x, logsnr = Seeing(4), torch.zeros(1, 4, 4, 4, 4), torch.zeros(1)
    shown, hidden = (
        denoiser(network, config, p)(x, logsnr) for p in (-planes, -unlabelled(planes))
    )
    assert float(hidden.mean()) == pytest.approx(float(shown.mean()))  # the mean does not see it
    network.forward = lambda x, t: -x[:, 4:5].mean() * torch.ones_like(x[:, :4])  # ty: ignore
    shown, hidden = (denoiser(network, config, p)(x, logsnr) for p in (planes, unlabelled(planes)))
    for scale in (0.0, 1.0, 3.0):
        guided = denoiser(network, config, planes, guidance=scale)(x, logsnr)
        torch.testing.assert_close(guided, hidden + scale * (shown - hidden))
    with pytest.raises(SynthError, match="never trained without labels"):
        denoiser(network, replace(config, label_drop=0), planes, guidance=2)


# Shares of the first loss and of the first error in the brain that fifty steps of a network of
# 30,000 weights leave: x0 0.11 and 0.33, v 0.75 and 0.70, flow 0.65 and 0.80. The last two must
# also predict noise, which so few weights cannot: 120 steps bring them no further.
@pytest.mark.parametrize(
    ("objective", "loss_left", "error_left"),
    [("x0", 0.15, 0.4), ("v", 0.78, 0.74), ("flow", 0.68, 0.84)],
)
def test_one_case_is_learned_by_heart(
    cohort: Path, objective: str, loss_left: float, error_left: float
) -> None:
    config = replace(SMALL, objective=objective, label_drop=0.0, brain_drop=0.0)
    data = SynthesisData(discover(cohort), config)
    batch = default_collate([data.item(0, 0)])
    recipe = recipe_of(config, data)
    optimizer = recipe.optimizers()["model"]
    before = recipe.validate(batch)
    for step in range(50):
        torch.manual_seed(step)
        ((_, loss),) = recipe.losses(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = recipe.validate(batch)
    assert after["loss"] < loss_left * before["loss"]
    assert after["rmse_brain"] < error_left * before["rmse_brain"]


def words(cohort: Path, out: Path, steps: int, *more: str) -> list[str]:
    text = (
        f"train ddpm_lora --data {cohort} -o {out} --steps {steps} --batch-size 2 --spacing-mm 1 "
        "--crop 20 24 16 --width 8 --groups 4 --multipliers 1 2 --blocks-per-level 1 "
        "--timesteps 100 --validate-every 3 --save-every 3 --preview-every 3 --log-every 1 "
        "--decay constant"
    )
    return [*text.split(), *more]


def test_training_by_command_resumes_bit_for_bit(cohort: Path, tmp_path: Path) -> None:
    assert main(words(cohort, tmp_path / "once", 6)) == 0
    assert main(words(cohort, tmp_path / "twice", 3)) == 0
    assert main(words(cohort, tmp_path / "twice", 6)) == 0
    a, b = (checkpoint.load(tmp_path / run / "last") for run in ("once", "twice"))
    weights = a.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in b.model.state_dict().items())
    lines = (tmp_path / "twice" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert "validation/rmse_ET" in json.loads(lines[-1])
    # The statistics travel with the weights, and the site's intensities with the facts.
    assert float(weights["band_spread"].min()) > 0
    assert not np.allclose(weights["band_spread"], 1)
    assert set(a.metadata["intensities"]) == set(MODALITIES)


def test_preview_shows_four_contrasts_and_the_real_ones(cohort: Path, tmp_path: Path) -> None:
    cases = discover(cohort)
    recipe, items, validation = assemble(SMALL, cases[:3], cases[3:], cache=tmp_path)
    assert validation is not None
    batch = default_collate([validation.item(0, 0)])
    shown = recipe.preview(batch)
    assert set(shown) == {f"{m} {kind}" for m in MODALITIES for kind in ("made", "real")}
    assert np.array_equal(shown["t2w real"].data[0], batch["image"][0, 2].numpy())
    outside = batch["classes"][0].numpy() == 0
    assert (shown["t1c made"].data[0][outside] == -1).all()
    assert len(items) == 3
