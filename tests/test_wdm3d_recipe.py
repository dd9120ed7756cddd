"""The recipe learns, validates by the truth, and trains through the real command line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from synth.checkpoints import checkpoint
from synth.cli import main
from synth.data.case import discover
from synth.data.placement import place, site
from synth.data.tumour_mask import dilated_tumour
from synth.metrics.ssim_loss import ssim_map
from tests.conftest import obeys_rule, write_case
from wdm3d.config import PRESETS, Config
from wdm3d.data import InpaintingData
from wdm3d.network import build
from wdm3d.recipe import Recipe, mean_brain

SMALL = Config(
    spacing_mm=1.0, crop=16, width=8, groups=4, multipliers=(1, 2), atlas=8, lr=3e-3, augment=False
)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for number in range(1, 5):
        write_case(tmp_path / "data", f"BraTS-GLI-{number:05d}-000", seed=number)
    return tmp_path / "data"


def test_items_are_functions_of_their_seed_and_obey_the_rule(cohort: Path) -> None:
    data = InpaintingData(discover(cohort), SMALL)
    a, b, c = (data.item(1, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["roi"], c["roi"])
    arrays = data.prepared(1)
    where = site(arrays["brain"], arrays["unhealthy"], (1, 1, 1))
    assert a["roi"].sum() > 0
    assert not (a["roi"] * (a["hole"] - a["roi"])).any()
    middle = tuple((np.argwhere(a["roi"][0].numpy()).mean(0)).astype(int))
    assert a["truth"][0][middle] > -1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        placed = place(data.pool, where, rng, scale=SMALL.shape_scale)
        assert placed is None or obeys_rule(placed, where)


def test_the_network_is_never_shown_the_truth_in_the_hole(cohort: Path) -> None:
    """Other tissue under the mask, everything else equal: every input is the same."""
    data = InpaintingData(discover(cohort), SMALL, fixed=True)
    before = data.item(0, 0)
    arrays = data.prepared(0)
    hole = arrays["healthy"] | arrays["unhealthy"]
    arrays["image"] = np.where(hole, 0.123, arrays["image"]).astype(np.float32)
    after = data.item(0, 0)
    for name in set(before) - {"truth"}:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["truth"], after["truth"])


def test_a_new_context_network_answers_the_classical_fill(cohort: Path) -> None:
    data = InpaintingData(discover(cohort), SMALL, fixed=True)
    batch = default_collate([data.item(0, 0)])
    recipe = Recipe(SMALL)
    inside = batch["roi"] > 0
    fill = batch["fills"][:, :1]
    # Zero-initialised: the residual is exactly nothing until something is learned.
    assert torch.allclose(recipe.mean_estimate(batch)[inside], fill[inside].clamp(min=-1))


@pytest.mark.parametrize("mode", ["default", "always_known_healthy", "context"])
def test_one_item_is_learned_by_heart(cohort: Path, mode: str) -> None:
    config = Config(**{**vars_of(SMALL), "mode": mode, "terminal_share": 0.0})
    data = InpaintingData(discover(cohort), config, fixed=True)
    batch = default_collate([data.item(0, 0)] * 4)
    torch.manual_seed(0)
    recipe = Recipe(config)
    recipe.times = lambda count: torch.full((count,), 300.0)  # ty: ignore[invalid-assignment]
    optimizer = recipe.optimizers()["model"]
    losses = []
    for step in range(120):
        torch.manual_seed(step)
        ((_, loss),) = recipe.losses(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:3])


def vars_of(config: Config) -> dict:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_the_atlas_starts_as_the_mean_brain(cohort: Path) -> None:
    data = InpaintingData(discover(cohort), SMALL)
    atlas = mean_brain(data)
    assert atlas is not None
    assert atlas.shape == (1, 8, 8, 8, 8)
    low = atlas[0, 0] / 8**0.5  # the low band of a constant c is √8 c
    assert low[3:5, 3:5, 3:5].mean() > low[0].mean() + 0.5  # tissue in the middle, air at the face
    assert mean_brain(InpaintingData(discover(cohort), PRESETS["fast"])) is None


def test_every_preset_builds(cohort: Path) -> None:
    for name, config in PRESETS.items():
        with torch.device("meta"):
            model = build(config)
        if name == "brats23":
            assert 83e6 < sum(p.numel() for p in model.parameters()) < 83.5e6


def words(cohort: Path, out: Path, steps: int) -> list[str]:
    text = (
        f"train wdm3d --data {cohort} -o {out} --steps {steps} --batch-size 2 --spacing-mm 1 "
        "--crop 16 --width 8 --groups 4 --multipliers 1 2 --atlas 8 --validate-every 3 "
        "--save-every 3 --preview-every 3 --log-every 1 --decay constant"
    )
    return text.split()


def test_training_by_command_resumes_bit_for_bit(cohort: Path, tmp_path: Path) -> None:
    assert main(words(cohort, tmp_path / "once", 6)) == 0
    assert main(words(cohort, tmp_path / "twice", 3)) == 0
    assert main(words(cohort, tmp_path / "twice", 6)) == 0
    a, b = (checkpoint.load(tmp_path / run / "last") for run in ("once", "twice"))
    weights = a.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in b.model.state_dict().items())
    assert a.config.crop == 16
    card = (tmp_path / "once" / "last" / "README.md").read_text()
    (told,) = re.findall(r"^synth (.*)$", card, re.MULTILINE)
    assert str(cohort) not in card  # a folder's name may be private
    again = told.replace("DATA", str(cohort)).split()
    assert main([*again, "-o", str(tmp_path / "again")]) == 0
    c = checkpoint.load(tmp_path / "again" / "last").model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in c.items())
    lines = (tmp_path / "twice" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert "validation/psnr_01" in json.loads(lines[-1])


def test_the_unhealthy_mask_follows_the_challenge() -> None:
    tumour = np.zeros((30, 30, 30), bool)
    tumour[5:16, 5:16, 5:16] = True
    tumour[10, 10, 10] = False  # a hole
    tumour[25, 25, 25] = True  # a speck below 800 mm³
    mask = dilated_tumour(tumour, (1, 1, 1))
    assert mask[10, 10, 10]
    assert not mask[25, 25, 25]
    assert mask[10, 10, 19]
    assert not mask[10, 10, 20]
    assert not dilated_tumour(np.zeros((9, 9, 9), bool), (1, 1, 1)).any()


def test_the_ssim_loss_is_one_minus_the_ssim_of_the_painted_image(cohort: Path) -> None:
    data = InpaintingData(discover(cohort), SMALL, fixed=True)
    batch = default_collate([data.item(0, 0), data.item(1, 0)])
    answers = []
    for weight in (0.0, 2.0):
        recipe = Recipe(Config(**{**vars_of(SMALL), "ssim": weight}))
        answer = torch.zeros_like(recipe.mode.state(batch["truth"], batch))
        answers.append(recipe.loss(answer, batch))
    painted = recipe.mode.image(answer, batch)  # an answer of nothing paints the fill
    whole = torch.where(batch["roi"] > 0, painted, batch["truth"])
    similar = ssim_map((whole + 1) / 2, (batch["truth"] + 1) / 2)
    inside = [1 - s[r > 0].mean() for s, r in zip(similar, batch["roi"], strict=True)]
    assert float(answers[1] - answers[0]) == pytest.approx(2 * float(sum(inside) / 2), rel=1e-4)


def test_a_run_of_other_settings_or_a_missing_gpu_is_refused_before_data_are_prepared(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "wdm3d", "--data", str(cohort), "-o", str(tmp_path / "run"), "--crop", "16"]
    words += ["--width", "8", "--groups", "4", "--multipliers", "1", "2", "--steps", "1"]
    assert main([*words, "--device", "cpu", "--validation-share", "0"]) == 0
    shutil.rmtree(tmp_path / "run" / "cache")
    capsys.readouterr()
    for more, said in ((["--atlas", "4"], "was begun with atlas = 32"),):
        assert main([*words, *more, "--validation-share", "0"]) == 2
        assert said in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main([*words, "--device", "cuda", "--validation-share", "0"]) == 2
        assert "device cuda is not available" in capsys.readouterr().err
    assert not (tmp_path / "run" / "cache").exists()


def test_a_split_of_another_folder_is_told(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = {"training": [{"t1n": "a/BraTS-GLI-00001-000-t1n.nii.gz"}]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    words = ["train", "wdm3d", "--data", str(cohort), "--split", str(tmp_path / "split.json")]
    assert main([*words, "-o", str(tmp_path / "run"), "--validation-share", "0"]) == 2
    assert "relative to --data" in capsys.readouterr().err
    (tmp_path / "a").mkdir()  # the folder of the split is the one that was meant
    (tmp_path / "a/BraTS-GLI-00001-000-t1n.nii.gz").touch()
    assert main([*words, "-o", str(tmp_path / "run"), "--validation-share", "0"]) == 2
    assert f"give {tmp_path} as the data" in capsys.readouterr().err
