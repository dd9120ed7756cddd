"""The two spaces a model can work in: one small strategy object each.

A space says what is diffused (the *state*), what the network sees of the label map, and how an
image comes back. Training and sampling use the same object, so they cannot differ. Images are
(B, 4, X, Y, Z) with axes to the right, anterior and superior, background -1; the *head* is where
brain and tumour are, (B, 1, X, Y, Z).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ddpm_lora.atlas import placed
from ddpm_lora.config import BANDS, Config
from synth.wavelet import dwt3, idwt3

BACKGROUND = -1.0
MEAN, SPREAD, ATLAS = "band_mean", "band_spread", "atlas"  # buffers of a wavelet network
LEAST_SPREAD = 1e-3  # of a band that is nearly empty; noise must not be blown up to unit size


class Space(Protocol):
    """What a space must answer."""

    def state(self, image: Tensor, head: Tensor) -> Tensor:
        """Return what is diffused of an image."""
        ...

    def image(self, state: Tensor, head: Tensor) -> Tensor:
        """Undo `state`."""
        ...

    def difference(self, error: Tensor) -> Tensor:
        """Return a difference of two states as a difference of images."""
        ...

    def condition(self, planes: Tensor) -> Tensor:
        """Return what the network sees of (B, 4, X, Y, Z) label planes."""
        ...

    def weights(self, voxels: Tensor) -> Tensor:
        """Return voxel weights (B, 1, X, Y, Z) on the state's grid, their mean kept."""
        ...


def space_of(config: Config, network: nn.Module) -> Space:
    """Return the space a configuration names; a wavelet network carries its bands' statistics."""
    if config.space == "pixel":
        return Pixel()
    own = dict(network.named_buffers())
    found = {n: [v for k, v in own.items() if k.endswith(n)] for n in (MEAN, SPREAD, ATLAS)}
    return Wavelet(found[MEAN][0], found[SPREAD][0], found[ATLAS][0] if config.atlas else None)


@dataclass(frozen=True)
class Pixel:
    """Voxels as Med-DDPM sees them: an LPS file's array, transposed to z, y, x."""

    def state(self, image: Tensor, head: Tensor) -> Tensor:
        """The image, background and all."""
        del head
        return _laid(image)

    def image(self, state: Tensor, head: Tensor) -> Tensor:
        """Whatever was drawn, in the background too."""
        del head
        return self.difference(state)

    def difference(self, error: Tensor) -> Tensor:
        """(B, C, Z, Y, X) of LPS → (B, C, X, Y, Z) of RAS."""
        return error.permute(0, 1, 4, 3, 2).flip(2, 3)

    def condition(self, planes: Tensor) -> Tensor:
        """The planes, laid as the state is."""
        return _laid(planes)

    def weights(self, voxels: Tensor) -> Tensor:
        """The same voxels, laid as the state is."""
        return _laid(voxels)


@dataclass(frozen=True, eq=False)
class Wavelet:
    """One Haar level; each band of each contrast shifted and scaled to unit spread in the brain.

    Nearly all of the energy is in the low bands: without this, noise would drown the others, and
    the network would never see them. What is not head is known, and laid flat at the mean of the
    brain: no capacity and no noise level is spent on the edge to the background. With an atlas the
    mean is that of the place in the brain.
    """

    mean: Tensor  # (32,)
    spread: Tensor  # (32,)
    atlas: Tensor | None = None  # (4, G, G, G) over the box of the head

    def state(self, image: Tensor, head: Tensor) -> Tensor:
        """(B, 4, X, Y, Z) → (B, 32, X/2, Y/2, Z/2), whitened; 0 in the background."""
        return dwt3(torch.where(head, image - self._usual(head), 0.0)) / _column(self.spread)

    def image(self, state: Tensor, head: Tensor) -> Tensor:
        """Undo the whitening and the transform; the background is background."""
        return torch.where(head, self.difference(state) + self._usual(head), BACKGROUND)

    def _usual(self, head: Tensor) -> Tensor:
        """The mean brain under this head, or the mean of all brain."""
        if self.atlas is not None:
            return placed(self.atlas, head)
        return _column(self.mean[::BANDS] / math.sqrt(BANDS))  # of each contrast

    def difference(self, error: Tensor) -> Tensor:
        """Means cancel."""
        return idwt3(error * _column(self.spread))

    def condition(self, planes: Tensor) -> Tensor:
        """Bands of the label planes (B, 4, …) → (B, 32, …/2): low bands are shares of a block.

        With an atlas its bands follow, (B, 64, …/2).
        """
        if self.atlas is not None:
            planes = torch.cat([planes, self._usual(planes.sum(1, keepdim=True) > 0)], dim=1)
        return dwt3(planes) / math.sqrt(BANDS)

    def weights(self, voxels: Tensor) -> Tensor:
        """The mean weight of each block."""
        return F.avg_pool3d(voxels, 2)


def clamped(state: Tensor, head: Tensor, space: Space, ceiling: float) -> Tensor:
    """Keep a clean state within intensities: -1 (background) to the ceiling, as an image."""
    return space.state(space.image(state, head).clamp(BACKGROUND, ceiling), head)


class BandStatistics:
    """Mean and spread of each band inside the brain, over a cohort."""

    def __init__(self, atlas: Tensor | None = None) -> None:
        self.atlas = atlas
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, image: Tensor, brain: Tensor) -> None:
        """Take in one case: image (4, X, Y, Z), brain (X, Y, Z) bool."""
        if self.atlas is not None:
            image = image - placed(self.atlas, brain[None, None])[0]
        bands = dwt3(image[None].double())[0]  # (32, X/2, Y/2, Z/2)
        inside = F.avg_pool3d(brain[None].double(), 2)[0] == 1
        values = bands[:, inside]  # (32, N)
        self.count += values.shape[1]
        self.total = self.total + values.sum(1)
        self.squares = self.squares + values.square().sum(1)

    def store(self, network: nn.Module) -> None:
        """Write the statistics into a network's buffers."""
        mean = self.total / max(self.count, 1)
        mean[torch.arange(len(mean)) % BANDS > 0] = 0  # differences: a flat image has none
        spread = (self.squares / max(self.count, 1) - mean.square()).clamp(min=0).sqrt()
        network.get_buffer(MEAN).copy_(mean)
        network.get_buffer(SPREAD).copy_(spread.clamp(min=LEAST_SPREAD))


def _laid(image: Tensor) -> Tensor:
    """(B, C, X, Y, Z) of RAS → (B, C, Z, Y, X) of LPS."""
    return image.flip(2, 3).permute(0, 1, 4, 3, 2)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
