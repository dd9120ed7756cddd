"""Public weights go through `synth convert` and answer as the original networks do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.cli import main
from tests.conftest import FIXTURES
from tests.toy_models import seeded, weights_by_rule
from wdm3d import legacy
from wdm3d.modes import mode_of

NAMES = ("wdm_unet_128_default", "wdm_unet_256_always_known_healthy")


def fixture(name: str) -> dict:
    path = FIXTURES / f"{name}.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_public_weights_answer_as_the_original(name: str, tmp_path: Path) -> None:
    golden = fixture(name)
    source = tmp_path / "c_brats_3000000.pt"
    torch.save(weights_by_rule(golden["state_dict"]), source)
    assert main(["convert", str(source), "-o", str(tmp_path / "model")]) == 0
    loaded = checkpoint.load(tmp_path / "model")
    assert (loaded.family, loaded.config.mode) == ("wdm3d", name.split("_", 3)[3])
    assert sum(p.numel() for p in loaded.model.parameters()) == golden["parameters"]
    given = golden["input"]
    x = seeded(given["x_shape"], given["x_seed"])
    if given["condition_seed"] is not None:
        x = torch.cat([x, seeded(given["x_shape"], given["condition_seed"])], dim=1)
    with torch.no_grad():
        y = loaded.model(x, torch.tensor([given["timestep"]]))
    expected, s = golden["output"], golden["output"]["stride"]
    tolerance = 1e-4 * expected["std"]
    assert abs(float(y.mean()) - expected["mean"]) < tolerance
    assert abs(float(y.std()) - expected["std"]) < tolerance
    found = y[0, :, ::s, ::s, ::s].flatten()
    assert (found - torch.tensor(expected["values"])).abs().max() < tolerance


def small_weights(channels: int = 8) -> dict[str, torch.Tensor]:
    """A narrow network of the public kind, to test what surrounds the weights."""
    from wdm3d.config import Config
    from wdm3d.network import build

    mode = {8: "default", 16: "always_known_healthy"}[channels]
    config = Config(mode=mode, width=8, groups=4, multipliers=(1, 2, 2, 4, 4), crop=128)
    return build(config).state_dict()


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "ema", "module."])
def test_wrappings_are_taken_off(wrap: str, tmp_path: Path) -> None:
    weights = small_weights()
    content: dict = {wrap: weights, "step": 3}
    if wrap == "bare":
        content = weights
    elif wrap == "module.":
        content = {f"module.{k}": v for k, v in weights.items()}
    torch.save(content, tmp_path / "a.pt")
    words = ["convert", str(tmp_path / "a.pt"), "-o", str(tmp_path / "m"), "--set", "groups=4"]
    assert main(words) == 0
    loaded = checkpoint.load(tmp_path / "m").model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in weights.items())


def test_settings_follow_from_shapes() -> None:
    config, _ = legacy.convert(small_weights(16), "x.pt", groups=4)
    assert (config.mode, config.known, config.crop) == ("always_known_healthy", "scaled", 128)


def test_other_networks_are_not_mistaken_for_ours() -> None:
    weights = small_weights()
    assert legacy.recognise(weights)
    assert not legacy.recognise({k: v for k, v in weights.items() if not k.startswith("out.")})
    four_out = weights | {"out.2.weight": weights["out.2.weight"][:4]}
    assert not legacy.recognise(four_out), "Med-DDPM gives four contrasts, not eight bands"


def test_cwdm_is_read_with_its_concatenated_skips(tmp_path: Path) -> None:
    from wdm3d.config import Config
    from wdm3d.network import build

    published = Config(mode="contrast", skips="concat", multipliers=(1, 2, 2, 4, 4), crop=128)
    with torch.device("meta"):
        network = build(published)
    assert sum(p.numel() for p in network.parameters()) == 81_511_048
    assert len(network.state_dict()) == 394
    narrow = replace(published, width=8, groups=4)
    torch.save(build(narrow).state_dict(), tmp_path / "brats_unet_128_1200k.pt")
    words = ["convert", str(tmp_path / "brats_unet_128_1200k.pt"), "-o", str(tmp_path / "m")]
    assert main([*words, "--set", "groups=4"]) == 0
    loaded = checkpoint.load(tmp_path / "m")
    assert loaded.config == narrow
    with pytest.raises(SynthError, match="fills no hole"):
        mode_of(loaded.config)


def test_a_missing_weight_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = small_weights()
    del weights["input_blocks.3.0.in_layers.2.weight"]
    torch.save(weights, tmp_path / "a.pt")
    words = ["convert", str(tmp_path / "a.pt"), "-o", str(tmp_path / "m"), "--set", "groups=4"]
    assert main(words) == 2
    assert "input_blocks.3.0.in_layers.2.weight" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
