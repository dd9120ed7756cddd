"""Names of the predecessor mean something, or are refused with the reason."""

import json
from pathlib import Path

import pytest

from synth.base.errors import SynthError
from synth.cli import main
from tests.conftest import write_case
from wdm3d.config import Config
from wdm3d.legacy import MODES, REFUSED, translate

# The words after `TRAIN_MODE=` that its run.sh knew.
SIX = (
    "Default",
    "Conditional_default",
    "Conditional_always_known",
    "Conditional_always_known_only_healthy",
    "Conditional_always_known_only_healthy_only_roi",
    "Conditional_always_known_only_healthy_stats_roi",
)


def test_every_name_is_known() -> None:
    assert set(SIX) == set(MODES) | set(REFUSED)
    for name in MODES:
        config = Config(**translate({"mode": name}))
        assert config.mode == ("default" if name == "Default" else "always_known_healthy")
        if name != "Default":  # 10 × the hole + 1 × everything, squared, with clean known tissue
            assert (config.l1, config.mse, config.everywhere) == (0, 10, 1)
            assert config.known == "clean"


@pytest.mark.parametrize("name", REFUSED)
def test_what_never_worked_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(SynthError, match="never sampled") as caught:
        translate({"mode": name})
    assert "always_known_healthy" in caught.value.hint


def test_own_names_pass_and_explicit_settings_win() -> None:
    assert translate({"mode": "context", "lr": 1e-3}) == {"mode": "context", "lr": 1e-3}
    assert translate({"lr": 1e-3}) == {"lr": 1e-3}
    assert translate({"mode": "Conditional_default", "mse": 3.0})["mse"] == 3
    with pytest.raises(SynthError, match="unknown mode 'Conditional_defualt'") as caught:
        translate({"mode": "Conditional_defualt"})
    assert caught.value.hint == "did you mean Conditional_default?"


def test_training_by_a_historical_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in (1, 2):
        write_case(tmp_path / "data", f"BraTS-GLI-{k:05d}-000", seed=k)
    words = ["train", "wdm3d", "--data", str(tmp_path / "data"), "--spacing-mm", "1", "--crop", "8"]
    words += ["--steps", "1", "--batch-size", "1", "--width", "8", "--multipliers", "1", "2"]
    words += ["--mode", "Conditional_always_known_only_healthy"]
    run = tmp_path / "run"
    assert main([*words, "--resume", str(run)]) == 2
    assert "no run to resume" in capsys.readouterr().err
    assert main(words) == 2
    assert "train needs --out" in capsys.readouterr().err
    assert main([*words, "--out", str(run)]) == 0
    config = json.loads((run / "last" / "config.json").read_text())["config"]
    assert (config["mode"], config["mse"]) == ("always_known_healthy", 10)
    assert main([*words, "--resume", str(run), "--steps", "2"]) == 0
    assert "step 2 of 2" in capsys.readouterr().out
