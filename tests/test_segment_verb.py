"""`synth segment` and `synth soup`: labels where they belong, and every mistake in one line."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from torch import Tensor, nn

import segmentation.inference.write_segmentations as written_module
import segmentation.network
from segmentation.config import Config
from segmentation.data import prepare_scans
from segmentation.inference.postprocess import Postprocessing
from segmentation.inference.segment import SegmentOptions, load_models, load_scans, segment
from segmentation.predict import probabilities
from synth.base.files import atomic_path, file_hash, read_json
from synth.checkpoints import checkpoint
from synth.cli import look_up, main
from synth.data.case import MODALITIES, Case, discover
from synth.data.labels import REGIONS, region
from synth.data.split import Entry, Split, write_split
from synth.data.volume import Volume
from synth.pictures.montage import draw_montage
from tests import spoil
from tests.conftest import brain, rotation, write_case

ROOT = Path(__file__).parents[1]
CONFIG = Config(patch=(16, 16, 16), width=4)
BUILD = segmentation.network.build


class Cut(nn.Module):
    """A region is where one contrast, as prepared, is bright: the truth is known everywhere."""

    min_divisor = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def cut(
    *levels: float, contrast: int = 1, slope: float = 40.0, noise: float = 0.0, seed: int = 0
) -> Cut:
    """Logits of slope · (x − level); levels for WT, TC, ET."""
    model = Cut()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model.conv.weight.normal_(std=max(noise, 1e-9))
        model.conv.weight[:, contrast] += slope
        model.conv.bias.copy_(-slope * torch.tensor(levels))
    return model


def save_model(folder: Path, model: nn.Module | None = None, **settings) -> Path:
    config = replace(CONFIG, **settings)
    model = model or cut(0.0, 0.3, 0.6)
    return checkpoint.save(folder, model=model, family="segmentation", preset="tiny", config=config)


def quick_montage(rows, path: Path, **words) -> Path:
    """matplotlib takes longer than all the rest."""
    with atomic_path(path) as temporary:
        pixels = (np.ascontiguousarray(p).tobytes() for row in rows for p in row)
        temporary.write_bytes(b"".join(pixels))
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth.pictures.montage.draw_montage", quick_montage)
    monkeypatch.setattr(segmentation.network, "build", lambda config: Cut())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "a")


def cohort(folder: Path, count: int, name: str = "BraTS-GLI-{:05d}-000") -> Path:
    for k in range(count):
        write_case(folder, name.format(k + 1), seed=k)
    return folder


def made(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.glob("*.nii.gz"))}


def truth(case: Case, *levels: float, contrast: str = "t1c") -> np.ndarray:
    """The regions that `cut` finds, from the scan itself: tissue is standardised by its brain."""
    values = case.load(contrast).data[0]
    brain = np.any([case.load(m).data[0] > 0 for m in MODALITIES], axis=0)
    low, high = np.percentile(values[brain], (0.5, 99.5))
    core = values[brain & (values >= low) & (values <= high)].astype(np.float64)
    z = (values - core.mean()) / (3 * core.std())
    return np.stack([brain & (z > level) for level in levels])


# --- What is found, and where -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_labels_lie_on_the_scans_own_grid(seed: int, tmp_path: Path, model: Path) -> None:
    """Any axes, oblique, odd shapes: every voxel has the label that its own brightness gives."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(17, 27, 3))
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    if rng.random() < 0.5:
        affine[:3, :3] = rotation(tuple(rng.uniform(-20, 20, 3))) @ affine[:3, :3]
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    folder = tmp_path / "data" / "BraTS-GLI-00001-000"
    folder.mkdir(parents=True)
    for k, m in enumerate(MODALITIES):
        image = brain(shape, seed=10 * seed + k) * (1 + k)
        stored = nib.Nifti1Image(image.astype(np.int16), affine)
        stored.header["descrip"] = b"scanner"
        nib.save(stored, folder / f"{folder.name}-{m}.nii.gz")
    out = tmp_path / "out"
    words = ["segment", str(tmp_path / "data"), "-o", str(out), "--models", str(model)]
    assert main(words) == 0
    (case,) = discover(tmp_path / "data")
    found = nib.load(out / "BraTS-GLI-00001-000-seg.nii.gz")
    given = nib.load(case.path("t1n"))
    assert np.array_equal(found.affine, given.affine)
    assert found.header["descrip"] == b""
    assert found.header.get_data_dtype() == np.uint8
    labels = np.asanyarray(found.dataobj)
    whole, core, enhancing = truth(case, 0.0, 0.3, 0.6)
    assert enhancing.any()
    assert np.array_equal(labels == 3, enhancing)
    assert np.array_equal(labels == 1, core & ~enhancing)
    assert np.array_equal(labels == 2, whole & ~core)


def test_other_spacings_are_carried_back_as_probabilities(tmp_path: Path) -> None:
    cohort(tmp_path / "data", 1)
    (case,) = discover(tmp_path / "data")
    coarse = load_models([save_model(tmp_path / "m", cut(0, 0.3, 0.6, slope=4.0), spacing_mm=2.0)])
    scans = load_scans(case)
    found = segment(scans, models=coarse)
    image, frame = prepare_scans(list(scans.values()), coarse[0].config)
    assert np.allclose(np.sqrt((frame.affine[:3, :3] ** 2).sum(0)), 2)
    p = probabilities(coarse[0].model, image, coarse[0].config).numpy()
    t1n = scans["t1n"]
    inner = (slice(5, -5),) * 3  # at the box's edge the two continue differently
    for channel in range(3):
        onto = resample_from_to(
            nib.Nifti1Image(p[channel], frame.affine), (t1n.shape, t1n.affine), order=1, cval=0
        ).get_fdata(dtype=np.float32)
        ours = found.probabilities.data[channel]
        assert ours[inner].std() > 0.05
        np.testing.assert_allclose(ours[inner], onto[inner], atol=1e-5)  # float32 of two programs
    levels = np.unique(found.probabilities.data[0])
    assert ((levels > 0.05) & (levels < 0.95)).sum() > 100, "not labels carried back"


def test_what_is_written(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("synth.pictures.montage.draw_montage", draw_montage)
    data, out = cohort(tmp_path / "data", 1), tmp_path / "out"
    words = ["segment", str(data), "-o", str(out), "--models", str(model), "--probabilities"]
    assert main([*words, "--thresholds", "0.5", "0.5", "0.7", "--min-ml", "0.002"]) == 0
    (case,) = discover(data)
    record = read_json(out / "records" / f"{case.id}.json", dict)
    assert record["arguments"]["rules"] == {
        "thresholds": [0.5, 0.5, 0.7], "min_ml": [0.002] * 3, "min_probability": [0.0] * 3,
        "most": [0, 0, 0], "small_et_ml": 0.0,
    }  # fmt: skip
    assert record["inputs"] == {case.path(m).name: file_hash(case.path(m)) for m in MODALITIES}
    assert record["arguments"]["models"] == [file_hash(model / "model.safetensors")]
    labels = Volume.load_labels(out / f"{case.id}-seg.nii.gz")
    for name in REGIONS:
        p = Volume.load(out / "probabilities" / f"{case.id}-{name.lower()}.nii.gz").data
        assert p.min() >= 0
        assert p.max() <= 1
        mask = region(labels.data, case.scheme, name)
        assert mask.any()
        assert (p[mask] > 0.5).all()
        assert record["ml"][name] == pytest.approx(mask.sum() / 1000, abs=1e-3)
    from matplotlib.image import imread

    picture = imread(out / "pictures" / f"{case.id}.png")[..., :3]
    assert picture.shape[0] * 4 == pytest.approx(picture.shape[1] * 3, rel=0.1)  # 3 rows of 4
    colourful = np.ptp(picture, axis=2) > 0.3
    assert 0.001 < colourful.mean() < 0.3, "outlines, not areas"
    assert discover(out)[0].files.keys() == {"seg"}, "nothing else is taken for a case"
    assert "WT " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case_id", "numbers"),
    [
        ("BraTS2021_00001", {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}),
        ("BraTS-PED-00001-000", {"WT": (1, 2, 4), "TC": (1, 2), "ET": (1,)}),
        ("BraTS-GLI-00001-101", {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}),
        ("BraTS-SSA-00001-000", {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}),
    ],
)
def test_labels_are_in_the_cases_own_scheme(
    case_id: str, numbers: dict, model: Path, tmp_path: Path
) -> None:
    write_case(tmp_path / "data", case_id)
    words = ["segment", str(tmp_path / "data"), "-o", str(tmp_path / "out")]
    assert main([*words, "--models", str(model)]) == 0
    (case,) = discover(tmp_path / "data")
    labels = Volume.load_labels(tmp_path / "out" / f"{case_id}-seg.nii.gz").data[0]
    for name, mask in zip(REGIONS, truth(case, 0.0, 0.3, 0.6), strict=True):
        assert np.array_equal(np.isin(labels, numbers[name]), mask)
    assert set(np.unique(labels)) == {0, *numbers["WT"]}


# --- Several models -----------------------------------------------------------------------------


def test_an_ensemble_of_one_model_is_that_model(model: Path, tmp_path: Path) -> None:
    data = cohort(tmp_path / "data", 1)

    def segmented(name: str, *more: str) -> dict[str, bytes]:
        words = ["segment", str(data), "-o", str(tmp_path / name), "--probabilities", *more]
        assert main(words) == 0
        return made(tmp_path / name) | made(tmp_path / name / "probabilities")

    copy = shutil.copytree(model, tmp_path / "copy")
    alone = segmented("alone", "--models", str(model))
    assert len(alone) == 4
    assert segmented("twice", "--models", str(model), str(copy)) == alone
    assert segmented("uneven", "--models", str(model), str(copy), "--weights", "1", "0.3") == alone
    other = save_model(tmp_path / "other", cut(0.5, 0.6, 0.7))
    both = ["--models", str(model), str(other), "--weights"]
    assert segmented("none", *both, "1", "0") == alone
    assert segmented("regions", *both, "1,1,1", "0,0,0") == alone
    mixed = segmented("mixed", *both, "1,1,0", "0,0,1")
    changed = {name for name in alone if alone[name] != mixed[name]}
    assert {n.removesuffix(".nii.gz").rsplit("-", 1)[1] for n in changed} == {"et", "seg"}


def test_models_of_any_patch_and_spacing_meet_on_the_scans_grid(tmp_path: Path) -> None:
    cohort(tmp_path / "data", 1)
    (case,) = discover(tmp_path / "data")
    paths = [
        save_model(tmp_path / "a", cut(0.0, 0.3, 0.6, slope=6), patch=(32, 16, 16)),
        save_model(tmp_path / "b", cut(0.1, 0.2, 0.5, slope=3), spacing_mm=1.5),
        save_model(tmp_path / "c", cut(0.1, 0.2, 0.5, contrast=3, slope=3), spacing_mm=2.5),
    ]
    models, scans = load_models(paths), load_scans(case)
    weights = np.array([[1, 2, 0], [1, 0, 1], [0, 1, 3.0]])
    options = SegmentOptions(weights=tuple(weights.ravel()))
    found = segment(scans, models=models, options=options).probabilities.data
    alone = [segment(scans, models=[m]).probabilities.data for m in models]
    expected = np.einsum("mr,mrxyz->rxyz", weights, alone) / weights.sum(0).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_mirror_images_and_rules_reach_the_prediction(tmp_path: Path) -> None:
    cohort(tmp_path / "data", 1)
    (case,) = discover(tmp_path / "data")
    models, scans = load_models([save_model(tmp_path / "a")]), load_scans(case)
    plain = segment(scans, models=models)
    mirrored = segment(scans, models=models, options=SegmentOptions(tta=True))
    # This network does not care which way is left.
    np.testing.assert_allclose(mirrored.probabilities.data, plain.probabilities.data, atol=1e-5)
    rules = Postprocessing(small_et_ml=100.0)
    assert not segment(scans, models=models, options=SegmentOptions(rules=rules)).regions[2].any()


def test_a_real_network_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation.network, "build", BUILD)
    torch.manual_seed(0)
    path = save_model(tmp_path / "m", BUILD(CONFIG))
    data = cohort(tmp_path / "data", 1)
    words = ["segment", str(data), "-o", str(tmp_path / "out"), "--models", str(path)]
    assert main([*words, "--overlap", "0"]) == 0
    assert len(made(tmp_path / "out")) == 1


# --- Batches ------------------------------------------------------------------------------------


def test_chunks_and_shards_make_the_whole(model: Path, tmp_path: Path) -> None:
    data = cohort(tmp_path / "data", 3)

    def segmented(name: str, *more: str) -> dict[str, bytes]:
        words = ["segment", str(data), "-o", str(tmp_path / name), "--models", str(model)]
        assert main([*words, *more]) == 0
        return made(tmp_path / name)

    whole = segmented("whole")
    assert len(whole) == 3
    assert segmented("a", "--begin", "2") | segmented("b", "--end", "2") == whole
    assert segmented("c", "--shard", "0/2") | segmented("d", "--shard", "1/2") == whole


def test_a_case_cut_off_half_way_is_made_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = cohort(tmp_path / "data", 2), tmp_path / "out"
    words = ["segment", str(data), "-o", str(out), "--models", str(model)]
    assert main(words) == 0
    whole = made(out)
    (out / "BraTS-GLI-00002-000-seg.nii.gz").unlink()
    (out / "records" / "BraTS-GLI-00002-000.json").write_text("{")
    (out / ".BraTS-GLI-00002-000-seg.nii.gz.1.part").write_bytes(b"half")
    capsys.readouterr()
    assert main(words) == 0
    assert "1 made, 1 already there, 0 failed" in capsys.readouterr().err
    assert made(out) == whole


def test_a_forced_run_that_is_cut_off_leaves_nothing_that_counts_as_done(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: object, **more: object) -> None:
        raise KeyboardInterrupt

    data, out = cohort(tmp_path / "data", 1), tmp_path / "out"
    words = ["segment", str(data), "-o", str(out), "--models", str(model)]
    assert main(words) == 0
    first = made(out)
    changed = [*words, "--thresholds", "0.9999"]
    for step in ("draw_tumour", "write_record"):
        with monkeypatch.context() as patch:
            patch.setattr(written_module, step, stop)
            assert main([*changed, "--force"]) == 130
        assert main(changed) == 0
        assert made(out) != first
        assert main([*words, "--force"]) == 0
        assert made(out) == first


def test_what_was_made_otherwise_is_not_taken_for_done(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = cohort(tmp_path / "data", 2), tmp_path / "out"
    words = ["segment", str(data), "-o", str(out), "--models", str(model)]
    assert main(words) == 0
    before = made(out)
    assert main([*words, "--device", "cpu"]) == 0
    assert "0 made, 2 already there" in capsys.readouterr().err
    for more, told in (
        (["--tta"], "was made with tta = False, not True"),
        (["--weights", "3"], "was made with weights = [[1.0, 1.0, 1.0]], not [[3.0, 3.0, 3.0]]"),
        (["--thresholds", "0.6"], "was made with rules"),
        (["--scheme", "brats2021"], "was made with scheme = brats2023, not brats2021"),
    ):
        assert main([*words, *more]) == 2
        assert told in capsys.readouterr().err
    other = save_model(tmp_path / "other", cut(0.5, 0.6, 0.7))
    assert main([*words[:-1], str(other)]) == 2
    assert "was made with other models" in capsys.readouterr().err
    scan = data / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-t1c.nii.gz"
    spoil.resave(scan, lambda d, a: (d // 2, a))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "BraTS-GLI-00002-000-seg.nii.gz was made from other files" in said
    assert "0 made, 1 already there, 1 failed" in said
    assert made(out) == before
    assert main([*words[:-1], str(other), "--force"]) == 0
    assert all(made(out)[name] != before[name] for name in before)


def test_answers_within_the_data_are_no_scans_and_references_are_safe(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cohort(tmp_path / "data", 1)
    words = ["segment", str(data), "--models", str(model), "-o"]
    for name in ("first", "second", "first"):
        assert main([*words, str(data / name)]) == 0
    assert made(data / "first") == made(data / "second")
    assert "1 already there" in capsys.readouterr().err
    # A flat folder whose references have the very name of an answer.
    flat = tmp_path / "flat"
    shutil.copytree(data / "BraTS-GLI-00001-000", flat)
    reference = flat / "BraTS-GLI-00001-000-seg.nii.gz"
    content = reference.read_bytes()
    words = ["segment", str(flat), "--models", str(model), "-o", str(flat)]
    for more in ([], ["--force"]):
        assert main([*words, *more]) == 2
        assert "did not write it" in capsys.readouterr().err
        assert reference.read_bytes() == content


# --- Bad input ----------------------------------------------------------------------------------


def claim(path: Path) -> None:
    """A header that claims far more voxels than there are."""
    header = nib.load(path).header.copy()
    raw = bytearray(header.binaryblock)
    raw[40:48] = np.array([3, 30000, 30000, 30000], np.int16).tobytes()
    path.write_bytes(gzip.compress(bytes(raw) + b"\0" * 100))


def twice(path: Path) -> None:
    shutil.copytree(path.parent, path.parent.with_name("again"))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing contrast": (spoil.remove, "no t1c file → segmentation needs all of t1n, t1c"),
    "text": (spoil.text, "cannot be read as NIfTI"),
    "packed text": (spoil.packed_text, "cannot be read as"),
    "truncated": (spoil.truncate, "cannot be read as NIfTI"),
    "wrong shape": (spoil.crop, "differ in shape"),
    "wrong affine": (spoil.move, "differ in affine: up to 3 mm"),
    "4-D": (spoil.stack, "3-D volume"),
    "all zero": (spoil.blank, ""),
    "NaN": (spoil.not_a_number, "NaN or Inf"),
    "huge": (claim, "the header claims 30000×30000×30000 voxels"),
    "twice": (twice, "occurs twice"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_case_is_one_line_and_the_rest_is_done(
    what: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = BAD[what]
    data, out = cohort(tmp_path / "data", 2), tmp_path / "out"
    bad = "BraTS-GLI-00001-000"
    damage(data / bad / f"{bad}-t1c.nii.gz")
    assert main(["segment", str(data), "-o", str(out), "--models", str(model)]) == 2
    lines = spoil.told(capsys.readouterr().err, message)
    assert any(f"[1/2] {bad}: " in line for line in lines)
    assert lines[-1].endswith("1 made, 0 already there, 1 failed")
    assert list(made(out)) == ["BraTS-GLI-00002-000-seg.nii.gz"]
    assert not [p for p in out.rglob("*") if bad in p.name], "nothing half-written"


def test_an_odd_reference_does_not_matter(model: Path, tmp_path: Path) -> None:
    """It is not looked at: neither its labels nor whether it can be read."""
    data = cohort(tmp_path / "data", 1)
    next(data.rglob("*-seg.nii.gz")).write_text("hello")
    words = ["segment", str(data), "-o", str(tmp_path / "out"), "--models", str(model)]
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--end", "x"], "a whole number, or end"),
        (["--shard", "3/3"], "write i/n"),
        (["--thresholds", "0.5", "0.5"], "thresholds has 2 values"),
        (["--thresholds", "1.5"], "probabilities, 0 to 1"),
        (["--min-ml", "-1"], "0 or more"),
        (["--overlap", "1"], "below 1"),
        (["--weights", "1", "2"], "2 weights for 1 model"),
        (["--weights", "0"], "a model that counts"),
        (["--weights", "x"], "numbers of 0 or more"),
        (["--scheme", "brats1999"], "unknown label scheme 'brats1999'"),
        (["--device", "cuda:77"], "is not available"),
        (["--models", "nowhere"], "nowhere: no such checkpoint"),
        (["--models", "DATA"], "is not a checkpoint"),
        (["--models", "PAINTER"], "is a wdm3d checkpoint"),
        (["--models", "TORN"], "cannot be read as safetensors"),
        (["--treshold", "1"], "unknown argument --treshold → did you mean --thresholds?"),
    ],
)
def test_what_cannot_work_is_one_line_and_writes_nothing(
    words: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = cohort(tmp_path / "data", 1), tmp_path / "out"
    torn = shutil.copytree(model, tmp_path / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:200])
    places = {"DATA": data, "PAINTER": ROOT / "weights" / "wdm3d", "TORN": torn.parent}
    for key, place in places.items():
        words = [word.replace(key, str(place)) for word in words]
    given = ["segment", str(data), "-o", str(out), "--models", str(model), *words]
    assert main(given) == 2
    spoil.told(capsys.readouterr().err, message)
    assert not out.exists()


def test_damaged_weights_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = cut(0.0, 0.3, 0.6)
    nn.init.constant_(broken.conv.bias, float("nan"))
    data, path = cohort(tmp_path / "data", 1), save_model(tmp_path / "m", broken)
    assert main(["segment", str(data), "-o", str(tmp_path / "o"), "--models", str(path)]) == 2
    assert "holds NaN or infinity" in capsys.readouterr().err
    assert not made(tmp_path / "o")


def test_a_folder_that_cannot_be_written_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = cohort(tmp_path / "data", 1), tmp_path / "out"
    out.write_text("a file is here")
    assert main(["segment", str(data), "-o", str(out), "--models", str(model)]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_defaults_of_the_verb_are_those_of_the_rules() -> None:
    values = look_up(["segment", "data", "-o", "out", "--models", "m"]).parse()
    names = ("thresholds", "min_ml", "min_probability", "most", "small_et_ml")
    assert Postprocessing.of_words(**{n: values[n] for n in names}) == Postprocessing()
    assert (values["tta"], values["overlap"]) == (SegmentOptions().tta, SegmentOptions().overlap)


# --- Soups --------------------------------------------------------------------------------------


@pytest.fixture
def kitchen(tmp_path: Path) -> dict[str, Path]:
    """Cases whose true regions are where t1c is bright, and networks that see it more or less."""
    data = cohort(tmp_path / "data", 2)
    for case in discover(data):
        whole, core, enhancing = truth(case, 0.0, 0.3, 0.6)
        labels = np.where(enhancing, 3, np.where(core, 1, np.where(whole, 2, 0)))
        case.load("t1n").with_data(labels.astype(np.uint8)).save(case.path("seg"))
    models = {
        "low": cut(-0.2, 0.1, 0.4), "high": cut(0.2, 0.5, 0.8), "bad": cut(2, 2, 2, contrast=0),
    }  # fmt: skip
    return {"data": data} | {n: save_model(tmp_path / n, m) for n, m in models.items()}


def test_a_soup_is_written_with_what_it_is_made_of(
    kitchen: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "soup"
    before = {n: made_of(kitchen[n]) for n in ("low", "high", "bad")}
    words = ["soup", *(str(kitchen[n]) for n in before), "--data", str(kitchen["data"])]
    assert main([*words, "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "greedy soup of 2: Dice 1.0000" in said
    assert "these 2 cases chose it: do not report on them" in said
    assert {n: made_of(kitchen[n]) for n in before} == before, "inputs are as they were"
    weights = checkpoint.load(out).model.state_dict()
    low, high = (checkpoint.load(kitchen[n]).model.state_dict() for n in ("low", "high"))
    for key, value in weights.items():
        assert torch.equal(value, ((low[key].double() + high[key].double()) / 2).float())
    metadata = checkpoint.read_metadata(out)
    assert metadata["selected_on"]["cases"] == [c.id for c in discover(kitchen["data"])]
    assert metadata["soup"]["gain"] > 0.05
    assert [row["kept"] for row in metadata["soup"]["table"]] == [True, True, False]
    assert metadata["source"].startswith("greedy soup of ")
    assert metadata["soup"]["measured"] == 5
    # A soup can be eaten: it segments.
    answer = ["segment", str(kitchen["data"]), "-o", str(tmp_path / "seg"), "--models", str(out)]
    assert main(answer) == 0
    # Again: refused; forced: nothing is measured twice.
    assert main([*words, "-o", str(out)]) == 2
    assert "--force writes over it" in capsys.readouterr().err
    assert main([*words, "-o", str(out), "--force"]) == 0
    assert checkpoint.read_metadata(out)["soup"]["measured"] == 0


def made_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("kind", ["uniform", "greedy"])
def test_where_nothing_helps_the_best_is_written_and_said(
    kind: str, kitchen: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    words = ["soup", str(kitchen["bad"]), str(kitchen["low"]), "--data", str(kitchen["data"])]
    assert main([*words, "--kind", kind, "-o", str(out)]) == 0
    assert f"no soup was better than {kitchen['low']} alone" in capsys.readouterr().out
    assert checkpoint.read_metadata(out)["source"] == str(kitchen["low"])
    own = checkpoint.load(kitchen["low"]).model.state_dict()
    for key, value in checkpoint.load(out).model.state_dict().items():
        assert torch.equal(value, own[key])


def test_scores_belong_to_the_data(kitchen: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    words = ["soup", str(kitchen["low"]), str(kitchen["high"]), "--data", str(kitchen["data"])]
    words += ["--scores", str(file), "-o"]
    assert main([*words, str(tmp_path / "a")]) == 0
    first = json.loads(file.read_text())
    assert len(first) == 3
    assert main([*words, str(tmp_path / "b")]) == 0
    assert json.loads(file.read_text()) == first
    spoil.resave(next(kitchen["data"].rglob("*-seg.nii.gz")), lambda d, a: (d * (d == 3), a))
    assert main([*words, str(tmp_path / "c")]) == 0
    second = json.loads(file.read_text())
    assert len(second) == 6
    assert first.items() <= second.items()


def test_the_fold_of_a_split_chooses(kitchen: dict[str, Path], tmp_path: Path) -> None:
    data = kitchen["data"]
    entries = tuple(Entry(case=c, fold=k) for k, c in enumerate(discover(data)))
    split = write_split(data / "split.json", Split(training=entries), data)
    words = ["soup", str(kitchen["low"]), str(kitchen["high"]), "--data", str(data)]
    assert main([*words, "--split", str(split), "--fold", "1", "-o", str(tmp_path / "out")]) == 0
    chosen_on = checkpoint.read_metadata(tmp_path / "out")["selected_on"]["cases"]
    assert chosen_on == ["BraTS-GLI-00002-000"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "OTHER"], "has spacing_mm = 2.0, "),
        (["MODEL", "MODEL"], "name each of them once"),
        (["MODEL", "PAINTER"], "is a wdm3d checkpoint"),
        (["MODEL", "nowhere"], "no such checkpoint"),
        (["MODEL", "--fold", "1"], "--split and --fold go together"),
        (["MODEL", "--split", "NOSPLIT", "--fold", "1"], "cannot be read"),
    ],
)
def test_soups_that_cannot_be_made_are_told(
    words: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = save_model(tmp_path / "other", spacing_mm=2.0)
    places = {"MODEL": model, "OTHER": other, "PAINTER": ROOT / "weights" / "wdm3d"}
    words = [str(places.get(word, word)) for word in words]
    data = cohort(tmp_path / "data", 1)
    given = ["soup", *words, "--data", str(data), "-o", str(tmp_path / "out")]
    assert main(given) == 2
    told = capsys.readouterr().err.splitlines()
    assert message in told[-1]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_case_without_reference_cannot_choose(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cohort(tmp_path / "data", 1)
    next(data.rglob("*-seg.nii.gz")).unlink()
    assert main(["soup", str(model), "--data", str(data), "-o", str(tmp_path / "out")]) == 2
    assert "no seg file" in capsys.readouterr().err
