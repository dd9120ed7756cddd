"""Public MedNeXt weights go through `synth convert` and answer as the original networks do."""

import json
import re
from pathlib import Path

import pytest
import torch

from segmentation import legacy
from segmentation.config import Config
from segmentation.network import build
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.cli import main
from tests.conftest import FIXTURES
from tests.toy_models import weights_by_rule

GOLDEN = {"mednext_small_k3_ds": "mednext_s", "mednext_base_k3": "mednext_b"}


@pytest.mark.parametrize("name", GOLDEN)
def test_official_weights_answer_as_the_original(name: str, tmp_path: Path) -> None:
    path = FIXTURES / f"{name}.json"
    golden = json.loads(path.read_text())
    source = tmp_path / "model_final_checkpoint.model"
    torch.save({"epoch": 1000, "state_dict": weights_by_rule(golden["state_dict"])}, source)
    assert main(["convert", str(source), "-o", str(tmp_path / "model")]) == 0
    loaded = checkpoint.load(tmp_path / "model")
    deep = golden["config"]["deep_supervision"]
    assert loaded.family == "segmentation"
    assert loaded.config == Config(network=GOLDEN[name], deep_supervision=deep)
    # the official network has one more scalar, which no computation reads
    assert sum(p.numel() for p in loaded.model.parameters()) == golden["parameters"] - 1
    given = golden["input"]
    x = torch.randn(given["x_shape"], generator=torch.Generator().manual_seed(given["x_seed"]))
    with torch.no_grad():
        alone = loaded.model(x)
        answers = loaded.model.train()(x)
    assert torch.equal(alone, answers[0])
    assert len(answers) == len(golden["outputs"])
    for y, expected in zip(answers, golden["outputs"], strict=True):
        tolerance, s = 1e-4 * expected["std"], expected["stride"]
        assert list(y.shape) == expected["shape"]
        assert abs(float(y.mean()) - expected["mean"]) < tolerance
        assert abs(float(y.std()) - expected["std"]) < tolerance
        found = y[0, :, ::s, ::s, ::s].flatten()
        assert (found - torch.tensor(expected["values"])).abs().max() < tolerance


def monais(variant: str, width: int, **options) -> torch.nn.Module:
    """MONAI's network at a small width, which its own factory does not offer."""
    from monai.networks.nets import mednext

    table: dict = {
        "S": {"encoder_expansion_ratio": 2, "decoder_expansion_ratio": 2},
        "B": {
            "encoder_expansion_ratio": (2, 3, 4, 4),
            "decoder_expansion_ratio": (4, 4, 3, 2),
            "bottleneck_expansion_ratio": 4,
        },
        "L": {
            "encoder_expansion_ratio": (3, 4, 8, 8),
            "decoder_expansion_ratio": (8, 8, 4, 3),
            "bottleneck_expansion_ratio": 8,
            "blocks_down": (3, 4, 8, 8),
            "blocks_bottleneck": 8,
            "blocks_up": (8, 8, 4, 3),
        },
    }
    options = {"kernel_size": 3, "deep_supervision": True, **table[variant], **options}
    return mednext.MedNeXt(
        init_filters=width, in_channels=4, out_channels=3, use_residual_connection=True, **options
    )


@pytest.mark.parametrize(("variant", "kernel"), [("S", 5), ("B", 3), ("L", 3)])
def test_monais_weights_answer_as_monais_network(variant: str, kernel: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = monais(variant, 4, kernel_size=kernel)
    source = tmp_path / "best_metric_model.pth"
    torch.save({"module." + k: v for k, v in theirs.state_dict().items()}, source)
    assert main(["convert", str(source), "-o", str(tmp_path / "m")]) == 0
    loaded = checkpoint.load(tmp_path / "m")
    expected = Config(network=f"mednext_{variant.lower()}", width=4, kernel=kernel)
    assert loaded.config == expected
    x = torch.randn(1, 4, 32, 16, 32)
    with torch.no_grad():
        for mine, other in zip(loaded.model.train()(x), theirs(x), strict=True):
            # float32 rounding through up to 150 layers
            assert (mine - other).abs().max() < 1e-4 * other.std()


def test_widened_down_blocks_can_learn() -> None:
    config, weights = legacy.convert(monais("B", 4).state_dict(), "monai.pth")
    model = build(config)
    model.load_state_dict(weights)
    sum(y.sum() for y in model(torch.randn(1, 4, 16, 32, 16))).backward()
    old = 2 * 4  # MONAI's first down block is twice as wide inside, the paper's three times
    layer = model.down[0].compress.weight
    assert layer.shape[1] == 3 * 4
    assert not layer[:, old:].any()
    assert layer.grad[:, old:].abs().min() > 0


def official_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename MONAI's entries to the official ones, by the table of the published comparison."""
    renamed = {"dummy_tensor": torch.ones(1)}
    for key, value in state.items():
        key = re.sub(r"^enc_stages\.(\d)", r"enc_block_\1", key)
        key = re.sub(r"^down_blocks\.(\d)", r"down_\1", key)
        key = re.sub(r"^dec_stages\.(\d)", lambda m: f"dec_block_{3 - int(m[1])}", key)
        key = re.sub(r"^up_blocks\.(\d)", lambda m: f"up_{3 - int(m[1])}", key)
        key = re.sub(r"^out_blocks\.(\d)", lambda m: f"out_{4 - int(m[1])}", key)
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("deep", [True, False])
def test_both_namings_mean_the_same_tensors(deep: bool) -> None:
    state = monais("S", 4, deep_supervision=deep).state_dict()
    one, weights = legacy.convert(state, "a.pt")
    two, others = legacy.convert(official_names(state), "b.pt")
    assert one == two == Config(width=4, deep_supervision=deep)
    assert weights.keys() == others.keys() == build(one).state_dict().keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def test_other_networks_are_not_mistaken_for_mednext() -> None:
    state = official_names(monais("S", 4).state_dict())
    assert legacy.recognise(state)
    assert not legacy.recognise({k: v for k, v in state.items() if k != "stem.weight"})
    assert not legacy.recognise({k: v[..., 0] for k, v in state.items()}), "in two dimensions"


def test_strange_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = official_names(monais("S", 4).state_dict())
    words = ["convert", str(tmp_path / "a.pt"), "-o", str(tmp_path / "m")]
    torch.save(state | {"enc_block_0.0.grn_beta": torch.zeros(8)}, tmp_path / "a.pt")
    assert main(words) == 2
    assert "grn_beta" in capsys.readouterr().err
    del state["down_2.norm.bias"]
    torch.save(state, tmp_path / "a.pt")
    assert main(words) == 2
    assert "down.2.norm.bias" in capsys.readouterr().err
    fewer = {k: v for k, v in state.items() if not k.startswith("enc_block_1.1.")}
    with pytest.raises(SynthError, match="is not one we know"):
        legacy.convert(fewer, "a.pt")
    assert not (tmp_path / "m").exists()


def test_info_and_copies_of_our_own_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(network="dynunet", width=4, patch=(32, 32, 32))
    model = build(config)
    checkpoint.save(
        tmp_path / "a", model=model, family="segmentation", preset="small", config=config
    )
    assert main(["info", str(tmp_path / "a")]) == 0
    assert "dynunet" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "a"), "-o", str(tmp_path / "b")]) == 0
    loaded = checkpoint.load(tmp_path / "b")
    state = model.state_dict()
    assert loaded.config == config
    assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())
