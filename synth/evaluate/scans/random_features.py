"""Features from random 3-D convolutions with fixed seeds.

Random convolutions with pooled statistics tell textures apart nearly as well as trained ones
(Ustyuzhaninov et al., "What does it take to generate natural textures?", 2017), and unlike a
network that was trained on photographs they see all four contrasts and three dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from synth.base.seeding import generator
from synth.data.case import MODALITIES
from synth.evaluate.scans.scan_case import Scans

WIDTH = 32
SCALES = 3
SEED = 0
QUARTILES = (25, 50, 75)
RANGE = (-3.0, 5.0)


class RandomConvolutions:
    """Two random layers at three scales; mean and standard deviation of each map in the brain.

    Half of the first filters have no sum: they see edges and texture, not grey values.
    """

    name = f"random convolutions, seed {SEED}"

    def __init__(self, seed: int = SEED) -> None:
        draw = generator("random convolutions", seed)
        first = torch.randn(SCALES, WIDTH, len(MODALITIES), 3, 3, 3, generator=draw)
        half = first[:, ::2]
        half -= half.mean(dim=(2, 3, 4, 5), keepdim=True)
        second = torch.randn(SCALES, WIDTH, WIDTH, 3, 3, 3, generator=draw)
        self.layers = [
            tuple(w / w[0].numel() ** 0.5 for w in pair) for pair in zip(first, second, strict=True)
        ]

    @torch.no_grad()
    def __call__(self, scans: Scans) -> np.ndarray:  # (3 scales · 2 layers · 2 · 32,)
        """Describe a case."""
        image = torch.from_numpy(standardised(scans.image, scans.brain))[None]
        brain = torch.from_numpy(scans.brain)[None, None].float()
        numbers = []
        for first, second in self.layers:
            maps = F.relu(F.conv3d(image, first, padding=1))
            numbers.append(pooled(maps, brain))
            maps = F.relu(F.conv3d(maps, second, stride=2, padding=1))
            share = F.avg_pool3d(brain, 2)
            numbers.append(pooled(maps, share))
            # Tissue is averaged with tissue, never with the background.
            image = F.avg_pool3d(image * brain, 2) / share.clamp(min=1e-6)
            brain = share
        return torch.cat(numbers).numpy().astype(np.float64)


def standardised(image: np.ndarray, brain: np.ndarray) -> np.ndarray:  # (C, X, Y, Z), (X, Y, Z)
    """Return (x - median) / interquartile range of each contrast in the brain, 0 outside.

    Neither end of the scale hangs on the tumour, whose size would otherwise move every feature.
    """
    result = np.zeros(image.shape, np.float32)
    for channel, out in zip(image, result, strict=True):
        low, middle, high = np.percentile(channel[brain], QUARTILES)
        out[brain] = np.clip((channel[brain] - middle) / max(high - low, 1e-6), *RANGE)
    return result


def pooled(maps: Tensor, weight: Tensor) -> Tensor:  # (1, C, X, Y, Z), (1, 1, X, Y, Z) → (2 C,)
    """Weighted mean and standard deviation of every map over space."""
    share = weight / weight.sum().clamp(min=1e-6)
    mean = (maps * share).sum(dim=(0, 2, 3, 4))
    spread = ((maps - mean.view(1, -1, 1, 1, 1)).square() * share).sum(dim=(0, 2, 3, 4))
    return torch.cat((mean, spread.clamp(min=0).sqrt()))
