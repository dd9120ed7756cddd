"""Judging sets of tumour masks: alike, far, copied; and the page that shows them."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy import stats

from benchmarks.label_gan import (
    drawn,
    principal_components,
    spheres,
    turned,
)
from label_gan.config import PRESETS
from label_gan.network import build
from synth.base.errors import SynthError
from synth.cli import main
from synth.data.volume import Volume
from synth.evaluate.mask_files import Mask, common_spacing_mm, find_masks, load_mask, on_spacing
from synth.evaluate.mask_reference import MaskReference
from synth.evaluate.masks import evaluate_masks
from synth.metrics import shape_sets
from synth.metrics.distribution import mmd2, mmd2_interval
from synth.metrics.shape import DESCRIBED, features, matrix, regions_of
from synth.pictures.rendering import BACK, SIDE, render_tumour
from tests.conftest import ball
from tests.test_shape_features import tumour

MM = 2.5


def as_mask(labels: np.ndarray, name: str, spacing_mm: float = MM) -> Mask:
    return Mask(
        name=name, path=Path(name), regions=regions_of(labels), spacing_mm=(spacing_mm,) * 3
    )


def lumps(first: int, count: int) -> list[np.ndarray]:
    return [tumour(seed) for seed in range(first, first + count)]


def rows(labels: list[np.ndarray]) -> list[dict[str, float]]:
    return [features(one, MM) for one in labels]


@pytest.fixture(scope="module")
def train() -> list[Mask]:
    return [as_mask(one, f"train {i}") for i, one in enumerate(lumps(0, 24))]


@pytest.fixture(scope="module")
def unseen() -> list[Mask]:
    return [as_mask(one, f"unseen {i}") for i, one in enumerate(lumps(100, 24))]


@pytest.fixture(scope="module")
def reference(train, unseen) -> MaskReference:
    return MaskReference(unseen, train)


def test_value_is_the_unbiased_mmd2_and_its_interval_covers_it():
    a, b = rows(lumps(0, 14)), rows(lumps(50, 12))
    scale = shape_sets.feature_scale(b)
    x, y = scale(matrix(a)), scale(matrix(b))
    found = mmd2_interval(x, y, bandwidth=scale.bandwidth)
    assert found.value == pytest.approx(mmd2(x, y, bandwidth=scale.bandwidth), rel=1e-12)
    assert found.low < found.value < found.high
    assert scale.bandwidth == np.median(
        [np.linalg.norm(p - q) for i, p in enumerate(y) for q in y[:i]]
    )


def test_a_feature_that_does_not_exist_is_average_and_one_that_never_varies_has_a_least_spread():
    real = rows(lumps(0, 8))
    for row in real:
        row["extent"] = 0.3
    scale = shape_sets.feature_scale(real)
    names = list(DESCRIBED)
    odd = real[0] | {"rim_contact": math.nan, "extent": 0.3 + 3 * DESCRIBED["extent"]}
    (row,) = scale(matrix([odd]))
    assert row[names.index("rim_contact")] == 0
    assert row[names.index("extent")] == pytest.approx(3, rel=1e-9)
    # Everything else is centred and scaled by the real masks' own mean and (biased) deviation.
    table = scale(matrix(real))
    varied = table.std(axis=0) > 0.99
    assert varied.sum() >= 8
    np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-9)


def test_identical_sets_and_sets_of_one_process_cover_zero_and_spheres_are_far(train, unseen):
    own, other = ([features(m.regions, MM) for m in masks] for masks in (train, unseen))
    scale = shape_sets.feature_scale(other)

    def apart(rows):
        x, y = scale(matrix(rows)), scale(matrix(other))
        return mmd2_interval(x, y, bandwidth=scale.bandwidth)

    for a in (own, other):
        found = apart(a)
        assert found.low <= 0 <= found.high
    balls = list(spheres(train, 24, np.random.default_rng(0)))
    far = apart([features(m.regions, MM) for m in balls])
    floor = shape_sets.floor(other, scale, ("log_wt_ml",))
    assert far.low > 0.3
    assert far.value > 5 * floor["mmd2"]["high"]
    assert abs(floor["mmd2"]["mean"]) < 0.02  # unbiased: halves of one set are 0 apart on average


def test_wasserstein_of_a_shift_is_the_shift():
    values = np.random.default_rng(0).normal(size=60)
    found = shape_sets.wasserstein(values, np.append(values + 0.7, math.nan))
    assert found.value == pytest.approx(0.7, rel=1e-12)
    assert found.low < 0.7 < found.high
    nothing = shape_sets.wasserstein(values, np.full(3, math.nan))
    assert math.isnan(nothing.value)


def test_nearest_is_what_comparing_everything_finds(reference, train, unseen):
    codes = reference.codes(unseen[:6])
    every = [
        [
            max(shape_sets.overlap(code, shape_sets._flipped(other, f)) for f in shape_sets.FLIPS)
            for other in reference.train
        ]
        for code in codes
    ]
    found = shape_sets.nearest(codes, reference.train)
    np.testing.assert_array_equal(found.closeness, np.max(every, axis=1))
    np.testing.assert_array_equal(found.index, np.argmax(every, axis=1))
    # Among themselves: leaving one out by hand.
    among = shape_sets.nearest(reference.train[:5], np.delete(reference.train, np.s_[:5], axis=0))
    whole = shape_sets.nearest(reference.train, reference.train, itself=True)
    assert (whole.closeness[:5] >= among.closeness).all()
    assert (whole.closeness < 1).all()
    assert (whole.index != np.arange(len(train))).all()


def test_overlap_of_balls_is_their_volume():
    side = 60.0
    small, large = (
        shape_sets.aligned(ball((45,) * 3, (22, 21, 20), r).astype(np.uint8) * 2, 1.0, side)
        for r in (10, 14)
    )
    # One inside the other: 2 r³ / (r³ + R³); each ball is 3 % off on a grid of 1.2 mm.
    expected = 2 * 10**3 / (10**3 + 14**3)
    assert shape_sets.overlap(small, large) == pytest.approx(expected, rel=0.06)


def test_copies_are_flagged_mirrored_moved_or_on_other_voxels_and_new_masks_are_not(
    reference, train
):
    moved = np.pad(lumps(4, 1)[0][::-1, :, ::-1], ((7, 0), (1, 2), (0, 5)))
    finer = np.kron(lumps(9, 1)[0], np.ones((2, 2, 2), np.uint8))
    masks = [
        as_mask(moved, "mirrored"),
        *on_spacing([as_mask(finer, "finer", MM / 2)], MM),
        *(as_mask(one, f"new {i}") for i, one in enumerate(lumps(300, 10))),
    ]
    found = reference.judge(masks)
    assert found.nearest.closeness[0] == 1
    assert found.nearest.index[:2].tolist() == [4, 9]
    assert found.copied.tolist() == [True, True] + [False] * 10
    assert not found.authentic[:2].any()
    # Masks of the same process are as near to training as unseen real ones; copies are nearer.
    assert reference.judge(masks[2:]).closer_p > 0.01
    assert reference.judge([as_mask(lumps(i, 1)[0], f"{i}") for i in range(8)]).closer_p < 1e-4


def test_training_masks_are_not_their_own_copies(reference, train):
    found = reference.judge(train, training=True)
    assert found.nearest is reference.rule.among
    assert found.copied is None


def test_diversity_falls_when_all_are_the_same(reference, train):
    assert shape_sets.diversity(reference.codes([train[0]] * 4)) == 1
    codes = reference.codes(train[:8])
    pairs = [shape_sets.overlap(codes[i], codes[j]) for i in range(8) for j in range(i)]
    varied = shape_sets.diversity(codes)
    assert varied == pytest.approx(np.mean(pairs), rel=1e-12)
    assert varied < 0.95


# --- files ---------------------------------------------------------------------------------------


def save(labels: np.ndarray, path: Path, affine: np.ndarray | None = None) -> None:
    affine = np.diag([MM, MM, MM, 1.0]) if affine is None else affine
    Volume(data=labels[None].astype(np.int16), affine=affine).save(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("masks")
    for i, labels in enumerate(lumps(200, 5)):
        save(labels, root / "pred" / f"drawn-{i}.nii.gz")
    for i, labels in enumerate(lumps(100, 6)):
        case = f"BraTS-GLI-{i:05d}-000"
        save(labels, root / "truth" / case / f"{case}-seg.nii.gz")
    for i, labels in enumerate(lumps(0, 6)):
        save(np.where(labels == 3, 4, labels), root / "train" / f"BraTS2021_{i:05d}_seg.nii.gz")
    return root


def test_everything_lands_in_the_folder_and_says_the_same(folders: Path, tmp_path: Path):
    copied = tmp_path / "pred"
    for i, labels in enumerate([*lumps(200, 4), tumour(3)[:, ::-1]]):
        save(labels, copied / f"drawn-{i}.nii.gz")
    found = evaluate_masks(
        copied, folders / "truth", tmp_path / "out", train_dir=folders / "train", pictures=False
    )
    text = (tmp_path / "out" / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(found.summary))
    with (tmp_path / "out" / "per_case.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert [row["set"] for row in table] == ["generated"] * 5 + ["real"] * 6 + ["training"] * 6
    expected = features(lumps(201, 1)[0], MM)
    assert {n: float(table[1][n]) for n in expected} == pytest.approx(expected, rel=1e-6)
    # BraTS 2021 wrote 4 for ET: the same numbers, from another coding.
    assert {n: float(table[11][n]) for n in expected} == pytest.approx(
        features(tumour(0), MM), rel=1e-6
    )
    (copy,) = found.summary["copied"]
    assert (copy["mask"], copy["training"]) == ("drawn-4.nii.gz", "BraTS2021_00003")
    assert found.summary["generated"]["nested"] == 1
    shift = found.summary["generated"]["features"]["log_wt_ml"]["wasserstein"]["value"]
    columns = {
        s: [float(r["log_wt_ml"]) for r in table if r["set"] == s] for s in ("generated", "real")
    }
    assert shift == pytest.approx(stats.wasserstein_distance(*columns.values()), rel=1e-12)
    assert "unseen real" in (tmp_path / "out" / "table.md").read_text()


def test_split_says_what_is_unseen_and_what_is_training(folders: Path, tmp_path: Path):
    names = [f"BraTS-GLI-{i:05d}-000" for i in range(6)]
    entries = [{"case": n, "label": f"{n}/{n}-seg.nii.gz"} for n in names]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"training": entries[:2], "testing": entries[2:]}))
    found = evaluate_masks(
        folders / "pred", folders / "truth", tmp_path / "out", split=split, pictures=False
    )
    assert found.summary["real"]["masks"] == 4
    assert found.summary["training"]["masks"] == 2
    split.write_text(json.dumps({"training": entries}))
    with pytest.raises(SynthError, match="no testing cases"):
        evaluate_masks(folders / "pred", folders / "truth", tmp_path / "two", split=split)


def test_empty_and_broken_maps_are_named_and_the_others_go_on(folders: Path, tmp_path: Path):
    pred = tmp_path / "pred"
    for i, labels in enumerate(lumps(200, 3)):
        save(labels, pred / f"{i}.nii.gz")
    save(np.zeros((5, 5, 5)), pred / "hollow.nii.gz")
    save(np.full((5, 5, 5), 9), pred / "odd.nii.gz")
    (pred / "torn.nii.gz").write_bytes(b"not a scan")
    words = ["evaluate", "masks", str(pred), str(folders / "truth"), "-o", str(tmp_path / "out")]
    assert main([*words, "--no-pictures"]) == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["generated"]["masks"] == 3
    hollow, odd, torn = summary["problems"]
    assert "hollow.nii.gz" in hollow
    assert "no tumour" in hollow
    assert "label 9" in odd
    assert "torn.nii.gz" in torn


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["PRED", "EMPTY"], "no label maps"),
        (["PRED", "NOWHERE"], "no such folder"),
        (["PRED", "TRUTH", "--scheme", "brats2032"], "unknown label scheme"),
        (["PRED", "TRUTH", "--baselines", "none"], "unknown argument --baselines"),
        (["PRED", "TRUTH", "--train", "EMPTY"], "no label maps"),
        (["ONE", "TRUTH"], "1 of 1 cases"),
        (["PRED", "FEW"], "3 of 3 cases"),
        (["PRED", "SAME"], "most real cases are the same"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words, message, folders: Path, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    save(tumour(1), tmp_path / "one" / "one.nii.gz")
    for i in range(5):
        save(tumour(0), tmp_path / "same" / f"{i}.nii.gz")
    for i in range(3):
        save(tumour(i), tmp_path / "few" / f"{i}.nii.gz")
    places = {"PRED": folders / "pred", "TRUTH": folders / "truth", "NOWHERE": tmp_path / "nowhere"}
    places |= {n.upper(): tmp_path / n for n in ("empty", "one", "few", "same")}
    words = [str(places.get(word, word)) for word in words]
    assert main(["evaluate", "masks", *words, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not (tmp_path / "out" / "summary.json").exists()


def test_an_evaluation_is_not_overwritten_unasked(folders: Path, tmp_path: Path):
    words = ["evaluate", "masks", str(folders / "pred"), str(folders / "truth"), "--no-pictures"]
    words += ["-o", str(tmp_path)]
    assert main(words) == 0
    before = (tmp_path / "per_case.csv").read_bytes()
    assert main(words) == 2
    assert main([*words, "--force"]) == 0
    assert (tmp_path / "per_case.csv").read_bytes() == before


def test_place_in_the_brain_does_not_depend_on_how_the_file_runs(tmp_path: Path):
    labels = np.zeros((20, 24, 18), np.uint8)
    labels[3:6, 12:15, 9:12] = 2
    brain = np.zeros(labels.shape, np.float32)
    brain[2:18, 2:22, 2:16] = 100
    flipped = np.diag([-1.0, -1, 1, 1])
    flipped[:2, 3] = 19, 23
    for name, turn, affine in (("a", np.s_[:, :], np.eye(4)), ("b", np.s_[::-1, ::-1], flipped)):
        save(labels[turn], tmp_path / f"{name}-seg.nii.gz", affine)
        scan = Volume(data=np.ascontiguousarray(brain[turn])[None], affine=affine)
        scan.save(tmp_path / f"{name}-t1n.nii.gz")
    a, b = (load_mask(case) for case in find_masks(tmp_path))
    assert a.centre == pytest.approx(
        {"centre_x": 2.5 / 16, "centre_y": 11.5 / 20, "centre_z": 8.5 / 14}
    )
    assert b.centre == pytest.approx(a.centre)


def test_masks_of_other_voxels_are_brought_to_the_coarser_ones():
    coarse = [as_mask(one, str(i)) for i, one in enumerate(lumps(0, 4))]
    fine = [as_mask(np.kron(lumps(0, 1)[0], np.ones((2,) * 3, np.uint8)), "fine", MM / 2)]
    assert common_spacing_mm(fine, coarse) == pytest.approx(MM)
    assert on_spacing(coarse, MM * 1.001) == coarse
    (back,) = on_spacing(fine, MM)
    assert back.spacing_mm == (MM,) * 3
    assert shape_sets.overlap(
        *(shape_sets.aligned(m.regions, MM, 80.0) for m in (back, coarse[0]))
    ) > 0.97  # rounding of blocks at the surface  # fmt: skip
    volumes = [region.sum() for region in back.regions]
    assert volumes == [region.sum() for region in coarse[0].regions]
    assert features(back.regions, MM)["nesting"] == 1


# --- the page ------------------------------------------------------------------------------------


def test_a_ball_is_drawn_as_wide_as_it_is_and_open_to_its_middle():
    labels = np.zeros((41, 41, 41), np.uint8)
    labels[ball(labels.shape, (20, 20, 20), 18)] = 2
    labels[ball(labels.shape, (20, 20, 20), 12)] = 3
    labels[ball(labels.shape, (20, 20, 20), 7)] = 1
    image = render_tumour(labels, 2.0, 100.0)
    assert image.shape == (SIDE, SIDE, 3)
    drawn_on = np.abs(image - BACK).max(-1) > 0.02
    radius = math.sqrt(drawn_on.sum() / math.pi) * 100 / SIDE
    assert radius == pytest.approx(36.5, abs=1)  # mm: 18 voxels to the last centre, and its half
    red, green, blue = np.moveaxis(image, -1, 0)
    middle = SIDE // 2
    assert red[middle, middle] > 2 * green[middle, middle]  # necrosis behind the cut
    yellow = drawn_on & (red > 3 * blue) & (green > 0.7 * red) & (red > green)
    assert 300 < yellow.sum() < 0.25 * drawn_on.sum()
    assert (green > 1.3 * red)[drawn_on].mean() > 0.5  # oedema outside
    whole = render_tumour(np.where(labels, 2, 0), 2.0, 100.0)
    red, green, _ = np.moveaxis(whole, -1, 0)
    assert (green > red)[drawn_on].all()


def test_page_shows_both_sets(tmp_path: Path):
    for i in range(6):
        save(tumour(i), tmp_path / ("pred" if i < 2 else "truth") / f"{i}.nii.gz")
    evaluate_masks(tmp_path / "pred", tmp_path / "truth", tmp_path / "out")
    image = plt.imread(tmp_path / "out" / "masks.png")[..., :3]
    green = image[..., 1] > 1.5 * image[..., 0]
    bodies = [
        int(panel.mean() > 0.05)
        for row in np.array_split(green[-442:, 33:], 2)  # below the title, right of the labels
        for panel in np.array_split(row[..., None], 4, axis=1)
    ]
    assert bodies == [1, 1, 0, 0, 1, 1, 1, 1]  # two masks above, four real ones below


# --- the rivals of the benchmark -----------------------------------------------------------------


def test_spheres_have_the_volumes_of_real_masks_and_a_closed_rim(train):
    sizes = {tuple(r.sum() for r in mask.regions) for mask in train}
    for mask in spheres(train, 6, np.random.default_rng(0)):
        assert tuple(r.sum() for r in mask.regions) in sizes
        found = features(mask.regions, MM)
        assert found["sphericity_wt"] == pytest.approx(1, abs=0.02)
        assert found["nesting"] == 1


def test_turned_masks_keep_volume_and_nesting(train):
    for mask in turned([train[2]], 4, np.random.default_rng(0)):
        # Distances are interpolated, which shaves the lumps' tips.
        assert mask.regions[0].sum() == pytest.approx(train[2].regions[0].sum(), rel=0.05)
        assert features(mask.regions, MM)["nesting"] == 1
        assert features(mask.regions, MM)["flatness"] == pytest.approx(
            features(train[2].regions, MM)["flatness"], abs=0.05
        )


def test_principal_components_vary_like_the_masks_and_break_the_nesting(train):
    made = list(principal_components(train, 12, np.random.default_rng(0)))
    volumes = [np.log(m.regions[0].sum()) for m in made]
    real = [np.log(m.regions[0].sum()) for m in train]
    assert np.mean(volumes) == pytest.approx(np.mean(real), abs=0.3)
    assert min(features(m.regions, MM)["nesting"] for m in made) < 1


def test_ordered_drawings_are_nested_before_anything_is_mended():
    for preset, nested in (("tiny", 1.0), ("alpha_light", 0.0)):
        torch.manual_seed(0)
        network = build(PRESETS[preset])
        if preset == "tiny":
            network.table.copy_(torch.tensor([0.0, 0.5, 0.5, 1, 1, 1]).expand_as(network.table))
            network.spacing_mm.fill_(MM)
        loaded = SimpleNamespace(
            model=network, config=PRESETS[preset], preset=preset, path=Path("runs/model")
        )
        masks, share = drawn(loaded, 2, MM, raw=3)
        assert share == nested
        assert {m.spacing_mm for m in masks} == {(MM,) * 3}
