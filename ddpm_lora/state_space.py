"""The two spaces of diffusion: wavelet bands and voxels.

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

from ddpm_lora.atlas import BRAIN, LEAST, gathered, placed
from ddpm_lora.config import BANDS, Config
from synth.diffusion.wavelet import dwt3, idwt3

BACKGROUND = -1.0
MEAN, SPREAD, EDGE = "band_mean", "band_spread", "edge_spread"  # buffers of a network
ATLAS, PLACES = "atlas", "place_spread"
LEAST_SPREAD = 1e-3  # of a band that is nearly empty; noise must not be blown up to unit size
KINDS = 2  # of bands, each with its own map of spreads: the low one, and all details
CALMEST, WILDEST = 0.4, 2.5  # places, in the spread of all brain: few cases tell no more


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

    def condition(self, planes: Tensor) -> Tensor:
        """Return what the network sees of (B, 4, X, Y, Z) label planes."""
        ...

    def weights(self, voxels: Tensor) -> Tensor:
        """Return voxel weights (B, 1, X, Y, Z) on the state's grid, their mean kept."""
        ...

    def unit(self) -> Tensor | float:
        """Return the RMS of each contrast that a state of ones has as an image."""
        ...

    def unknown(self, head: Tensor) -> Tensor | float:
        """Return 1 where the state has to be drawn, 0 where it is known to be 0; on its grid."""
        ...


def space_of(config: Config, network: nn.Module) -> Space:
    """Return the space a configuration names; a wavelet network carries its bands' statistics."""
    if config.space == "pixel":
        return Pixel()
    own = dict(network.named_buffers())
    names = (MEAN, SPREAD, EDGE, *((ATLAS, PLACES) if config.atlas else ()))
    return Wavelet(*(_ending(own, name) for name in names))


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

    def condition(self, planes: Tensor) -> Tensor:
        """The planes, laid as the state is."""
        return _laid(planes)

    def weights(self, voxels: Tensor) -> Tensor:
        """The same voxels, laid as the state is."""
        return _laid(voxels)

    def unit(self) -> float:
        """It is the image."""
        return 1.0

    def unknown(self, head: Tensor) -> float:
        """Med-DDPM draws the background, too."""
        del head
        return 1.0


@dataclass(frozen=True, eq=False)
class Wavelet:
    """One Haar level; each band of each contrast shifted and scaled to unit spread in the brain,
    and on its own scale where the edge of the head cuts a block.

    Nearly all of the energy is in the low bands: without this, noise would drown the others, and
    the network would never see them. What is not head is known, and laid flat: a jump at the edge
    would have many times the energy of any detail in the brain. Neither is there noise on it,
    which a network would have to copy faithfully to be rid of. With an atlas mean and spread are
    those of the place in the brain: ventricles and cortex vary from brain to brain, deep white
    matter hardly does, and there no noise should be left to become tissue.
    """

    mean: Tensor  # (32,)
    spread: Tensor  # (32,)
    edge: Tensor  # (32,)
    atlas: Tensor | None = None  # (4, G, G, G) over the box of the head
    places: Tensor | None = None  # (KINDS, G, G, G), the spread of all brain being 1

    def state(self, image: Tensor, head: Tensor) -> Tensor:
        """(B, 4, X, Y, Z) → (B, 32, X/2, Y/2, Z/2), whitened; 0 in the background."""
        return dwt3(_extended(image - self._usual(head), head)) / self._scale(head)

    def image(self, state: Tensor, head: Tensor) -> Tensor:
        """Undo the whitening and the transform; the background is background."""
        return torch.where(head, self.difference(state, head) + self._usual(head), BACKGROUND)

    def _usual(self, head: Tensor) -> Tensor:
        """The mean brain under this head, or the mean of all brain."""
        if self.atlas is not None:
            return placed(self.atlas, head)
        return _column(self.mean[::BANDS] / math.sqrt(BANDS))  # of each contrast

    def _scale(self, head: Tensor) -> Tensor:
        whole = F.avg_pool3d(head.to(self.spread), 2) == 1
        spread = _column(self.spread)
        if self.places is not None:
            found = F.avg_pool3d(placed(self.places, head), 2)  # (B, KINDS, X/2, Y/2, Z/2)
            spread = spread * found[:, _kinds(len(self.spread))]
        return torch.where(whole, spread, _column(self.edge))

    def unit(self) -> Tensor:
        """(1, 4, 1, 1, 1), by Parseval, where places are as usual."""
        return self.spread.view(1, -1, BANDS).square().mean(-1).sqrt()[..., None, None, None]

    def difference(self, error: Tensor, head: Tensor) -> Tensor:
        """Means cancel."""
        return idwt3(error * self._scale(head))

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

    def unknown(self, head: Tensor) -> Tensor:
        """Blocks that hold some head."""
        return F.max_pool3d(head.float(), 2)


def clamped(state: Tensor, head: Tensor, space: Space, ceiling: float) -> Tensor:
    """Keep a clean state within intensities: -1 (background) to the ceiling, as an image."""
    return space.state(space.image(state, head).clamp(BACKGROUND, ceiling), head)


class BandStatistics:
    """Mean and spread of each band over a cohort: in whole blocks, and at the edge of the head."""

    def __init__(self, atlas: Tensor | None = None) -> None:
        self.atlas = atlas
        self.count, self.total, self.squares = torch.zeros(2, 1), torch.zeros(()), torch.zeros(())
        self.energy = torch.zeros(())  # (33, G, G, G): of each band in healthy blocks, their number

    def add(self, image: Tensor, classes: Tensor) -> None:
        """Take in one case: image (4, X, Y, Z), class map (X, Y, Z)."""
        head = classes[None, None] > 0
        if self.atlas is not None:
            image = image - placed(self.atlas, head)[0]
        bands = dwt3(_extended(image[None].double(), head))[0]  # (32, X/2, Y/2, Z/2)
        share = F.avg_pool3d(head.double(), 2)[0, 0]
        kinds = [bands[:, where] for where in (share == 1, (share > 0) & (share < 1))]  # (32, N)
        self.count = self.count + torch.tensor([[v.shape[1]] for v in kinds])
        self.total = self.total + torch.stack([v.sum(1) for v in kinds])
        self.squares = self.squares + torch.stack([v.square().sum(1) for v in kinds])
        if self.atlas is not None:
            healthy = F.avg_pool3d((classes == BRAIN).double()[None, None], 2) == 1
            energy, where = (
                F.interpolate(v.double(), scale_factor=2)[0]
                for v in (bands[None].square(), healthy)
            )
            self.energy = self.energy + gathered(energy, where[0] > 0, classes > 0)

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
        if self.atlas is not None:
            network.get_buffer(PLACES).copy_(self._places(spreads[0].clamp(min=LEAST_SPREAD)))

    def _places(self, spread: Tensor) -> Tensor:
        """Spread of each kind of band at each place → (KINDS, G, G, G), smoothed over 3³ places."""
        energy = F.avg_pool3d(self.energy.double()[None], 3, 1, 1)[0]
        count = energy[-1].clamp(min=LEAST)
        relative = energy[:-1] / spread.square().view(-1, 1, 1, 1) / count
        low = _kinds(len(spread)) == 0
        found = torch.stack([relative[low].mean(0), relative[~low].mean(0)]).sqrt()
        return torch.where(energy[-1] > LEAST, found, 1.0).clamp(CALMEST, WILDEST)


def _kinds(channels: int) -> Tensor:
    """0 for the low bands among channels, 1 for details."""
    return (torch.arange(channels) % BANDS > 0).long()


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
