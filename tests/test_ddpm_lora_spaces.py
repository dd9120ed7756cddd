"""The two spaces: exact ways there and back, unit spread in the brain, Med-DDPM's axes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F  # noqa: N812
from nibabel import orientations

from ddpm_lora.config import PRESETS, Config
from ddpm_lora.network import build, denoiser
from ddpm_lora.state_space import (
    BACKGROUND,
    BandStatistics,
    Pixel,
    Space,
    clamped,
    space_of,
)
from synth.base.errors import SynthError
from synth.diffusion.wavelet import dwt3

WAVELET = Config(width=8, groups=4, multipliers=(1, 2), crop=(8, 12, 8))
PIXEL = Config(width=8, groups=4, multipliers=(1, 2), crop=(8, 12, 8), space="pixel")
SHAPE = (8, 12, 8)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def brain() -> tuple[torch.Tensor, torch.Tensor]:
    """An image of four contrasts of different brightness and a head of whole and broken blocks."""
    head = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    head[..., 1:7, 2:11, 2:6] = True
    offsets = torch.tensor([0.3, -0.2, 0.5, 0.0]).view(1, 4, 1, 1, 1)
    image = torch.where(head, 0.2 * normal(1, 4, *SHAPE) + offsets, BACKGROUND)
    return image, head


def spaces() -> dict[str, Space]:
    image, head = brain()
    network = build(WAVELET)
    statistics = BandStatistics()
    statistics.add(image[0], head[0, 0])
    statistics.store(network)
    return {"wavelet": space_of(WAVELET, network), "pixel": space_of(PIXEL, build(PIXEL))}


@pytest.mark.parametrize("name", ["wavelet", "pixel"])
def test_images_come_back(name: str) -> None:
    image, head = brain()
    space = spaces()[name]
    back = space.image(space.state(image, head), head)
    # float32: whitening divides by spreads of 0.1
    torch.testing.assert_close(back, image, atol=1e-5, rtol=0)
    kept = clamped(space.state(image, head), head, space, 0.1)
    torch.testing.assert_close(space.image(kept, head), image.clamp(max=0.1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["wavelet", "pixel"])
def test_a_difference_of_states_is_the_difference_of_images(name: str) -> None:
    head = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    space = spaces()[name]
    a, b = normal(1, 4, *SHAPE), normal(1, 4, *SHAPE, seed=1)
    states = [space.state(i, head) for i in (a, b)]
    torch.testing.assert_close(
        space.difference(states[0] - states[1], head), a - b, atol=1e-5, rtol=0
    )


def test_bands_in_the_brain_have_unit_spread_and_the_background_is_nothing() -> None:
    image, head = brain()
    state = spaces()["wavelet"].state(image, head)[0]
    blocks = F.avg_pool3d(head.float(), 2)[0, 0]
    inside = state[:, blocks == 1]
    assert torch.allclose(inside[::8].mean(1), torch.zeros(4), atol=1e-5)
    assert torch.allclose(inside.square().mean(1), torch.ones(32), atol=1e-4)
    cut = state[:, (blocks > 0) & (blocks < 1)]
    assert torch.allclose(cut.square().mean(1), torch.ones(32), atol=1e-4)
    assert torch.allclose(state[:, blocks == 0], torch.zeros(()), atol=1e-5)


def test_statistics_are_those_of_pywt_bands() -> None:
    image, _ = brain()
    everywhere = torch.full(SHAPE, 4, dtype=torch.uint8)
    network, statistics = build(WAVELET), BandStatistics()
    statistics.add(image[0], everywhere)
    statistics.store(network)
    for contrast in range(4):
        bands = pywt.dwtn(image[0, contrast].double().numpy(), "haar")
        for i, key in enumerate(sorted(bands)):
            spread = float(network.get_buffer("band_spread")[8 * contrast + i])
            centre = bands[key].mean() if key == "aaa" else 0
            rms = np.sqrt(((bands[key] - centre) ** 2).mean())
            assert spread == pytest.approx(rms, rel=1e-5)
        low = float(network.get_buffer("band_mean")[8 * contrast])
        assert low == pytest.approx(bands["aaa"].mean(), rel=1e-5)


def test_pixel_space_has_the_axes_of_med_ddpm() -> None:
    """An LPS file's array, transposed to z, y, x: by nibabel from a RAS array."""
    ras = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turn = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt("LPS")
    )
    lps = orientations.apply_orientation(ras, turn)
    head = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    state = Pixel().state(torch.from_numpy(ras)[None, None], head)
    assert np.array_equal(state[0, 0].numpy(), lps.transpose(2, 1, 0))


def test_low_bands_of_the_condition_are_shares_of_a_block() -> None:
    planes = (normal(2, 4, *SHAPE) > 0.5).float()
    seen = spaces()["wavelet"].condition(planes, torch.ones(1))
    assert seen.shape[1] == WAVELET.condition_channels
    torch.testing.assert_close(seen[:, ::8], F.avg_pool3d(planes, 2))
    energy = 8 * seen.square().sum()  # nothing of the labels is lost
    torch.testing.assert_close(energy, planes.square().sum())


def test_what_is_known_is_shown_beside_labels_and_tissue() -> None:
    _, head = brain()
    config = replace(WAVELET, anatomy=True)
    space = space_of(config, build(config))
    zone = torch.zeros(1, 4, *SHAPE, dtype=torch.bool)
    zone[:, 1, 2:4, 4:8, 2:4] = True
    zone[:, 3] = True
    unknown = space.unknown(head, zone)
    blocks = unknown.unflatten(1, (4, 8))
    assert (blocks == blocks[:, :, :1]).all()  # all bands of a contrast
    assert [int(blocks[0, c, 0].sum()) for c in (0, 1, 2)] == [0, 2, 0]
    assert torch.equal(unknown[:, 24:], space.unknown(head)[:, 24:])
    planes = normal(1, 7, *SHAPE)
    seen = space.condition(planes, unknown)
    assert seen.shape[1] == config.condition_channels == 60
    torch.testing.assert_close(seen[:, :56], dwt3(planes) / 8**0.5)
    assert torch.equal(seen[:, 56:], blocks[:, :, 0])
    with pytest.raises(SynthError, match="anatomy in pixel space"):
        replace(PIXEL, anatomy=True)


def test_the_known_part_is_shown_clean_and_comes_back() -> None:
    image, head = brain()
    config = replace(WAVELET, anatomy=True)
    network = build(config)
    torch.nn.init.normal_(network.get_parameter("out.2.weight"), std=0.1)
    zone = torch.zeros(1, 4, *SHAPE, dtype=torch.bool)
    zone[..., 2:4, 4:8, 2:4] = True
    planes = torch.cat([torch.zeros(1, 3, *SHAPE), head.float(), normal(1, 3, *SHAPE)], dim=1)
    space = space_of(config, network)
    denoise = denoiser(network, config, planes, guidance=2.0, known=(image, zone))
    unknown = space.unknown(head, zone)
    x = torch.randn_like(unknown)
    spoiled = torch.where(unknown == 0, 9.0, x)
    made = denoise(x, torch.zeros(1))
    assert torch.equal(made, denoise(spoiled, torch.zeros(1)))
    back = space.image(made, head)
    same = (back - image).abs().amax(1, keepdim=True) < 1e-5
    assert torch.equal(same, ~zone[:, :1])
    elsewhere = torch.where(zone, 5.0, image)  # what is there does not leak
    again = denoiser(network, config, planes, guidance=2.0, known=(elsewhere, zone))
    torch.testing.assert_close(again(x, torch.zeros(1)), made)


def test_the_unit_is_the_size_of_a_state_of_ones() -> None:
    space = spaces()["wavelet"]
    head = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    signs = torch.sign(normal(64, 32, *(n // 2 for n in SHAPE)))
    made = space.difference(signs, head).square().mean((0, 2, 3, 4), keepdim=True).sqrt()
    torch.testing.assert_close(space.unit(), made, rtol=0.02, atol=0)  # 64 random draws


def test_the_background_is_known() -> None:
    image, head = brain()
    space = spaces()["wavelet"]
    unknown = space.unknown(head)
    assert set(unknown.unique().tolist()) == {0.0, 1.0}
    assert (space.state(image, head)[unknown == 0] == 0).all()
    assert (head <= F.interpolate(unknown[:, :1], scale_factor=2).bool()).all()


def test_the_edge_of_the_head_is_no_detail() -> None:
    """A brain that is brighter than usual all over has low bands only, in broken blocks, too."""
    _, head = brain()
    space = spaces()["wavelet"]
    usual = space.image(torch.zeros(1, 32, *(n // 2 for n in SHAPE)), head)
    state = space.state(torch.where(head, usual + 0.3, BACKGROUND), head).unflatten(1, (4, 8))
    torch.testing.assert_close(
        state[:, :, 1:], torch.zeros_like(state[:, :, 1:]), atol=1e-5, rtol=0
    )
    assert (state[:, :, 0] != 0).sum() == 4 * space.unknown(head)[:, 0].sum()


@pytest.mark.parametrize("name", ["wavelet", "pixel"])
def test_noise_on_the_known_is_not_seen(name: str) -> None:
    config = {"wavelet": WAVELET, "pixel": PIXEL}[name]
    network = build(config)
    torch.nn.init.normal_(network.get_parameter("out.2.weight"), std=0.1)
    _, head = brain()
    planes = torch.cat([torch.zeros(1, 3, *SHAPE), head.float()], dim=1)
    space, denoise = space_of(config, network), denoiser(network, config, planes)
    x = torch.randn_like(space.state(torch.zeros(1, 4, *SHAPE), head))
    spoiled = torch.where(space.unknown(head) == 0, 9.0, x)
    logsnr = torch.zeros(1)
    assert torch.equal(denoise(x, logsnr), denoise(spoiled, logsnr))
    assert torch.equal(x, spoiled) == (name == "pixel")  # Med-DDPM draws the background, too


@pytest.mark.parametrize("name", ["wavelet", "pixel"])
def test_weights_keep_their_mean(name: str) -> None:
    weights = normal(2, 1, *SHAPE).exp()
    pooled = spaces()[name].weights(weights)
    torch.testing.assert_close(pooled.mean((1, 2, 3, 4)), weights.mean((1, 2, 3, 4)))


@pytest.mark.parametrize(
    ("preset", "count"), [("meddpm", 57_562_564), ("brats23", 55_996_032), ("tiny", 3_001_280)]
)
def test_presets_have_the_published_sizes(preset: str, count: int) -> None:
    with torch.device("meta"):
        network = build(PRESETS[preset])
    assert sum(p.numel() for p in network.parameters()) == count
    assert (len(network.state_dict()) == 338) == (preset == "meddpm")
    if preset == "tiny":
        assert count < 4e6  # bytes in 8 bits


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SynthError, match="not a multiple of 4"):
        Config(width=8, groups=4, multipliers=(1, 2), crop=(8, 12, 6))
    with pytest.raises(SynthError, match="label_drop = 1"):
        Config(label_drop=1.0)
    with pytest.raises(SynthError, match="high_percentile"):
        Config(high_percentile=0)
    with pytest.raises(SynthError, match="lora_rank"):
        Config(lora_rank=0)
