"""The predecessor's label generator goes through `synth convert` and draws as it did."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from label_gan import legacy
from label_gan.config import PRESETS
from label_gan.network import build, players
from synth.checkpoints import checkpoint
from synth.cli import main
from tests.conftest import FIXTURES
from tests.toy_models import seeded, weights_by_rule


def small(channels: int = 3, latent: int = 10, width: int = 2) -> dict[str, torch.Tensor]:
    """Five tensors of the predecessor's names and kinds, narrow."""
    widths = [8 * width, 4 * width, 2 * width, width, channels]
    shapes = {"tp_conv1.weight": [latent, 8 * width, 4, 4, 4]}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        shapes[f"tp_conv{i + 2}.weight"] = [b, a, 3, 3, 3]
    return weights_by_rule(shapes)


def convert(content: object, folder: Path) -> int:
    torch.save(content, folder / "G.pth")
    return main(["convert", str(folder / "G.pth"), "-o", str(folder / "m")])


def test_public_weights_draw_as_the_original(tmp_path: Path) -> None:
    golden = json.loads((FIXTURES / "gligan_label_generator.json").read_text())
    assert convert(weights_by_rule(golden["state_dict"]), tmp_path) == 0
    loaded = checkpoint.load(tmp_path / "m")
    assert (loaded.family, loaded.config.architecture) == ("label_gan", "alpha")
    assert sum(p.numel() for p in loaded.model.parameters()) == golden["parameters"]
    with torch.no_grad():
        y = loaded.model(seeded(golden["input"]["z_shape"], golden["input"]["z_seed"]))
    expected, s = golden["output"], golden["output"]["stride"]
    assert list(y.shape) == expected["shape"]
    tolerance = 1e-4 * expected["std"]
    assert float(y.mean()) == pytest.approx(expected["mean"], abs=tolerance)
    assert float(y.std()) == pytest.approx(expected["std"], abs=tolerance)
    sampled = y[0, :, ::s, ::s, ::s].flatten()
    torch.testing.assert_close(sampled, torch.tensor(expected["values"]), atol=tolerance, rtol=0)


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        team = players(PRESETS["alpha"])
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in team.items()}
    assert sizes == {
        "generator": 7_926_848,
        "encoder": 14_300_196,
        "critic": 11_056_065,
        "code_critic": 17_199_105,
    }


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_literal_restatement(channels: int) -> None:
    weights = small(channels)
    config, ours = legacy.convert(weights, "G_iter100000.pth")
    assert (config.latent, config.width, config.channels, config.grid) == (10, 2, channels, 64)
    network = build(config)
    checkpoint.load_strictly(network, ours, name="x")
    z = seeded([2, 10], 3)
    x = torch.nn.functional.conv_transpose3d(z.view(2, 10, 1, 1, 1), weights["tp_conv1.weight"])
    for i in range(2, 6):
        mean = x.mean((2, 3, 4), keepdim=True)
        x = (x - mean) / (x.var((2, 3, 4), keepdim=True, correction=0) + 1e-5).sqrt()
        x = torch.where(x > 0, x, 0.01 * x)
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        x = torch.nn.functional.conv3d(x, weights[f"tp_conv{i}.weight"], padding=1)
    with torch.no_grad():  # float32 sums in another order
        torch.testing.assert_close(network(z), torch.tanh(x), rtol=0, atol=2e-5)


def test_wrappings_are_taken_off(tmp_path: Path) -> None:
    weights = small()
    for content in (
        weights,
        {"iteration": 3, "state_dict": weights, "g_optimizer": {"state": {}}},
        {f"module.{k}": v for k, v in weights.items()},
    ):
        assert convert(content, tmp_path) == 0
        loaded = checkpoint.load(tmp_path / "m").model.state_dict()
        assert all(torch.equal(loaded[legacy.NAMES[k]], v) for k, v in weights.items())


def test_others_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = small()
    more = weights | {"tp_conv6.weight": weights["tp_conv5.weight"]}
    less = {k: v for k, v in weights.items() if k != "tp_conv3.weight"}
    odd = weights | {"tp_conv3.weight": weights["tp_conv3.weight"][:3]}
    cases = ((more, "tp_conv6.weight"), (less, "tp_conv3.weight"), (odd, "blocks.1.weight"))
    for content, named in cases:
        assert convert(content, tmp_path) == 2
        assert named in capsys.readouterr().err
        assert not (tmp_path / "m").exists()
    discriminator = {"conv1.weight_orig": torch.zeros(64, 3, 4, 4, 4)}
    assert not legacy.recognise(discriminator)
