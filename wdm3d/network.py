"""The denoiser: the shared U-Net on Haar bands, with a learned atlas in context mode."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from synth.diffusion.unet import UNet
from wdm3d.config import Config


def build(config: Config) -> nn.Module:
    """Build the network: (x, t) → (B, bands, …), x = cat(x_t, condition), t in timesteps."""
    return AtlasUNet(config) if config.has_atlas else UNet(config.unet())


class AtlasUNet(nn.Module):
    """A U-Net that looks up learned bands at each voxel's place in the brain.

    The last three input channels are coordinates in [-1, 1] along the brain's bounding box. An
    atlas that is only learned through convolutions of coordinates costs depth; here it is a table.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.atlas = nn.Parameter(torch.zeros(1, config.bands, *[config.atlas] * 3))
        self.unet = UNet(config.unet())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the clean state at timestep t (B,)."""
        places = x[:, -3:].movedim(1, -1).flip(-1)  # grid_sample counts the last axis first
        atlas = self.atlas.expand(len(x), -1, -1, -1, -1)
        looked_up = F.grid_sample(atlas, places, padding_mode="border", align_corners=True)
        return self.unet(torch.cat([x, looked_up], dim=1), t)
