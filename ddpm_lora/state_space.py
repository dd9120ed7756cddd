"""The two spaces of diffusion: wavelet bands and voxels.

A space says what is diffused (the *state*), what the network sees of the label map, and how an
image comes back. Training and sampling use the same object, so they cannot differ. Images are
(B, 4, X, Y, Z) with axes to the right, anterior and superior, background -1; the *head* is where
brain and tumour are, (B, 1, X, Y, Z); the *zone* is what is to be drawn of each contrast,
(B, 4, X, Y, Z), the rest of the image being known. Without one the whole head is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ddpm_lora.config import BANDS, CONTRASTS, Config
from synth.diffusion.wavelet import dwt3, idwt3

BACKGROUND = -1.0
MEAN, SPREAD, EDGE = "band_mean", "band_spread", "edge_spread"  # buffers of a network
LEAST_SPREAD = 1e-3  # of a band that is nearly empty; noise must not be blown up to unit size


class Space(Protocol):
    """What a space must answer."""

    def state(self, image: Tensor, head: Tensor) -> Tensor:
        """Return what is diffused of an image."""
        ...

    def image(self, state: Tensor, head: Tensor) -> Tensor:
        """Undo `state`."""
        ...

    def difference(self, error: Tensor, head: Tensor) -> Tensor:
        """Return a difference of two states of one head as a difference of images."""
        ...

    def condition(self, planes: Tensor, unknown: Tensor) -> Tensor:
        """Return what the network sees of the planes, and of what is known."""
        ...

    def weights(self, voxels: Tensor) -> Tensor:
        """Return voxel weights (B, 1, X, Y, Z) on the state's grid, their mean kept."""
        ...

    def unit(self) -> Tensor | float:
        """Return the RMS of each contrast that a state of ones has as an image."""
        ...

    def unknown(self, head: Tensor, zone: Tensor | None = None) -> Tensor:
        """Return 1 where the state has to be drawn, 0 where it is known; of the state's shape."""
        ...


def space_of(config: Config, network: nn.Module) -> Space:
    """Return the space a configuration names; a wavelet network carries its bands' statistics."""
    if config.space == "pixel":
        return Pixel()
    own = dict(network.named_buffers())
    mean, spread, edge = (_ending(own, name) for name in (MEAN, SPREAD, EDGE))
    return Wavelet(mean, spread, edge, shows_unknown=config.anatomy)


def _ending(buffers: dict[str, Tensor], name: str) -> Tensor:  # an adapter's wrapper prefixes names
    return next(value for key, value in buffers.items() if key.split(".")[-1] == name)


@dataclass(frozen=True)
class Pixel:
    """Voxels as Med-DDPM sees them: an LPS file's array, transposed to z, y, x."""

    def state(self, image: Tensor, head: Tensor) -> Tensor:
        """The image, background and all."""
        del head
        return _laid(image)

    def image(self, state: Tensor, head: Tensor) -> Tensor:
        """Whatever was drawn, in the background too."""
        return self.difference(state, head)

    def difference(self, error: Tensor, head: Tensor) -> Tensor:
        """(B, C, Z, Y, X) of LPS → (B, C, X, Y, Z) of RAS."""
        del head
        return error.permute(0, 1, 4, 3, 2).flip(2, 3)

    def condition(self, planes: Tensor, unknown: Tensor) -> Tensor:
        """The planes, laid as the state is; nothing is known."""
        del unknown
        return _laid(planes)

    def weights(self, voxels: Tensor) -> Tensor:
        """The same voxels, laid as the state is."""
        return _laid(voxels)

    def unit(self) -> float:
        """It is the image."""
        return 1.0

    def unknown(self, head: Tensor, zone: Tensor | None = None) -> Tensor:
        """Med-DDPM draws everything, the background too."""
        del zone
        return torch.ones_like(_laid(head), dtype=torch.float32).expand(-1, CONTRASTS, -1, -1, -1)


@dataclass(frozen=True, eq=False)
class Wavelet:
    """One Haar level; each band of each contrast shifted and scaled to unit spread in the brain,
    and on its own scale where the edge of the head cuts a block.

    Nearly all of the energy is in the low bands: without this, noise would drown the others, and
    the network would never see them. What is not head is known, and laid flat: a jump at the edge
    would have many times the energy of any detail in the brain. Neither is there noise on it,
    which a network would have to copy faithfully to be rid of.
    """

    mean: Tensor  # (32,)
    spread: Tensor  # (32,)
    edge: Tensor  # (32,)
    shows_unknown: bool = False
    """Whether the network is told what is known."""

    def state(self, image: Tensor, head: Tensor) -> Tensor:
        """(B, 4, X, Y, Z) → (B, 32, X/2, Y/2, Z/2), whitened; 0 in the background."""
        return dwt3(_extended(image - self._usual(), head)) / self._scale(head)

    def image(self, state: Tensor, head: Tensor) -> Tensor:
        """Undo the whitening and the transform; the background is background."""
        return torch.where(head, self.difference(state, head) + self._usual(), BACKGROUND)

    def _usual(self) -> Tensor:
        """The mean of all brain."""
        return _column(self.mean[::BANDS] / math.sqrt(BANDS))  # of each contrast

    def _scale(self, head: Tensor) -> Tensor:
        whole = F.avg_pool3d(head.to(self.spread), 2) == 1
        return torch.where(whole, _column(self.spread), _column(self.edge))

    def unit(self) -> Tensor:
        """(1, 4, 1, 1, 1), by Parseval."""
        return self.spread.view(1, -1, BANDS).square().mean(-1).sqrt()[..., None, None, None]

    def difference(self, error: Tensor, head: Tensor) -> Tensor:
        """Means cancel."""
        return idwt3(error * self._scale(head))

    def condition(self, planes: Tensor, unknown: Tensor) -> Tensor:
        """Bands of the planes (B, C, …) → (B, 8 C, …/2): low bands are shares of a block.

        Where it is shown, what is unknown of each contrast follows, (B, 4, …/2).
        """
        bands = dwt3(planes) / math.sqrt(BANDS)
        return torch.cat([bands, unknown[:, ::BANDS]], dim=1) if self.shows_unknown else bands

    def weights(self, voxels: Tensor) -> Tensor:
        """The mean weight of each block."""
        return F.avg_pool3d(voxels, 2)

    def unknown(self, head: Tensor, zone: Tensor | None = None) -> Tensor:
        """Blocks that hold some head, of the zone."""
        drawn = head.expand(-1, CONTRASTS, -1, -1, -1) if zone is None else head & zone
        return F.max_pool3d(drawn.float(), 2).repeat_interleave(BANDS, dim=1)


def clamped(state: Tensor, head: Tensor, space: Space, ceiling: float) -> Tensor:
    """Keep a clean state within intensities: -1 (background) to the ceiling, as an image."""
    return space.state(space.image(state, head).clamp(BACKGROUND, ceiling), head)


class BandStatistics:
    """Mean and spread of each band over a cohort: in whole blocks, and at the edge of the head."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = torch.zeros(2, 1), torch.zeros(()), torch.zeros(())

    def add(self, image: Tensor, classes: Tensor) -> None:
        """Take in one case: image (4, X, Y, Z), class map (X, Y, Z)."""
        head = classes[None, None] > 0
        bands = dwt3(_extended(image[None].double(), head))[0]  # (32, X/2, Y/2, Z/2)
        share = F.avg_pool3d(head.double(), 2)[0, 0]
        kinds = [bands[:, where] for where in (share == 1, (share > 0) & (share < 1))]  # (32, N)
        self.count = self.count + torch.tensor([[v.shape[1]] for v in kinds])
        self.total = self.total + torch.stack([v.sum(1) for v in kinds])
        self.squares = self.squares + torch.stack([v.square().sum(1) for v in kinds])

    def store(self, network: nn.Module) -> None:
        """Write the statistics into a network's buffers."""
        count = self.count.clamp(min=1)
        means = self.total / count
        mean = means[0].clone()
        mean[torch.arange(len(mean)) % BANDS > 0] = 0  # differences: a flat image has none
        squares = self.squares / count - 2 * mean * means + mean.square()
        spreads = squares.clamp(min=0).sqrt().clamp(min=LEAST_SPREAD)
        network.get_buffer(MEAN).copy_(mean)
        for name, spread in zip((SPREAD, EDGE), spreads, strict=True):
            network.get_buffer(name).copy_(spread)


def _extended(values: Tensor, head: Tensor) -> Tensor:
    """Lay the rest of each broken block of 2³ at the mean of its head voxels; blocks of none at 0.

    values (B, C, X, Y, Z), head (B, 1, X, Y, Z).
    """
    inside = torch.where(head, values, 0.0)
    share = F.avg_pool3d(head.to(values), 2)
    mean = F.avg_pool3d(inside, 2) / share.clamp(min=1 / BANDS)
    return torch.where(head, inside, F.interpolate(mean, scale_factor=2))


def _laid(image: Tensor) -> Tensor:
    """(B, C, X, Y, Z) of RAS → (B, C, Z, Y, X) of LPS."""
    return image.flip(2, 3).permute(0, 1, 4, 3, 2)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
