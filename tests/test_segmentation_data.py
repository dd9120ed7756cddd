"""Items are never empty, keep their intensities, and mean the same in every label scheme."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmentation import augment
from segmentation.augment import AIR, apply_warp, crop, draw_warp, flip, vary_intensities
from segmentation.config import Config
from segmentation.data import SegmentationData, prepare_scans, standardise
from synth.base.errors import SynthError
from synth.data.cache import ArrayCache
from synth.data.case import MODALITIES, Case, discover
from synth.data.volume import Volume
from tests.conftest import ball, write_case

SMALL = Config(width=4, patch=(16, 16, 16), spacing_mm=1.0, augment="none")
ROUNDED = 5e-6  # of single precision: intensities of hundreds become z-scores of up to 4


@pytest.fixture
def case(tmp_path: Path) -> Case:
    write_case(tmp_path / "data")
    return discover(tmp_path / "data")[0]


def rewritten(case: Case, role: str, change: Callable[[np.ndarray], np.ndarray]) -> Case:
    volume = case.load(role)
    volume.with_data(change(volume.data)).save(case.files[role])
    return case


def whole(case: Case, config: Config = SMALL) -> dict[str, torch.Tensor]:
    return SegmentationData([case], config, fixed=True).item(0, 0)


def test_floats_between_zero_and_one_survive(case):
    """The predecessor cast to integers, and such scans became zeros."""
    before = whole(case)["image"]
    for role in MODALITIES:
        rewritten(case, role, lambda data: (data / data.max()).astype(np.float32))
    after = whole(case)["image"]
    torch.testing.assert_close(after, before, rtol=0, atol=ROUNDED)
    assert len(after.unique()) > 500


def test_gain_and_offset_of_a_scan_change_nothing(case):
    before = whole(case)["image"]
    rewritten(case, "t2w", lambda data: 0.037 * data - 2.5)
    torch.testing.assert_close(whole(case)["image"], before, rtol=0, atol=ROUNDED)


def test_tissue_is_standardised_and_air_is_minus_one():
    random = np.random.default_rng(0)
    image = random.gamma(9.0, 50.0, (1, 30, 30, 30))
    brain = ball((30, 30, 30), (14, 14, 14), 12)
    image[0][tuple(np.argwhere(brain)[0])] = 1e9  # one hot voxel must not set the scale
    found = standardise(image, brain)
    assert (found[0][~brain] == AIR).all()
    core = np.sort(found[0][brain])
    core = core[int(len(core) * 0.005) + 1 : -int(len(core) * 0.005) - 1]
    assert core.mean() == pytest.approx(0, abs=1e-3)
    assert core.std() == pytest.approx(1 / 3, rel=1e-2)


def test_prediction_sees_what_training_saw_and_can_go_back(case):
    item = whole(case)
    image, frame = prepare_scans(case, SMALL)
    assert torch.equal(image, item["image"])
    scans = [case.load(m) for m in MODALITIES]
    stacked = scans[0].with_data(np.concatenate([s.data for s in scans]))
    assert torch.equal(prepare_scans(scans, SMALL)[0], image)
    assert torch.equal(prepare_scans(stacked, SMALL)[0], image)
    labels = case.load("seg").data
    back = frame.back(item["regions"].numpy().astype(np.uint8), nearest=True)
    assert np.array_equal(back[0] > 0, labels[0] > 0)
    assert np.array_equal(back[2] > 0, labels[0] == 3)
    with pytest.raises(SynthError, match="3 scans"):
        prepare_scans(scans[:3], SMALL)


RELABEL = {  # necrosis, oedema, enhancing
    "brats2021": (1, 2, 4),
    "brats2023": (1, 2, 3),
    "brats2024": (1, 2, 3),
    "ped2024": (2, 4, 1),
}


@pytest.mark.parametrize("scheme", RELABEL)
def test_every_label_scheme_means_the_same_regions(case, scheme):
    expected = whole(case)["regions"]
    # as written by the fixture: 2 around, 3 in the ball, 1 in its middle
    table = np.array([0, *RELABEL[scheme]])
    other = rewritten(case, "seg", lambda data: table[data]).with_scheme(scheme)
    assert torch.equal(whole(other)["regions"], expected)
    assert expected.flatten(1).sum(1).tolist() == [
        int(ball((20, 24, 18), (7, 12, 9), r).sum()) - hole
        for r, hole in ((3, 0), (2, 0), (2, int(ball((20, 24, 18), (7, 12, 9), 1).sum())))
    ]


def test_no_crop_is_empty_and_each_is_a_function_of_its_seed(case):
    for level in ("none", "light", "full"):
        data = SegmentationData([case], replace(SMALL, augment=level))
        for seed in range(12):
            item = data.item(0, seed)
            assert item["image"].shape == (4, 16, 16, 16)
            assert (item["image"] > AIR).float().mean() > 0.2
            wt, tc, et = item["regions"]
            assert not (tc & ~wt).any()
            assert not (et & ~tc).any()
            assert torch.isfinite(item["image"]).all()
        again = data.item(0, 11)
        assert all(torch.equal(item[k], again[k]) for k in item)
        assert not torch.equal(item["image"], data.item(0, 10)["image"])


def test_tumour_crops_show_every_region_in_its_turn(tmp_path):
    folder = write_case(tmp_path)
    # a large oedema far from a small enhancing spot
    case = discover(folder)[0]
    shape = case.load("seg").shape
    labels = 2 * ball(shape, (5, 12, 9), 4) + 3 * ball(shape, (15, 12, 9), 1)
    rewritten(case, "seg", lambda _: labels[None])
    data = SegmentationData([case], replace(SMALL, tumour_crops=1.0))
    arrays = data.prepare_case(0)
    anchors = [data._anchor(arrays, np.random.default_rng(seed)) for seed in range(300)]
    enhancing = sum(bool(arrays["regions"][2][tuple(a)]) for a in anchors) / 300
    share = (labels == 3).sum() / (labels > 0).sum()
    # TC and ET are both the spot: two turns of three, and its share of WT
    assert enhancing == pytest.approx(2 / 3 + share / 3, abs=0.1)  # 3.6 standard errors
    for seed in range(20):
        assert data.item(0, seed)["regions"].any()


def test_a_case_smaller_than_the_crop_is_padded_with_air(case):
    image, regions = (v.numpy() for v in whole(case).values())
    data = SegmentationData([case], replace(SMALL, patch=(32, 32, 32)))
    for seed in range(5):
        item = data.item(0, seed)
        assert item["regions"].sum() == regions.sum()
        tissue = image > AIR
        assert int((item["image"] > AIR).sum()) == int(tissue.sum())
        assert np.array_equal(np.sort(item["image"].numpy()[item["image"] > AIR]),
                              np.sort(image[tissue]))  # fmt: skip


def test_arrays_are_made_once_and_mapped_from_disk(case, tmp_path, monkeypatch):
    first = SegmentationData([case], SMALL, cache=ArrayCache(tmp_path / "cache")).item(0, 3)
    monkeypatch.setattr(SegmentationData, "_prepare", None)  # would fail if called
    data = SegmentationData([case], SMALL, cache=ArrayCache(tmp_path / "cache"))
    assert isinstance(data.prepare_case(0)["image"], np.memmap)
    assert data.prepare_case(0)["image"].dtype == np.float32
    assert all(torch.equal(v, first[k]) for k, v in data.item(0, 3).items())


def test_a_tumour_that_resampling_loses_is_an_error_and_a_part_of_one_is_said(case, caplog):
    """One voxel of 1 mm falls between the voxels of 3 mm."""
    config = replace(SMALL, spacing_mm=3.0)
    _, frame = prepare_scans(case, config)
    tissue = case.load("t1n").data[0] > 0
    shape = tissue.shape
    numbers = np.arange(tissue.size).reshape(shape)
    seen = np.isin(numbers, frame.bring(numbers[None], nearest=True))
    kept, lost = (tuple(np.argwhere(tissue & which)[9]) for which in (seen, ~seen))

    labels = np.zeros((1, *shape), np.uint8)
    labels[0][lost] = 3
    with pytest.raises(SynthError, match=f"{case.id}: none of the 1 voxels of WT .* of 3 mm"):
        whole(rewritten(case, "seg", lambda _: labels), config)
    with pytest.raises(SynthError, match="none of the 1 voxels of WT"):
        SegmentationData([case], config)
    labels[0][kept] = 2
    regions = whole(rewritten(case, "seg", lambda _: labels), config)["regions"]
    assert regions.sum((1, 2, 3)).tolist() == [1, 0, 0]
    assert "none of the 1 voxels of TC" in caplog.text
    assert "none of the 1 voxels of ET" in caplog.text


def test_an_unbent_field_reads_what_is_there_and_a_turned_one_what_numpy_turns():
    random = np.random.default_rng(0)
    image = random.uniform(-1, 2, (4, 12, 10, 14)).astype(np.float32)
    regions = random.random((3, 12, 10, 14)) < 0.3
    axes = [np.arange(8, dtype=np.float32) - 3.5] * 3
    still = np.stack(np.meshgrid(*axes, indexing="ij"))
    centre = np.array([5.5, 4.5, 6.5])
    start = (2, 1, 3)
    box, mask = crop(image, start, (8, 8, 8), AIR), crop(regions, start, (8, 8, 8), False)
    found, found_mask = apply_warp(image, regions, centre, still)
    np.testing.assert_allclose(found, box, atol=1e-5)  # coordinates are scaled to [-1, 1]
    assert np.array_equal(found_mask, mask)
    quarter = augment._rotation(np.radians([90.0, 0, 0])).astype(np.float32)
    turned, turned_mask = apply_warp(image, regions, centre, np.tensordot(quarter, still, 1))
    expected = np.rot90(box, 1, (2, 3))
    if not np.allclose(turned, expected, atol=1e-4):  # the other sense
        expected, mask = np.rot90(box, -1, (2, 3)), np.rot90(mask, -1, (2, 3))
    else:
        mask = np.rot90(mask, 1, (2, 3))
    np.testing.assert_allclose(turned, expected, atol=1e-4)
    assert np.array_equal(turned_mask, mask)


def test_what_a_field_reads_beyond_the_case_is_air():
    image = np.full((4, 6, 6, 6), 0.5, np.float32)
    regions = np.ones((3, 6, 6, 6), bool)
    axes = [np.arange(16, dtype=np.float32) - 7.5] * 3
    field = np.stack(np.meshgrid(*axes, indexing="ij"))
    found, mask = apply_warp(image, regions, np.array([2.5, 2.5, 2.5]), field)
    assert int(mask[0].sum()) == 6**3
    inside = np.zeros((16, 16, 16), bool)
    inside[5:11, 5:11, 5:11] = True
    assert np.array_equal(mask[0], inside)
    assert (found[:, ~inside] == AIR).all()
    np.testing.assert_allclose(found[:, inside], 0.5, atol=1e-5)


def test_flips_move_scans_and_regions_together_and_air_stays_air():
    image = np.random.default_rng(0).uniform(-0.9, 1, (4, 8, 8, 8)).astype(np.float32)
    image[:, ball((8, 8, 8), (0, 0, 0), 6)] = AIR
    regions = image[:3] > 0.3
    seen = set()
    for seed in range(40):
        a, b = flip(image, regions, np.random.default_rng(seed))
        assert np.array_equal(a[:3] > 0.3, b)
        seen.add(a.tobytes())
    assert len(seen) == 8
    for seed in range(10):
        for level in ("light", "full"):
            changed = vary_intensities(image, level, np.random.default_rng(seed))
            assert changed.dtype == np.float32
            assert (changed[:, (image == AIR).all(0)] == AIR).all()
            assert changed.min() >= AIR
            assert not np.array_equal(changed, image) or level == "full"


def test_fields_of_full_augmentation_keep_the_crop_about_its_centre():
    drawn = [draw_warp((16, 16, 16), np.random.default_rng(seed)) for seed in range(100)]
    bent = [field for field in drawn if field is not None]
    # none of the three: 0.7 · 0.7 · 0.8 = 39 %
    assert 45 <= len(bent) <= 77  # 3.3 standard deviations
    for field in bent:
        assert np.abs(field.mean((1, 2, 3))).max() < 2
        spread = np.sqrt((field**2).sum(0).mean()) / np.sqrt(3 * (16**2 - 1) / 12)
        assert 0.65 < spread < 1.5


def bad(case: Case, kind: str) -> Case:
    if kind == "an empty scan":
        return rewritten(case, "t1c", np.zeros_like)
    if kind == "a mask for a scan":
        return rewritten(case, "t1n", lambda data: (data > 0).astype(np.float32))
    if kind == "a label outside":
        return rewritten(case, "seg", lambda data: data * 3)
    if kind == "another grid":
        seg = case.load("seg")
        Volume(data=seg.data[:, 1:], affine=seg.affine).save(case.files["seg"])
        return case
    if kind == "no labels":
        return replace(case, files={r: p for r, p in case.files.items() if r != "seg"})
    case.files["t2w"].write_bytes(case.files["t2w"].read_bytes()[:200])
    return case


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("an empty scan", "t1c: every voxel has the same value"),
        ("a mask for a scan", "t1n has one value in the whole brain"),
        ("a label outside", "label 6 is outside the scheme brats2023"),
        ("another grid", "seg and t1n differ in shape"),
        ("no labels", "no seg file"),
        ("a torn file", "t2w"),
    ],
)
def test_a_bad_case_is_named_before_training(case, tmp_path, kind, words):
    write_case(tmp_path / "data", "BraTS-GLI-00002-000", seed=2)
    good = discover(tmp_path / "data")[1]
    with pytest.raises(SynthError, match=words) as error:
        SegmentationData([good, bad(case, kind)], SMALL)
    assert case.id in str(error.value)


def test_a_case_without_tumour_is_welcome_a_cohort_of_them_is_not(case, tmp_path):
    write_case(tmp_path / "data", "BraTS-GLI-00002-000", seed=2)
    sick, healthy = discover(tmp_path / "data")
    rewritten(healthy, "seg", np.zeros_like)
    data = SegmentationData([sick, healthy], replace(SMALL, tumour_crops=1.0))
    item = data.item(1, 0)
    assert not item["regions"].any()
    assert (item["image"] > AIR).any()
    with pytest.raises(SynthError, match="none of 1 training cases has a tumour"):
        SegmentationData([healthy], SMALL)
    assert len(SegmentationData([healthy], SMALL, fixed=True)) == 1
