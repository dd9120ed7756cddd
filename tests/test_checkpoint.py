"""A checkpoint knows itself, survives what happens to files, and runs nobody's code."""

import contextlib
import json
import os
import resource
import shutil
import struct
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from synth.base import families, weights
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.checkpoints.convert import convert, read_weights, strip_prefixes, unwrap
from tests.toy_recipe import Config, build, register


@pytest.fixture(autouse=True)
def toy():
    register()


def network(seed: int = 0, **settings) -> tuple[nn.Module, Config]:
    torch.manual_seed(seed)
    config = Config(**settings)
    return build(config), config


def saved(path, seed: int = 0, **facts):
    model, config = network(seed)
    checkpoint.save(path, model=model, family="toy", preset="tiny", config=config, **facts)
    return model


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_round_trip_of_a_folder_and_of_the_lone_file(tmp_path):
    model = saved(tmp_path / "c", seed=7, step=12, metrics={"dice": 0.5}, data_hash="abc")
    lone = Path(shutil.copy(tmp_path / "c" / "model.safetensors", tmp_path / "x.safetensors"))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    for path in (tmp_path / "c", lone):
        found = checkpoint.load(path)
        assert same_weights(found.model, model)
        assert torch.equal(found.model(x), model.eval()(x))
        assert (found.family, found.preset, found.config) == ("toy", "tiny", Config())
        assert not any(p.requires_grad for p in found.model.parameters())
        assert not found.model.training
        assert (found.metadata["step"], found.metadata["data_hash"]) == (12, "abc")
    written = json.loads((tmp_path / "c" / "config.json").read_text())
    assert written == checkpoint.read_metadata(lone)
    assert written["format"] == 1
    assert written["versions"]["torch"] == torch.__version__
    card = (tmp_path / "c" / "README.md").read_text()
    assert "| validation dice | 0.5 |" in card
    modes = {f.stat().st_mode for f in (tmp_path / "c").iterdir()}
    assert len(modes) == 1  # colleagues may read all of it or nothing
    saved(tmp_path / "d", seed=7, step=12, metrics={"dice": 0.5}, data_hash="abc")
    assert (tmp_path / "d" / "model.safetensors").read_bytes() == lone.read_bytes()
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    checkpoint.load(lone)  # draws no random numbers
    assert torch.equal(torch.randn(4), expected)


def test_half_precision_is_a_copy_of_half_the_size_that_loads_as_ever(tmp_path):
    model = saved(tmp_path / "run" / "best", seed=3, step=9, metrics={"dice": 0.5})
    convert(tmp_path / "run", tmp_path / "half", bits=16)
    found = checkpoint.load(tmp_path / "half")
    for name, weight in model.state_dict().items():
        assert found.model.state_dict()[name].dtype == torch.float32
        assert torch.equal(found.model.state_dict()[name], weight.half().float())
    assert (found.metadata["step"], found.metadata["metrics"]) == (9, {"dice": 0.5})
    sizes = [(tmp_path / d / "model.safetensors").stat().st_size for d in ("run/best", "half")]
    count = sum(p.numel() for p in model.parameters())
    assert sizes[0] - sizes[1] == pytest.approx(2 * count, abs=64)  # the headers differ a little
    convert(tmp_path / "run", tmp_path / "whole")
    assert same_weights(checkpoint.load(tmp_path / "whole").model, model)
    with pytest.raises(SynthError, match="knows its settings"):
        convert(tmp_path / "run", tmp_path / "other", overrides={"width": 3})


def test_eight_bits_are_off_by_at_most_half_a_step_of_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr("synth.checkpoints.compression.LARGE", 8)
    model = saved(tmp_path / "run" / "best", seed=3)
    convert(tmp_path / "run", tmp_path / "eight", bits=8)
    found = checkpoint.load(tmp_path / "eight").model.state_dict()
    large = {k: v for k, v in model.state_dict().items() if v.ndim > 1 and v.numel() >= 8}
    assert large.keys() < found.keys()
    for name, weight in model.state_dict().items():
        off = (found[name] - weight).abs()
        if name in large:
            step = weight.flatten(1).abs().amax(1, keepdim=True) / 127
            assert (off.flatten(1) <= step * 0.5001).all()
            assert off.any()
        else:
            assert torch.equal(found[name], weight.half().float())


def test_shipped_weights_are_found_from_any_folder(tmp_path, monkeypatch):
    saved(tmp_path / "package" / "weights" / "toy")
    monkeypatch.setattr(weights, "SHIPPED", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    assert checkpoint.load("weights/toy").family == "toy"
    saved(tmp_path / "weights" / "toy", seed=5)
    assert checkpoint.locate("weights/toy") == Path("weights/toy/model.safetensors")


def test_tied_weights_are_written_twice(tmp_path):
    model, config = network()
    model[3].bias = nn.Parameter(model[3].weight.data[0, :1])  # a view of the same memory
    checkpoint.save(tmp_path / "c", model=model, family="toy", preset="t", config=config)
    assert same_weights(checkpoint.load(tmp_path / "c").model, model)


def test_a_run_gives_its_best_then_its_last(tmp_path, caplog):
    caplog.set_level("INFO")
    last = saved(tmp_path / "run" / "last", seed=1)
    assert same_weights(checkpoint.load(tmp_path / "run").model, last)
    best = saved(tmp_path / "run" / "best", seed=2)
    assert same_weights(checkpoint.load(tmp_path / "run").model, best)
    assert "using best/" in caplog.text


@pytest.mark.parametrize("instant", range(8))
def test_interrupted_save_leaves_the_old_or_the_new(tmp_path, monkeypatch, instant):
    """Die at the n-th call that touches the disk: fsyncs, then renames."""
    old = saved(tmp_path / "c", seed=1)
    new, config = network(2)
    calls = iter(range(100))

    class PowerCut(BaseException):
        pass

    def dying(function):
        def call(*args, **kwargs):
            if next(calls) == instant:
                raise PowerCut
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", dying(os.fsync))
    monkeypatch.setattr(os, "replace", dying(os.replace))
    with pytest.raises(PowerCut):
        checkpoint.save(tmp_path / "c", model=new, family="toy", preset="tiny", config=config)
    found = checkpoint.load(tmp_path / "c")
    assert same_weights(found.model, old) or same_weights(found.model, new)
    assert json.loads((tmp_path / "c" / "config.json").read_text())["family"] == "toy"
    monkeypatch.undo()
    saved(tmp_path / "c", seed=3)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]  # nothing is left behind


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    old = saved(tmp_path / "c", seed=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(0.1), nn.Linear(16, 10_000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # a real refusal of the kernel
    try:
        with pytest.raises(SynthError, match="cannot write the checkpoint"):
            checkpoint.save(tmp_path / "c", model=big, family="toy", preset="tiny", config=Config())
        with (
            pytest.raises(SynthError, match="cannot write the checkpoint"),
            checkpoint.staged(tmp_path / "c") as folder,
        ):
            torch.save({"big": torch.zeros(10_000)}, folder / "state.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same_weights(checkpoint.load(tmp_path / "c").model, old)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@given(kept=st.floats(0, 0.999))
@settings(max_examples=15, deadline=None)
def test_truncated_weights_are_refused(tmp_path_factory, kept):
    folder = tmp_path_factory.mktemp("torn")
    saved(folder / "c")
    file = folder / "c" / "model.safetensors"
    blob = file.read_bytes()
    file.write_bytes(blob[: int(len(blob) * kept)])
    with pytest.raises(SynthError, match=r"safetensors.*truncated"):
        checkpoint.load(folder / "c")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, r"format 99.*upgrade synth"),
        ({"format": 0}, "format 0"),
        ({"family": "tyo"}, "unknown family 'tyo'.*did you mean toy"),
        ({"family": "../toy"}, "unknown family"),
        ({"family": ["toy"]}, "family = .*is not of type str"),
        ({"config": {"widht": 3}}, "did you mean width"),
        ({"config": {"width": 8}}, r"'0.weight' is \(16, 4\).*expects \(8, 4\)"),
        ({"config": {"kind": "gan"}}, "lacks"),
        ({"preset": None}, "it has no 'preset'"),
        (None, "is not an object"),
    ],
)
def test_strange_metadata_are_named(tmp_path, change, words):
    saved(tmp_path / "c")
    file = tmp_path / "c" / "model.safetensors"
    metadata = [] if change is None else checkpoint.read_metadata(file) | change
    if change == {"preset": None}:
        del metadata["preset"]
    save_file(load_file(file), file, metadata={"synth": json.dumps(metadata)})
    with pytest.raises(SynthError, match=words):
        checkpoint.load(file)


def test_what_is_no_checkpoint_is_named(tmp_path):
    foreign, bomb = tmp_path / "foreign.safetensors", tmp_path / "bomb.safetensors"
    save_file({"w": torch.ones(1)}, foreign)
    bomb.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    for path, words in (
        (tmp_path / "nothing", "no such checkpoint"),
        (tmp_path, "is not a checkpoint"),
        (foreign, "synth convert"),
        (tmp_path / "lora", "LoRA adapter"),
        (bomb, "cannot be read as safetensors"),
    ):
        with pytest.raises(SynthError, match=words):
            checkpoint.load(path)


# ---- other people's weights


NAMES = {"first.weight": "0.weight", "first.bias": "0.bias",
         "last.weight": "3.weight", "last.bias": "3.bias"}  # fmt: skip
"""Another project's names of the toy's weights."""


def recognise(weights) -> bool:
    return weights.keys() == NAMES.keys()


def converted(weights, source, **overrides):
    config = Config(width=len(weights["first.bias"]), **overrides)
    return config, {NAMES[key]: value for key, value in weights.items()}


@pytest.fixture
def compat(monkeypatch):
    """Let the toy know another project's weights, and return some of them."""
    knowing = replace(
        families.FAMILIES["toy"],
        recognise=families.Lazy(f"{__name__}:recognise"),
        convert=families.Lazy(f"{__name__}:converted"),
    )
    monkeypatch.setitem(families.FAMILIES, "toy", knowing)
    return {old: build(Config(width=5)).state_dict()[new] for old, new in NAMES.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": {k: torch.zeros_like(v) for k, v in w.items()}, "ema": w, "step": 1},
        lambda w: {"state_dict": {"module." + k: v for k, v in w.items()}},
        lambda w: {"model": {"model.module." + k: v for k, v in w.items()}},
        lambda w: {"ema": {"betas": torch.ones(4)} | {"denoise_fn." + k: v for k, v in w.items()}},
    ],
)
def test_convert_unwraps_recognises_and_loads_strictly(tmp_path, compat, wrap):
    torch.save(wrap(compat), tmp_path / "theirs.pt")
    convert(tmp_path / "theirs.pt", tmp_path / "ours", overrides={"shape": (9,)})
    found = checkpoint.load(tmp_path / "ours")
    assert found.config == Config(width=5, shape=(9,))
    assert found.metadata["source"] == "theirs.pt"
    assert torch.equal(found.model[3].weight, compat["last.weight"])


def test_convert_runs_nobodys_code(tmp_path):
    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(flag),)

    for number, content in enumerate([{"w": Evil()}, {"model": {}, "args": Namespace(a=1)}]):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(SynthError, match="holds more than weights"):
            convert(tmp_path / f"{number}.pt", tmp_path / "ours")
    assert not flag.exists()
    assert not (tmp_path / "ours").exists()


def test_convert_says_what_it_cannot_read(tmp_path, compat):
    torch.save(compat, tmp_path / "whole.pt")
    blob = (tmp_path / "whole.pt").read_bytes()
    for size in (0, 10, len(blob) // 2):
        (tmp_path / f"torn{size}.pt").write_bytes(blob[:size])
        with pytest.raises(SynthError, match=f"torn{size}.pt"):
            convert(tmp_path / f"torn{size}.pt", tmp_path / "ours")
    torch.save({"other.weight": torch.ones(1)}, tmp_path / "unknown.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for name, family, words in (
        ("none", None, "no such file"),
        ("unknown", None, r"unknown weights for .*toy.* \(other.weight"),
        ("empty", None, "holds no weights"),
        ("whole", "toi", "did you mean toy"),
    ):
        with pytest.raises(SynthError, match=words):
            convert(tmp_path / f"{name}.pt", tmp_path / "ours", family=family)
    with pytest.raises(SynthError, match=r"unknown setting 'widht'.*did you mean width"):
        convert(tmp_path / "whole.pt", tmp_path / "ours", overrides={"widht": 3})


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(st.data(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_damaged_files_never_raise_anything_else(tmp_path_factory, data, zipped):
    file = tmp_path_factory.getbasetemp() / "damaged.pt"
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=zipped)
    blob = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(blob)
    with contextlib.suppress(SynthError):
        unwrap(read_weights(file), name="damaged")


def test_names_that_only_look_like_a_prefix_are_tried_first():
    weights = {"model.0.weight": torch.ones(1), "model.1.weight": torch.ones(1)}
    first, *rest = strip_prefixes(weights)
    assert first == weights
    assert list(rest[-1]) == ["0.weight", "1.weight"]
    assert unwrap({"net": weights}, name="x") == weights
