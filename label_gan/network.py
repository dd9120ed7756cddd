"""The generator of nested distance maps, and its critic.

The generator is a statistical shape model (Cootes et al. 1995), linear in size and code, that a
small network then makes rough where lesions are rough. It starts as the shape model of the cohort
(shape_model.py), so that the adversarial training begins with plausible, too smooth lesions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from label_gan import lesion_size
from label_gan.alpha import AlphaGenerator, Ladder, code_critic
from label_gan.config import SEED_EDGE, Config
from label_gan.distance_maps import nest, soft_classes
from synth.diffusion.wavelet import dwt3, idwt3

MAPS = 3  # WT, TC, NCR
NOISE = 4  # channels at half the grid, and twice as many at a quarter


def build(config: Config) -> nn.Module:
    """Build the generator: (code, size) → maps. It alone is published."""
    return OrderedGenerator(config) if config.architecture == "ordered" else AlphaGenerator(config)


def players(config: Config) -> nn.ModuleDict:
    """Build every network that takes part in the training."""
    generator = build(config)
    if config.architecture == "ordered":
        return nn.ModuleDict({"generator": generator, "critic": OrderedCritic(config)})
    return nn.ModuleDict(
        {
            "generator": generator,
            "encoder": Ladder(config, config.latent, critic=False),
            "critic": Ladder(config, 1, critic=True),
            "code_critic": code_critic(config),
        }
    )


class OrderedGenerator(nn.Module):
    """From a code and a size to the nested distances of WT, TC and NCR."""

    table: Tensor
    spacing_mm: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        half, w = config.grid // 2, config.width
        self.edge, self.latent = half, config.latent
        self.fine_length = NOISE * half**3
        self.coarse_length = 2 * NOISE * (half // 2) ** 3
        self.code_length = config.latent + self.fine_length + self.coarse_length
        self.register_buffer("table", torch.zeros(config.sizes, lesion_size.LENGTH))
        self.register_buffer("spacing_mm", torch.ones(()))
        self.shape = nn.Linear(lesion_size.LENGTH + config.latent, MAPS * half**3)
        self.fine = nn.Conv3d(MAPS + NOISE, w, 3, padding=1)
        self.down = nn.Conv3d(w, 2 * w, 4, stride=2, padding=1)
        self.coarse = nn.Conv3d(2 * w + 2 * NOISE, 2 * w, 3, padding=1)
        self.up = nn.Conv3d(2 * w, w, 3, padding=1)
        self.merge = nn.Conv3d(2 * w, w, 3, padding=1)
        self.last = nn.Conv3d(w, 8 * MAPS, 3, padding=1)
        self.style = nn.Linear(lesion_size.LENGTH + config.latent, 2 * w + 4 * w)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # ty: ignore

    def forward(self, code: Tensor, size: Tensor) -> Tensor:  # (B, code_length), (B, 6)
        """Draw maps (B, 3, X, Y, Z), negative inside, in units of the reach.

        The code is that of the shape, and noise at two scales.
        """
        lengths = [self.latent, self.fine_length, self.coarse_length]
        latent, fine, coarse = code.split(lengths, dim=1)
        known = torch.cat([size, latent], dim=1)
        cube = (self.edge,) * 3
        smooth = self.shape(known).unflatten(1, (MAPS, *cube))
        bands = self._refine(
            smooth,
            fine.unflatten(1, (NOISE, *cube)),
            coarse.unflatten(1, (2 * NOISE, *[self.edge // 2] * 3)),
            self.style(known),
        )
        base = F.interpolate(smooth, scale_factor=2, mode="trilinear")
        return nest(base + idwt3(bands))

    def _refine(self, smooth: Tensor, fine: Tensor, coarse: Tensor, style: Tensor) -> Tensor:
        """Return what to add to the smooth maps, as Haar bands."""
        w = len(self.fine.bias)  # ty: ignore[invalid-argument-type]
        gain, shift, deep_gain, deep_shift = style[:, :, None, None, None].split(
            [w, w, 2 * w, 2 * w], dim=1
        )
        x = F.leaky_relu(self.fine(torch.cat([smooth, fine], 1)) * (1 + gain) + shift, 0.2)
        y = F.leaky_relu(self.down(x), 0.2)
        y = self.coarse(torch.cat([y, coarse], 1)) * (1 + deep_gain) + deep_shift
        y = F.interpolate(self.up(F.leaky_relu(y, 0.2)), scale_factor=2, mode="trilinear")
        x = F.leaky_relu(self.merge(torch.cat([x, F.leaky_relu(y, 0.2)], 1)), 0.2)
        return self.last(x)  # (B, 24, X/2, Y/2, Z/2)


class OrderedCritic(nn.Module):
    """Looks at distances and at what they decode to: each place, and the whole."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w, self.reach = config.critic_width, config.reach
        self.first = nn.Conv3d(8 * 2 * MAPS, w, 3, padding=1)
        self.told = nn.Linear(lesion_size.LENGTH, w)
        deeper, edge = [], config.grid // 2
        while edge > SEED_EDGE:
            deeper.append(nn.Conv3d(w, 2 * w, 4, stride=2, padding=1))
            w, edge = 2 * w, edge // 2
        self.deeper = nn.ModuleList(deeper)
        self.places = nn.Conv3d(2 * config.critic_width, 1, 1)
        self.whole = nn.Linear((w + 1) * SEED_EDGE**3, 1 + lesion_size.LENGTH)

    def forward(self, maps: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits: (B, 1) for the whole, (B, P) for the places of a quarter of the grid."""
        seen = torch.cat([maps.clamp(-1, 1), soft_classes(maps, self.reach)], dim=1)
        x = self.first(dwt3(seen)) + self.told(size)[:, :, None, None, None]
        local = x
        for number, layer in enumerate(self.deeper):
            x = layer(F.leaky_relu(x, 0.2))
            local = x if number == 0 else local
        places = self.places(F.leaky_relu(local, 0.2)).flatten(1)
        # One more channel says how varied the batch is, against collapse (Karras et al. 2018).
        spread = (x.var(dim=0, correction=0) + 1e-4).sqrt().mean().expand(len(x), 1, *x.shape[2:])
        x = torch.cat([F.leaky_relu(x, 0.2), spread], dim=1)
        answer = self.whole(x.flatten(1))
        whole = answer[:, :1] + (answer[:, 1:] * size).sum(1, keepdim=True)
        return whole, places
