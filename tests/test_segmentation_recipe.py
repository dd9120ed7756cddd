"""The recipe through the real command line: resuming, fine-tuning, judging whole cases."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from segmentation import finetune
from segmentation.config import FROM_DATA, LARGEST, Config
from segmentation.data import SegmentationData
from segmentation.network import build
from segmentation.recipe import Recipe, assemble, fit_to_data
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.cli import main
from synth.data.case import discover
from synth.metrics.overlap import dice
from synth.phantom.cohort import write_cohort
from tests.conftest import write_case
from tests.toy_recipe import assert_same, state

SMALL = Config(width=4, patch=(16, 16, 16), spacing_mm=1.0, augment="light")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for number in range(1, 5):
        write_case(tmp_path / "data", f"BraTS-GLI-{number:05d}-000", seed=number)
    return tmp_path / "data"


def words(cohort: Path, out: Path, steps: int, *more: str) -> list[str]:
    text = (
        f"train segmentation --data {cohort} -o {out} --steps {steps} --batch-size 1 "
        "--spacing-mm 1 --patch 16 16 16 --width 4 --validate-every 10 --save-every 10 "
        "--preview-every 10 --log-every 1 --warmup-steps 4"
    )
    return [*text.split(), *more]


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free"])
def test_twenty_steps_by_command_equal_ten_and_ten(cohort, tmp_path, optimizer):
    more = ("--optimizer", optimizer, "--decay", "constant", "--augment", "full")
    assert main(words(cohort, tmp_path / "once", 20, *more)) == 0
    assert main(words(cohort, tmp_path / "twice", 10, *more)) == 0
    assert main(words(cohort, tmp_path / "twice", 20, *more)) == 0
    once, twice = state(tmp_path / "once"), state(tmp_path / "twice")
    assert_same(once, twice)
    files = [tmp_path / run / "last" / "model.safetensors" for run in ("once", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = [
        json.loads(line) for line in (tmp_path / "twice" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, 21))
    judged = lines[-1]
    assert {"validation/dice", "validation/dice_WT", "validation/left_out_ET"} <= judged.keys()
    published = checkpoint.load(tmp_path / "once" / "last").model.state_dict()
    if optimizer == "schedule_free":  # x is published, y is trained
        averages = once["optimizers"]["model"]["state"]
        for i, name in enumerate(n for n, _ in build(SMALL).named_parameters()):
            if i in averages:  # the coarsest head is never asked
                assert torch.equal(published[name], averages[i]["x"])
    assert not torch.equal(published["stem.weight"], once["model"]["stem.weight"])


def test_the_patch_can_be_chosen_from_the_data_and_resuming_chooses_the_same(cohort, tmp_path):
    def ask(steps: int, run: str, patch: str) -> int:
        asked = words(cohort, tmp_path / run, steps, "--validate-every", "0")
        start = asked.index("--patch")
        asked[start : start + 4] = ["--patch", patch]
        return main([*asked, "--spacing-mm", "0.5"])

    assert ask(2, "run", "0,0,0") == 0
    brains = [c.load("t1n").data[0] > 0 for c in discover(cohort)]
    boxes = [np.ptp(np.argwhere(brain), axis=0) + 1 for brain in brains]
    edges = np.ceil(np.median(boxes, axis=0) * 2 / 16) * 16  # voxels of half a millimetre
    expected = [int(edge) for edge in edges]
    assert len(set(expected)) > 1  # a cube would hide an order of axes
    facts = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert facts["config"]["patch"] == expected
    who = json.loads(state(tmp_path / "run")["identity"])
    assert who["config"]["patch"] == expected
    assert ask(3, "run", "0,0,0") == 0
    assert ask(4, "run", ",".join(map(str, expected))) == 0
    assert state(tmp_path / "run")["step"] == 4
    assert ask(5, "run", "16,16,16") == 2


def test_a_chosen_patch_has_a_limit_and_the_networks_multiple(cohort, tmp_path):
    cases = discover(cohort)
    huge = replace(SMALL, patch=FROM_DATA, spacing_mm=0.12)
    assert fit_to_data(huge, cases[:1], cache=tmp_path).patch == LARGEST
    swin = replace(SMALL, patch=FROM_DATA, network="swin_unetr", width=12)
    assert fit_to_data(swin, cases, cache=tmp_path).patch == (32, 32, 32)
    assert fit_to_data(SMALL, cases, cache=tmp_path) is SMALL


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"network": "segresnet", "kernel": 5}, "segresnet has no kernel of 5"),
        ({"network": "segresnet", "upkern": "zeros"}, "the kernel stays 3"),
        ({"upkern": "zeros"}, "the kernel stays 3"),
        ({"patch": (0, 16, 16)}, "patch = .0, 16, 16"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(setting, message):
    with pytest.raises(SynthError, match=message):
        Config(**setting)
    assert Config(kernel=5, upkern="zeros").upkern == "zeros"


class Told(nn.Module):
    """Answers with given probabilities, whatever it sees."""

    def __init__(self, regions: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(regions.float() * 20 - 10)

    def forward(self, x):
        return self.logits[None]


def test_whole_cases_are_judged_by_dice_and_what_both_leave_empty_is_left_out(cohort):
    config = replace(SMALL, patch=(32, 32, 32))
    data = SegmentationData(discover(cohort), config, fixed=True)
    batch = default_collate([data.item(0, 0)])
    shape = batch["regions"].shape[2:]
    margins = [(32 - n) // 2 for n in shape]

    def told(regions):
        padded = torch.zeros(3, 32, 32, 32)
        padded[:, *(slice(m, m + n) for m, n in zip(margins, shape, strict=True))] = regions
        return Recipe(config, Told(padded)).validate(batch)

    perfect = told(batch["regions"][0].float())
    assert [perfect[k] for k in ("dice", "dice_WT", "dice_TC", "dice_ET")] == [1, 1, 1, 1]
    half = batch["regions"][0].float()
    half[0, : shape[0] // 2] = 0
    half[2] = 0
    found = told(half)
    expected = dice(half[0].numpy(), batch["regions"][0, 0].numpy())
    assert found["dice_WT"] == pytest.approx(expected)
    assert found["dice"] == pytest.approx((expected + 1 + 0) / 3)
    batch["regions"][0, 2] = False
    without = told(half)
    assert "dice_ET" not in without
    assert without["left_out_ET"] == 1
    assert without["left_out_WT"] == 0
    assert without["dice"] == pytest.approx((expected + 1) / 2)


def test_previews_lie_on_one_grid(cohort):
    data = SegmentationData(discover(cohort), SMALL, fixed=True)
    item = data.item(0, 0)
    recipe = Recipe(SMALL)
    recipe.model.eval()
    with torch.no_grad():
        shown = recipe.preview(default_collate([item]))
    depth = sum(item["regions"].numpy().astype(int))
    assert np.array_equal(shown["truth"].data[0], depth)
    assert np.array_equal(shown["t1c"].data[0], item["image"][1].numpy())
    assert shown["prediction"].data.dtype == np.int16
    shown["t1c"].require_same_grid(shown["prediction"])


def test_one_crop_is_learned_by_heart(cohort):
    config = replace(SMALL, augment="none", lr=3e-3)
    data = SegmentationData(discover(cohort), config)
    batch = default_collate([data.item(0, 1)])
    torch.manual_seed(0)
    recipe = Recipe(config)
    optimizer = recipe.optimizers()["model"]
    losses = []
    for _ in range(25):
        ((_, value),) = recipe.losses(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.75 * losses[0]


def test_fine_tuning_keeps_what_is_frozen_and_renews_what_is_reset(cohort, tmp_path, capsys):
    assert main(words(cohort, tmp_path / "base", 2)) == 0
    base = checkpoint.load(tmp_path / "base" / "last").model
    parts = base.parts()
    common = f"train segmentation --data {cohort} -o {tmp_path / 'tuned'} --steps 3 --batch-size 1"
    common += f" --init-from {tmp_path / 'base' / 'last'} --log-every 1"
    # the network's settings are the base's: nothing has to be said again
    chosen = ("--freeze", "encoder,bottleneck", "--reset", "heads,dec3", "--validate-every", "0")
    assert main([*common.split(), *chosen]) == 0
    tuned = checkpoint.load(tmp_path / "tuned" / "last")
    before, after = base.state_dict(), tuned.model.state_dict()
    assert finetune.select_parameters(base, [r"^heads\.0"]) == {"heads.0.weight", "heads.0.bias"}
    for name in (*parts["encoder"], *parts["bottleneck"]):
        assert torch.equal(before[name], after[name]), name
    for part in ("dec0", "dec1", "dec2", "dec3", "heads"):
        assert any(not torch.equal(before[name], after[name]) for name in parts[part]), part
    assert tuned.config.patch == (16, 16, 16)
    assert tuned.config.init_from == "last"  # not where it was on this machine
    table = capsys.readouterr().err.partition("tuned: from step")[0].split("base/last:\n")[1]
    rows = {line.split()[0]: line.split()[-1] for line in table.splitlines()[:10]}
    assert rows == {
        **{f"enc{i}": "frozen" for i in range(4)}, "bottleneck": "frozen",
        **{f"dec{i}": "trained" for i in range(3)}, "dec3": "reset", "heads": "reset",
    }  # fmt: skip
    trained = sum(p.numel() for n, p in base.named_parameters() if n in tuned_names(parts))
    assert f"{trained:,} trained" in table


def tuned_names(parts: dict[str, list[str]]) -> set[str]:
    return {*parts["decoder"], *parts["heads"]}


def test_a_reset_part_is_drawn_anew_and_the_rest_is_loaded(cohort, tmp_path):
    torch.manual_seed(5)
    base = build(SMALL)
    checkpoint.save(tmp_path / "w", model=base, family="segmentation", preset="p", config=SMALL)
    config = replace(SMALL, init_from=str(tmp_path / "w"), reset=("dec3",), freeze=("enc0",))
    torch.manual_seed(6)
    model = finetune.start_network(config)
    torch.manual_seed(6)
    fresh = build(SMALL).state_dict()
    old, parts = base.state_dict(), base.parts()
    for name, parameter in model.named_parameters():
        source = fresh if name in parts["dec3"] else old
        assert torch.equal(parameter, source[name]), name
        assert parameter.requires_grad == (name not in parts["enc0"])
    optimizer = Recipe(config, model).optimizers()["model"]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(old) - len(parts["enc0"])


def test_a_larger_kernel_begins_from_a_smaller_one(tmp_path):
    torch.manual_seed(5)
    base = build(SMALL)
    checkpoint.save(tmp_path / "w", model=base, family="segmentation", preset="p", config=SMALL)
    model = finetune.start_network(replace(SMALL, init_from=str(tmp_path / "w"), kernel=5))
    own = dict(model.named_parameters())
    for name, small in base.named_parameters():
        if name.endswith("depthwise.weight"):
            stretched = nn.functional.interpolate(small, size=(5, 5, 5), mode="trilinear")
            assert torch.equal(own[name], stretched), name
        else:
            assert torch.equal(own[name], small), name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"freeze": ("encodr",)}, r"no part 'encodr'.*did you mean encoder"),
        ({"reset": ("dec9",)}, r"no part 'dec9'.*did you mean dec"),
        ({"reset": ("dec(",)}, r"reset 'dec\('.*unterminated"),
        ({"freeze": ("decoder",), "reset": ("dec0",)}, "both frozen and reset"),
        ({"freeze": ("encoder", "bottleneck", "decoder", "heads")}, "every part is frozen"),
        ({"width": 8}, r"width = 8, but .* has 4"),
        ({"init_from": "", "freeze": ("heads",)}, "without init_from"),
        ({"init_from": "no/such"}, "no such checkpoint"),
    ],
)
def test_fine_tuning_refuses(tmp_path, more, message):
    checkpoint.save(
        tmp_path / "w", model=build(SMALL), family="segmentation", preset="p", config=SMALL
    )
    config = replace(SMALL, **({"init_from": str(tmp_path / "w")} | more))
    with pytest.raises(SynthError, match=message):
        finetune.start_network(config)


def test_a_bad_case_ends_the_command_with_its_name(cohort, tmp_path, capsys):
    broken = discover(cohort)[2]
    volume = broken.load("t1c")
    volume.with_data(np.zeros_like(volume.data)).save(broken.files["t1c"])
    assert main(words(cohort, tmp_path / "run", 2)) == 2
    said = capsys.readouterr().err
    assert f"{broken.id}: t1c: every voxel has the same value" in said
    assert main([*words(cohort, tmp_path / "run", 2), "--freeze", "encodr"]) == 2


@pytest.mark.slow
def test_one_demo_case_is_learned_by_heart(tmp_path):
    """Dice above 0.95 in all regions within five minutes on two cores."""
    import time

    from segmentation.config import PRESETS
    from synth.training.config import TrainConfig
    from synth.training.loop import train

    write_cohort(tmp_path / "data", cases=1)
    cases = discover(tmp_path / "data")
    config = replace(PRESETS["tiny"], augment="none")
    torch.manual_seed(0)
    recipe, items, validation = assemble(config, cases, cases, cache=tmp_path / "cache")
    loop = TrainConfig(
        steps=400, ema_decay=0.9, decay="cosine", warmup_steps=20, keep="dice", keep_mode="max",
        validate_every=50, save_every=0, preview_every=0,
    )  # fmt: skip
    describe = {"family": "segmentation", "preset": "tiny", "config": config}
    before = time.monotonic()
    metrics = train(
        recipe, items, tmp_path / "run", loop, describe=describe, validation=validation
    )["metrics"]
    assert time.monotonic() - before < 300
    assert min(metrics[f"dice_{r}"] for r in ("WT", "TC", "ET")) > 0.95, metrics
