"""Boxes are cut and padded by affine with an exact way back; items follow from their seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from ddpm_lora.config import PRESETS, Config
from ddpm_lora.data import SynthesisData, frame_about, load_case, shifted
from synth.base.errors import SynthError
from synth.data.case import MODALITIES, discover
from synth.data.volume import Volume
from tests.conftest import LPS, ball, write_case

SMALL = Config(width=8, groups=4, multipliers=(1, 2), crop=(20, 24, 16))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        write_case(tmp_path / "data", f"BraTS-GLI-{number:05d}-000", seed=number)
    return tmp_path / "data"


def brain_volume(shape: tuple[int, int, int], centre: tuple[int, ...], radius: float) -> Volume:
    affine = LPS.copy()
    affine[1, 3] = shape[1] - 1
    return Volume(data=ball(shape, centre, radius)[None].astype(np.float32), affine=affine)


def test_the_middle_of_the_grid_is_where_torchio_crops_it() -> None:
    """CropOrPad((192, 192, 144)) of 240×240×155 keeps voxels from (24, 24, 6) on; here less 128."""
    shape = (112, 112, 27)
    image = brain_volume(shape, (50, 60, 14), 5)
    frame = frame_about(image, replace(PRESETS["meddpm"], crop=(64, 64, 16)))
    index = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    boxed = frame.bring(index)[0]
    lps = index[0, 24:88, 24:88, 6:22]
    assert np.array_equal(boxed, lps[::-1, ::-1])  # the model's frame is RAS


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
def test_the_box_knows_where_it_is_and_the_way_back(spacing_mm: float) -> None:
    config = replace(SMALL, spacing_mm=spacing_mm, crop=(16, 16, 16))
    image = brain_volume((30, 34, 28), (12, 16, 13), 6)
    frame = frame_about(image, config)
    # A field that is linear in world coordinates is what the frame's affine says it is.
    native = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij"))
    world = np.tensordot(image.affine[:3, :3], native, 1) + image.affine[:3, 3, None, None, None]
    field = world.astype(np.float32)
    boxed = frame.bring(field)
    own = np.stack(np.meshgrid(*[np.arange(n) for n in config.crop], indexing="ij"))
    expected = np.tensordot(frame.affine[:3, :3], own, 1) + frame.affine[:3, 3, None, None, None]
    middle = (slice(None), *[slice(5, 11)] * 3)  # the blur before resampling feels the faces
    np.testing.assert_allclose(boxed[middle], expected[middle], atol=1e-3)
    if spacing_mm == 1:
        inside = frame.back(np.ones((1, 16, 16, 16))) > 0
        assert np.array_equal(frame.back(boxed)[:, inside[0]], field[:, inside[0]])
        assert (inside[0] >= (image.data[0] > 0)).all()


def test_a_large_brain_is_cut_in_training_and_whole_in_sampling() -> None:
    image = brain_volume((60, 60, 60), (30, 30, 30), 13)  # 27 voxels across
    cut = frame_about(image, replace(SMALL, crop=(16, 16, 16)))
    whole = frame_about(image, replace(SMALL, crop=(16, 16, 32)), whole=True)
    assert cut.shape == (16, 16, 16)
    assert whole.shape == (28, 28, 32)
    assert whole.bring(image.data).sum() == image.data.sum() > cut.bring(image.data).sum()


def test_items_hold_scaled_scans_and_classes(cohort: Path) -> None:
    data = SynthesisData(discover(cohort), SMALL, fixed=True)
    item = data.item(0, 0)
    image, classes = load_case(data.cases[0])
    frame = frame_about(image, SMALL)
    assert torch.equal(item["classes"], torch.from_numpy(frame.bring(classes[None])[0]))
    head = item["classes"] > 0
    assert (item["image"][:, ~head] == -1).all()
    for i in range(4):
        inside = item["image"][i][head].double().numpy()
        low, high = data.prepared(0)["low"][i], data.prepared(0)["high"][i]
        assert high == pytest.approx(2 * np.median(image.data[i][classes == 4]), rel=1e-6)
        native = np.sort(frame.bring(image.data)[i][head.numpy()])
        # float16 in the cache: eleven bits of values up to 2.5
        np.testing.assert_allclose(
            np.sort((inside + 1) / 2 * (high - low) + low), native, atol=2e-3 * high
        )
    assert sorted(np.unique(item["classes"])) == [0, 1, 2, 3, 4]


def test_how_bright_a_tumour_is_changes_no_healthy_voxel(cohort: Path) -> None:
    case = discover(cohort)[0]
    before = SynthesisData([case], SMALL, fixed=True).item(0, 0)
    scan = Volume.load(case.path("t1c"))
    ill = Volume.load(case.path("seg")).data > 0
    scan.with_data(np.where(ill, 3 * scan.data + 50, scan.data)).save(case.path("t1c"))
    after = SynthesisData([case], SMALL, fixed=True).item(0, 0)
    healthy = (before["classes"] == 4).expand(4, -1, -1, -1)
    assert torch.equal(after["image"][healthy], before["image"][healthy])
    assert not torch.equal(after["image"], before["image"])


def test_a_z_scored_scan_is_scaled_by_its_percentile(cohort: Path) -> None:
    """Its median is about its background."""
    case = discover(cohort)[0]
    scan = Volume.load(case.path("t1n"))
    brain = scan.data > 0
    z = (scan.data - scan.data[brain].mean()) / scan.data[brain].std()
    scan.with_data(np.where(brain, z, 0).astype(np.float32)).save(case.path("t1n"))
    high = SynthesisData([case], SMALL, fixed=True).prepared(0)["high"][0]
    assert high == pytest.approx(np.percentile(z[brain], 99.5), rel=0.02)


def test_items_are_functions_of_their_seed_and_move_as_one(cohort: Path) -> None:
    data = SynthesisData(discover(cohort), SMALL)
    plain = SynthesisData(discover(cohort), SMALL, fixed=True).item(1, 0)
    a, b = data.item(1, 5), data.item(1, 5)
    assert all(torch.equal(a[k], b[k]) for k in a)
    flips = 0
    for seed in range(8):
        item = data.item(1, seed)
        assert torch.equal(item["classes"] > 0, (item["image"] > -1).any(0))
        same = item["image"][0].sum() - plain["image"][0].sum()
        assert abs(float(same)) < 60  # little of the brain leaves the box
        flips += not torch.equal(item["image"], plain["image"])
    assert flips >= 6


@pytest.mark.parametrize("by", [(0, 0, 0), (2, -1, 1), (-2, 2, 0)])
def test_shifts_are_those_of_scipy(by: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6, 7))
    expected = ndimage.shift(values, by, order=0, cval=-1)
    assert np.array_equal(shifted(torch.from_numpy(values), by, -1).numpy(), expected)


def test_intensities_are_the_median_scale_of_the_site(cohort: Path) -> None:
    data = SynthesisData(discover(cohort), SMALL)
    highs = []
    for case in data.cases:
        image, classes = load_case(case)
        highs.append([2 * np.median(c[classes == 4]) for c in image.data])
    found = data.intensities()
    assert list(found) == list(MODALITIES)
    assert [found[m]["high"] for m in MODALITIES] == pytest.approx(np.median(highs, axis=0))
    assert all(found[m]["low"] == 0 for m in MODALITIES)


def test_a_missing_contrast_is_named_before_the_work(cohort: Path) -> None:
    next(cohort.rglob("*00002-000-t2f.nii.gz")).unlink()
    with pytest.raises(SynthError, match="BraTS-GLI-00002-000: no t2f file"):
        SynthesisData(discover(cohort), SMALL)
