"""LoRA: the first step is the base's, files are peft's, merging is exact, the base never moves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpm_lora.config import LORA_RATES, PRESETS, Config
from ddpm_lora.data import SynthesisData
from ddpm_lora.lora import adapters, merging
from ddpm_lora.lora.finetune import FineTuning, attach, only_trainable, published_name
from ddpm_lora.network import build
from ddpm_lora.recipe import measure
from synth.base.errors import SynthError
from synth.base.files import file_hash
from synth.checkpoints import checkpoint
from synth.cli import main
from synth.data.case import discover
from tests.conftest import write_case

SMALL = Config(
    width=8, groups=4, multipliers=(1, 2), blocks_per_level=1, crop=(20, 24, 16), timesteps=100
)
RANK = 2


def base_in(folder: Path, seed: int = 0, config: Config = SMALL) -> Path:
    torch.manual_seed(seed)
    network = build(config)
    for parameter in network.parameters():  # no layer may be zero: it would hide errors
        nn.init.normal_(parameter, std=0.1)
    return checkpoint.save(
        folder, model=network, family="ddpm_lora", preset="tiny", config=config, step=5
    )


def tuned(base: Path, preset: str = "full", seed: int = 1) -> FineTuning:
    """A fine-tuning whose adapter is already something."""
    config = replace(SMALL, lora_from=str(base), lora_preset=preset, lora_rank=RANK)
    recipe = FineTuning(config)
    shake(recipe.model, seed)
    return recipe


def shake(model: nn.Module, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))


def save(recipe: FineTuning, folder: Path, **facts: object) -> Path:
    describe = {"family": "ddpm_lora", "preset": "lora_full", "config": recipe.config}
    with checkpoint.staged(folder) as staged:
        recipe.writer(describe)(staged, recipe.model, facts)
    return folder


def pointing(base: Path) -> dict[str, str]:
    return {"path": str(base), "preset": "tiny", "fingerprint": "0" * 16}


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(1, 64, 10, 12, 8, generator=draw), torch.tensor([33.0])


@torch.no_grad()
def answer(network: nn.Module) -> Tensor:
    return network(*inputs())


@pytest.mark.parametrize("preset", ["light", "full", "last_two"])
def test_the_first_answer_is_the_bases_bit_for_bit(tmp_path: Path, preset: str) -> None:
    base = base_in(tmp_path / "base")
    config = replace(SMALL, lora_from=str(base), lora_preset=preset)
    recipe = FineTuning(config)
    assert torch.equal(answer(recipe.network), answer(checkpoint.load(base).model))
    assert sum(p.numel() for p in recipe.model.parameters()) > 0


@pytest.mark.parametrize("preset", ["light", "full", "last_two"])
def test_saved_read_by_peft_and_merged_all_answer_alike(tmp_path: Path, preset: str) -> None:
    from peft import PeftModel

    base = base_in(tmp_path / "base")
    recipe = tuned(base, preset)
    expected = answer(recipe.network)
    folder = save(recipe, tmp_path / "site_b")
    plain = checkpoint.load(base).model
    assert not torch.allclose(answer(plain), expected, atol=1e-2)
    merged = checkpoint.load(folder)
    torch.testing.assert_close(answer(merged.model), expected, atol=1e-5, rtol=1e-5)
    read = PeftModel.from_pretrained(plain, str(folder)).eval()
    assert torch.equal(answer(read), expected)
    # the merged network, written plainly, has the base's names
    assert main(["convert", str(folder), "-o", str(tmp_path / "plain")]) == 0
    again = checkpoint.load(tmp_path / "plain")
    assert torch.equal(answer(again.model), answer(merged.model))
    assert again.model.state_dict().keys() == build(SMALL).state_dict().keys()
    assert again.metadata["adapters"][0]["name"] == "site_b"
    assert "base" not in again.metadata


def test_an_adapter_brings_its_sites_statistics(tmp_path: Path) -> None:
    """Means and spreads are the site's, halfway with half the weight; peft reads the file."""
    from peft import PeftModel

    base = base_in(tmp_path / "base", config=replace(SMALL, anatomy=True))
    write_case(tmp_path / "data", "BraTS-GLI-00001-000", seed=1)
    config = replace(SMALL, anatomy=True, lora_from=str(base), spacing_mm=1.0)
    items = SynthesisData(discover(tmp_path / "data"), config)
    folder = save(FineTuning(config, items=items), tmp_path / "site_b")
    own = build(replace(SMALL, anatomy=True))
    measure(own, items)
    before, after = checkpoint.load(base).model, checkpoint.load(folder).model
    half = merging.load(f"{folder}:0.5").model
    for name, site in own.named_buffers():
        assert not torch.allclose(before.get_buffer(name), site)
        torch.testing.assert_close(after.get_buffer(name), site)
        mean = (before.get_buffer(name) + site) / 2
        torch.testing.assert_close(half.get_buffer(name), mean)
    x, t = torch.randn(1, 92, 10, 12, 8), torch.tensor([33.0])
    expected = after(x, t)
    assert torch.equal(PeftModel.from_pretrained(before, str(folder)).eval()(x, t), expected)


def test_full_adapts_every_kind_of_layer(tmp_path: Path) -> None:
    recipe = tuned(base_in(tmp_path / "base"))
    shapes = {tuple(p.shape[2:]) for n, p in recipe.model.named_parameters() if "lora_A" in n}
    assert shapes == {(), (1,), (1, 1, 1), (3, 3, 3)}  # Linear, Conv1d, 1×1×1 and 3×3×3
    count = sum("lora_A" in n for n, _ in recipe.model.named_parameters())
    network = build(SMALL)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv3d)
    assert count == sum(isinstance(m, kinds) for m in network.modules())


def test_what_peft_saves_is_read(tmp_path: Path) -> None:
    """An adapter of peft's own making, with its patterns, and no word of us in it."""
    from peft import LoraConfig, get_peft_model

    base = base_in(tmp_path / "base")
    network = checkpoint.load(base).model
    settings = LoraConfig(
        r=3, lora_alpha=5, target_modules=r".*(skip_connection|qkv|in_layers\.2)",
        alpha_pattern={"qkv": 7}, use_rslora=True,
    )  # fmt: skip
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv3d | nn.Conv1d)]
    kept = [n for n in names if n.endswith(("skip_connection", "qkv", "in_layers.2"))]
    settings.target_modules = "|".join(n.replace(".", r"\.") for n in kept)
    wrapped = get_peft_model(network, settings)
    shake(only_trainable(wrapped))
    wrapped.save_pretrained(str(tmp_path / "foreign"))
    expected = answer(wrapped)
    loaded = merging.load(tmp_path / "foreign", base=base)
    torch.testing.assert_close(answer(loaded.model), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(SynthError, match="does not say which base"):
        merging.load(tmp_path / "foreign")


def test_two_adapters_mix_linearly(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    tables = [{"t1n": {"low": 0.0, "high": h}} for h in (100.0, 300.0)]
    folders = []
    for i, preset in enumerate(("full", "light")):
        recipe = tuned(base, preset, seed=i)
        recipe.facts = {"intensities": tables[i]}
        folders.append(save(recipe, tmp_path / f"site{i}"))
    plain = checkpoint.load(base).model.state_dict()
    alone = [checkpoint.load(f).model.state_dict() for f in folders]
    mixed = merging.load([f"{folders[0]}:0.75", f"{folders[1]}:0.25"])
    for name, value in mixed.model.state_dict().items():
        expected = plain[name] + sum(
            w * (a[name] - plain[name]) for w, a in zip((0.75, 0.25), alone, strict=True)
        )
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert mixed.metadata["intensities"] == {"t1n": {"low": 0.0, "high": 150.0}}
    none = merging.load(f"{folders[0]}:0").model.state_dict()
    assert all(torch.equal(none[k], v) for k, v in plain.items())


def test_published_sizes_of_the_adapters(tmp_path: Path) -> None:
    """Counts of meddpm.md section 6; the largest file is what a site sends around."""
    counts = {}
    for preset in LORA_RATES:
        with torch.device("meta"):
            config = replace(PRESETS["meddpm"], lora_preset=preset)
            wrapped, _ = attach(build(config), config)
        model = only_trainable(wrapped).to_empty(device="cpu")
        counts[preset] = sum(p.numel() for p in model.parameters())
        if preset == "full":
            tensors = {published_name(k): v for k, v in model.state_dict().items()}
            adapters.write(
                tmp_path, tensors=tensors, settings={}, base=pointing(tmp_path), config=config,
                family="ddpm_lora", preset="lora_full",
            )  # fmt: skip
    assert counts["last_two"] == 14_596
    assert counts["full"] == pytest.approx(2.65e6, rel=0.01)
    assert 1.5e5 < counts["light"] < 2.0e5
    assert (tmp_path / checkpoint.ADAPTER).stat().st_size < 12e6
    assert len(load_file(tmp_path / checkpoint.ADAPTER)) == 2 * 113


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number in range(1, 4):
        write_case(folder, f"BraTS-GLI-{number:05d}-000", seed=number)
    return folder


def words(cohort: Path, base: Path, out: Path, steps: int) -> list[str]:
    text = (
        f"train ddpm_lora --data {cohort} -o {out} --steps {steps} --batch-size 1 --lora-from "
        f"{base} --lora-preset full --lora-rank 2 --validate-every 2 --save-every 2 "
        "--preview-every 0 --log-every 1 --decay constant --checkpointing"
    )
    return text.split()


def test_fine_tuning_by_command_resumes_and_leaves_the_base_alone(
    cohort: Path, tmp_path: Path
) -> None:
    base = base_in(tmp_path / "base")
    before = file_hash(base / checkpoint.WEIGHTS)
    assert main(words(cohort, base, tmp_path / "once", 4)) == 0
    assert main(words(cohort, base, tmp_path / "twice", 2)) == 0
    assert main(words(cohort, base, tmp_path / "twice", 4)) == 0
    assert file_hash(base / checkpoint.WEIGHTS) == before
    a, b = (load_file(tmp_path / run / "last" / checkpoint.ADAPTER) for run in ("once", "twice"))
    assert all(torch.equal(a[k], b[k]) for k in a | b)
    assert any(v.any() for k, v in a.items() if "lora_B" in k)  # it has moved
    state = torch.load(tmp_path / "once" / "last" / "state.pt", weights_only=True)
    assert not [k for k in (*state["model"], *state["ema"]) if "lora_" not in k]
    facts = json.loads((tmp_path / "once" / "last" / "config.json").read_text())
    assert facts["base"]["path"] == "../../base"
    assert facts["config"]["lora_from"] == "base"
    assert facts["config"]["lr"] == LORA_RATES["full"]
    assert (facts["preset"], facts["step"]) == ("lora_full", 4)
    assert str(tmp_path) not in json.dumps(facts)
    assert checkpoint.load(tmp_path / "once").metadata["adapters"][0]["name"] == "once"


def test_base_tensors_do_not_change_by_a_byte(tmp_path: Path, cohort: Path) -> None:
    from ddpm_lora.data import SynthesisData
    from synth.data.case import discover

    recipe = tuned(base_in(tmp_path / "base"))
    own = set(map(id, recipe.model.parameters()))
    frozen = {
        n: v.clone()
        for n, v in recipe.network.state_dict(keep_vars=True).items()
        if id(v) not in own
    }
    optimizer = recipe.optimizers()["model"]
    data = SynthesisData(discover(cohort), recipe.config)
    batch = {k: v[None] for k, v in data.item(0, 0).items()}
    for _ in range(3):
        ((_, loss),) = recipe.losses(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = recipe.network.state_dict()
    assert frozen
    assert all(torch.equal(after[n], v) for n, v in frozen.items())


def test_an_adapter_has_a_card_and_is_published_pointing_to_its_base(tmp_path: Path) -> None:
    base = base_in(tmp_path / "runs" / "deep" / "base")
    recipe = tuned(base)
    run = tmp_path / "runs" / "site_b"
    save(recipe, run / "best", step=7, metrics={"loss": 0.5}, command="synth train ddpm_lora …")
    count = sum(p.numel() for p in recipe.model.parameters())
    print_of = adapters.fingerprint(checkpoint.load(base).model)
    card = (run / "best" / "README.md").read_text()
    for line in (
        f"| base | ../../deep/base (tiny, weights {print_of}) |", f"| parameters | {count:,} |",
        "| step | 7 |", "| validation loss | 0.5 |", "```bash\nsynth train ddpm_lora …\n```",
        "`adapter_model.safetensors` holds the weights",
    ):  # fmt: skip
        assert line in card

    # handed on beside a base of half the size
    words = ["convert", str(base), "-o", str(tmp_path / "weights" / "base"), "--bits", "16"]
    assert main(words) == 0
    words = ["convert", str(run), "-o", str(tmp_path / "weights" / "site_b")]
    assert main([*words, "--adapter-of", str(tmp_path / "weights" / "base")]) == 0
    shutil.rmtree(tmp_path / "runs" / "deep")
    there = adapters.read(tmp_path / "weights" / "site_b")
    assert there.facts["base"]["path"] == there.settings["base_model_name_or_path"] == "../base"
    assert (there.facts["step"], there.facts["preset"]) == (7, "lora_full")
    assert "| base | ../base (tiny" in (there.folder / "README.md").read_text()
    own = adapters.read(run).tensors
    assert all(torch.equal(own[name], value) for name, value in there.tensors.items())
    # 16 bits have 11 digits of weights of 0.1
    torch.testing.assert_close(
        answer(checkpoint.load(there.folder).model), answer(recipe.network), atol=0.02, rtol=0.02
    )
    other = base_in(tmp_path / "other", seed=9)
    for more, message in (
        (["--adapter-of", str(other)], "adapts another base"),
        (["--adapter-of", str(tmp_path / "weights" / "base"), "--bits", "8"], "copied as it is"),
        (
            ["--adapter-of", str(tmp_path / "weights" / "base"), "--family", "wdm3d"],
            "not a wdm3d",
        ),
    ):
        with pytest.raises(SynthError, match=message):
            main_raises([*words, *more])
    with pytest.raises(SynthError, match="holds a whole network"):
        adapters.publish(run, tmp_path / "other", base=tmp_path / "weights" / "base")


def test_mistakes_are_explained(tmp_path: Path, cohort: Path) -> None:
    base = base_in(tmp_path / "base")
    other = base_in(tmp_path / "other", seed=9)
    folder = save(tuned(base), tmp_path / "adapters" / "site_b")
    with pytest.raises(SynthError, match="adapts another base"):
        merging.load(folder, base=other)
    with pytest.raises(SynthError, match="is an adapter itself"):
        main_raises(words(cohort, folder, tmp_path / "x", 1))
    with pytest.raises(SynthError, match="width = 16, but the base has 8"):
        main_raises([*words(cohort, base, tmp_path / "x", 1), "--width", "16"])
    with pytest.raises(SynthError, match="is not a weight"):
        merging.load(f"{folder}:much")
    with pytest.raises(SynthError, match="no such adapter"):
        merging.load(tmp_path / "nowhere")
    with pytest.raises(SynthError, match="holds none"):
        merging.load(base)
    # the base was moved: found beside the adapter, by its weights
    (tmp_path / "base").rename(tmp_path / "moved")
    assert merging.load(tmp_path / "adapters").model is not None
    (tmp_path / "moved" / checkpoint.WEIGHTS).unlink()
    with pytest.raises(SynthError, match="is not there"):
        merging.load(folder)
    content = (folder / checkpoint.ADAPTER).read_bytes()
    (folder / checkpoint.ADAPTER).write_bytes(content[: len(content) // 2])
    with pytest.raises(SynthError, match="cannot be read"):
        merging.load(folder)
    settings = json.loads((folder / checkpoint.ADAPTER_CONFIG).read_text())
    (folder / checkpoint.ADAPTER).write_bytes(content)
    (folder / checkpoint.ADAPTER_CONFIG).write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(SynthError, match="use_dora"):
        merging.load(folder)


def main_raises(argv: list[str]) -> None:
    from synth.cli import run

    run(argv[0], argv[1:])


def test_an_adapter_of_another_network_changes_nothing(tmp_path: Path) -> None:
    """Refused before the first weight is touched: no half-merged model."""
    base = base_in(tmp_path / "base")
    wide = replace(SMALL, width=16)
    settings = {"peft_type": "LORA", "lora_alpha": 2}
    wrapped, _ = attach(build(wide), wide)
    model = only_trainable(wrapped)
    shake(model)
    tensors = {published_name(k): v for k, v in model.state_dict().items()}
    tmp_path.joinpath("a").mkdir()
    adapters.write(
        tmp_path / "a", tensors=tensors, settings=settings, base=pointing(base), config=wide,
        family="ddpm_lora", preset="lora_full",
    )  # fmt: skip
    network = checkpoint.load(base).model
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(SynthError, match="does not fit the base"):
        merging.merge(network, [(adapters.read(tmp_path / "a"), 1.0)])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
