"""A tumour is painted where the label map has it; every other voxel stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from ddpm_lora import generate
from ddpm_lora.conditioning import BRAIN, head_in
from ddpm_lora.config import Config
from ddpm_lora.data import zone_about
from ddpm_lora.generate import SamplerOptions
from ddpm_lora.label_maps import LabelMap, find_hosts, host_of, read_into
from ddpm_lora.paint import paint
from ddpm_lora.state_space import space_of
from synth.base.errors import SynthError
from synth.base.files import read_json
from synth.cli import main
from synth.data.case import MODALITIES, Case, discover
from synth.data.split import Entry, Split, write_split
from synth.data.volume import Volume
from tests.conftest import ball, brain, rotation, write_case
from tests.test_ddpm_lora_generate import SMALL, loaded_with, save_model

PAINTER = replace(SMALL, anatomy=True, objective="v")
QUICK = SamplerOptions(steps=1)
TYPES = (np.int16, np.uint8, np.float32)


def host(
    number: int, *, shape: tuple[int, int, int] = (22, 26, 21), contrasts: int = 4
) -> LabelMap:
    """A brain on a grid of its own, some contrasts of it, and a tumour somewhere in it."""
    rng = np.random.default_rng(number)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    affine[:3, :3] = rotation(tuple(rng.uniform(-12, 12, 3))) @ affine[:3, :3]
    affine[:3, :3] *= rng.uniform(0.7, 1.6)
    image = brain(shape, seed=number)
    inside = image > 0
    places = np.argwhere(inside)
    centre = tuple(places[rng.integers(len(places))])
    tumour = sum(ball(shape, centre, r).astype(np.uint8) for r in (1, 2, 3))
    classes = np.where(inside, BRAIN, 0).astype(np.uint8)
    classes[inside & (tumour > 0)] = np.array([0, 2, 3, 1])[tumour][inside & (tumour > 0)]
    kind = TYPES[number % len(TYPES)]
    scans = {}
    for m in sorted(rng.permutation(MODALITIES)[:contrasts]):
        data = image * (0.2 if kind == np.uint8 else rng.uniform(0.5, 1.5))
        data = data if kind == np.float32 else data.round()
        scans[m] = stored(data.clip(0, 255 if kind == np.uint8 else None), affine, kind)
    grid = Volume(data=classes[None], affine=affine)
    return LabelMap(id=f"x{number}", classes=classes, grid=grid, scans=scans)


def stored(data: np.ndarray, affine: np.ndarray, kind: type) -> Volume:
    """A scan as it is read from a file of a type: float32, and a header that says the type."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    return Volume(data=np.float32(data)[None], affine=affine, header=header)


def check_outside(number: int) -> None:
    labels = host(number, contrasts=1 + number % 4)
    painted = paint(labels, loaded_with(PAINTER), QUICK, mass_effect=number % 5 == 0)
    away = ndimage.distance_transform_edt(~labels.painted, sampling=labels.grid.spacing_mm)
    may = (away <= (14.0 if number % 5 == 0 else 6.0)) & (labels.classes > 0)
    assert set(painted.scans) == set(MODALITIES)
    for contrast, before in labels.scans.items():
        after = painted.scans[contrast]
        assert (after.data != before.data)[0][~may].sum() == 0
        kind = before.header.get_data_dtype()
        assert after.data.dtype == kind
        assert (after.data != before.data)[0][labels.painted].any()
        assert np.array_equal(after.affine, before.affine)


@pytest.mark.parametrize("number", range(12))
def test_outside_the_zone_nothing_changes(number: int) -> None:
    check_outside(number)


@pytest.mark.slow
def test_outside_the_zone_nothing_changes_in_200_grids() -> None:
    for number in range(200):
        check_outside(number)


def knowing(greys: torch.Tensor):
    """A network that paints each class in a grey of its own, in the zone alone."""

    def painter(network, config, planes, *, guidance, known):
        image, zone = known
        picture = (planes[:, :4] * greys.view(1, 4, 1, 1, 1)).sum(1, keepdim=True)
        picture = torch.where(zone, picture, image)
        state = space_of(config, network).state(picture, head_in(planes))
        return lambda x, logsnr, cond=None: state

    return painter


def test_each_label_is_painted_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "denoiser", knowing(torch.tensor([-0.5, 0.0, 0.25, 0.75])))
    labels = host(0, contrasts=2)
    labels = replace(labels, grid=labels.grid.with_data(labels.grid.data))
    affine = np.diag([-1.0, -1, 1, 1])  # voxels of the model's size
    scans = {m: replace(v, affine=affine) for m, v in labels.scans.items()}
    labels = replace(labels, grid=replace(labels.grid, affine=affine), scans=scans)
    made = paint(labels, loaded_with(PAINTER), SamplerOptions(steps=3))
    for contrast, scan in made.scans.items():
        low, high = made.facts["intensities"][contrast]
        greys = (np.array([-1, -0.5, 0.0, 0.25, 0.75]) + 1) / 2 * (high - low) + low
        where = labels.painted if contrast in scans else labels.classes > 0
        np.testing.assert_allclose(scan.data[0][where], greys[labels.classes][where], atol=1)


def test_detail_finer_than_the_model_is_kept_outside_the_tumour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model of 2 mm that paints what was there leaves scans of 1 mm nearly as they are."""

    def copying(network, config, planes, *, guidance, known):
        state = space_of(config, network).state(known[0], head_in(planes))
        return lambda x, logsnr, cond=None: state

    monkeypatch.setattr(generate, "denoiser", copying)
    labels = host(2)
    labels = replace(labels, grid=replace(labels.grid, affine=np.eye(4)), scans={
        m: replace(v, affine=np.eye(4)) for m, v in labels.scans.items()})  # fmt: skip
    made = paint(labels, loaded_with(replace(PAINTER, spacing_mm=2.0)), QUICK)
    healthy = labels.classes == BRAIN
    deep = healthy & ~(ball_about(labels.painted))
    for contrast, before in labels.scans.items():
        spread = before.data[0][labels.classes > 0].std()
        off = np.abs(made.scans[contrast].data[0] - before.data[0])
        assert off[deep].max() < 0.15 * spread
        assert off[labels.painted].mean() > 2 * off[deep].mean()


def ball_about(mask: np.ndarray, reach: int = 3) -> np.ndarray:
    return ndimage.binary_dilation(mask, iterations=reach)


def test_the_same_seed_paints_the_same() -> None:
    labels, loaded = host(3), loaded_with(PAINTER)
    with torch.no_grad():
        torch.nn.init.normal_(loaded.model.get_parameter("out.2.weight"), std=0.1)
    one, again = (paint(labels, loaded, QUICK).scans for _ in range(2))
    other = paint(labels, loaded, QUICK, index=1).scans
    for contrast in MODALITIES:
        assert np.array_equal(one[contrast].data, again[contrast].data)
    assert any((one[m].data != other[m].data).any() for m in MODALITIES)


def test_what_cannot_be_painted_is_said() -> None:
    labels = host(1)
    with pytest.raises(SynthError, match="whole brains alone"):
        paint(labels, loaded_with(replace(PAINTER, anatomy=False)), QUICK)
    healthy = replace(labels, classes=np.where(labels.classes > 0, BRAIN, 0).astype(np.uint8))
    with pytest.raises(SynthError, match="no tumour to paint"):
        paint(healthy, loaded_with(PAINTER), QUICK)


# --- Files ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in (1, 2):
        write_case(tmp_path / "data", f"BraTS-GLI-{number:05d}-000", seed=number)
    return tmp_path / "data"


def test_a_label_map_finds_its_host(data: Path) -> None:
    hosts = find_hosts(data)
    new = Case(id="BraTS-GLI-00002-000-tumour00", files={})
    assert host_of(new, hosts).id == "BraTS-GLI-00002-000"
    stranger = Case(id="somebody", files={})
    assert host_of(stranger, hosts[:1]) == hosts[0]
    with pytest.raises(SynthError, match="none of the 2 cases"):
        host_of(stranger, hosts)


def test_the_hosts_own_tumour_stays(data: Path, tmp_path: Path) -> None:
    case = discover(data)[0]
    own = case.load("seg")
    new = np.zeros_like(own.data)
    new[0, 13:15, 11:13, 9:11] = 3
    path = own.with_data(new).save(tmp_path / "x" / f"{case.id}-tumour00-seg.nii.gz")
    labels = read_into(Case(id=f"{case.id}-tumour00", files={"seg": path}), case)
    assert np.array_equal(labels.painted, new[0] > 0)
    assert np.array_equal((labels.classes > 0) & (labels.classes < BRAIN),
                          (own.data[0] > 0) | (new[0] > 0))  # fmt: skip
    again = read_into(case, case)  # painted over itself, nothing of it stays
    assert np.array_equal(again.painted, (own.data[0] > 0) & (again.classes > 0))
    assert {p.name for p in labels.files} >= {path.name, case.path("t1n").name}


def test_painted_cases_are_written_with_whose_brain_it_is(data: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", PAINTER)
    for m in ("t1c", "t2w", "t2f"):
        next(data.glob(f"*2-000/*{m}.nii.gz")).unlink()  # the second has t1n alone
    command = f"sample {data} --into {data} -o {tmp_path}/out --model {model} --steps 1"
    assert main([*command.split(), "--mass-effect", "--device", "cpu"]) == 0
    first = discover(data)[0]
    record = read_json(tmp_path / "out" / "records" / f"{first.id}-synth00.json", dict)
    assert record["into"] == first.id
    assert record["source"]["donors"] == [first.id]
    assert record["arguments"]["mass_effect"] is True
    for case in discover(data):
        made = tmp_path / "out" / f"{case.id}-synth00"
        assert len(list(made.glob("*.nii.gz"))) == 5
    t1n = Volume.load(tmp_path / "out" / f"{first.id}-synth00" / f"{first.id}-synth00-t1n.nii.gz")
    before = first.load("t1n")
    assert t1n.header is not None
    assert t1n.header.get_data_dtype() == np.int16
    changed = (t1n.data != before.data)[0]
    assert changed.any()
    assert changed.sum() <= record["changed_voxels"]


def test_other_scans_under_the_same_id_are_not_taken_for_done(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model", PAINTER)
    command = f"sample {data} --into {data} -o {tmp_path}/out --model {model} --steps 1 --end 1"
    words = [*command.split(), "--device", "cpu"]
    assert main(words) == 0
    assert main(words) == 0
    assert "0 made, 1 already there" in capsys.readouterr().err
    case = discover(data)[0]
    scan = case.load("t1n")
    scan.with_data(scan.data * 2).save(case.path("t1n"))
    assert main(words) == 2
    assert "t1n" in capsys.readouterr().err


def test_a_host_in_testing_is_refused(data: Path, tmp_path: Path) -> None:
    """The label map of one patient, in the brain of another who is tested."""
    one, tested = discover(data)
    split = Split(training=(Entry(case=one, fold=0),), testing=(Entry(case=tested, fold=-1),))
    write_split(tmp_path / "split.json", split, tmp_path)
    model = save_model(tmp_path / "model", PAINTER)
    words = f"sample {one.path('seg').parent} -o {tmp_path}/out --model {model} --steps 1"
    words += f" --into {tested.path('seg').parent} --append-to {tmp_path}/split.json"
    assert main([*words.split(), "--device", "cpu"]) == 2
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--mass-effect", "--mass-effect without --into"),
        ("--into data --brain data", "--into and --brain"),
        ("--into nowhere", "no such file or folder"),
    ],
)
def test_what_does_not_go_together(
    words: str, said: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(data.parent)
    assert main(["sample", "data", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_what_was_inpainted_is_a_host(data: Path, tmp_path: Path) -> None:
    case = discover(data)[0]
    case.load("t1n").save(tmp_path / "done" / f"{case.id}-t1n-inference.nii.gz")
    (found,) = find_hosts(tmp_path / "done")
    assert found.id == case.id
    assert read_into(case, found).scans.keys() == {"t1n"}


def test_a_zone_is_of_whole_blocks_with_the_tumour_and_within_the_margin() -> None:
    classes = np.full((12, 12, 12), BRAIN, np.uint8)
    assert not zone_about(classes, 6.0, 1.0).any()
    classes[5, 5, 5] = 2
    zone = zone_about(classes, 4.0, 1.0)
    blocks = zone.reshape(6, 2, 6, 2, 6, 2)
    assert np.array_equal(blocks.any((1, 3, 5)), blocks.all((1, 3, 5)))
    assert zone[4:6, 4:6, 4:6].all()  # its own block
    assert zone.sum() > 3 * 8
    assert not zone[~ball(classes.shape, (5, 5, 5), 4.01)].any()
    assert zone_about(classes, 0.5, 1.0).sum() == 8
    assert Config(anatomy=True).paint_share == 0.5
