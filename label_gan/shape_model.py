"""The statistical shape model that the generator starts from."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from label_gan.config import Config
from label_gan.data import LesionData
from label_gan.lesion_size import bootstrap
from label_gan.network import OrderedGenerator
from synth.base.seeding import mix

SAMPLES = 1024
RIDGE = 1.0  # items' worth of shrinkage of the regression on sizes


def fit_generator(generator: OrderedGenerator, items: LesionData, config: Config) -> None:
    """Fill in what follows from the cohort: its shape model, its sizes, its spacing."""
    rng = np.random.default_rng(mix(0, "sizes"))
    sizes = np.stack([lesion["size"] for lesion in items.lesions])
    generator.table.copy_(torch.from_numpy(bootstrap(sizes, config.sizes, rng)))
    generator.spacing_mm.fill_(items.spacing_mm())
    drawn = [items.item(i % len(items), mix(0, "shape model", i)) for i in range(SAMPLES)]
    maps = halve(torch.stack([d["maps"] for d in drawn])).flatten(1)
    weight, bias = fit(maps, torch.stack([d["size"] for d in drawn]), config.latent)
    generator.shape.weight.data.copy_(weight)
    generator.shape.bias.data.copy_(bias)


def halve(maps: Tensor) -> Tensor:  # (B, C, X, Y, Z) → (B, C, X/2, Y/2, Z/2)
    """Return the maps that come nearest to `maps` when the generator doubles them trilinearly."""
    half = maps.shape[-1] // 2
    doubling = F.interpolate(torch.eye(half)[None], scale_factor=2, mode="linear")[0].T
    inverse = torch.linalg.pinv(doubling)  # (half, 2 half)
    return torch.einsum("bcxyz,ix,jy,kz->bcijk", maps, inverse, inverse, inverse)


def fit(maps: Tensor, sizes: Tensor, latent: int) -> tuple[Tensor, Tensor]:
    """Fit maps ≈ bias + weight · (size, code) with codes N(0, I): regression, then PCA of the rest.

    (N, M) maps and (N, S) sizes give (M, S + latent) and (M,).
    """
    centre, mean = sizes.mean(0), maps.mean(0)
    sizes, rest = sizes - centre, maps - mean
    gram = sizes.T @ sizes + RIDGE * torch.eye(sizes.shape[1])
    slope = torch.linalg.solve(gram, sizes.T @ rest)  # (S, M)
    rest = rest - sizes @ slope
    _, vectors = torch.linalg.eigh(rest @ rest.T)  # of the small Gram matrix: N < M
    largest = vectors[:, -latent:].flip(1)  # (N, latent), largest first
    basis = rest.T @ largest / len(maps) ** 0.5  # columns of length √eigenvalue
    return torch.cat([slope.T, basis], dim=1), mean - centre @ slope
