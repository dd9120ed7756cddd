"""Scans are drawn where the label map is, as bright as the site's, from their own seed alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lora import generate
from ddpm_lora.conditioning import LABEL_SCHEMES, MEDDPM, class_map, head_in
from ddpm_lora.config import Config
from ddpm_lora.generate import SamplerOptions, draw, in_scanner_units, load, site_scales
from ddpm_lora.label_maps import LabelMap, find, read
from ddpm_lora.lora import adapters
from ddpm_lora.network import build, denoiser, schedule_of
from ddpm_lora.state_space import space_of
from synth.base.errors import SynthError
from synth.base.seeding import generator
from synth.checkpoints import checkpoint
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import MODALITIES, discover
from synth.data.labels import SCHEMES, to_scheme
from synth.data.prepare import brain_mask
from synth.data.volume import Volume
from synth.diffusion.sampling import ddim, dpmpp_2m, levels
from tests.conftest import LPS, ball, brain, rotation, write_case

SMALL = Config(
    width=8, groups=4, multipliers=(1, 2), blocks_per_level=1, crop=(20, 24, 20), timesteps=100
)
SITE = {m: {"low": 0.0, "high": 900.0 + i, "log_spread": 0.2} for i, m in enumerate(MODALITIES)}
FLAT = {m: {"low": 0.0, "high": 200.0, "log_spread": 0.0} for m in MODALITIES}


def save_model(folder: Path, config: Config = SMALL, *, seed: int = 0, **facts: object) -> Path:
    """A network of random weights, its output layer too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(config)
        nn.init.normal_(dict(network.named_modules())["out.2"].weight, std=0.05)
    facts = {"intensities": SITE, "step": 1, **facts}
    return checkpoint.save(
        folder, model=network, family="ddpm_lora", preset="tiny", config=config, **facts
    )


def save_adapter(folder: Path, base: Path, *, seed: int = 1, **facts: object) -> Path:
    """An adapter of one Linear layer, in peft's files, that moves it by a lot."""
    loaded = checkpoint.load(base)
    name, layer = "time_embed.2", dict(loaded.model.named_modules())["time_embed.2"]
    assert isinstance(layer, nn.Linear)
    source = torch.Generator().manual_seed(seed)
    a = torch.randn(2, layer.in_features, generator=source)
    b = torch.randn(layer.out_features, 2, generator=source)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [name]}
    with checkpoint.staged(folder) as staged:
        adapters.write(
            staged, tensors={f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
            settings=settings, base=adapters.pointer_to(loaded), config=loaded.config,
            family="ddpm_lora", preset="lora_light", **facts,
        )  # fmt: skip
    return folder


def loaded_with(config: Config, site: object = FLAT) -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(config).eval()
    return Checkpoint(
        path=Path("x"), family="ddpm_lora", preset="", config=config,
        metadata={"intensities": site}, model=network,
    )  # fmt: skip


def label_map(shape: tuple[int, int, int] = (22, 26, 21), affine: np.ndarray = LPS) -> LabelMap:
    """A lopsided head with three nested labels, all the four classes."""
    head = brain(shape) > 0
    head[: shape[0] // 3, : shape[1] // 3] = False
    labels = sum(ball(shape, (13, 15, 10), r).astype(np.uint8) for r in (2, 3.5, 5))
    labels = np.array([0, 2, 3, 1], np.uint8)[labels]
    classes = class_map(labels, "brats2023", head)
    return LabelMap(id="x", classes=classes, grid=Volume(data=labels[None], affine=affine))


def grids() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(6):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
        affine[:3, :3] = rotation((8, -11, 5)) @ affine[:3, :3]
        affine[:3, 3] = rng.uniform(-90, 90, 3)
        found.append(affine)
    return found


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("space", ["wavelet", "pixel"])
def test_each_label_is_drawn_where_it_is(
    number: int, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that paints each class in a grey of its own must give the label map back."""
    config = replace(SMALL, space=space, objective="v")
    greys = torch.tensor([-0.5, 0.0, 0.25, 0.75])

    def painter(network, config, planes, *, guidance, known):
        picture = (
            (planes * greys.view(1, 4, 1, 1, 1)).sum(1, keepdim=True).expand(-1, 4, -1, -1, -1)
        )
        state = space_of(config, network).state(picture, planes.sum(1, keepdim=True) > 0)
        return lambda x, logsnr, cond=None: state

    monkeypatch.setattr(generate, "denoiser", painter)
    labels = label_map(affine=grids()[number])
    scans = draw(labels, loaded_with(config), SamplerOptions(steps=3)).scans
    expected = np.array([0, 50, 100, 125, 175])[labels.classes]  # (grey + 1) / 2 · 200
    for scan in scans.values():
        assert np.array_equal(scan.data[0], expected)
        assert scan.data.dtype == np.int16
        assert np.array_equal(scan.affine, labels.grid.affine)


def test_on_a_finer_grid_edges_do_not_darken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 2 mm that paints the whole head white draws it white to its last voxel."""

    def painter(network, config, planes, *, guidance, known):
        head = planes.sum(1, keepdim=True) > 0
        picture = torch.where(head, 1.0, -1.0).expand(-1, 4, -1, -1, -1)
        state = space_of(config, network).state(picture, head)
        return lambda x, logsnr, cond=None: state

    monkeypatch.setattr(generate, "denoiser", painter)
    labels = label_map()
    scans = draw(labels, loaded_with(replace(SMALL, spacing_mm=2.0)), SamplerOptions(steps=2)).scans
    for scan in scans.values():
        assert np.array_equal(scan.data[0], np.where(labels.classes > 0, 200, 0))


@pytest.mark.parametrize(("sampler", "temperature"), [("dpmpp_2m", 0.9), ("ddim", 1.0)])
def test_a_draw_is_what_the_sampler_draws(sampler: str, temperature: float) -> None:
    """On a grid that is the model's box already, nothing is left but the sampler."""
    config = replace(SMALL, crop=(12, 16, 12))
    classes = np.zeros((12, 16, 12), np.uint8)
    classes[1:-1, 2:-2, 1:-1] = 4
    classes[4:7, 4:9, 3:8] = 2
    labels = LabelMap(id="box", classes=classes, grid=Volume(data=classes[None], affine=np.eye(4)))
    loaded = loaded_with(config)
    plan = SamplerOptions(steps=4, sampler=sampler, guidance=1.5, temperature=temperature, seed=7)
    drawn = draw(labels, loaded, plan, index=2)
    planes = torch.nn.functional.one_hot(torch.from_numpy(classes).long(), 5)[..., 1:]
    planes = planes.movedim(-1, 0)[None].float()
    noise = torch.randn((32, 6, 8, 6), generator=generator(7, "box", 2))[None]
    noise = temperature * noise
    walk = levels(schedule_of(config), 4)
    solver = {"dpmpp_2m": dpmpp_2m, "ddim": ddim}[sampler]
    answer = denoiser(loaded.model, config, planes, guidance=1.5)
    with torch.no_grad():
        *_, last = solver(answer, noise, walk)
        image = space_of(config, loaded.model).image(last.x, planes.sum(1, keepdim=True) > 0)
    expected = np.rint((image[0].numpy() + 1) * 100).clip(min=1) * (classes > 0)
    for channel, scan in zip(expected, drawn.scans.values(), strict=True):
        # Rounding may fall the other way: weights are laid out in memory otherwise, sums differ.
        assert np.abs(scan.data[0] - channel).max() <= 1
        assert (scan.data[0] != channel).mean() < 0.01
    assert drawn.facts["network_calls"] == 8


def test_a_temperature_is_not_negative() -> None:
    with pytest.raises(SynthError, match="temperature"):
        SamplerOptions(temperature=-1)
    # A model that sees tissue starts colder; one that was given its noise keeps it.
    assert SamplerOptions().first_noise(SMALL) == 1
    assert SamplerOptions().first_noise(replace(SMALL, anatomy=True)) == generate.WITH_TISSUE < 1
    assert SamplerOptions(temperature=0.9).first_noise(replace(SMALL, anatomy=True)) == 0.9


@pytest.mark.parametrize("tissue", ["drawn", "scans", "none"])
def test_a_whole_brain_has_the_tissue_it_is_asked_for(
    tissue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the network is shown: an individual's tissue, that of the scans, or any."""
    seen = []

    def painter(network, config, planes, *, guidance, known):
        seen.append(planes[0, 4:].numpy())
        state = space_of(config, network).state(-torch.ones_like(planes[:, :4]), head_in(planes))
        return lambda x, logsnr, cond=None: state

    monkeypatch.setattr(generate, "denoiser", painter)
    labels = label_map()
    with_tissue = loaded_with(replace(SMALL, anatomy=True))
    options = SamplerOptions(steps=1, tissue=tissue)
    if tissue == "scans":
        with pytest.raises(SynthError, match="no scans beside the label map"):
            draw(labels, with_tissue, options)
        scan = labels.grid.with_data(np.where(labels.classes > 0, brain((22, 26, 21)), 0))
        labels = replace(labels, scans={"t1n": scan})
    for index in (0, 1):
        draw(labels, with_tissue, options, index=index)
    one, other = seen
    total = one.sum(0)
    inside = total > 0
    np.testing.assert_allclose(total[inside], 1, atol=1e-5)
    assert inside.sum() > 1000
    assert np.array_equal(one, other) == (tissue != "drawn")
    assert (np.ptp(one[:, inside], axis=1).max() < 1e-6) == (tissue == "none")


def test_a_draw_depends_on_seed_case_and_number_alone() -> None:
    loaded, plan, labels = (
        loaded_with(SMALL, SITE),
        SamplerOptions(steps=2, sampler="ddpm"),
        label_map(),
    )

    def arrays(other: LabelMap = labels, index: int = 0, **changes: int) -> np.ndarray:
        scans = draw(other, loaded, replace(plan, **changes), index=index).scans
        return np.stack([s.data[0] for s in scans.values()])

    first = arrays(index=3)
    assert np.array_equal(arrays(index=3), first)
    for other in (arrays(index=4), arrays(replace(labels, id="y"), 3), arrays(index=3, seed=1)):
        assert not np.array_equal(other, first)
        assert abs(np.corrcoef(other[first > 0], first[first > 0])[0, 1]) < 0.99


def test_a_brain_that_fills_its_grid_is_drawn() -> None:
    classes = np.full((10, 12, 8), 4, np.uint8)
    labels = LabelMap(id="x", classes=classes, grid=Volume(data=classes[None], affine=LPS))
    for scan in draw(labels, loaded_with(SMALL), SamplerOptions(steps=1)).scans.values():
        assert (scan.data > 0).all()


@pytest.mark.parametrize(("unit", "long"), [(1000.0, "20000 mm"), (0.001, "0.02 mm")])
def test_other_units_than_millimetres_are_noticed(unit: float, long: str) -> None:
    labels = label_map(affine=np.diag([unit, unit, unit, 1]))
    with pytest.raises(SynthError, match=f"a brain {long}"):
        draw(labels, loaded_with(SMALL), SamplerOptions(steps=1))


class Hungry(nn.Module):
    def __init__(self, network: nn.Module, error: Exception) -> None:
        super().__init__()
        self.network, self.error = network, error

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory for a box of"),
        (RuntimeError("not enough memory: you tried to allocate 9 bytes"), "out of memory for a"),
        (MemoryError(), "out of memory for a box of 20 × 24 × 20 voxels"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception, message: str) -> None:
    loaded = loaded_with(SMALL)
    hungry = replace(loaded, model=Hungry(loaded.model, error))
    with pytest.raises(SynthError, match=message):
        draw(label_map(), hungry, SamplerOptions(steps=1))
    shapes = replace(loaded, model=Hungry(loaded.model, RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        draw(label_map(), shapes, SamplerOptions(steps=1))


def test_a_network_that_answers_nan_is_named() -> None:
    loaded = loaded_with(SMALL)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(float("nan"))
    with pytest.raises(SynthError, match="answered with NaN"):
        draw(label_map(), loaded, SamplerOptions(steps=1))


def test_scans_have_the_sites_intensities() -> None:
    image = np.random.default_rng(0).uniform(-1, 2, (4, 6, 6, 6)).astype(np.float32)
    image[:, 2] = -1  # brain as dark as the background
    head = ball((6, 6, 6), (3, 3, 3), 2.5)
    tall = {m: (10.0, 10.0 + 300 * (i + 1)) for i, m in enumerate(MODALITIES)}
    for i, found in enumerate(in_scanner_units(image, head, tall)):
        assert found.dtype == np.int16
        assert np.array_equal(found > 0, head)
        exact = (image[i] + 1) / 2 * 300 * (i + 1) + 10
        assert np.abs(found - exact)[head].max() < 0.5001
    unit = dict.fromkeys(MODALITIES, (0.0, 1.0))
    for i, found in enumerate(in_scanner_units(image, head, unit)):
        assert found.dtype == np.float32
        assert np.array_equal(found > 0, head)
        assert np.abs(found - (image[i] + 1) / 2)[head].max() <= 1e-3  # DIMMEST
    scored = {**unit, "t1n": (-3.0, 2.0)}
    t1n = next(in_scanner_units(image, head, scored))
    np.testing.assert_allclose(t1n[head], ((image[0] + 1) / 2 * 5 - 3)[head], rtol=1e-5, atol=1e-6)
    assert (t1n[~head] == 0).all()


def test_brightness_varies_as_at_the_site() -> None:
    draws = [site_scales(SITE, np.random.default_rng(k)) for k in range(400)]
    spans = np.array([[high - low for low, high in d.values()] for d in draws])
    # Of 400 draws the spread is known to 3.5 %, the mean of the logarithm to 0.01.
    assert np.log(spans).std(0) == pytest.approx([0.2] * 4, rel=0.15)
    assert np.log(spans).mean(0) == pytest.approx(np.log([900, 901, 902, 903]), abs=0.04)
    assert abs(np.corrcoef(np.log(spans).T)[0, 1]) < 0.2
    assert set(site_scales(None, np.random.default_rng(0)).values()) == {(0.0, 1000.0)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_labels_go_out_as_they_came_in(scheme: str) -> None:
    classes = label_map().classes
    out = to_scheme(np.where(classes == 4, 0, classes), scheme)
    assert np.array_equal(class_map(out, scheme, classes > 0), classes)
    assert (out[classes == 4] == 0).all()


def test_the_brain_is_found_wherever_it_is_said(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "data")
    (case,) = discover(tmp_path / "data")
    from_scans = read(case)
    assert len(from_scans.files) == 5
    inside = brain_mask(case.load("t1n"))
    expected = class_map(case.load("seg").data[0], "brats2023", inside)
    assert np.array_equal(from_scans.classes, expected)
    mask = from_scans.grid.with_data(inside)
    alone = tmp_path / "alone" / f"{case.id}-seg.nii.gz"
    alone.parent.mkdir()
    shutil.copy(case.path("seg"), alone)
    (bare,) = find(alone, but=tmp_path / "out")
    with pytest.raises(SynthError, match="does not say where the brain is"):
        read(bare)
    given = mask.save(tmp_path / "mask.nii.gz")
    assert np.array_equal(read(bare, brain=given).classes, expected)
    with pytest.raises(SynthError, match="holds no"):
        read(bare, brain=tmp_path / "data")
    beside = mask.save(alone.with_name(f"{case.id}-brain.nii.gz"))
    assert read(bare).files == (alone, beside)
    assert np.array_equal(read(bare).classes, expected)
    assert np.array_equal(read(bare, brain=alone.parent).classes, expected)
    own = from_scans.grid.with_data(np.where(inside & (expected == 4), 4, expected))
    own.save(tmp_path / "own" / "any_name.nii.gz")
    (named,) = find(tmp_path / "own" / "any_name.nii.gz", but=tmp_path / "out")
    assert named.id == "any_name"
    assert np.array_equal(read(named, scheme=MEDDPM).classes, expected)
    (single,) = find(folder / f"{case.id}-seg.nii.gz", but=tmp_path / "out")
    assert np.array_equal(read(single).classes, expected)


def test_label_4_is_never_guessed(tmp_path: Path) -> None:
    write_case(tmp_path)
    (case,) = discover(tmp_path)
    labels = case.load("seg")
    labels.with_data(np.where(labels.data == 3, 4, labels.data)).save(case.path("seg"))
    with pytest.raises(SynthError, match="label 4 is outside the scheme brats2023") as told:
        read(case)
    assert all(scheme in told.value.hint for scheme in LABEL_SCHEMES if scheme != "brats2023")
    assert (read(case, scheme="brats2021").classes == 3).any()


def test_adapters_find_their_base_and_are_weighed(tmp_path: Path) -> None:
    base = save_model(tmp_path / "weights" / "base")
    save_adapter(tmp_path / "weights" / "site_b", base, intensities=FLAT)
    plain = load(base).model.state_dict()["time_embed.2.weight"]

    def moved(*words: str, model: Path | None = None) -> torch.Tensor:
        return load(model, words).model.state_dict()["time_embed.2.weight"] - plain

    whole = moved(str(tmp_path / "weights"))
    assert whole.abs().max() > 0.1
    half = moved(f"{tmp_path / 'weights' / 'site_b'}:0.5", model=base)
    torch.testing.assert_close(half, whole / 2, atol=1e-6, rtol=1e-5)
    assert load(lora=[tmp_path / "weights"]).metadata["intensities"] == FLAT
    assert load(tmp_path / "weights" / "site_b").metadata["intensities"] == FLAT


def test_a_site_of_unknown_brightness_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_model(tmp_path / "m")
    text = (model / "config.json").read_text()
    assert "intensities" in text
    network = checkpoint.load(model)
    checkpoint.save(
        tmp_path / "n", model=network.model, family="ddpm_lora", preset="tiny", config=SMALL
    )
    load(tmp_path / "n")
    assert "does not say how bright" in caplog.text
