"""Random convolutions as features, and the distances that are measured on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from synth.base.errors import SynthError
from synth.evaluate.scans.features import RandomConvolutions, pooled, standardised
from synth.evaluate.scans.reference import feature_scale, frechet, pair_similarity
from synth.evaluate.scans.scan_case import Scans
from synth.metrics.distribution import (
    frechet_distance,
    halvings,
    mmd2,
    mmd2_floor,
    mmd2_interval,
    ms_ssim_3d,
)
from tests.toy_scans import loaded


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Scans]]:
    root = tmp_path_factory.mktemp("scans")
    return {
        "real": loaded(root / "real", range(1, 13)),
        "other": loaded(root / "other", range(101, 113)),
        "B": loaded(root / "b", range(201, 209), "B"),
    }


@pytest.fixture(scope="module")
def features(scans) -> dict[str, np.ndarray]:
    describe = RandomConvolutions()
    return {name: np.stack([describe(s) for s in own]) for name, own in scans.items()}


def altered(scans: Scans, change) -> Scans:
    return replace(scans, image=np.where(scans.brain, change(scans.image), 0).astype(np.float32))


def test_first_layer_is_the_correlation_with_its_filters(scans) -> None:
    one, describe = scans["real"][0], RandomConvolutions()
    image = standardised(one.image, one.brain)
    filters = describe.layers[0][0].numpy()
    found = describe(one)
    for k in (0, 5, 31):
        answer = sum(
            ndimage.correlate(channel, kernel, mode="constant")
            for channel, kernel in zip(image, filters[k], strict=True)
        )
        inside = np.maximum(answer, 0)[one.brain]
        # float32 convolutions of 108 terms
        assert found[k] == pytest.approx(inside.mean(), rel=1e-4)
        assert found[32 + k] == pytest.approx(inside.std(), rel=1e-4)
    assert np.abs(filters[::2].sum(axis=(1, 2, 3, 4))).max() < 1e-5  # these see no grey value
    assert np.abs(filters[1::2].sum(axis=(1, 2, 3, 4))).min() > 1e-3


def test_same_seed_same_features_whatever_was_drawn_before(scans, features) -> None:
    torch.manual_seed(123)
    assert np.array_equal(RandomConvolutions()(scans["real"][3]), features["real"][3])
    assert not np.allclose(RandomConvolutions(1)(scans["real"][3]), features["real"][3])


def test_features_know_neither_the_unit_nor_what_is_outside(scans, features) -> None:
    one = scans["real"][0]
    scaled = altered(one, lambda image: 3 * image - 0.2)
    scaled = replace(scaled, image=np.where(one.brain, scaled.image, 17).astype(np.float32))
    # Quartiles of float32 values after a change of scale: 1e-6 relative, through two layers.
    np.testing.assert_allclose(RandomConvolutions()(scaled), features["real"][0], atol=1e-4)


def test_pooling_is_weighted_mean_and_deviation() -> None:
    rng = np.random.default_rng(0)
    maps, weight = rng.normal(size=(1, 3, 4, 5, 6)), rng.random((1, 1, 4, 5, 6))
    found = pooled(torch.from_numpy(maps), torch.from_numpy(weight)).numpy()
    for c in range(3):
        mean = np.average(maps[0, c], weights=weight[0, 0])
        sd = np.average((maps[0, c] - mean) ** 2, weights=weight[0, 0]) ** 0.5
        assert found[[c, 3 + c]] == pytest.approx([mean, sd], rel=1e-12)


def test_kid_is_the_double_sum_and_that_of_the_ground(features) -> None:
    x, y = features["other"], features["real"]
    standard = feature_scale(y)
    a, b = standard(x), standard(y)

    def kernel(p: np.ndarray, q: np.ndarray) -> float:
        return (float(p @ q) / len(p) + 1) ** 3

    n, m = len(a), len(b)
    slow = (
        sum(kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j) / (n * n - n)
        + sum(kernel(p, q) for i, p in enumerate(b) for j, q in enumerate(b) if i != j)
        / (m * m - m)
        - 2 * np.mean([kernel(p, q) for p in a for q in b])
    )
    found = mmd2_interval(a, b, kernel="polynomial")
    assert found.value == pytest.approx(slow, rel=1e-9)
    assert found.value == pytest.approx(mmd2(a, b, kernel="polynomial"), rel=1e-9)
    found = mmd2_interval(a, b, bandwidth=standard.bandwidth)
    assert found.value == pytest.approx(mmd2(a, b, bandwidth=standard.bandwidth), rel=1e-9)
    assert found.low < found.value < found.high


def test_real_other_real_blurred_and_another_site_rank_so(scans, features) -> None:
    real, standard = features["real"], feature_scale(features["real"])
    describe = RandomConvolutions()
    blurred = np.stack([
        describe(altered(s, lambda v: ndimage.gaussian_filter(v, (0, 1, 1, 1))))
        for s in scans["other"]
    ])  # fmt: skip
    same = np.repeat(features["other"][:1], 8, axis=0) + 1e-9
    inside = standard(real)
    for kernel in ("polynomial", "rbf"):
        how = {"kernel": kernel, "bandwidth": standard.bandwidth}
        own = mmd2_interval(standard(features["other"]), inside, **how)
        floor = mmd2_floor(inside, halvings(len(real)), **how)
        assert own.low < 0 < own.high or own.value < floor["high"]
        assert abs(floor["mean"]) < floor["high"]
        for far in (blurred, features["B"], same):
            distance = mmd2_interval(standard(far), inside, **how)
            assert distance.low > max(own.value, floor["high"])


def test_fid_compares_equally_many_or_says_why_not(features) -> None:
    real, standard = features["real"], feature_scale(features["real"])
    found = frechet(features["B"], real, standard)
    assert found["cases"] == len(real) // 2
    assert found["value"] > 2 * found["real"]
    kin = frechet(features["other"], real, standard)
    # The bias of small samples is in both: that of kin is near the floor, far from nothing.
    assert kin["value"] == pytest.approx(kin["real"], rel=0.35)
    one, two = standard(real[:6]), standard(real[6:])
    assert kin["real"] == pytest.approx(frechet_distance(one, two), rel=0.3)
    assert "5 made cases" in frechet(features["B"][:5], real, standard)["left_out"]


def test_pair_similarity_is_ms_ssim_of_centred_brains() -> None:
    """`ms_ssim_3d` itself is compared with MONAI's in test_distribution.py."""
    rng = np.random.default_rng(0)
    shapes = ((2, 44, 46, 44), (2, 46, 44, 44))
    a, b = (ndimage.gaussian_filter(rng.random(n), (0, 1, 1, 1)).astype("f") for n in shapes)
    found = pair_similarity(a, b)
    wide, deep = np.zeros((2, 2, 46, 46, 44), np.float32)
    wide[:, 1:-1], deep[:, :, 1:-1] = a, b
    for c in range(2):
        expected = ms_ssim_3d(wide[c], deep[c], data_range=1.0, scales=3)
        assert found[c] == pytest.approx(expected, rel=1e-12)


def test_too_few_or_equal_real_cases_are_refused(features) -> None:
    with pytest.raises(SynthError, match="3 real cases cannot tell"):
        feature_scale(features["real"][:3])
    with pytest.raises(SynthError, match="most real cases are the same"):
        feature_scale(np.ones((6, 4)))
