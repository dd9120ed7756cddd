"""Region statistics, texture and copies: what single scans are judged by."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pywt
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.case import MODALITIES, Case
from synth.data.volume import Volume
from synth.evaluate.scans.features import code_of
from synth.evaluate.scans.reference import Copies
from synth.evaluate.scans.scan_case import (
    ED,
    ET,
    NCR,
    Scans,
    band_energies,
    column,
    common_spacing_mm,
    energy_ratio,
    load_scans,
    mean_names,
    real_sets,
    region_statistics,
    share_of_signs,
    signs,
    texture_columns,
    worst_z,
)
from tests.toy_scans import AFFINE, MM, SHAPE, cohort, loaded, patient, write


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Scans]:
    return loaded(tmp_path_factory.mktemp("scans"), range(1, 17))


def box(image: np.ndarray, classes: np.ndarray | None = None) -> Scans:
    return Scans(
        case=Case(id="x", files={}), image=image.astype(np.float32),
        brain=np.ones(image.shape[1:], bool), classes=classes, spacing_mm=1.0, levels=(1,) * 4,
    )  # fmt: skip


def test_a_case_is_scaled_to_its_brain_and_its_labels_follow(tmp_path: Path) -> None:
    files = patient(3)
    write(
        tmp_path, "BraTS2021_00003", files | {"seg": np.where(files["seg"] == 3, 4, files["seg"])}
    )
    (case,) = cohort(tmp_path, range(0))
    found = load_scans(case, MM)
    for c, m in enumerate(MODALITIES):
        native = files[m][files[m] > 0].astype(float)
        high = np.percentile(native, 99.5)
        assert found.levels[c] == pytest.approx(high, rel=1e-6)
        inside = np.sort(found.image[c][found.brain])
        np.testing.assert_allclose(inside, np.sort(native) / high, atol=1e-6)
        assert not found.image[c][~found.brain].any()
    counts = [int((found.classes == n).sum()) for n in (NCR, ED, ET)]
    assert counts == [int((files["seg"] == n).sum()) for n in (1, 2, 3)]


def test_statistics_are_those_of_the_voxels(scans) -> None:
    one = scans[0]
    found = region_statistics(one)
    brain = one.image[1][one.brain & (one.classes == 0)].astype(float)
    tumour = one.image[1][one.classes == ET].astype(float)
    assert found["ET_t1c_mean"] == pytest.approx((tumour.mean() - brain.mean()) / brain.std(), 1e-5)
    assert found["ET_t1c_sd"] == pytest.approx(tumour.std() / brain.std(), rel=1e-5)
    assert found["brain_t1c_mean"] == pytest.approx(brain.mean(), rel=1e-5)
    assert found["brain_t1c_sd"] == pytest.approx(brain.std() / brain.mean(), rel=1e-5)
    healthy = region_statistics(replace(one, classes=None))
    assert np.isnan(healthy["NCR_t2f_mean"])


def test_a_label_map_of_another_patient_is_caught(scans) -> None:
    rows = [region_statistics(s) for s in scans]
    expected = signs(rows)
    assert expected["ET_t1c_mean"] == 1
    assert expected["NCR_t1n_mean"] == -1
    right, wrong, swapped = [], [], []
    for i, one in enumerate(scans):
        others = rows[:i] + rows[i + 1 :]
        moved = ndimage.shift(one.classes, (9, -7, 8), order=0, mode="grid-wrap")
        turned = np.array([0, ED, NCR, ET])[one.classes]  # what Med-DDPM's exporter does
        for found, classes in ((right, one.classes), (wrong, moved), (swapped, turned)):
            row = region_statistics(replace(one, classes=np.where(one.brain, classes, 0)))
            found.append((share_of_signs(row, expected), worst_z(row, others, mean_names())))
    right, wrong, swapped = (np.array(v) for v in (right, wrong, swapped))
    assert right[:, 0].min() > 0.9
    assert np.median(wrong[:, 0]) < 0.8
    # Each wrong one is further off than the worst of the right ones.
    assert min(wrong[:, 1].min(), swapped[:, 1].min()) > right[:, 1].max()


def test_z_leaves_out_what_cannot_be_compared() -> None:
    real = [{"a": v, "b": np.nan} for v in (1.0, 2.0, 3.0)]
    assert worst_z({"a": 5.0, "b": 9.0}, real, ["a", "b"]) == pytest.approx(3.0)
    assert np.isnan(worst_z({"a": np.nan, "b": 9.0}, real, ["a", "b"]))
    assert np.isnan(share_of_signs({"a": np.nan}, {"a": 1}))
    assert column(real, "a").tolist() == [1, 2, 3]


def test_band_energies_are_those_of_pywt() -> None:
    image = np.random.default_rng(0).normal(size=(4, 16, 16, 16))
    found = band_energies(box(image))
    for c in range(4):
        lll = image[c]
        for level in range(3):
            bands = pywt.dwtn(lll, "haar")
            details = [k for k in sorted(bands) if k != "aaa"]
            expected = [np.log((bands[k] ** 2).mean() / image[c].var()) for k in details]
            # float32; `SMALLEST` adds one in a million
            np.testing.assert_allclose(found[c, level], expected, atol=1e-4)
            lll = bands["aaa"]
    # White noise has the same energy in every band: ln 1, up to chance (512 · 7 numbers or more).
    assert abs(found[:, 0].mean()) < 0.05


def test_the_edge_of_the_brain_is_no_texture() -> None:
    image = 5 + np.random.default_rng(0).normal(size=(4, 32, 32, 32))
    brain = np.zeros((32,) * 3, bool)
    brain[3:-3, 3:-3, 3:-3] = True
    found = band_energies(replace(box(image * brain), brain=brain))
    # White noise: 13³ and 6³ coefficients a band tell ln 1 to 0.03 and 0.1; the edge would add 3.
    assert np.abs(found[:, 0]).max() < 0.15
    assert np.abs(found[:, 1]).max() < 0.5


def test_blur_takes_from_the_finest_level_most(scans) -> None:
    soft = [
        replace(s, image=np.where(s.brain, ndimage.gaussian_filter(s.image, (0, 0.6, 0.6, 0.6)), 0))
        for s in scans
    ]
    before, after = (np.stack([band_energies(s).mean(-1) for s in own]) for own in (scans, soft))
    ratios = [energy_ratio(after[:, 1, k], before[:, 1, k])["ratio"] for k in range(2)]
    assert ratios[0] < ratios[1] < 1
    same = energy_ratio(before[:8, 1, 0], before[8:, 1, 0])
    assert same["low"] < 1 < same["high"]
    names = texture_columns(band_energies(scans[0]))
    assert names["texture_t1c_2"] == pytest.approx(before[0, 1, 1])
    assert energy_ratio(np.array([np.nan]), before[:, 0, 0])["ratio"] is None


@pytest.fixture(scope="module")
def memory(scans, tmp_path_factory: pytest.TempPathFactory) -> Copies:
    unseen = loaded(tmp_path_factory.mktemp("unseen"), range(50, 58))
    return Copies([code_of(s) for s in scans], [code_of(s) for s in unseen])


def test_copies_are_caught_mirrored_regraded_or_noisy(scans, memory: Copies) -> None:
    rng = np.random.default_rng(0)
    one = scans[5]
    noisy = one.image + 0.05 * rng.standard_normal(one.image.shape)
    bent = np.where(one.brain, one.image**1.4, 0)
    mirrored = replace(
        one, image=one.image[:, ::-1], brain=one.brain[::-1], classes=one.classes[::-1]
    )
    made = [
        one, replace(one, image=np.where(one.brain, noisy, 0)), replace(one, image=bent), mirrored
    ]  # fmt: skip
    found = memory.nearest([code_of(s) for s in made])
    assert found.index.tolist() == [5] * 4
    assert memory.rule.copied(found).all()
    assert found.closeness[0] == pytest.approx(1, abs=1e-9)


def test_other_patients_and_the_mean_brain_are_no_copies(
    memory: Copies, tmp_path: Path, scans
) -> None:
    others = loaded(tmp_path, range(70, 86))
    found = memory.nearest([code_of(s) for s in others])
    assert not memory.rule.copied(found).any()
    assert not memory.rule.copied(memory.rule.unseen).any()
    assert (memory.rule.among.index != np.arange(len(scans))).all()
    patients = (memory.rule.unseen, memory.rule.among)
    assert memory.rule.threshold > max(near.closeness.max() for near in patients)


def test_distance_is_one_minus_the_correlation_of_what_is_not_common(scans, memory) -> None:
    one, other = code_of(scans[2]), memory.train[9]
    both = one.there & other.there
    found = memory._correlations([one], [other])[0, 0]
    expected = np.mean([
        np.corrcoef((one.values[c] - memory.common[c])[both],
                    (other.values[c] - memory.common[c])[both])[0, 1]
        for c in range(4)
    ])  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_judged_is_refused(scans, tmp_path: Path) -> None:
    small = replace(scans[0], spacing_mm=0.1)
    with pytest.raises(SynthError, match="millimetres"):
        code_of(small)
    with pytest.raises(SynthError, match="2 training cases"):
        Copies([code_of(s) for s in scans[:2]], [code_of(scans[3])])
    cohort(tmp_path / "truth", range(1, 3))
    with pytest.raises(SynthError, match="unseen case and a training case"):
        real_sets(tmp_path / "truth", tmp_path / "truth", None, "auto")
    coarse = Volume(data=np.ones((1, *SHAPE), np.int16), affine=2 * AFFINE)
    coarse.save(tmp_path / "coarse" / "BraTS-GLI-00009-000-t1n.nii.gz")
    (bad,) = cohort(tmp_path / "coarse", range(0))
    assert common_spacing_mm([bad], cohort(tmp_path / "truth", range(0))) == pytest.approx(9)
