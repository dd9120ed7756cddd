"""`synth masks`: every bad input is one line, shapes are mixed as asked, wdm3d trains on it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import label_gan.generate
from label_gan.placing.lesion_pool import load_model
from label_gan.shape import Shape
from synth.checkpoints import checkpoint
from synth.cli import main
from synth.data.case import discover
from synth.data.split import read_split
from synth.data.volume import Volume
from tests import spoil
from tests.conftest import LPS, ball, brain, files_of
from wdm3d.config import Config
from wdm3d.data import InpaintingData
from wdm3d.recipe import assemble

GOOD, BAD_ID = "BraTS-GLI-00001-000", "BraTS-GLI-00002-000"


@pytest.fixture
def data(phantoms: Path, tmp_path: Path) -> Path:
    """Two patients, to be spoiled."""
    for name in (GOOD, BAD_ID):
        shutil.copytree(phantoms / name, tmp_path / "data" / name)
    return tmp_path / "data"


def masks(data: Path, out: Path, *more: str) -> int:
    words = ["masks", str(data), "-o", str(out), "--only-real", "--workers", "1"]
    return main([*words, *more])


def records_of(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((out / "records").iterdir())]


def parts_of(out: Path) -> list[dict]:
    return [part for record in records_of(out) for part in record["components"]]


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing modality": ("t1n", spoil.remove, "no t1n file"),
    "text": ("t1n", spoil.text, "cannot be read as NIfTI"),
    "packed text": ("t1n", spoil.packed_text, "cannot be read as"),
    "truncated": ("t1n", spoil.truncate, "cannot be read as NIfTI"),
    "truncated mask": ("mask-unhealthy", spoil.truncate, "cannot be read as NIfTI"),
    "truncated donor": ("seg", spoil.truncate, "cannot be read as NIfTI"),
    "wrong shape": ("mask-unhealthy", spoil.crop, "differ in shape"),
    "wrong affine": ("seg", spoil.move, "differ in affine: up to 3 mm"),
    "4-D": ("t1n", spoil.stack, "3-D volume"),
    "all zero": ("t1n", spoil.blank, "the same value"),
    "NaN": ("t1n", spoil.not_a_number, "NaN or Inf"),
    "tumour everywhere": (
        "mask-unhealthy", lambda p: spoil.resave(p, lambda d, a: (d * 0 + 1, a)), "no place for"),
    "labels as mask": ("mask-healthy", spoil.triple, "0 and 1 only"),
    "odd label": ("seg", spoil.relabel(2, 7), "outside the scheme"),
    "small brain": (
        "t1n", lambda p: spoil.resave(p, lambda d, a: (d * ball(d.shape, (20, 32, 32), 2), a)),
        "no place for component 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_case_is_one_line_and_the_rest_is_made(
    what: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    role, damage, message = BAD[what]
    damage(data / BAD_ID / f"{BAD_ID}-{role}.nii.gz")
    out = tmp_path / "out"
    assert masks(data, out, "--per-case", "2") == 2
    lines = spoil.told(capsys.readouterr().err, message)
    assert lines[-1] == "1 made, 0 already there, 1 failed"
    made = sorted(p.name for p in out.glob("*-healthy*"))
    assert made == [f"{GOOD}-healthy00", f"{GOOD}-healthy01"]
    listed = read_split(out / "split.json", tmp_path)
    assert [e.source for e in listed.training if e.case.is_made] == [GOOD, GOOD]
    for path in (out / "records").glob(f"{BAD_ID}*"):
        assert message in json.loads(path.read_text())["gave_up"]


def without_tumours(data: Path) -> None:
    for path in [*data.rglob("*-mask*"), *data.rglob("*-seg*")]:
        if "-seg" in path.name:
            spoil.resave(path, lambda d, a: (d * 0, a))
        else:
            path.unlink()


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (without_tumours, [], "no tumour or healthy mask to take a shape from in 2 cases"),
        (without_tumours, ["--kind", "tumour"], "no tumour label to take a shape from in 2 cases"),
        (without_tumours, ["--prior"], "no tumour or healthy mask"),
        (None, ["--volume-ml", "5000", "6000"], "of 5000 to 6000 ml to take a shape from"),
        (None, ["--volume-ml", "60", "5"], "--volume-ml 60 5"),
        (None, ["--scheme", "brats1999"], "unknown label scheme 'brats1999'"),
        (None, ["--end", "x"], "a whole number, or end"),
        (None, ["--shard", "2/2"], "write i/n"),
        (None, ["--per-case", "0"], "1 or more"),
        (None, ["--components", "0.5", "0.4"], "which sum to 1"),
        (None, ["--mass-effect"], "only a tumour pushes"),
        (None, ["--only-generated"], "give one of them"),
        (None, ["--only-real-seg", "yes"], "invalid choice: 'yes'"),
        (lambda data: shutil.copytree(data / GOOD, data / "x"), [], f"id {GOOD} occurs twice"),
        (shutil.rmtree, [], "no such file or folder"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_is_made(
    damage: Callable[[Path], object] | None, words: list[str], message: str, data: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if damage:
        damage(data)
    assert masks(data, tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert " → " in line
    assert not (tmp_path / "out").exists()


def test_an_unreadable_donor_is_passed_over_and_named(data: Path, tmp_path: Path) -> None:
    (data / BAD_ID / f"{BAD_ID}-seg.nii.gz").write_text("hello")
    assert masks(data, tmp_path / "out", "--end", "1", "--per-case", "6") == 0
    parts = parts_of(tmp_path / "out")
    assert {part["shape"].split()[0] for part in parts} == {GOOD}
    assert any(BAD_ID in text for part in parts for text in part["unreadable"])


def fake_draw(loaded: object, count: int, *, first: int = 0, **wish: float) -> Iterator[tuple]:
    """Balls of known radius in place of a trained model's drawings."""
    for number in range(first, first + count):
        rng = np.random.default_rng((int(wish["seed"]) % 2**32, number))
        labels = ball((15, 15, 15), (7, 7, 7), rng.uniform(3, 6)) * np.uint8(2)
        labels[ball((15, 15, 15), (7, 7, 7), 2)] = 3
        spacing = wish.get("spacing_mm") or 3.0
        yield Shape(labels=labels, spacing_mm=spacing, source=f"fake {number}"), {"tries": 1}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in, so that this does not wait for a trained generator."""
    folder = tmp_path / "model"
    checkpoint.save(
        folder, model=torch.nn.Linear(1, 1), family="wdm3d", preset="tiny", config=Config()
    )
    loaded = type("Loaded", (), {"path": folder / "model.safetensors"})()
    monkeypatch.setattr(label_gan.generate, "load", lambda *_: loaded)
    monkeypatch.setattr(label_gan.generate, "draw", fake_draw)
    load_model.cache_clear()
    yield folder
    load_model.cache_clear()


def test_shapes_are_mixed_as_asked(phantoms: Path, model: Path, tmp_path: Path) -> None:
    words = ["masks", str(phantoms), "--model", str(model), "--workers", "1", "--per-case", "6"]
    for flags, expected in (
        (["--only-generated"], (1.0, 1.0)),
        (["--only-fake-seg", "True", "--only-real-seg", "False"], (1.0, 1.0)),
        (["--only-real-seg", "True"], (0.0, 0.0)),
        ([], (0.2, 0.8)),  # a fair coin, thrown some forty times
    ):
        out = tmp_path / "-".join(["out", *flags])
        assert main([*words, "-o", str(out), *flags]) == 0
        drawn = [part["shape"].startswith("generated:") for part in parts_of(out)]
        assert expected[0] <= np.mean(drawn) <= expected[1]


def test_whom_the_model_has_seen_goes_on_record(
    phantoms: Path, model: Path, tmp_path: Path
) -> None:
    """A shape of the model's brings the model's patients; a model that tells none is unmarked."""
    marked = checkpoint.save(
        tmp_path / "marked", model=torch.nn.Linear(1, 1), family="wdm3d", preset="tiny",
        config=Config(), patients=["aa", "bb"],
    )  # fmt: skip
    words = ["masks", str(phantoms), "--kind", "tumour", "--workers", "1", "--per-case", "3"]
    for place, patients, unmarked in ((marked, ["aa", "bb"], []), (model, [], ["label_gan"])):
        out, drawn = tmp_path / f"{place.name}-made", tmp_path / f"{place.name}-drawn"
        assert main([*words, "--model", str(place), "-o", str(out)]) == 0
        kinds = set()
        for record in (r for r in records_of(out) if not r["gave_up"]):
            (shape,) = [part["shape"] for part in record["components"]]
            kinds.add(generated := shape.startswith("generated: "))
            assert record["patients"] == (patients if generated else [])
            assert record["unmarked"] == (unmarked if generated else [])
            assert record["donors"] == ([] if generated else [shape.split()[0]])
        assert kinds == {True, False}
        assert main(["masks", "--model", str(place), "--count", "1", "-o", str(drawn)]) == 0
        (record,) = records_of(drawn)
        assert (record["donors"], record["patients"]) == ([], patients)
        assert record["unmarked"] == unmarked


def test_without_data_labels_are_drawn(model: Path, tmp_path: Path) -> None:
    words = ["masks", "--model", str(model), "--count", "5", "-o"]
    assert main([*words, str(tmp_path / "out")]) == 0
    cases = discover(tmp_path / "out")
    assert [c.id for c in cases] == [f"label-{k:05d}" for k in range(5)]
    for number, case in enumerate(cases):
        volume = case.load("seg")
        ((shape, _),) = fake_draw(None, 1, first=number, seed=0)
        assert np.array_equal(volume.data[0], shape.labels)
        assert volume.spacing_mm == pytest.approx((3, 3, 3))
        middle = volume.affine @ [*(np.array(volume.shape) - 1) / 2, 1]
        assert middle == pytest.approx([0, 0, 0, 1])
    assert main([*words, str(tmp_path / "parts"), "--begin", "3"]) == 0
    assert main([*words, str(tmp_path / "parts"), "--end", "3"]) == 0
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "out")
    assert main([*words, str(tmp_path / "old"), "--scheme", "brats2021"]) == 0
    labels = [c.load("seg").data for c in discover(tmp_path / "old", scheme="brats2021")]
    assert set(np.unique(labels[0])) == {0, 2, 4}


def test_without_a_model_nothing_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("synth.base.weights.SHIPPED", tmp_path)
    assert main(["masks", "-o", "out"]) == 2
    assert "no model to draw shapes: there is no weights/label_gan → " in capsys.readouterr().err
    assert main(["masks", "-o", "out", "--model", "nowhere"]) == 2
    assert "nowhere: no such checkpoint" in capsys.readouterr().err


SMALL = {"spacing_mm": 2.8, "crop": 16, "width": 8, "groups": 4, "multipliers": (1, 2), "atlas": 8}


def test_wdm3d_trains_on_made_masks_without_a_further_step(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    out = tmp_path / "made"
    assert masks(tmp_path / "data", out, "--per-case", "2") == 0
    command = capsys.readouterr().out.strip().removeprefix("to train on them: synth ").split()
    command[-1] = str(tmp_path / "run")
    settings = "--steps 2 --batch-size 2 --crop 16 --width 8 --groups 4 --multipliers 1 2 --atlas 8"
    assert main([*command, *settings.split()]) == 0
    assert "9 cases, 3 held out" in capsys.readouterr().out  # one patient, with its made cases
    assert checkpoint.load(tmp_path / "run").config.given_masks == "made"
    # Every hole of a made case is one that was written, never another.
    split = read_split(out / "split.json", tmp_path)
    made = [e.case for e in split.training if e.case.is_made]
    items = InpaintingData(made, Config(**SMALL, augment=False))
    for index in range(len(made)):
        given = items.prepared(index)["healthy"].sum()
        assert max(int(items.item(index, seed)["roi"].sum()) for seed in range(4)) <= given
        item = items.item(index, 0)
        assert (item["roi"].bool() <= item["hole"].bool()).all()
    # Real cases are what a model is judged by, and their masks are placed anew.
    _, training, validation = assemble(
        Config(**SMALL), [e.case for e in split.training], [e.case for e in split.training],
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert validation is not None
    assert not any(c.is_made for c in validation.cases)
    real = next(i for i, c in enumerate(training.cases) if not c.is_made)
    assert not torch.equal(training.item(real, 0)["roi"], training.item(real, 1)["roi"])
    every = InpaintingData([training.cases[real]], Config(**SMALL, given_masks="all"))
    own = every.prepared(0)["healthy"]
    assert every._has_given_mask(0)
    assert every.item(0, 3)["roi"].sum() <= own.sum()


def test_any_grid_will_do(tmp_path: Path) -> None:
    """Oblique axes, thick slices, odd shapes: the holes lie in the brain, on the case's grid."""
    rng = np.random.default_rng(0)
    for number in range(3):
        shape = tuple(int(n) for n in rng.integers(50, 70, 3))
        affine = LPS.copy()
        affine[:3, :3] = affine[:3, :3][:, rng.permutation(3)] @ np.diag(rng.choice([1, 1.5, 3], 3))
        image = brain(shape, seed=number)
        tumour = ball(shape, tuple(n // 3 for n in shape), 6) & (image > 0)
        folder = tmp_path / "data" / f"BraTS-GLI-{number:05d}-000"
        for role, data in (("t1n", image), ("seg", tumour.astype(np.int16) * 2)):
            Volume(data=data[None], affine=affine).save(folder / f"{folder.name}-{role}.nii.gz")
    more = ("--per-case", "2", "--components", "1")
    assert masks(tmp_path / "data", tmp_path / "out", *more) == 0
    for case in discover(tmp_path / "out"):
        image, healthy = case.load("t1n"), case.load("healthy")
        image.require_same_grid(healthy)
        assert healthy.data.any()
        assert not (healthy.data & (image.data == 0)).any()
