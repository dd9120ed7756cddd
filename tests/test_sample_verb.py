"""`synth sample`: repeats itself, goes on, refuses what would leak, says mistakes in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ddpm_lora.config import PRESETS
from synth.base.files import file_hash, read_json, write_json
from synth.cli import main
from synth.data.case import MODALITIES, discover
from synth.data.prepare import brain_mask
from synth.data.split import Entry, Split, patient_marks, read_split, write_split
from synth.data.volume import Volume
from synth.pictures.montage import draw_montage
from tests import spoil
from tests.conftest import write_case
from tests.test_ddpm_lora_generate import save_adapter, save_model

ROOT = Path(__file__).parents[1]
FILES = {*MODALITIES, "seg"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "base")


def quick_montage(rows, path: Path, **words) -> Path:
    """What a picture would show, as bytes: matplotlib takes longer than all the rest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join(np.ascontiguousarray(panel).tobytes() for row in rows for panel in row)
    )
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth.pictures.montage.draw_montage", quick_montage)


def plt_read(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


def cohort(folder: Path, count: int) -> Path:
    for k in range(count):
        write_case(folder, f"BraTS-GLI-{k + 1:05d}-000", seed=k)
    return folder


def made(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.rglob("*")) if p.suffix in (".gz", ".png")}


def name_of(number: int, sample: int = 0) -> str:
    return f"BraTS-GLI-{number:05d}-000-synth{sample:02d}"


def test_what_is_drawn_depends_on_seed_case_and_number_alone(model: Path, tmp_path: Path) -> None:
    data = cohort(tmp_path / "data", 3)

    def drawn(name: str, *more: str, source: object = data, seed: str = "1") -> dict[str, bytes]:
        sources = source if isinstance(source, list) else [source]
        words = ["sample", *map(str, sources), "--model", str(model), "-o", str(tmp_path / name)]
        assert main([*words, "--steps", "1", "--seed", seed, *more]) == 0
        return made(tmp_path / name)

    whole = drawn("whole")
    assert len(whole) == 3 * (len(FILES) + 1)
    assert drawn("a", "--begin", "1") | drawn("b", "--end", "1") == whole
    assert drawn("c", "--shard", "1/2") | drawn("d", "--shard", "0/2") == whole
    two = drawn("two", "--samples", "2", "--end", "1")
    assert {k: v for k, v in two.items() if "synth00" in k} == {
        k: v for k, v in whole.items() if "00001" in k
    }
    alone = drawn("one", source=data / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-seg.nii.gz")
    assert alone == {k: v for k, v in whole.items() if "00002" in k}
    first, third = (data / f"BraTS-GLI-0000{k}-000" for k in (1, 3))
    several = [first / f"{first.name}-seg.nii.gz", third]
    rest = {k: v for k, v in whole.items() if "00002" not in k}
    assert drawn("several", source=several) == rest
    assert drawn("named", "--labels", *map(str, several), source=[]) == rest
    other = drawn("other", seed="2")
    assert all(other[k] != whole[k] for k in whole if not k.endswith("seg.nii.gz"))
    # More samples of what is there add to it.
    assert drawn("one", "--samples", "2", "--end", "1") == two | alone


def test_what_is_written(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("synth.pictures.montage.draw_montage", draw_montage)
    data, out = cohort(tmp_path / "data", 1), tmp_path / "out"
    words = ["sample", str(data), "--model", str(model), "-o", str(out), "--steps", "1"]
    assert main(words) == 0
    (real,), (case,) = discover(data), discover(out)
    assert (case.id, set(case.files), case.scheme) == (name_of(1), FILES, "brats2023")
    assert main(["check", str(out)]) == 0
    inside = brain_mask(real.load("t1n"))
    for m in MODALITIES:
        stored = nib.load(case.path(m))
        assert stored.header.get_data_dtype() == np.int16
        assert np.array_equal(np.asanyarray(stored.dataobj) != 0, inside)
        real.load(m).require_same_grid(case.load(m))
        assert np.unique(case.load(m).data).size > 50
    assert np.array_equal(case.load("seg").data, real.load("seg").data)
    record = read_json(out / "records" / f"{name_of(1)}.json", dict)
    assert record["inputs"][real.path("seg").name] == file_hash(real.path("seg"))
    source = {"case": real.id, "label_map": real.id, "fold": None, "donors": []}
    assert record["source"] == source
    assert (record["network_calls"], record["index"]) == (1, 0)
    picture = plt_read(out / "pictures" / f"{name_of(1)}.png")
    assert picture.shape[0] * 5 == pytest.approx(picture.shape[1] * 3, rel=0.1)  # 3 rows of 5
    assert picture[..., :3].std() > 0.1
    capsys.readouterr()
    # Finished cases are kept; with other arguments the folder is refused, unless forced.
    before = made(out)
    assert main(words) == 0
    assert "0 made, 1 already there" in capsys.readouterr().err
    assert main([*words, "--seed", "5"]) == 2
    assert "was made with seed = 0, not 5" in capsys.readouterr().err
    assert made(out) == before
    assert main([*words, "--seed", "5", "--force"]) == 0
    assert made(out) != before


def test_a_case_cut_off_half_way_is_drawn_again(model: Path, tmp_path: Path) -> None:
    data, out = cohort(tmp_path / "data", 2), tmp_path / "out"
    words = ["sample", str(data), "--model", str(model), "-o", str(out), "--steps", "1"]
    assert main(words) == 0
    whole = made(out)
    (out / "records" / f"{name_of(2)}.json").unlink()
    (out / name_of(2) / f"{name_of(2)}-t2f.nii.gz").unlink()
    (out / name_of(2) / f"{name_of(2)}-t1n.nii.gz").write_bytes(b"half")
    assert main(words) == 0
    assert made(out) == whole


def test_made_cases_are_not_drawn_from(model: Path, tmp_path: Path) -> None:
    """Output within the data folder, healthy masks and earlier output are no label maps."""
    data = cohort(tmp_path / "data", 1)
    healthy = data / "BraTS-GLI-00001-000-healthy00"
    healthy.mkdir()
    source = data / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t1n.nii.gz"
    shutil.copy(source, healthy / f"{healthy.name}-t1n.nii.gz")
    words = ["sample", str(data), "--model", str(model), "--steps", "1", "-o"]
    for name in ("first", "second", "first"):
        assert main([*words, str(data / name)]) == 0
        assert [c.id for c in discover(data / name)] == [name_of(1)]


# --- The split ----------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Cases 1 and 2 in folds 0 and 1, case 3 in testing."""
    data = cohort(tmp_path / "data", 3)
    cases = discover(data)
    training = tuple(Entry(case=c, fold=k) for k, c in enumerate(cases[:2]))
    split = Split(training=training, testing=(Entry(case=cases[2]),))
    return write_split(data / "split.json", split, data)


def test_drawn_cases_are_appended_once_as_train_only(
    listed: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = listed.parent / "drawn"
    words = ["sample", str(listed.parent), "--model", str(model), "--steps", "1", "-o", str(out)]
    words += ["--append-to", str(listed)]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "BraTS-GLI-00003-000 is a label map of BraTS-GLI-00003, who is in testing → " in told
    once = listed.read_bytes()
    split = read_split(listed)
    added = split.training[2:]
    assert [(e.case.id, e.fold, e.source) for e in added] == [
        (name_of(1), -1, "BraTS-GLI-00001-000"),
        (name_of(2), -1, "BraTS-GLI-00002-000"),
    ]
    assert all(set(e.case.files) == FILES for e in added)
    assert [e.case.id for e in split.testing] == ["BraTS-GLI-00003-000"]
    assert not (out / name_of(3)).exists()
    train, held_out = split.fold(0)
    assert [c.id for c in held_out] == ["BraTS-GLI-00001-000"]
    assert [c.id for c in train] == ["BraTS-GLI-00002-000", name_of(2)]
    assert main(words) == 2
    assert listed.read_bytes() == once
    record = read_json(out / "records" / f"{name_of(2)}.json", dict)
    assert record["source"]["fold"] == 1
    # More samples go behind; what a quality check removed comes not back.
    shutil.rmtree(out / name_of(1))
    assert main([*words, "--samples", "2"]) == 2
    ids = [e.case.id for e in read_split(listed).training[2:]]
    assert ids == [name_of(1), name_of(2), name_of(1, 1), name_of(2, 1)]


def test_what_was_drawn_before_is_not_appended_where_it_would_leak(
    listed: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = listed.parent / "drawn"
    words = ["sample", str(listed.parent), "--model", str(model), "--steps", "1", "-o", str(out)]
    assert main([*words, "--split", str(listed)]) == 0  # drawing for tests is no leak
    assert len(discover(out)) == 3
    capsys.readouterr()
    assert main([*words, "--append-to", str(listed), "--fold", "1"]) == 2
    told = capsys.readouterr().err
    assert f"{name_of(3)} is not appended: " in told
    assert f"{name_of(2)} is not appended: " in told
    assert "in fold 1, which is held out → " in told
    assert [e.case.id for e in read_split(listed).training[2:]] == [name_of(1)]


def test_tumours_placed_in_a_tested_brain_are_refused(
    listed: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = "BraTS-GLI-00003-000-tumour00"
    (case,) = [c for c in discover(listed.parent) if c.id == "BraTS-GLI-00003-000"]
    for role, path in (("seg", case.path("seg")), ("brain", case.path("mask"))):
        target = tmp_path / "placed" / placed / f"{placed}-{role}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    words = ["sample", str(tmp_path / "placed"), "--model", str(model), "--steps", "1"]
    out = listed.parent / "drawn"
    assert main([*words, "-o", str(out), "--append-to", str(listed)]) == 2
    assert f"{placed} is a label map of BraTS-GLI-00003, who is in" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "-o", str(out)]) == 0  # without a split it is drawn


def place_tumour(listed: Path, folder: Path, brain: int, **record: list[str]) -> str:
    """A tumour as `synth masks` leaves it in the brain of a case, with its record if any."""
    placed = f"BraTS-GLI-{brain:05d}-000-tumour00"
    (case,) = [c for c in discover(listed.parent) if c.id == placed.removesuffix("-tumour00")]
    for role, path in (("seg", case.path("seg")), ("brain", case.path("mask"))):
        target = folder / placed / f"{placed}-{role}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    if record:
        known = {"donors": [], "patients": [], "unmarked": []}
        write_json(folder / "records" / f"{placed}.json", {"case": placed, **known, **record})
    return placed


def sampled(listed: Path, model: Path, folder: Path, *more: str) -> int:
    words = ["sample", str(folder), "--model", str(model), "--steps", "1"]
    return main([*words, "-o", str(listed.parent / "drawn"), "--data", str(listed.parent), *more])


@pytest.mark.parametrize(
    ("donor", "words"),
    [
        ("BraTS-GLI-00001-000", "BraTS-GLI-00001-000 in fold 0, which is held out"),
        ("BraTS-GLI-00001-001", "BraTS-GLI-00001-000 in fold 0, which is held out"),
        ("BraTS-GLI-00003-000", "BraTS-GLI-00003, who is in testing"),
    ],
)
def test_the_shape_of_a_tested_lesion_is_refused(
    donor: str, words: str, listed: Path, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In a brain of a training fold: when it is drawn, and when it was drawn before."""
    placed = place_tumour(listed, tmp_path / "placed", 2, donors=[donor])
    strict = ["--append-to", str(listed), "--fold", "0"]
    assert sampled(listed, model, tmp_path / "placed", *strict) == 2
    told = f"{placed} has the shape of a lesion of {words} → "
    assert told in capsys.readouterr().err
    assert not (listed.parent / "drawn").exists()
    assert sampled(listed, model, tmp_path / "placed") == 0  # without a split it is drawn
    capsys.readouterr()
    assert sampled(listed, model, tmp_path / "placed", *strict) == 2
    assert f"is not appended: {told}" in capsys.readouterr().err
    assert not [e for e in read_split(listed).training if e.source]


def test_the_folds_of_all_who_are_behind_a_case_go_into_the_split(
    listed: Path, tmp_path: Path
) -> None:
    """Whom the scans' model saw, whom the shapes' model saw, and who gave a shape."""
    split = read_split(listed)
    marks = [patient_marks([e.case]) for e in split.training]
    silent = save_model(tmp_path / "silent")
    knows_1 = save_model(tmp_path / "knows_1", patients=marks[1])
    nobody = save_model(tmp_path / "nobody", patients=[])
    other = patient_marks([replace(split.training[0].case, id="BraTS-GLI-00077-000")])
    both, donor = (0, 1), ["BraTS-GLI-00001-000"]
    for number, (model, record, fold, expected) in enumerate((
        (nobody, {"donors": []}, None, ()),
        (nobody, {"donors": donor}, None, (0,)),
        (knows_1, {"donors": donor}, None, both),
        (nobody, {"patients": marks[0]}, None, (0,)),
        (knows_1, {"patients": [*marks[0], *other]}, None, both),
        # Who does not say whom he has seen is believed about the held-out fold, and in no more.
        (silent, {"donors": []}, None, None),
        (silent, {"donors": []}, "0", (1,)),
        (nobody, {"unmarked": ["label_gan"]}, None, None),
        (nobody, {"unmarked": ["label_gan"]}, "0", (1,)),
        (silent, {"patients": marks[0]}, "0", both),
        (nobody, {}, None, None),  # a tumour without a record: whose it is, nobody knows
        (nobody, {}, "0", (1,)),
    )):  # fmt: skip
        write_split(listed, split, listed.parent)
        folder = tmp_path / f"placed{number}"
        place_tumour(listed, folder, 2, **record)
        words = ["--append-to", str(listed), *(["--fold", fold] if fold else [])]
        assert sampled(listed, model, folder, *words, "--force") == 0
        (made,) = [e for e in read_split(listed).training if e.source]
        assert (made.source, made.seen_folds) == ("BraTS-GLI-00002-000", expected), number
        left = {c.id for c in read_split(listed).fold(0)[0]}
        assert (made.case.id in left) == (0 not in (expected or ())), number


def test_an_id_is_listed_once(
    listed: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(listed.parent / "BraTS-GLI-00001-000"), "--model", str(model)]
    words += ["--steps", "1", "--append-to", str(listed), "-o"]
    assert main([*words, str(listed.parent / "a")]) == 0
    assert main([*words, str(listed.parent / "b")]) == 2
    assert f"lists {name_of(1)} already" in capsys.readouterr().err


# --- Mistakes -----------------------------------------------------------------------------------


def without_scans(path: Path) -> None:
    for m in MODALITIES:
        path.with_name(path.name.replace("-seg", f"-{m}")).unlink()


def empty(path: Path) -> None:
    without_scans(path)
    spoil.resave(path, lambda d, a: (d * 0, a))


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing label map": ("seg", spoil.remove, "no seg file"),
    "no brain": ("seg", without_scans, "does not say where the brain is"),
    "empty map": ("seg", empty, "does not say where the brain is"),
    "text": ("seg", spoil.text, "cannot be read as NIfTI"),
    "packed text": ("seg", spoil.packed_text, "cannot be read as"),
    "truncated": ("seg", spoil.truncate, "cannot be read as NIfTI"),
    "truncated scan": ("t2w", spoil.truncate, "cannot be read as NIfTI"),
    "wrong shape": ("t1n", spoil.crop, "differ in shape"),
    "wrong affine": ("seg", spoil.move, "differ in affine: up to 3 mm"),
    "4-D": ("seg", spoil.stack, "3-D volume"),
    "all zero": ("t1n", spoil.blank, "the same value"),
    "NaN": ("t1n", spoil.not_a_number, "NaN or Inf"),
    "NaN label": ("seg", spoil.relabel(2, float("nan")), "whole numbers only"),
    "interpolated": ("seg", spoil.relabel(2, 1.5), "whole numbers only"),
    "odd label": ("seg", spoil.relabel(2, 7), "label 7 is outside the scheme brats2023"),
    "wrong scheme": ("seg", spoil.relabel(3, 4), "label 4 is outside the scheme brats2023"),
    "negative label": ("seg", spoil.relabel(2, -1), "outside the scheme"),
    "tumour elsewhere": (
        "seg", lambda p: spoil.resave(p, lambda d, a: (np.roll(d, 10, 1), a)), "outside the brain"),
    "metres": (
        "", lambda p: [spoil.resave(f, lambda d, a: (d, a @ np.diag([1e-3] * 3 + [1])))
                       for f in p.parent.glob("*.nii.gz")], "mm long"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_case_is_one_line_and_the_rest_is_drawn(
    what: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = cohort(tmp_path / "data", 2), tmp_path / "out"
    role, damage, message = BAD[what]
    folder = data / "BraTS-GLI-00001-000"
    damage(folder / f"{folder.name}-{role}.nii.gz")
    words = ["sample", str(data), "-o", str(out), "--model", str(model), "--steps", "1"]
    assert main(words) == 2
    lines = spoil.told(capsys.readouterr().err, message)
    assert lines[-1] == "1 made, 0 already there, 1 failed"
    assert [c.id for c in discover(out)] == [name_of(2)]
    assert not list(out.rglob("*00001*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--end", "x"], "a whole number, or end"),
        (["--shard", "3/3"], "write i/n"),
        (["--samples", "0"], "1 or more"),
        (["--steps", "0"], "at least 1"),
        (["--sampler", "euler"], "invalid choice"),
        (["--scheme", "brats1999"], "unknown label scheme 'brats1999'"),
        (["--labels", "x"], "give one of them"),
        (["DATA"], "case id BraTS-GLI-00001-000 occurs twice"),
        (["--split", "a", "--append-to", "b"], "--split and --append-to"),
        (["--brain", "nowhere"], "nowhere: no such file"),
        (["--append-to", "ELSEWHERE"], "where the paths of the split begin"),
        (["--lora", "nowhere"], "nowhere: no such adapter"),
        (["--lora", "DATA"], "is not a LoRA adapter"),
        (["--lora", "ADAPTER:much"], "'much' is not a weight"),
        (["--lora", "ADAPTER"], "adapts another base"),
        (["--lora", "TORN"], "cannot be read"),
        (["--model", "DATA"], "is not a checkpoint"),
        (["--model", "PAINTER"], "is a wdm3d checkpoint"),
        (["--device", "cuda:77"], "is not available"),
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
    places = {"DATA": data, "ELSEWHERE": tmp_path / "x" / "split.json"}
    places["PAINTER"] = ROOT / "weights" / "wdm3d"
    if any("ADAPTER" in word or word == "TORN" for word in words):
        other = save_model(tmp_path / "other", seed=9)
        places["ADAPTER"] = save_adapter(tmp_path / "adapter", other)
        places["TORN"] = tmp_path / "torn"
        shutil.copytree(places["ADAPTER"], places["TORN"])
        spoil.truncate(places["TORN"] / "adapter_model.safetensors")
    for key, place in places.items():
        words = [word.replace(key, str(place)) for word in words]
    given = ["sample", "-o", str(out), "--model", str(model), str(data), *words]
    assert main(given) == 2
    spoil.told(capsys.readouterr().err, message)
    assert not out.exists()


def test_a_label_map_without_tumour_is_a_healthy_brain(model: Path, tmp_path: Path) -> None:
    data, out = cohort(tmp_path / "data", 1), tmp_path / "out"
    (case,) = discover(data)
    spoil.resave(case.path("seg"), lambda d, a: (d * 0, a))
    assert main(["sample", str(data), "-o", str(out), "--model", str(model), "--steps", "1"]) == 0
    assert not discover(out)[0].load("seg").data.any()
    assert discover(out)[0].load("t1n").data.any()


# --- Doors --------------------------------------------------------------------------------------


def test_without_label_maps_those_of_the_demo_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny preset's size, by an adapter below a parent folder, into runs/sample."""
    weights = tmp_path / "w"
    save_adapter(weights / "site_b", save_model(weights / "base", PRESETS["tiny"]))
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    assert main(["sample", "--lora", "w/", "--steps", "2", "--end", "1"]) == 0
    named = ["--labels", str(ROOT / "weights" / "labels"), "-o", "named"]
    assert main(["sample", *named, "--lora", "w/", "--steps", "2", "--end", "1"]) == 0
    assert made(tmp_path / "named") == made(tmp_path / "runs" / "sample")
    assert time.monotonic() - started < 60
    (case,) = discover(tmp_path / "runs" / "sample")
    (source, *_) = discover(ROOT / "weights" / "labels")
    labels = Volume.load_labels(source.path("seg"))
    assert np.array_equal(case.load("t1c").data != 0, labels.data > 0)
    assert np.array_equal(case.load("seg").data, np.where(labels.data == 4, 0, labels.data))
    record = read_json(tmp_path / "runs" / "sample" / "records" / f"{case.id}.json", dict)
    assert [a["name"] for a in record["adapters"]] == ["site_b"]


def test_the_label_maps_of_the_demo_are_four_and_small() -> None:
    files = sorted((ROOT / "weights" / "labels").glob("*.nii.gz"))
    assert len(files) == 4
    assert sum(f.stat().st_size for f in files) < 100_000
    for file in files:
        assert set(np.unique(Volume.load_labels(file).data)) == {0, 1, 2, 3, 4}
        assert nib.load(file).header.get_data_dtype() == np.int8


def test_python_m_synth_sample_is_the_verb() -> None:
    words = [sys.executable, "-m", "synth.sample", "--lora"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "argument --lora: expected at least one argument → synth sample --help" in done.stderr
