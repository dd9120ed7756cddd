"""The network meets in sampling what it met in training: the same inputs at the same noise level.

A stub in place of the network records what it is shown and answers with the truth, so that samplers
follow the forward process exactly. Then every input channel must have the same mean and spread at
each level. The predecessor's mistakes, put back one by one, are caught.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synth.base.errors import SynthError
from synth.checkpoints.checkpoint import Checkpoint
from synth.diffusion.wavelet import any_in_block, idwt3
from tests.conftest import ball, brain
from wdm3d import modes
from wdm3d.config import Config, SamplerOptions
from wdm3d.data import item_of
from wdm3d.generate import Painter
from wdm3d.modes import AlwaysKnownHealthy, Context, Default, low_scale, mode_of
from wdm3d.recipe import Recipe
from wdm3d.scene import Scene, brain_frame

MODES = ("default", "always_known_healthy", "context")
SHAPE = (40, 40, 40)
LEVELS = (930, 700, 450, 200, 60)


def config_of(mode: str, wavelet_levels: int = 1) -> Config:
    return Config(
        mode=mode,
        crop=32,
        width=8,
        groups=4,
        multipliers=(1, 2),
        spacing_mm=2.8,
        wavelet_levels=wavelet_levels,
    )


def scene_and_roi() -> tuple[Scene, np.ndarray]:
    image = brain(SHAPE)
    scaled = (image / 400 - 1)[None].astype(np.float32).clip(max=1)
    roi = ball(SHAPE, (14, 21, 19), 6)
    centre, reach = brain_frame(image > 0)
    hole = roi | ball(SHAPE, (29, 22, 19), 3)
    return Scene(image=scaled, hole=hole, axis_sum=39, centre=centre, reach=reach), roi


class Oracle(nn.Module):
    """Answers with the truth and remembers what it was asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.right_answer = answer
        self.seen: list[tuple[float, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen += [(float(level), item) for level, item in zip(t, x, strict=True)]
        return self.right_answer.expand(len(x), -1, -1, -1, -1) + 0 * self.anchor


def inputs_in_training(config: Config, t: float, count: int = 24) -> Tensor:
    scene, roi = scene_and_roi()
    batch = one_batch(config, scene, roi)
    recipe = Recipe(config)
    recipe.model = Oracle(answer_of(config, batch))
    recipe.times = lambda n: torch.full((n,), t)  # ty: ignore[invalid-assignment]
    for seed in range(count):
        torch.manual_seed(seed)
        list(recipe.losses(batch))
    return torch.stack([x for _, x in recipe.model.seen])


def one_batch(config: Config, scene: Scene, roi: np.ndarray) -> dict[str, Tensor]:
    arrays = item_of(scene, roi, config, None)
    return {k: torch.from_numpy(v)[None] for k, v in arrays.items()}


def answer_of(config: Config, batch: dict[str, Tensor]) -> Tensor:
    """What a perfect network would say: the residual, or the whole image's bands."""
    if config.mode == "context":
        return mode_of(config).state(batch["truth"], batch)
    return modes.analyse(batch["truth"], config) * low_scale(config, batch["truth"])


def inputs_in_sampling(
    config: Config, t: float, sampler: str, count: int = 24, mode: modes.Mode | None = None
) -> Tensor:
    """Run the real painter with three levels, the middle one t: what the network saw at t."""
    scene, roi = scene_and_roi()
    oracle = Oracle(answer_of(config, one_batch(config, scene, roi)))
    loaded = Checkpoint(
        path=Path("x"), family="wdm3d", preset="", config=config, metadata={}, model=oracle
    )
    plan = SamplerOptions(
        estimate="sample", samples=count, steps=3, sampler=sampler, spacing="uniform"
    )
    painter = Painter(loaded, plan, 0, "case")
    painter.mode = mode or painter.mode
    schedule = painter.schedule
    walk = schedule.logsnr(torch.tensor([999.0, t, 0.0], dtype=torch.float64))
    painter.walk = lambda: torch.cat([walk, torch.tensor([torch.inf], dtype=torch.float64)])
    box = tuple(slice(s.start, s.start + 32) for s in painter.box_of(roi))
    painter.draw_box(scene, roi, box)
    seen = [x for level, x in oracle.seen if abs(level - t) < 0.01]
    assert len(seen) == count
    return torch.stack(seen)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference in any channel's mean or spread, inside the hole or outside."""
    scene, roi = scene_and_roi()
    inside = any_in_block(one_batch(config_of("default"), scene, roi)["roi"] > 0)[0, 0]
    worst = 0.0
    for where in (inside, ~inside):
        p, q = (x[:, :, where].transpose(0, 1).flatten(1) for x in (a, b))  # (channels, voxels)
        worst = max(
            worst,
            float((p.mean(1) - q.mean(1)).abs().max()),
            float((p.std(1) - q.std(1)).abs().max()),
        )
    return worst


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("mode", MODES)
def test_training_and_sampling_show_the_network_the_same(mode: str, sampler: str) -> None:
    config = config_of(mode)
    for t in LEVELS:
        a, b = inputs_in_training(config, t), inputs_in_sampling(config, t, sampler)
        assert a.shape == b.shape
        # 24 draws of 170 blocks in the hole: a standard error of 0.016, and 16 channels to look at.
        assert difference(a, b) < 0.08, t
        if mode != "default":  # what is given besides x_t is given exactly
            assert torch.allclose(a[:, 8:], b[:, 8:], atol=1e-6)


class KnownAtFullAmplitude(AlwaysKnownHealthy):
    """Mistake (a): trained with known tissue times sqrt(ᾱ), sampled with it at full amplitude."""

    def inputs(self, x_t: Tensor, alpha: Tensor, batch: modes.Batch) -> Tensor:
        clean = AlwaysKnownHealthy(replace(self.config, known="clean"))
        return clean.inputs(x_t, alpha, batch)


class NoiseDivided(AlwaysKnownHealthy):
    """Mistake (b): the noise's low band is divided by three together with the signal's."""

    def confine(self, bands: Tensor, batch: modes.Batch) -> Tensor:
        return super().confine(bands * low_scale(self.config, bands), batch)


class NoiseDividedEverywhere(Default):
    """Mistake (c): the same, in default mode."""

    def confine(self, bands: Tensor, batch: modes.Batch) -> Tensor:
        del batch
        return bands * low_scale(self.config, bands)


class FillsFromTheTruth(Context):
    """A mistake of one's own: the fills of training look below the mask."""

    def inputs(self, x_t: Tensor, alpha: Tensor, batch: modes.Batch) -> Tensor:
        peeking = batch | {"known": batch["known"] * 0.5}
        return super().inputs(x_t, alpha, peeking)


@pytest.mark.parametrize(
    ("config", "mistaken"),
    [
        (replace(config_of("always_known_healthy"), known="scaled"), KnownAtFullAmplitude),
        (config_of("always_known_healthy"), NoiseDivided),
        (config_of("default"), NoiseDividedEverywhere),
        (config_of("context"), FillsFromTheTruth),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_mistakes_put_back_are_caught(config: Config, mistaken: Callable[..., modes.Mode]) -> None:
    worst = max(
        difference(
            inputs_in_training(config, t),
            inputs_in_sampling(config, t, "ddim", mode=mistaken(config)),
        )
        for t in LEVELS
    )  # fmt: skip
    assert worst > 0.3


@pytest.mark.parametrize("wavelet_levels", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_states_and_images_translate_both_ways(mode: str, wavelet_levels: int) -> None:
    config = config_of(mode, wavelet_levels)
    scene, roi = scene_and_roi()
    batch = one_batch(config, scene, roi)
    strategy = mode_of(config)
    truth = batch["truth"].clamp(-1, 1)
    state = strategy.state(truth, batch)
    inside = (batch["roi"] > 0).expand_as(truth)
    image = strategy.image(state, batch)
    assert torch.allclose(image[inside], truth[inside], atol=1e-5)
    assert torch.allclose(strategy.confine(state, batch), state, atol=1e-5)
    if mode != "default":
        assert torch.equal(image[~inside], batch["known"][~inside])


def test_noise_lives_inside_the_hole_with_unit_variance() -> None:
    scene, roi = scene_and_roi()
    config = config_of("context")
    batch = one_batch(config, scene, roi)
    noise = mode_of(config).confine(torch.randn(1, 8, 16, 16, 16), batch)
    voxels = idwt3(noise)
    assert voxels[batch["roi"] == 0].abs().max() < 1e-5
    assert float(voxels[batch["roi"] > 0].std()) == pytest.approx(1, abs=0.08)


def test_a_model_of_no_contrast_is_refused() -> None:
    with pytest.raises(SynthError, match="modalities is empty"):
        Config(modalities=())
