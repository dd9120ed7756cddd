import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.volume import Volume
from synth.phantom.anatomy import MNI_NOTICE, Grid, Noise
from synth.phantom.cohort import FILES, Phantom, case_id, make_phantom, write_cohort
from synth.phantom.scanner import MODALITIES, thick_slices
from synth.pictures.montage import draw_montage
from synth.pictures.slices import cut_planes, find_middle

CASES = 5


@pytest.fixture(scope="module")
def site_a() -> list[Phantom]:
    return [make_phantom(index) for index in range(CASES)]


@pytest.fixture(scope="module")
def site_b() -> list[Phantom]:
    return [make_phantom(index, site="B") for index in range(CASES)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort")
    write_cohort(out, cases=3, workers=2, progress=False)
    return out


def _same(a: Phantom, b: Phantom) -> bool:
    pairs = zip(a.volumes().values(), b.volumes().values(), strict=True)
    return a.parameters == b.parameters and all(np.array_equal(x.data, y.data) for x, y in pairs)


def _relative(case: Phantom, modality: str) -> tuple[np.ndarray, np.ndarray]:
    image = getattr(case, modality).data[0].astype(float)
    normal = (image > 0) & ~case.unhealthy.data[0]
    return image / np.median(image[normal]), normal


def test_same_arguments_make_the_same_voxels(site_a: list[Phantom]) -> None:
    torch.manual_seed(99)
    np.random.default_rng(3).random()
    assert _same(make_phantom(2), site_a[2])
    assert not _same(make_phantom(2, seed=1), site_a[2])


def test_case_is_independent_of_batch_and_process(cohort: Path, site_a: list[Phantom]) -> None:
    for index in range(3):
        name = case_id(index)
        for suffix, volume in site_a[index].volumes().items():
            stored = Volume.load(cohort / name / f"{name}-{suffix}.nii.gz")
            assert np.array_equal(stored.data, volume.data), suffix
            # NIfTI keeps its affine in float32: 2.8 comes back within 1e-7 of itself.
            assert np.allclose(stored.affine, volume.affine, rtol=1e-7)


def test_files_follow_the_challenge(cohort: Path) -> None:
    found = sorted(path.name for path in (cohort / "BraTS-GLI-00002-000").glob("*.nii.gz"))
    suffixes = ("t1n", "t1c", "t2w", "t2f", "seg", "t1n-voided", "mask", "mask-healthy",
                "mask-unhealthy")  # fmt: skip
    assert found == sorted(f"BraTS-GLI-00002-000-{suffix}.nii.gz" for suffix in suffixes)
    assert MNI_NOTICE in (cohort / "NOTICE").read_text()
    assert MNI_NOTICE in (Path(__file__).parents[1] / "NOTICE").read_text()


def test_small_affine_is_brats_axes_at_2_8_mm(site_a: list[Phantom]) -> None:
    expected = [[-2.8, 0, 0, 0], [0, -2.8, 0, 63 * 2.8], [0, 0, 2.8, 0], [0, 0, 0, 1]]
    assert site_a[0].t1n.shape == (64, 64, 64)
    for volume in site_a[0].volumes().values():
        assert np.allclose(volume.affine, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_full_size_is_the_official_grid() -> None:
    case = make_phantom(1, size="full")
    expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert case.t1n.shape == (240, 240, 155)
    assert np.array_equal(case.t1n.affine, expected)
    _check_masks(case)
    assert 1.05 < (case.t1n.data > 0).sum() / 1e6 < 1.8


def test_labels_nest_and_lie_in_the_brain(site_a: list[Phantom], site_b: list[Phantom]) -> None:
    for case in site_a + site_b:
        seg, brain = case.seg.data[0], case.t1n.data[0] > 0
        assert set(np.unique(seg)) <= {0, 1, 2, 3}
        assert brain[seg > 0].all()
        assert ndimage.label(brain)[1] == 1
        assert ndimage.label(np.isin(seg, (1, 3)))[1] == 1  # one core ...
        assert ndimage.label(seg > 0)[1] == 1  # ... in one whole tumour
        for modality in MODALITIES:  # the same skull-stripping in all four
            assert np.array_equal(getattr(case, modality).data[0] > 0, brain)


def test_ring_tumours_keep_necrosis_behind_the_rim(site_a: list[Phantom]) -> None:
    rings = [case for case in site_a if case.parameters["tumour"]["kind"] == "ring"]
    shares = []
    for case in rings:
        seg = case.seg.data[0]
        shell = ndimage.binary_dilation(seg == 1) & (seg != 1)
        shares.append((seg[shell] == 3).mean())
    # Real rims touch necrosis at about .9 of its surface; 2.8 mm voxels cost some of that.
    assert np.mean(shares) > 0.6


def _check_masks(case: Phantom) -> None:
    healthy, unhealthy = case.healthy.data[0], case.unhealthy.data[0]
    brain, spacing = case.t1n.data[0] > 0, case.t1n.spacing_mm[0]
    away = ndimage.distance_transform_edt(~unhealthy) * spacing
    from_tumour = ndimage.distance_transform_edt(case.seg.data[0] == 0) * spacing
    assert healthy.any()
    assert brain[healthy].mean() >= 0.75
    assert away[healthy].min() >= 5
    assert np.array_equal(unhealthy, from_tumour < 5)
    assert np.array_equal(case.mask.data[0], healthy | unhealthy)
    voided = case.voided.data[0]
    assert not voided[case.mask.data[0]].any()
    assert np.array_equal(voided, np.where(case.mask.data[0], 0, case.t1n.data[0]))


def test_mask_rules(site_a: list[Phantom], site_b: list[Phantom]) -> None:
    for case in site_a + site_b:
        _check_masks(case)


def test_volumes_are_those_of_people(site_a: list[Phantom], site_b: list[Phantom]) -> None:
    for case in site_a + site_b:
        litres = (case.t1n.data > 0).sum() * case.t1n.voxel_ml / 1000
        assert 1.0 < litres < 1.85
        assert 4 < (case.seg.data > 0).sum() * case.seg.voxel_ml < 260
        assert (case.healthy.data.sum() * case.seg.voxel_ml) > 1


def test_contrasts_are_those_of_mr(site_a: list[Phantom]) -> None:
    for case in site_a:
        seg = case.seg.data[0]
        level = {
            m: [np.median(_relative(case, m)[0][seg == k]) for k in (2, 3)] for m in MODALITIES
        }
        assert level["t1c"][1] > 1.2  # the rim takes up contrast ...
        assert level["t1c"][1] > 1.25 * level["t1n"][1]  # ... and did not shine before
        assert level["t2f"][0] > 1.1  # oedema is bright on FLAIR
        assert level["t2w"][0] > 1.0
        t2w, normal = _relative(case, "t2w")
        fluid = normal & (t2w > np.percentile(t2w[normal], 97))
        assert np.median(_relative(case, "t2f")[0][fluid]) < 0.8  # fluid: bright T2, dark FLAIR
        assert np.median(_relative(case, "t1n")[0][fluid]) < 0.8


def test_hemispheres_resemble_each_other_as_in_people(site_a: list[Phantom]) -> None:
    correlations = []
    for case in site_a:
        image = case.t1n.data[0].astype(float)
        normal = (image > 0) & ~case.unhealthy.data[0]
        both = normal & normal[::-1]
        correlations.append(np.corrcoef(image[both], image[::-1][both])[0, 1])
    # A mirrored copy would score 1 and unrelated halves about .3; people .6 to .8.
    assert 0.5 < np.mean(correlations) < 0.9


def test_site_b_is_other_patients_other_scanner(
    site_a: list[Phantom], site_b: list[Phantom]
) -> None:
    assert site_b[0].id == "BraTS-GLI-50001-000"

    def spread(case: Phantom) -> float:
        image, normal = _relative(case, "t1n")
        return float(np.subtract(*np.percentile(image[normal], (95, 5))))

    def detail_along_z(case: Phantom) -> float:
        # Slice-to-slice change relative to in-plane change: thick slices lower it.
        image, normal = _relative(case, "t2w")
        inner = ndimage.binary_erosion(normal, iterations=2)[:-1, :-1, :-1]
        steps = [np.diff(image, axis=axis)[tuple([slice(0, 63)] * 3)] for axis in (0, 2)]
        return float(steps[1][inner].std() / steps[0][inner].std())

    for a, b in zip(site_a, site_b, strict=True):
        assert a.parameters["tumour"] != b.parameters["tumour"]
        assert b.parameters["acquisition"]["noise"] > a.parameters["acquisition"]["noise"]
        assert spread(b) < spread(a)  # a flatter T1
        assert detail_along_z(b) < 0.85 * detail_along_z(a)


def test_cohort_resumes(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(cohort, out)
    kept, broken, gone = (out / case_id(index) for index in range(3))
    (broken / f"{broken.name}-t1c.nii.gz").unlink()
    shutil.rmtree(gone)
    (out / "cohort.json").unlink()
    stamp = (kept / f"{kept.name}-seg.nii.gz").stat().st_mtime_ns
    assert write_cohort(out, cases=3, workers=1, progress=False) == [kept, broken, gone]
    assert (kept / f"{kept.name}-seg.nii.gz").stat().st_mtime_ns == stamp
    for folder in (broken, gone):
        for suffix in FILES:
            name = f"{folder.name}/{folder.name}-{suffix}.nii.gz"
            assert (out / name).read_bytes() == (cohort / name).read_bytes()
    before, after = (json.loads((base / "cohort.json").read_text()) for base in (cohort, out))
    assert after["cases"] == before["cases"]
    assert (before["made_now"], after["made_now"]) == (3, 2)
    assert not list(out.glob(".*"))


def test_another_cohort_is_not_overwritten(cohort: Path) -> None:
    with pytest.raises(SynthError, match="seed 0, not 7"):
        write_cohort(cohort, cases=3, seed=7, progress=False)
    with pytest.raises(SynthError, match="out of range"):
        write_cohort(cohort, cases=0, progress=False)


def test_noise_has_unit_variance_and_mirrors() -> None:
    axis = torch.arange(-60.0, 60.0, 6.0)
    grid = Grid((axis, axis, axis))
    fields = torch.stack([Noise.draw(np.random.default_rng(k), 20.0).on(grid) for k in range(200)])
    # The mean of 8000 points × 200 draws, correlated over about (20/6)³ points: a few per cent.
    assert float(fields.square().mean()) == pytest.approx(1.0, abs=0.04)
    odd = Noise.draw(np.random.default_rng(0), 20.0, mirror=-1)
    even = Noise.draw(np.random.default_rng(0), 20.0, mirror=1)
    balanced = Grid((axis + 3.0, axis, axis))
    for noise, sign in ((odd, -1), (even, 1)):
        field = noise.on(balanced).flatten()
        mirrored = sign * noise.on(balanced).flip(0).flatten()
        # .85 of the variance is shared; 8000 correlated points estimate that to about .1.
        assert float(torch.corrcoef(torch.stack([field, mirrored]))[0, 1]) > 0.7


def test_thick_slices_keep_constants_and_blur_the_rest() -> None:
    matrix = thick_slices(40, 2.5, 0.7)
    assert torch.allclose(matrix.sum(1), torch.ones(40), atol=1e-6)
    ramp = torch.arange(40.0)
    # Averaging and linear interpolation keep a ramp away from the ends, but for the fraction of a
    # slice that a thick one's edge cuts: up to 1/8 · 0.5 · 2/2.5 = .05 voxel.
    assert torch.allclose((matrix @ ramp)[4:-4], ramp[4:-4], atol=0.05)
    alternating = (-1.0) ** ramp
    assert float((matrix @ alternating).abs().max()) < 0.5


def test_pictures_stand_upright() -> None:
    data = np.zeros((1, 8, 10, 12), np.float32)  # RAS
    data[0, 7, :, :] += 1  # right
    data[0, :, 9, :] += 2  # anterior
    data[0, :, :, 11] += 4  # superior
    axial, coronal, sagittal = cut_planes(Volume(data=data, affine=np.eye(4)), (3, 4, 5))
    assert axial.shape == (10, 8)
    assert (axial[0] >= 2).all()  # anterior up
    assert (axial[1:, 0] == 1).all()  # right on the viewer's left
    assert (coronal[0] >= 4).all()
    assert (coronal[1:, 0] == 1).all()
    assert (sagittal[0] >= 4).all()
    assert (sagittal[1:, 0] == 2).all()
    # The same head stored along other axes looks the same.
    turned = Volume(
        data=data[:, ::-1, ::-1].transpose(0, 3, 1, 2),
        affine=np.array([[0, -1.0, 0, 7], [0, 0, -1, 9], [1, 0, 0, 0], [0, 0, 0, 1]]),
    )
    for plain, other in zip((axial, coronal, sagittal), cut_planes(turned, (5, 4, 5)), strict=True):
        assert np.array_equal(plain, other)
    mask = np.zeros(data.shape[1:], bool)
    mask[3, 4, 5] = True
    assert find_middle(mask) == [3, 4, 5]


def test_montage_writes_a_picture(tmp_path: Path) -> None:
    from matplotlib.image import imread

    grey = np.random.default_rng(0).random((40, 40))
    disc = (np.hypot(*(np.indices((40, 40)) - 20)) < 9).astype(int)
    marks = {(row, 4): (disc, {1: "#ff0000"}, False) for row in range(2)}
    path = draw_montage([[grey] * 6] * 2, tmp_path / "cohort.png", marks=marks)
    picture = imread(path)[..., :3]
    assert picture.shape[1] > 2.5 * picture.shape[0]  # two rows of six
    greys = np.ptp(picture, axis=2) < 0.05
    columns = np.array_split(~greys, 6, axis=1)
    coloured = [part.mean() for part in columns]
    assert coloured[4] > 0.01 > max(coloured[:4])  # labels in their own column only
    with pytest.raises(SynthError, match="at least one"):
        draw_montage([], tmp_path / "none.png")


def test_long_row_labels_stay_beside_their_row(tmp_path: Path) -> None:
    from matplotlib.image import imread

    label = "generated\nBraTS-GLI-50022-000-tumour00-synth00"
    rows, labels = [[np.zeros((9, 9))] * 2] * 3, [label, "", label]
    picture = imread(draw_montage(rows, tmp_path / "rows.png", row_labels=labels))[..., :3]
    # Black panels: what is bright is a letter. None at the edges, none beside the row between.
    bright = picture.max(axis=2) > 0.3
    third = len(picture) // 3
    assert bright[:third].any()
    assert bright[2 * third :].any()
    assert not bright[third : 2 * third].any()
    assert not bright[[0, 1, -2, -1]].any()
    assert not bright[:, :2].any()
