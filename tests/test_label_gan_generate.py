"""Drawings: nested whatever the network says, seeded one by one, of the volume asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from label_gan.config import PRESETS, Config
from label_gan.distance_maps import from_output, nest, read_labels, soft_classes
from label_gan.generate import clean, draw, load
from label_gan.lesion_size import CENTRE, LENGTH, bootstrap, choose, volume_ml
from label_gan.network import OrderedGenerator, build
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.data.labels import ED, regions_of
from tests.conftest import ball

SMALL = Config(grid=16, latent=4, width=8, critic_width=8, sizes=32)


def ball_generator() -> OrderedGenerator:
    """A generator that draws lumpy nested balls: untrained but for its shape model."""
    torch.manual_seed(0)
    network = OrderedGenerator(SMALL)
    half = SMALL.grid // 2
    index = torch.stack(torch.meshgrid(*[torch.arange(half) - (half - 1) / 2] * 3, indexing="ij"))
    radius = 2 * index.square().sum(0).sqrt() / SMALL.reach
    offsets = torch.tensor([5.0, 3.5, 2.0]) / SMALL.reach
    maps = radius[None] - offsets[:, None, None, None]
    network.shape.weight.data.mul_(0.3)
    network.shape.bias.data.copy_(maps.flatten())
    network.table[:, 0] = torch.linspace(1.0, 5.0, SMALL.sizes) - CENTRE
    network.table[:, 1:] = torch.tensor([0.5, 0.5, 1, 1, 1])
    network.spacing_mm.fill_(2.0)
    torch.nn.init.normal_(network.last.weight, std=0.02)
    return network


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    folder = tmp_path_factory.mktemp("gan") / "balls"
    return load(
        checkpoint.save(
            folder, model=ball_generator(), family="label_gan", preset="tiny", config=SMALL
        )
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["ordered", "alpha"]), st.floats(0.4, 4))
def test_nesting_holds_for_any_output(seed: int, architecture: str, spacing: float) -> None:
    config = replace(SMALL, architecture=architecture)
    maps = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    if architecture == "ordered":
        classes = soft_classes(maps[None], 6.0)
        assert (classes >= 0).all()
        assert (classes.sum(1) <= 1 + 1e-6).all()
        maps = nest(maps[None])[0]
        assert (maps.diff(dim=0) >= 0).all()
    labels = read_labels(from_output(maps, config), config, step_mm=1.0, spacing_mm=spacing)
    wt, tc, et = regions_of(labels)
    assert not (et & ~tc).any()
    assert not (tc & ~wt).any()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_predecessors_channels(channels: int) -> None:
    """Channel 0 is TC and channel 1 is WT (one channel: WT alone); tanh output, cut at 0.5."""
    config = replace(PRESETS["alpha_light"], channels=channels, grid=8)
    output = torch.full((channels, 8, 8, 8), -1.0)
    output[:, 2:6, 2:6, 2:6] = 0.9
    labels = read_labels(from_output(output, config), config, step_mm=1.0, spacing_mm=1.0)
    assert set(np.unique(labels)) == {0, 2 if channels == 1 else 3}
    assert (labels > 0).sum() == 64


def test_a_sample_depends_on_its_seed_and_number_alone(loaded: checkpoint.Checkpoint) -> None:
    four = list(draw(loaded, 4, seed=3))
    ((third, facts),) = draw(loaded, 1, seed=3, first=2)
    assert np.array_equal(four[2][0].labels, third.labels)
    assert (four[2][1], four[2][0].source) == (facts, third.source)
    ((other, _),) = draw(loaded, 1, seed=4, first=2)
    assert not np.array_equal(other.labels, third.labels)
    assert all(shape.spacing_mm == 2.0 for shape, _ in four)


@pytest.mark.parametrize("limits", [(5.0, 60.0), (20.0, 22.0), (300.0, 400.0)])
def test_volumes_are_as_asked(loaded: checkpoint.Checkpoint, limits: tuple[float, float]) -> None:
    for shape, facts in draw(loaded, 4, volume_ml=limits, spacing_mm=4.0):
        assert limits[0] <= shape.volume_ml() <= limits[1]
        assert facts["tries"] <= 8


def test_millilitres_do_not_depend_on_the_grid(loaded: checkpoint.Checkpoint) -> None:
    coarse, fine = (
        [shape.volume_ml() for shape, _ in draw(loaded, 4, spacing_mm=mm)] for mm in (3.0, 1.5)
    )
    np.testing.assert_allclose(coarse, fine, rtol=0.05)  # a surface is known to part of a voxel


def test_truncation_leads_to_the_mean_shape(loaded: checkpoint.Checkpoint) -> None:
    """Rows of a batch round differently."""
    code = torch.randn(2, loaded.model.code_length)
    size = loaded.model.table[:1].expand(2, -1)
    whole, less, none = (loaded.model(code * t, size).diff(dim=0).abs().mean() for t in (1, 0.3, 0))
    assert whole > less > 1e-6 > none


def test_cleaning_is_counted() -> None:
    labels = np.where(ball((20,) * 3, (9, 9, 9), 6), ED, 0).astype(np.uint8)
    expected = labels.copy()
    labels[9, 9, 9] = 0  # a cavity
    labels[18, 18, 18] = ED  # a speck
    kept, facts = clean(labels)
    assert np.array_equal(kept, expected)
    assert facts == {"pieces_dropped": 1, "voxels_dropped": 1, "voxels_filled": 1}
    assert not any(clean(expected)[1].values())


def test_mistakes_are_named(loaded: checkpoint.Checkpoint, tmp_path: Path) -> None:
    for words in ({"volume_ml": (60.0, 5.0)}, {"truncation": -1.0}, {"volume_ml": (0.0, 5.0)}):
        with pytest.raises(SynthError, match=next(iter(words))):
            list(draw(loaded, 1, **words))
    config = replace(PRESETS["alpha_light"], grid=8, latent=4, width=2)
    silent = build(config)
    torch.nn.init.zeros_(silent.blocks[-1].weight)
    checkpoint.save(tmp_path / "m", model=silent, family="label_gan", preset="x", config=config)
    with pytest.raises(SynthError, match="sample 0: no shape in 64 draws"):
        list(draw(load(tmp_path / "m"), 1))


def test_drawn_sizes_are_like_the_cohorts_and_in_the_range_asked_for() -> None:
    rng = np.random.default_rng(0)
    sizes = np.ones((200, LENGTH), np.float32)
    sizes[:, 0] = rng.normal(0.3, 0.7, 200)
    sizes[:, 1], sizes[:, 2] = rng.uniform(0.2, 0.7, 200), rng.uniform(0.3, 1, 200)
    sizes[:50, [2, 4]] = 0  # no enhancement
    table = bootstrap(sizes, 4000, rng)
    # the standard error of a mean of 200 is 0.05 of the spread; the bootstrap's is smaller
    np.testing.assert_allclose(table.mean(0), sizes.mean(0), atol=0.06)
    np.testing.assert_allclose(table.std(0), sizes.std(0), atol=0.06)
    assert ((table[:, 2] == 0) == (table[:, 4] == 0)).all()
    assert not (np.isin(table[:, 0], sizes[:, 0])).any(), "nobody's own volume"
    stream = torch.Generator().manual_seed(0)
    beyond = torch.zeros(8, LENGTH)  # of 33 ml
    assert all(400 <= volume_ml(choose(beyond, stream, (400.0, 500.0))) <= 500 for _ in range(20))
