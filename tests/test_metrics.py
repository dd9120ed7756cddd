"""The nine challenge numbers against the official `inpainting` package, with tolerance zero."""

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from synth.base.errors import SynthError
from synth.metrics import image
from synth.metrics.image import METRICS, inpainting_metrics, intensity_window
from synth.metrics.ssim_loss import ssim_map

FULL = (240, 240, 155)
SMALL = (40, 48, 36)
KINDS = ("noisy", "mean", "perfect", "constant")


def brain(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """An ellipsoid of smooth whole-number tissue on a background of 0, as skull-stripped T1."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    texture = gaussian_filter(rng.normal(size=shape).astype(np.float32), 2)
    tissue = 700 + 250 * texture / texture.std() + rng.normal(scale=30, size=shape)
    return np.where((grid**2).sum(0) < 0.7, np.rint(tissue).clip(1), 0).astype(np.float32)


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    """A ball whose centre is given as fractions of the volume, so it may cross its edges."""
    middle = np.array(centre)[:, None, None, None] * np.array(shape)[:, None, None, None]
    return ((np.indices(shape) - middle) ** 2).sum(0) < radius**2


def fill(kind: str, truth: np.ndarray, mask: np.ndarray, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "noisy":
        return (truth + rng.normal(scale=120, size=truth.shape)).astype(np.float32)
    if kind == "mean":
        return np.where(mask, truth[truth > 0].mean(), truth).astype(np.float32)
    if kind == "perfect":
        return truth.copy()
    return np.full_like(truth, 5.0)


def official(
    prediction: np.ndarray, truth: np.ndarray, voided: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    module = pytest.importorskip(
        "inpainting.challenge_metrics_2023", reason="dev extra: inpainting"
    )
    import torch

    tensors = [torch.from_numpy(a.copy())[None] for a in (prediction, truth, voided, mask)]
    return module.generate_metrics(*tensors)


def assert_identical(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert tuple(ours) == tuple(theirs) == METRICS
    different = {
        name: (ours[name], theirs[name])
        for name in METRICS
        if ours[name] != theirs[name] and not (np.isnan(ours[name]) and np.isnan(theirs[name]))
    }
    assert not different


# torchmetrics warns that it copies the tensor it is given; that is its own affair.
quiet = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")

MASKS: dict[str, Callable[[tuple[int, int, int]], np.ndarray]] = {
    "inside": lambda s: ball(s, (0.4, 0.5, 0.5), 8),
    "crosses the brain's edge": lambda s: ball(s, (0.5, 0.12, 0.5), 7),
    "touches the volume's corner": lambda s: ball(s, (0, 0, 0), 12),
    "touches the far corner": lambda s: ball(s, (1, 1, 1), 9),
    "two far parts": lambda s: ball(s, (0.1, 0.2, 0.2), 4) | ball(s, (0.9, 0.8, 0.9), 5),
    "one voxel": lambda s: ball(s, (0.5, 0.5, 0.5), 0.6),
    "everything": lambda s: np.ones(s, bool),
}


@quiet
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", MASKS)
def test_small_volumes_equal_official_to_the_last_bit(where: str, kind: str) -> None:
    truth, mask = brain(SMALL), MASKS[where](SMALL)
    voided, prediction = truth * ~mask, fill(kind, truth, mask)
    if where == "everything":
        voided = truth  # a hole that is the whole volume leaves nothing to take percentiles of
    ours = inpainting_metrics(prediction, truth, voided, mask)
    assert_identical(ours, official(prediction, truth, voided, mask))


def test_ssim_with_gradients_is_that_of_the_metrics():
    """The loss's map, on volumes that span [0, 1], inside the border the window reaches."""
    source = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 20, 22, generator=source, dtype=torch.float64)
    for volume in (a, b):
        volume.view(-1)[0], volume.view(-1)[-1] = 0.0, 1.0
    inside = np.ones(a.shape, bool)
    expected = image._ssim_inside(a, b, inside, (9, *a.shape[1:]))
    found = ssim_map(a[None, None], b[None, None]).flatten()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(ssim_map(a[None, None], b[None, None]).mean(), a)
    assert gradient.abs().min() > 0


@quiet
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(6, 30), st.integers(6, 30)),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.0005, 0.9),
    smooth=st.sampled_from([0, 1, 3]),
    kind=st.sampled_from(KINDS),
)
def test_any_shape_and_mask_equals_official(
    shape: tuple[int, int, int], seed: int, share: float, smooth: float, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    truth = np.rint(1000 * rng.random(shape)).astype(np.float32)
    noise = gaussian_filter(rng.random(shape), smooth)
    mask = noise >= np.quantile(noise, 1 - share)
    # Percentiles of an untouched copy: a large random hole would leave none.
    prediction = fill(kind, truth, mask, seed)
    ours = inpainting_metrics(prediction, truth, truth, mask)
    assert_identical(ours, official(prediction, truth, truth, mask))


@quiet
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "where"),
    [("noisy", (0.45, 0.4, 0.5)), ("mean", (0.3, 0.15, 0.5)), ("perfect", (0.6, 0.5, 0.9))],
    ids=["noisy", "mean", "perfect"],
)
def test_full_size_equals_official_and_is_50_times_faster(
    kind: str, where: tuple[float, float, float]
) -> None:
    truth, mask = brain(FULL, 3), ball(FULL, where, 20)
    voided, prediction = truth * ~mask, fill(kind, truth, mask)
    seconds = []  # of the processor, so that a busy machine does not fail the test
    for _ in range(3):
        start = time.process_time()
        ours = inpainting_metrics(prediction, truth, voided, mask)
        seconds.append(time.process_time() - start)
    start = time.process_time()
    theirs = official(prediction, truth, voided, mask)
    assert_identical(ours, theirs)
    assert (time.process_time() - start) / min(seconds) > 50


def test_perfect_prediction() -> None:
    truth, mask = brain(SMALL), MASKS["inside"](SMALL)
    got = inpainting_metrics(truth, truth, truth * ~mask, mask)
    assert got["ssim"] == pytest.approx(1, abs=1e-12)  # windows round at the last bits
    assert got["mse"] == got["rmse"] == got["mae"] == got["msle"] == 0
    assert got["psnr"] == got["psnr_01"] == np.inf
    # No clamp and eps instead of 0: 10 log10(1 / 2.22e-16), held as float32.
    assert got["psnr_01_eps"] == pytest.approx(156.536, abs=1e-3)
    assert np.isfinite(got["psnr_eps"])


def test_hole_in_the_background() -> None:
    truth = brain(SMALL)
    mask = ball(SMALL, (0, 0, 0), 4)
    empty = inpainting_metrics(truth, truth, truth, mask)
    assert np.isnan(empty["ssim"])
    assert np.isnan(empty["psnr"])
    assert empty["psnr_eps"] == -np.inf
    assert empty["psnr_01"] == np.inf
    wrong = inpainting_metrics(truth + 500, truth, truth, mask)
    assert wrong["mse"] > 0
    assert np.isfinite(wrong["ssim"])


def test_errors_have_their_textbook_values() -> None:
    """Constant error e inside the hole: mse e², rmse = mae = e, psnr_01 -20 log10 e."""
    shape = (20, 20, 20)
    truth = np.zeros(shape, np.float32)
    truth[5:15] = 1000
    mask = np.zeros(shape, bool)
    mask[7:12, 7:12, 7:12] = True
    got = inpainting_metrics(np.full(shape, 750, np.float32), truth, truth * ~mask, mask)
    assert got["mse"] == pytest.approx(0.0625)
    assert got["rmse"] == got["mae"] == pytest.approx(0.25)
    assert got["msle"] == pytest.approx((np.log(2) - np.log(1.75)) ** 2)
    assert got["psnr_01"] == pytest.approx(-20 * np.log10(0.25))


def test_what_lies_outside_the_mask_never_counts() -> None:
    truth, mask = brain(SMALL), MASKS["inside"](SMALL)
    prediction = fill("noisy", truth, mask)
    elsewhere = np.where(mask, prediction, np.nan)
    expected = inpainting_metrics(prediction, truth, truth * ~mask, mask)
    assert inpainting_metrics(elsewhere, truth, truth * ~mask, mask) == expected


def test_input_is_not_changed_and_any_dtype_counts_as_float32() -> None:
    truth, mask = brain(SMALL), MASKS["inside"](SMALL)
    prediction = fill("noisy", truth, mask)
    before = prediction.copy()
    expected = inpainting_metrics(prediction, truth, truth * ~mask, mask)
    np.testing.assert_array_equal(prediction, before)
    voided = (truth * ~mask).astype(np.int16)
    other = inpainting_metrics(
        prediction.astype(np.float64), truth.astype(np.int16), voided, mask.astype(np.uint8)
    )
    assert other == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(healthy_mask=np.zeros(SMALL, bool)), "mask is empty"),
        (lambda a: a.update(prediction=a["prediction"][1:]), "prediction and healthy mask differ"),
        (lambda a: a.update(voided=a["voided"][None]), "voided scan and healthy mask differ"),
        (lambda a: a.update(voided=np.zeros(SMALL)), "no contrast"),
        (lambda a: a.update(prediction=a["prediction"] * np.nan), "NaN or Inf inside"),
        (lambda a: a.update(voided=np.full(SMALL, np.nan)), "NaN or Inf"),
        (lambda a: a.update({k: v[:, :5] for k, v in a.items()}), "above 5"),
    ],
)
def test_refusals_name_the_fault_and_the_way_out(change: Callable, message: str) -> None:
    truth, mask = brain(SMALL), MASKS["inside"](SMALL)
    arguments = {
        "prediction": truth, "truth": truth, "voided": truth * ~mask, "healthy_mask": mask,
    }  # fmt: skip
    change(arguments)
    with pytest.raises(SynthError, match=message) as caught:
        inpainting_metrics(**arguments)
    assert caught.value.hint


def test_import_needs_no_torch() -> None:
    code = "import sys, synth.metrics.image; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_box_with_the_scans_window_scores_as_the_whole_scan() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(50, 900, size=(24, 30, 26)).astype(np.float32)
    mask = np.zeros(truth.shape, bool)
    mask[9:15, 10:18, 9:16] = True
    voided = np.where(mask, 0, truth).astype(np.float32)
    guess = truth + rng.normal(0, 60, truth.shape).astype(np.float32)
    whole = inpainting_metrics(guess, truth, voided, mask)
    box = (slice(8, 16), slice(4, 24), slice(4, 22))
    part = inpainting_metrics(guess[box], truth[box], intensity_window(voided), mask[box])
    assert part == pytest.approx(whole, rel=1e-12)
