"""Guided inpainting: a template and the mirror image lead; nothing outside the mask changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from synth.base.errors import SynthError
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.brain import find_brain
from synth.data.cache import ArrayCache
from synth.data.fill import BASELINES
from synth.data.heads import ORIGIN_MM, template
from synth.data.prepare import HIGH_PERCENTILE
from synth.data.volume import Volume
from wdm3d import generate
from wdm3d.config import PRESETS, SamplerOptions
from wdm3d.generate import inpaint
from wdm3d.guided_data import GuidedData
from wdm3d.guides import ALIKE, FILLS, Guides, guides_of, to_rim
from wdm3d.modes import mode_of
from wdm3d.network import build
from wdm3d.recipe import Recipe
from wdm3d.scene import view
from wdm3d.texture import add_grain, borrow_detail

COARSE = replace(PRESETS["heads"], spacing_mm=4.0, crop=16, width=16, multipliers=(1, 1), holes=3)


@pytest.fixture(scope="module")
def brain() -> Volume:
    """MNI152 at 4 mm, bent a little and darker to one side: not the template itself."""
    t1 = template().t1[2:170, 4:208, 2:170]
    bent = ndimage.affine_transform(t1, np.diag([1.04, 0.97, 1.03]), (-4, 3, -2), order=1)
    small = bent.reshape(42, 4, 51, 4, 42, 4).mean(axis=(1, 3, 5))
    slope = np.linspace(0.9, 1.1, 51)[None, :, None]
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = np.array(ORIGIN_MM) + 8
    return Volume(data=(np.where(small > 0.1, small, 0) * slope * 700)[None].astype(np.float32),
                  affine=affine)  # fmt: skip


@pytest.fixture(scope="module")
def hole(brain: Volume) -> Volume:
    mask = np.zeros(brain.shape, bool)
    mask[26:33, 20:28, 22:29] = True
    return brain.with_data(mask)


def untrained() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(
        model=build(COARSE).eval(), family="wdm3d", preset="heads", config=COARSE, metadata={},
        path=None,
    )  # fmt: skip


def test_an_untrained_network_answers_the_mean_of_three_fills(brain: Volume, hole: Volume) -> None:
    image = brain.data / 1000
    guides = guides_of(image, hole.data[0], 4.0)
    box = (slice(18, 34), slice(16, 32), slice(18, 34))
    region = hole.data[0]
    fills = guides.fills(region, box)
    assert list(fills)[:4] == list(FILLS)
    inside = region[box]
    for name in FILLS:
        assert (fills[name][0][~inside] == image[0][box][~inside]).all(), name
    from wdm3d.scene import Scene

    scene = Scene(image=2 * image - 1, hole=region, axis_sum=0, centre=np.zeros(3),
                  reach=np.ones(3), guides=guides)  # fmt: skip
    arrays = view(scene, region, box, COARSE)
    batch = {k: torch.from_numpy(v)[None] for k, v in arrays.items()}
    mode = mode_of(COARSE)
    state = torch.zeros_like(mode.state(batch["known"], batch))
    network = build(COARSE)
    seen = mode.inputs(state, torch.ones(1), batch)
    answer = mode.image(network(seen, torch.tensor([999.0])), batch)[0, 0].detach().numpy()
    wanted = np.mean([fills[n][0] for n in ("template", "mirror", "biharmonic")], axis=0)
    np.testing.assert_allclose(answer, 2 * wanted - 1, atol=1e-4)


def test_guides_beat_every_classical_fill(brain: Volume, hole: Volume) -> None:
    truth = brain.data[0]
    inside = hole.data[0]
    filled = inpaint(brain, hole, model=untrained()).image.data[0]
    error = np.square(filled - truth)[inside].mean()
    voided = np.where(inside, 0, truth).astype(np.float32)
    for name, fill in BASELINES.items():
        assert error < np.square(fill(voided, inside) - truth)[inside].mean(), name
    assert (filled[~inside] == truth[~inside]).all()


@pytest.mark.parametrize("change", [lambda a: a - 400, lambda a: np.where(a > 0, 900 - a, 0)],
                         ids=["negative", "inverted"])  # fmt: skip
def test_any_contrast_is_filled_in_its_own_intensities(brain: Volume, hole: Volume, change) -> None:
    image = brain.with_data(change(brain.data).astype(np.float32))
    filled = inpaint(image, hole, model=untrained()).image.data[0]
    truth, inside = image.data[0], hole.data[0]
    assert (filled[~inside] == truth[~inside]).all()
    assert np.abs(filled - truth)[inside].mean() < 0.5 * truth[brain.data[0] > 0].std()


def test_what_is_no_brain_is_refused(hole: Volume) -> None:
    cross = np.zeros(hole.shape, np.float32)
    cross[26:32, 4:46, 4:38] = cross[2:40, 20:26, 4:38] = cross[2:40, 4:46, 18:23] = 1
    cross *= np.random.default_rng(0).uniform(1, 2, hole.shape)
    with pytest.raises(SynthError, match="shape of a brain"):
        inpaint(hole.with_data(cross.astype(np.float32)), hole, model=untrained())


def test_what_the_hole_holds_is_never_read(brain: Volume, hole: Volume) -> None:
    spoiled = brain.with_data(np.where(hole.data, 5000, brain.data).astype(np.float32))
    one, other = (inpaint(b, hole, model=untrained()).image.data for b in (brain, spoiled))
    assert (one == other).all()


def test_contrasts_are_painted_together_by_a_model_for_any(brain: Volume, hole: Volume) -> None:
    second = np.where(brain.data > 0, 900 - brain.data, 0).astype(np.float32)
    both = brain.with_data(np.concatenate([brain.data, second]))
    filled = inpaint(both, hole, model=untrained()).image.data
    assert (filled[:, ~hole.data[0]] == both.data[:, ~hole.data[0]]).all()
    a, b = filled[:, hole.data[0]]
    assert np.corrcoef(a, b)[0, 1] < -0.8, "folds lie at the same places"


def test_a_whole_head_keeps_its_skull(brain: Volume, hole: Volume) -> None:
    inside = brain.data[0] > 0
    skull = ndimage.binary_dilation(inside, iterations=3) & ~ndimage.binary_dilation(inside)
    head = brain.with_data(np.where(skull, 1200, brain.data[0]).astype(np.float32))
    mask = brain.with_data(inside)
    result = inpaint(head, hole, model=untrained(), brain=mask)
    alone = inpaint(brain, hole, model=untrained())
    assert result.facts["brain"] == "given"
    assert (result.image.data[0][~hole.data[0]] == head.data[0][~hole.data[0]]).all()
    np.testing.assert_allclose(
        result.image.data[0][hole.data[0]], alone.image.data[0][hole.data[0]], rtol=0.02
    )


def test_a_brain_is_recognised_as_extracted(brain: Volume) -> None:
    assert find_brain(brain).how == "already extracted"


def test_a_whole_head_without_deepbet_is_refused_with_the_remedy(
    brain: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = brain.with_data(np.random.default_rng(0).uniform(1, 9, brain.shape).astype(np.float32))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SynthError, match="skull") as caught:
        find_brain(head)
    assert "--brain" in str(caught.value.hint)


def test_grain_is_as_strong_as_the_noise_around(brain: Volume) -> None:
    rng = np.random.default_rng(0)
    inside = np.zeros(brain.shape, bool)
    inside[12:30, 12:36, 12:30] = True
    noisy = np.full(brain.shape, 500) + rng.normal(0, 20, brain.shape)
    image = brain.with_data(np.where(inside, 500, noisy).astype(np.float32))
    image.data[0, 0] = 0  # air
    grained = add_grain(image, inside, torch.Generator().manual_seed(0)).data[0]
    assert grained[inside].std() == pytest.approx(20, rel=0.1)
    assert (grained[~inside] == image.data[0][~inside]).all()


def test_detail_is_borrowed_as_strong_as_it_is_around_and_the_coarse_stays() -> None:
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.standard_normal((48, 48, 48)), 1) * 2
    coarse = np.linspace(0, 0.5, 48)[:, None, None] + np.zeros((48, 48, 48))
    inside = np.zeros(truth.shape, bool)
    inside[14:34, 14:34, 14:34] = True
    mean = np.where(inside, coarse, coarse + truth)
    weak = np.where(inside, 0.8 * np.roll(truth, 20, axis=0) + 0.3, mean)
    filled = borrow_detail(mean, weak, inside, 1.0)
    assert (filled[~inside] == mean[~inside]).all()
    core = ndimage.binary_erosion(inside, iterations=3)
    fine = filled - ndimage.gaussian_filter(filled, 1.5)
    original = weak - ndimage.gaussian_filter(weak, 1.5)
    assert fine[core].std() == pytest.approx(original[~inside].std(), rel=0.15)
    assert np.corrcoef(fine[core], original[core])[0, 1] > 0.9
    offset = ndimage.gaussian_filter(filled - mean, 3)[core]
    assert abs(offset.mean()) < 0.05, "the 0.3 of the other side is not taken over"
    assert np.isfinite(borrow_detail(mean, mean, inside, 1.0)).all(), "nothing to borrow"


def test_sharp_is_the_mean_with_more_detail(brain: Volume, hole: Volume) -> None:
    mean, sharp = (
        inpaint(brain, hole, model=untrained(), options=SamplerOptions(estimate=e)).image.data[0]
        for e in ("mean", "sharp")
    )
    inside = hole.data[0]
    assert (mean[~inside] == sharp[~inside]).all()
    assert (mean[inside] != sharp[inside]).any()
    with pytest.raises(SynthError, match="mirror image"):
        SamplerOptions(estimate="sharp").suited_to(PRESETS["tiny"])


@pytest.mark.parametrize(
    ("noise", "share"), [(0.0, ALIKE[1]), (0.5, ALIKE[1] / 2), (1.0, 0.0), (3.0, 0.0)]
)
def test_the_mirror_image_counts_as_far_as_it_explains_the_tissue(noise, share) -> None:
    rng = np.random.default_rng(0)
    tissue = 1 + 0.1 * rng.standard_normal((1, 40, 40, 40)).astype(np.float32)
    hole = np.zeros((40, 40, 40), bool)
    hole[15:22, 15:22, 15:22] = True
    other = tissue + 0.3 + 0.1 * noise * rng.standard_normal(tissue.shape).astype(np.float32)
    guides = Guides(
        known=np.where(hole, np.float32(0), tissue),
        hole=hole,
        template=np.ones((4, 40, 40, 40), np.float32),
        mirrored=other,
        mirror_known=np.arange(40)[:, None, None] < 18 + np.zeros((40, 40, 40)),
        spacing_mm=1.0,
    )
    found = guides.mirror_share(hole)[0]
    # R² of truth + noise is 1 - noise² by definition; the share grows from R² = ALIKE[0].
    explained = 1 - noise**2
    assert share == pytest.approx(ALIKE[1] * max((explained - ALIKE[0]) / (1 - ALIKE[0]), 0))
    assert found[5, 20, 20] == pytest.approx(share, abs=0.03)
    assert (found[22:] == 0).all(), "where the other side is unknown it has no share"


def test_the_spread_is_calibrated(brain: Volume, hole: Volume, monkeypatch) -> None:
    def two_draws(self, scene, region, box, part=0):
        del self, region, part
        shape = (2, len(scene.image), *(s.stop - s.start for s in box))
        return np.broadcast_to(np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1, 1), shape)

    monkeypatch.setattr(generate.Painter, "draw_box", two_draws)
    options = SamplerOptions(estimate="sample", samples=2)
    spread = inpaint(brain, hole, model=untrained(), options=options).spread
    assert spread is not None
    known = brain.data[0][~hole.data[0]]
    scale = (np.percentile(known[known > 0], HIGH_PERCENTILE) - known.min()) / 2
    deep = ndimage.binary_erosion(hole.data[0], iterations=2)
    expected = generate.SPREAD_GAIN * np.sqrt(0.5) * scale  # two draws that are 1 apart
    np.testing.assert_allclose(spread.data[0][deep], expected, rtol=0.02)


def test_flips_are_for_the_mean_of_a_guided_model() -> None:
    assert SamplerOptions().suited_to(COARSE).flips == 3
    assert SamplerOptions(estimate="sample").suited_to(COARSE).flips == 0
    with pytest.raises(SynthError, match="flips"):
        SamplerOptions(flips=3).suited_to(PRESETS["tiny"])


class OneBrain:
    """A brain for `GuidedData`."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "one"

    def brain(self, index: int) -> dict[str, np.ndarray]:
        inside = self.image > 0
        return {"image": 2 * self.image[None] - 1, "brain": inside,
                "unhealthy": np.zeros_like(inside)}  # fmt: skip


def test_training_sees_what_use_sees_and_learns(brain: Volume) -> None:
    """Items are the same again, flips keep fills and truth together, and the loss falls."""
    data = GuidedData(OneBrain(brain.data[0] / 1000), COARSE, cache=ArrayCache())
    item, again = data.item(0, 5), data.item(0, 5)
    assert all((item[k] == again[k]).all() for k in item)
    outside = item["roi"] == 0
    healthy = outside & (item["hole"] == 0)
    np.testing.assert_allclose(item["truth"][healthy], item["known"][healthy])
    assert (item["known"][item["hole"] > 0] < -0.5).all()

    torch.manual_seed(0)
    recipe = Recipe(COARSE)
    (optimizer,) = recipe.optimizers().values()
    batch = {k: v[None] for k, v in data.item(0, 5).items()}
    losses = []
    for _ in range(30):
        torch.manual_seed(1)
        ((_, loss),) = recipe.losses(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_a_guess_is_shifted_to_meet_the_rim() -> None:
    known = np.linspace(0, 1, 12)[:, None, None] * np.ones((12, 12, 12), np.float32)
    region = np.zeros(known.shape, bool)
    region[4:8, 4:8, 4:8] = True
    assert to_rim(known + 0.3, known, region, np.zeros_like(region)) == pytest.approx(
        known, abs=1e-3
    )
