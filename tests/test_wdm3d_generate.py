"""Inpainting keeps what it must keep, repeats itself, and survives whatever a cohort holds."""

import json
import logging
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import wdm3d
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.checkpoints.checkpoint import Checkpoint
from synth.cli import main
from synth.data.volume import Volume
from tests import spoil
from tests.conftest import LPS, ball, brain, rotation, write_case
from wdm3d.boxes import add, tiles
from wdm3d.config import Config, SamplerOptions
from wdm3d.generate import Painter, inpaint, load
from wdm3d.network import build
from wdm3d.scene import Scene, brain_frame

MODES = ("context", "always_known_healthy", "default")


def save_model(folder: Path, mode: str = "context", **settings: float) -> Path:
    """A network of random weights, its output layer too: it answers with something."""
    fixed = {"crop": 16, "width": 8, "groups": 4, "multipliers": (1, 2), "spacing_mm": 1.0}
    config = Config(mode=mode, **(fixed | settings))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = build(config)
        nn.init.normal_(dict(model.named_modules())["out.2"].weight, std=0.05)
    return checkpoint.save(folder, model=model, family="wdm3d", preset="tiny", config=config)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("models")
    made = {mode: load(save_model(root / mode, mode)) for mode in MODES}
    made["coarse"] = load(save_model(root / "coarse", spacing_mm=2.0))
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "wdm3d")


def random_scan(rng: np.random.Generator, folder: Path) -> tuple[Path, Path]:
    """A brain and a mask on an arbitrary grid: odd shape, any axes, oblique, stored as integers."""
    shape = tuple(int(n) for n in rng.integers(17, 30, 3))
    image = brain(shape, seed=int(rng.integers(99)))
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(1, 4)):
        centre = tuple(int(rng.integers(n)) for n in shape)
        mask |= ball(shape, centre, float(rng.choice([0.5, 1.5, 3, 4.5])))
    if rng.random() < 0.3:  # specks, finer than any model's grid
        mask |= rng.random(shape) < 0.01
    order, flips = rng.permutation(3), rng.choice([-1.0, 1.0], 3)
    spacing = rng.choice([0.8, 1.0, 1.02, 1.6, 2.4], 3)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * flips * spacing
    if rng.random() < 0.5:
        affine[:3, :3] = rotation(tuple(rng.uniform(-20, 20, 3))) @ affine[:3, :3]
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    if rng.random() < 0.5:
        stored = nib.Nifti1Image(image.astype(np.int16), affine)
        if rng.random() < 0.5:  # a slope and an intercept, as some scanners write
            stored.header.set_slope_inter(0.37, 5)
    else:
        stored = nib.Nifti1Image(image * np.float32(rng.choice([1e-3, 1, 1e4])), affine)
    nib.save(stored, folder / "t1n.nii.gz")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / "mask.nii.gz")
    return folder / "t1n.nii.gz", folder / "mask.nii.gz"


def assert_only_the_mask_changes(models: dict[str, Checkpoint], seed: int, folder: Path) -> None:
    rng = np.random.default_rng(seed)
    t1n, mask = random_scan(rng, folder)
    kind = str(rng.choice([*MODES, "coarse"]))
    options = SamplerOptions(steps=2, samples=2) if rng.random() < 0.5 else SamplerOptions(steps=1)
    original, hole = Volume.load(t1n).data, Volume.load_mask(mask).data
    result = inpaint(t1n, mask, model=models[kind], seed=seed, options=options)
    path = result.image.save(folder / "out.nii.gz")
    back, given = nib.load(path), nib.load(t1n)
    values = np.asanyarray(back.dataobj)[None]
    assert values.dtype == np.float32
    assert np.array_equal(values[~hole], original[~hole])
    assert np.isfinite(values).all()
    # The header holds float32 numbers, and may say the same as a quaternion.
    assert np.allclose(back.affine, given.affine, atol=1e-4)
    # What lay below the mask is never read, whatever it was.
    hidden = Volume.load(t1n)
    hidden.data[hole] = rng.normal(1e5, 1e5, hole.sum())
    again = inpaint(hidden, mask, model=models[kind], seed=seed, options=options)
    assert np.array_equal(again.image.data, result.image.data)
    if result.spread is not None:
        assert not result.spread.data[~hole].any()


@pytest.mark.parametrize("seed", range(25))
def test_only_the_mask_changes(seed: int, models: dict[str, Checkpoint], tmp_path: Path) -> None:
    assert_only_the_mask_changes(models, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 100))
def test_only_the_mask_changes_on_many_grids(
    seed: int, models: dict[str, Checkpoint], tmp_path: Path
) -> None:
    assert_only_the_mask_changes(models, seed, tmp_path)


def cohort(folder: Path, count: int) -> Path:
    for k in range(count):
        write_case(folder, f"BraTS-GLI-{k + 1:05d}-000", seed=k)
    return folder


def scans(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("[!.]*.nii.gz"))}


def test_a_result_depends_on_seed_and_case_alone(model: Path, tmp_path: Path) -> None:
    data = cohort(tmp_path / "data", 4)

    def made(name: str, *more: str, seed: str = "1") -> dict[str, bytes]:
        words = ["inpaint", str(data), "-o", str(tmp_path / name), "--model", str(model)]
        assert main([*words, "--seed", seed, "--steps", "2", *more]) == 0
        return scans(tmp_path / name)

    whole = made("whole")
    assert len(whole) == 4
    chunks = made("a", "--begin", "2") | made("b", "--end", "2")
    shards = made("c", "--shard", "1/3") | made("d", "--shard", "0/3") | made("e", "--shard", "2/3")
    assert chunks == shards == whole
    # In a folder by itself, as a single scan, and through Python.
    case = "BraTS-GLI-00003-000"
    scan, mask = (data / case / f"{case}-{role}.nii.gz" for role in ("t1n", "mask"))
    words = ["inpaint", str(scan), "--mask", str(mask), "-o", str(tmp_path / "one")]
    assert main([*words, "--model", str(model), "--seed", "1", "--steps", "2"]) == 0
    name = f"{case}-t1n-inference.nii.gz"
    assert scans(tmp_path / "one") == {name: whole[name]}
    options = SamplerOptions(estimate="sample", steps=2)
    image = wdm3d.inpaint(scan, mask, model=model, seed=1, name=case, options=options).image
    assert image.save(tmp_path / "py.nii.gz").read_bytes() == whole[name]
    other = made("other", seed="2")
    assert all(other[key] != whole[key] for key in whole)


def kill_and_go_on(model: Path, tmp_path: Path, kills: int, cases: int) -> None:
    """Kill a batch at random instants, run it to its end, compare with an undisturbed one."""
    data = cohort(tmp_path / "data", cases)
    words = ["inpaint", str(data), "--model", str(model), "--steps", "3", "-o"]
    started = time.monotonic()
    assert main([*words, str(tmp_path / "quiet")]) == 0
    seconds = time.monotonic() - started
    fork, rng = multiprocessing.get_context("fork"), np.random.default_rng(kills)
    killed = 0
    for _ in range(kills):
        out = tmp_path / "killed"
        if len(scans(out)) == cases:  # start over: the next kill must find work to do
            shutil.rmtree(out)
        process = fork.Process(target=main, args=([*words, str(out)],))
        process.start()
        process.join(rng.uniform(0, seconds))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        for path in out.glob("[!.]*.nii.gz"):
            Volume.load(path)
    assert killed > kills // 3
    assert main([*words, str(tmp_path / "killed")]) == 0
    assert scans(tmp_path / "killed") == scans(tmp_path / "quiet")


def test_a_killed_batch_goes_on(model: Path, tmp_path: Path) -> None:
    kill_and_go_on(model, tmp_path, kills=3, cases=4)


def test_what_was_made_otherwise_is_not_taken_for_done(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cohort(tmp_path / "data", 2)
    words = ["inpaint", str(data), "-o", str(tmp_path / "out"), "--model", str(model)]
    assert main(words) == 0
    before = scans(tmp_path / "out")
    assert main([*words, "--device", "cpu"]) == 0
    assert main([*words, "--seed", "7"]) == 2
    assert "was made with seed = 0, not 7" in capsys.readouterr().err
    other = save_model(tmp_path / "other", spacing_mm=2.0)
    assert main([*words[:-1], str(other)]) == 2
    assert "was made with other weights" in capsys.readouterr().err
    mask = next(data.rglob("BraTS-GLI-00002-000-mask.nii.gz"))
    smaller = Volume.load_mask(mask)
    smaller.data[:, :, :, smaller.data.any((0, 1, 2)).argmax()] = False
    smaller.save(mask)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "BraTS-GLI-00002-000-t1n-inference.nii.gz was made from other files" in said
    assert "0 made, 1 already there, 1 failed" in said
    assert scans(tmp_path / "out") == before
    assert main([*words, "--force"]) == 0
    assert scans(tmp_path / "out") != before


@pytest.mark.slow
def test_a_batch_killed_twenty_times_goes_on(model: Path, tmp_path: Path) -> None:
    kill_and_go_on(model, tmp_path, kills=20, cases=8)


def test_a_bad_case_is_reported_and_the_rest_is_done(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cohort(tmp_path / "data", 3)
    bad = "BraTS-GLI-00002-000"
    (data / bad / f"{bad}-t1n.nii.gz").write_bytes(b"not an image")
    words = ["inpaint", str(data), "-o", str(tmp_path / "out"), "--model", str(model)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"[2/3] {bad}: " in said
    assert "2 made, 0 already there, 1 failed" in said
    assert [name[:19] for name in scans(tmp_path / "out")] == [
        "BraTS-GLI-00001-000",
        "BraTS-GLI-00003-000",
    ]
    record = json.loads((tmp_path / "out" / "records" / "BraTS-GLI-00001-000.json").read_text())
    assert record["network_calls"] == 1
    assert record["arguments"]["estimate"] == "mean"
    assert len(record["inputs"]) == 2


def test_holes_and_calls_are_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inpaint", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--model", str(model)]
    folder = write_case(tmp_path / "data")
    mask = Volume.load_mask(sibling(folder / "x", "mask"))
    first, second = (ball(mask.data.shape[1:], (10, y, 9), 2.5) for y in (7, 17))
    for hole, said in ((first, "1 hole, 1 call, "), (first | second, "2 holes, 2 calls, ")):
        mask.with_data(hole[None]).save(sibling(folder / "x", "mask"))
        assert main([*words, "--force"]) == 0
        assert f"] {folder.name}: {said}" in capsys.readouterr().err


def test_a_case_without_a_mask_is_told_what_would_say_where_to_paint(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_case(tmp_path / "data")
    for role in ("mask", "seg"):
        sibling(folder / "x", role).unlink()
    scan = sibling(folder / "x", "t1n")
    for data in (tmp_path / "data", scan):
        words = ["inpaint", str(data), "-o", str(tmp_path / "out"), "--model", str(model)]
        assert main(words) == 2
        told = capsys.readouterr().err.splitlines()[0]
        if data == scan:
            assert told == f"synth: {scan}: no mask → --mask or --seg says where to paint"
        else:
            assert told.startswith(
                f"[1/1] {folder.name}: no mask file → "
                "a -mask or a -seg file says where to paint; it has: t1n, "
            )


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing modality": ("t1n", lambda p: (p.unlink(), voided(p).unlink()), "no t1n file"),
    "missing mask": ("mask", lambda p: (p.unlink(), seg(p).unlink()), "no mask file"),
    "text": ("t1n", spoil.text, "cannot be read as NIfTI"),
    "packed text": ("t1n", spoil.packed_text, "cannot be read as"),
    "truncated": ("t1n", spoil.truncate, "cannot be read as NIfTI"),
    "truncated mask": ("mask", spoil.truncate, "cannot be read as NIfTI"),
    "wrong shape": ("mask", spoil.crop, "differ in shape"),
    "wrong affine": ("mask", spoil.move, "differ in affine: up to 3 mm"),
    "4-D": ("t1n", spoil.stack, "3-D volume"),
    "all zero": ("t1n", spoil.blank, "the same value"),
    "NaN": ("t1n", spoil.not_a_number, "NaN or Inf"),
    "empty mask": ("mask", spoil.blank, "the mask is empty"),
    "brain mask": (
        "mask",
        lambda p: spoil.resave(p, lambda d, a: ((brain() > 0).astype(np.uint8), a)),
        "covers the whole brain",
    ),
    "labels as mask": ("mask", spoil.triple, "0 and 1 only"),
    "odd label": (
        "seg",
        lambda p: (
            mask_of(p).unlink(),
            spoil.resave(p, lambda d, a: (np.where(d == 2, 7, d).astype(d.dtype), a)),
        ),
        "outside the scheme",
    ),
    "small tumour": ("seg", lambda p: mask_of(p).unlink(), "the mask is empty"),
    "twice": ("t1n", lambda p: shutil.copytree(p.parent, p.parent.with_name("x")), "occurs twice"),
}


def sibling(path: Path, role: str) -> Path:
    return path.with_name(f"{path.parent.name}-{role}.nii.gz")


def voided(path: Path) -> Path:
    return sibling(path, "t1n-voided")


def seg(path: Path) -> Path:
    return sibling(path, "seg")


def mask_of(path: Path) -> Path:
    return sibling(path, "mask")


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_with_a_hint(
    what: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    role, damage, message = BAD[what]
    folder = write_case(tmp_path / "data")
    damage(sibling(folder / "x", role))
    out = tmp_path / "out"
    words = ["inpaint", str(tmp_path / "data"), "-o", str(out), "--model", str(model)]
    assert main(words) == 2
    lines = spoil.told(capsys.readouterr().err, message)
    assert len(lines) <= 2  # the line, and the count at the end
    assert not list(out.rglob("*"))  # nor where there is no such folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "Default"], "was trained with mode context, not default"),
        (["--mode", "contxt"], "did you mean context?"),
        (["--noise-schedule", "cosine"], "was trained with schedule linear, not cosine"),
        (["--steps-scheduler", "circle"], "never worked"),
        (["--estimate", "mean", "--steps", "9"], "for random results"),
        (["--samples", "0"], "at least 1"),
        (["--end", "x"], "a whole number, or end"),
        (["--shard", "3/3"], "write i/n"),
        (["--mask", "m.nii.gz"], "go with a single scan"),
    ],
)
def test_bad_flags_are_told(
    words: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_case(tmp_path / "data")
    given = ["inpaint", str(tmp_path / "data"), "-o", str(tmp_path / "o"), "--model", str(model)]
    assert main([*given, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def a_scan(seed: int = 0) -> tuple[Volume, Volume]:
    image = brain((33, 35, 27), seed=seed)
    mask = ball(image.shape, (12, 17, 13), 5)
    return Volume(data=image[None], affine=LPS), Volume(data=mask[None], affine=LPS)


@pytest.mark.parametrize("kind", [*MODES, "coarse"])
def test_far_outside_the_brain_is_background(kind: str, models: dict[str, Checkpoint]) -> None:
    image, _ = a_scan()
    padded = np.pad(image.data, ((0, 0), (14, 3), (2, 2), (2, 2))) + 7  # a background of 7
    mask = np.zeros(padded.shape, bool)
    mask[0, :24, 12:26, 8:22] = True
    far = ndimage.distance_transform_edt(padded[0] == 7) > 11  # a voxel of the model, and 6 mm
    assert (mask[0] & far).sum() > 100
    result = inpaint(
        image.with_data(padded),
        image.with_data(mask),
        model=models[kind],
        options=SamplerOptions(steps=2),
    )
    assert (result.image.data[0][mask[0] & far] == 7).all()
    brightest = np.where(mask[0] & ~far, result.image.data[0], 7)
    assert (brightest != 7).sum() > 100, "tissue is painted where the brain was"


def test_a_z_scored_scan_is_filled_as_the_scan_it_was(models: dict[str, Checkpoint]) -> None:
    image, mask = a_scan()
    tissue = image.data[0][(image.data[0] > 0) & ~mask.data[0]]
    shifted = np.where(image.data > 0, (image.data - tissue.mean()) / tissue.std(), 0)
    scored = image.with_data(shifted.astype(np.float32))
    hole = mask.data[0]
    painted = inpaint(scored, mask, model=models["context"]).image.data[0]
    assert np.array_equal(painted[~hole], scored.data[0][~hole])
    plain = inpaint(image, mask, model=models["context"]).image.data[0]
    expected = (plain[hole] - tissue.mean()) / tissue.std()
    # The scale's lower end is guessed from the darkest tissue, so the two differ a little: the
    # network is not linear. A background taken for mid-grey would spread over several deviations.
    assert np.corrcoef(painted[hole], expected)[0, 1] > 0.9
    assert abs(painted[hole].mean() - expected.mean()) < 0.5
    assert (painted[hole] != 0).all(), "no hole within the brain is background"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_mask_may_be_of_numbers(dtype: type, models: dict[str, Checkpoint]) -> None:
    image, mask = a_scan()
    plain = inpaint(image, mask, model=models["context"]).image.data
    numbers = mask.with_data(mask.data.astype(dtype))
    assert np.array_equal(inpaint(image, numbers, model=models["context"]).image.data, plain)


def test_a_segmentation_alone_makes_the_mask(model: Path, tmp_path: Path) -> None:
    folder, image = tmp_path / "data" / "BraTS-GLI-00007-000", brain((40, 44, 36))
    tumour = ball(image.shape, (15, 22, 18), 6.3)
    labels = (tumour * 2 - ball(image.shape, (15, 22, 18), 2) * 2).astype(np.int16)  # 0 in its core
    labels[30, 30, 20] = 1  # a speck below 800 mm³
    for data, role in ((image, "t1n"), (labels, "seg")):
        Volume(data=data[None], affine=LPS).save(folder / f"{folder.name}-{role}.nii.gz")
    words = ["inpaint", str(tmp_path / "data"), "-o", str(tmp_path / "out")]
    assert main([*words, "--model", str(model)]) == 0
    (path,) = (tmp_path / "out").glob("*.nii.gz")
    changed = Volume.load(path).data[0] != image
    expected = ndimage.distance_transform_edt(~tumour) < 5
    assert not (changed & ~expected).any()
    assert changed[expected & (image > 0)].mean() > 0.99


class OutOfMemory(nn.Module):
    """Refuses boxes above a size, as a device does."""

    def __init__(self, model: nn.Module, limit: int, error: Exception) -> None:
        super().__init__()
        self.model, self.limit, self.error = model, limit, error

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] > self.limit:
            raise self.error
        return self.model(x, t)


def limited(loaded: Checkpoint, limit: int, error: Exception) -> Checkpoint:
    model = OutOfMemory(loaded.model, limit, error)
    return Checkpoint(
        path=loaded.path, family="wdm3d", preset="", config=loaded.config, metadata={}, model=model
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
    ],
    ids=("cuda", "python", "cpu"),
)
def test_out_of_memory_falls_back_to_tiles(
    error: Exception, models: dict[str, Checkpoint], caplog: pytest.LogCaptureFixture
) -> None:
    image, mask = a_scan()
    caplog.set_level(logging.INFO)
    result = inpaint(image, mask, model=limited(models["context"], 4, error))
    assert "out of memory, painting in tiles of 8 voxels" in caplog.text
    assert np.array_equal(result.image.data[~mask.data], image.data[~mask.data])
    assert result.facts["network_calls"] > 8
    with pytest.raises(SynthError, match="even in tiles of 8 voxels"):
        inpaint(image, mask, model=limited(models["context"], 2, error))


def test_other_errors_of_the_network_are_not_taken_for_memory(
    models: dict[str, Checkpoint],
) -> None:
    image, mask = a_scan()
    with pytest.raises(RuntimeError, match="shapes"):
        inpaint(image, mask, model=limited(models["context"], 2, RuntimeError("shapes")))


def test_tiles_cover_a_box_with_weights_that_sum_to_one() -> None:
    box = (slice(-3, 37), slice(5, 29), slice(0, 16))
    total = np.zeros((1, 40, 32, 20), np.float32)
    for where, weight in tiles(box, 16):
        add(total, weight[None], where)
    inside = total[:, 0:37, 5:29, 0:16]
    assert np.abs(inside - 1).max() < 1e-6  # products of three tents in float32
    assert total.max() < 1 + 1e-6


class Local(nn.Module):
    """Answers, wherever the box lies, with bands that follow from the context at that place."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.3 * x[:, 16:24] + self.anchor  # the bands of one of the fills


def test_tiles_of_a_local_network_make_no_seams() -> None:
    shape = (48, 48, 48)
    image = (brain(shape) / 400 - 1)[None].astype(np.float32)
    roi = ball(shape, (22, 24, 23), 12)
    centre, reach = brain_frame(image[0] > -1)
    scene = Scene(image=image, hole=roi, axis_sum=47, centre=centre, reach=reach)
    config = Config(crop=16, width=8, groups=4, multipliers=(1, 2), spacing_mm=1.0)
    loaded = Checkpoint(
        path=Path("x"), family="wdm3d", preset="", config=config, metadata={}, model=Local()
    )

    def painted(crop_edges: float) -> np.ndarray:
        import wdm3d.generate as module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "TILE_LIMIT", crop_edges)
            return Painter(loaded, SamplerOptions(), 0, "case").paint(scene)[0]

    whole, tiled = painted(4.0), painted(1.0)
    assert np.abs(whole - image)[0][roi].mean() > 0.05
    # Only rounding differs: 27 and more weighted sums in float32 of values of order one.
    assert np.abs(whole - tiled).max() < 1e-5


def test_importing_the_settings_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, wdm3d, wdm3d.config, wdm3d.legacy\n"
        "assert 'torch' not in sys.modules\n"
        "assert callable(wdm3d.Inpainter) and callable(wdm3d.inpaint)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        _ = wdm3d.paint  # ty: ignore[unresolved-attribute]
