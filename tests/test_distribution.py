"""Set distances against MONAI, scipy, double sums and closed forms."""

import numpy as np
import pytest
import scipy.linalg
from scipy import ndimage

from synth.base.errors import SynthError
from synth.metrics.distribution import (
    frechet_distance,
    halvings,
    mmd2,
    mmd2_floor,
    mmd2_interval,
    ms_ssim_3d,
    weighted_mmd2,
)


def texture(seed: int, shape: tuple[int, ...], smooth: float = 1.5) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return np.clip(0.5 + 0.2 * field / field.std(), 0, 1)


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


def test_a_resample_leaves_out_the_pairs_of_a_case_with_itself() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3))
    gram = np.exp(x @ x.T)
    picks, others = [0, 0, 1, 2], [3, 4, 4]
    u, v = (np.bincount(p, minlength=5)[None].astype(float) for p in (picks, others))

    def within(items: list[int]) -> float:
        return float(np.mean([gram[i, j] for i in items for j in items if i != j]))

    across = np.mean([gram[i, j] for i in picks for j in others])
    expected = within(picks) + within(others) - 2 * across
    assert weighted_mmd2(gram, u, v)[0] == pytest.approx(expected, rel=1e-12)


def test_equal_distributions_are_zero_within_the_interval_and_others_are_not() -> None:
    rng = np.random.default_rng(1)
    covered, shifted, values = 0, 0, []
    for seed in range(40):
        x, y = rng.normal(size=(14, 20)), rng.normal(size=(16, 20))
        found = mmd2_interval(x, y, kernel="polynomial", seed=seed)
        values.append(found.value)
        covered += found.low <= 0 <= found.high
        shifted += mmd2_interval(x + 1, y, kernel="polynomial", seed=seed).low > 0
    # Nominally 95 %; 34 of 40 has a chance below 2 % to be missed at that rate.
    assert covered >= 34
    assert shifted == 40
    # Unbiased: the mean of 40 is within three of its standard errors of nothing.
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5


def test_halves_are_dealt_evenly_and_are_nothing_apart_on_average() -> None:
    halves = halvings(9)
    assert (halves.sum(axis=1) == 4).all()
    assert halves.mean(axis=0) == pytest.approx([4 / 9] * 9, abs=0.15)  # four sd of 200 deals
    x = np.random.default_rng(0).normal(size=(9, 3))
    each = [mmd2(x[half], x[~half], bandwidth=1.0) for half in halves]
    found = mmd2_floor(x, halves, bandwidth=1.0)
    assert found["mean"] == pytest.approx(np.mean(each), rel=1e-9)
    assert found["high"] == pytest.approx(np.quantile(each, 0.95), rel=1e-9)
    assert abs(found["mean"]) < 0.1


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
