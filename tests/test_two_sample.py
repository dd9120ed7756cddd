"""The two-sample test of scans: it finds what an eye finds, and nothing where nothing is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from synth.base.errors import SynthError
from synth.evaluate.scans.judge import evaluate_synthesis
from synth.evaluate.scans.scan_case import Scans
from synth.evaluate.scans.two_sample import (
    area_under_curve,
    looks,
    real_halves,
    spoiled,
    tell_apart,
)
from tests.test_judge_synthesis import cohort
from tests.test_synthesis_features import altered, loaded


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Scans]:
    return loaded(tmp_path_factory.mktemp("scans"), range(1, 25))


@pytest.fixture(scope="module")
def real(scans: list[Scans]) -> list[tuple[dict[str, float], str]]:
    return [(looks(s), s.case.patient) for s in scans]


def test_real_scans_are_not_told_from_real_ones(real) -> None:
    found = real_halves(real)
    assert found.low < 0.4
    assert 0.3 < found.auc < 0.6


def flipped(scans: Scans, _: Scans) -> Scans:
    """Exchange one contrast by its mirror image: its edges are where no other has them."""
    image = scans.image.copy()
    image[2] = np.where(scans.brain, image[2][:, ::-1], 0)
    return replace(scans, image=image)


def hazy(scans: Scans, _: Scans) -> Scans:
    return altered(scans, lambda v: 0.5 * v + 0.5 * ndimage.gaussian_filter(v, (0, 2, 2, 2)))


def control(kind: str):
    return lambda s, other: dict(spoiled(s, other, int(s.case.id.split("-")[2])))[kind]


@pytest.mark.parametrize(
    ("spoil", "least"),
    [
        pytest.param(control("blurred"), 0.95, id="blurred"),
        pytest.param(control("noised"), 0.95, id="noised"),
        pytest.param(control("exchanged"), 0.9, id="another's contrast"),  # 24 coarse scans
        pytest.param(hazy, 0.95, id="half blurred"),
        pytest.param(flipped, 0.95, id="a contrast mirrored"),
    ],
)
def test_what_an_eye_finds_is_found(spoil, least, scans, real) -> None:
    made = [(looks(spoil(s, scans[i])), s.case.patient) for i, s in enumerate(scans[::2])]
    assert tell_apart(made, real[1::2]).auc >= least


def test_brightness_and_unit_of_the_file_are_no_sign(scans) -> None:
    one = scans[0]
    other = replace(one, image=one.image * 0.5)
    same = looks(other)
    for name, value in looks(one).items():
        assert same[name] == pytest.approx(value, abs=2e-3), name


def test_the_tumour_is_hardly_looked_at(scans) -> None:
    one = max(scans, key=lambda s: int((s.classes > 0).sum()))
    noise = np.random.default_rng(0).normal(0, 0.3, one.image.shape)

    def moved(where: np.ndarray) -> float:
        other = looks(replace(one, image=np.where(where, one.image + noise, one.image)))
        return max(abs(other[n] - v) for n, v in looks(one).items() if "gradient_0.7" in n)

    inside = ndimage.binary_erosion(one.classes > 0, iterations=2)
    assert inside.sum() > 20
    outside = ndimage.binary_erosion(one.healthy, iterations=2)
    beside = np.zeros_like(outside)
    beside[tuple(np.argwhere(outside)[: int(inside.sum())].T)] = True
    # The scale of brightness and the tails of the filters still hang on the tumour.
    assert moved(inside) < 0.5 * moved(beside)


def test_a_case_that_is_tumour_alone_is_named(scans) -> None:
    one = scans[0]
    with pytest.raises(SynthError, match="no brain outside the tumour"):
        looks(replace(one, classes=np.ones_like(one.classes)))


def test_the_area_is_that_of_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    for n in (5, 30, 200):
        scores, first = rng.integers(0, 6, n).astype(float), rng.random(n) < 0.4
        first[:2] = True, False
        assert area_under_curve(scores, first) == pytest.approx(roc_auc_score(first, scores))


def test_no_patient_is_judged_by_what_was_learned_from_it() -> None:
    """Numbers that name the patient and nothing else tell the sets apart only by a leak."""
    rng = np.random.default_rng(1)
    marks = rng.standard_normal((20, 12))

    def cases(patients: range) -> list[tuple[dict[str, float], str]]:
        return [({f"n{i}": v for i, v in enumerate(marks[p])}, str(p)) for p in patients] * 4

    assert tell_apart(cases(range(10)), cases(range(10, 20))).low < 0.6


def test_the_judge_puts_it_first(tmp_path: Path) -> None:
    cohort(tmp_path / "real", range(1, 13))
    cohort(tmp_path / "made", range(101, 107))
    found = evaluate_synthesis(
        tmp_path / "made", tmp_path / "real", tmp_path / "out", pictures=False
    ).summary["two_sample"]
    assert found.keys() == {"made", "real", "blurred", "noised", "exchanged"}
    assert all(v["low"] <= v["auc"] <= v["high"] for v in found.values())
    assert found["made"]["auc"] < 0.9
    assert found["real"]["low"] < 0.5 < found["real"]["high"]
    assert min(found["blurred"]["auc"], found["noised"]["auc"]) >= 0.95
    assert found["exchanged"]["auc"] > 0.75
    first = (tmp_path / "out" / "table.md").read_text().split("|")[0]
    assert "Can a classifier tell" in first
