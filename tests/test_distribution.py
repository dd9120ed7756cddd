"""Set distances against MONAI, scipy and closed forms; features against their meaning."""

import numpy as np
import pytest
import scipy.linalg
from scipy import ndimage

from synth.base.errors import SynthError
from synth.metrics.distribution import frechet_distance, mmd2, ms_ssim_3d, volume_features


def texture(seed: int, shape: tuple[int, ...], smooth: float = 1.5) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return np.clip(0.5 + 0.2 * field / field.std(), 0, 1)


def head(seed: int, smooth: float = 1.5, shape: tuple[int, int, int] = (40, 44, 36)) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return np.where((grid**2).sum(0) < 0.7, 0.1 + texture(seed, shape, smooth), 0)


@pytest.mark.parametrize(
    ("scales", "shape"), [(1, (24, 20, 17)), (2, (48, 44, 41)), (3, (51, 48, 60))]
)
def test_ms_ssim_equals_monai(scales: int, shape: tuple[int, ...]) -> None:
    import torch
    from monai.metrics import MultiScaleSSIMMetric

    from synth.metrics.distribution import WANG_WEIGHTS

    weights = np.array(WANG_WEIGHTS[:scales]) / sum(WANG_WEIGHTS[:scales])
    a = texture(0, shape)
    b = np.clip(a + 0.1 * np.random.default_rng(1).normal(size=shape), 0, 1)
    oracle = MultiScaleSSIMMetric(spatial_dims=3, data_range=1.0, weights=weights.tolist())
    pair = (torch.tensor(v, dtype=torch.float32)[None, None] for v in (a, b))
    expected = float(oracle(*pair).mean())
    # MONAI computes in float32, where E[x²] - E[x]² loses digits.
    assert ms_ssim_3d(a, b, data_range=1.0, scales=scales) == pytest.approx(expected, abs=1e-5)


def test_ms_ssim_of_itself_is_one_and_it_is_symmetric() -> None:
    a, b = texture(0, (48,) * 3), texture(1, (48,) * 3)
    assert ms_ssim_3d(a, a, data_range=1) == pytest.approx(1, abs=1e-12)
    assert ms_ssim_3d(a, b, data_range=1) == pytest.approx(ms_ssim_3d(b, a, data_range=1))
    noisier = [a + s * np.random.default_rng(2).normal(size=a.shape) for s in (0.02, 0.1, 0.4)]
    scores = [ms_ssim_3d(a, n, data_range=1) for n in noisier]
    assert scores == sorted(scores, reverse=True)


def brute_force_mmd2(x: np.ndarray, y: np.ndarray, kernel) -> float:
    n, m = len(x), len(y)
    same_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    same_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    cross = sum(kernel(p, q) for p in x for q in y)
    return same_x / (n * (n - 1)) + same_y / (m * (m - 1)) - 2 * cross / (n * m)


def test_mmd_equals_the_double_sum() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.normal(1, 1, size=(5, 4))
    cubic = brute_force_mmd2(x, y, lambda p, q: (p @ q / 4 + 1) ** 3)
    assert mmd2(x, y, kernel="polynomial") == pytest.approx(cubic, rel=1e-12)
    pooled = np.concatenate((x, y))
    distances = [np.linalg.norm(p - q) for i, p in enumerate(pooled) for q in pooled[:i]]
    for bandwidth in (None, 0.7):
        sigma = np.median(distances) if bandwidth is None else bandwidth

        def bell(p: np.ndarray, q: np.ndarray, sigma: float = sigma) -> float:
            return np.exp(-((p - q) ** 2).sum() / (2 * sigma**2))

        expected = brute_force_mmd2(x, y, bell)
        assert mmd2(x, y, bandwidth=bandwidth) == pytest.approx(expected, rel=1e-12)


def test_mmd_is_unbiased_for_gaussians() -> None:
    """N(0, 1) against N(δ, 1), RBF of width s: E k = s/√(s²+2) exp(-δ²/(2(s²+2)))."""
    rng = np.random.default_rng(0)
    delta, s = 0.8, 1.0
    peak = s / np.sqrt(s**2 + 2)
    expected = 2 * peak * (1 - np.exp(-(delta**2) / (2 * (s**2 + 2))))
    few = [
        mmd2(rng.normal(size=(4, 1)), rng.normal(delta, 1, size=(4, 1)), bandwidth=s)
        for _ in range(3000)
    ]
    error = np.std(few) / np.sqrt(len(few))
    assert abs(np.mean(few) - expected) < 4 * error
    assert min(few) < 0  # a biased estimate never is


@pytest.mark.parametrize(("n", "m", "d"), [(60, 50, 6), (200, 30, 3)])
def test_frechet_equals_the_matrix_square_root(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    y = 1 + rng.normal(size=(m, d)) @ rng.normal(size=(d, d))
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_frechet_closed_forms() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(8, 40))  # fewer volumes than features
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * 40)
    # Scaling about the mean: tr(C + c²C - 2cC) = (c - 1)² tr C.
    scaled = x.mean(0) + 3 * (x - x.mean(0))
    assert frechet_distance(x, scaled) == pytest.approx(4 * x.var(0, ddof=1).sum())
    # One dimension: (μ - ν)² + (σ - τ)².
    p, q = rng.normal(size=(50, 1)), rng.normal(2, 3, size=(70, 1))
    expected = (p.mean() - q.mean()) ** 2 + (p.std(ddof=1) - q.std(ddof=1)) ** 2
    assert frechet_distance(p, q) == pytest.approx(expected)


def test_features_are_deterministic_and_blind_to_the_unit_and_the_margin() -> None:
    volume = head(0)
    features = volume_features(volume)
    assert features.shape == (9 + 27 + 4 * 7 * 2,)
    np.testing.assert_array_equal(features, volume_features(volume.copy()))
    np.testing.assert_allclose(volume_features(volume * 731), features, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(
        volume_features(np.pad(volume, ((3, 5), (0, 2), (7, 1)))), features
    )
    pair = volume_features(np.stack((volume, head(1))))
    np.testing.assert_array_equal(pair, np.concatenate((features, volume_features(head(1)))))


def test_features_mean_what_they_say() -> None:
    shape = (30, 33, 36)
    ramp = np.broadcast_to(np.linspace(1, 2, 36), shape).copy()
    features = volume_features(ramp)
    deciles, layout = features[:9], features[9:36].reshape(3, 3, 3)
    # Grey values spread evenly; 36 of them, scaled at the extreme percentiles.
    np.testing.assert_allclose(deciles, np.linspace(0.1, 0.9, 9), atol=1 / 36)
    np.testing.assert_allclose(layout[0, 0], [1 / 6, 1 / 2, 5 / 6], atol=1 / 36)
    np.testing.assert_allclose(layout, np.broadcast_to(layout[0, 0], (3, 3, 3)), atol=1e-12)
    assert layout.mean() == pytest.approx(deciles.mean(), abs=1e-2)
    noise = np.random.default_rng(0).normal(10, 1, size=(48, 48, 48))
    spread = volume_features(noise)[36:][1:14:2]  # finest level, std over mean magnitude
    # √(π/2) for a Gaussian; 14 k coefficients a band, and 1 % of the voxels are clipped.
    np.testing.assert_allclose(spread, np.sqrt(np.pi / 2), rtol=0.03)


def test_set_distances_rank_a_blurred_set_behind_a_fresh_one() -> None:
    sets = {
        "reference": [head(s) for s in range(10)],
        "fresh": [head(s) for s in range(10, 20)],
        "smooth": [head(s, smooth=2.0) for s in range(20, 30)],
    }
    f = {name: np.stack([volume_features(v) for v in volumes]) for name, volumes in sets.items()}
    for distance in (mmd2, frechet_distance):
        assert distance(f["reference"], f["fresh"]) < distance(f["reference"], f["smooth"]) / 3


def test_refusals() -> None:
    x = np.zeros((3, 4))
    with pytest.raises(SynthError, match="2 volumes or more"):
        frechet_distance(x, x[:1])
    with pytest.raises(SynthError, match="NaN or Inf"):
        mmd2(x, x * np.nan)
    with pytest.raises(SynthError, match="bandwidth is 0"):
        mmd2(x, x)
    with pytest.raises(SynthError, match="unknown kernel"):
        mmd2(x, x, kernel="linear")
    with pytest.raises(SynthError, match="each side 44 or more"):
        ms_ssim_3d(np.zeros((40,) * 3), np.zeros((40,) * 3), data_range=1)
    with pytest.raises(SynthError, match="out of range"):
        ms_ssim_3d(np.zeros((40,) * 3), np.zeros((40,) * 3), data_range=0)
    with pytest.raises(SynthError, match="no contrast"):
        volume_features(np.zeros((20, 20, 20)))
    with pytest.raises(SynthError, match="one volume at a time"):
        volume_features(np.zeros((20, 20)))
