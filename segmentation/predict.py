"""Region probabilities of a whole scan, by a sliding window.

A window of the training patch slides over the scan; its answers are averaged with a Gaussian
weight (Isensee et al. 2021), because a network knows least at the edge of what it sees. Windows
are computed one at a time: memory is the scan, two accumulators and one window.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Sequence
from itertools import combinations, product

import torch
from torch import Tensor, nn
from torch.nn import functional

from segmentation.augment import AIR
from segmentation.config import Config
from synth.data.labels import REGIONS

SIGMA = 0.125  # of the window's edge
FAINTEST = 1e-3  # of the largest weight: far from every centre, the division stays exact
FLIPS = tuple(axes for n in range(4) for axes in combinations((-3, -2, -1), n))  # all 8

Window = tuple[slice, slice, slice]


@torch.no_grad()
def probabilities(
    model: nn.Module,
    image: Tensor,
    config: Config,
    *,
    tta: bool = False,
    overlap: float = 0.5,
    device: str | torch.device | None = None,
) -> Tensor:  # (R, x, y, z) float32, on the image's device
    """Return the probability of every region (WT, TC, ET) at every voxel.

    Args:
        model: gives one tensor of logits in eval mode; it is left in the mode it came in.
        image: (C, x, y, z), prepared as in training.
        config: its patch is the window.
        tta: average the probabilities of the eight mirror images of each window.
        overlap: share of a window that its neighbour sees, too.
        device: where the model is; default where its first parameter is.
    """
    assert 0 <= overlap < 1, "a share"
    place = torch.device(device) if device is not None else _device(model, image)
    before, after = _margins(image.shape[1:], config.patch)
    pads = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    padded = functional.pad(image, pads, value=AIR)
    weight = gaussian(config.patch).to(place)  # (x, y, z) of the window
    total = torch.zeros(len(REGIONS), *padded.shape[1:], device=place)
    weights = torch.zeros(padded.shape[1:], device=place)
    with evaluating(model):
        for window in windows(padded.shape[1:], config.patch, overlap):
            seen = padded[:, *window].to(place)[None]  # (1, C, x, y, z)
            total[:, *window] += weight * _answer(model, seen, FLIPS if tta else FLIPS[:1])
            weights[window] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    return (total / weights)[:, *inside].to(image.device)


def windows(shape: Sequence[int], patch: Sequence[int], overlap: float = 0.5) -> Iterator[Window]:
    """Yield windows that cover the shape, equally far apart but for the last of an axis."""
    steps = [max(int(p * (1 - overlap)), 1) for p in patch]
    starts = [
        [min(k * s, n - p) for k in range(math.ceil((n - p) / s) + 1)]
        for n, p, s in zip(shape, patch, steps, strict=True)
    ]
    for corner in product(*starts):
        x, y, z = (slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        yield x, y, z


def gaussian(patch: Sequence[int]) -> Tensor:  # (x, y, z)
    """Return the weight of a window: a Gaussian of an eighth of each edge, 1 at the centre."""
    weight = torch.ones(1)
    for n in patch:
        offset = torch.arange(n) - (n - 1) / 2
        profile = torch.exp(-0.5 * (offset / (SIGMA * n)) ** 2)
        weight = weight[..., None] * profile
    weight = weight[0]
    return weight.clamp(min=FAINTEST)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Put a model into eval mode for a while; every submodule returns to its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _answer(model: nn.Module, seen: Tensor, flips: Sequence[tuple[int, ...]]) -> Tensor:
    """Return (R, x, y, z): the mean of the probabilities of mirror images, mirrored back."""
    mean = torch.zeros(len(REGIONS), *seen.shape[2:], device=seen.device)
    for axes in flips:
        logits = model(seen.flip(axes))
        mean += torch.sigmoid(logits.float()).flip(axes)[0] / len(flips)
    return mean


def _margins(shape: Sequence[int], patch: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the air needed (before, after) each axis for a window to fit."""
    lacking = [max(p - n, 0) for n, p in zip(shape, patch, strict=True)]
    before = [n // 2 for n in lacking]
    return before, [n - b for n, b in zip(lacking, before, strict=True)]


def _device(model: nn.Module, image: Tensor) -> torch.device:
    return next((p.device for p in model.parameters()), image.device)
