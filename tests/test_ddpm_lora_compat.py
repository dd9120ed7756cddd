"""Med-DDPM's weights, schedule and sampler: ours answer as theirs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor

from ddpm_lora import legacy
from ddpm_lora.conditioning import planes_of
from ddpm_lora.config import PRESETS, Config
from ddpm_lora.network import build, denoiser, schedule_of
from synth.checkpoints import checkpoint
from synth.cli import main
from synth.diffusion.sampling import ddpm, levels
from tests.conftest import FIXTURES
from tests.toy_models import weights_by_rule

NARROW = replace(PRESETS["meddpm"], width=8, groups=4, multipliers=(1, 2), crop=(8, 8, 8))
BUFFERS = (
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
    *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod"),
    *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
    *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    "posterior_mean_coef3",
)


def dump(network: dict[str, Tensor], prefix: str = "denoise_fn.") -> dict[str, Tensor]:
    """A state dict of the diffusion class: thirteen buffers and the network."""
    wrapper = prefix.removesuffix("denoise_fn.")
    return {f"{wrapper}{name}": torch.rand(250) for name in BUFFERS} | {
        prefix + key: value for key, value in network.items()
    }


def narrow_weights() -> dict[str, Tensor]:
    with torch.device("meta"):
        network = build(NARROW)
    return weights_by_rule({k: list(v.shape) for k, v in network.state_dict().items()})


def converted(content: object, folder: Path, *more: str) -> checkpoint.Checkpoint:
    torch.save(content, folder / "model_brats.pt")
    words = ["convert", str(folder / "model_brats.pt"), "-o", str(folder / "m"), *more]
    assert main(words) == 0
    return checkpoint.load(folder / "m")


def test_public_weights_give_their_own_answers(tmp_path: Path) -> None:
    path = FIXTURES / "meddpm_unet_brats.json"
    file = json.loads(path.read_text())
    weights = weights_by_rule(file["state_dict"])
    other = {key: torch.zeros(()) for key in dump({"x": torch.zeros(())})}
    loaded = converted({"step": 9, "model": other, "ema": dump(weights)}, tmp_path)
    assert (loaded.family, loaded.config) == ("ddpm_lora", PRESETS["meddpm"])
    entry, expected = file["input"], file["output"]
    draw = torch.Generator().manual_seed(entry["x_seed"])
    with torch.no_grad():
        y = loaded.model(torch.randn(entry["x_shape"], generator=draw), torch.tensor([123]))
    stride = expected["stride"]
    sampled = y[0, :, ::stride, ::stride, ::stride].flatten()
    tolerance = 1e-4 * expected["std"]  # the fixture's own bound
    torch.testing.assert_close(sampled, torch.tensor(expected["values"]), atol=tolerance, rtol=0)
    assert float(y.std()) == pytest.approx(expected["std"], abs=tolerance)


def test_settings_follow_from_the_shapes(tmp_path: Path) -> None:
    weights = narrow_weights()
    same = ("--set", "groups=4", "crop=[8,8,8]")
    loaded = converted({"step": 1, "model": {}, "ema": dump(weights)}, tmp_path, *same)
    assert loaded.config == NARROW
    assert all(torch.equal(v, weights[k]) for k, v in loaded.model.state_dict().items())
    assert not legacy.recognise({k: v for k, v in weights.items() if k != legacy.MIDDLE})
    eight = weights | {legacy.LAST: torch.zeros(8, 8, 3, 3, 3)}
    assert not legacy.recognise(eight), "eight bands out are the wavelet model's"


def test_a_missing_weight_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = narrow_weights()
    del weights["input_blocks.3.0.op.bias"]
    torch.save({"ema": dump(weights)}, tmp_path / "a.pt")
    words = ["convert", str(tmp_path / "a.pt"), "-o", str(tmp_path / "m"), "--set", "groups=4"]
    assert main(words) == 2
    assert "input_blocks.3.0.op.bias" in capsys.readouterr().err


def test_the_forks_dump_is_its_merged_network(tmp_path: Path) -> None:
    """What get_peft_model(GaussianDiffusion(unet)).state_dict() is, by peft itself."""
    from peft import LoraConfig, get_peft_model

    class GaussianDiffusion(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in BUFFERS:
                self.register_buffer(name, torch.rand(250))
            self.denoise_fn = build(NARROW)

    diffusion = GaussianDiffusion()
    diffusion.denoise_fn.load_state_dict(narrow_weights())
    settings = LoraConfig(
        target_modules=r".*output_blocks\.[345]\.0\.emb_layers\.1", modules_to_save=["out.2"]
    )
    wrapped = get_peft_model(diffusion, settings)
    torch.manual_seed(0)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    content = {"step": 1, "model": wrapped.state_dict(), "ema": wrapped.state_dict()}
    loaded = converted(content, tmp_path, "--set", "groups=4", "crop=[8,8,8]")
    x, t = torch.randn(1, 8, 8, 8, 8), torch.tensor([17.0])
    with torch.no_grad():
        theirs = wrapped.base_model.model.denoise_fn(x, t)
        plain = build(NARROW).eval()
        plain.load_state_dict(narrow_weights())
        torch.testing.assert_close(loaded.model(x, t), theirs, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(plain(x, t), theirs, atol=1e-2)


def cosine_betas() -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17, term by term."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [alpha_bar((i + 1) / 250) / alpha_bar(i / 250) for i in range(250)]
    return torch.tensor([min(1 - r, 0.999) for r in ratios], dtype=torch.float64)


def test_the_schedule_is_iddpm_cosine_250() -> None:
    schedule = schedule_of(PRESETS["meddpm"])
    torch.testing.assert_close(
        schedule.alphas_cumprod, (1 - cosine_betas()).cumprod(0), atol=1e-6, rtol=1e-6
    )
    monai = DDPMScheduler(schedule="cosine", num_train_timesteps=250)
    # MONAI multiplies 250 factors in float32
    torch.testing.assert_close(
        schedule.alphas_cumprod.float(), monai.alphas_cumprod, atol=1e-5, rtol=0
    )


def transcribed(network: torch.nn.Module, cond: Tensor, x: Tensor, draw: torch.Generator) -> Tensor:
    """Ancestral sampling as Ho et al. 2020 and Med-DDPM write it, buffer by buffer."""
    betas = cosine_betas()
    abar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1).double(), abar[:-1]])
    variance = betas * (1 - before) / (1 - abar)
    first = betas * before.sqrt() / (1 - abar)
    second = (1 - before) * (1 - betas).sqrt() / (1 - abar)
    for t in reversed(range(250)):
        eps = network(torch.cat([x, cond], dim=1), torch.tensor([t]))
        x0 = (x - (1 - abar[t]).sqrt().float() * eps) / abar[t].sqrt().float()
        x0 = x0.clamp(-1, 1)
        x = first[t].float() * x0 + second[t].float() * x
        if t > 0:
            noise = torch.randn(x.shape[1:], generator=draw)[None]
            x = x + variance[t].sqrt().float() * noise
    return x


@torch.no_grad()
def test_250_ancestral_steps_equal_the_plain_algorithm() -> None:
    config: Config = replace(NARROW, blocks_per_level=1, crop=(4, 4, 4))
    with torch.device("meta"):
        shapes = {k: list(v.shape) for k, v in build(config).state_dict().items()}
    network = build(config).eval()
    network.load_state_dict(weights_by_rule(shapes))
    classes = torch.randint(0, 5, (1, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    planes = planes_of(classes)
    start = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    walk = levels(schedule_of(config), 250, "uniform")
    generators = [torch.Generator().manual_seed(2)]
    *_, last = ddpm(denoiser(network, config, planes), start, walk, generators)
    shown = planes.flip(2, 3).permute(0, 1, 4, 3, 2)  # z, y, x of an LPS file
    theirs = transcribed(network, shown, start, torch.Generator().manual_seed(2))
    # float32 through 250 steps of a random network; its samples span [-1, 1]
    torch.testing.assert_close(last.x, theirs, atol=1e-4, rtol=0)
    assert float(last.x.std()) > 0.1
