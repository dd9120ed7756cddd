"""The U-Net against the public networks it must be able to be."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from synth.base.errors import SynthError
from synth.diffusion.unet import Attention, UNet, timestep_embedding
from synth.diffusion.unet_config import UNetConfig
from tests.conftest import golden
from tests.toy_models import seeded, weights_by_rule

WDM = UNetConfig()
MED_DDPM = UNetConfig(
    out_channels=4, multipliers=(1, 1, 2, 3, 4), skips="concat", resample="conv",
    middle_attention=True, max_period=1000,
)  # fmt: skip
GOLDEN = {
    "wdm_unet_128_default": WDM,
    "wdm_unet_256_always_known_healthy": replace(
        WDM, in_channels=16, multipliers=(1, 2, 2, 4, 4, 4)
    ),
    "meddpm_unet_brats": MED_DDPM,
}
TINY = UNetConfig(
    in_channels=3, out_channels=2, width=8, multipliers=(1, 2), blocks_per_level=1, groups=4,
    zero_init_out=False,
)  # fmt: skip
VARIANTS = [TINY, replace(TINY, skips="concat", resample="conv", middle_attention=True)]


def on_meta(config: UNetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def built(config: UNetConfig) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(config)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return seeded(list(shape), seed)


@pytest.mark.parametrize("name", GOLDEN)
def test_public_networks_have_our_names_and_give_their_own_answers(name):
    file = golden(name)
    network = on_meta(GOLDEN[name]).eval()
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == file["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == file["parameters"]
    network.load_state_dict(weights_by_rule(file["state_dict"]), strict=True, assign=True)
    entry, expected = file["input"], file["output"]
    x = random(*entry["x_shape"], seed=entry["x_seed"])
    seed = entry.get("condition_seed")
    cond = None if seed is None else random(*entry["x_shape"], seed=seed)
    with torch.no_grad():
        y = network(x, torch.tensor([entry["timestep"]]), cond)
    stride = expected["stride"]
    sampled = y[0, :, ::stride, ::stride, ::stride].flatten()
    # 1e-4 of the spread is the fixture's own bound; summation order alone gives 4e-6.
    tolerance = 1e-4 * expected["std"]
    torch.testing.assert_close(sampled, torch.tensor(expected["values"]), atol=tolerance, rtol=0)
    assert float(y.mean()) == pytest.approx(expected["mean"], abs=tolerance)
    assert float(y.std()) == pytest.approx(expected["std"], abs=tolerance)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (replace(WDM, multipliers=(1, 2, 2, 4, 4, 4)), 83_158_728),  # Default, 256³
        (replace(WDM, in_channels=36, multipliers=(1, 2, 2, 4, 4, 4)), 83_207_112),  # 3 to 1
        (replace(WDM, in_channels=32, skips="concat"), 81_511_048),  # cWDM
        (replace(WDM, in_channels=24, multipliers=(1, 2, 2, 2, 4), blocks_per_level=4),
         65_525_320),  # fastWDM3D
    ],
)  # fmt: skip
def test_further_public_networks_have_our_parameter_count(config, count):
    assert sum(p.numel() for p in on_meta(config).parameters()) == count


def test_time_embedding_is_cosines_then_sines_of_real_time():
    t = torch.tensor([0.0, 7.25, 249.0])
    embedding = timestep_embedding(t, 64, 1000)
    for i in (0, 1, 17, 31):
        angle = t * 1000 ** (-i / 32)
        torch.testing.assert_close(embedding[:, i], angle.cos(), atol=1e-4, rtol=0)
        torch.testing.assert_close(embedding[:, 32 + i], angle.sin(), atol=1e-4, rtol=0)
    whole = timestep_embedding(torch.tensor([3, 999]), 64, 1e4)
    assert torch.equal(whole, timestep_embedding(torch.tensor([3.0, 999.0]), 64, 1e4))


def test_attention_equals_the_formula():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = Attention(TINY, 8)
    x = random(2, 8, 2, 3, 2)
    tokens = F.group_norm(x, 4).flatten(2)
    qkv = torch.einsum("oi,bit->bot", layer.qkv.weight[..., 0], tokens) + layer.qkv.bias[:, None]
    q, k, v = qkv.chunk(3, dim=1)
    scores = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(8), dim=-1)
    seen = torch.einsum("bts,bcs->bct", scores, v)
    out = torch.einsum("oi,bit->bot", layer.proj_out.weight[..., 0], seen)
    out = out + layer.proj_out.bias[:, None]
    torch.testing.assert_close(layer(x), x + out.view_as(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", VARIANTS)
def test_checkpointing_changes_no_gradient(config):
    plain, saving = built(config), built(replace(config, checkpointing=True))
    x, t = random(2, 3, 4, 4, 8), torch.tensor([3, 900])
    for network in (plain, saving):
        network.input_blocks[0].requires_grad_(False)  # frozen layers, as under LoRA
        network(x, t).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("config", VARIANTS)
def test_answers_depend_on_neither_batch_nor_format_and_little_on_precision(config):
    network, x, t = built(config), random(3, 3, 8, 8, 8), torch.tensor([1.0, 50.5, 900.0])
    expected = network(x, t).detach()
    for k in range(3):
        alone = network(x[k : k + 1], t[k : k + 1])
        torch.testing.assert_close(expected[k : k + 1], alone, atol=1e-5, rtol=1e-5)
    last = network.to(memory_format=torch.channels_last_3d)
    y = last(x.to(memory_format=torch.channels_last_3d), t)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(x, t)
    mixed.float().sum().backward()
    pure = network.bfloat16()(x.bfloat16(), t)
    assert pure.dtype == torch.bfloat16
    for y in (mixed, pure):
        # bfloat16 keeps 8 bits; ten layers of it leave a few per cent of the spread.
        assert float((y.detach().float() - expected).std() / expected.std()) < 0.05


def test_a_new_network_answers_zero_and_a_condition_goes_behind_x():
    x, cond, t = random(1, 1, 4, 4, 4), random(1, 2, 4, 4, 4, seed=1), torch.tensor([5])
    zero = built(replace(TINY, zero_init_out=True))
    assert not zero(x, t, cond).any()
    network = built(TINY)
    assert torch.equal(network(x, t, cond), network(torch.cat([x, cond], 1), t))


def test_mistakes_are_explained():
    network = built(TINY)
    with pytest.raises(SynthError, match="axis Y has size 5, not a multiple of 2"):
        network(torch.zeros(1, 3, 4, 5, 4), torch.zeros(1))
    with pytest.raises(SynthError, match=r"wants \(B, 3, X, Y, Z\), got \(1, 4, 4, 4, 4\)"):
        network(torch.zeros(1, 4, 4, 4, 4), torch.zeros(1))
    with pytest.raises(SynthError, match="3 groups do not divide 8 channels"):
        replace(TINY, groups=3)
    with pytest.raises(SynthError, match="multipliers is empty"):
        replace(TINY, multipliers=())


def test_with_a_bypass_noise_need_not_pass_through_the_network():
    """Each answer gets its own channel, as much as the time says; at first nothing."""
    config = replace(TINY, bypass=True, zero_init_out=True)
    network = built(config)
    x = torch.randn(2, config.in_channels, 8, 8, 8)
    torch.nn.init.zeros_(network.bypass.weight)
    torch.nn.init.zeros_(network.bypass.bias)
    assert not network(x, torch.tensor([3.0, 7.0])).any()
    own = x[:, : config.out_channels]
    torch.nn.init.ones_(network.bypass.bias)
    assert torch.equal(network(x, torch.tensor([3.0, 7.0])), own)
    torch.nn.init.normal_(network.bypass.weight)
    early, late = network(x[:1], torch.tensor([3.0])), network(x[:1], torch.tensor([700.0]))
    ratio = (early / own[:1]).flatten(2)
    torch.testing.assert_close(ratio, ratio[:, :, :1].expand_as(ratio), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(early, late)
