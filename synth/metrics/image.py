"""Image metrics inside a mask: the nine of the BraTS inpainting challenge.

The challenge scores a filled brain with its `inpainting` package. This module computes the same
nine numbers to the last bit from their definitions, slice by slice around the hole instead of on
the whole volume, which is what makes it fast. Everything the definition says about precision
matters for that: percentiles, images and SSIM are float64; sums of errors are rounded to float32
before they are divided.

- Intensities are scaled by percentiles 0.5 and 99.5 of the *voided* volume, background included.
- SSIM (Wang et al. 2004) is two-dimensional, on (y, z) slices, with an 11 × 11 Gaussian window.
  Outside the hole both images are 0, so a small hole earns SSIM for nothing: compare SSIM only
  between holes of one size and grids of one resolution.
- `psnr` takes its range from the truth inside the hole, `psnr_01` takes 1; both clamp to their
  range, their `_eps` variants do not, and add 2.2e-16 to the error instead.

What is not finite stays so: a perfect answer has `psnr` = `psnr_01` = inf; a truth that is
constant in the hole has `psnr` = nan and `psnr_eps` = -inf; where truth and prediction are both 0
all over the hole `ssim` is nan.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np

from synth.base.errors import SynthError

if TYPE_CHECKING:
    import torch

METRICS = ("ssim", "mse", "rmse", "msle", "mae", "psnr", "psnr_eps", "psnr_01", "psnr_01_eps")
"""Keys of `inpainting_metrics`, in the order of the official report."""

PERCENTILES = (0.5, 99.5)
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # int(3.5 σ + 0.5): an 11 × 11 window
SSIM_K1, SSIM_K2 = 0.01, 0.03


def inpainting_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    voided: np.ndarray | tuple[float, float],
    healthy_mask: np.ndarray,
) -> dict[str, float]:
    """Score a filled hole as the BraTS inpainting challenge does; keys are `METRICS`.

    All four are (X, Y, Z), axes as in the NIfTI file, since SSIM slices along the first one.
    `voided` is the scan with the hole set to 0, as the model saw it, or its `intensity_window`
    where only a part is at hand; `healthy_mask` is the hole where the truth is known. What the
    prediction holds outside the mask never counts.
    """
    mask = np.asarray(healthy_mask)
    _check(prediction, truth, mask, voided=voided)
    mask = mask.astype(bool)
    low, high = voided if isinstance(voided, tuple) else intensity_window(voided)
    box = _hole(mask)
    inside = mask[box]
    p = _scale(np.asarray(prediction)[box], inside, low, high, "prediction")
    t = _scale(np.asarray(truth)[box], inside, low, high, "truth")
    return _nine_numbers(p, t, inside, mask.shape)


def intensity_window(voided: np.ndarray) -> tuple[float, float]:
    """Return the intensities that become 0 and 1: percentiles of the whole voided volume."""
    # float32 first: the challenge reads its files so, and a percentile interpolates.
    low, high = np.percentile(np.asarray(voided, np.float32), PERCENTILES)
    if not np.isfinite((low, high)).all():
        raise SynthError("the voided scan holds NaN or Inf", hint="replace them by 0 and retry")
    low, high = max(float(low), 0.0), float(high)
    if not high > low:
        raise SynthError(
            f"the voided scan has no contrast: percentiles {PERCENTILES} are {low:g} and {high:g}",
            hint="pass the scan with the hole removed, not the mask or an empty volume",
        )
    return low, high


def _check(
    prediction: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray,
    *,
    voided: np.ndarray | tuple[float, float],
) -> None:
    whole = mask if isinstance(voided, tuple) else voided
    for name, array in (("prediction", prediction), ("truth", truth), ("voided scan", whole)):
        if np.shape(array) != mask.shape:
            raise SynthError(
                f"{name} and healthy mask differ in shape: {np.shape(array)} vs {mask.shape}",
                hint="all four volumes must be on one grid; resample the odd one",
            )
    if mask.ndim != 3 or min(mask.shape[1:]) <= SSIM_RADIUS:
        raise SynthError(
            f"expected volumes (X, Y, Z) with Y and Z above {SSIM_RADIUS}, got {mask.shape}",
            hint="drop channel axes; the SSIM window does not fit a smaller volume",
        )
    if not mask.any():
        raise SynthError(
            "the healthy mask is empty: there is nothing to score",
            hint="pass mask-healthy (not mask-unhealthy) of this case, or leave the case out",
        )


def _hole(mask: np.ndarray) -> tuple[np.ndarray, slice, slice]:
    """Index x slices that hold mask voxels, and their (y, z) box with room for SSIM's window."""
    rows = np.flatnonzero(mask.any(axis=(1, 2)))
    plane = np.asarray(mask.any(axis=0))
    room = SSIM_RADIUS + 1  # a box may grow by one, see `_whole_or_even`
    spans = (_span(np.asarray(plane.any(axis=1 - axis))) for axis in (0, 1))
    y, z = (slice(max(s.start - room, 0), s.stop + room) for s in spans)
    return rows, y, z


def _span(hit: np.ndarray) -> slice:
    """Return from the first to the last place where `hit` is true."""
    where = np.flatnonzero(hit)
    return slice(int(where[0]), int(where[-1]) + 1)


def _scale(image: np.ndarray, inside: np.ndarray, low: float, high: float, name: str) -> np.ndarray:
    """Map the window to [0, 1]; everything outside the mask becomes the image of 0, which is 0."""
    image = np.where(inside, image, 0).astype(np.float32)
    if not np.isfinite(image).all():
        raise SynthError(
            f"the {name} holds NaN or Inf inside the healthy mask",
            hint="look at the generated volume: training may have diverged",
        )
    return (np.clip(image.astype(np.float64), low, high) - low) / (high - low)


def _nine_numbers(
    p: np.ndarray, t: np.ndarray, inside: np.ndarray, shape: tuple[int, ...]
) -> dict[str, float]:
    # torch, not numpy: the last bit depends on the order of summation and on whose log it is.
    import torch

    selected = torch.from_numpy(inside)
    prediction, truth = torch.from_numpy(p), torch.from_numpy(t)
    ssim = _ssim_inside(prediction, truth, inside, shape).mean()
    prediction, truth = prediction[selected], truth[selected]  # (voxels in the hole,)
    mse = _mean(torch.square(prediction - truth))
    low, high = truth.min(), truth.max()
    values = {
        "ssim": ssim,
        "mse": mse,
        "rmse": torch.sqrt(mse),
        "msle": _mean(torch.square(torch.log1p(prediction) - torch.log1p(truth))),
        "mae": _mean(torch.abs(prediction - truth)),
        "psnr": _psnr(prediction, truth, low, high),
        "psnr_eps": 10.0 * torch.log10(torch.square(high - low) / (mse + sys.float_info.epsilon)),
        "psnr_01": _psnr(prediction, truth, torch.tensor(0.0), torch.tensor(1.0)),
        "psnr_01_eps": 10.0 * torch.log10(1 / (mse + sys.float_info.epsilon)),
    }
    return {name: float(values[name]) for name in METRICS}


def _mean(errors: torch.Tensor) -> torch.Tensor:
    """Mean with a float64 sum that is kept as float32, as torchmetrics keeps its state."""
    return errors.sum().float() / errors.numel()


def _psnr(
    prediction: torch.Tensor, truth: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of values clamped to [low, high]."""
    import torch

    mse = _mean(torch.square(prediction.clamp(low, high) - truth.clamp(low, high)))
    decibels_per_neper = 10 / torch.log(torch.tensor(10.0))
    return (2 * torch.log(high - low) - torch.log(mse)) * decibels_per_neper


def _ssim_inside(
    p: torch.Tensor, t: torch.Tensor, inside: np.ndarray, shape: tuple[int, ...]
) -> torch.Tensor:
    """SSIM of the voxels inside, each from its (y, z) neighbourhood, eq. 13 of Wang et al. 2004.

    One slice after the other, on the smallest rectangle that holds the slice's voxels: only there
    windows are summed. `shape` is that of the whole volume.
    """
    import torch

    moments = torch.stack((p, t, p * p, t * t, p * t), dim=1)  # (X, 5, y, z)
    found = []
    for planes, wanted in zip(moments, inside, strict=True):
        y, z = _whole_or_even(
            _span(wanted.any(axis=1)), _span(wanted.any(axis=0)), wanted.shape, shape[1:]
        )
        rows, columns = (_reflected(s, n) for s, n in zip((y, z), wanted.shape, strict=True))
        room = planes[:, rows][:, :, columns]
        # Not two 1-D passes: they would round differently from the official 2-D window.
        means = torch.nn.functional.conv2d(room[:, None], _window())[:, 0]
        found.append(means[:, torch.from_numpy(wanted[y, z])])
    mean_p, mean_t, mean_pp, mean_tt, mean_pt = torch.cat(found, dim=1)  # (voxels inside,) each

    # The range is that of the whole volume, which is 0 outside the mask.
    covers_all = inside.size == inside.sum() == math.prod(shape)
    floor = [image.min() if covers_all else torch.zeros_like(image.min()) for image in (p, t)]
    extent = torch.maximum(p.max() - floor[0], t.max() - floor[1])
    c1, c2 = torch.square(SSIM_K1 * extent), torch.square(SSIM_K2 * extent)

    var_p = (mean_pp - mean_p * mean_p).clamp(min=0)
    var_t = (mean_tt - mean_t * mean_t).clamp(min=0)
    covariance = mean_pt - mean_p * mean_t
    above = (2 * (mean_p * mean_t) + c1) * (2 * covariance + c2)
    below = (mean_p * mean_p + mean_t * mean_t + c1) * (var_p + var_t + c2)
    return above / below


def _whole_or_even(
    y: slice, z: slice, box: tuple[int, ...], grid: tuple[int, ...]
) -> tuple[slice, slice]:
    """Grow a rectangle by a line where its first pixel would be summed in another order.

    torch's float64 convolution (MKL) does so in planes with an odd number of pixels. Ours has an
    even one, therefore, unless its first pixel is that of an odd plane.
    """
    first = y.start == z.start == 0
    if first and grid[0] % 2 and grid[1] % 2:
        return slice(0, y.stop + 1 - y.stop % 2), slice(0, z.stop + 1 - z.stop % 2)
    if (y.stop - y.start) % 2 == 0 or (z.stop - z.start) % 2 == 0:
        return y, z
    if y.stop - y.start < box[0]:
        return _grown(y, box[0]), z
    return y, _grown(z, box[1])


def _grown(span: slice, limit: int) -> slice:
    if span.stop < limit:
        return slice(span.start, span.stop + 1)
    return slice(span.start - 1, span.stop)


def _reflected(span: slice, length: int) -> torch.Tensor:
    """Return the places that the windows of a span see, mirrored at the volume's border."""
    import torch

    places = torch.arange(span.start - SSIM_RADIUS, span.stop + SSIM_RADIUS).abs()
    return torch.minimum(places, 2 * (length - 1) - places)


def _window() -> torch.Tensor:
    """The 11 × 11 Gaussian of SSIM, summing to 1, as a convolution kernel."""
    import torch

    offset = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=torch.float64)
    bell = torch.exp(-torch.square(offset / SSIM_SIGMA) / 2)
    bell = bell / bell.sum()
    return torch.outer(bell, bell)[None, None]  # (1, 1, 11, 11)
