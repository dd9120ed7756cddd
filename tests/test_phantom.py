"""Made-up patients: reproducible, in the challenge's layout, with the statistics of people."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.case import MODALITIES
from synth.data.volume import Volume
from synth.phantom.anatomy import MNI_NOTICE, Grid, Noise
from synth.phantom.cohort import FILES, Phantom, case_id, make_phantom, write_cohort
from synth.phantom.scanner import thick_slices

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


def array(case: Phantom, suffix: str) -> np.ndarray:
    return case.volumes[suffix].data[0]


def relative(case: Phantom, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """The image with 1 for the middle of healthy brain, and where that is."""
    image = array(case, modality).astype(float)
    normal = (image > 0) & ~array(case, "mask-unhealthy")
    return image / np.median(image[normal]), normal


def test_same_arguments_make_the_same_voxels(site_a: list[Phantom]) -> None:
    torch.manual_seed(99)
    again, other = make_phantom(2), make_phantom(2, seed=1)
    assert again.parameters == site_a[2].parameters != other.parameters
    for suffix in FILES:
        assert np.array_equal(array(again, suffix), array(site_a[2], suffix))


def test_files_follow_the_challenge_whatever_the_batch(cohort: Path, site_a: list[Phantom]) -> None:
    names = {path.name for path in (cohort / case_id(1)).glob("*.nii.gz")}
    suffixes = ("t1n", "t1c", "t2w", "t2f", "seg", "t1n-voided", "mask", "mask-healthy",
                "mask-unhealthy")  # fmt: skip
    assert names == {f"BraTS-GLI-00002-000-{suffix}.nii.gz" for suffix in suffixes}
    for index in range(3):
        name = case_id(index)
        for suffix, volume in site_a[index].volumes.items():
            stored = Volume.load(cohort / name / f"{name}-{suffix}.nii.gz")
            assert np.array_equal(stored.data, volume.data), suffix
            # NIfTI keeps its affine in float32: 2.8 comes back within 1e-7 of itself.
            assert np.allclose(stored.affine, volume.affine, rtol=1e-7)
    for notice in (cohort / "NOTICE", Path(__file__).parents[1] / "NOTICE"):
        assert MNI_NOTICE in notice.read_text()


@pytest.mark.parametrize(
    ("size", "shape", "spacing"),
    [
        ("small", (64, 64, 64), 2.8),
        pytest.param("full", (240, 240, 155), 1.0, marks=pytest.mark.slow),
    ],
)
def test_grids_are_those_of_brats(size, shape: tuple[int, ...], spacing: float) -> None:
    case = make_phantom(1, size=size)
    corner = spacing * (shape[1] - 1)
    expected = [[-spacing, 0, 0, 0], [0, -spacing, 0, corner], [0, 0, spacing, 0], [0, 0, 0, 1]]
    for volume in case.volumes.values():
        assert volume.shape == shape
        assert np.allclose(volume.affine, expected, rtol=0, atol=1e-12)
    check_masks(case)


def check_masks(case: Phantom) -> None:
    healthy, unhealthy, mask = (array(case, m) for m in ("mask-healthy", "mask-unhealthy", "mask"))
    t1n, spacing = array(case, "t1n"), case.volumes["t1n"].spacing_mm[0]
    away = ndimage.distance_transform_edt(~unhealthy) * spacing
    from_tumour = ndimage.distance_transform_edt(array(case, "seg") == 0) * spacing
    assert healthy.any()
    assert (t1n > 0)[healthy].mean() >= 0.75
    assert away[healthy].min() >= 5
    assert np.array_equal(unhealthy, from_tumour < 5)
    assert np.array_equal(mask, healthy | unhealthy)
    assert np.array_equal(array(case, "t1n-voided"), np.where(mask, 0, t1n))


def test_labels_and_masks_obey_their_rules(site_a: list[Phantom], site_b: list[Phantom]) -> None:
    for case in site_a + site_b:
        check_masks(case)
        seg, brain, ml = array(case, "seg"), array(case, "t1n") > 0, case.volumes["seg"].voxel_ml
        assert set(np.unique(seg)) <= {0, 1, 2, 3}
        assert brain[seg > 0].all()
        assert ndimage.label(brain)[1] == 1
        assert ndimage.label(np.isin(seg, (1, 3)))[1] == 1  # one core ...
        assert ndimage.label(seg > 0)[1] == 1  # ... in one whole tumour
        for modality in MODALITIES:  # the same skull-stripping in all four
            assert np.array_equal(array(case, modality) > 0, brain)
        assert 1.0 < brain.sum() * ml / 1000 < 1.85  # litres, as in people
        assert 4 < (seg > 0).sum() * ml < 260
        assert array(case, "mask-healthy").sum() * ml > 1


def test_ring_tumours_keep_necrosis_behind_the_rim(site_a: list[Phantom]) -> None:
    rings = [array(c, "seg") for c in site_a if c.parameters["tumour"]["kind"] == "ring"]
    shells = [ndimage.binary_dilation(seg == 1) & (seg != 1) for seg in rings]
    # Real rims touch necrosis at about .9 of its surface; 2.8 mm voxels cost some of that.
    shares = [(seg[shell] == 3).mean() for seg, shell in zip(rings, shells, strict=True)]
    assert np.mean(shares) > 0.6


def test_contrasts_are_those_of_mr(site_a: list[Phantom]) -> None:
    for case in site_a:
        seg, image = array(case, "seg"), {m: relative(case, m)[0] for m in MODALITIES}
        oedema, rim = ({m: np.median(image[m][seg == k]) for m in MODALITIES} for k in (2, 3))
        assert rim["t1c"] > max(1.2, 1.25 * rim["t1n"])  # it takes up contrast
        assert oedema["t2f"] > 1.1  # bright on FLAIR
        assert oedema["t2w"] > 1.0
        t2w, normal = relative(case, "t2w")
        fluid = normal & (t2w > np.percentile(t2w[normal], 97))
        assert np.median(image["t2f"][fluid]) < 0.8  # fluid: bright T2, dark FLAIR
        assert np.median(image["t1n"][fluid]) < 0.8


def test_hemispheres_resemble_each_other_as_in_people(site_a: list[Phantom]) -> None:
    correlations = []
    for case in site_a:
        image, normal = relative(case, "t1n")
        both = normal & normal[::-1]
        correlations.append(np.corrcoef(image[both], image[::-1][both])[0, 1])
    # A mirrored copy would score 1 and unrelated halves about .3; people .6 to .8.
    assert 0.5 < np.mean(correlations) < 0.9


def test_site_b_is_other_patients_other_scanner(
    site_a: list[Phantom], site_b: list[Phantom]
) -> None:
    assert site_b[0].id == "BraTS-GLI-50001-000"

    def spread(case: Phantom) -> float:
        image, normal = relative(case, "t1n")
        return float(np.subtract(*np.percentile(image[normal], (95, 5))))

    def detail_along_z(case: Phantom) -> float:
        # Slice-to-slice change relative to in-plane change: thick slices lower it.
        image, normal = relative(case, "t2w")
        inner = ndimage.binary_erosion(normal, iterations=2)[:-1, :-1, :-1]
        steps = [np.diff(image, axis=axis)[tuple([slice(0, 63)] * 3)] for axis in (0, 2)]
        return float(steps[1][inner].std() / steps[0][inner].std())

    for a, b in zip(site_a, site_b, strict=True):
        assert a.parameters["tumour"] != b.parameters["tumour"]
        assert b.parameters["acquisition"]["noise"] > a.parameters["acquisition"]["noise"]
        assert spread(b) < spread(a)  # a flatter T1
        assert detail_along_z(b) < 0.85 * detail_along_z(a)


def test_cohort_resumes_and_is_not_overwritten_by_another(cohort: Path, tmp_path: Path) -> None:
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
    with pytest.raises(SynthError, match="seed 0, not 7"):
        write_cohort(out, cases=3, seed=7, progress=False)
    with pytest.raises(SynthError, match="out of range"):
        write_cohort(out, cases=0, progress=False)


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
