"""The four networks of the alpha-GAN, in the published sizes.

Kwon et al., "Generation of 3D Brain MRI Using Auto-Encoding Generative Adversarial Networks"
(2019); Ferreira et al. for tumour labels. For a grid of 64³ and width 64 the generator has
7,926,848 parameters with three channels; other grids have a level more or less.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from label_gan.config import SEED_EDGE, Config


class AlphaGenerator(nn.Module):
    """From a code to soft regions: 4³, then upsampled and convolved to the grid."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.width * 2**k for k in reversed(range(config.levels))]
        self.code_length = config.latent
        self.seed = nn.ConvTranspose3d(config.latent, widths[0], SEED_EDGE, bias=False)
        self.blocks = nn.ModuleList(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
            for inputs, outputs in zip(widths, [*widths[1:], config.channels], strict=True)
        )

    def forward(self, code: Tensor, size: Tensor | None = None) -> Tensor:  # (B, latent), ignored
        """Draw soft regions in (-1, 1)."""
        del size
        x = self.seed(code[:, :, None, None, None])
        for block in self.blocks:
            x = F.leaky_relu(F.instance_norm(x), 0.01)
            x = block(F.interpolate(x, scale_factor=2))
        return torch.tanh(x)  # (B, channels, X, Y, Z)


class Ladder(nn.Sequential):
    """Strided convolutions from the grid to one vector: the critic, and the encoder."""

    def __init__(self, config: Config, outputs: int, *, critic: bool) -> None:
        widths = [config.critic_width * 2**k for k in range(config.levels)]
        # The predecessor normalises spectrally where it also penalises gradients; so do we here.
        norm = spectral_norm if critic else nn.Identity()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip([config.channels, *widths[:-1]], widths, strict=True)):
            layers.append(norm(nn.Conv3d(a, b, 4, stride=2, padding=1)))
            if i and not critic:
                layers.append(nn.InstanceNorm3d(b))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(norm(nn.Conv3d(widths[-1], outputs, SEED_EDGE)))
        super().__init__(*layers, nn.Flatten())


def code_critic(config: Config) -> nn.Module:
    """Build the critic of codes."""
    sizes = (config.latent, config.code_width, config.code_width)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [spectral_norm(nn.Linear(a, b)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Linear(config.code_width, 1)))
