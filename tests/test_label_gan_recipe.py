"""The GANs in the one loop: resume, attached losses, an honest judgement."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from label_gan.config import PRESETS, Config
from label_gan.recipe import (
    Recipe,
    assemble,
    composition_error,
    gradient_difference,
    one_centred_penalty,
    relativistic_loss,
    standardise,
    zero_centred_penalty,
)
from label_gan.shape_model import fit, halve
from synth.base.config import from_dict, to_dict
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.data.case import discover
from synth.data.volume import Volume
from synth.metrics.distribution import mmd2
from synth.metrics.shape import DESCRIBED
from synth.training.config import TrainConfig
from synth.training.loop import train
from tests.conftest import LPS, onion
from tests.toy_recipe import assert_same, state

SMALL = {
    "ordered": Config(grid=16, latent=4, width=4, critic_width=4, sizes=16),
    "alpha": replace(
        PRESETS["alpha"], grid=8, latent=4, width=4, critic_width=4, code_width=8, crop_mm=30.0
    ),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases of onions of several sizes; the last has no tumour."""
    root = tmp_path_factory.mktemp("cohort")
    for k in range(6):
        case_id, labels = f"BraTS-GLI-{k:05d}-000", onion((9 - 0.5 * k, 6, 4 - 0.5 * k)) * (k < 5)
        volume = Volume(data=labels[None].astype(np.uint8), affine=LPS)
        volume.save(root / case_id / f"{case_id}-seg.nii.gz")
    return root


def batch_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return {"maps": torch.rand(4, 3, *[recipe.config.grid] * 3) - 0.5, "size": torch.rand(4, 6)}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("label_gan.shape_model.SAMPLES", 16)


class Killed(BaseException):
    pass


def run(cohort: Path, out: Path, kind: str, *, dies_after: int | None = None) -> None:
    """Train 20 steps of two batches of two, saving at 10; die when so many items were read."""
    torch.manual_seed(0)
    recipe, items, _ = assemble(SMALL[kind], discover(cohort), [], cache=out / "cache")
    count, item = itertools.count(), items.item

    def mortal(index: int, seed: int) -> dict:
        if next(count) == dies_after:
            raise Killed
        return item(index, seed)

    items.item = mortal
    describe = {"family": "label_gan", "preset": "tiny", "config": SMALL[kind]}
    settings = TrainConfig(
        steps=20, batch_size=2, accumulate=2, save_every=10, validate_every=0, decay="cosine",
        warmup_steps=3,
    )  # fmt: skip
    train(recipe, items, out, settings, describe=describe, device="cpu")


@pytest.mark.parametrize("kind", ["ordered", "alpha"])
def test_twenty_steps_equal_ten_and_ten(cohort: Path, tmp_path: Path, kind: str) -> None:
    run(cohort, tmp_path / "whole", kind)
    with pytest.raises(Killed):  # in step 13, after the save at 10
        run(cohort, tmp_path / "parts", kind, dies_after=13 * 4)
    assert state(tmp_path / "parts")["step"] == 10
    run(cohort, tmp_path / "parts", kind)
    whole = state(tmp_path / "whole")
    assert_same(whole, state(tmp_path / "parts"))
    players = {"generator", "critic"} | ({"code_critic"} if kind == "alpha" else set())
    assert set(whole["optimizers"]) == players
    published = checkpoint.load(tmp_path / "parts").model.state_dict()
    for key, value in published.items():  # the generator alone, averaged
        assert torch.equal(value, whole["ema"][f"generator.{key}"])


@pytest.mark.parametrize("kind", ["ordered", "alpha"])
def test_every_player_learns_in_its_turn_alone(kind: str) -> None:
    torch.manual_seed(0)
    recipe = Recipe(SMALL[kind])
    if kind == "ordered":  # its last layer begins at zero
        nn.init.normal_(recipe.model["generator"].last.weight, std=0.1)
    optimizers = recipe.optimizers()
    for name, loss in recipe.losses(batch_of(recipe)):
        before = {k: v.clone() for k, v in recipe.model.state_dict().items()}
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()
        moved = {
            k.split(".")[0]
            for k, v in recipe.model.named_parameters()
            if not torch.equal(v, before[k])
        }
        assert moved == (
            {"generator", "encoder"} & set(recipe.model) if name == "generator" else {name}
        )
    assert all(p.requires_grad for p in recipe.model.parameters())


@pytest.mark.parametrize(
    ("kind", "weight", "player"),
    [
        ("ordered", "obedience", "generator"),
        ("ordered", "penalty", "critic"),
        ("alpha", "reconstruction", "generator"),
        ("alpha", "gradient", "generator"),  # detached in the predecessor: it taught nothing
        ("alpha", "penalty", "critic"),
        ("alpha", "penalty", "code_critic"),
    ],
)
def test_each_term_changes_the_gradient(kind: str, weight: str, player: str) -> None:
    gradients = []
    for value in (0.0, 1.0):
        torch.manual_seed(0)
        recipe = Recipe(replace(SMALL[kind], **{weight: value}))
        for phase, (name, loss) in enumerate(recipe.losses(batch_of(recipe))):
            recipe.model.zero_grad()
            loss.backward()
            if name == player:
                own = recipe.model[player].parameters()
                gradients.append(torch.cat([p.grad.flatten() for p in own if p.grad is not None]))
            torch.manual_seed(phase)
    assert not torch.allclose(*gradients, rtol=1e-3, atol=1e-7)


def test_the_ordered_losses_keep_no_state() -> None:
    """For such losses two processes equal accumulating twice, which the loop's own tests show.

    The alpha-GAN's spectral norms have vectors that each forward pass moves, as the predecessor's.
    """
    recipe = Recipe(SMALL["ordered"])
    buffers = {k: v.clone() for k, v in recipe.model.named_buffers()}
    for _, loss in recipe.losses(batch_of(recipe)):
        loss.backward()
    assert all(torch.equal(v, buffers[k]) for k, v in recipe.model.named_buffers())


def test_penalties_in_closed_form() -> None:
    class Linear(nn.Module):
        def forward(self, maps, size):
            del size
            return 3 * maps.flatten(1).sum(1, keepdim=True), 2 * maps.flatten(1)

    maps, size = torch.rand(4, 3, 2, 2, 2), torch.rand(4, 6)
    # d/dx of 3 Σx + 2 Σx / √24 places
    expected = 24 * (3 + 2 / 24**0.5) ** 2
    assert float(zero_centred_penalty(Linear(), maps, size)) == pytest.approx(expected, rel=1e-5)
    slope = one_centred_penalty(lambda x: 2 * x.flatten(1).sum(1), maps, maps + 1)
    assert float(slope) == pytest.approx((2 * 24**0.5 - 1) ** 2, rel=1e-5)
    equal = (torch.zeros(4, 1), torch.zeros(4, 9))
    assert float(relativistic_loss(equal, equal)) == pytest.approx(2 * np.log(2))
    a, b = torch.rand(2, 3, 4, 4, 4), torch.rand(2, 3, 4, 4, 4)
    by_hand = sum(
        ((np.abs(np.diff(a.numpy(), axis=k)) - np.abs(np.diff(b.numpy(), axis=k))) ** 2).sum()
        for k in (2, 3, 4)
    )
    assert float(gradient_difference(a, b)) == pytest.approx(by_hand, rel=1e-5)


def test_the_composition_error_knows_the_shares() -> None:
    config = replace(SMALL["ordered"], reach=100.0)  # sharp surfaces
    depth = torch.arange(32.0)[None, None, None, :].expand(1, 32, 32, 32)
    maps = torch.stack([depth - 15.5, depth - 7.5, depth - 3.5], dim=1) / 100
    for share, error in ((0.5, 0.0), (0.9, 0.16)):
        size = torch.tensor([[0, 0.5, share, 1, 1, 1]])
        found = float(composition_error(maps, size, config))
        assert found == pytest.approx(error, abs=1e-3, rel=0.02)


def test_the_shape_model_is_regression_and_pca() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.normal(size=(400, 2))
    codes = rng.normal(size=(400, 3))
    axes = np.linalg.qr(rng.normal(size=(50, 3)))[0] * [5.0, 3.0, 1.0]
    slope, mean = rng.normal(size=(2, 50)), rng.normal(size=50)
    maps = mean + sizes @ slope + codes @ axes.T
    weight, bias = fit(*(torch.from_numpy(v).float() for v in (maps, sizes)), 3)
    # 400 samples know means and axes to one part in 20
    np.testing.assert_allclose(bias, mean, atol=0.3)
    np.testing.assert_allclose(weight[:, :2].numpy(), slope.T, atol=0.3)
    found = weight[:, 2:].numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), [5, 3, 1], rtol=0.15)
    own = found / np.linalg.norm(found, axis=0)
    np.testing.assert_allclose(np.abs((own * axes / [5, 3, 1]).sum(0)), 1, atol=0.02)


def test_halving_undoes_doubling() -> None:
    coarse = torch.rand(2, 3, 8, 8, 8)
    fine = nn.functional.interpolate(coarse, scale_factor=2, mode="trilinear")
    torch.testing.assert_close(halve(fine), coarse, rtol=0, atol=1e-5)


def test_validation_tells_lesions_from_noise(cohort: Path, tmp_path: Path) -> None:
    cases = discover(cohort)
    recipe, _, judged = assemble(SMALL["ordered"], cases, cases, cache=tmp_path)
    assert judged is not None
    batch = {k: v[None] for k, v in judged.item(0, 0).items()}
    scores = recipe.model.eval() and recipe.validate(batch)
    assert scores["empty"] < 0.5
    nn.init.normal_(recipe.model["generator"].last.weight, std=1.0)
    assert recipe.validate(batch)["mmd2"] > scores["mmd2"]
    assert set(recipe.preview(batch)) <= {f"drawn {k}" for k in range(4)}
    real = judged.features.numpy()
    assert real.shape == (5, len(DESCRIBED))
    a, b = standardise(real, real.copy())
    assert np.isfinite(a).all()
    assert mmd2(a, b) <= 0  # unbiased: of a sample and itself, below zero


def test_mistakes_of_a_cohort_are_named(cohort: Path, tmp_path: Path) -> None:
    cases = discover(cohort)
    with pytest.raises(SynthError, match="no tumour to learn from in 1 cases"):
        assemble(SMALL["ordered"], cases[-1:], [], cache=tmp_path)
    tight = replace(SMALL["alpha"], crop_mm=4.0)
    with pytest.raises(SynthError, match="no tumour to learn from"):
        assemble(tight, cases, [], cache=tmp_path)
    with pytest.raises(SynthError, match=r"label 3 is outside the scheme brats2021"):
        assemble(SMALL["ordered"], [cases[0].with_scheme("brats2021")], [], cache=tmp_path)
    with pytest.raises(SynthError, match="unknown label scheme 'brats2042'"):
        discover(cohort, scheme="brats2042")
    one, items, judged = assemble(SMALL["ordered"], cases[:1], cases[:1], cache=tmp_path)
    assert len(items) == 1
    assert judged is None, "a distance between sets needs two lesions"
    assert torch.isfinite(one.model["generator"].table).all()
    for bad in ({"grid": 20}, {"channels": 2}):
        with pytest.raises(SynthError, match=next(iter(bad))):
            Config(**bad)


def test_presets_survive_json() -> None:
    assert all(from_dict(Config, to_dict(c)) == c for c in PRESETS.values())
